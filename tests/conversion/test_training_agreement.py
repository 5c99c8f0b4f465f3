# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The check of a training graph: right ones pass whatever chance decides by rounding, wrong ones do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conversion_checks import FINE, GRAPH, LAYERS, Prefer, graphs_of
from torch import Tensor, nn

import sparsekernels as sk
from sparsekernels import _library
from sparsekernels.conversion.agreement import are_statistics_close
from sparsekernels.conversion.graph import batch_norm as norm_module
from sparsekernels.ops.batch_norm.op import Act, batch_norm_act
from sparsekernels.pruning import prune_

pytestmark = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")


class Net(nn.Module):
    """Convolutions with a bias, and whatever has a kink behind their BatchNorms."""

    def __init__(self, affine: bool = True) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(inputs, 16, 3, padding=1) for inputs in (3, 16, 16, 16))
        self.norms = nn.ModuleList(nn.BatchNorm2d(16, affine=affine) for _ in range(4))
        self.head, self.last = nn.Sequential(nn.Linear(16, 12), nn.BatchNorm1d(12), nn.ReLU()), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norms[0](self.convs[0](x)))
        y = F.hardtanh(self.norms[1](self.convs[1](x)), 0.0, 1.0)
        y = F.relu(self.norms[2](self.convs[2](y)) + x)
        return self.last(self.head(F.relu(self.norms[3](self.convs[3](y))).mean((2, 3))))


def pruned(sparsity: float, seed: int, affine: bool = True) -> tuple[Net, Tensor]:
    torch.manual_seed(seed)
    model = Net(affine).train()
    prune_(model, "random", sparsity)
    return model, torch.randn(8, 3, 12, 12)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("sparsity", [0.9, 0.95, 0.98])
def test_empty_filters_refuse_no_graph(prefer: Prefer, sparsity: float, affine: bool) -> None:
    prefer(FINE, GRAPH, LAYERS)
    for seed in range(10 if affine else 3):
        model, x = pruned(sparsity, seed, affine)
        notes = sk.convert(model, x).notes
        assert list(graphs_of(model)), (seed, notes)


def test_a_mean_that_is_rounding_refuses_no_graph(prefer: Prefer) -> None:
    """Behind a BatchNorm and a layer without bias, every mean is zero."""
    prefer(FINE, GRAPH, LAYERS)
    for seed in range(3):
        torch.manual_seed(seed)
        layers = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16)
        model = nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(16, 4, 1)).train()
        prune_(model, "random", 0.8)
        notes = sk.convert(model, torch.randn(8, 3, 12, 12)).notes
        assert list(graphs_of(model)), (seed, notes)
    means = torch.tensor([3e-9, -2e-8])
    assert are_statistics_close(-means, means, 1.0)
    assert not are_statistics_close(-means, means)
    assert not are_statistics_close(means + 1e-3, means, 1.0)


