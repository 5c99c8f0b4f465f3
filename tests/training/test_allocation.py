# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Distributions and redistribution are whole numbers of an exact sum."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsekernels.training import allocate, distribute
from sparsekernels.training.allocation import DISTRIBUTIONS, at_least_one

CAPACITIES = st.lists(st.integers(0, 1000), min_size=1, max_size=12)


@given(capacities=CAPACITIES, share=st.floats(0, 1), data=st.data())
def test_the_sum_is_exact_and_nobody_overflows(capacities: list[int], share: float, data: st.DataObject) -> None:
    shares = data.draw(st.lists(st.floats(0, 1e6), min_size=len(capacities), max_size=len(capacities)))
    total = round(share * sum(capacities))
    counts = allocate(total, shares, capacities)
    assert sum(counts) == total
    assert all(0 <= count <= capacity for count, capacity in zip(counts, capacities, strict=True))


def test_proportional_where_there_is_room() -> None:
    assert allocate(60, [1, 2, 3], [100, 100, 100]) == [10, 20, 30]
    assert allocate(10, [1, 1, 1], [100, 100, 100]) == [4, 3, 3]  # the first of equal remainders


def test_a_surplus_goes_to_the_others_by_their_shares() -> None:
    assert allocate(60, [1, 2, 3], [100, 100, 12]) == [16, 32, 12]
    assert allocate(60, [0, 0, 1], [30, 60, 12]) == [16, 32, 12]  # then by room


@pytest.mark.parametrize(
    ("total", "shares", "capacities"),
    [(-1, [1], [5]), (6, [1], [5]), (1, [-1.0], [5]), (1, [math.nan], [5]), (1, [math.inf], [5]), (1, [1, 1], [5])],
)
def test_what_cannot_be_allocated_raises(total: int, shares: list[float], capacities: list[int]) -> None:
    with pytest.raises(ValueError, match="allocate: expected"):
        allocate(total, shares, capacities)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@given(
    shapes=st.lists(st.lists(st.integers(1, 40), min_size=2, max_size=4), min_size=1, max_size=8),
    density=st.floats(0.001, 1),
)
def test_distributions_are_exact(distribution: str, shapes: list[list[int]], density: float) -> None:
    sizes = [math.prod(shape) for shape in shapes]
    total = max(1, round(density * sum(sizes)))
    counts = distribute(total, shapes, sizes, distribution)
    assert sum(counts) == total
    assert all(0 <= count <= size for count, size in zip(counts, sizes, strict=True))
    if total >= len(shapes):
        assert min(counts) >= 1


def test_erk_and_set_are_their_formulas() -> None:
    shapes = [(64, 32, 3, 3), (10, 64)]
    sizes = [math.prod(shape) for shape in shapes]
    erk = distribute(1000, shapes, sizes, "ERK")
    # count = e * sum of the dimensions: 102 and 74
    assert erk == [round(1000 * 102 / 176), round(1000 * 74 / 176)]
    er = distribute(1000, shapes, sizes, "SET")
    # count = e * (out + in) * taps: 96 * 9 and 74, of which the second is below its 640
    assert er == [round(1000 * 864 / 938), round(1000 * 74 / 938)]


def test_a_layer_keeps_one() -> None:
    assert at_least_one([0, 5, 1], [10, 10, 10]) == [1, 4, 1]
    assert at_least_one([0, 1], [10, 10]) == [0, 1]
    assert at_least_one([0, 5], [0, 10]) == [0, 5]


def test_an_unknown_distribution_names_the_others() -> None:
    with pytest.raises(ValueError, match="expected distribution to be 'uniform', 'ERK', 'SET', got 'erk'"):
        distribute(1, [(2, 2)], [4], "erk")
