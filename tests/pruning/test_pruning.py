# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Masks have an exact number of nonzeros and are the same every time; a model is pruned by them, and by magnitude."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from conv1d_of_transformers import Conv1D
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize, prune

from sparsekernels.pruning import (
    MASKS,
    PRUNINGS,
    kept_weights,
    largest,
    mask,
    prunable,
    prune_,
    prune_blocks_,
)

SHAPES = st.lists(st.integers(1, 7), min_size=2, max_size=4)
SPARSITIES = st.floats(0, 1)


def network() -> nn.Sequential:
    """Several layers of one shape, and some that are not pruned."""
    same = (nn.Conv2d(8, 8, 3) for _ in range(4))
    depthwise = nn.Conv2d(8, 16, 3, groups=8)
    return nn.Sequential(nn.Conv2d(1, 8, 3), *same, depthwise, nn.BatchNorm2d(16), nn.Flatten(), nn.Linear(16, 10))


class TestMasks:
    @given(kind=st.sampled_from(sorted(MASKS)), shape=SHAPES, sparsity=SPARSITIES, seed=st.integers(0, 2**63 - 1))
    def test_the_number_kept_is_exact_and_always_the_same(
        self, kind: str, shape: list[int], sparsity: float, seed: int
    ) -> None:
        kept = mask(kind, shape, sparsity, seed)
        assert (kept.dtype, list(kept.shape)) == (torch.bool, shape)
        assert kept.sum() == round(math.prod(shape) * (1 - sparsity))
        assert torch.equal(kept, mask(kind, shape, sparsity, seed))

    @pytest.mark.parametrize("kind", MASKS)
    @pytest.mark.parametrize("shape", [(20, 30), (16, 8, 3, 3), (10, 1, 5, 5)], ids=str)
    @pytest.mark.parametrize("sparsity", [0.5, 0.9, 0.98])
    def test_seeds_have_masks_of_their_own(self, kind: str, shape: tuple[int, ...], sparsity: float) -> None:
        assert not torch.equal(mask(kind, shape, sparsity), mask(kind, shape, sparsity, seed=1))

    def test_torchs_random_numbers_do_not_matter(self) -> None:
        state = torch.get_rng_state()
        kept = mask("clustered", (16, 8), 0.5)
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(1)
        assert torch.equal(mask("clustered", (16, 8), 0.5), kept)

    def test_clustered_is_uneven_over_rows_and_input_channels(self) -> None:
        shape, sparsity = (128, 128, 3, 3), 0.9
        for dims in ((1, 2, 3), (0, 2, 3)):
            spread = {kind: mask(kind, shape, sparsity).double().mean(dims).std().item() for kind in MASKS}
            assert spread["random"] < 0.015
            assert spread["clustered"] > 0.04

    def test_clustered_leaves_some_channels_full_and_some_nearly_empty(self) -> None:
        """Most are about as dense as the whole, a few several times as dense."""
        density = mask("clustered", (256, 256, 3, 3), 0.9).double().mean((1, 2, 3))
        assert 0.03 < density.median() < 0.1
        assert density.max() > 0.3
        assert density.min() < 0.02


class TestMagnitude:
    @given(shape=SHAPES, sparsity=SPARSITIES)
    def test_the_largest_are_kept(self, shape: list[int], sparsity: float) -> None:
        weight = torch.randn(shape)
        kept = largest(weight, sparsity)
        assert kept.sum() == round(weight.numel() * (1 - sparsity))
        if kept.any() and not kept.all():
            assert weight[kept].abs().min() >= weight[~kept].abs().max()

    def test_of_equals_the_first_are_kept(self) -> None:
        weight = torch.tensor([[1.0, -2.0, 2.0], [-1.0, 1.0, -3.0]])
        assert largest(weight, 1 / 3).tolist() == [[True, True, True], [False, False, True]]

    def test_any_strides(self) -> None:
        weight = torch.randn(6, 5)
        assert torch.equal(largest(weight.T, 0.5), largest(weight.T.contiguous(), 0.5))


