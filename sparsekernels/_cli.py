# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The `sparsekernels` command, as far as it needs nothing but this package: `info`, and the way to the rest."""

from __future__ import annotations

import importlib.util
import sys


def main() -> None:
    """Run the command line; without its libraries only `info`, and say how to get them."""
    missing = [name for name in ("typer", "rich") if importlib.util.find_spec(name) is None]
    if missing and sys.argv[1:] == ["info"]:
        from .bench.info import text

        print(text())
        return
    if missing:
        hint = "pip install 'sparsekernels[bench]', or in a checkout pip install '.[bench]'"
        sys.exit(f"sparsekernels: the command line needs {' and '.join(missing)}: {hint}")
    from .bench.cli import app
    from .experiments.cli import experiment

    app.command()(experiment)
    app(prog_name="sparsekernels")
