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


class CMakeBuild(build_ext):
    """Puts the libraries into sparsekernels/lib; where they cannot be built, says why and goes on without."""

    def run(self) -> None:
        folder = ROOT / "sparsekernels" if self.inplace else Path(self.build_lib) / "sparsekernels"
        reason = self.build(folder / "lib")
        if reason is None:
            return
        if os.environ.get("SPARSEKERNELS_REQUIRE_KERNELS") == "1":
            raise RuntimeError(f"the compiled kernels cannot be built: {reason}")
        print(f"sparsekernels: installing without compiled kernels: {reason}", file=sys.stderr)

    def build(self, destination: Path) -> str | None:
        torch = torch_folder()
        if torch is None:
            return "no torch 2.10 or newer is installed (install it first: its headers are needed)"
        cmake = shutil.which("cmake")
        if cmake is None:
            return "cmake is not installed"
        work = Path(self.build_temp).resolve() / "cmake"
        configure = [cmake, "-S", str(ROOT), "-B", str(work), f"-DTORCH_DIR={torch}", "-DCMAKE_BUILD_TYPE=Release"]
        if shutil.which("ninja"):
            configure += ["-G", "Ninja"]
        configure += os.environ.get("CMAKE_ARGS", "").split()
        try:
            subprocess.run(configure, check=True)
            subprocess.run([cmake, "--build", str(work), "--parallel"], check=True)
            subprocess.run([cmake, "--install", str(work), "--prefix", str(destination.resolve())], check=True)
        except subprocess.CalledProcessError as error:
            return f"{' '.join(map(str, error.cmd[:2]))} failed (its output is above)"
        return None

    def get_outputs(self) -> list[str]:
        folder = ROOT / "sparsekernels" if self.inplace else Path(self.build_lib) / "sparsekernels"
        return [str(path) for path in sorted((folder / "lib").glob("*.so"))]


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
