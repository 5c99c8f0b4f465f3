# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""A frozen linear layer: the dense one's results and state_dict; what would train or overwrite it is refused."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sparsekernels as sk
from sparsekernels.nn import PackedLinear

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def pruned(out: int = 40, columns: int = 200, bias: bool = True, dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(0)
    layer = nn.Linear(columns, out, bias, dtype=dtype)
    with torch.no_grad():
        layer.weight.mul_(torch.rand(out, columns) < 0.3)
    return layer.eval()


def close(y: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(y, expected, **({} if y.dtype is torch.float32 else {"rtol": 0.02, "atol": 0.02}))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False])
def test_it_computes_what_the_dense_layer_does(dtype: torch.dtype, bias: bool) -> None:
    dense = pruned(bias=bias, dtype=dtype)
    layer = PackedLinear.from_dense(dense)
    with torch.no_grad():
        for shape in ((200,), (1, 200), (3, 200), (2, 5, 200), (40, 200), (0, 200)):
            x = torch.randn(shape).to(dtype)
            close(layer(x), dense(x))
    assert (layer.in_features, layer.out_features, layer.training) == (200, 40, False)
    assert layer.nbytes < dense.weight.nbytes
    assert "sparsity=0.7" in repr(layer)


def test_it_has_the_state_dict_and_the_layer_of_the_dense_one() -> None:
    dense = pruned()
    layer = PackedLinear.from_dense(dense)
    state = layer.state_dict()
    assert list(state) == list(dense.state_dict())
    assert all(torch.equal(state[name], value) for name, value in dense.state_dict().items())
    nn.Linear(200, 40).load_state_dict(state)
    back = layer.to_dense()
    assert type(back) is nn.Linear
    assert torch.equal(back.weight, dense.weight)
    assert torch.equal(back.bias, dense.bias)
    assert back.weight.requires_grad
    assert torch.equal(layer.weight, dense.weight)
    assert layer.weight.dtype == dense.weight.dtype


def test_a_sparse_layer_is_packed_as_well() -> None:
    dense = pruned()
    layer = PackedLinear.from_dense(sk.nn.SparseLinear.from_dense(dense))
    assert torch.equal(layer.weight, dense.weight)


def test_training_is_refused() -> None:
    layer = PackedLinear.from_dense(pruned())
    assert [name for name, one in layer.named_parameters() if one.requires_grad] == []
    with pytest.raises(RuntimeError, match="expected no training of a frozen layer"):
        layer.train()
    with pytest.raises(RuntimeError, match="expected no training"):
        nn.Sequential(layer).train()
    nn.Sequential(layer).eval()
    with pytest.raises(RuntimeError, match="expected a call without gradients"):
        layer(torch.randn(2, 200, requires_grad=True))
    layer.bias.requires_grad_(True)
    with pytest.raises(RuntimeError, match="expected a call without gradients"):
        layer(torch.randn(2, 200))
    with torch.no_grad():
        layer(torch.randn(2, 200, requires_grad=True))
    with pytest.raises(RuntimeError, match="expected no new weights"):
        layer.reset_parameters()


def test_load_state_dict_is_refused() -> None:
    dense = pruned()
    model = nn.Sequential(PackedLinear.from_dense(dense))
    before = model[0].weight
    for strict in (True, False):
        with pytest.raises(RuntimeError, match="'0': expected no state_dict for a frozen layer"):
            model.load_state_dict({"0.weight": torch.ones(40, 200), "0.bias": torch.ones(40)}, strict=strict)
    assert torch.equal(model[0].weight, before)
    assert torch.equal(model[0].bias, dense.bias)


@pytest.mark.parametrize(
    "write",
    [
        lambda w: w.zero_(),
        lambda w: w.mul_(2),
        lambda w: w.data.fill_(1),
        lambda w: w.detach().add_(1),
        lambda w: w.copy_(torch.ones_like(w)),
        lambda w: w.__setitem__(0, 1.0),
        lambda w: w.__imul__(2),
        lambda w: torch.add(w, 1, out=w),
        lambda w: nn.init.zeros_(w),
        lambda w: w.requires_grad_(),
    ],
)
def test_writes_to_the_weight_are_refused(write: Any) -> None:
    layer = PackedLinear.from_dense(pruned())
    with pytest.raises(RuntimeError, match="expected no write to the weight of a frozen layer"):
        write(layer.weight)
    with pytest.raises((AttributeError, TypeError, KeyError)):
        layer.weight = nn.Parameter(torch.ones(40, 200))


