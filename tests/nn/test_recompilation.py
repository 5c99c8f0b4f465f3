# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Compiled layers whose pattern changes: the code is not compiled again, and computes with the new pattern at once."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsekernels as sk

LAYERS: dict[str, tuple[Callable[..., Any], tuple[int, ...]]] = {
    "SparseLinear": (lambda **options: sk.nn.SparseLinear(24, 16, **options), (2, 5, 24)),
    "SparseConv2d": (
        lambda **options: sk.nn.SparseConv2d(8, 16, 3, stride=2, padding=1, groups=2, **options),
        (3, 8, 7, 7),
    ),
    "SparseConv1d": (
        lambda **options: sk.nn.SparseConv1d(8, 16, 3, padding=1, padding_mode="circular", **options),
        (3, 8, 9),
    ),
    "SparseTransposedLinear": (lambda **options: sk.nn.SparseTransposedLinear(16, 24, **options), (5, 24)),
}
FORMATS: dict[str, tuple[dict[str, Any], torch.dtype]] = {
    "unstructured": ({}, torch.float32),
    "block": ({"format": "block", "block": (4, 2)}, torch.float32),
    "block in bfloat16": ({"format": "block", "block": (8, 4)}, torch.bfloat16),
}


class Counting:
    """A backend of torch.compile that counts how often it is asked to compile."""

    def __init__(self, backend: str = "aot_eager") -> None:
        torch._dynamo.reset()
        self.count, self._backend = 0, torch._dynamo.lookup_backend(backend)

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        self.count += 1
        return self._backend(graph, inputs)


def give_pattern(layer: Any, density: float) -> None:
    layer.set_pattern(torch.rand(layer.weight.shape) < density)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape) * layer.mask)


def given_count(layer: Any, count: int) -> None:
    mask = torch.zeros(layer.weight.numel(), dtype=torch.bool)
    mask[torch.randperm(mask.numel())[:count]] = True
    layer.set_pattern(mask.view(layer.weight.shape))


def gradients(layer: Any, x: Tensor, dy: Tensor | None = None) -> list[Tensor]:
    """The result and the gradients to the input and all parameters."""
    x = x.clone().requires_grad_()
    y = layer(x)
    dy = torch.ones_like(y) if dy is None else dy
    return [y.detach(), *torch.autograd.grad(y, [x, *layer.parameters()], dy)]


def assert_alike(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        loose = {"rtol": 2e-2, "atol": 5e-2} if mine.dtype is torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-4}
        torch.testing.assert_close(mine, other, **loose)


@pytest.mark.parametrize(
    ("name", "format"),
    [*((name, "unstructured") for name in LAYERS), ("SparseLinear", "block"), ("SparseConv1d", "block in bfloat16")],
)
def test_another_pattern_is_not_compiled_again(name: str, format: str) -> None:
    """Of another number of nonzeros, all of them at times. With and without gradients, once for each dense_grad."""
    (make, shape), (options, dtype) = LAYERS[name], FORMATS[format]
    torch.manual_seed(0)
    layer, x = make(**options).to(dtype), torch.randn(shape).to(dtype)
    give_pattern(layer, 0.1)
    backend = Counting()
    compiled = torch.compile(layer, backend=backend, fullgraph=True)
    counts = []
    for dense_grad in (False, True, False, True):
        layer.dense_grad = dense_grad
        for density in (0.1, 0.1, 0.02, 2.0):
            give_pattern(layer, density)
            dy = torch.randn_like(layer(x))
            assert_alike(gradients(compiled, x, dy), gradients(layer, x, dy))
            with torch.no_grad():
                assert_alike([compiled(x)], [layer(x)])
        counts.append(backend.count)
    assert counts == [2, 4, 4, 4] or counts == [2, 3, 3, 3]  # without gradients dense_grad may be the same graph


def test_layers_that_change_at_different_times_and_began_alike() -> None:
    """Numbers that are equal when a graph is traced are not taken to be equal ever after; more than torch's limit."""
    net = nn.Sequential(*[part for _ in range(10) for part in (sk.nn.SparseLinear(32, 32), nn.ReLU())])
    for layer in net[::2]:
        given_count(layer, 200)
    x, backend = torch.randn(4, 32), Counting()
    compiled = torch.compile(net, backend=backend, fullgraph=True)
    assert_alike(gradients(compiled, x), gradients(net, x))
    for number, layer in enumerate(net[::2]):
        given_count(layer, 100 + 7 * number)
        assert_alike(gradients(compiled, x), gradients(net, x))
    assert backend.count == 1


