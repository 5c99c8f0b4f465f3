"""The compiled kernels: loads them into torch once, and knows what was not built and why.

`cpu` and `cuda` are the paths of the loaded libraries, or None; then `cpu_missing` and `cuda_missing` say why.
"""

from __future__ import annotations

import ctypes
import os
import warnings
from pathlib import Path

import torch

_FOLDER = Path(__file__).parent / "lib"
_NOT_BUILT = "the compiled kernels were not built (no C++ compiler, or no torch, when sparsekernels was installed)"
_CUDA_NOT_BUILT = "the CUDA kernels were not built (no nvcc when sparsekernels was installed)"


def _load(name: str, not_built: str) -> tuple[str | None, str]:
    path = _FOLDER / name
    if not path.exists():
        return None, not_built
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return None, f"{path.name} was built but does not load: {error}"
    return str(path), ""


cpu, cpu_missing = _load("libsparsekernels_cpu.so", _NOT_BUILT)
if torch.version.cuda is None:
    cuda, cuda_missing = None, f"torch {torch.__version__} has no CUDA"
else:
    cuda, cuda_missing = _load("libsparsekernels_cuda.so", _CUDA_NOT_BUILT)

if cpu is None and not os.environ.get("SPARSEKERNELS_QUIET"):
    warnings.warn(
        f"sparsekernels: {cpu_missing}. Everything works, on slower implementations; `sparsekernels info` has details.",
        stacklevel=2,
    )


def isa() -> str | None:
    """The instruction set that the CPU kernels use here: "avx512", "avx2", "portable", or None where not built.

    The environment variable SPARSEKERNELS_CPU_ISA, read when the library is loaded, forces one.
    """
    if cpu is None:
        return None
    function = ctypes.CDLL(cpu).sparsekernels_cpu_isa
    function.restype = ctypes.c_char_p
    return function().decode()


def supported_isas() -> tuple[str, ...]:
    """The instruction sets that the CPU kernels were built for and this processor has, best first."""
    if cpu is None:
        return ()
    function = ctypes.CDLL(cpu).sparsekernels_cpu_supported_isas
    function.restype = ctypes.c_char_p
    return tuple(function().decode().split())
