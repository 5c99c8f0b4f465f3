# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What the keys of a suite's file may be, as far as all suites share them; `suite.py` says what they mean."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ..blocks import check_block


def _list_of(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _is_string(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_table(value: Any) -> bool:
    return isinstance(value, dict)


def _is_shape(value: Any) -> bool:
    return value != [] and _list_of(_is_count)(value)


KEYS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "cases": (_list_of(_is_table), "a list of tables"),
    "group": (_is_string, "a string"),
    "shape": (_list_of(_is_shape), "a list of shapes, each a list of positive integers"),
    "name": (
        lambda value: _list_of(_is_string)(value) or (_is_table(value) and all(map(_is_table, value.values()))),
        "a list of strings or a table of tables",
    ),
    "pass": (_list_of(_is_string), "a list of strings"),
    "dtype": (_list_of(_is_string), "a list of strings"),
    "device": (_list_of(_is_string), "a list of strings"),
    "batch": (_is_count, "a positive integer"),
    "free_batch": (lambda value: isinstance(value, bool), "true or false"),
    "quick": (lambda value: isinstance(value, bool) or _list_of(_is_string)(value), "true, false or a list of strings"),
    "masks": (_list_of(_is_string), "a list of strings"),
    "sparsities": (_list_of(_is_number), "a list of numbers"),
}
"""Whether a value is of the key's type, and that type in words."""


FILE_KEYS = ("suite", "module")
"""The keys of a file that is run by its path."""

DEFAULTS: Mapping[str, Any] = {
    "pass": ["forward"],
    "dtype": ["float32", "bfloat16"],
    "device": ["cpu", "cuda"],
    "batch": None,
    "free_batch": False,
    "quick": False,
}
"""The keys of a table that every suite shares, and what they are where the table has none."""


def check_types(where: str, table: Mapping[str, Any]) -> None:
    """Raise `ValueError` where a key of `table` is of another type than in `KEYS`."""
    for key, value in table.items():
        if key in KEYS and not KEYS[key][0](value):
            raise ValueError(f"{where}: expected {key} to be {KEYS[key][1]}, got {value!r}")


def check_sparsities(sparsities: Iterable[float], where: str = "") -> None:
    """Raise `ValueError`, with `where` before its text, where one is no percentage of zeros below 100."""
    for percent in sparsities:
        if not 0 <= percent < 100:
            raise ValueError(f"{where}expected sparsity from 0 to below 100 percent, got {percent:g}")
        if 0 < percent < 1:
            raise ValueError(
                f"{where}expected sparsity in percent, got {percent:g}; for that share of zeros give {100 * percent:g}"
            )


def block_of(text: str, where: str = "") -> tuple[int, int]:
    """The block that "32x16" means, 32 rows and 16 columns. Raises `ValueError`, with `where` before its text."""
    sizes = text.split("x") if isinstance(text, str) else []
    try:
        if len(sizes) == 2 and all(size.isdecimal() for size in sizes):
            return check_block(where, (int(sizes[0]), int(sizes[1])))
    except ValueError:
        pass
    raise ValueError(f"{where}expected block to be rows x columns, each from 1 to 128, such as 32x32, got {text!r}")
