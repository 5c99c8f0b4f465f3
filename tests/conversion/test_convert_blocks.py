# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""convert offers blocks where the zeros of a layer lie in such and there are kernels for them."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conversion_checks import (
    BLOCK,
    CHAINS,
    DENSE,
    DROPPED,
    FINE,
    GRAPH,
    LAYERS,
    Prefer,
    assert_agree,
    graph_of,
    graphs_of,
)
from conversion_nets import NETS, make
from torch import Tensor, nn

import sparsekernels as sk
from sparsekernels import _library
from sparsekernels.conversion import blocks
from sparsekernels.conversion import decide as decide_module
from sparsekernels.conversion.graph.fused_by_format import FusedBlocks
from sparsekernels.conversion.measure import Times
from sparsekernels.conversion.survey import Layer
from sparsekernels.pruning import prune_, prune_blocks_

pytestmark = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")

SMALL = 4, 4
LAST = "graph in channels_last"


with_kernels = pytest.mark.usefixtures("block_kernels")


def made(name: str, sparsity: float = 0.7) -> tuple[nn.Module, Tensor]:
    model, x = make(name, 0.0)
    prune_blocks_(model, SMALL, sparsity)
    return model, x


def fused_blocks(model: nn.Module) -> list[FusedBlocks]:
    found = [one for graph in graphs_of(model) for one in graph.prepare().fused]
    return [one for one in found if isinstance(one, FusedBlocks)]


@with_kernels
@pytest.mark.parametrize("way", [GRAPH, LAST, LAYERS])
@pytest.mark.parametrize("name", [name for name in NETS if name != "choosing"])
def test_whole_models(prefer: Prefer, name: str, way: str) -> None:
    model, x = made(name)
    dense, modules = copy.deepcopy(model), dict(model.named_modules())
    prefer(BLOCK, way)
    report = sk.convert(model, x)
    if way == LAST and name == "shared sum":  # a sum is written to that may be seen through a view
        assert "graph in channels_last was rejected: the modules run" in str(report)
        return
    assert report.way.value == ("as before" if way == LAST and x.dim() < 4 else way)
    if report.way.value != way:
        return  # there are no images
    assert DENSE not in {row.decision for row in report.layers}  # also of 12 outputs in 2 groups, by elements
    assert {row.block for row in report.layers if row.decision == BLOCK} == {SMALL}
    assert_agree(model, dense, x)
    layers = [module for module in model.modules() if isinstance(module, sk.nn.SparseConv2d | sk.nn.SparseLinear)]
    assert len(layers) == len(report.layers)
    assert all((layer.format, layer.pattern.block_size) == (BLOCK, SMALL) for layer in layers)
    assert {id(one.parts[0]) for one in fused_blocks(model)} == (
        set() if way == LAYERS else {id(one) for one in layers}
    )
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_agree(other, dense, x)
    sk.revert(model)
    assert dict(model.named_modules()) == modules
    assert_agree(model, dense, x)


@with_kernels
def test_the_report_has_the_size(prefer: Prefer) -> None:
    model, x = made("sequential")
    prefer(BLOCK, GRAPH)
    report = sk.convert(model, x)
    assert "  block 4x4" in str(report)
    row = json.loads(report.to_json())["layers"][0]
    assert (row["decision"], row["block"]) == (BLOCK, [4, 4])


@with_kernels
def test_measured(clock: Prefer) -> None:
    model, x = made("sequential")
    clock(BLOCK, GRAPH, FINE, DENSE, LAYERS)
    report = sk.convert(model, x)
    assert {row.verdict for row in report.layers} == {"block 4x4"}
    assert report.layers[0].reason.startswith("measured to be faster, fine-grained would be")
    model, x = made("sequential")
    clock(FINE, GRAPH, BLOCK, DENSE, LAYERS)
    report = sk.convert(model, x)
    assert {row.decision for row in report.layers} == {FINE}
    assert "block 4x4 would be" in report.layers[0].reason


