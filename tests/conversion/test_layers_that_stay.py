# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Layers that cannot answer what convert asks, beside others: they get a row with a reason, the others convert."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from conversion_checks import DENSE, FINE, GRAPH, LAYERS, Prefer, assert_agree
from torch import Tensor, nn

import sparsekernels as sk
from sparsekernels import _library
from sparsekernels.pruning import prune_

pytestmark = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")


class _Held(Tensor):
    """A quantized or distributed tensor: it knows how to multiply, and nothing else."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> Any:
        return Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(function)
        inner = [one.inner if isinstance(one, _Held) else one for one in args]
        if name.startswith(("aten.detach", "aten.t.")):
            return cls(function(*inner))
        if name.startswith(("aten.addmm", "aten.mm", "aten.linear")):
            return function(*inner)
        raise NotImplementedError(name)


def _held(layer: nn.Linear) -> None:
    layer.weight = nn.Parameter(_Held(layer.weight.detach()), requires_grad=False)


def _held_bias(layer: nn.Linear) -> None:
    layer.bias = nn.Parameter(_Held(layer.bias.detach()), requires_grad=False)


def _subclass(layer: nn.Linear) -> None:
    layer.weight = type("Special", (nn.Parameter,), {})(layer.weight.detach())


def _csr(layer: nn.Linear) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that CSR tensors are in beta
        layer.weight = nn.Parameter(layer.weight.detach().to_sparse_csr(), requires_grad=False)


@pytest.mark.parametrize(
    ("change", "training", "words"),
    [
        (_held, False, "its weight is a _Held"),
        (_held, True, "its weight is a _Held"),
        (_held_bias, False, "its bias is a _Held"),
        (_held_bias, True, "its bias is a _Held"),
        (_subclass, False, "its weight is a Special"),
        (_csr, False, "its weight is stored as torch.sparse_csr; torch.nn.Parameter(weight.to_dense())"),
        (_csr, True, "its weight is stored as torch.sparse_csr; torch.nn.Parameter(weight.to_dense())"),
    ],
)
def test_weights_of_other_kinds(prefer: Prefer, change: Any, training: bool, words: str) -> None:
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))
    prune_(model, "random", 0.9)
    change(model[2])
    x = torch.randn(8, 32)
    model.train(training)
    with torch.no_grad():
        expected = model(x)
    prefer(FINE, GRAPH, LAYERS)
    report = sk.convert(model, x)
    assert [row.decision for row in report.layers] == [FINE, DENSE, FINE]
    assert words in report.layers[1].reason
    assert report.layers[1].sparsity is None or change in (_subclass, _held_bias)
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("sizes", [(64, 0), (0, 64)])
def test_layers_of_width_zero(prefer: Prefer, sizes: tuple[int, int]) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(64, 64), nn.Linear(64, 10)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that there is nothing to initialize
                self.none = nn.Linear(*sizes)

        def forward(self, x: Tensor) -> Tensor:
            h, n = self.first(x).relu(), self.none(x[:, : self.none.in_features])
            return self.head(h + n if n.size(1) else h)

    model, x = Net().eval(), torch.randn(8, 64)
    for layer in (model.first, model.head):
        prune_(layer, "random", 0.9)
    dense = copy.deepcopy(model)
    prefer(FINE, GRAPH, LAYERS)
    report = sk.convert(model, x)
    assert {row.name: row.decision for row in report.layers} == {"first": FINE, "none": DENSE, "head": FINE}
    assert_agree(model, dense, x)


def test_a_container_under_two_names(prefer: Prefer) -> None:
    """What one module holds under one key is in one place, whatever leads there; the row has all names."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Sequential(nn.Linear(64, 64), nn.ReLU()), nn.Linear(64, 64)
            self.net = nn.Sequential(self.body, self.head)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    model, x = Net().eval(), torch.randn(8, 64)
    prune_(model, "random", 0.9)
    dense = copy.deepcopy(model)
    prefer(FINE, GRAPH, LAYERS)
    report = sk.convert(model, x)
    body, head = report.layers
    assert (body.name, body.decision, body.also) == ("body.0", FINE, ("net.0.0",))
    assert body.reason.endswith("; it is net.0.0 as well")
    assert (head.decision, head.reason) == (DENSE, "the layer occurs in several places: head, net.1")
    assert model.body is model.net[0]
    assert list(model.state_dict()) == list(dense.state_dict())
    assert_agree(model, dense, x)
    layer = sk.revert(model).get_submodule("net.0.0")
    assert type(layer) is nn.Linear
    assert layer is model.body[0]
