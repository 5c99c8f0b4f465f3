# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What a suite may set for a method beside the settings of all runs, as tables."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

Option = tuple[Any, str, Callable[[object], bool]]
"""Default, what is accepted in words, and as a test."""

Options = Mapping[str, Option]


def check(where: str, known: Options, options: Mapping[str, object]) -> None:
    """Raise ValueError for an option that is not known, or of a value that is not accepted."""
    for key, value in options.items():
        if key not in known:
            raise ValueError(f"{where}: expected options among {', '.join(known) or 'none'}, got {key!r}")
        _, accepted, accepts = known[key]
        if not accepts(value):
            raise ValueError(f"{where}: expected {key} to be {accepted}, got {value!r}")


def values(known: Options, options: Mapping[str, object]) -> dict[str, Any]:
    """All options, those that are not given by their defaults."""
    return {name: options.get(name, default) for name, (default, _, _) in known.items()}


def _is_whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def whole(default: int, least: int = 1) -> Option:
    """A whole number."""
    return default, f"a whole number of {least} and more", lambda value: _is_whole(value, least)


def share(default: float) -> Option:
    """A number from 0 to 1."""
    return default, "a share from 0 to 1", _is_share


def wholes(*default: int, least: int = 1) -> Option:
    """A list of whole numbers."""
    words = f"a list of whole numbers of {least} and more"
    return list(default), words, lambda value: isinstance(value, list) and all(_is_whole(one, least) for one in value)


def shares(*default: float) -> Option:
    """A list of shares above 0."""
    words = "a list of shares above 0 and up to 1"
    return list(default), words, lambda value: isinstance(value, list) and all(map(_is_share, value)) and all(value)


def some_of(accepted: Collection[str], *default: str) -> Option:
    """A list of names."""
    words = f"a list of {', '.join(map(repr, accepted))}"
    return list(default), words, lambda value: isinstance(value, list) and all(one in accepted for one in value)
