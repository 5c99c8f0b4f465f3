# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The terminal, and how a command ends that was given what it cannot take."""

from __future__ import annotations

import typer
from rich.console import Console
from rich.markup import escape

WIDTH = 120
"""Columns of output that goes to a file or a pipe, and of a table anywhere: wider ones are split."""


def console_of(stderr: bool = False) -> Console:
    """Standard output, or standard error."""
    console = Console(stderr=stderr, highlight=False)
    return console if console.is_terminal else Console(stderr=stderr, highlight=False, width=WIDTH)


def failure(message: str) -> typer.Exit:
    """Print an error. Returns what is to be raised, which ends the command with 2."""
    console_of(stderr=True).print(f"[red]error:[/red] {escape(message)}", soft_wrap=True)
    return typer.Exit(2)
