# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""SparseLinear and SparseConv2d with weights in blocks."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparsekernels as sk
from sparsekernels.pruning import largest_blocks, prune_blocks_

BLOCK = 4, 2


def conv() -> nn.Conv2d:
    """Ragged at both ends, in groups whose border no block keeps to."""
    return nn.Conv2d(10, 14, 3, stride=2, padding=1, groups=2)


def linear() -> nn.Linear:
    return nn.Linear(13, 9)


def pruned(dense: Any, sparsity: float = 0.7) -> Any:
    prune_blocks_(nn.Sequential(dense), BLOCK, sparsity)
    return dense


def sparse(dense: Any, **options: Any) -> Any:
    kind = sk.nn.SparseLinear if isinstance(dense, nn.Linear) else sk.nn.SparseConv2d
    return kind.from_dense(dense, format="block", block=BLOCK, **options)


def inputs(dense: Any) -> Tensor:
    return torch.randn(3, 13) if isinstance(dense, nn.Linear) else torch.randn(3, 10, 7, 8)


by_layer = pytest.mark.parametrize("make", [linear, conv])


def assert_same(layer: Any, other: Any) -> None:
    assert type(layer.pattern) is type(other.pattern) is sk.BlockSparse
    assert layer.pattern.block_size == other.pattern.block_size
    assert torch.equal(layer.mask, other.mask)
    assert torch.equal(layer.weight, other.weight)


@by_layer
@pytest.mark.parametrize("dense_grad", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_drop_in(make: Any, dense_grad: bool, dtype: torch.dtype) -> None:
    dense = pruned(make().to(dtype))
    layer, x = sparse(dense, dense_grad=dense_grad), inputs(dense).to(dtype)
    assert (layer.format, layer.pattern.block_size) == ("block", BLOCK)
    assert torch.equal(layer.mask, dense.weight != 0)
    assert f"sparsity={layer.pattern.sparsity:.4g}, block=4x2" in repr(layer)
    assert list(layer.state_dict()) == list(dense.state_dict())
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    tolerance = {"rtol": 0.05, "atol": 0.05} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-5}
    with torch.no_grad():
        torch.testing.assert_close(layer(x), dense(x), **tolerance)
    outputs = [one(leaf) for one, leaf in zip((layer, dense), leaves, strict=True)]
    torch.testing.assert_close(*outputs, **tolerance)
    seed = torch.randn_like(outputs[0])
    for output in outputs:
        output.backward(seed)
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad, **tolerance)
    torch.testing.assert_close(layer.weight.grad, dense.weight.grad * (layer.mask | dense_grad), **tolerance)
    torch.testing.assert_close(layer.bias.grad, dense.bias.grad, **tolerance)


@by_layer
def test_a_block_is_used_as_a_whole(make: Any) -> None:
    dense, x = make(), inputs(make())
    mask = torch.zeros_like(dense.weight, dtype=torch.bool)
    mask[0, 0] = mask[-1, -1] = True
    layer = sparse(dense, mask=mask)
    whole = sk.BlockSparse.of_mask(mask, block=BLOCK).mask
    assert torch.equal(layer.mask, whole)
    assert whole.sum() > mask.sum()
    assert torch.equal(layer.weight, torch.where(whole, dense.weight, 0))
    other = type(layer)(**options_of(dense), format="block", block=BLOCK)
    assert other.mask.all()
    other.load_state_dict(dense.state_dict())
    other.set_pattern(mask)
    assert_same(layer, other)
    torch.testing.assert_close(layer(x), other(x))
    layer.set_pattern(torch.zeros_like(mask))
    assert (layer.pattern.nnz, layer.pattern.block_size) == (0, BLOCK)
    layer(x).sum().backward()
    layer.set_pattern(~torch.zeros_like(mask))
    assert layer.mask.all()
    with torch.no_grad():
        layer.weight[1, 1] = 1.0
    layer.set_pattern()
    assert torch.equal(layer.mask, sk.BlockSparse.of_mask(layer.weight != 0, block=BLOCK).mask)


