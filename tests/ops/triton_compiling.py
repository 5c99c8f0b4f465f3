# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Compiles Triton kernels for GPUs that are not there, and reads what came out: registers, memory, instructions.

Compiling needs no GPU, but it needs kernels that are not interpreted: it happens in child processes, one for each
architecture. A test file has a table of calls by name and ends with

    if __name__ == "__main__":
        print_compiled(sys.argv, [(module, "kernel"), ...], CASES)

and asks for `compiled(__file__, architecture)`.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import triton

ARCHITECTURES = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
"""By compute capability, the bytes of shared memory that a program may have."""

Extra = Callable[[Any], Mapping[str, Any]]


@functools.cache
def _child(file: str, architecture: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, file, str(architecture)]
    environment = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)


def compiled(file: str, architecture: int) -> dict[str, list[dict[str, Any]]]:
    """By case, one record for each kernel that it launches, in order; `file` is the test file.

    Each has kernel, hash, warps, shared, registers, stack (bytes that a thread spills), accesses (bytes of each load
    and store of global memory), products (of the tensor cores, by the name of their instruction), and `extra`'s.
    """
    process = _child(file, architecture)
    assert process.returncode == 0, process.stderr
    records: dict[str, list[dict[str, Any]]] = json.loads(process.stdout.splitlines()[-1])
    return records


# The child process


class _Driver:
    """Stands for a GPU that is not there: what Triton asks before it compiles."""

    def __init__(self, architecture: int) -> None:
        self.architecture = architecture

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.architecture, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


class _Compiling:
    """Takes a kernel's place: a launch compiles it, and keeps the result."""

    def __init__(self, kernel: Any, results: list[tuple[str, Any]]) -> None:
        self.kernel, self.results = kernel, results

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*positional: Any, **arguments: Any) -> None:
            self.results.append((self.kernel.__name__, self.kernel.warmup(*positional, grid=grid, **arguments)))

        return launch


def _tool(name: str) -> str:
    return str(Path(triton.__file__).parent / "backends/nvidia/bin" / name)


@contextlib.contextmanager
def _as_file(cubin: bytes) -> Iterator[str]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        yield file.name


def resources(name: str, cubin: bytes) -> dict[str, int]:
    """What cuobjdump says of a kernel: REG a thread, STACK bytes a thread (spilled registers), and more."""
    with _as_file(cubin) as file:
        command = [_tool("cuobjdump"), "--dump-resource-usage", file]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    line = re.search(rf"Function {name}:\s*(.*)", text)
    assert line is not None, text
    return {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", line[1])}


def widths_of_accesses(ptx: str) -> list[int]:
    """Bytes of every load from and store to global memory, also of those that copy to shared memory."""
    found = re.findall(r"(?:ld|st)\.global\S*?(?:\.v(\d))?\.b(\d+)\s", ptx)
    copies = re.findall(r"cp\.async\.c[ag]\.shared\.global\S* \[[^]]*\], \[[^]]*\], 0x([0-9a-f]+)", ptx)
    return sorted([int(count or 1) * int(bits) // 8 for count, bits in found] + [int(size, 16) for size in copies])


def products(ptx: str) -> dict[str, int]:
    """How often each tensor-core instruction is there: "mma", "wgmma" or "tcgen05", with the dtypes of its operands."""
    counts: dict[str, int] = {}
    pattern = r"\b(wgmma\.mma_async|tcgen05\.mma|mma)\.\S+"
    for match in re.finditer(pattern, ptx):
        dtypes = re.findall(r"\.(bf16|f16|tf32|f64|kind::\w+)", match[0])
        name = " ".join((match[1].partition(".")[0], *dict.fromkeys(dtypes)))
        counts[name] = counts.get(name, 0) + 1
    return counts


def print_compiled(
    argv: Sequence[str],
    kernels: Sequence[tuple[ModuleType, str]],
    cases: Mapping[str, Callable[[], object]],
    extra: Extra | None = None,
) -> None:
    """Compile what the cases launch of `kernels`, for the architecture that the command line names."""
    triton.runtime.driver.set_active(_Driver(int(argv[1])))
    results: list[tuple[str, Any]] = []
    for module, name in kernels:
        setattr(module, name, _Compiling(getattr(module, name), results))
    records: dict[str, list[dict[str, Any]]] = {}
    for case, call in cases.items():
        results.clear()
        call()
        records[case] = []
        for kernel, result in results:
            used = resources(kernel, result.asm["cubin"])
            records[case].append(
                {
                    "kernel": kernel,
                    "hash": result.hash,
                    "warps": result.metadata.num_warps,
                    "shared": result.metadata.shared,
                    "registers": used["REG"],
                    "stack": used["STACK"],
                    "accesses": widths_of_accesses(result.asm["ptx"]),
                    "products": products(result.asm["ptx"]),
                    **({} if extra is None else extra(result)),
                }
            )
    print(json.dumps(records))