def test_what_is_computed_from_the_weight_is_ordinary() -> None:
    weight = PackedLinear.from_dense(pruned()).weight
    doubled = weight * 2
    assert type(doubled) is torch.Tensor
    assert type(weight[0]) is torch.Tensor
    doubled.zero_()
    assert weight.shape == (40, 200)
    assert weight.device.type == "cpu"
    assert not weight.requires_grad
    assert bool((~weight.bool()).any())
    assert float(weight.float().norm()) > 0


def test_what_does_not_fit_is_refused() -> None:
    layer = PackedLinear.from_dense(pruned(dtype=torch.bfloat16))
    with torch.no_grad():
        for shape in ((2, 100), (3, 190), (400,), ()):  # 190: as many words as 200; (2, 100): as many elements
            with pytest.raises(ValueError, match=r"expected input \[\*, 200\], got"):
                layer(torch.randn(shape).bfloat16())
        with pytest.raises(TypeError, match=r"expected input of torch.bfloat16 like the weight, got torch.float32"):
            layer(torch.randn(2, 200))
    for module, error, said in (
        (nn.Conv2d(1, 1, 1), TypeError, "torch.nn.Linear, got Conv2d"),
        (nn.Linear(2, 2).double(), TypeError, "float32, bfloat16 or float16, got torch.float64"),
        (nn.Linear(0, 2), ValueError, "with elements"),
        (torch.ones(2, 2), TypeError, "torch.nn.Linear, got Tensor"),
    ):
        with pytest.raises(error, match=said):
            PackedLinear.from_dense(module)
    with pytest.raises(TypeError, match="expected a PackedWeight"):
        PackedLinear(torch.ones(2, 2))  # type: ignore[arg-type]


def test_copies_and_pickles_are_whole() -> None:
    layer = PackedLinear.from_dense(pruned())
    x = torch.randn(2, 200)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), copy.copy(layer)):
        assert type(other) is PackedLinear
        assert torch.equal(other(x), layer(x))
        assert not other.training
    assert copy.deepcopy(layer).values.data_ptr() != layer.values.data_ptr()
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x), layer(x))


@pytest.mark.parametrize("part", ["words", "crow_indices", "values"])
def test_a_damaged_pickle_is_refused(part: str) -> None:
    layer = PackedLinear.from_dense(pruned())
    state = layer.__getstate__()
    state["_buffers"] = {name: one.clone() for name, one in state["_buffers"].items()}
    state["_buffers"][part].view(torch.uint8).view(-1)[5] ^= 16
    with pytest.raises(ValueError, match="damaged since"):
        PackedLinear.__new__(PackedLinear).__setstate__(state)
    del state["_digest"]
    with pytest.raises(ValueError, match="damaged since"):
        PackedLinear.__new__(PackedLinear).__setstate__(state)


def test_it_moves_to_other_dtypes() -> None:
    layer = PackedLinear.from_dense(pruned())
    expected = layer.weight.bfloat16()
    layer.to(torch.bfloat16)
    assert layer.words.dtype is torch.int64
    assert torch.equal(layer.weight, expected)
    assert layer(torch.randn(2, 200).bfloat16()).dtype is torch.bfloat16
    layer.double()
    assert layer(torch.randn(2, 200).double()).dtype is torch.float64


def test_autocast_is_the_dense_layers() -> None:
    dense = pruned()
    layer = PackedLinear.from_dense(dense)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for rows in (2, 40):
            x = torch.randn(rows, 200)
            y, expected = layer(x), dense(x)
            assert y.dtype is expected.dtype is torch.bfloat16
            close(y, expected)


def test_transforms_and_compiled_code() -> None:
    dense = pruned()
    layer = PackedLinear.from_dense(dense)
    x = torch.randn(3, 2, 200)
    with torch.no_grad():
        close(torch.func.vmap(layer)(x), dense(x))
        compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
        for rows in (1, 4, 40):
            close(compiled(torch.ones(rows, 200)), F.linear(torch.ones(rows, 200), dense.weight, dense.bias))


def test_a_model_with_one_runs_as_it_did() -> None:
    model = nn.Sequential(pruned(200, 200), nn.ReLU(), pruned(10, 200)).eval()
    x = torch.randn(1, 200)
    with torch.inference_mode():
        expected = model(x)
        for place in (0, 2):
            model[place] = PackedLinear.from_dense(model[place])
        close(model(x), expected)