def options_of(dense: Any) -> dict[str, Any]:
    names = ("in_features", "out_features")
    if isinstance(dense, nn.Conv2d):
        names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "groups")
    return {name: getattr(dense, name) for name in names}


@by_layer
def test_copies_keep_the_blocks(make: Any) -> None:
    layer = sparse(pruned(make()))
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    x = inputs(layer)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(file, weights_only=False)):
        assert_same(other, layer)
        assert torch.equal(other(x), layer(x))
    assert_same(copy.deepcopy(layer).double().float(), layer)
    assert layer.to(torch.float64).pattern.dtype == torch.float64


@by_layer
def test_state_dicts(make: Any) -> None:
    layer = sparse(pruned(make()))
    other = type(layer)(**options_of(layer), format="block", block=BLOCK)
    other.load_state_dict(layer.state_dict())
    assert_same(other, layer)
    pattern = layer.pattern
    layer.load_state_dict({name: 2 * tensor for name, tensor in layer.state_dict().items()})
    assert layer.pattern is pattern  # within what it was
    elsewhere = pruned(make(), 0.5)
    layer.load_state_dict(elsewhere.state_dict())
    assert_same(layer, sparse(elsewhere))
    with torch.device("meta"):
        empty = type(layer)(**options_of(layer), format="block", block=BLOCK)
    assert empty.pattern.device.type == "meta"
    real = empty.to_empty(device="cpu")
    assert (real.pattern.block_size, real.pattern.nnz) == (BLOCK, real.weight.numel())
    real.load_state_dict(layer.state_dict())
    assert_same(real, layer)
    with torch.device("meta"):
        empty = type(layer)(**options_of(layer), format="block", block=BLOCK)
    empty.load_state_dict(layer.state_dict(), assign=True)
    assert_same(empty, layer)


@by_layer
def test_nonzeros_outside_of_the_blocks_count(make: Any) -> None:
    dense = pruned(make())
    layer, x = sparse(dense), inputs(dense)
    layer(x)
    place = tuple((~layer.mask).nonzero()[0].tolist())
    with torch.no_grad():
        layer.weight[place] = dense.weight[place] = 3.0
    assert layer.outside() == 1
    with pytest.warns(UserWarning, match="1 elements of its weight"):
        torch.testing.assert_close(layer(x), dense(x))
    with torch.no_grad():
        torch.testing.assert_close(layer(x), dense(x))
    with torch.no_grad():
        layer.weight[place] = dense.weight[place] = 0.0
    assert layer.outside() == 0
    torch.testing.assert_close(layer(x), dense(x))


@by_layer
@pytest.mark.parametrize("dense_grad", [False, True])
def test_compiled_and_transformed(make: Any, dense_grad: bool) -> None:
    layer = sparse(pruned(make()), dense_grad=dense_grad)
    x = inputs(layer)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    expected = layer(x)
    actual = compiled(x)
    torch.testing.assert_close(actual, expected)
    mine, theirs = (torch.autograd.grad(y.square().sum(), list(layer.parameters())) for y in (actual, expected))
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), expected)
    parameters = dict(layer.named_parameters())

    def loss(parameters: dict[str, Tensor], one: Tensor) -> Tensor:
        return torch.func.functional_call(layer, parameters, (one[None],)).square().sum()

    per_sample = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    for name, summed in zip(parameters, theirs, strict=True):
        torch.testing.assert_close(per_sample[name].sum(0), summed, rtol=1e-4, atol=1e-4)
    traced = torch.fx.symbolic_trace(nn.Sequential(layer))
    torch.testing.assert_close(traced(x), expected)


