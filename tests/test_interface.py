# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The interface number belongs to the schemas of the kernel operators, which csrc/base/schemas.txt has beside it.

    python tests/test_interface.py --write   writes that file, after the number was raised

Operators without an underscore are Python's alone: no library knows their schemas.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
WRITTEN = ROOT / "csrc/base/schemas.txt"
COMMAND = "python tests/test_interface.py --write"
HEADER = """\
# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
# Written by tests/test_interface.py: what Python and the compiled libraries agree on.
"""


def stated(path: str) -> str:
    """The interface that a source file states."""
    found = re.search(r'"(sparsekernels interface \d+);"', (ROOT / path).read_text(encoding="utf-8"))
    assert found, path
    return found[1]


def registered() -> list[str]:
    """The schemas of the kernel operators, in a process in which no test has added its own."""
    code = (
        "import torch, sparsekernels\n"
        "for one in torch._C._jit_get_all_schemas():\n"
        "    if one.name.startswith('sparsekernels::_'): print(one)"
    )
    command = [sys.executable, "-W", "ignore", "-c", code]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return sorted(line.removeprefix("sparsekernels::") for line in ran.stdout.splitlines())


def complaint(interface: str, schemas: list[str], text: str) -> str | None:
    """What is to be done, of the interface and the schemas of the code and the text of the file; None: nothing."""
    was, *lines = [line for line in text.splitlines() if not line.startswith("#")]
    same = [str(torch._C.parse_schema(line)) for line in lines] == schemas
    if was == interface and not same:
        return (
            f"the schemas of the kernel operators are not those of {was}: raise the number, kInterface in"
            f" csrc/base/interface.h and _INTERFACE in sparsekernels/_library.py, then run {COMMAND}"
        )
    return None if same and was == interface else f"schemas.txt is of {was}, the code of {interface}: run {COMMAND}"


def test_both_sides_state_the_same_interface() -> None:
    assert stated("csrc/base/interface.h") == stated("sparsekernels/_library.py")


def test_the_number_belongs_to_the_schemas() -> None:
    wrong = complaint(stated("csrc/base/interface.h"), registered(), WRITTEN.read_text(encoding="utf-8"))
    assert wrong is None, wrong


def test_what_is_to_be_done() -> None:
    schemas = ["_f(Tensor x) -> Tensor", "_g(Tensor x, int n) -> Tensor"]
    text = "\n".join([HEADER, "interface 1", *schemas]).replace("\n\n", "\n")
    assert complaint("interface 1", schemas, text) is None
    for changed in (schemas[:1], [schemas[0], "_g(Tensor x) -> Tensor"], [*schemas, "_h(Tensor x) -> Tensor"]):
        assert "raise the number" in str(complaint("interface 1", changed, text))
        assert "schemas.txt is of interface 1, the code of interface 2" in str(complaint("interface 2", changed, text))
    assert "schemas.txt is of interface 1" in str(complaint("interface 2", schemas, text))


def main() -> None:
    interface, schemas = stated("csrc/base/interface.h"), registered()
    wrong = complaint(interface, schemas, WRITTEN.read_text(encoding="utf-8")) if WRITTEN.exists() else None
    if wrong is not None and "raise the number" in wrong:
        sys.exit(wrong)
    WRITTEN.write_text("\n".join([HEADER + interface, *schemas, ""]), encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(f"usage: {COMMAND}")
    main()
