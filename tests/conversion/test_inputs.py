# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""A converted model gives what the dense one gives for inputs of every kind: values, layout, class, or an error."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conversion_checks import DROPPED, FINE, GRAPH, LAYERS, Prefer
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functionalize

import sparsekernels as sk
from sparsekernels import _library
from sparsekernels.pruning import prune_

pytestmark = [
    pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built"),
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning"),
]


class Subclass(Tensor):
    pass


class Doubling(Tensor):
    """One whose functions are others."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_function__(function, types, args, kwargs or {})
        return result * 2 if function is nn.functional.relu else result


def inference(x: Tensor) -> Tensor:
    with torch.inference_mode():
        return x.clone()


INPUTS: dict[str, Callable[[Tensor], Any]] = {
    "plain": lambda x: x,
    "mkldnn": lambda x: x.to_mkldnn(),
    "coo": lambda x: x.to_sparse(),
    "csr": lambda x: x.flatten(1).to_sparse_csr(),
    "csc": lambda x: x.flatten(1).to_sparse_csc(),
    "quantized": lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.quint8),
    "complex": lambda x: x.to(torch.complex64),
    "conjugate": lambda x: x.to(torch.complex64).conj(),
    "negative": lambda x: torch._neg_view(-x),
    "meta": lambda x: x.to("meta"),
    "fake": lambda x: FakeTensorMode(allow_non_fake_inputs=True).from_tensor(x),
    "subclass": lambda x: x.as_subclass(Subclass),
    "subclass that computes otherwise": lambda x: x.as_subclass(Doubling),
    "parameter": nn.Parameter,
    "wants a gradient": lambda x: x.clone().requires_grad_(),
    "inference": inference,
    "no rows": lambda x: x[:0],
    "no pixels": lambda x: x[..., :0],
    "expanded": lambda x: x[:1].expand_as(x),
    "expanded channels": lambda x: x[:, :1].expand_as(x),
    "one number": lambda x: x.flatten()[0].expand_as(x),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x.t().clone().t(),
    "transposed": lambda x: x.mT.contiguous().mT,
    "every other": lambda x: torch.stack([x, x], -1)[..., 0],
    "overlapping": lambda x: torch.arange(99.0).as_strided(x.shape, (3,) * x.dim()),
    "not aligned": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
    "double": lambda x: x.double(),
    "half": lambda x: x.half(),
    "integers": lambda x: x.int(),
    "no batch": lambda x: x[0],
    "one dimension more": lambda x: x[None],
    "a list": lambda x: [x],
    "None": lambda x: None,
    "an array": lambda x: x.numpy(),
}

NETS: dict[str, Callable[[], nn.Module]] = {
    "convolutions": lambda: nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 6, 3)
    ),
    "linear layers": lambda: nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 8)),
}
SHAPES = {"convolutions": (2, 4, 8, 8), "linear layers": (6, 16)}


def converted(prefer: Prefer, net: str, training: bool, decision: str) -> tuple[nn.Module, nn.Module]:
    """A net with some channels of zeros, and its dense twin."""
    model = NETS[net]().train(training)
    prune_(model, "random", 0.7)
    with torch.no_grad():
        for layer in (model[0], model[-1]):
            layer.weight[::3] = 0  # type: ignore[operator]
            layer.weight[:, ::3] = 0  # type: ignore[operator]
    dense = copy.deepcopy(model)
    prefer(decision, GRAPH, LAYERS)
    assert sk.convert(model, torch.randn(SHAPES[net])).converted
    return model, dense


def outcome(model: nn.Module, x: Any, gradients: bool) -> Any:
    """The result and the statistics, or that it raised."""
    with torch.set_grad_enabled(gradients):
        try:
            result = model(x)
        except Exception:
            return "raised"
    return result, {name: buffer.clone() for name, buffer in model.named_buffers() if name.startswith("1.")}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("decision", [FINE, DROPPED])
@pytest.mark.parametrize("net", NETS)
def test_inputs(prefer: Prefer, net: str, decision: str, training: bool) -> None:
    model, dense = converted(prefer, net, training, decision)
    state = copy.deepcopy(dense.state_dict())
    for kind, make in INPUTS.items():
        for gradients in (False, True):
            try:
                given = [make(torch.randn(SHAPES[net], generator=torch.Generator().manual_seed(1))) for _ in range(2)]
            except Exception:  # there is none of this kind in this shape
                continue
            ours, theirs = (outcome(one, x, gradients) for one, x in zip((model, dense), given, strict=True))
            for one in (model, dense) if training else ():  # a graph waits for parameters to stay
                one.load_state_dict(state)
            if kind == "inference" and gradients:  # torch saves them for a gradient that it does not compute
                continue
            assert (ours == "raised") is (theirs == "raised"), (kind, gradients)
            if theirs == "raised":
                continue
            (mine, statistics), (expected, others) = ours, theirs
            assert type(mine) is type(expected), (kind, gradients)
            assert mine.stride() == expected.stride() or not expected.numel(), (kind, gradients)
            assert mine.requires_grad is expected.requires_grad, (kind, gradients)
            assert (mine.shape, mine.dtype, mine.device) == (expected.shape, expected.dtype, expected.device), kind
            assert mine.layout is expected.layout, kind
            if kind not in ("meta", "fake"):
                if mine.layout is not torch.strided:
                    mine, expected = mine.to_dense(), expected.to_dense()
                tolerance = 1e-2 if expected.dtype is torch.float16 else 1e-4
                torch.testing.assert_close(mine, expected, rtol=tolerance, atol=tolerance, msg=f"{kind}, {gradients}")
                torch.testing.assert_close(statistics, others, rtol=1e-4, atol=1e-5, msg=kind)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("decision", [FINE, DROPPED])
@pytest.mark.parametrize("net", NETS)
def test_functionalize(prefer: Prefer, net: str, decision: str, training: bool) -> None:
    model, dense = converted(prefer, net, training, decision)
    x, state = torch.randn(SHAPES[net]), copy.deepcopy(dense.state_dict())
    for remove in ("mutations", "mutations_and_views"):
        for gradients in (False, True):
            with torch.set_grad_enabled(gradients):
                mine, expected = (functionalize(lambda x, one=one: one(x), remove=remove)(x) for one in (model, dense))
            torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-4)
            for one in (model, dense):
                one.load_state_dict(state)


@pytest.mark.parametrize("layer", [nn.Linear(8, 6), nn.Conv2d(8, 6, 3)])
def test_what_is_left_out_has_no_gradient_where_torch_computes(layer: nn.Module) -> None:
    """And nonzeros outside of the pattern count there, too."""
    prune_(nn.Sequential(layer), "random", 0.7)
    kind: Any = sk.nn.SparseLinear if isinstance(layer, nn.Linear) else sk.nn.SparseConv2d
    sparse = kind.from_dense(layer)
    x: Any = torch.randn(4, 8).to_sparse_csr() if isinstance(layer, nn.Linear) else torch.randn(2, 8, 5, 5)
    call = sparse if isinstance(layer, nn.Linear) else functionalize(lambda x: sparse(x))
    call(x).sum().backward()
    outside = ~sparse.mask
    assert not sparse.weight.grad[outside].any()
    assert sparse.weight.grad[sparse.mask].any()
    with torch.no_grad():
        sparse.weight[outside] = 1.0
    expected = copy.deepcopy(layer)
    expected.load_state_dict(dict(sparse.state_dict()))
    torch.testing.assert_close(call(x), expected(x), rtol=1e-4, atol=1e-4)
