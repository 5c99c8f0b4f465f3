# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What nvcc makes of the CUDA kernels: registers, spills, shared memory, 16-byte accesses, per architecture.

Needs the compiled library and a disassembler, CUDA's or the one in Triton's package, and no GPU.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

import sparsekernels

LIBRARY = Path(sparsekernels.__file__).parent / "lib/libsparsekernels_cuda.so"
DTYPES = {"13__nv_bfloat16": "bf16", "6__half": "fp16", "f": "fp32", "d": "fp64"}
REGISTERS = 65536  # of a multiprocessor
THREADS = 2048


def disassembler() -> str | None:
    spec = importlib.util.find_spec("triton")
    places = (
        [Path(folder) / "backends/nvidia/bin" for folder in (spec.submodule_search_locations or [])] if spec else []
    )
    places.append(Path("/usr/local/cuda/bin"))
    found = [str(place / "cuobjdump") for place in places if (place / "cuobjdump").exists()]
    return shutil.which("cuobjdump") or next(iter(found), None)


CUOBJDUMP = disassembler()
pytestmark = [
    pytest.mark.skipif(not LIBRARY.exists(), reason="the CUDA kernels were not built"),
    pytest.mark.skipif(CUOBJDUMP is None, reason="no cuobjdump"),
]


@dataclass(frozen=True)
class Kernel:
    """One function of one architecture; `arguments` are those of its template after the dtype."""

    architecture: str
    name: str
    dtype: str
    arguments: tuple[int, ...]
    symbol: str
    registers: int
    stack: int
    shared: int
    local: int

    @property
    def key(self) -> tuple[str, str, tuple[int, ...]]:
        return self.name, self.dtype, self.arguments

    @property
    def threads(self) -> int:
        """Of a block: csrc/rms_norm/cuda/*.cu, csrc/sparse_conv2d/cuda/*.cu."""
        if self.name in FIXED_THREADS:
            return FIXED_THREADS[self.name]
        return max(self.arguments[1], 128 if self.name == "forward_rows" else 256)

    @property
    def resident_threads(self) -> int:
        """What its launch bounds ask for on a multiprocessor."""
        if self.name == "forward_rows":
            common, lanes, vectors, _ = self.arguments
            return (1024 if lanes >= 512 or (common == 1 and vectors < 8) else 640) // self.threads * self.threads
        if self.name == "bitmap_rows":
            return self.threads * (4 if self.arguments[0] <= 4 else 2)
        return 512 if self.name == "backward_rows" else self.threads


FIXED_THREADS = {"forward_long_rows": 1024, "backward_long_rows": 512, "bitmap_rows": 256}

# Bytes of registers that a thread spills, by architecture ("": all), name, dtype and first arguments. None elsewhere.
SPILLED = {
    ("", "forward_rows", "fp32", (1, 1024, 8)): 8,
    ("", "forward_rows", "fp32", (1, 512, 8)): 8,
    ("", "forward_rows", "fp16", (1, 1024, 8)): 16,
    ("", "forward_rows", "fp16", (1, 512, 8)): 16,
    ("", "forward_rows", "bf16", (1, 1024, 8)): 16,
    ("", "forward_rows", "bf16", (1, 512, 8)): 16,
    ("sm_100", "forward_rows", "bf16", (1, 1024, 8)): 72,
    ("sm_100", "forward_rows", "bf16", (1, 512, 8)): 72,
    ("sm_100", "forward_rows", "bf16", (0, 1024, 8)): 112,
    ("sm_100", "forward_rows", "bf16", (0, 512, 8)): 112,
    ("sm_100", "forward_rows", "fp16", (0, 1024, 8)): 32,
    ("sm_100", "forward_rows", "fp16", (0, 512, 8)): 32,
    ("sm_100", "forward_rows", "bf16", (1, 32, 8)): 32,
    ("sm_100", "forward_rows", "bf16", (1, 32, 1)): 8,
    ("sm_100", "forward_rows", "bf16", (1, 16, 1)): 8,
    ("sm_100", "forward_rows", "bf16", (1, 8, 1)): 8,
    ("", "backward_rows", "bf16", (1, 256, 4)): 8,
    ("", "backward_rows", "bf16", (1, 512, 4)): 8,
    ("", "backward_rows", "fp16", (1, 256, 4)): 8,
    ("", "backward_rows", "fp16", (1, 512, 4)): 8,
}


def spilled(kernel: Kernel) -> int:
    arguments = kernel.arguments[:3]
    return max(SPILLED.get((one, kernel.name, kernel.dtype, arguments), 0) for one in ("", kernel.architecture))


def read(*arguments: str) -> str:
    assert CUOBJDUMP is not None
    return subprocess.run([CUOBJDUMP, *arguments, str(LIBRARY)], check=True, capture_output=True, text=True).stdout


