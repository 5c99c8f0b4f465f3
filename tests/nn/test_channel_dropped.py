# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Layers without their zero filters and channels: what the dense layer gives, gradients included."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsekernels as sk

CONVS: list[tuple[dict[str, Any], tuple[int, ...]]] = [
    ({}, (2, 6, 7, 8)),
    ({"padding": 1, "stride": 2}, (3, 6, 8, 7)),
    ({"padding": 2, "dilation": 2, "bias": False}, (1, 6, 9, 9)),
    ({"padding": "same"}, (2, 6, 5, 5)),
    ({"padding": 1, "padding_mode": "circular"}, (2, 6, 5, 5)),
    ({"padding": 1, "padding_mode": "reflect", "bias": False}, (2, 6, 5, 5)),
    ({"padding": 1}, (6, 5, 5)),
    ({"padding": 1}, (0, 6, 5, 5)),
]
KEPT = {
    "both": ([0, 3, 4], [1, 2, 5]),
    "outputs": ([1], range(6)),
    "inputs": (range(5), [0]),
    "nothing": ([], []),
    "everything": (range(5), range(6)),
}


def zeroed(weight: Tensor, kept: tuple[Any, Any]) -> None:
    """Leaves nonzeros in the kept filters and channels only."""
    mask = torch.zeros(weight.shape[:2])
    for output in kept[0]:
        mask[output, list(kept[1])] = 1
    with torch.no_grad():
        weight.mul_(mask.view(*mask.shape, *[1] * (weight.dim() - 2)))


def check(dense: nn.Module, dropped: nn.Module, x: Tensor) -> None:
    inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    outputs = [module(input) for module, input in zip((dense, dropped), inputs, strict=True)]
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-5, atol=1e-6)
    assert outputs[0].shape == outputs[1].shape
    g = torch.randn_like(outputs[0])
    for output in outputs:
        output.backward(g)
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad, rtol=1e-5, atol=1e-6)
    if dense.bias is not None:
        torch.testing.assert_close(dropped.bias.grad, dense.bias.grad, rtol=1e-5, atol=1e-5)
    used = dense.weight != 0
    pairs = used.flatten(2).any(2) if used.dim() > 2 else used
    taking_part = pairs.any(1)[:, None] & pairs.any(0)[None]
    expected = dense.weight.grad * taking_part.view(*pairs.shape, *[1] * (used.dim() - 2))
    torch.testing.assert_close(dropped.weight.grad, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize(("options", "shape"), CONVS)
def test_conv2d(options: dict[str, Any], shape: tuple[int, ...], kept: str) -> None:
    dense = nn.Conv2d(6, 5, 3, **options)
    zeroed(dense.weight, KEPT[kept])
    dropped = sk.nn.ChannelDroppedConv2d.from_dense(dense)
    assert (dropped.outputs.numel(), dropped.inputs.numel()) == tuple(map(len, KEPT[kept]))
    check(dense, dropped, torch.randn(shape))


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(6,), (4, 6), (2, 3, 6), (0, 6)])
def test_linear(shape: tuple[int, ...], bias: bool, kept: str) -> None:
    dense = nn.Linear(6, 5, bias)
    zeroed(dense.weight, KEPT[kept])
    check(dense, sk.nn.ChannelDroppedLinear.from_dense(dense), torch.randn(shape))


def test_what_is_not_read_does_not_spread() -> None:
    dense = nn.Conv2d(6, 5, 3, padding=1)
    zeroed(dense.weight, KEPT["both"])
    x = torch.randn(1, 6, 4, 4)
    x[:, 0] = torch.nan
    assert sk.nn.ChannelDroppedConv2d.from_dense(dense)(x).isfinite().all()


def test_state_dict_is_the_dense_layers() -> None:
    dense = nn.Conv2d(6, 5, 3)
    zeroed(dense.weight, KEPT["both"])
    dropped = sk.nn.ChannelDroppedConv2d.from_dense(dense)
    assert list(dropped.state_dict()) == list(dense.state_dict())
    other = nn.Conv2d(6, 5, 3)
    zeroed(other.weight, KEPT["outputs"])
    dropped.load_state_dict(other.state_dict())
    assert dropped.outputs.tolist() == [1]
    x = torch.randn(2, 6, 5, 5)
    torch.testing.assert_close(dropped(x), other(x))
    torch.testing.assert_close(copy.deepcopy(dropped).double()(x.double()), other.double()(x.double()))


