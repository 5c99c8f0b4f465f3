# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Gradients and statistics that rounding takes apart are told from wrong ones by a run in float32."""

from __future__ import annotations

import copy
import sys
from typing import Any

import pytest
import torch
from conversion_checks import BLOCK, FINE, LAYERS, Prefer
from test_layer_gradients import HOW, made
from torch import Tensor, nn
from torch.nn import functional as F

import sparsekernels as sk
from sparsekernels import _library
from sparsekernels.conversion.agreement import backward_at_random, point_alike
from sparsekernels.conversion.arguments import Arguments
from sparsekernels.conversion.exactness import (
    are_gradients_as_exact,
    is_as_exact,
    is_gradient_alike,
    is_statistic_as_exact,
)
from sparsekernels.conversion.float32_run import Draws, float32_run
from sparsekernels.conversion.modes import Training
from sparsekernels.pruning import prune_blocks_

pytestmark = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")

Gradients = list[Tensor | None]


def gradients(model: nn.Module, x: Tensor, how: str = "float32", rounds: float = 0.0) -> Gradients:
    """rounds: of each convolution and linear layer, so much of its results is off by chance, as if by other kernels."""
    dtype, autocast = HOW[how]
    model = copy.deepcopy(model).to(dtype)
    generator = torch.Generator().manual_seed(1)

    def round_otherwise(_: nn.Module, __: Any, result: Tensor) -> Tensor:
        return result + result.detach() * rounds * torch.randn(result.shape, generator=generator).to(result.dtype)

    for layer in model.modules():
        if rounds and isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(round_otherwise)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        backward_at_random(model(x.to(dtype)))
    weights = list(model.parameters())
    found = [one.grad for one in weights]
    for one, weight in zip(found, weights, strict=True):
        if one is not None and how != "float32":  # as of sparse layers
            one.mul_((weight != 0) | (weight.dim() == 1))
    return found


