# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What stays of a conversion when the model moves to another dtype or device, as docs/gpu.md has it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from conversion_checks import FINE, GRAPH, Prefer, run
from torch import Tensor, nn

import sparsekernels as sk
from sparsekernels.conversion.graph.base import Graph
from sparsekernels.pruning import prune_


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """The dtypes of inputs that a graph has answered."""
    answered: list[torch.dtype] = []
    run_plan = Graph._run

    def counted(self: Graph, plan: Any, args: tuple[Any, ...]) -> Any:
        answered.append(args[0].dtype)
        return run_plan(self, plan, args)

    monkeypatch.setattr(Graph, "_run", counted)
    return answered


def net() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8)).eval()
    prune_(model, "random", 0.8)
    return model


def converted(prefer: Prefer) -> tuple[Any, nn.Module, Tensor]:
    model, x = net(), torch.randn(3, 8, 4, 4)
    dense = copy.deepcopy(model)
    prefer(FINE, GRAPH)
    sk.convert(model, x)
    return model, dense, x


def assert_right(model: nn.Module, dense: nn.Module, x: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(run(model, x), run(dense, x), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_another_dtype_the_layers_run_and_back_in_its_own_the_graph(
    dtype: torch.dtype, prefer: Prefer, runs: list[torch.dtype]
) -> None:
    model, dense, x = converted(prefer)
    rows = model[4].dense_rows
    runs.clear()
    assert_right(model, dense, x, 1e-5)
    assert runs == [torch.float32]
    runs.clear()
    for _ in range(3):
        assert_right(model.to(dtype), dense.to(dtype), x.to(dtype), 5e-2)
    assert runs == []
    assert [type(model[place]) for place in (0, 4)] == [sk.nn.SparseConv2d, sk.nn.SparseLinear]
    assert {model[0].pattern.dtype, model[4].pattern.dtype} == {dtype}
    assert model[4].dense_rows == rows
    model.float(), dense.float()
    for _ in range(3):
        assert_right(model, dense, x, 1e-5)
    assert runs == [torch.float32] * 2  # the first call finds other parameters, which the second has folded


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_another_device_the_layers_run(prefer: Prefer, runs: list[torch.dtype]) -> None:
    model, dense, x = converted(prefer)
    runs.clear()
    for _ in range(3):
        assert_right(model.to("cuda"), dense.to("cuda"), x.to("cuda"), 2e-2)
    assert runs == []
    assert str(model[0].pattern.device) == "cuda:0"
    for _ in range(3):
        assert_right(model.to("cpu"), dense.to("cpu"), x, 1e-5)
    assert runs == [torch.float32] * 2