def test_without_fullgraph_and_with_static_sizes() -> None:
    net = nn.Sequential(sk.nn.SparseConv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), sk.nn.SparseLinear(8 * 16, 5))
    x = torch.randn(2, 3, 6, 6)
    for dynamic in (None, False):
        backend = Counting()
        compiled = torch.compile(net, backend=backend, dynamic=dynamic)
        for density in (0.3, 0.5, 0.2):
            for layer in (net[0], net[3]):
                give_pattern(layer, density)
            assert_alike(gradients(compiled, x), gradients(net, x))
        assert backend.count == 1


def test_blocks_that_share_their_code() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = sk.nn.SparseLinear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x).relu()

    net, x = nn.Sequential(*[Block() for _ in range(10)]), torch.randn(4, 16)
    for block in net:
        give_pattern(block.layer, 0.5)
    plain, backend = copy.deepcopy(net), Counting()
    for block in net:
        block.compile(backend=backend, fullgraph=True)
    gradients(net, x)
    first = backend.count
    for density in (0.2, 0.7):
        for block, other in zip(net, plain, strict=True):
            give_pattern(block.layer, density)
            other.load_state_dict(block.state_dict())
            other.layer.set_pattern(block.layer.mask)
        assert_alike(gradients(net, x), gradients(plain, x))
    assert backend.count == first <= 2


def test_by_inductor() -> None:
    torch.manual_seed(1)
    layer, x = sk.nn.SparseLinear(24, 16), torch.randn(6, 24, requires_grad=True)
    give_pattern(layer, 0.3)
    backend = Counting("inductor")
    compiled = torch.compile(layer, backend=backend, fullgraph=True)
    for density in (0.3, 0.1, 0.8):
        give_pattern(layer, density)
        expected = gradients(layer, x.detach())
        assert_alike(gradients(compiled, x.detach()), expected)
        y = compiled(x)
        give_pattern(layer, 0.5)
        assert_alike(list(torch.autograd.grad(y, [x, *layer.parameters()], torch.ones_like(y))), expected[1:])
    assert backend.count == 1


@pytest.mark.parametrize("dense_grad", [False, True])
@pytest.mark.parametrize(
    ("name", "format"), [*((name, "unstructured") for name in LAYERS), ("SparseConv2d", "block in bfloat16")]
)
def test_a_backward_is_that_of_its_forward(name: str, format: str, dense_grad: bool) -> None:
    """Whatever pattern the layer was given in between; or it is refused in words."""
    (make, shape), (options, dtype) = LAYERS[name], FORMATS[format]
    layer, x = make(**options, dense_grad=dense_grad).to(dtype), torch.randn(shape).to(dtype).requires_grad_()
    give_pattern(layer, 0.1)
    compiled = torch.compile(layer, backend=Counting(), fullgraph=True)
    expected = gradients(layer, x.detach())[1:]
    y = compiled(x)
    layer.set_pattern(torch.rand(layer.weight.shape) < 0.1)
    refused = None
    try:
        late = torch.autograd.grad(y, [x, *layer.parameters()], torch.ones_like(y))
    except RuntimeError as error:
        refused = str(error)
    if refused is None:
        assert_alike(list(late), expected)
    else:
        assert dense_grad
        assert "modified by an inplace operation" in refused


def test_copies_have_patterns_of_their_own() -> None:
    layer, x = sk.nn.SparseConv2d(4, 8, 3), torch.randn(2, 4, 6, 6)
    give_pattern(layer, 0.4)
    layers = [layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))]
    backend = Counting()
    compiled = [torch.compile(one, backend=backend, fullgraph=True) for one in layers]
    for _ in range(3):
        for one in layers:
            give_pattern(one, 0.2 + 0.6 * float(torch.rand(())))
        for ours, theirs in zip(compiled, layers, strict=True):
            assert_alike(gradients(ours, x), gradients(theirs, x))
    assert backend.count <= 3


