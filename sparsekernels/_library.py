# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The compiled kernels: loads them into torch once, and records what was not built and why.

`cpu` and `cuda` are the paths of the loaded libraries, or None; then `cpu_missing` and `cuda_missing` say why.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import warnings
from pathlib import Path

import torch

from . import _environment

_FOLDER = Path(__file__).parent / "lib"
_INTERFACE = b"sparsekernels interface 11;"
"""In csrc/base/interface.h as well: a library of another version knows other operators by the same names."""


def _load(name: str) -> tuple[str | None, str]:
    """The path of the loaded library, or None and why. Raises ImportError for one of another version."""
    path, note = _FOLDER / f"libsparsekernels_{name}.so", _FOLDER / f"no_{name}.txt"
    if not path.exists():
        reason = note.read_text(encoding="utf-8").strip() if note.exists() else "nothing was compiled here"
        return None, f"the {name.upper()} kernels were not built: {reason}"
    if not _has_interface(path):
        raise ImportError(
            f"expected {path.name} of {_INTERFACE.decode()[:-1]!r}, as the Python code is, got one of another version:"
            " build it again, with pip install --force-reinstall, or in a checkout with make clean && make test"
        )
    try:
        torch.ops.load_library(str(path))
    except (OSError, RuntimeError) as error:
        return None, f"{path.name} was built but does not load: {error}"
    return str(path), ""


def _has_interface(path: Path) -> bool:
    """Whether the library states our interface. It is not loaded for that: to load it is to register its kernels."""
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return False
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(_INTERFACE) >= 0


cpu, cpu_missing = _load("cpu")
if torch.version.cuda is None:
    cuda, cuda_missing = None, f"torch {torch.__version__} has no CUDA"
else:
    cuda, cuda_missing = _load("cuda")


def warn_of_missing() -> None:
    """Warn where the CPU kernels were not built or do not load.

    For `sparsekernels/__init__.py`: the warning is of the line that imports the package.
    """
    if cpu is None and not _environment.is_quiet():
        warnings.warn(
            f"sparsekernels: {cpu_missing}. Everything works, on slower implementations;"
            " `sparsekernels info` has details.",
            stacklevel=3,
        )


def isa() -> str | None:
    """The instruction set that the CPU kernels use here: "avx512", "avx2" or "portable".

    The environment variable SPARSEKERNELS_CPU_ISA, read by the first call, forces one. None where the kernels were not
    built, or where it asks for one that this processor does not have: then every call raises.
    """
    if cpu is None:
        return None
    function = ctypes.CDLL(cpu).sparsekernels_cpu_isa
    function.restype = ctypes.c_char_p
    name = function()
    return None if name is None else name.decode()


def has_jit() -> bool:
    """Whether fine-grained patterns can be machine code on the instruction set that `isa` names.

    That SPARSEKERNELS_CPU_JIT turns it off, or that the system runs no such code, is another matter.
    """
    if cpu is None:
        return False
    function = ctypes.CDLL(cpu).sparsekernels_cpu_has_jit
    function.restype = ctypes.c_bool
    return bool(function())


@functools.cache
def block_kernels() -> str | None:
    """The kernels for weights in blocks, in bfloat16: "amx", "avx512_bf16" or "portable"; None where none were built.

    The environment variable SPARSEKERNELS_CPU_AMX, read by the first call, leaves AMX out where it is 0.
    """
    if cpu is None or isa() is None:
        return None
    function = ctypes.CDLL(cpu).sparsekernels_cpu_block_kernels
    function.restype = ctypes.c_char_p
    return str(function().decode())


def amx_reason() -> str | None:
    """Why `block_kernels` are not "amx", in words; None where they are, and where none were built."""
    if cpu is None or isa() is None:
        return None
    function = ctypes.CDLL(cpu).sparsekernels_cpu_amx_reason
    function.restype = ctypes.c_char_p
    reason = function()
    return None if reason is None else reason.decode()


def supported_isas() -> tuple[str, ...]:
    """The instruction sets that the CPU kernels were built for and this processor has, best first."""
    if cpu is None:
        return ()
    function = ctypes.CDLL(cpu).sparsekernels_cpu_supported_isas
    function.restype = ctypes.c_char_p
    return tuple(function().decode().split())
