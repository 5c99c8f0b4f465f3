# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What converted layers in blocks compute: in graphs, between chains, in training."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from conversion_checks import (
    ALL_CHAINS,
    BLOCK,
    CHAINS,
    DROPPED,
    FINE,
    GRAPH,
    LAYERS,
    Prefer,
    assert_agree,
    graph_of,
)
from test_convert_blocks import SMALL, fused_blocks, made, with_kernels
from test_subclasses import Casts, Same
from torch import Tensor, nn
from training_graph_checks import Stack, assert_steps_alike

import sparsekernels as sk
from sparsekernels import _library
from sparsekernels.conversion import candidates
from sparsekernels.conversion.graph import fused_by_format
from sparsekernels.ops.convolution import Geometry
from sparsekernels.ops.sparse_conv2d import reference
from sparsekernels.pruning import prune_, prune_blocks_

pytestmark = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")


def in_blocks(*layers: nn.Module) -> nn.Sequential:
    model = nn.Sequential(*layers).eval()
    prune_blocks_(model, SMALL, 0.7)
    return model


@with_kernels
def test_writes_are_seen(prefer: Prefer) -> None:
    model, x = made("sequential")
    dense = copy.deepcopy(model)
    prefer(BLOCK, GRAPH)
    sk.convert(model, x)
    layer: Any = model[0]
    place = tuple((~layer.mask).nonzero()[0].tolist())
    for write in (
        lambda net: net[0].weight.data.mul_(1.5),
        lambda net: net[0].weight.data.__setitem__(place, 2.0),
        lambda net: net[1].running_mean.data.add_(0.1),
        lambda net: net[0].weight.data.__setitem__(place, 0.0),
    ):
        for net in (model, dense):
            write(net)
        with torch.no_grad():
            if layer.outside() and not layer._guard.warned:
                with pytest.warns(UserWarning, match="1 elements of its weight that it would leave out"):
                    torch.testing.assert_close(model(x), dense(x), rtol=1e-4, atol=1e-4)
            for _ in range(3):
                torch.testing.assert_close(model(x), dense(x), rtol=1e-4, atol=1e-4)
    assert layer._guard.warned
    layer.set_pattern(torch.rand_like(layer.weight) < 0.05)
    assert layer.pattern.block_size == SMALL
    for _ in range(3):
        assert_agree(model, sk_dense(model), x)


def sk_dense(model: nn.Module) -> nn.Module:
    dense = copy.deepcopy(model)
    sk.revert(dense)
    return dense


@with_kernels
def test_chains_hold_what_they_can_run(prefer: Prefer) -> None:
    layers = [nn.Conv2d(8, 8, 3, padding=1) for _ in range(5)]
    model = nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU()))).eval()
    for layer in (*layers[:2], *layers[3:]):
        prune_(nn.Sequential(layer), "random", 0.7)
    prune_blocks_(nn.Sequential(layers[2]), SMALL, 0.7)
    dense, x = copy.deepcopy(model), torch.randn(4, 8, 9, 9)
    prefer(BLOCK, FINE, CHAINS)
    report = sk.convert(model, x)
    assert [row.decision for row in report.layers] == [FINE, FINE, BLOCK, FINE, FINE]
    called = [name.rpartition("_")[0] for name in graph_of(model)]
    assert called == [f"call_module:sparsekernels_{name}" for name in ("chain", "fused", "chain")]
    assert_agree(model, dense, x)
    assert not candidates.may_chain(BLOCK, layers[2], candidates.sparse_layer(layers[2], BLOCK, SMALL))
    model = in_blocks(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    prefer(BLOCK, CHAINS, ALL_CHAINS, GRAPH)
    report = sk.convert(model, x)
    assert not any("chain" in name for name in graph_of(model))
    assert_agree(model, sk_dense(model), x)


@with_kernels
def test_dead_channels_stay(prefer: Prefer) -> None:
    """Of layers in blocks, and of what reads them."""
    model = in_blocks(nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1))
    with torch.no_grad():
        model[0].weight[4:12] = 0
        model[0].bias.fill_(0.5)
    dense, x = copy.deepcopy(model), torch.randn(3, 8, 9, 9)
    prefer(BLOCK, GRAPH)
    report = sk.convert(model, x)
    assert {row.decision for row in report.layers} == {BLOCK}
    assert {row.omitted for row in report.layers} == {(0, 0)}
    assert_agree(model, dense, x)
    sk.revert(model)
    prefer(FINE, GRAPH)
    report = sk.convert(model, x, decisions=[FINE, DROPPED])
    assert report.layers[0].omitted == (8, 0)


