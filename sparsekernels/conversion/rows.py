# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""For which numbers of rows a linear layer is faster dense: a table by powers of two, measured at a few of them."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from ..timing import Effort
from .measure import SAME, times_of
from .report import DENSE
from .survey import Given

ROWS = (1, 2, 4, 8, 16, 64, 512)
"""Where it is measured: from a step of a language model to a prompt."""

_ENOUGH = 1.25
"""At that gain twice in a row, more rows gain as well: the work grows with the rows, reading the weight does not."""

_EFFORT = Effort(seconds=0.02, sample=1e-6, least=5, most=9, slow=0.0, hopeless=2.0)
"""A single call is a sample: the one before it would leave the weight in the cache."""

_MOST_READ = 64 << 20
"""Bytes that are read between two calls, at most: more than a processor's last cache shares among its cores."""

Layers = Mapping[str, Callable[[Tensor], Tensor]]


def tables_of(dense: nn.Linear, others: Layers, given: Given, parameters: int) -> dict[str, tuple[bool, ...]]:
    """For each of `others`, ways to compute the same as `dense`, for which numbers of rows that one is faster.

    Without gradients. Entry i of a table is for 2^i to 2^(i+1) - 1 rows; more rows than it has entries for are not
    faster dense. Caches are as cold as they are in a model of so many bytes of `parameters`.
    """
    gains: dict[str, dict[int, float]] = {name: {} for name in others}
    between = _reading(min(parameters, _MOST_READ))
    with torch.inference_mode():
        for rows in ROWS:
            going = [name for name in others if not _is_certain(list(gains[name].values()))]
            if not going:
                break
            input = Given((rows, dense.in_features), given.dtype, given.device, False, False).make()
            calls = {name: functools.partial(others[name], input) for name in going}
            calls[DENSE] = functools.partial(dense, input)
            times = times_of(calls, _EFFORT, dict.fromkeys(calls, between))
            if not times.measured:
                return dict.fromkeys(others, ())
            for name in going:
                gains[name][rows] = times.speedup(name, DENSE)
    return {name: _table_of(found) for name, found in gains.items()}


def _is_certain(gains: list[float]) -> bool:
    return len(gains) > 1 and min(gains[-2:]) >= _ENOUGH


def _table_of(gains: Mapping[int, float]) -> tuple[bool, ...]:
    """From gains over dense by numbers of rows. Between two of these the gain is a power of the number."""
    table: list[bool] = []
    measured = sorted(gains)
    for power in range(measured[-1].bit_length()):
        above = next(rows for rows in measured if rows >= 1 << power)
        below = max(rows for rows in measured if rows <= 1 << power)
        share = math.log(2**power / below) / math.log(above / below) if above > below else 0.0
        table.append(gains[below] ** (1 - share) * gains[above] ** share < SAME)
    while table and not table[-1]:
        table.pop()
    return tuple(table)


def _reading(count: int) -> Callable[[], contextlib.AbstractContextManager[None]]:
    """A context that is entered after so many bytes were read."""
    buffer = torch.zeros(count // 4)

    @contextlib.contextmanager
    def read() -> Iterator[None]:
        buffer.sum()
        yield

    return read