@by_layer
def test_autocast_and_channels_last(make: Any) -> None:
    layer = sparse(pruned(make()))
    dense = layer.to_dense()
    x = inputs(layer)
    with torch.autocast("cpu", torch.bfloat16):
        result = layer(x)
        assert result.dtype == torch.bfloat16
        torch.testing.assert_close(result, dense(x), rtol=0.05, atol=0.05)
    if isinstance(layer, nn.Conv2d):
        last = x.contiguous(memory_format=torch.channels_last)
        assert layer(last).is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(layer(last), layer(x))


@pytest.mark.parametrize("padding_mode", ["reflect", "circular"])
def test_padding_modes(padding_mode: Any) -> None:
    dense = pruned(nn.Conv2d(5, 7, 3, padding=1, padding_mode=padding_mode))
    x = torch.randn(2, 5, 6, 6)
    torch.testing.assert_close(sparse(dense)(x), dense(x))


def test_training() -> None:
    """A step of a network of such layers, and growing with the gradient of the dense layer."""
    dense = nn.Sequential(conv(), nn.ReLU(), nn.Flatten(), nn.Linear(14 * 4 * 4, 9))
    prune_blocks_(dense, BLOCK, 0.8)
    net = nn.Sequential(sparse(dense[0]), nn.ReLU(), nn.Flatten(), sparse(dense[3]))
    x, labels = torch.randn(6, 10, 7, 8), torch.randint(9, (6,))
    masks = [layer.mask for layer in (net[0], net[3])]
    optimizers = [torch.optim.SGD(model.parameters(), 0.1, momentum=0.9) for model in (net, dense)]
    for _ in range(3):
        for model, optimizer in zip((net, dense), optimizers, strict=True):
            optimizer.zero_grad()
            F.cross_entropy(model(x), labels).backward()
            if model is dense:
                for layer, mask in zip((dense[0], dense[3]), masks, strict=True):
                    layer.weight.grad.mul_(mask)
            optimizer.step()
    for layer, other, mask in zip((net[0], net[3]), (dense[0], dense[3]), masks, strict=True):
        torch.testing.assert_close(layer.weight, other.weight, rtol=1e-4, atol=1e-4)
        assert torch.equal(layer.mask, mask)
        assert layer.outside() == 0
    layer = net[3]
    layer.dense_grad = True
    net.zero_grad()
    F.cross_entropy(net(x), labels).backward()
    grown = layer.mask | largest_blocks(layer.weight.grad.masked_fill(layer.mask, 0), BLOCK, 0.95)
    layer.set_pattern(grown)
    assert torch.equal(layer.mask, grown)


@pytest.mark.parametrize("kind", [sk.nn.SparseLinear, sk.nn.SparseConv2d])
def test_what_is_refused(kind: Any) -> None:
    dense = pruned(linear() if kind is sk.nn.SparseLinear else conv())
    name, options = kind.__name__, options_of(dense)
    calls = {
        name: lambda **given: kind(**options, **given),
        f"{name}.from_dense": lambda **given: kind.from_dense(dense, **given),
        f"{name}.sharing": lambda **given: kind.sharing(dense, **given),
    }
    for where, call in calls.items():
        with pytest.raises(
            ValueError, match=rf"^{where}: expected block, \(rows, columns\), with format 'block', got N"
        ):
            call(format="block")
        with pytest.raises(ValueError, match=rf"^{where}: expected no block with format 'unstructured', got \(4, 2\)"):
            call(block=(4, 2))
        with pytest.raises(ValueError, match=rf"^{where}: expected format to be 'unstructured', 'block', got 'blocks'"):
            call(format="blocks", block=(4, 2))
        with pytest.raises(ValueError, match=rf"^{where}: expected block of sizes from 1 to 128, got 0x2"):
            call(format="block", block=(0, 2))
        with pytest.raises(TypeError, match=rf"^{where}: expected block to be two int, \(rows, columns\), got 4"):
            call(format="block", block=4)
    whole = linear() if kind is sk.nn.SparseLinear else conv()
    with pytest.raises(ValueError, match="expected weight with blocks of 4x2 without nonzeros, got none"):
        sparse(whole)
