# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What a measurement was made on: machine, versions, commit. The same in every run that nothing changed between."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import torch

from .. import _library
from .._version import __version__

ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "4000000000", "MALLOC_TRIM_THRESHOLD_": "8000000000"}
"""Settings of the GNU C library under which every CPU measurement runs, read by it when a process starts.

By default it gives every buffer above 32 MB back to the system when it is freed. Each large output is then paged in
anew, which takes tens of times longer than any of the operations measured here and would hide what they cost.
"""

_SOURCES = ("sparsekernels", "csrc", "CMakeLists.txt", "setup.py", "pyproject.toml")


@cache
def machine() -> dict[str, Any]:
    """Processor, the instruction set that our kernels use, cores open to this process, memory, GPU, allocator.

    "isa" is None where our CPU kernels are not built, "gpu" where torch sees none, and an allocator setting where this
    process was started without it.
    """
    return {
        "cpu": cpu_model(),
        "isa": _library.isa(),
        "cores": cores(),
        "memory_gib": memory_gib(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "allocator": {name: os.environ.get(name) for name in ALLOCATOR},
    }


@cache
def versions() -> dict[str, str]:
    """Versions of this package and of what it runs on."""
    result = {"sparsekernels": __version__, "torch": torch.__version__, "python": platform.python_version()}
    if importlib.util.find_spec("triton") is not None:
        result["triton"] = importlib.metadata.version("triton")
    if torch.version.cuda is not None:
        result["cuda"] = torch.version.cuda
    return result


@cache
def commit(root: Path = Path(__file__).parents[2]) -> str:
    """The commit that is measured, with "+dirty" where its sources were changed since.

    From git where `root`, the folder that has this package, is a checkout of it; else from the environment variable
    SPARSEKERNELS_COMMIT, for a copy that came without its history; else the version of the package, as "v0.1.0".
    """
    if _git(root, "ls-files", "--error-unmatch", "sparsekernels/__init__.py") is not None:
        head, changes = _git(root, "rev-parse", "--short=12", "HEAD"), _git(root, "status", "--porcelain", *_SOURCES)
        if head is not None and changes is not None:
            return head + ("+dirty" if changes else "")
    return os.environ.get("SPARSEKERNELS_COMMIT") or f"v{__version__}"


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints, or None where it fails or is not installed."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def cpu_model() -> str:
    """The processor's name as it calls itself."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def cores() -> int:
    """Processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_gib() -> int:
    """Memory of the machine, in whole GiB."""
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
