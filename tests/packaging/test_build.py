# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The build: stable headers only, wheels and sdists that hold what they must, and an install without a compiler."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

import sparsekernels
from sparsekernels import _library

ROOT = Path(__file__).parents[2]
TORCH = Path(torch.__file__).parent
STABLE = ("torch/csrc/stable/", "torch/headeronly/", "torch/csrc/inductor/aoti_torch/")
NVCC = shutil.which("nvcc") or next(iter(map(str, Path("/usr/local").glob("cuda/bin/nvcc"))), None)
TOOLS = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
CUDA_HEADERS = next(iter(Path("/usr/local").glob("cuda/include")), None)


def cuobjdump() -> str | None:
    """The toolkit's disassembler, or the one that Triton's package carries."""
    spec = importlib.util.find_spec("triton")
    places = (
        [Path(folder) / "backends/nvidia/bin" for folder in (spec.submodule_search_locations or [])] if spec else []
    )
    places += [Path(NVCC).resolve().parent] if NVCC else []
    return shutil.which("cuobjdump") or next((str(p / "cuobjdump") for p in places if (p / "cuobjdump").exists()), None)


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(
        list(map(str, command)), cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, (result.stdout + result.stderr)[-4000:]
    return result


def torch_headers(source: Path) -> set[str]:
    """The torch headers that `source` reaches, directly or not."""
    compiler = shutil.which("c++") or "g++"
    made = run(
        compiler, "-std=c++17", "-M", "-DTORCH_TARGET_VERSION=0x020a000000000000", "-DTORCH_STABLE_ONLY",
        "-I", ROOT / "csrc", "-I", TORCH / "include", *(["-I", CUDA_HEADERS] if CUDA_HEADERS else []), source,
    )  # fmt: skip
    return {name.split("/torch/include/")[1] for name in re.split(r"[\s\\]+", made.stdout) if "/torch/include/" in name}


@pytest.mark.parametrize("source", sorted((ROOT / "csrc").rglob("bindings*.cpp")), ids=lambda path: path.parent.name)
def test_only_stable_torch_headers_are_reachable(source: Path) -> None:
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler")
    if source.name == "bindings_cuda.cpp" and CUDA_HEADERS is None:
        pytest.skip("no CUDA toolkit")
    reached = torch_headers(source)
    assert reached
    unstable = sorted(name for name in reached if not name.startswith(STABLE))
    assert not unstable


def test_kernels_know_no_torch() -> None:
    allowed = {*(ROOT / "csrc/base").glob("torch_*.h"), *(ROOT / "csrc").rglob("bindings*.cpp")}
    for source in (ROOT / "csrc").rglob("*"):
        if source.suffix in (".h", ".cpp", ".cu", ".cuh") and source not in allowed:
            assert not re.search(r'#include\s*[<"](torch|ATen|c10)/', source.read_text()), source


def copy_of_the_sources(to: Path) -> Path:
    """What git knows, without what was built here."""
    names = run("git", "ls-files", "--cached", "--others", "--exclude-standard").stdout.split("\n")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)
    return to


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of an sdist, so that a file missing from the sdist shows."""
    if "WHEEL" not in os.environ:
        pytest.skip("takes minutes; tests/legs.sh wheel sets WHEEL")
    if _library.cpu is None or not (ROOT / ".git").exists():
        pytest.skip("needs a compiler and a git checkout")
    pytest.importorskip("setuptools")
    folder = tmp_path_factory.mktemp("wheel")
    sources = copy_of_the_sources(folder / "sources")
    backend = "import setuptools.build_meta as b; print(b.{}({!r}))"
    run(sys.executable, "-c", backend.format("build_sdist", str(folder)), cwd=sources)
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        archive.extractall(folder, filter="data")
    unpacked = next(path for path in folder.glob("sparsekernels-*") if path.is_dir())
    assert not list(unpacked.rglob("*.so"))
    run(
        sys.executable, "-c", backend.format("build_wheel", str(folder)),
        cwd=unpacked, CMAKE_ARGS="-DSPARSEKERNELS_CUDA=off", SPARSEKERNELS_REQUIRE_KERNELS="1",
    )  # fmt: skip
    return next(folder.glob("*.whl"))


def test_wheel(wheel: Path) -> None:
    assert "-py3-none-" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert "sparsekernels/lib/libsparsekernels_cpu.so" in names
    assert "sparsekernels/py.typed" in names
    assert "sparsekernels/bench/suites/rmsnorm.toml" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not any(name.startswith(("tests/", "benchmarks/", "csrc/")) for name in names)


def test_wheel_works_where_it_is_unpacked(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = (
        "import torch, sparsekernels as sk, sparsekernels._library as lib; "
        "assert sk.__file__.startswith({!r}), sk.__file__; assert lib.cpu, lib.cpu_missing; "
        "x = torch.randn(3, 8); torch.testing.assert_close(sk.rms_norm(x, (8,)), torch.nn.functional.rms_norm(x, (8,)))"
    )
    run(sys.executable, "-c", code.format(str(tmp_path)), cwd=tmp_path, PYTHONPATH=str(tmp_path))


def test_without_a_compiler_it_installs_runs_and_says_so_once(tmp_path: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout")
    sources = copy_of_the_sources(tmp_path / "sources")
    built = run(
        sys.executable, "-c", f"import setuptools.build_meta as b; b.build_wheel({str(tmp_path)!r})",
        cwd=sources, CXX="/nonexistent/c++",
    )  # fmt: skip
    assert "installing without cpu kernels" in built.stdout + built.stderr
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as archive:
        archive.extractall(tmp_path / "site")
    code = (
        "import torch, sparsekernels as sk; x = torch.randn(3, 8, requires_grad=True); "
        "y = sk.rms_norm(x, (8,)); torch.testing.assert_close(y, torch.nn.functional.rms_norm(x, (8,))); "
        "y.sum().backward(); import importlib; importlib.import_module('sparsekernels.nn'); "
        "\nfor _ in range(3): sk.add_rms_norm(x.detach(), x.detach(), (8,))"
        "\ntry:\n  with sk.use_backend('cpu'): sk.rms_norm(x, (8,))\nexcept sk.BackendError as e: print(e)"
    )
    ran = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(tmp_path / "site"))
    assert ran.stderr.count("the CPU kernels were not built: configuring failed") == 1
    assert "use_backend('cpu'): expected a call that it can run, got one that it cannot: " in ran.stdout
    assert "cannot: the CPU kernels were not built" in ran.stdout


def test_the_citation_names_this_version() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {sparsekernels.__version__}\n" in citation


SMALL_PROJECT = """
cmake_minimum_required(VERSION 3.18)
project(small LANGUAGES CXX)
file(WRITE ${CMAKE_BINARY_DIR}/small.cpp "int small;")
add_library(sparsekernels_cpu MODULE ${CMAKE_BINARY_DIR}/small.cpp)
install(TARGETS sparsekernels_cpu LIBRARY DESTINATION . COMPONENT sparsekernels_cpu)
"""


@pytest.fixture
def small_checkout(tmp_path: Path) -> Path:
    """A checkout whose library compiles in a second."""
    if shutil.which("c++") is None or shutil.which("cmake", path=TOOLS) is None:
        pytest.skip("no C++ compiler or no CMake")
    checkout = tmp_path / "checkout"
    (checkout / "sparsekernels").mkdir(parents=True)
    for name in ("setup.py", "pyproject.toml", "README.md", "sparsekernels/__init__.py", "sparsekernels/_version.py"):
        shutil.copy2(ROOT / name, checkout / name)
    (checkout / "CMakeLists.txt").write_text(SMALL_PROJECT)
    return checkout


def build_wheel(checkout: Path, path: str) -> tuple[subprocess.CompletedProcess[str], dict[str, str]]:
    """Builds with the tools of `path`: the result, and the names in the wheel's lib with their text."""
    code = "import setuptools.build_meta as b; b.build_wheel('dist')"
    (checkout / "dist").mkdir(exist_ok=True)
    built = subprocess.run(
        [sys.executable, "-c", code],
        cwd=checkout,
        env={**os.environ, "PATH": path, "CMAKE_ARGS": "-DSPARSEKERNELS_CUDA=off"},
        capture_output=True,
        text=True,
        check=False,
    )
    held = {}
    for wheel in (checkout / "dist").glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if name.startswith("sparsekernels/lib/"):
                    held[Path(name).name] = archive.read(name).decode(errors="replace")
        wheel.unlink()
    return built, held


