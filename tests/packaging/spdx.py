# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Every source file begins with its license: `python3 tests/packaging/spdx.py` names those that do not; --fix mends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LINES = ("Copyright 2026 The sparsekernels authors", "SPDX-License-Identifier: Apache-2.0")
COMMENTS = {
    **dict.fromkeys((".py", ".sh", ".cmake"), "# "),
    **dict.fromkeys((".c", ".cpp", ".h", ".cu", ".cuh"), "// "),
}
NAMES = {"CMakeLists.txt": "# ", "Makefile": "# ", ".ci/run": "# "}
OTHERS = ("csrc/third_party/",)  # they keep the lines of those who wrote them


def comment(name: str) -> str | None:
    """What starts a comment in a file, or None where it is not source of ours."""
    path = Path(name)
    if name.startswith(OTHERS):
        return None
    return NAMES.get(name) or NAMES.get(path.name) or COMMENTS.get(path.suffix)


def header(start: str) -> str:
    return "".join(f"{start}{line}\n" for line in LINES)


def with_header(text: str, start: str) -> str:
    """The text with the header in front, after the line that names an interpreter."""
    first, rest = "", text
    if text.startswith("#!"):
        first, _, rest = text.partition("\n")
        first += "\n"
    return first + header(start) + ("\n" if rest.startswith(start.strip()) else "") + rest


def sources() -> list[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.splitlines() if comment(name) and (ROOT / name).is_file()]


def main() -> None:
    fix = sys.argv[1:] == ["--fix"]
    missing = []
    for name in sources():
        path, start = ROOT / name, comment(name)
        assert start is not None
        text = path.read_text(encoding="utf-8")
        if header(start) in "\n".join(text.splitlines()[:4]) + "\n":
            continue
        missing.append(name)
        if fix:
            path.write_text(with_header(text, start), encoding="utf-8")
    if missing and not fix:
        way = "python3 tests/packaging/spdx.py --fix"
        sys.exit("\n".join([*missing, f"{len(missing)} files without a license: {way}"]))


if __name__ == "__main__":
    main()