def test_nonzeros_outside_of_the_new_pattern_raise() -> None:
    layer, x = sk.nn.SparseLinear(24, 16), torch.randn(3, 24, requires_grad=True)
    give_pattern(layer, 0.4)
    backend = Counting()
    compiled = torch.compile(layer, backend=backend, fullgraph=True)
    compiled(x)
    first = layer.weight.detach().clone()
    layer.set_pattern(layer.mask & (torch.rand(16, 24) < 0.5))
    assert_alike(gradients(compiled, x.detach()), gradients(layer, x.detach()))
    layer.weight.data.copy_(first)  # nonzeros of the pattern before
    with pytest.raises(ValueError, match="zero outside of its pattern"):
        compiled(x)
    layer.set_pattern()
    torch.testing.assert_close(compiled(x), nn.functional.linear(x, first, layer.bias))
    assert backend.count == 1


@pytest.mark.parametrize("name", ["SparseConv2d", "SparseTransposedLinear"])
def test_torch_multiplies(name: str) -> None:
    """Where `dense_product` says so; each value of the two attributes has code of its own."""
    make, shape = LAYERS[name]
    layer, x, backend = make(), torch.randn(shape), Counting()
    layer.dense_product = True
    give_pattern(layer, 0.2)
    compiled = torch.compile(layer, backend=backend, fullgraph=True)
    for number, (dense_grad, density) in enumerate(
        [(False, 0.2), (False, 0.5), (True, 0.1), (True, 2.0), (False, 0.3)]
    ):
        layer.dense_grad = dense_grad
        give_pattern(layer, density)
        if number == 3:
            layer(x)
        assert_alike(gradients(compiled, x), gradients(layer, x))
    assert backend.count == 2
    layer.dense_product = False
    for density in (0.3, 0.1):
        give_pattern(layer, density)
        assert_alike(gradients(compiled, x), gradients(layer, x))
    assert backend.count == 3


def test_a_layer_that_had_no_pattern_is_compiled_once_more() -> None:
    layer, x, backend = sk.nn.SparseLinear(24, 16), torch.randn(3, 24), Counting()
    compiled = torch.compile(layer, backend=backend, fullgraph=True)
    assert_alike(gradients(compiled, x), gradients(layer, x))
    for density in (0.4, 2.0, 0.1):
        give_pattern(layer, density)
        assert_alike(gradients(compiled, x), gradients(layer, x))
    assert backend.count == 2


def test_under_autocast() -> None:
    layer, x, backend = sk.nn.SparseConv2d(4, 8, 3), torch.randn(2, 4, 6, 6), Counting()
    give_pattern(layer, 0.4)
    compiled = torch.compile(layer, backend=backend, fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16):
        for density in (0.4, 0.2, 0.6):
            give_pattern(layer, density)
            ours, theirs = gradients(compiled, x), gradients(layer, x)
            for mine, other in zip(ours, theirs, strict=True):
                torch.testing.assert_close(mine, other, rtol=2e-2, atol=5e-2)
    assert backend.count == 1


def test_files_know_nothing_of_it() -> None:
    layer = sk.nn.SparseLinear(24, 16)
    give_pattern(layer, 0.4)
    file = io.BytesIO()
    torch.save(layer.sparse_weight.to_tensors(), file)
    file.seek(0)
    again = sk.Unstructured.from_tensors(torch.load(file, weights_only=True))
    for weight in (again, pickle.loads(pickle.dumps(layer.sparse_weight))):
        assert torch.equal(weight.mask, layer.mask)
        assert not vars(weight.crow_indices)
        assert not vars(weight.col_indices)


@pytest.mark.parametrize("strict", [False, True])
def test_exported_programs_have_the_pattern_that_the_layer_had(strict: bool) -> None:
    layer, x, file = sk.nn.SparseConv2d(4, 8, 3), torch.randn(5, 4, 6, 6), io.BytesIO()
    give_pattern(layer, 0.4)
    batch = {"input": {0: torch.export.Dim("batch", min=2)}}
    program = torch.export.export(layer, (x,), strict=strict, dynamic_shapes=batch)
    torch.export.save(program, file)
    file.seek(0)
    loaded, x = torch.export.load(file), torch.randn(3, 4, 6, 6)
    expected = layer(x)
    give_pattern(layer, 0.1)
    for one in (loaded, loaded.run_decompositions()):
        torch.testing.assert_close(one.module()(x), expected)
