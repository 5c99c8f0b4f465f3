# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The environment variables of the package, its benchmark and its build, and a warning of others with their prefix."""

from __future__ import annotations

import os
import warnings

PREFIX = "SPARSEKERNELS_"

VARIABLES = (
    "SPARSEKERNELS_CPU_ISA",
    "SPARSEKERNELS_CPU_JIT",
    "SPARSEKERNELS_CPU_AMX",
    "SPARSEKERNELS_CPU_VBMI2",
    "SPARSEKERNELS_POISON",
    "SPARSEKERNELS_QUIET",
    "SPARSEKERNELS_COMMIT",
    "SPARSEKERNELS_PEERS",
    "SPARSEKERNELS_DATA",
    "SPARSEKERNELS_REQUIRE_KERNELS",
)
"""All that something reads. The table "Switches" in HACKING.md says what and what for."""


def is_quiet() -> bool:
    """Whether the package is imported without warnings."""
    return bool(os.environ.get("SPARSEKERNELS_QUIET"))


def warn_of_unknown() -> None:
    """Warn of variables that nothing reads: one that is misspelled, or was renamed, would silently have no effect.

    For `sparsekernels/__init__.py`: the warning is of the line that imports the package.
    """
    unknown = sorted(name for name in os.environ if name.startswith(PREFIX) and name not in VARIABLES)
    if unknown and not is_quiet():
        warnings.warn(
            f"sparsekernels: expected environment variables among {', '.join(VARIABLES)}, got {', '.join(unknown)},"
            " without effect",
            stacklevel=3,
        )
