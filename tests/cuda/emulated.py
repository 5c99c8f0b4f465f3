# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Builds CUDA sources for the emulated device (emulation/) and calls them with tensors that it watches.

A test file names a C++ file that includes the sources and has functions for Python:

    library = emulated.library("rms_norm.cpp", "rms_norm/cuda/forward.cu")
    with library.device(seed=1) as device:
        x = device.put(tensor)        # a copy that kernels may touch, with room around it that they may not
        library.function(...)
    # raises Fault where the emulation found one

docs/cuda_kernels.md says what it finds.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import hashlib
import math
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BUILT = ROOT / "build/cuda_emulation"

COMPILER = "g++"
COMMON = [
    "-std=c++17",
    "-fPIC",
    "-g1",
    "-fvisibility=hidden",
    "-U_FORTIFY_SOURCE",
    f"-I{HERE / 'emulation'}",
    f"-I{ROOT / 'csrc'}",
]
RUNTIME = ["threads", "fibers", "barriers", "order", "memory", "hooks"]
# Every load and store of a kernel calls a function, every __shared__ object has a section, which has its alignment.
KERNEL = [
    "-O1",
    "-fdata-sections",
    "-fno-extern-tls-init",
    "-fno-threadsafe-statics",  # of launchers, which one thread calls
    "-fsanitize=thread,alignment,bounds",
    "--param=tsan-instrument-func-entry-exit=0",
    "-Wno-unknown-pragmas",
]
LINK = ["-shared", "-Wl,--wrap=__tls_get_addr"]
# What the compiler makes of larger copies, in kernels alone.
RENAMED = [f"--redefine-sym={name}=emulated_{name}" for name in ("memcpy", "memset")]

WHOLE_MEMORY = 227 * 1024
GAP = 4096  # bytes around a tensor that are nobody's


class Fault(AssertionError):
    """What the emulation found, a line each: kind, place in the code, words."""


def missing() -> str | None:
    """Why nothing can be emulated here, or None."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        return "no Linux on x86-64"
    if not all(map(shutil.which, (COMPILER, "readelf", "objcopy", "addr2line"))):
        return "no g++, or no binutils"
    version = subprocess.run([COMPILER, "-dumpversion"], capture_output=True, text=True).stdout
    return None if int(version.split(".")[0]) >= 12 else f"g++ {version.strip()} is older than 12"


def _run(*command: str | Path) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stderr[-4000:]}")
    return done.stdout


@dataclass
class Library:
    """A shared library of kernels and the emulation."""

    path: Path
    loaded: ctypes.CDLL

    @contextlib.contextmanager
    def device(
        self, seed: int = 0, multiprocessors: int = 3, shared_bytes: int = WHOLE_MEMORY
    ) -> Iterator[EmulatedDevice]:
        """A device for one test: what it put there is gone at the end, and a fault that was found is raised."""
        self.loaded.emulated_device(multiprocessors, shared_bytes, ctypes.c_uint64(seed))
        device = EmulatedDevice(self)
        try:
            yield device
        finally:
            for tensor in device.tensors:
                self.loaded.emulated_remove(ctypes.c_void_p(tensor.data_ptr()))
            found = self.faults()
        if found:
            raise Fault("\n".join(found))

    def faults(self) -> list[str]:
        """The faults since the last time, with the lines of the sources where those are known."""
        lines: list[str] = self.loaded.emulated_faults().decode().splitlines()
        places = sorted({match[0] for line in lines for match in re.finditer(r"(?<= at )0x[0-9a-f]+", line)})
        if places:
            known = _run("addr2line", "-e", self.path, *(hex(int(place, 16) - 1) for place in places)).split("\n")
            names = {place: Path(name.split(" ")[0]).name for place, name in zip(places, known, strict=False)}
            lines = [
                re.sub(r"(?<= at )0x[0-9a-f]+", lambda match: names.get(match[0], match[0]), line) for line in lines
            ]
        return lines


@dataclass
class EmulatedDevice:
    """Tensors that kernels may touch."""

    library: Library
    tensors: list[Tensor] = field(default_factory=list)

    def put(self, tensor: Tensor, offset: int = 0, name: str = "", initialized: bool = True) -> Tensor:
        """A copy of a tensor, strides and all, `offset` elements behind a multiple of 256 bytes."""
        size = tensor.element_size()
        extent = (
            sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)) + 1 if tensor.numel() else 0
        )
        raw = torch.zeros(2 * GAP + (offset + extent) * size + 256, dtype=torch.uint8)
        start = (-raw.data_ptr()) % 256 + GAP + offset * size
        copy = raw[start : start + extent * size].view(tensor.dtype).as_strided(tensor.shape, tensor.stride())
        if initialized:
            copy.copy_(tensor)
        else:
            raw.fill_(0xFF)  # NaN
        address = copy.data_ptr()
        label = (name or f"a tensor of {list(tensor.shape)}").encode()
        self.library.loaded.emulated_add(
            ctypes.c_void_p(address), ctypes.c_size_t(extent * size), label, int(initialized)
        )
        self.tensors.append(copy)
        return copy

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype, offset: int = 0, name: str = "") -> Tensor:
        """Memory that nothing wrote."""
        return self.put(torch.empty(shape, dtype=dtype), offset, name, initialized=False)


def pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _shared_objects(library: Path, objects: list[Path]) -> list[tuple[int, int, int]]:
    """Of every __shared__ object: its offset among the library's thread_local variables, its bytes, its alignment."""
    alignments: dict[str, int] = {}
    for path in objects:
        listed = _run("readelf", "-SW", path)
        sections = {
            found[1]: int(found[2])
            for found in re.finditer(r"^\s*\[\s*(\d+)\] \.tbss\S* .*?(\d+)$", listed, re.MULTILINE)
        }
        for line in _run("readelf", "-sW", path).splitlines():
            fields = line.split()
            if len(fields) == 8 and fields[3] == "TLS" and fields[6] in sections:
                alignments[fields[7]] = sections[fields[6]]
    found = []
    for line in _run("readelf", "-sW", library).splitlines():
        fields = line.split()
        if len(fields) == 8 and fields[3] == "TLS" and fields[6] != "UND":
            # The compiler says 1 of what has no alignas and no type that depends on a template's arguments.
            size = int(fields[2], 0)
            found.append((int(fields[1], 16), size, max(alignments[fields[7]], math.gcd(size, 4))))
    return found


