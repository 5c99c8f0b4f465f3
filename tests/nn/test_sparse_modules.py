# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""SparseLinear and SparseConv2d: dense modules in all but the work that they do."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sparse_nets import Dense, assert_all_close, gradients, images, masked, pruned, sparse

import sparsekernels as sk


def test_drop_in() -> None:
    dense, x = Dense(), images()
    net = sparse(dense)
    assert isinstance(net.conv, torch.nn.Conv2d)
    assert isinstance(net.linear, torch.nn.Linear)
    torch.testing.assert_close(net(x), dense(x))
    assert_all_close(gradients(net, x), masked(dense, gradients(dense, x)))
    assert list(net.state_dict()) == list(dense.state_dict())
    assert torch.equal(net.conv.mask, dense.conv.weight != 0)
    assert net.conv.sparse_weight.nnz == dense.conv.weight.count_nonzero()
    assert "stride=(2, 2), padding=(1, 1), groups=2, sparsity=0." in repr(net.conv)
    assert "in_features=6, out_features=5, bias=True, sparsity=0." in repr(net.linear)


@pytest.mark.parametrize("cls", [sk.nn.SparseConv2d, sk.nn.SparseLinear])
def test_the_constructor_is_torchs(cls: Any) -> None:
    arguments = (4, 6, 3) if cls is sk.nn.SparseConv2d else (4, 6)
    x = images() if cls is sk.nn.SparseConv2d else torch.randn(3, 4)
    torch.manual_seed(1)
    ours = cls(*arguments, bias=False)
    torch.manual_seed(1)
    theirs = cls.__bases__[1](*arguments, bias=False)
    assert torch.equal(ours.weight, theirs.weight)
    assert ours.bias is None
    torch.testing.assert_close(ours(x), theirs(x))
    assert cls(*arguments, dtype=torch.float64)(x.double()).dtype == torch.float64


def test_to_dense() -> None:
    dense, x = Dense(), images()
    dense.conv.bias.requires_grad_(False)
    net = sparse(dense, dense_grad=True).eval()
    for layer, original in ((net.conv, dense.conv), (net.linear, dense.linear)):
        with torch.no_grad():
            layer.weight.add_(~layer.mask)  # as an optimizer may
        back = layer.to_dense()
        assert type(back) is type(original)
        assert repr(back) == repr(original)
        assert torch.equal(back.weight, original.weight)
        assert torch.equal(back.bias, original.bias)
        assert back.bias.requires_grad == original.bias.requires_grad
        assert not back.training
    assert torch.equal(net.conv.to_dense()(x), dense.conv(x))
    net.conv.dense_grad = False  # what is there is computed with
    assert torch.equal(net.conv.to_dense().weight, net.conv.weight)


def test_the_original_is_left_alone() -> None:
    dense = torch.nn.Linear(6, 5)
    before = dense.weight.clone()
    layer = sk.nn.SparseLinear.from_dense(dense, torch.rand(5, 6) < 0.5)
    with torch.no_grad():
        layer.weight.zero_()
    assert torch.equal(dense.weight, before)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [1, (2, 1), "same"])
def test_padding_modes(mode: Any, padding: Any) -> None:
    dense = pruned(torch.nn.Conv2d(4, 6, (3, 2), padding=padding, padding_mode=mode))
    x = images()
    torch.testing.assert_close(sk.nn.SparseConv2d.from_dense(dense)(x), dense(x))


# Patterns


