# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Export to ONNX, which has no sparse operators: the layers are what they replace there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conv1d_of_transformers import Conv1D
from torch import nn

import sparsekernels as sk
from sparsekernels.pruning import prune_


def _pruned(layer: Any) -> Any:
    prune_(layer, "random", 0.5)
    with torch.no_grad():
        layer.weight[0] = 0
    return layer


def _transposed() -> Any:
    layer = Conv1D(5, 6)
    with torch.no_grad():
        layer.weight.mul_(torch.rand_like(layer.weight) < 0.5)
    return layer


def _with_dense_grad() -> Any:
    """Its weight has nonzeros which are not read."""
    layer = sk.nn.SparseLinear.sharing(_pruned(nn.Linear(6, 5)), format="unstructured")
    layer.dense_grad = True
    with torch.no_grad():
        layer.weight += 1
    return layer


LAYERS: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "linear": (lambda: sk.nn.SparseLinear.sharing(_pruned(nn.Linear(6, 5))), (3, 6)),
    "dense_grad": (_with_dense_grad, (3, 6)),
    "convolution": (lambda: sk.nn.SparseConv2d.sharing(_pruned(nn.Conv2d(4, 4, 3, groups=2))), (2, 4, 5, 5)),
    "padded": (
        lambda: sk.nn.SparseConv2d.sharing(_pruned(nn.Conv2d(4, 4, 3, padding=1, padding_mode="replicate"))),
        (2, 4, 5, 5),
    ),
    "sequence": (
        lambda: sk.nn.SparseConv1d.sharing(_pruned(nn.Conv1d(4, 4, 3, padding=1, padding_mode="reflect"))),
        (2, 4, 9),
    ),
    "transposed": (lambda: sk.nn.SparseTransposedLinear.sharing(_transposed()), (3, 6)),
    "linear without channels": (lambda: sk.nn.ChannelDroppedLinear.sharing(_pruned(nn.Linear(6, 5))), (3, 6)),
    "convolution without channels": (
        lambda: sk.nn.ChannelDroppedConv2d.sharing(_pruned(nn.Conv2d(4, 4, 3, padding=1))),
        (2, 4, 5, 5),
    ),
    "norm": (lambda: sk.nn.RMSNorm(6), (3, 6)),
    "norm of a cast": (lambda: sk.nn.RMSNorm(6, cast="before", unit_offset=True), (3, 6)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_no_operator_of_ours_is_exported(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, shape = LAYERS[name]
    layer, x = make().eval(), torch.randn(shape)
    with torch.no_grad():
        expected = layer(x)
        assert "sparsekernels" in str(torch.export.export(layer, (x,)).graph)
        monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
        program = torch.export.export(layer, (x,))
        assert "sparsekernels" not in str(program.graph)
        torch.testing.assert_close(program.module()(x), expected)
        assert torch.equal(layer(x), expected)  # a call beside goes its own way


@pytest.mark.parametrize("name", LAYERS)
def test_onnx_runtime_gives_the_same(name: str, tmp_path: Any) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    make, shape = LAYERS[name]
    layer, x = make().eval(), torch.randn(shape)
    torch.onnx.export(layer, (x,), tmp_path / "layer.onnx", dynamo=True)
    session = runtime.InferenceSession(tmp_path / "layer.onnx")
    (result,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(result), layer(x).detach(), rtol=1e-4, atol=1e-5)
