# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The `sparsekernels` command, as far as it needs nothing but this package: `info`, and the way to the rest."""

from __future__ import annotations

import importlib.util
import sys


def info() -> str:
    """What this machine has, what was built, and what will be used on each device: sections of names and texts."""
    from .bench.info import sections

    lines = []
    for title, rows in sections().items():
        width = max(len(name) for name, _ in rows)
        lines += [title, *(f"  {name.ljust(width)}  {text}" for name, text in rows)]
    return "\n".join(lines)


def main() -> None:
    """Run the command line; without its libraries only `info`, and say how to get them."""
    missing = [name for name in ("typer", "rich") if importlib.util.find_spec(name) is None]
    if missing and sys.argv[1:] == ["info"]:
        print(info())
        return
    if missing:
        hint = "pip install 'sparsekernels[bench]', or in a checkout pip install '.[bench]'"
        sys.exit(f"sparsekernels: the command line needs {' and '.join(missing)}: {hint}")
    from .bench.cli import app

    app(prog_name="sparsekernels")
