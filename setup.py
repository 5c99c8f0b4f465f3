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
    """Puts the libraries into sparsekernels/lib. What cannot be built is left out, and a file there says why."""

    def run(self) -> None:
        folder = ROOT / "sparsekernels" if self.inplace else Path(self.build_lib) / "sparsekernels"
        destination = folder / "lib"
        destination.mkdir(parents=True, exist_ok=True)
        reasons = self.build(destination.resolve())
        for name in ("cpu", "cuda"):
            note = destination / f"no_{name}.txt"
            note.unlink(missing_ok=True)
            if name in reasons:
                note.write_text(reasons[name] + "\n", encoding="utf-8")
                (destination / f"libsparsekernels_{name}.so").unlink(missing_ok=True)  # of an earlier build
                print(f"sparsekernels: installing without {name} kernels: {reasons[name]}", file=sys.stderr)
        if "cpu" in reasons and os.environ.get("SPARSEKERNELS_REQUIRE_KERNELS") == "1":
            raise RuntimeError(f"the CPU kernels cannot be built: {reasons['cpu']}")

    def build(self, destination: Path) -> dict[str, str]:
        """Builds what can be; gives the reason for what cannot. The CPU kernels come first, and stand alone."""
        torch = torch_folder()
        if torch is None:
            return dict.fromkeys(
                ("cpu", "cuda"),
                "no torch 2.10 or newer was installed where sparsekernels was built (its headers are needed)",
            )
        cmake = shutil.which("cmake")
        if cmake is None:
            return dict.fromkeys(("cpu", "cuda"), "cmake is not installed")
        reasons = {}
        for name, switch in (("cpu", "off"), ("cuda", "on")):
            if name == "cuda" and "-DSPARSEKERNELS_CUDA=off" in os.environ.get("CMAKE_ARGS", ""):
                reasons[name] = "CMAKE_ARGS says -DSPARSEKERNELS_CUDA=off"
                continue
            work = Path(self.build_temp).resolve() / f"cmake-{name}"
            configure = [cmake, "-S", str(ROOT), "-B", str(work), f"-DTORCH_DIR={torch}", "-DCMAKE_BUILD_TYPE=Release"]
            configure += ["-G", "Ninja"] if shutil.which("ninja") else []
            configure += [*os.environ.get("CMAKE_ARGS", "").split(), f"-DSPARSEKERNELS_CUDA={switch}"]
            library = f"sparsekernels_{name}"
            try:
                subprocess.run(configure, check=True)
                subprocess.run([cmake, "--build", str(work), "--parallel", "--target", library], check=True)
                install = [cmake, "--install", str(work), "--component", library, "--prefix", str(destination)]
                subprocess.run(install, check=True)
            except subprocess.CalledProcessError as error:
                step = "configuring" if error.cmd == configure else "compiling"
                compiler = "a C++17 compiler" if name == "cpu" else "nvcc"
                reasons[name] = f"{step} failed when sparsekernels was built; it needs {compiler}"
        return reasons

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
