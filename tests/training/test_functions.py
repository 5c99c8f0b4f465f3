# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The pure functions: exact counts, the right places, the same every time."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsekernels.training import constant_fan_in, largest_signal, magnitude, neurons, set_pruning
from sparsekernels.training.selection import kth_least, least

SHAPES = st.lists(st.integers(1, 9), min_size=2, max_size=4)
DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def random_case(shape: list[int], density: float, seed: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(shape, generator=generator) < density
    weight = torch.randn(shape, generator=generator).to(dtype) * mask
    signal = (torch.randn(shape, generator=generator) * 4).round().to(dtype)  # many are equal
    return weight, signal, mask


@pytest.mark.parametrize("prune", [magnitude, set_pruning])
@given(
    shape=SHAPES,
    density=st.floats(0, 1),
    share=st.floats(0, 1),
    seed=st.integers(0, 10**6),
    dtype=st.sampled_from(DTYPES),
)
@settings(max_examples=60)
def test_pruning_takes_exactly_as_many(
    prune: object, shape: list[int], density: float, share: float, seed: int, dtype: torch.dtype
) -> None:
    weight, signal, mask = random_case(shape, density, seed, dtype)
    count = round(share * int(mask.sum()))
    new = prune(weight, signal, mask, count)  # type: ignore[operator]
    assert (new.dtype, new.shape) == (torch.bool, mask.shape)
    assert int(new.sum()) == int(mask.sum()) - count
    assert not (new & ~mask).any()
    assert torch.equal(new, prune(weight, signal, mask, count))  # type: ignore[operator]
    if prune is magnitude and 0 < count < int(mask.sum()):
        gone = mask & ~new
        assert weight[gone].abs().max() <= weight[new].abs().min()


@pytest.mark.parametrize("grow", [largest_signal, neurons])
@given(
    shape=SHAPES,
    density=st.floats(0, 1),
    share=st.floats(0, 1),
    seed=st.integers(0, 10**6),
    dtype=st.sampled_from(DTYPES),
)
@settings(max_examples=60)
def test_growth_adds_exactly_as_many(
    grow: object, shape: list[int], density: float, share: float, seed: int, dtype: torch.dtype
) -> None:
    weight, signal, mask = random_case(shape, density, seed, dtype)
    count = round(share * int((~mask).sum()))
    new = grow(weight, signal, mask, count)  # type: ignore[operator]
    assert (new.dtype, new.shape) == (torch.bool, mask.shape)
    assert int(new.sum()) == int(mask.sum()) + count
    assert not (mask & ~new).any()
    assert torch.equal(new, grow(weight, signal, mask, count))  # type: ignore[operator]
    if grow is largest_signal and count and int((~new).sum()):
        assert signal[new & ~mask].abs().min() >= signal[~new].abs().max()


def test_set_takes_what_is_next_to_zero_on_both_sides() -> None:
    weight = torch.tensor([[0.1, 5.0, -0.2, -3.0, 0.3, -0.4, 0.0, 0.5]])
    mask = torch.tensor([[True, True, True, True, True, True, False, True]])
    # 4 positive, 3 negative; of 4 pruned, round(4 * 4/7) = 2 are positive
    new = set_pruning(weight, weight, mask, 4)
    assert new.tolist() == [[False, True, False, True, False, False, False, True]]


def test_neurons_get_shares_by_their_mean_signal() -> None:
    signal = torch.zeros(4, 100)
    signal[1], signal[3] = 1.0, 3.0
    new = neurons(signal, signal, torch.zeros(4, 100, dtype=torch.bool), 40)
    assert new.sum(1).tolist() == [0, 10, 0, 30]


def test_equals_do_not_fall_in_runs() -> None:
    """New weights are all 0: in the order of their places, pruning them would empty whole rows."""
    mask = torch.ones(100, 100, dtype=torch.bool)
    zeros = torch.zeros(100, 100)
    for new in (magnitude(zeros, zeros, mask, 9000), ~largest_signal(zeros, zeros, ~mask, 9000)):
        assert new.sum() == 1000
        assert new.any(1).all()
        assert new.sum(1).max() < 30


@given(
    shape=st.lists(st.integers(1, 12), min_size=2, max_size=3),
    density=st.floats(0, 1),
    share=st.floats(0, 1),
    seed=st.integers(0, 10**6),
    saliency=st.sampled_from([0.0, 0.3, 0.9]),
)
@settings(max_examples=100)
def test_constant_fan_in(shape: list[int], density: float, share: float, seed: int, saliency: float) -> None:
    weight, signal, mask = random_case(shape, density, seed, torch.float32)
    total = int(mask.sum())
    new = constant_fan_in(weight, signal, mask, round(share * total), saliency=saliency)
    rows = new.reshape(shape[0], -1).sum(1)
    if total == 0:
        assert not new.any()
        return
    active = rows > 0
    fan_in = int(rows.max())
    assert rows[active].eq(fan_in).all()
    # the nearest multiple of the outputs that are left, or one in each
    width = math.prod(shape[1:])
    assert fan_in == min(max(1, round(total / int(active.sum()))), width)
    assert abs(int(new.sum()) - total) <= max(int(active.sum()) / 2, int(active.sum()) * fan_in - total)


def test_constant_fan_in_keeps_the_largest_and_grows_by_signal() -> None:
    weight = torch.tensor([[5.0, 1.0, 0.0, 0.0], [4.0, 3.0, 0.0, 0.0]])
    signal = torch.tensor([[0.0, 0.0, 9.0, 1.0], [0.0, 0.0, 2.0, 8.0]])
    new = constant_fan_in(weight, signal, weight != 0, 1)
    # the least of the layer goes, 1.0; its row gets the largest signal
    assert new.tolist() == [[True, False, True, False], [True, True, False, False]]


def test_outputs_without_salient_weights_go() -> None:
    weight = torch.full((4, 8), 0.01)
    weight[1:] = torch.arange(1.0, 25.0).view(3, 8)
    mask = torch.zeros(4, 8, dtype=torch.bool)
    mask[:, :4] = True
    new = constant_fan_in(weight * mask, torch.zeros(4, 8), mask, 4, total=16)
    assert new.sum(1).tolist() == [0, 5, 5, 5]  # 16 / 3 rounds to 5


@pytest.mark.parametrize("function", [magnitude, set_pruning, largest_signal, neurons])
@pytest.mark.parametrize("count", [-1, 13])
def test_counts_that_are_not_there_raise(function: object, count: int) -> None:
    weight, mask = torch.randn(3, 4), torch.eye(3, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match="expected count"):
        function(weight, weight, mask, count)  # type: ignore[operator]
    with pytest.raises(ValueError, match="constant_fan_in: expected total from 0 to 12"):
        constant_fan_in(weight, weight, mask, 1, total=count)


@given(values=st.lists(st.integers(-3, 3), min_size=1, max_size=40), share=st.floats(0, 1))
def test_the_least(values: list[int], share: float) -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        tensor = torch.tensor(values, dtype=dtype)
        count = round(share * len(values))
        chosen = least(tensor, count)
        assert len(set(chosen.tolist())) == count
        assert sorted(tensor[chosen].tolist()) == sorted(values)[:count]
        if count:
            assert kth_least(tensor, count).item() == sorted(values)[count - 1]


def test_no_input_is_written_to() -> None:
    weight, signal, mask = random_case([6, 5], 0.5, 0, torch.float32)
    copies = [one.clone() for one in (weight, signal, mask)]
    for function, count in itertools.product(
        (magnitude, set_pruning, largest_signal, neurons, constant_fan_in), (0, 3)
    ):
        function(weight, signal, mask, count)  # type: ignore[operator]
    assert all(map(torch.equal, copies, (weight, signal, mask)))
