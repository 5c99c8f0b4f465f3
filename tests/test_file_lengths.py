# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""A file of more than 400 lines says why at the top, as CONTRIBUTING.md asks."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = {".py", ".h", ".cpp", ".cu", ".cuh", ".inc", ".sh"}
OF_OTHERS = [ROOT / "csrc" / "third_party", ROOT / "benchmarks" / "peers" / ".envs"]
MOST = 400
REASON = re.compile(r"More than 400 lines: \w+|Written by \w+\.py\b")
"""The second: files that are generated."""


def head_of(text: str) -> str:
    """The comments and the docstring that a file begins with."""
    lines = itertools.takewhile(lambda line: not line.strip() or line.startswith(("//", "#", '"""')), text.splitlines())
    comments = [line for line in lines if not line.startswith('"""') and not re.match(r"#\w", line)]
    docstring = re.match(r'(?:#[^\n]*\n|\n)*"""(.*?)"""', text, re.DOTALL)
    return "\n".join([*comments, docstring[1] if docstring else ""])


def is_too_long(text: str) -> bool:
    return len(text.splitlines()) > MOST and not REASON.search(head_of(text))


@pytest.mark.parametrize("top", ["sparsekernels", "csrc", "tests", "benchmarks"])
def test_long_files_say_why(top: str) -> None:
    files = [one for one in (ROOT / top).rglob("*") if one.suffix in SOURCES]
    files = [one for one in files if not any(one.is_relative_to(folder) for folder in OF_OTHERS)]
    assert files
    too_long = [str(one.relative_to(ROOT)) for one in files if is_too_long(one.read_text(encoding="utf-8"))]
    assert not too_long


@pytest.mark.parametrize(
    ("head", "excused"),
    [
        ("// Copyright\n\n// More than 400 lines: one table.\n#pragma once\n", True),
        ('# Copyright\n"""A table.\n\nMore than 400 lines: its rows.\n"""\n', True),
        ("// Written by make_table.py.\n", True),
        ("// Copyright\n", False),
        ('"""A table."""\n', False),
        ("#pragma once\n// Copyright\nint x;\n// More than 400 lines: below the head.\n", False),
        ('import x\n"""More than 400 lines: below the head."""\n', False),
    ],
)
def test_only_a_reason_in_the_head_excuses(head: str, excused: bool) -> None:
    assert is_too_long(head + "x\n" * MOST) != excused
    assert not is_too_long("x\n" * MOST)