def test_a_second_build_whose_first_tools_are_gone(small_checkout: Path, tmp_path: Path) -> None:
    """pip deletes the environment that it builds in, and the ninja that CMake's cache names."""
    ninja = shutil.which("ninja", path=TOOLS)
    if ninja is None:
        pytest.skip("no ninja")
    for folder in (tmp_path / "first", tmp_path / "second"):
        folder.mkdir()
        (folder / "ninja").symlink_to(ninja)
        built, held = build_wheel(small_checkout, f"{folder}{os.pathsep}{TOOLS}")
        assert built.returncode == 0, built.stderr
        assert "libsparsekernels_cpu.so" in held, built.stdout + built.stderr
        assert "no_cpu.txt" not in held
        shutil.rmtree(folder)


def test_what_cmake_said_is_the_reason(small_checkout: Path) -> None:
    (small_checkout / "CMakeLists.txt").write_text(SMALL_PROJECT + 'message(FATAL_ERROR "the moon is full")')
    built, held = build_wheel(small_checkout, TOOLS)
    assert built.returncode == 0, built.stderr
    assert "libsparsekernels_cpu.so" not in held
    assert held["no_cpu.txt"].startswith("configuring failed when sparsekernels was built; it needs a C++20 compiler")
    assert "the moon is full" in held["no_cpu.txt"]


