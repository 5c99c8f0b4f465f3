# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The mean over seeds and its 95% interval, and whether one method is better than another."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean and half the width of its interval: None for a single value, which says nothing of the spread."""

    mean: float
    half: float | None
    count: int

    @property
    def low(self) -> float:
        return self.mean - (self.half or 0.0)

    @property
    def high(self) -> float:
        return self.mean + (self.half or 0.0)


def interval(values: Sequence[float]) -> Interval:
    """Student's interval of the mean: mean +- t(n - 1) s / sqrt(n), of 95%. Raises ValueError without values."""
    if not values:
        raise ValueError("interval: expected at least one value, got none")
    count = len(values)
    mean = math.fsum(values) / count
    if count == 1:
        return Interval(mean, None, 1)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    return Interval(mean, t_quantile(count - 1) * deviation / math.sqrt(count), count)


def difference(one: Mapping[int, float], other: Mapping[int, float]) -> Interval | None:
    """The interval of the mean of one - other over the seeds that both have; None where they have none in common.

    Runs of one seed begin with the same weights and see the images in the same order, so that differences vary less
    than accuracies do.
    """
    common = sorted(one.keys() & other.keys())
    return interval([one[seed] - other[seed] for seed in common]) if common else None


@cache
def t_quantile(freedom: int) -> float:
    """The t with P(-t < T < t) = 95% for Student's distribution of so many degrees of freedom."""
    low, high = 0.0, 64.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < CONFIDENCE else (low, middle)
    return (low + high) / 2


def _within(t: float, freedom: int) -> float:
    """P(-t < T < t), the finite sums for whole degrees of freedom: Abramowitz & Stegun 1964, 26.7.3 and 26.7.4."""
    theta = math.atan(t / math.sqrt(freedom))
    cosine, total = math.cos(theta), 0.0
    if freedom % 2:
        term = cosine
        for k in range(1, freedom - 1, 2):
            total += term
            term *= cosine**2 * (k + 1) / (k + 2)
        return 2 / math.pi * (theta + math.sin(theta) * total)
    term = 1.0
    for k in range(0, freedom, 2):
        total += term
        term *= cosine**2 * (k + 1) / (k + 2)
    return math.sin(theta) * total