def test_set_pattern() -> None:
    layer = sk.nn.SparseLinear(6, 5)
    assert layer.mask.all()
    mask = torch.rand(5, 6) < 0.4
    before = layer.weight.detach().clone()
    layer.set_pattern(mask)
    assert torch.equal(layer.mask, mask)
    assert torch.equal(layer.weight, before * mask)
    x = torch.randn(3, 6)
    torch.testing.assert_close(layer(x), F.linear(x, before * mask, layer.bias))
    for everything in (torch.ones(5, 6), torch.zeros(5, 6)):
        layer.set_pattern(everything.bool())
        assert torch.equal(layer.mask, everything.bool())
        layer(x).sum().backward()
    with torch.no_grad():
        layer.weight[1, 2] = 1.0
    layer.set_pattern()
    assert layer.mask.nonzero().tolist() == [[1, 2]]


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (torch.ones(6, 5).bool(), ValueError, r"expected mask of shape \[5, 6\] on cpu .*, got \[6, 5\] on cpu"),
        (torch.ones(5, 6), TypeError, "expected mask .*, got torch.float32"),
        (torch.ones(5, 6).bool().to("meta"), ValueError, "expected mask .* on cpu .* on meta"),
        ([True], TypeError, "expected mask .*, got list"),
    ],
)
def test_bad_patterns_are_refused(mask: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        sk.nn.SparseLinear(6, 5).set_pattern(mask)


def test_bad_modules_are_refused() -> None:
    with pytest.raises(ValueError, match="expected format to be 'unstructured', 'block', got 'blocks'"):
        sk.nn.SparseLinear.from_dense(pruned(torch.nn.Linear(6, 5)), format="blocks")
    with pytest.raises(TypeError, match=r"expected module to be a torch.nn.Conv2d, got Linear"):
        sk.nn.SparseConv2d.from_dense(torch.nn.Linear(6, 5))
    with pytest.raises(ValueError, match="expected weight with zeros, got none"):
        sk.nn.SparseConv2d.from_dense(torch.nn.Conv2d(4, 6, 3))
    conv = sparse(Dense()).conv
    for channels in (3, 5, 8):
        x = torch.randn(1, channels, 8, 8)
        for input in (x, x.clone().requires_grad_()):
            with pytest.raises(ValueError, match=f"sparse_conv2d: expected input of 4 channels.*, got {channels}"):
                conv(input)
            with (
                torch.no_grad(),
                pytest.raises(ValueError, match=f"sparse_conv2d: expected input of 4 channels.*, got {channels}"),
            ):
                conv(input)
    attention = torch.nn.MultiheadAttention(32, 4)
    with pytest.raises(TypeError, match=r"out_proj of a torch.nn.MultiheadAttention, which multiplies by its"):
        sk.nn.SparseLinear.from_dense(attention.out_proj, torch.rand(32, 32) < 0.5)


def test_load_a_dense_checkpoint() -> None:
    x, first, second = images(), Dense(), Dense()
    net = sparse(first).eval()
    with torch.no_grad():
        net.load_state_dict(second.state_dict())
        torch.testing.assert_close(net(x), second(x))
    assert torch.equal(net.conv.mask, second.conv.weight != 0)
    fresh = sk.nn.SparseConv2d(4, 6, 3, 2, 1, groups=2)
    fresh.load_state_dict(second.conv.state_dict())
    assert torch.equal(fresh.mask, second.conv.weight != 0)
    first.load_state_dict(net.state_dict())
    torch.testing.assert_close(first(x), second(x))


def test_a_checkpoint_within_the_pattern_keeps_it() -> None:
    layer = sk.nn.SparseLinear(6, 5)
    mask = torch.rand(5, 6) < 0.5
    layer.set_pattern(mask)
    state = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    state["weight"].view(-1)[mask.flatten().nonzero()[0]] = 0.0
    layer.load_state_dict(state)
    assert torch.equal(layer.mask, mask)
    state["weight"].zero_()
    layer.load_state_dict(state)
    assert torch.equal(layer.mask, mask)
    other = sk.nn.SparseLinear(6, 5, device="meta")
    other.load_state_dict(pruned(torch.nn.Linear(6, 5)).state_dict(), assign=True)
    assert 0 < other.sparse_weight.sparsity < 1


def round_trip(net: Dense) -> None:
    """Saving and loading change nothing, and what was saved says what the net computes."""
    x = images()
    before, weights = net(x), [layer.weight.clone() for layer in (net.conv, net.linear)]
    state = net.state_dict()
    for layer, weight, name in zip((net.conv, net.linear), weights, ("conv", "linear"), strict=True):
        assert torch.equal(layer.weight, weight)  # saving changes nothing
        assert (state[f"{name}.weight"].data_ptr() == layer.weight.data_ptr()) is not layer.dense_grad
        assert net.state_dict(keep_vars=True)[f"{name}.weight"] is layer.weight
    assert torch.equal(net(x), before)
    net.load_state_dict(state)
    torch.testing.assert_close(net(x), before)
    dense = Dense()
    dense.load_state_dict(state)
    torch.testing.assert_close(dense(x), before)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("dense_grad", [False, True])
def test_load_state_dict_after_another_weight_was_assigned(dense_grad: bool, assign: bool) -> None:
    """Of another shape, as a new head has it: the pattern is that of what is loaded."""
    layer = sk.nn.SparseLinear.sharing(pruned(torch.nn.Linear(6, 5)))
    layer.dense_grad = dense_grad
    layer.weight, layer.bias = torch.nn.Parameter(torch.randn(3, 6)), torch.nn.Parameter(torch.randn(3))
    dense = pruned(torch.nn.Linear(6, 3))
    layer.load_state_dict(dense.state_dict(), assign=assign)
    assert torch.equal(layer.mask, dense.weight != 0)
    x = torch.randn(2, 6)
    torch.testing.assert_close(layer(x), dense(x))
    layer.load_state_dict({name: torch.zeros_like(value) for name, value in dense.state_dict().items()}, assign=assign)
    assert not layer(x).any()


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_a_checkpoint_of_dense_gradients_is_what_the_layer_computes(optimizer: Any) -> None:
    net, x = sparse(Dense(), dense_grad=True), images()
    step = optimizer(net.parameters(), lr=0.01)
    net(x).pow(2).sum().backward()
    step.step()
    assert net.conv.weight[~net.conv.mask].any()
    masks = [net.conv.mask, net.linear.mask]
    round_trip(net)
    for layer, mask in zip((net.conv, net.linear), masks, strict=True):
        assert torch.equal(layer.mask, mask)
        assert not layer.weight[~mask].any()


@pytest.mark.filterwarnings("ignore:Sparse.*computes with the whole weight")
def test_a_checkpoint_of_dropped_weights_with_momentum_is_what_the_layer_computes() -> None:
    net, x = sparse(Dense()), images()
    step = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    for _ in range(2):
        step.zero_grad()
        net(x).pow(2).sum().backward()
        step.step()
        for layer in (net.conv, net.linear):
            layer.set_pattern(layer.mask & (torch.rand_like(layer.weight) < 0.7))
    step.zero_grad()
    net(x).pow(2).sum().backward()
    step.step()
    assert net.conv.weight[~net.conv.mask].any()
    round_trip(net)


def test_saving_between_forward_and_backward() -> None:
    net, x = sparse(Dense(), dense_grad=True), images()
    expected = gradients(net, x)
    loss = net(x).pow(2).sum()
    with torch.no_grad():
        net.conv.weight.data.add_(~net.conv.mask)
    net.state_dict()
    actual = torch.autograd.grad(loss, list(net.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_saving_what_was_made_for_inference() -> None:
    with torch.inference_mode():
        layer = sparse(Dense(), dense_grad=True).linear
        layer.weight.add_(~layer.mask)
    assert not layer.state_dict()["weight"][~layer.mask].any()
    meta = sk.nn.SparseLinear.from_dense(pruned(torch.nn.Linear(6, 5))).to("meta")
    assert meta.state_dict()["weight"].is_meta


def test_a_load_that_fails_leaves_the_pattern_alone() -> None:
    layer = sparse(Dense()).linear
    with torch.no_grad():
        layer.weight.add_(~layer.mask)
    mask, weight = layer.mask, layer.weight.clone()
    for bad in (torch.ones(6, 5), torch.ones(5, 7)):
        with pytest.raises(RuntimeError, match="size mismatch for weight"):
            layer.load_state_dict({"weight": bad, "bias": torch.ones(5)})
        assert torch.equal(layer.mask, mask)
        assert torch.equal(layer.weight, weight)


# Training


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("dense_grad", [False, True])
def test_training_equals_masked_dense_training(optimizer: Any, dense_grad: bool) -> None:
    dense, x = Dense(), images()
    net = sparse(dense, dense_grad)
    masks = [layer.weight != 0 for layer in (dense.conv, dense.linear)]
    optimizers = [optimizer(module.parameters(), lr=0.01) for module in (net, dense)]
    for _ in range(4):
        for module, step in zip((net, dense), optimizers, strict=True):
            step.zero_grad()
            module(x).pow(2).sum().backward()
            if module is dense and not dense_grad:
                for layer, mask in zip((dense.conv, dense.linear), masks, strict=True):
                    layer.weight.grad *= mask
            step.step()
        for ours, theirs, mask in zip((net.conv, net.linear), (dense.conv, dense.linear), masks, strict=True):
            with torch.no_grad():
                theirs.weight.mul_(mask)
            torch.testing.assert_close(ours.weight * mask, theirs.weight, rtol=1e-4, atol=1e-4)
            assert dense_grad or not ours.weight[~mask].any()
    torch.testing.assert_close(net(x), dense(x), rtol=1e-4, atol=1e-4)


class StraightThrough(torch.autograd.Function):
    """weight * mask, with the gradient of weight."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return weight * mask

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad, None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", [{}, {"padding": "same", "groups": 2}, {"stride": 2, "padding": 1}], ids=str)
def test_dense_gradients(dtype: torch.dtype, options: dict[str, Any]) -> None:
    """Of the first and the second order, to the whole weight."""
    dense = pruned(torch.nn.Conv2d(4, 6, 2, dtype=dtype, **options))
    layer = sk.nn.SparseConv2d.from_dense(dense, dense_grad=True)
    matrix = pruned(torch.nn.Linear(8, 5, dtype=dtype))
    linear = sk.nn.SparseLinear.from_dense(matrix, dense_grad=True)
    x = images().to(dtype).requires_grad_()

    def derivatives(run: Callable[[torch.Tensor], torch.Tensor], parameters: list[torch.Tensor]) -> list[torch.Tensor]:
        first = torch.autograd.grad(run(x).pow(2).sum(), [x, *parameters], create_graph=True)
        second = torch.autograd.grad(sum(g.pow(2).sum() for g in first), [x, *parameters])
        return [*first, *second]

    ours = derivatives(lambda x: linear(layer(x).mean(1)[..., :1].expand(-1, -1, 8)), [layer.weight, linear.weight])

    def straight_through(x: torch.Tensor) -> torch.Tensor:
        weight = StraightThrough.apply(dense.weight, layer.mask)
        y = dense._conv_forward(x, weight, dense.bias).mean(1)[..., :1].expand(-1, -1, 8)
        return F.linear(y, StraightThrough.apply(matrix.weight, linear.mask), matrix.bias)

    theirs = derivatives(straight_through, [dense.weight, matrix.weight])
    for mine, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-3, atol=1e-3)
    assert ours[1][~layer.mask].any()
    layer.dense_grad = False
    assert not torch.autograd.grad(layer(x).sum(), layer.weight)[0][~layer.mask].any()


@pytest.mark.filterwarnings("ignore:Sparse.*computes with the whole weight")
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("dense_grad", [False, True])
def test_a_weight_of_another_shape_or_device_is_refused(grad: bool, dense_grad: bool) -> None:
    """As functional_call, or an assignment, may bring one in."""
    linear = sk.nn.SparseLinear(6, 4, dense_grad=dense_grad)
    conv = sk.nn.SparseConv2d(6, 4, 1, dense_grad=dense_grad)
    with torch.set_grad_enabled(grad):
        for layer, x, weight in (
            (linear, torch.randn(2, 6), torch.randn(4, 6, 1, 1)),
            (linear, torch.randn(2, 6), torch.randn(6, 4)),
            (conv, torch.randn(2, 6, 3, 3), torch.randn(4, 6)),
            (conv, torch.randn(2, 6, 3, 3), torch.randn(6, 4, 1, 1)),
        ):
            with pytest.raises(RuntimeError, match=r"t\(\) expects|size|shape|dim|channels"):  # torch's own
                torch.func.functional_call(layer, {"weight": weight}, (x,))
            wrong = layer.weight.detach().to("meta")
            for backend in (None, "reference"):
                with (
                    sk.use_backend(backend) if backend else contextlib.nullcontext(),
                    pytest.raises(ValueError, match="expected weight on cpu like input, got meta"),
                ):
                    torch.func.functional_call(layer, {"weight": wrong}, (x,))