def test_what_the_compiler_said_is_the_reason(small_checkout: Path) -> None:
    (small_checkout / "CMakeLists.txt").write_text(SMALL_PROJECT.replace("int small;", "int small = moon;"))
    _, held = build_wheel(small_checkout, TOOLS)
    assert held["no_cpu.txt"].startswith("compiling failed when sparsekernels was built")
    assert "error: " in held["no_cpu.txt"]
    assert "moon" in held["no_cpu.txt"]


def test_a_failed_build_is_an_error_where_an_earlier_one_succeeded(small_checkout: Path) -> None:
    """pip then leaves alone what is installed."""
    build_wheel(small_checkout, TOOLS)
    (small_checkout / "CMakeLists.txt").write_text(SMALL_PROJECT + 'message(FATAL_ERROR "the moon is full")')
    built, held = build_wheel(small_checkout, TOOLS)
    assert built.returncode != 0
    assert not held
    assert "the cpu kernels cannot be built: configuring failed" in built.stderr
    assert "the moon is full" in built.stderr
    assert list(small_checkout.rglob("libsparsekernels_cpu.so"))


@pytest.mark.parametrize("states", ["sparsekernels interface 0;", "nothing of the kind", ""])
def test_a_library_of_another_version_is_an_error(states: str, tmp_path: Path) -> None:
    """It is not loaded; the import says to build it again, also where warnings are switched off."""
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler")
    shutil.copytree(
        ROOT / "sparsekernels", tmp_path / "sparsekernels", ignore=shutil.ignore_patterns("lib", "__pycache__")
    )
    library = tmp_path / "sparsekernels/lib/libsparsekernels_cpu.so"
    library.parent.mkdir()
    if states:
        source = tmp_path / "old.cpp"
        source.write_text(
            "#include <cstdlib>\n"
            f'extern "C" const char stated[] = "{states}";\n'
            "static struct Loaded { Loaded() { std::abort(); } } loaded;\n"
        )
        run("c++", "-shared", "-fPIC", source, "-o", library)
    else:
        library.touch()
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "SPARSEKERNELS_QUIET": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", "import sparsekernels"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 1
    assert "ImportError: expected libsparsekernels_cpu.so of 'sparsekernels interface " in ran.stderr
    assert ", got one of another version" in ran.stderr
    assert "build it again, with pip install --force-reinstall" in ran.stderr


@pytest.mark.skipif(NVCC is None, reason="no nvcc")
def test_cuda_library_holds_every_architecture() -> None:
    """Built by the install wherever nvcc is; it needs neither a GPU nor a torch with CUDA."""
    library = ROOT / "sparsekernels/lib/libsparsekernels_cuda.so"
    assert library.exists()
    if torch.cuda.is_available():
        pytest.skip("built for the device that is here")
    tool = cuobjdump()
    if tool is None:
        pytest.skip("no cuobjdump")
    objects, intermediate = run(tool, "--list-elf", library).stdout, run(tool, "--list-ptx", library).stdout
    for architecture in ("sm_80", "sm_90", "sm_100"):
        assert architecture in objects
    assert "sm_100" in intermediate  # for what comes after


@pytest.mark.parametrize(
    ("schema", "got"),
    [
        ("(Tensor input) -> Tensor", "got 1 arguments and 1 results"),
        ("(Tensor input, int[] window) -> (Tensor, Tensor)", "got 2 arguments and 2 results"),
    ],
)
def test_a_kernel_refuses_what_it_was_not_written_for(schema: str, got: str) -> None:
    """It would read, or write, past the stack."""
    library = ROOT / "sparsekernels/lib/libsparsekernels_cpu.so"
    if not library.exists():
        pytest.skip("no CPU kernels")
    given = "torch.randn(1, 1, 4, 4)" + (", [2] * 6" if "window" in schema else "")
    code = (
        f"import torch; torch.library.define('sparsekernels::_max_pool2d', '{schema}');"
        f"torch.ops.load_library('{library}'); torch.ops.sparsekernels._max_pool2d({given})"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 1
    assert f"sparsekernels: expected 2 arguments and 1 results, {got}" in ran.stderr
