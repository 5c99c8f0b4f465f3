# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Dead channels, unused or all zero, are left out."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from conversion_checks import DENSE, DROPPED, FINE, GRAPH, LAYERS, Prefer, assert_agree, graphs_of, run
from conversion_nets import make
from torch import nn

import sparsekernels as sk
from sparsekernels import _library
from sparsekernels.bench.models import calibrate_
from sparsekernels.conversion.report import Ground
from sparsekernels.pruning import prune_

pytestmark = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")


def chain(padding: int = 1) -> nn.Module:
    """Everything that keeps channels apart stands between two layers somewhere."""
    return nn.Sequential(
        nn.Conv2d(4, 12, 3, padding=padding), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(12, 12, 3, padding=padding), nn.ReLU(),
        nn.Conv2d(12, 12, 3, padding=padding, bias=False), nn.BatchNorm2d(12), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(48, 12), nn.ReLU(), nn.Linear(12, 6),
    ).eval()  # fmt: skip


@pytest.mark.parametrize("decision", [DENSE, FINE, DROPPED])
@pytest.mark.parametrize("padding", [0, 1])
def test_channels_are_left_out_along_chains(prefer: Prefer, padding: int, decision: str) -> None:
    """Filters that are zero, whose constants are or are not absorbed; channels that are unused."""
    model, x = chain(padding), torch.randn(3, 4, 16, 16)
    calibrate_(model, x)
    with torch.no_grad():
        for index in (0, 4, 6, 10):
            model[index].weight[:4] = 0
        model[1].bias[:2], model[1].bias[2:4] = -3, 3  # constants of zero, and others
        model[4].bias[:2], model[4].bias[2:4] = -3, 3
        model[6].weight[:, 8:] = 0
        model[10].weight[:, 40:] = 0  # the last two channels, four values each
        model[12].weight[:, 5] = 0
    prune_(model, "random", 0.5)
    dense = copy.deepcopy(model)
    state = dict(model.named_modules())
    prefer(decision, GRAPH)
    report = sk.convert(model, x)
    assert report.converted
    assert_agree(model, dense, x)
    (graph,) = graphs_of(model)
    first, second, third, head, last = graph.prepare().fused
    lost = {name: set(range(12)) - set(one.outputs.tolist()) for name, one in (("first", first), ("second", second))}
    # where images are padded with zeros, a channel that is 3 everywhere is not 3 at the border
    assert {0, 1} <= lost["first"]
    assert bool({2, 3} <= lost["first"]) == (padding == 0)
    assert {0, 1, 8, 9, 10, 11} <= lost["second"]
    assert {0, 1, 2, 3, 10, 11} == set(range(12)) - set(third.outputs.tolist())
    assert head.inputs.numel() == 4 * third.outputs.numel()
    assert {0, 1, 2, 3, 5} <= set(range(12)) - set(head.outputs.tolist())
    assert last.outputs is None
    assert "the graph leaves out" in report.layers[1].reason
    for row in report.layers:
        if any(row.omitted):
            assert (row.ground is Ground.GRAPH) == row.reason.startswith("dense by itself")
            assert row.ground is Ground.GRAPH or decision != DENSE
    with torch.no_grad():
        for module in (model, dense):
            module[4].weight[1] = 0.1
            module[6].weight[5, 9] = 0.2
    if decision == DENSE:
        for _ in range(2):
            assert_agree(model, dense, x)
        assert 1 in second.outputs
    sk.revert(model)
    assert dict(model.named_modules()) == state


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_channels_that_are_no_numbers_stay(prefer: Prefer, value: float) -> None:
    """An infinite bias times a zero is no number in the dense model: nor is it here, in the same places."""
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)).eval()
    with torch.no_grad():
        model[0].weight[:3] = 0
    dense, x = copy.deepcopy(model), torch.randn(2, 8, 9, 9)
    prefer(DROPPED, GRAPH)
    sk.convert(model, x)
    assert list(graphs_of(model))
    for module in (model, dense):  # found out by convert itself, if it had been there before
        with torch.no_grad():
            module[0].bias[0] = value
    assert_agree(model, dense, x)


def test_channels_that_a_sum_needs_stay(prefer: Prefer) -> None:
    model, x = make("residual")
    with torch.no_grad():
        for block in model:
            block.conv2.weight[:4], block.shortcut[0].weight[:6] = 0, 0
            block.conv1.weight[3:5] = 0
            block.bn1.bias[3:5] = -5
    dense = copy.deepcopy(model)
    prefer(FINE, GRAPH)
    sk.convert(model, x)
    assert_agree(model, dense, x)
    (graph,) = graphs_of(model)
    for one in graph.prepare().fused:
        layer = one.parts[0]
        if layer.kernel_size == (3, 3) and layer.bias is None:  # conv1: inside of the block
            assert set(range(12)) - set(one.outputs.tolist()) == {3, 4}
        else:
            assert one.outputs is None


def test_a_network_without_filters(prefer: Prefer) -> None:
    model, x = chain(), torch.randn(2, 4, 16, 16)
    with torch.no_grad():
        for module in model:
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.weight.zero_()
    dense = copy.deepcopy(model)
    prefer(DROPPED, GRAPH)
    sk.convert(model, x)
    torch.testing.assert_close(run(model, x), run(dense, x))


def test_decisions_are_kept_to(prefer: Prefer) -> None:
    model, x = chain(), torch.randn(2, 4, 16, 16)
    with torch.no_grad():
        for index in (0, 4, 6, 10):
            model[index].weight[:4] = 0
    prune_(model, "random", 0.5)
    prefer(FINE, DROPPED, GRAPH)
    assert {row.decision for row in sk.convert(model, x, decisions=[FINE]).layers} == {FINE}
    (graph,) = graphs_of(model)
    assert not graph.prepare().links
    assert {row.decision for row in sk.convert(model, x, decisions="channel-dropped").layers} == {DROPPED}
    assert not sk.convert(model, x, decisions=[]).converted
    with pytest.raises(ValueError, match="expected decisions of 'dense', 'fine-grained', .*, got 'sparse'"):
        sk.convert(model, x, decisions=["sparse"])


@pytest.mark.parametrize("way", [GRAPH, LAYERS])
def test_inputs_of_another_size(prefer: Prefer, way: str) -> None:
    """They raise, as they do in the dense model, though only some of the channels are read."""
    convolutions = nn.Sequential(nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3)).eval()
    linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 8)).eval()
    with torch.no_grad():
        convolutions[0].weight[:, 4:] = 0
        linear[1].weight[:, 32:] = 0
    prefer(DROPPED, way)
    for model, good, bad in (
        (convolutions, (2, 8, 16, 16), [(2, 20, 16, 16), (2, 5, 16, 16), (2, 3, 16, 16)]),
        (linear, (2, 1, 8, 8), [(2, 1, 8, 9), (2, 1, 6, 6), (2, 2, 8, 8)]),
    ):
        dense = copy.deepcopy(model)
        assert sk.convert(model, torch.randn(good)).converted
        for sizes in bad:
            for one in (dense, model, copy.deepcopy(model).train()):
                with pytest.raises((RuntimeError, ValueError), match=r"size|shape|channels|features"), torch.no_grad():
                    one(torch.randn(sizes))