@functools.cache
def kernels() -> list[Kernel]:
    found = []
    architecture = symbol = ""
    for line in read("--dump-resource-usage").splitlines():
        if line.startswith("arch = "):
            architecture = line.split()[-1]
        elif named := re.match(r"\s*Function (\w+):", line):
            symbol = named[1]
        elif "REG:" in line:
            used = {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", line)}
            parts = re.search(r"\d+((?:\w+_)?rows)I(13__nv_bfloat16|6__half|f|d)((?:L[ib]\d+E)+)E", symbol)
            assert parts is not None, symbol
            arguments = tuple(int(one) for one in re.findall(r"L[ib](\d+)E", parts[3]))
            name = re.sub(r".*?((?:forward|backward|bitmap)_(?:long_)?rows)$", r"\1", parts[1])
            found.append(
                Kernel(
                    architecture,
                    name,
                    DTYPES[parts[2]],
                    arguments,
                    symbol,
                    used["REG"],
                    used["STACK"],
                    used["SHARED"],
                    used["LOCAL"],
                )
            )
    return found


def architectures() -> list[str]:
    return sorted({kernel.architecture for kernel in kernels()})


def test_every_architecture_has_the_same_kernels() -> None:
    keys = {one: sorted(kernel.key for kernel in kernels() if kernel.architecture == one) for one in architectures()}
    first = next(iter(keys.values()))
    assert all(one == first for one in keys.values())
    counts = {name: sum(key[0] == name for key in first) for name in {key[0] for key in first}}
    assert counts == {
        "forward_rows": 77,  # 11 lengths, common or not, of 4 dtypes; float64 has none that are common
        "forward_long_rows": 7,
        "backward_rows": 63,
        "backward_long_rows": 7,
        "bitmap_rows": 15,
    }


def test_spills() -> None:
    for kernel in kernels():
        assert kernel.stack <= spilled(kernel), kernel
        assert kernel.local == 0, kernel


def test_no_spill_is_stated_that_there_is_not() -> None:
    """Of the bounds above: each is reached by half somewhere."""
    for (architecture, name, dtype, arguments), most in SPILLED.items():
        stacks = [
            kernel.stack
            for kernel in kernels()
            if (kernel.name, kernel.dtype, kernel.arguments[:3]) == (name, dtype, arguments)
            and architecture in ("", kernel.architecture)
        ]
        if not stacks:  # the library was built for other architectures
            continue
        assert max(stacks) * 2 >= most, (architecture, name, dtype, arguments, stacks)


def test_as_many_threads_are_resident_as_are_planned_with() -> None:
    for kernel in kernels():
        registers = (kernel.registers + 7) // 8 * 8  # in which they are given out
        assert registers * kernel.resident_threads <= REGISTERS, kernel
        assert kernel.resident_threads <= THREADS, kernel


def test_shared_memory() -> None:
    """Static, with 1 KB of each block that sm_90 and up keep for themselves."""
    most = {"forward_rows": 128 + 128, "forward_long_rows": 256, "backward_long_rows": 4096 + 1024, "bitmap_rows": 0}
    for kernel in kernels():
        if kernel.name == "backward_rows":
            continue
        assert kernel.shared <= most[kernel.name] + 1024, kernel
    backward = [kernel for kernel in kernels() if kernel.name == "backward_rows"]
    # the columns of a block's rows, sums of its threads, and a few words
    assert all(kernel.shared <= 16 * 1024 + 2048 + 1024 for kernel in backward)


LOADS = re.compile(r"\b(LDGSTS|LDG|STG|LDS|STS|LDL|STL)\b((?:\.\w+)*)")


@functools.cache
def accesses(architecture: str, name: str, dtype: str) -> dict[tuple[int, ...], list[tuple[str, int]]]:
    """By template arguments, each access of memory: which instruction, and its bytes."""
    of_architecture = [kernel for kernel in kernels() if kernel.architecture == architecture]
    chosen = {kernel.symbol: kernel for kernel in of_architecture if kernel.key[:2] == (name, dtype)}
    if name != "bitmap_rows":
        chosen = {symbol: one for symbol, one in chosen.items() if one.arguments[0] == 1}  # common: rows are aligned
    assert chosen
    text = read("-arch", architecture, "--dump-sass", "--function", ",".join(chosen))
    found: dict[tuple[int, ...], list[tuple[str, int]]] = {}
    current: list[tuple[str, int]] = []
    for line in text.splitlines():
        if "Function : " in line:
            current = found.setdefault(chosen[line.split()[-1]].arguments, [])
        elif access := LOADS.search(line):
            widths = [part for part in access[2].split(".") if re.fullmatch(r"[US]?(8|16|64|128)", part)]
            current.append((access[1], int(re.sub("[US]", "", widths[0])) // 8 if widths else 4))
    assert set(found) == {one.arguments for one in chosen.values()}
    return found


EVERYTHING = os.environ.get("CUDA_EMULATION") == "1"


def disassembled() -> list[str]:
    """Every architecture takes its time: by default the one that the kernels are planned for."""
    return architectures() if EVERYTHING else [one for one in architectures() if one == "sm_90"]


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"] if EVERYTHING else ["bf16"])
def test_rows_that_are_aligned_are_loaded_and_stored_16_bytes_at_a_time(dtype: str) -> None:
    for architecture in disassembled():
        for arguments, found in accesses(architecture, "forward_rows", dtype).items():
            assert {size for kind, size in found if kind in ("LDG", "STG")} == {16}, arguments


def test_backward_loads_rows_16_bytes_at_a_time() -> None:
    for architecture in disassembled():
        for arguments, found in accesses(architecture, "backward_rows", "bf16").items():
            vectors = arguments[2] * arguments[3]  # of each of two inputs, and of the weight
            assert found.count(("LDG", 16)) >= 2 * vectors + arguments[2], arguments


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"] if EVERYTHING else ["bf16"])
def test_bitmap_and_values_are_loaded_16_bytes_at_a_time(dtype: str) -> None:
    for architecture in disassembled():
        found = accesses(architecture, "bitmap_rows", dtype)
        assert {arguments[0] for arguments in found} == {1, 2, 4, 8, 16}
        for arguments, kinds in found.items():
            assert {size for kind, size in kinds if kind == "LDGSTS"} == {16}, arguments  # values, to shared memory
            assert kinds.count(("LDG", 16)) >= 4, arguments  # two of the bitmap, twice; and the input
            assert not any(kind in ("LDL", "STL") for kind, _ in kinds), arguments