@with_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes_layouts_and_other_calls(prefer: Prefer, dtype: torch.dtype) -> None:
    model = in_blocks(nn.Conv2d(8, 12, 3, padding=1), nn.ReLU6(), nn.Conv2d(12, 9, 3, stride=2), nn.Flatten(0, 1))
    model.to(dtype)
    dense, x = copy.deepcopy(model), torch.randn(3, 8, 7, 8).to(dtype)
    prefer(BLOCK, GRAPH)
    sk.convert(model, x)
    for given in (x, x.contiguous(memory_format=torch.channels_last), x[:1], x[:, :, :5], torch.cat([x, x])):
        assert_agree(model, dense, given)
    tolerance = {"rtol": 0.03, "atol": 0.03} if dtype != torch.float32 else {"rtol": 1e-4, "atol": 1e-4}
    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(model(leaf), dense(leaf), **tolerance)


@with_kernels
@pytest.mark.parametrize("way", [GRAPH, LAYERS])
@pytest.mark.parametrize("block", [(32, 32), (16, 16), (16, 2), (16, 1)], ids=str)
def test_bfloat16(prefer: Prefer, block: tuple[int, int], way: str) -> None:
    """By kernels for blocks, where this processor has such."""
    first, last = nn.Conv2d(40, 64, 3, padding=1), nn.Linear(64, 72)
    model = nn.Sequential(
        *(first, nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 64, 3, stride=2, bias=False), nn.ReLU6()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), last),
    ).eval()
    prune_blocks_(model, block, 0.7)
    model.to(torch.bfloat16)
    dense, x = copy.deepcopy(model), torch.randn(5, 40, 9, 8).bfloat16()
    prefer(BLOCK, way)
    report = sk.convert(model, x)
    assert {row.block for row in report.layers} == {block}
    for given in (x, x[:1], x.contiguous(memory_format=torch.channels_last)):
        assert_agree(model, dense, given)
    seed = torch.randn(5, 72).bfloat16()
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    for one, leaf in zip((model, dense), leaves, strict=True):
        one(leaf).backward(seed)
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad, rtol=0.1, atol=0.02)


@with_kernels
def test_linear_layers_by_rows(prefer: Prefer) -> None:
    """Sequences, a residual, and numbers of rows for which the dense weight is read."""
    model, x = made("head")
    dense = copy.deepcopy(model)
    prefer(BLOCK, GRAPH)
    sk.convert(model, x)
    for fused in fused_blocks(model):
        fused.dense_rows, fused._dense = (1, 4), fused.weight
    for rows in (1, 3, 5, 40):
        assert_agree(model, dense, torch.randn(rows, 32))


@with_kernels
@pytest.mark.parametrize("way", [GRAPH, LAYERS])
def test_subclasses(prefer: Prefer, way: str) -> None:
    model = in_blocks(
        *(Same(8, 32, 3, stride=2, bias=False), nn.BatchNorm2d(32), nn.ReLU(), Same(32, 8, 3), nn.ReLU6()),
        *(nn.Conv2d(8, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), Casts(8, 12)),
    )
    dense, x = copy.deepcopy(model), torch.randn(3, 8, 8, 8)
    prefer(BLOCK, way)
    report = sk.convert(model, x)
    assert {row.decision for row in report.layers} == {BLOCK}
    assert bool(fused_blocks(model)) is (way == GRAPH)
    for given in (x, torch.randn(2, 8, 7, 6), torch.randn(2, 8, 7, 6)):
        assert_agree(model, dense, given)


@with_kernels
@pytest.mark.parametrize("way", [GRAPH, LAYERS])
def test_training(prefer: Prefer, way: str) -> None:
    model, x = Stack().train(), torch.randn(6, 8, 9, 11)
    prune_blocks_(model, SMALL, 0.7)
    dense, wide = copy.deepcopy(model), copy.deepcopy(model).double()
    prefer(BLOCK, way)
    report = sk.convert(model, x)
    assert {row.verdict for row in report.layers} == {"block 4x4"}
    for step in range(3):
        assert_steps_alike(model, dense, wide, x + step)


@with_kernels
def test_the_kernel_is_given_all(prefer: Prefer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values in the order of blocks, folded parameters, the residual and the limits."""
    called: list[Any] = []

    def forward(
        input: Tensor,
        pattern: sk.BlockSparse,
        values: Tensor,
        bias: Tensor | None,
        geometry: Geometry,
        residual: Tensor | None,
        low: float | None,
        high: float | None,
        takes_residual: bool,
    ) -> Tensor:
        called.append((residual is not None, low, high))
        weight = pattern.with_values(values).to_dense().view(*pattern.shape[:2], geometry.kernel_h, geometry.kernel_w)
        return reference.dense_forward(input, weight, bias, geometry, residual, low, high)

    monkeypatch.setattr(fused_by_format, "fused_forward", forward)
    for name, expected in (
        ("residual", {(False, 0.0, None), (True, 0.0, None), (False, None, None)}),
        ("limits", {(False, 0.0, 6.0), (False, None, None)}),
        ("head", {(False, 0.0, None), (True, None, None), (False, None, None)}),
    ):
        model, x = made(name)
        dense = copy.deepcopy(model)
        prefer(BLOCK, GRAPH)
        sk.convert(model, x)
        called.clear()
        assert_agree(model, dense, x)
        assert expected <= set(called), name
