# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Sparse layers whose weight is on a GPU: torch multiplies, and nobody waits to look at the weight.

Without a GPU, on the CPU: `is_for_torch_here` says that a weight is there; and on tensors without data on "cuda".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsekernels as sk
from sparsekernels import _torch
from sparsekernels._torch import FakeTensorMode
from sparsekernels.formats import block_sparse, compressed_rows, unstructured
from sparsekernels.nn import sparse
from sparsekernels.ops.sparse_conv2d import on_gpu
from sparsekernels.ops.sparse_conv2d.on_gpu import is_for_torch_here


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """All weights count as on a GPU while this is [True]."""
    is_there = [True]
    monkeypatch.setattr(sparse, "is_for_torch_here", lambda pattern, weight: is_there[0])
    return is_there


def linear() -> Any:
    return sk.nn.SparseLinear.from_dense(nn.Linear(12, 7), torch.rand(7, 12) < 0.4)


def conv() -> Any:
    layer = nn.Conv2d(4, 6, 3, padding=1, groups=2, padding_mode="reflect")
    return sk.nn.SparseConv2d.from_dense(layer, torch.rand(6, 2, 3, 3) < 0.4)


def sequence() -> Any:
    return sk.nn.SparseConv1d.from_dense(nn.Conv1d(4, 6, 3, stride=2), torch.rand(6, 4, 3) < 0.4)


def transposed() -> Any:
    layer = sk.nn.SparseTransposedLinear(7, 12)
    layer.set_pattern(torch.rand(12, 7) < 0.4)
    return layer


LAYERS: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "linear": (linear, (5, 12)),
    "conv2d": (conv, (2, 4, 8, 8)),
    "conv1d": (sequence, (2, 4, 9)),
    "transposed": (transposed, (5, 12)),
}
by_layer = pytest.mark.parametrize("name", LAYERS)


def results(layer: Any, x: Tensor) -> list[Tensor]:
    y = layer(x)
    return [y, *torch.autograd.grad(y.square().sum(), (x, layer.weight, layer.bias))]


@by_layer
def test_results_and_gradients_are_those_of_the_pattern(name: str, there: list[bool]) -> None:
    make, shape = LAYERS[name]
    layer, x = make(), torch.randn(shape, requires_grad=True)
    found = results(layer, x)
    assert not found[2][~layer.mask].any()
    there[0] = False
    torch.testing.assert_close(found, results(layer, x), rtol=1e-4, atol=1e-4)


@by_layer
@pytest.mark.filterwarnings("ignore:.*elements of its weight")
def test_with_nonzeros_outside_it_is_the_dense_layer(name: str, there: list[bool]) -> None:
    """However they were written, in the same call, in results and gradients."""
    make, shape = LAYERS[name]
    layer, x = make(), torch.randn(shape, requires_grad=True)
    layer(x)
    layer.weight.data[~layer.mask] = 0.5
    found = results(layer, x)
    assert found[2][~layer.mask].any()
    there[0] = False
    torch.testing.assert_close(found, results(layer, x), rtol=1e-4, atol=1e-4)


@by_layer
def test_second_derivatives_transforms_and_compiled_code(name: str, there: list[bool]) -> None:
    make, shape = LAYERS[name]
    layer, x = make(), torch.randn(shape)
    layer._adopt(layer.pattern)

    def gradient(weight: Tensor) -> Tensor:
        y = torch.func.functional_call(layer, {"weight": weight}, (x,))
        return torch.autograd.grad(y.pow(3).sum(), weight, create_graph=True)[0]

    def loss(weight: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"weight": weight}, (x,)).pow(3).sum()

    weight = layer.weight.detach().clone().requires_grad_()
    second = torch.autograd.grad(gradient(weight).square().sum(), weight)[0]
    assert not second[~layer.mask].any()
    assert second[layer.mask].any()
    torch.testing.assert_close(torch.func.grad(loss)(weight.detach()), gradient(weight).detach())
    if name in ("conv1d", "transposed"):  # which take the same way
        return
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(results(compiled, x.clone().requires_grad_())[2], results(layer, x.requires_grad_())[2])


@by_layer
def test_no_call_waits_for_the_device(name: str) -> None:
    """On "cuda" without data, where what a tensor holds cannot be asked for, and an attempt raises.

    Without gradients: autograd asks for the streams of a GPU that is there.
    """
    make, shape = LAYERS[name]
    layer = make()
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        weight = torch.empty_like(layer.weight, device="cuda")
        bias = torch.empty_like(layer.bias, device="cuda")
        x = torch.empty(shape, device="cuda")
        pattern = _on_cuda(layer.pattern)
        assert is_for_torch_here(pattern, weight)
        layer.pattern = pattern
        y = torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))
        assert y.is_cuda
        with pytest.raises(RuntimeError):  # that it would have been noticed
            int(y.sum())


