# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Builds the compiled kernels with CMake, beside a package that installs without them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Distribution, Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def torch_folder() -> Path | None:
    """The installed torch package, also from inside pip's isolated build: that hides it from import, not from disk."""
    candidates = [Path(entry) / "torch" for entry in sys.path if entry]
    candidates += [Path(sysconfig.get_path(kind)) / "torch" for kind in ("purelib", "platlib")]
    return next((folder for folder in candidates if (folder / "include/torch/csrc/stable/library.h").exists()), None)


def run_and_show(command: list[str]) -> tuple[int, str]:
    """The exit status and what was printed, which is shown as well."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace"
    ) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    return process.returncode, "".join(lines)


def first_error(output: str) -> str:
    """The first error that CMake or a compiler reports, on one line; else the last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    for number, line in enumerate(lines):
        if line.startswith("CMake Error"):  # its text follows on lines of its own
            return " ".join(lines[number : number + 6])
        if "error:" in line:
            return line
    return lines[-1] if lines else "It printed nothing."


def tool(name: str) -> str | None:
    """Where a program is: on the PATH, or beside this Python, whose environment need not be on it."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


class CMakeBuild(build_ext):
    """Puts the libraries into sparsekernels/lib. What cannot be built is left out, and a file there says why."""

    def run(self) -> None:
        folder = ROOT / "sparsekernels" if self.inplace else Path(self.build_lib) / "sparsekernels"
        destination = folder / "lib"
        destination.mkdir(parents=True, exist_ok=True)
        for name in ("cpu", "cuda"):  # the CPU kernels come first, and stand alone
            library, note = destination / f"libsparsekernels_{name}.so", destination / f"no_{name}.txt"
            if name == "cuda" and "-DSPARSEKERNELS_CUDA=off" in os.environ.get("CMAKE_ARGS", ""):
                reason: str | None = "CMAKE_ARGS says -DSPARSEKERNELS_CUDA=off"
                library.unlink(missing_ok=True)
            else:
                reason = self.build(name, destination.resolve())
            note.unlink(missing_ok=True)
            if reason is None:
                continue
            if library.exists():
                raise RuntimeError(
                    f"the {name} kernels cannot be built: {reason}\nThose of an earlier build stay as they are. To go"
                    f" without {name} kernels, delete {library}"
                )
            wanted = name == "cpu" or "-DSPARSEKERNELS_CUDA=on" in os.environ.get("CMAKE_ARGS", "")
            if wanted and os.environ.get("SPARSEKERNELS_REQUIRE_KERNELS") == "1":
                raise RuntimeError(f"the {name} kernels cannot be built: {reason}")
            note.write_text(reason + "\n", encoding="utf-8")
            print(f"sparsekernels: installing without {name} kernels: {reason}", file=sys.stderr)

    def build(self, name: str, destination: Path) -> str | None:
        """Builds one library into `destination`, or gives the reason why it cannot be built."""
        torch, cmake, ninja = torch_folder(), tool("cmake"), tool("ninja")
        if torch is None:
            return "no torch 2.10 or newer was installed where sparsekernels was built (its headers are needed)"
        if cmake is None:
            return "cmake is not installed"
        work = Path(self.build_temp).resolve() / f"cmake-{name}"
        # Configured anew every time: the cache of an earlier build names tools of pip's environment, which is gone.
        # Objects stay, so that what did not change is not compiled again.
        (work / "CMakeCache.txt").unlink(missing_ok=True)
        for found_tools in work.glob("CMakeFiles/[0-9]*"):
            shutil.rmtree(found_tools)
        configure = [cmake, "-S", str(ROOT), "-B", str(work), f"-DTORCH_DIR={torch}", "-DCMAKE_BUILD_TYPE=Release"]
        configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []
        configure += os.environ.get("CMAKE_ARGS", "").split()
        configure += [f"-DSPARSEKERNELS_CUDA={'on' if name == 'cuda' else 'off'}"]
        library = f"sparsekernels_{name}"
        compiler = "a C++20 compiler" if name == "cpu" else "nvcc"
        for step, command in (
            ("configuring", configure),
            ("compiling", [cmake, "--build", str(work), "--parallel", "--target", library]),
            ("copying", [cmake, "--install", str(work), "--component", library, "--prefix", str(destination)]),
        ):
            status, output = run_and_show(command)
            if status != 0:
                return f"{step} failed when sparsekernels was built; it needs {compiler}. {first_error(output)}"
        return None

    def get_outputs(self) -> list[str]:
        folder = ROOT / "sparsekernels" if self.inplace else Path(self.build_lib) / "sparsekernels"
        return [str(path) for path in sorted((folder / "lib").iterdir())]


class AnyPythonWheel(bdist_wheel):
    """No file in the wheel knows Python's ABI: one wheel of a platform serves every Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return ("py3", "none", super().get_tag()[2])


class PlatformDistribution(Distribution):
    """A distribution with compiled files, though none of them is a Python extension."""

    def has_ext_modules(self) -> bool:
        return True


setup(
    distclass=PlatformDistribution,
    ext_modules=[Extension("sparsekernels._kernels", sources=[])],
    cmdclass={"build_ext": CMakeBuild, "bdist_wheel": AnyPythonWheel},
)
