# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What this machine has, what was built, and what each operation will use on each device."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from .. import _library
from ..dispatch import Call
from ..ops import OPERATIONS
from ..ops._triton_table import measured_for
from ..ops.sparse_conv2d import implementations as kernels
from ..ops.sparse_conv2d.blocks import BLOCKS, SMALLEST_ON_GPU
from ..ops.sparse_conv2d.expanded_routes import MOST_BY_NONZEROS
from . import machine

Lines = list[tuple[str, str]]


def sections() -> dict[str, Lines]:
    """The report by section: lines of a name and what is to be said of it."""
    found = {"machine": _machine(), "versions": _versions(), "built": _built(), "in use": _in_use()}
    return {**found, "on cuda": _on_gpus()} if torch.cuda.is_available() else found


def text() -> str:
    """What this machine has, what was built, and what will be used on each device: sections of names and texts."""
    lines = []
    for title, rows in sections().items():
        width = max(len(name) for name, _ in rows)
        lines += [title, *(f"  {name.ljust(width)}  {text}" for name, text in rows)]
    return "\n".join(lines)


def _machine() -> Lines:
    lines = [
        ("processor", f"{machine.cpu_model()}, {torch.backends.cpu.get_cpu_capability()} in torch's own terms"),
        ("cores", f"{machine.cores()}, torch uses {torch.get_num_threads()} threads"),
        ("memory", f"{machine.memory_gib()} GiB"),
    ]
    if not torch.cuda.is_available():
        return [*lines, ("GPU", "none that torch can use")]
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        text = f"{gpu.name}, compute capability {gpu.major}.{gpu.minor}, {gpu.total_memory / 2**30:.0f} GiB"
        lines.append((f"GPU {index}", text))
    return lines


def _versions() -> Lines:
    return [*machine.versions().items(), ("commit", machine.commit())]


def _built() -> Lines:
    cpu = _library.cpu_missing
    if _library.cpu is not None:
        cpu = _wrong_isa() or f"{_library.isa()} (here also {_others() or 'nothing else'}), {_short(_library.cpu)}"
    return [
        ("CPU kernels", cpu),
        ("sparse patterns", _jit()),
        ("blocks in bfloat16", _blocks()),
        ("CUDA kernels", _library.cuda_missing if _library.cuda is None else _short(_library.cuda)),
        ("Triton kernels", f"Triton {machine.versions()['triton']}" if _has_triton() else "Triton is not installed"),
    ]


def _jit() -> str:
    """Whether fine-grained patterns are compiled to machine code."""
    if _library.cpu is None:
        return "the CPU kernels were not built"
    if (wrong := _wrong_isa()) is not None:
        return wrong
    if not _library.has_jit():
        return "read by the kernels; compiled only for AVX-512"
    setting = os.environ.get("SPARSEKERNELS_CPU_JIT")
    try:
        if kernels.kept_kernel_bytes() >= 0:
            most = kernels.most_kernel_bytes() // 2**20
            return f"compiled to AVX-512 code when first used, of which at most {most} MB are kept"
    except ValueError as error:
        return str(error)
    why = "the system runs no such code" if setting is None else f"SPARSEKERNELS_CPU_JIT={setting}"
    return f"read by the kernels, not compiled: {why}"


def _blocks() -> str:
    """What runs weights in blocks in bfloat16."""
    if _library.cpu is None:
        return "the CPU kernels were not built"
    if (wrong := _wrong_isa()) is not None:
        return wrong
    kernels, reason = _library.block_kernels(), _library.amx_reason()
    if reason is None:
        return "tiles of AMX"
    by = "VDPBF16PS (AVX512-BF16)" if kernels == "avx512_bf16" else "the kernels of single elements"
    return f"{by}; not by AMX: {reason}"


def _wrong_isa() -> str | None:
    """Why calls of the CPU kernels raise, though they were built: they are asked for on what is not here."""
    if _library.isa() is not None:
        return None
    forced = os.environ.get("SPARSEKERNELS_CPU_ISA")
    known = " ".join(_library.supported_isas())
    return f"every call raises: expected SPARSEKERNELS_CPU_ISA to be one of: {known}, got {forced!r}"


def _others() -> str:
    return " and ".join(isa for isa in _library.supported_isas() if isa != _library.isa())


def _has_triton() -> bool:
    return "triton" in machine.versions()


def _short(path: str) -> str:
    return Path(path).name


def _in_use() -> Lines:
    """The implementation that a plain call on each device takes, and why not those before it.

    In float32, or what an operation has kernels for in its place.
    """
    lines = []
    for operation in [*OPERATIONS, BLOCKS]:
        for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
            dtypes = operation.cuda_dtypes if device == "cuda" else operation.dtypes
            dtype = torch.float32 if torch.float32 in dtypes else dtypes[0]
            call = Call(torch.device(device), dtype, operation.format)
            reasons = {row.name: row.supports(call) for row in operation.implementations}
            chosen = next(backend for backend, reason in reasons.items() if reason is None)
            in_dtype = "" if dtype is torch.float32 else f" in {str(dtype)[6:]}"
            lines.append((f"{operation.name} on {device}{in_dtype}", chosen))
            lines += [("", f"not {backend}: {reason}") for backend, reason in reasons.items() if reason is not None]
    return lines


def _on_gpus() -> Lines:
    """What the table of implementations does not tell: what is dense, and what depends on sizes."""
    reason = Call(torch.device("cuda"), torch.float32).unsupported_gpu
    if reason is not None:
        return [("all operations", f"the reference: {reason}")]
    smallest = f"{SMALLEST_ON_GPU}x{SMALLEST_ON_GPU}"
    few = max(MOST_BY_NONZEROS)
    by = "the CUDA kernel or Triton's, by the density" if _library.cuda is not None else "Triton's kernel"
    measured = ", ".join(measured_for())
    return [
        (f"blocks smaller than {smallest}", "a dense product by torch: tiles of tensor cores would be mostly zeros"),
        ("fine-grained layers", "a dense product by torch, by their weight; in a graph of convert as the next two"),
        (f"fine-grained linear and 1x1, up to {few} rows", f"{by}; on more Triton's, then a dense one of torch's"),
        ("other fine-grained convolutions", "a dense one of torch's, by the expanded weight"),
        ("launch configurations", f"measured for {measured}" if measured else "of a model; none was measured"),
    ]