def test_without_kernels_blocks_run_by_elements(clock: Prefer, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the kernels of the fine-grained candidate, which is not timed beside that."""
    monkeypatch.setattr(blocks, "has_block_kernel", lambda device, dtype, block: False)
    model, x = made("sequential")
    clock(BLOCK, GRAPH, FINE, DENSE, LAYERS)
    report = sk.convert(copy.deepcopy(model), x)
    assert report.way.value == GRAPH
    for row in report.layers:
        assert row.verdict == "block 4x4"
        assert str(row.ruled_out[FINE]) == "its blocks, few zeros among them, run on the same kernels"
        assert FINE not in row.gains
    report = sk.convert(model, x, decisions=[FINE, DROPPED])
    assert {row.decision for row in report.layers} == {FINE}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_blocks_in_other_dtypes(prefer: Prefer, dtype: torch.dtype) -> None:
    """With no more than there is: the same fusion, chains and channels as single elements have."""
    model = nn.Sequential(
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 16, 1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 16)),
    ).eval()
    prune_blocks_(model, (4, 4), 0.7)
    with torch.no_grad():
        model[0].weight[8:12] = 0
        model[1].bias[8:12] = 0
        model[1].running_mean[8:12] = model[0].bias[8:12]
    model.to(dtype)
    dense, x = copy.deepcopy(model), torch.randn(4, 16, 10, 9).to(dtype)
    prefer(BLOCK, CHAINS)
    report = sk.convert(model, x)
    assert report.way.value == CHAINS
    assert {row.verdict for row in report.layers} == {"block 4x4"}
    assert (report.layers[0].omitted[0], report.layers[1].omitted[1]) == (4, 4)
    fused = fused_blocks(model)
    assert len(fused) == 4
    assert {type(one.pattern) for one in fused} == {sk.Unstructured}
    assert any("chain" in name for name in graph_of(model))
    assert_agree(model, dense, x)
    layer: Any = model[4]
    assert layer.pattern.block_size == SMALL
    layer.set_pattern(torch.rand_like(layer.weight) < 0.05)  # which is followed
    for _ in range(3):
        assert_agree(model, reverted(model), x)


def reverted(model: nn.Module) -> nn.Module:
    dense = copy.deepcopy(model)
    sk.revert(dense)
    return dense


def test_on_other_devices_blocks_have_no_kernels() -> None:
    weight = SimpleNamespace(device=torch.device("cuda"), dtype=torch.float32, size=lambda dim: 64)
    module: Any = SimpleNamespace(weight=weight)
    obstacle = blocks.block_obstacle(Layer("", module, None))
    assert str(obstacle) == "for float32 weights in blocks there are no kernels on cuda"


def test_what_kernels_are_asked_for(prefer: Prefer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the dtype that is computed in, and of the block sizes that are looked for."""
    asked: set[Any] = set()

    def has_block_kernel(device: torch.device, dtype: torch.dtype, block: tuple[int, int]) -> bool:
        asked.add((device.type, dtype, block))
        return block == SMALL

    monkeypatch.setattr(blocks, "has_block_kernel", has_block_kernel)
    prefer(BLOCK, LAYERS)
    for dtype, autocast, expected in (
        (torch.float32, False, torch.float32),
        (torch.bfloat16, False, torch.bfloat16),
        (torch.float32, True, torch.bfloat16),
    ):
        asked.clear()
        model = nn.Sequential(nn.Linear(32, 32), nn.ReLU()).eval()
        prune_blocks_(model, SMALL, 0.8)
        model.to(dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            report = sk.convert(model, torch.randn(5, 32, dtype=dtype))
            assert report.layers[0].verdict == "block 4x4"
        assert asked == {("cpu", expected, block) for block in blocks.BLOCKS}


SIZES = [((32, 32), (32, 32)), ((64, 64), (32, 32)), ((16, 16), (16, 16)), ((48, 16), (16, 16)), ((16, 2), (16, 2))]
SIZES += [((16, 1), (16, 1)), ((32, 1), (16, 1)), ((32, 6), (16, 2)), ((4, 4), (4, 4)), ((8, 8), (4, 4))]


@with_kernels
@pytest.mark.parametrize(("pruned", "found"), SIZES, ids=str)
@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.9])
def test_the_most_promising_block(pruned: tuple[int, int], found: tuple[int, int], sparsity: float) -> None:
    for module in (nn.Linear(384, 768), nn.Conv2d(192, 192, 3)):
        prune_blocks_(nn.Sequential(module), pruned, sparsity)
        assert blocks.block_of(module) == found
        with torch.no_grad():
            module.weight[torch.rand_like(module.weight) < 0.05] = 0
        assert blocks.block_of(module) == found


