# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Builds and runs tests/cpp, what lies below the operators; its table of encodings against an assembler."""

from __future__ import annotations

import importlib.util
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PLACES = [str(pathlib.Path(sys.executable).parent), None]  # beside Python, else where the system looks


def tool(name: str) -> str | None:
    return next((found for place in PLACES if (found := shutil.which(name, path=place))), None)


@pytest.fixture(scope="module")
def tests(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The executable, compiled anew."""
    cmake, ninja = tool("cmake"), tool("ninja")
    if cmake is None or not any(map(tool, ("c++", "g++", "clang++"))):
        pytest.skip("no cmake, or no C++ compiler")
    if ninja is None and tool("make") is None:
        pytest.skip("neither ninja nor make")
    build = tmp_path_factory.mktemp("cpp")
    generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []
    for command in (
        [cmake, "-S", ROOT, "-B", build, "-DSPARSEKERNELS_CPP_TESTS=on", *generator],
        [cmake, "--build", build, "--parallel"],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return build / "tests/cpp/cpp_tests"


def test_below_the_operators(tests: pathlib.Path) -> None:
    done = subprocess.run([tests], capture_output=True, text=True)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr


def test_golden_encodings_are_an_assemblers() -> None:
    if tool("as") is None or tool("objcopy") is None:
        pytest.skip("no GNU as")
    machine = subprocess.run(["as", "--version"], capture_output=True, text=True).stdout
    if "x86_64" not in machine:
        pytest.skip("as is of another processor")
    spec = importlib.util.spec_from_file_location("make_golden", pathlib.Path(__file__).with_name("make_golden.py"))
    assert spec is not None
    assert spec.loader is not None
    make_golden = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_golden)
    kept = pathlib.Path(__file__).with_name("golden_encodings.inc").read_text()
    assert make_golden.golden().splitlines()[1:] == kept.splitlines()[1:]  # but for the version of as


def registers(text: str) -> list[str]:
    return re.findall(r"zmm\d+|k[0-7]\b|r\d+d?|[re][a-d]x|[re][sd]i|[re][sb]p", text)


def test_encodings_disassemble(tests: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Each is one instruction to a disassembler too: the mnemonic and registers that were asked for."""
    if tool("objdump") is None:
        pytest.skip("no objdump")
    lines = subprocess.run([tests, "--encodings"], capture_output=True, text=True, check=True).stdout.splitlines()
    rows = [line.split("\t") for line in lines]
    assert len(rows) > 1000
    code = tmp_path / "code"
    code.write_bytes(b"".join(bytes.fromhex(encoded) for encoded, _ in rows))
    command = ["objdump", "-D", "-b", "binary", "-m", "i386:x86-64", "-M", "intel", "-w", code]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"objdump: {done.stderr.strip()}")
    listing = [line.split("\t") for line in done.stdout.splitlines() if line.count("\t") == 2]
    assert len(listing) == len(rows)
    for (encoded, text), (_, found, disassembled) in zip(rows, listing, strict=True):
        assert found.replace(" ", "") == encoded
        asked = re.sub(r"^\{.*?\} ", "", text).replace("jnz", "jne").replace("jz", "je")
        assert disassembled.split()[0] == asked.split()[0]
        assert registers(disassembled.split("#")[0]) == registers(asked)