class TestModels:
    def test_what_is_prunable(self) -> None:
        net = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 8, 3, groups=4), nn.BatchNorm2d(8)
        )
        net.add_module("inner", nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Conv1d(2, 2, 1)))
        net.add_module("more", nn.Sequential(nn.Conv1d(4, 4, 3, groups=4), Conv1D(3, 2), nn.Conv3d(1, 2, 3)))
        assert [name for name, _ in prunable(net)] == ["0", "1", "inner.0", "inner.2", "more.1"]
        assert dict(prunable(net))["inner.0"] is net.inner[0]

    @pytest.mark.parametrize("kind", PRUNINGS)
    @pytest.mark.parametrize("sparsity", [0, 0.503, 0.9, 1])
    def test_counts_are_exact_and_all_else_is_untouched(self, kind: str, sparsity: float) -> None:
        net = network()
        before = {name: value.clone() for name, value in net.state_dict().items()}
        kept = prune_(net, kind, sparsity)
        assert list(kept) == ["0", "1", "2", "3", "4", "8"]
        for name, module in prunable(net):
            assert kept[name].sum() == module.weight.count_nonzero() == round(module.weight.numel() * (1 - sparsity))
            assert torch.equal(module.weight, torch.where(kept[name], before.pop(f"{name}.weight"), 0))
        assert all(torch.equal(net.state_dict()[name], value) for name, value in before.items())

    @pytest.mark.parametrize("kind", MASKS)
    def test_seeds_and_layers_have_masks_of_their_own(self, kind: str) -> None:
        one, two, other = (prune_(network(), kind, 0.8, seed) for seed in (0, 0, 1))
        assert all(torch.equal(one[name], two[name]) for name in one)
        assert not any(torch.equal(one[name], other[name]) for name in one)
        alike = {tuple(kept.flatten().tolist()) for kept in one.values() if kept.shape == (8, 8, 3, 3)}
        assert len(alike) == 4

    def test_a_mask_does_not_depend_on_other_layers(self) -> None:
        net = network()
        expected = prune_(net, "random", 0.5)["8"]
        net[0] = nn.Identity()
        assert torch.equal(prune_(net, "random", 0.5)["8"], expected)

    def test_parameters_stay_what_they_are(self) -> None:
        net = network()
        before = [id(parameter) for parameter in net.parameters()]
        prune_(net, "magnitude", 0.5)
        assert [id(parameter) for parameter in net.parameters()] == before
        assert all(parameter.requires_grad and parameter.grad_fn is None for parameter in net.parameters())


@pytest.mark.parametrize(
    ("kind", "sparsity", "message"),
    [
        ("even", 0.5, "expected kind to be 'random', 'clustered', 'magnitude', got 'even'"),
        ("random", 90, "expected sparsity from 0 to 1, got 90"),
        ("magnitude", -0.1, "expected sparsity from 0 to 1, got -0.1"),
        ("clustered", math.nan, "expected sparsity from 0 to 1, got nan"),
    ],
)
def test_bad_arguments(kind: str, sparsity: float, message: str) -> None:
    net = nn.Linear(3, 2)
    with pytest.raises(ValueError, match=f"prune_: {message}"):
        prune_(net, kind, sparsity)
    with pytest.raises(ValueError, match=f"kept_weights: {message}"):
        kept_weights(kind, net.weight, sparsity)
    assert net.weight.all()


def test_bad_masks() -> None:
    with pytest.raises(ValueError, match="mask: expected kind to be 'random', 'clustered', got 'magnitude'"):
        mask("magnitude", (2, 2), 0.5)
    with pytest.raises(ValueError, match="mask: expected sparsity from 0 to 1, got 2"):
        mask("random", (2, 2), 2)
    with pytest.raises(ValueError, match=r"mask: expected shape \(out_channels, in_channels, ...\), got \[5\]"):
        mask("clustered", (5,), 0.5)
    with pytest.raises(ValueError, match="largest: expected sparsity from 0 to 1, got 2"):
        largest(torch.ones(2, 2), 2)


@pytest.mark.parametrize("kind", ["random", "magnitude"])
def test_a_bias_can_be_pruned(kind: str) -> None:
    assert kept_weights(kind, torch.randn(10), 0.5).sum() == 5


