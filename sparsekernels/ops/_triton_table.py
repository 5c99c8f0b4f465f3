# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Launch configurations that were measured on a GPU, by its compute capability, in `triton_table.json` beside this.

A function that configures a Triton kernel is a rule; decorated, it first looks its arguments up:

    @from_table("rms_norm.forward", tunes=("block_rows", "num_warps"))
    def forward_tiling(cols: int, itemsize: int) -> Tiling: ...

and what the table has for them replaces these fields of the rule's result. `benchmarks/tune_triton.py` times candidates
and writes the table:

    {"9.0": {"measured": "NVIDIA H200, ...", "kernels": {"rms_norm.forward": {"4096,2": {"num_warps": 8}}}}}

The same arguments give the same configuration on one kind of GPU, so results have the same bits from run to run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

FILE = Path(__file__).with_name("triton_table.json")

Entry = Mapping[str, int]
"""Fields of a configuration, by name."""

Table = Mapping[str, Mapping[str, Mapping[str, Entry]]]
"""Entries by compute capability, kernel and key."""

Rule = TypeVar("Rule", bound=Callable[..., Any])


@dataclasses.dataclass(frozen=True)
class Tuned:
    """A configuration function: the kernel that it is for, and the fields of its result that may be changed."""

    kernel: str
    tunes: tuple[str, ...]
    rule: Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a configuration function was asked, and what it answered."""

    kernel: str
    key: str
    answer: Any


TUNED: dict[str, Tuned] = {}
"""All of them, by kernel."""


def read(text: str, where: str) -> Table:
    """The entries of a file. Raises ValueError that names `where` for what is none."""
    found: dict[str, Mapping[str, Mapping[str, Entry]]] = {}
    document = json.loads(text)
    if not isinstance(document, dict):
        raise ValueError(f"{where}: expected an object by compute capability, got {type(document).__name__}")
    for capability, table in document.items():
        if not isinstance(table, dict) or set(table) != {"measured", "kernels"}:
            raise ValueError(f"{where}: expected measured and kernels under {capability!r}, got {table!r}")
        for kernel, entries in table["kernels"].items():
            for key, entry in entries.items():
                if not isinstance(entry, dict) or not all(type(value) is int for value in entry.values()):
                    raise ValueError(f"{where}: expected integers for {kernel} at {key!r}, got {entry!r}")
        found[capability] = table["kernels"]
    return found


class _Tables:
    """What decorated functions consult: the file, what is tried instead of it, and who listens."""

    def __init__(self) -> None:
        self.measured: Table = read(FILE.read_text(encoding="utf-8"), FILE.name)
        self.tried: dict[tuple[str, str], Entry] = {}
        self.listener: list[Asked] | None = None

    @property
    def are_empty(self) -> bool:
        return not self.measured and not self.tried and self.listener is None


_tables = _Tables()


def measured_for() -> list[str]:
    """The compute capabilities, "9.0" say, whose launch configurations were measured."""
    return sorted(_tables.measured)


def key_of(arguments: Sequence[object]) -> str:
    """The arguments of a configuration function, as keys of the table have them."""
    return ",".join(str(one).removeprefix("torch.").replace(" ", "") for one in arguments)


def lookup(kernel: str, key: str, capability: tuple[int, int] | None = None) -> Entry | None:
    """What was measured to be the fastest, or None.

    Args:
        kernel: The name in the table.
        key: Of `key_of`.
        capability: Of the GPU; None is that of the current one.

    Returns:
        Fields of the configuration.
    """
    if (tried := _tables.tried.get((kernel, key))) is not None:
        return tried
    if capability is None:
        if not torch.cuda.is_available():
            return None
        capability = torch.cuda.get_device_capability()
    return _tables.measured.get("{}.{}".format(*capability), {}).get(kernel, {}).get(key)


def from_table(kernel: str, tunes: Sequence[str]) -> Callable[[Rule], Rule]:
    """Let a configuration function, which returns a frozen dataclass, consult the table first.

    Args:
        kernel: Its name there.
        tunes: The fields that may be changed, each a power of two or a small number.

    Returns:
        The decorator. A call costs little more than the rule's: what was found is kept by its arguments.
    """

    def decorate(rule: Rule) -> Rule:
        TUNED[kernel] = Tuned(kernel, tuple(tunes), rule)
        signature = inspect.signature(rule)

        found: dict[tuple[Any, ...], Any] = {}  # of the measured table alone, by it, the GPU and the arguments

        @functools.wraps(rule)
        def configured(*arguments: Any, **named: Any) -> Any:
            if _tables.are_empty:
                return rule(*arguments, **named)
            if _tables.tried or _tables.listener is not None:
                return worked_out(*arguments, **named)
            device = torch.cuda.current_device() if torch.cuda.is_initialized() else -1
            asked = id(_tables.measured), device, arguments, tuple(named.items())
            if asked not in found:
                found[asked] = worked_out(*arguments, **named)
            return found[asked]

        def worked_out(*arguments: Any, **named: Any) -> Any:
            answer = rule(*arguments, **named)
            bound = signature.bind(*arguments, **named)
            bound.apply_defaults()
            key = key_of(tuple(bound.arguments.values()))
            if (entry := lookup(kernel, key)) is not None:
                answer = dataclasses.replace(answer, **entry)
            if _tables.listener is not None:
                _tables.listener.append(Asked(kernel, key, answer))
            return answer

        return configured  # type: ignore[return-value]

    return decorate


@contextlib.contextmanager
def trying(kernel: str, key: str, entry: Entry) -> Iterator[None]:
    """Inside, that entry counts, whatever the table has."""
    _tables.tried[kernel, key] = entry
    try:
        yield
    finally:
        del _tables.tried[kernel, key]


@contextlib.contextmanager
def listening() -> Iterator[list[Asked]]:
    """Gives a list of what is asked inside."""
    before, _tables.listener = _tables.listener, []
    try:
        yield _tables.listener
    finally:
        _tables.listener = before