def test_the_constructor_leaves_nothing_out() -> None:
    layer = sk.nn.ChannelDroppedLinear(6, 5)
    assert (layer.outputs.numel(), layer.inputs.numel()) == (5, 6)
    with torch.no_grad():
        layer.weight[2] = 0
    layer.set_channels()
    assert layer.outputs.tolist() == [0, 1, 3, 4]
    assert "computes 4 of 5 outputs, 6 of 6 inputs" in repr(layer)


@pytest.mark.parametrize("kept", ["some", "no outputs"])
@pytest.mark.parametrize("sizes", [(5,), (2, 4), (2, 7), (2, 100), (3, 2, 5)])
def test_linear_inputs_of_another_size(sizes: tuple[int, ...], kept: str) -> None:
    """Taking some features finds them in any input that has enough."""
    dense = nn.Linear(6, 3)
    dense.weight.data[:, 4:] = 0
    if kept == "no outputs":
        dense.weight.data.zero_()
    with pytest.raises(ValueError, match=r"expected input of 6 features, got \["):
        sk.nn.ChannelDroppedLinear.from_dense(dense)(torch.randn(sizes))


@pytest.mark.parametrize("kept", ["some", "no outputs"])
@pytest.mark.parametrize("sizes", [(5, 8, 8), (2, 4, 8, 8), (2, 7, 8, 8), (2, 100, 8, 8), (8, 8)])
def test_images_of_another_number_of_channels(sizes: tuple[int, ...], kept: str) -> None:
    dense = nn.Conv2d(6, 3, 3)
    dense.weight.data[:, 4:] = 0
    if kept == "no outputs":
        dense.weight.data.zero_()
    with pytest.raises(ValueError, match=r"expected input of 6 channels, got \["):
        sk.nn.ChannelDroppedConv2d.from_dense(dense)(torch.randn(sizes))


def test_refuses() -> None:
    with pytest.raises(TypeError, match=r"expected module to be a torch\.nn\.Conv2d, got "):
        sk.nn.ChannelDroppedConv2d.from_dense(nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"expected module to be a torch\.nn\.Linear, got "):
        sk.nn.ChannelDroppedLinear.from_dense(nn.Conv2d(2, 2, 1))
    with pytest.raises(ValueError, match="expected module with 1 group, got 2"):
        sk.nn.ChannelDroppedConv2d.from_dense(nn.Conv2d(4, 4, 1, groups=2))
    with pytest.raises(ValueError, match="expected module with 1 group, got 2"):
        sk.nn.ChannelDroppedConv2d(4, 4, 1, groups=2)


@pytest.mark.parametrize(
    ("name", "bad"),
    [(name, nn.Conv2d(2, 2, 1)) for name in ("SparseLinear", "ChannelDroppedLinear")]
    + [(name, nn.Linear(2, 2)) for name in ("SparseConv2d", "ChannelDroppedConv2d")],
)
def test_what_is_shared_is_of_the_dense_class(name: str, bad: nn.Module) -> None:
    for module in (bad, None):
        expected = f"{name}.sharing: expected module to be a torch.nn.{name[-6:]}, got {type(module).__name__}"
        with pytest.raises(TypeError, match=expected):
            getattr(sk.nn, name).sharing(module)


def test_a_format_is_a_name() -> None:
    bad: Any = ["a"]
    with pytest.raises(ValueError, match="SparseLinear.from_dense: expected format to be 'unstructured', 'block', got"):
        sk.nn.SparseLinear.from_dense(nn.Linear(2, 2), format=bad)


@pytest.mark.parametrize("input", [[1.0], None])
def test_what_is_no_tensor_is_refused_as_by_torch(input: Any) -> None:
    dense = (nn.Linear(8, 4), nn.Conv2d(8, 4, 3))
    layers = sk.nn.ChannelDroppedLinear.from_dense(dense[0]), sk.nn.ChannelDroppedConv2d.from_dense(dense[1])
    for expected, layer in zip(dense, layers, strict=True):
        with pytest.raises(TypeError) as reason:
            expected(input)
        with pytest.raises(TypeError, match=re.escape(str(reason.value).partition(",")[0])):
            layer(input)
