# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Masks have an exact number of blocks, those of the largest norms, and a model is pruned by them."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_pruning import SPARSITIES, network
from torch import nn
from torch.nn.utils import prune

from sparsekernels.blocks import squared_norms
from sparsekernels.pruning import largest_blocks, prunable, prune_blocks_


@given(
    st.lists(st.integers(1, 9), min_size=2, max_size=4),
    st.tuples(st.integers(1, 10), st.integers(1, 10)),
    SPARSITIES,
    st.integers(0, 99),
)
def test_the_largest_are_kept(shape: list[int], block: tuple[int, int], sparsity: float, seed: int) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    kept = largest_blocks(weight, block, sparsity)
    assert kept.shape == weight.shape
    norms: dict[bool, list[float]] = {True: [], False: []}
    for row in range(0, shape[0], block[0]):
        for column in range(0, shape[1], block[1]):
            part = (slice(row, row + block[0]), slice(column, column + block[1]))
            taps = weight[part].flatten(2) if len(shape) > 2 else weight[part][..., None]
            stored = kept[part].reshape(taps.shape)
            for tap in range(taps.size(2)):
                assert stored[..., tap].all() or not stored[..., tap].any()  # whole blocks
                norms[bool(stored[0, 0, tap])].append(taps[..., tap].double().norm().item())
    total = len(norms[True]) + len(norms[False])
    assert len(norms[True]) == (0 if sparsity == 1 else max(1, round(total * (1 - sparsity))))
    if norms[True] and norms[False]:
        assert min(norms[True]) >= max(norms[False])


@given(
    st.lists(st.integers(1, 9), min_size=2, max_size=4),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    SPARSITIES,
    st.integers(0, 6),
    st.integers(0, 99),
)
def test_each_row_of_blocks_keeps_some(
    shape: list[int], block: tuple[int, int], sparsity: float, least: int, seed: int
) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    weight[0] = math.inf  # of all norms the largest
    kept = squared_norms(largest_blocks(weight, block, sparsity, least_in_row=least), block).flatten(1) > 0
    norms = squared_norms(weight, block).flatten(1)
    in_row = min(least, norms.size(1))
    wanted = max(1, round(norms.numel() * (1 - sparsity)), in_row * norms.size(0))
    assert kept.sum() == (0 if sparsity == 1 else wanted)
    if sparsity < 1:
        for row, mine in zip(norms, kept, strict=True):
            assert mine.sum() >= in_row
            assert not mine.any() or mine.all() or row[mine].min() >= row[~mine].max()


def test_a_network_in_few_blocks_depends_on_its_input() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(32, 32, 1) for _ in range(6)]
    results = []
    for least in (0, 1):
        net = nn.Sequential(*copy.deepcopy(layers))
        prune_blocks_(net, (16, 16), 0.75, least_in_row=least)
        results.append(net(torch.randn(2, 32, 1, 1)).flatten(1))
    assert torch.equal(results[0][0], results[0][1])
    assert (results[1][0] != results[1][1]).all()


def test_of_equals_the_first_are_kept() -> None:
    kept = largest_blocks(torch.ones(4, 4), (2, 2), 0.5)
    assert torch.equal(kept, torch.tensor([[True] * 4] * 2 + [[False] * 4] * 2))


def test_any_strides_and_dtypes() -> None:
    weight = torch.randn(6, 5).bfloat16()
    assert torch.equal(largest_blocks(weight.T, (2, 2), 0.5), largest_blocks(weight.T.contiguous(), (2, 2), 0.5))


@pytest.mark.parametrize("block", [(1, 1), (4, 4), (16, 2), (32, 32)], ids=str)
@pytest.mark.parametrize("sparsity", [0, 0.503, 0.9, 1])
def test_models(block: tuple[int, int], sparsity: float) -> None:
    net = network()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    identities = [id(parameter) for parameter in net.parameters()]
    kept = prune_blocks_(net, block, sparsity)
    assert list(kept) == ["0", "1", "2", "3", "4", "8"]
    for name, module in prunable(net):
        weight = before.pop(f"{name}.weight")
        assert torch.equal(kept[name], largest_blocks(weight, block, sparsity))
        assert torch.equal(module.weight, torch.where(kept[name], weight, 0))
    assert all(torch.equal(net.state_dict()[name], value) for name, value in before.items())
    assert [id(parameter) for parameter in net.parameters()] == identities


def test_shared_weights_are_pruned_once() -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    net[1].weight = net[0].weight
    masks = prune_blocks_(net, (4, 4), 0.5)
    assert masks["0"] is masks["1"]
    assert net[0].weight.count_nonzero() == 32


def test_groups() -> None:
    net = nn.Conv2d(12, 8, 3, groups=2)
    masks = prune_blocks_(net, (4, 4), 0.5)
    assert masks[""].shape == (8, 6, 3, 3)
    assert masks[""].view(2, 4, 6, 9).all(1).eq(masks[""].view(2, 4, 6, 9).any(1)).all()


def test_bad_arguments() -> None:
    net = nn.Sequential(nn.Linear(4, 4))
    weight = net[0].weight
    for sparsity in (1.5, -0.1, math.nan):
        for call in (lambda s: prune_blocks_(net, (2, 2), s), lambda s: largest_blocks(weight, (2, 2), s)):
            with pytest.raises(ValueError, match=f"blocks_?: expected sparsity from 0 to 1, got {sparsity:g}"):
                call(sparsity)
    with pytest.raises(TypeError, match="prune_blocks_: expected sparsity to be a number, got str"):
        prune_blocks_(net, (2, 2), "0.5")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="prune_blocks_: expected block of sizes from 1 to 128, got 2x129"):
        prune_blocks_(net, (2, 129), 0.5)
    with pytest.raises(TypeError, match="prune_blocks_: expected block to be two int"):
        prune_blocks_(net, 4, 0.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="prune_blocks_: expected model to be a torch.nn.Module, got Parameter"):
        prune_blocks_(weight, (2, 2), 0.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="largest_blocks: expected weight to be a torch.Tensor, got list"):
        largest_blocks([[1.0]], (2, 2), 0.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"largest_blocks: expected weight of at least 2 dimensions, .* \[3\]"):
        largest_blocks(torch.ones(3), (2, 2), 0.5)
    with pytest.raises(ValueError, match="largest_blocks: expected weight of numbers, got NaN"):
        largest_blocks(torch.full((2, 2), math.nan), (2, 2), 0.5)
    for bad, error in ((1.0, TypeError), (True, TypeError), (-1, ValueError)):
        with pytest.raises(error, match="prune_blocks_: expected least_in_row (to be an int|from 0 on), got "):
            prune_blocks_(net, (2, 2), 0.5, least_in_row=bad)  # type: ignore[arg-type]
        with pytest.raises(error, match="largest_blocks: expected least_in_row (to be an int|from 0 on), got "):
            largest_blocks(weight, (2, 2), 0.5, least_in_row=bad)  # type: ignore[arg-type]
    assert weight.all()
    prune.random_unstructured(net[0], "weight", 0.5)
    with pytest.raises(ValueError, match="prune_blocks_: expected weights that are parameters, got one that is"):
        prune_blocks_(net, (2, 2), 0.5)