def _digest(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted({*files, Path(__file__)}):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _built(name: str, files: Iterable[Path], make: Callable[[Path], None]) -> Path:
    """The folder in build/ that `make` fills, once for each content of `files`."""
    BUILT.mkdir(parents=True, exist_ok=True)
    folder = BUILT / f"{name}-{_digest(files)}"
    with (BUILT / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            for old in BUILT.glob(f"{name}-*"):
                shutil.rmtree(old)
            folder.mkdir()
            make(folder)
            (folder / "done").touch()
    return folder


def _compile(path: Path, made: Path, options: list[str]) -> Path:
    _run(COMPILER, *COMMON, *options, "-x", "c++", "-c", path, "-o", made)
    return made


@functools.cache
def library(main: str, *sources: str) -> Library:
    """Compiles `main`, a file beside this one, and `sources` of csrc/; kept in build/ until something changes."""
    headers = [*(HERE / "emulation").rglob("*.*"), *(ROOT / "csrc").rglob("cuda/*"), *(ROOT / "csrc").rglob("*.h")]

    def make_runtime(folder: Path) -> None:
        (folder / "all.cpp").write_text("".join(f'#include "{name}.cpp"\n' for name in RUNTIME))
        _compile(folder / "all.cpp", folder / "runtime.o", ["-O2"])

    runtime = _built("runtime", (HERE / "emulation").glob("*.*"), make_runtime) / "runtime.o"

    def make(folder: Path) -> None:
        files = [HERE / main, *(ROOT / "csrc" / source for source in sources)]
        objects = [_compile(path, folder / f"{i}.o", KERNEL) for i, path in enumerate(files)]
        for path in objects:
            _run("objcopy", *RENAMED, path)
        _run(COMPILER, *LINK, runtime, *objects, "-o", folder / "library.so")
        lines = [" ".join(map(str, row)) for row in _shared_objects(folder / "library.so", objects)]
        (folder / "objects.txt").write_text("\n".join(lines))

    folder = _built(Path(main).stem, [HERE / main, *headers], make)
    loaded = ctypes.CDLL(str(folder / "library.so"))
    loaded.emulated_faults.restype = ctypes.c_char_p
    for line in (folder / "objects.txt").read_text().splitlines():
        loaded.emulated_object(*(ctypes.c_size_t(int(number)) for number in line.split()))
    return Library(folder / "library.so", loaded)