class _Backward(torch.autograd.Function):
    """The identity, with another gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.change = change
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.change(gradient), None


def _without(channels: Tensor | int) -> Callable[[Tensor], Tensor]:
    return lambda gradient: gradient.index_fill(0, torch.as_tensor(channels).reshape(-1), 0.0)


def _wrong_gradient(of: str, change: Callable[[Tensor], Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
    places = {"input": 0, "weight": 1, "bias": 2, "residual": 5}

    def wrong(*args: Any) -> tuple[Tensor, Tensor]:
        changed = [*args, None][:6]
        if changed[places[of]] is not None:
            changed[places[of]] = _Backward.apply(changed[places[of]], change)
        return batch_norm_act(*changed)

    return wrong


def _ungated(x: Any, weight: Any, bias: Any, eps: float, act: Act, residual: Any = None) -> tuple[Tensor, Tensor]:
    """Gradients pass whatever the limits are."""
    right, statistics = batch_norm_act(x, weight, bias, eps, act, residual)
    free, _ = batch_norm_act(x, weight, bias, eps, Act(), residual)
    return free + (right - free).detach(), statistics


def _open_where_constant(
    x: Any, weight: Any, bias: Any, eps: float, act: Act, residual: Any = None
) -> tuple[Tensor, Tensor]:
    """Nothing is limited in channels that do not vary."""
    right, statistics = batch_norm_act(x, weight, bias, eps, act, residual)
    free, _ = batch_norm_act(x, weight, bias, eps, Act(), residual)
    return torch.where((EMPTY_FILTERS > 0).view(1, -1, 1, 1), free, right), statistics


def _without_eps(x: Any, weight: Any, bias: Any, eps: float, *rest: Any) -> tuple[Tensor, Tensor]:
    """Which divides by zero where all elements are the same."""
    right, statistics = batch_norm_act(x, weight, bias, eps, *rest)
    return right + torch.where(statistics[1] < 1e-9, float("nan"), 0.0).view(1, -1, 1, 1), statistics


def _other_statistics(row: int, change: Callable[[Tensor], Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
    def wrong(*args: Any) -> tuple[Tensor, Tensor]:
        result, statistics = batch_norm_act(*args)
        statistics = statistics.clone()
        statistics[row] = change(statistics[row])
        return result, statistics

    return wrong


EMPTY = torch.tensor([2, 5, 11])
EMPTY_FILTERS = torch.zeros(16).index_fill(0, EMPTY, 1.0)

WRONG: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "a bias is lost": lambda x, weight, bias, *rest: batch_norm_act(x, weight, bias * 0.9, *rest),
    "another eps": lambda x, weight, bias, eps, *rest: batch_norm_act(x, weight, bias, 2 * eps + 1e-2, *rest),
    "no eps where the variance is zero": _without_eps,
    "no limits": lambda x, weight, bias, eps, act, *rest: batch_norm_act(x, weight, bias, eps, Act(), *rest),
    "no upper limit": lambda x, weight, bias, eps, act, *rest: batch_norm_act(x, weight, bias, eps, Act(0.0), *rest),
    "no sum": lambda x, weight, bias, eps, act, residual=None: batch_norm_act(x, weight, bias, eps, act),
    "another channel": lambda x, *rest: batch_norm_act(x.roll(1, 1), *rest),
    "gradients pass the limits": _ungated,
    "constant channels are not limited": _open_where_constant,
    "gradients of the input": _wrong_gradient("input", lambda gradient: gradient * 1.1),
    "gradients of the input, in one image": _wrong_gradient("input", _without(3)),
    "gradients of the weight": _wrong_gradient("weight", lambda gradient: gradient * 0.9),
    "gradients of the weight, in an ordinary channel": _wrong_gradient("weight", _without(3)),
    "gradients of the weight, in constant channels": _wrong_gradient("weight", _without(EMPTY)),
    "gradients of the bias": _wrong_gradient("bias", lambda gradient: -gradient),
    "gradients of the bias, in an ordinary channel": _wrong_gradient("bias", _without(3)),
    "gradients of the bias, in constant channels": _wrong_gradient("bias", _without(EMPTY)),
    "gradients of what is added": _wrong_gradient("residual", lambda gradient: gradient * 0.8),
    "means": _other_statistics(0, torch.zeros_like),
    "means of constant channels": _other_statistics(0, _without(EMPTY)),
    "variances": _other_statistics(1, lambda variances: variances * 0.9),
    "variances of constant channels": _other_statistics(1, lambda variances: variances + EMPTY_FILTERS),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("fresh", [True, False])
def test_wrong_graphs_are_refused(prefer: Prefer, monkeypatch: pytest.MonkeyPatch, wrong: str, fresh: bool) -> None:
    model, x = pruned(0.8, 1)
    with torch.no_grad():
        for conv in model.convs:
            conv.weight[EMPTY] = 0
        for norm in model.norms:
            norm.weight.uniform_(0.5, 1.5)
            if not fresh or "bias is lost" in wrong:
                norm.bias.normal_(0, 0.5)
    prefer(FINE, GRAPH, LAYERS)
    monkeypatch.setattr(norm_module, "batch_norm_act", WRONG[wrong])
    assert "results differed" in " ".join(sk.convert(model, x * 3).notes)
    assert not list(graphs_of(model))