def _on_cuda(pattern: Any) -> Any:
    """Its tensors without data, on "cuda"; a mask among them, which is otherwise made of data."""
    parts = {name: torch.empty_like(getattr(pattern, name), device="cuda") for name in ("crow_indices", "col_indices")}
    result = sk.Unstructured._of(
        pattern.shape, *parts.values(), torch.empty(pattern.nnz, device="cuda"), type(pattern._shared)()
    )
    result._shared.mask = torch.empty(pattern.shape, dtype=torch.bool, device="cuda")
    return result


# What is kept beside a pattern


class OnGpu:
    """Of a tensor, what `may_be_kept` asks for."""

    is_cuda, device = True, "cuda:1"


class Stream:
    def __init__(self) -> None:
        self.waits = 0

    def synchronize(self) -> None:
        self.waits += 1


def test_what_is_kept_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other streams may read it then; while a graph is captured nothing may wait, nor be kept."""
    streams = {"cuda:1": Stream()}
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: streams[device])
    made: Any = OnGpu()
    monkeypatch.setattr(_torch, "is_captured", lambda _: True)
    assert not _torch.may_be_kept(made)
    assert streams["cuda:1"].waits == 0
    monkeypatch.setattr(_torch, "is_captured", lambda _: False)
    assert _torch.may_be_kept(made)
    assert streams["cuda:1"].waits == 1
    assert _torch.may_be_kept(torch.zeros(1))


FORMATS: dict[str, Callable[[], Any]] = {
    "unstructured": lambda: sk.Unstructured((2, 3), *_indices(), torch.ones(3)),
    "block": lambda: sk.BlockSparse.of_mask(torch.tensor([[True, False], [True, True]]), block=(1, 1)),
}


def _indices() -> tuple[Tensor, Tensor]:
    return torch.tensor([0, 1, 3], dtype=torch.int32), torch.tensor([1, 0, 2], dtype=torch.int32)


@pytest.mark.parametrize("make", FORMATS.values(), ids=FORMATS)
def test_nothing_of_a_captured_graph_is_kept(make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is worked out in the graph, and by the next call outside of it once more, for good."""
    pattern, asked = make(), []
    for module in (compressed_rows, unstructured, block_sparse, on_gpu):
        monkeypatch.setattr(module, "may_be_kept", lambda made: bool(asked))
    mask, flat, transposed = on_gpu.kept_mask(pattern), pattern.flat_indices, pattern.transposed(1)
    assert pattern._shared.mask is None
    assert pattern._shared.flat_indices is None
    asked.append(True)
    assert on_gpu.kept_mask(pattern) is on_gpu.kept_mask(pattern)
    assert on_gpu.kept_mask(pattern) is not mask
    assert torch.equal(on_gpu.kept_mask(pattern), mask)
    assert pattern.flat_indices is pattern.flat_indices
    assert torch.equal(pattern.flat_indices, flat)
    assert pattern.transposed(1) is pattern.transposed(1)
    assert pattern.transposed(1) is not transposed


def test_who_is_for_torch() -> None:
    layer = linear()
    assert not is_for_torch_here(layer.pattern, layer.weight)
    with FakeTensorMode(allow_non_fake_inputs=True):
        weight, pattern = torch.empty(7, 12, device="cuda"), _on_cuda(layer.pattern)
        assert is_for_torch_here(pattern, weight)
        assert not is_for_torch_here(pattern, torch.empty(7, 11, device="cuda"))
        with sk.use_backend("triton"):
            assert not is_for_torch_here(pattern, weight)
    graph = torch.fx.Graph()
    assert not is_for_torch_here(layer.pattern, torch.fx.Proxy(graph.placeholder("weight")))


@pytest.mark.parametrize("has_kernel", [True, False])
def test_blocks_with_kernels_are_not_for_torch(has_kernel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_gpu, "has_block_kernel", lambda device, dtype, block: has_kernel)
    blocks = sk.BlockSparse.of_mask(torch.rand(8, 8) < 0.3, block=(4, 4))
    with FakeTensorMode(allow_non_fake_inputs=True):
        monkeypatch.setattr(sk.BlockSparse, "device", property(lambda self: torch.device("cuda", 0)))
        assert is_for_torch_here(blocks, torch.empty(8, 8, device="cuda")) is not has_kernel