def spoilt(gradients: Gradients) -> dict[str, Gradients]:
    """In each, the gradient of one weight, the one in the middle, is wrong."""
    places = [place for place, one in enumerate(gradients) if one is not None and one.dim() > 1]
    place = places[len(places) // 2]
    right = gradients[place]
    assert right is not None
    ascending = right.flatten(1).norm(dim=1).argsort()
    channel, average = ascending[-1:], ascending[len(right) * 3 // 4, None]
    changes: dict[str, Tensor | None] = {
        "too long": right * 1.25,
        "without a channel": right.index_fill(0, channel, 0.0),
        "without an average channel": right.index_fill(0, average, 0.0),
        "an average channel of another sign": right.index_copy(0, average, -right[average]),
        "transposed": right.transpose(0, 1).contiguous(),
        "missing": None,
        "of another dtype": right.double(),
        "of another sign": -right,
        "not a number": right * torch.nan,
        "of another shape": right[:-1],
        "zero": torch.zeros_like(right),
        "shifted": right.roll(1, 0),
    }
    return {name: [*gradients[:place], one, *gradients[place + 1 :]] for name, one in changes.items()}


def is_lost(theirs: Gradients, truth: Gradients, weights: list[nn.Parameter]) -> bool:
    used = [(weight != 0) | (weight.dim() == 1) for weight in weights]
    pairs = [
        (one.double(), other.double() * mask)
        for one, other, mask in zip(theirs, truth, used, strict=True)
        if one is not None and other is not None
    ]
    least = 0.01 * torch.stack([other.norm() for _, other in pairs]).norm()
    return any(bool((one - other).norm() > 0.25 * other.norm().clamp(min=least)) for one, other in pairs)


@pytest.mark.parametrize("how", ["autocast", "bfloat16"])
@pytest.mark.parametrize("net", ["convolutions", "linears", "pooled"])
def test_rounding_is_told_from_wrong_gradients(net: str, how: str) -> None:
    in_play = 0
    for seed in range(12):
        model, x = made(net, seed, torch.float32)
        weights = list(model.parameters())
        truth = gradients(model, x)
        theirs, mine = gradients(model, x, how), gradients(model, x, how, 2**-10)
        assert are_gradients_as_exact(theirs, theirs, truth, weights)
        if point_alike(mine, theirs):
            continue
        right = are_gradients_as_exact(mine, theirs, truth, weights)
        assert not right or not is_lost(theirs, truth, weights), seed
        in_play += right
        for name, wrong in spoilt(mine).items():
            assert not are_gradients_as_exact(wrong, theirs, truth, weights), (seed, name)
        assert not are_gradients_as_exact(gradients(model, x, how, 2**-4), theirs, truth, weights), seed
    assert in_play >= 2


def test_gradients_of_what_is_pruned_are_left_out() -> None:
    """The original model, in float32, has gradients there."""
    torch.manual_seed(0)
    weight, truth = torch.randn(32, 32), torch.randn(32, 32)
    weight[:16] = 0
    noise = 0.05 * torch.randn(2, 32, 32)
    used = weight != 0
    theirs, mine = ((truth + one) * used for one in noise)
    assert are_gradients_as_exact([mine], [theirs], [truth], [weight])
    assert not are_gradients_as_exact([mine + 0.3 * truth * ~used], [theirs], [truth], [weight])
    assert not are_gradients_as_exact([mine], [theirs], [truth], [torch.ones(32, 32)])
    assert not are_gradients_as_exact([mine], [theirs], [None], [weight])
    assert not are_gradients_as_exact([mine], [theirs], [truth[:16]], [weight])
    assert not are_gradients_as_exact([mine], [theirs, theirs], [truth, truth], [weight, weight])
    assert are_gradients_as_exact([None], [None], [truth], [weight])
    assert not are_gradients_as_exact(
        [(truth - 0.3 * noise[0])], [truth + 8 * noise[0]], [truth], [weight]
    )  # all is lost


def test_parts_of_gradients_count_by_themselves() -> None:
    torch.manual_seed(0)
    right = torch.randn(64, 32, 3, 3)
    assert is_gradient_alike(right * (1 + 0.02 * torch.randn(64, 32, 3, 3)), right)
    for place in ((7,), (slice(None), 3), (..., 1), (..., 2, slice(None))):
        wrong = right.clone()
        wrong[place] = 0
        assert not is_gradient_alike(wrong, right), place
    assert not is_gradient_alike(right * 1.1, right)
    assert not is_gradient_alike(right.double(), right)
    assert not is_gradient_alike(right[:32], right)
    short = right.clone()
    short[0] *= 1e-3  # one that nearly vanishes is rounding
    other = short.clone()
    other[0] *= -1
    assert is_gradient_alike(other, short)
    infinite = right.clone()
    infinite[3, 4] = torch.inf
    assert is_gradient_alike(infinite, infinite.clone())
    assert not is_gradient_alike(right, infinite)
    assert not is_gradient_alike(infinite, right)
    assert not is_gradient_alike(right * torch.nan, right)


@pytest.mark.parametrize("rounds", [0.05, 0.15, 0.2])
def test_a_part_of_results_that_is_lost_is_no_rounding(rounds: float) -> None:
    """Where rounding is more in some images than in others, as in deep networks."""
    torch.manual_seed(0)
    right = 0
    for _ in range(20):
        truth = torch.randn(64, 128) * (0.5 + torch.rand(64, 1))
        noise = rounds * torch.randn(2, 64, 128) * torch.randn(2, 64, 1).abs()
        before, after = ((truth + one).bfloat16() for one in noise)
        right += is_as_exact(after, before, truth)
        for image in range(0, 64, 8):
            for factor in (0, -1):
                wrong = after.clone()
                wrong[image] *= factor
                assert not is_as_exact(wrong, before, truth)
                assert not is_as_exact(wrong.mT, before.mT, truth.mT)
    assert right == 20


def test_statistics_by_a_float32_run() -> None:
    torch.manual_seed(0)
    truth, noise = torch.rand(64) + 0.5, 0.01 * torch.randn(2, 64)
    before, after = truth + noise[0], truth + noise[1]
    assert is_statistic_as_exact(after, before, truth)
    assert not is_statistic_as_exact(after * 1.05, before, truth)
    assert not is_statistic_as_exact(after.index_fill(0, torch.tensor([3]), 0.0), before, truth)
    assert not is_statistic_as_exact(truth + 30 * noise[1], truth + 40 * noise[0], truth)  # all is lost
    assert not is_statistic_as_exact(after, before, None)
    assert not is_statistic_as_exact(after, before.double(), truth)
    assert not is_statistic_as_exact(after[:3], before, truth)
    assert not is_statistic_as_exact(torch.tensor(3), torch.tensor(4), torch.tensor(3.0))
    means = noise[0] * 0.1, noise[1] * 0.1, torch.zeros(64)  # what is centered: its size is that of what it is of
    assert not is_statistic_as_exact(*means)
    assert is_statistic_as_exact(*means, 1.0)


class Drawing(nn.Module):
    """Draws in the dtype of its input."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layer, self.kind = nn.Linear(64, 64), kind

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        if self.kind == "dropout":
            return F.dropout(x, 0.3, self.training)
        if self.kind == "mask":
            return x * (torch.rand_like(x) < 0.7)
        return x + 0.1 * torch.randn(x.shape, dtype=x.dtype)


@pytest.mark.parametrize("kind", ["dropout", "mask", "noise"])
def test_other_random_numbers_are_no_truth(kind: str) -> None:
    """Dropout drops the same in all dtypes; uniform and normal numbers are others."""
    drawn = []
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        with Draws() as draws:
            Drawing(kind).to(dtype)(torch.randn(16, 64).to(dtype))
        drawn.append(draws.draws[-1:])
    assert drawn[0]
    assert (drawn[0] == drawn[1]) is (kind == "dropout")


def exact_of(monkeypatch: pytest.MonkeyPatch, model: nn.Module, x: Tensor, autocast: bool) -> tuple[Any, Any, Tensor]:
    """What `convert` takes to be true of the model, where it is asked; before that, its buffers and the generator."""
    found: list[tuple[Any, Any, Tensor]] = []
    genuine = Training.agrees

    def agrees(self: Training, *args: Any) -> bool:
        state = torch.get_rng_state()
        buffers = copy.deepcopy(dict(self._model.named_buffers()))
        found.append((self._in_float32_once(), buffers, state))
        assert torch.equal(state, torch.get_rng_state())
        return genuine(self, *args)

    monkeypatch.setattr(Training, "agrees", agrees)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        sk.convert(model, x)
    return found[0]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("kind", ["dropout", "mask", "noise"])
def test_the_run_in_float32(prefer: Prefer, monkeypatch: pytest.MonkeyPatch, kind: str, how: str) -> None:
    """It gives what the model gives in float32, with the same random numbers or not at all, and leaves nothing."""
    dtype, autocast = HOW[how]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), Drawing(kind), nn.ReLU(), nn.Linear(64, 8))
    prune_blocks_(model, (16, 16), 0.5)
    model, x = model.train().to(dtype), torch.randn(32, 64).to(dtype)
    prefer(BLOCK, FINE, LAYERS)
    before, state = copy.deepcopy(model), torch.get_rng_state()
    exact, buffers, drawn_from = exact_of(monkeypatch, model, x, autocast)
    assert torch.equal(state, torch.get_rng_state())
    for one, other in zip(model.state_dict().values(), before.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert all(one.grad is None and one.dtype is dtype for one in model.parameters())
    assert (exact is None) is (how == "float32" or kind != "dropout")
    if exact is not None:
        before.load_state_dict(buffers, strict=False)
        wide = before.float()
        torch.set_rng_state(drawn_from)
        result = wide(x.float())
        backward_at_random(result)
        assert torch.equal(exact.result, result)
        for one, other in zip(exact.gradients, wide.parameters(), strict=True):
            torch.testing.assert_close(one, other.grad)
        for (one, _), other in zip(exact.buffers, wide.buffers(), strict=True):
            assert torch.equal(one, other)


def test_what_has_no_run_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoCopy(nn.Linear):
        def __deepcopy__(self, memo: object) -> None:
            raise TypeError

    x, run = Arguments((torch.randn(4, 64),), {}), float32_run
    with torch.autocast("cpu", torch.bfloat16):
        assert isinstance(run(nn.Linear(64, 8), x), Tensor)
        assert run(NoCopy(64, 8), x) is None
        monkeypatch.setattr(sys.modules["sparsekernels.conversion.float32_run"], "_MOST_BYTES", 12 * 64 * 8)
        assert run(nn.Linear(64, 8, bias=False), x) is not None
        assert run(nn.Linear(64, 8), x) is None
    assert run(nn.Linear(64, 8, bias=False), x) is None


def test_draws_inside_of_higher_order_operators_are_not_known() -> None:
    """So there is no float32 run to judge by, rather than one that may have drawn other numbers."""
    x = torch.ones(3)
    with pytest.raises(NotImplementedError, match="cond"), Draws():
        torch.cond(x.sum() > 0, lambda x: x + torch.rand(3), lambda x: x + 1, (x,))