def test_a_shared_weight_is_pruned_once() -> None:
    net = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 10))
    net[1].weight = net[0].weight
    kept = prune_(net, "random", 0.5)
    assert torch.equal(kept["0"], kept["1"])
    assert net[0].weight.count_nonzero() == 50


@pytest.mark.parametrize("is_blocks", [False, True], ids=["elements", "blocks"])
def test_layers_that_stay(is_blocks: bool) -> None:
    def pruned(net: nn.Module, *ignore: str) -> dict[str, torch.Tensor]:
        names = (name for name in ignore)  # read once
        if is_blocks:
            return prune_blocks_(net, (4, 4), 0.5, ignore=names)  # type: ignore[arg-type]
        return prune_(net, "random", 0.5, ignore=names)  # type: ignore[arg-type]

    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), nn.Linear(8, 8))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert [name for name, _ in prunable(net, ignore=["0", "1"])] == ["2"]
    assert set(pruned(net, "0", "1")) == {"2"}
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]) is (name != "2.weight")
    net[1][0].weight = net[1][1].weight
    assert set(pruned(net, "1.1", "2")) == {"0"}  # 1.0 has the weight of one that stays
    assert net[1][0].weight.all()
    assert pruned(net, "") == {}


def test_layers_that_are_none() -> None:
    net = network()
    before = [parameter.clone() for parameter in net.parameters()]
    with pytest.raises(ValueError, match="prune_: expected ignore of names of modules, got 'fc'"):
        prune_(net, "random", 0.5, ignore=["fc"])
    bad: Any
    for bad in ("fc", [3], None, 5):
        with pytest.raises(TypeError, match="prune_blocks_: expected ignore to be a collection of names, got "):
            prune_blocks_(net, (4, 4), 0.5, ignore=bad)
    assert all(map(torch.equal, net.parameters(), before))


class Doubled(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


@pytest.mark.parametrize(
    "compute",
    [
        lambda layer: prune.l1_unstructured(layer, "weight", 0.2),
        lambda layer: parametrize.register_parametrization(layer, "weight", Doubled()),
    ],
    ids=["mask", "parametrization"],
)
def test_a_computed_weight_is_refused(compute: Callable[[nn.Module], object]) -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    compute(net[1])
    with pytest.raises(ValueError, match="prune_: expected weights that are parameters, got one .* in '1': make it"):
        prune_(net, "random", 0.5)
    assert net[0].weight.all()


def test_what_is_not_accepted() -> None:
    bad: Any
    for bad in ("0.9", None):
        with pytest.raises(TypeError, match="mask: expected sparsity to be a number, got "):
            mask("random", (4, 4), bad)
    with pytest.raises(ValueError, match="mask: expected kind to be 'random', 'clustered', got None"):
        mask(None, (4, 4), 0.5)  # type: ignore[arg-type]
    for bad in (4, (4, "4")):
        with pytest.raises(TypeError, match="mask: expected shape to be a sequence of int, got "):
            mask("random", bad, 0.5)
    with pytest.raises(ValueError, match=r"mask: expected shape of sizes from 0 on, got \[4, -1\]"):
        mask("random", (4, -1), 0.5)
    bad = nn.Linear(2, 2)
    with pytest.raises(TypeError, match="largest: expected weight to be a torch.Tensor, got Linear"):
        largest(bad, 0.5)
    bad = torch.ones(2, 2)
    with pytest.raises(TypeError, match="prune_: expected model to be a torch.nn.Module, got Tensor"):
        prune_(bad, "random", 0.5)
    bad = "x"
    with pytest.raises(TypeError, match="prunable: expected model to be a torch.nn.Module, got str"):
        list(prunable(bad))


def test_nan_has_no_magnitude() -> None:
    net = network()
    with torch.no_grad():
        net[8].weight[0, 0] = math.nan
    with pytest.raises(ValueError, match="largest: expected weight of numbers, got NaN among them"):
        prune_(net, "magnitude", 0.5)
    assert net[0].weight.all()


def test_numbers_of_numpy() -> None:
    shape = tuple(numpy.array([8, 4]))
    assert torch.equal(mask("random", shape, numpy.float32(0.5)), mask("random", (8, 4), 0.5))
