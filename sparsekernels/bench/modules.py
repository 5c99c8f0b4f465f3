# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Python files outside this package, by their path."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType


def import_file(path: Path) -> ModuleType:
    """The Python file at `path`, which can import what lies beside it, as a program can.

    Raises ValueError where there is none, or another module has its name.
    """
    if not path.is_file():
        raise ValueError(f"expected a Python file at {path}, got none")
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    module = importlib.import_module(path.stem)
    if module.__file__ is None or not path.samefile(module.__file__):
        raise ValueError(f"expected a module of a name of its own, got {path}: {module.__file__} has that name")
    return module
