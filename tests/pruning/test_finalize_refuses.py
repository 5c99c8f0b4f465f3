# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What finalize refuses, before it has changed anything, and shared weights that it takes."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import pytest
import stand_ins as tools
import torch
from mask_checks import contents, net
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from sparsekernels.pruning import finalize


class MaskedLinear(nn.Linear):
    def __init__(self, mask: Tensor) -> None:
        super().__init__(8, 8)
        self.register_buffer("weight_mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight * self.weight_mask, self.bias)


def shared(first: Any, second: Any) -> nn.Module:
    """Two layers with one weight, before they are masked."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    for layer, change in zip(model, (first, second), strict=False):
        change(layer)
    prune.l1_unstructured(model[2], "weight", amount=0.5)
    return model


def masked(seed: int) -> Callable[[Any], None]:
    mask = torch.rand(8, 8, generator=torch.Generator().manual_seed(seed)) < 0.5

    def change(layer: nn.Module) -> None:
        parametrize.register_parametrization(layer, "weight", tools.FakeSparsityDenseGradBuffer(mask.float()))

    return change


def factor(*factors: float) -> tuple[Callable[[Any], None], ...]:
    """Parametrizations with the same zeros, each with its factor."""
    mask = torch.eye(8)

    class Scaled(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.register_buffer("mask", mask)
            self.factor = factor

        def forward(self, weight: Tensor) -> Tensor:
            return self.factor * weight * self.mask

    def change(layer: nn.Module, one: float) -> None:
        parametrize.register_parametrization(layer, "weight", Scaled(one))

    return tuple(functools.partial(change, one=one) for one in factors)


def floats(*factors: float) -> tuple[Callable[[Any], None], ...]:
    """Masks of torch's prune with the same zeros, each with its factor."""
    return tuple(functools.partial(prune.custom_from_mask, name="weight", mask=one * torch.eye(8)) for one in factors)


def expanded() -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    for layer in model:
        prune.l1_unstructured(layer, "weight", amount=0.5)
    model[1].weight_orig.data = torch.randn(8, 1).expand(8, 8)
    return model


def not_applied() -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    prune.l1_unstructured(model[0], "weight", amount=0.5)
    model[1].register_buffer("weight_mask", torch.eye(8))
    return model


def quantized() -> nn.Module:
    model = net()
    tools.by_nncf(model)
    hooks: Any = getattr(model, "__nncf_hooks")
    hooks.post_hooks["fc1:weight__0"]["1"] = nn.Identity()
    return model


def of_unknown_class() -> nn.Module:
    model = nn.Sequential(MaskedLinear(torch.rand(8, 8) < 0.5), nn.Linear(8, 8))
    prune.l1_unstructured(model[1], "weight", amount=0.5)
    return model


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: shared(lambda _: None, masked(0)), "that of '1.weight', which is 0.weight, 1.parametrizations.weight"),
        (lambda: shared(masked(1), masked(2)), "or that all mask alike, got that of '0.weight'"),
        (quantized, "expected parameters that NNCF prunes alone, got Identity for 'fc1.weight' as well; nncf.strip"),
        (of_unknown_class, "got the class MaskedLinear, which may read its buffer weight_mask, of '0.weight'"),
        (lambda: shared(*factor(1.0, -1.0)), "got that of '0.weight', which is 0.parametrizations.weight.original, 1"),
        (lambda: shared(*floats(0.5, 1.0)), "0.weight_orig, 1.weight_orig, with other zeros or factors: give each"),
        (lambda: shared(floats(0.5)[0], masked(0)), "with other zeros or factors: give each layer its own"),
        (expanded, "expected weights that can be written, got '1.weight' expanded: clone it"),
        (not_applied, "a buffer weight_mask that nothing of the layer applies, for what it leaves out is not zero, of"),
    ],
)
def test_what_is_refused_and_left_as_it_was(make: Callable[[], nn.Module], words: str) -> None:
    model = make()
    before = contents(model)
    with pytest.raises(ValueError, match=re.escape(words)):
        finalize(model)
    after = contents(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_weights_that_are_shared_and_masked_alike() -> None:
    model = shared(masked(0), masked(0))
    x = torch.randn(2, 8)
    expected = model(x)
    weight = model[0].parametrizations.weight.original
    assert list(finalize(model)) == ["0.weight", "2.weight"]
    assert model[0].weight is model[1].weight is weight
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("changes", [factor(0.5, 0.5), floats(0.5, 0.5), (floats(0.5)[0], factor(0.5)[0])])
def test_weights_that_are_shared_and_scaled_alike_are_written_once(changes: tuple[Callable[[Any], None], ...]) -> None:
    model = shared(*changes)
    x = torch.randn(2, 8)
    expected = model(x)
    finalize(model)
    assert model[0].weight is model[1].weight
    assert torch.equal(model(x), expected)


def test_invalid_models() -> None:
    with pytest.raises(TypeError, match=r"finalize: expected model to be a torch.nn.Module, got Parameter"):
        finalize(nn.Linear(2, 2).weight)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"finalize: expected weights that have data"):
        finalize(nn.Linear(2, 2, device="meta"))