@with_kernels
@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.9])
def test_zeros_in_no_blocks(prefer: Prefer, sparsity: float) -> None:
    for pruned in ((1, 1), (2, 2), (8, 1), (1, 16)):
        module = nn.Linear(192, 192)
        prune_blocks_(nn.Sequential(module), pruned, sparsity)
        assert blocks.block_of(module) is None, pruned
    prune_(module, "random", 0.9)
    prefer(BLOCK, FINE, LAYERS)
    (row,) = sk.convert(nn.Sequential(module).eval(), torch.randn(3, 192)).layers
    assert row.decision == FINE
    assert str(row.ruled_out[BLOCK]) == "its nonzeros lie in no blocks of 32x32, 16x16, 16x2, 16x1, 4x4"


@with_kernels
def test_groups_and_ends() -> None:
    """A block row keeps to a group; blocks at the ends are smaller, and count for what they have."""
    for outputs, found in ((64, (32, 32)), (48, (16, 16)), (8, (4, 4)), (6, None)):
        module = nn.Conv2d(128, 2 * outputs, 3, groups=2)
        with torch.no_grad():
            module.weight[:outputs, :, :, 0] = 0
            module.weight[outputs:, :, :, 2] = 0
        assert blocks.block_of(module) == found, outputs
    module = nn.Linear(45, 70)
    prune_blocks_(nn.Sequential(module), (32, 32), 0.5)
    assert blocks.block_of(module) == (32, 32)


@with_kernels
def test_few_zeros_and_none_left() -> None:
    """The same is said once of all that it cannot become."""
    whole, empty = nn.Linear(8, 8), nn.Linear(8, 8)
    nn.init.zeros_(empty.weight)
    with torch.no_grad():
        whole.weight[0, 0] = 0
    report = sk.convert(nn.Sequential(whole, empty).eval(), torch.randn(3, 8), decisions=[FINE, BLOCK])
    assert "not fine-grained or block: all of its weights are zero" in report.layers[1].reason


@with_kernels
def test_alike_are_those_of_the_same_block(clock: Prefer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though they have as many nonzeros, and no empty channels."""
    clock(BLOCK, GRAPH)
    fake, measured = decide_module.times_of, []

    def counted(calls: Mapping[str, Callable[[], object]], effort: Any) -> Times:
        measured.append(calls)
        return fake(calls, effort)

    monkeypatch.setattr(decide_module, "times_of", counted)
    model = nn.Sequential(*(nn.Conv2d(32, 32, 1) for _ in range(3))).eval()
    for layer, size in zip(model, (16, 4, 4), strict=True):
        place = torch.arange(32) // size % 2
        with torch.no_grad():
            layer.weight.mul_((place[:, None] == place)[:, :, None, None])
    report = sk.convert(model, torch.randn(2, 32, 6, 6))
    assert [row.verdict for row in report.layers] == ["block 16x16", "block 4x4", "block 4x4"]
    assert [row.measured_on for row in report.layers] == [None, None, "1"]
    assert len(measured) == 2
