# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""A frozen linear layer: the dense one's results and state_dict; what would train or overwrite it is refused."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

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
    """Kernels have tests of their own: that the layer calls the right one."""
    torch.testing.assert_close(y, expected)


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
        lambda w: w.data.fill_(1),
        lambda w: w.detach().add_(1),
        lambda w: w.copy_(torch.ones_like(w)),
        lambda w: w.__setitem__(0, 1.0),
        lambda w: w.__imul__(2),
        lambda w: torch.add(w, 1, out=w),
        lambda w: nn.init.zeros_(w),
        lambda w: nn.init.kaiming_uniform_(w),
        lambda w: nn.init.normal_(w),
        lambda w: w[0].zero_(),
        lambda w: w[0].__setitem__(3, 1.0),
        lambda w: w.view(-1).fill_(1),
        lambda w: w.t().mul_(2),
        lambda w: w.data[0].zero_(),
        lambda w: w.chunk(2)[0].zero_(),
        lambda w: F.relu(w, inplace=True),
        lambda w: torch._foreach_mul_([w], 2),
        lambda w: torch.optim.SGD([nn.Parameter(w)], 0.1).param_groups[0]["params"][0].data.add_(1),
    ],
)
def test_writes_to_the_weight_are_refused(write: Any) -> None:
    layer = PackedLinear.from_dense(pruned())
    with pytest.raises(RuntimeError, match="expected no write to the weight of a frozen layer"):
        write(layer.weight)
    with pytest.raises(RuntimeError):
        layer.weight.numpy()
    with pytest.raises(RuntimeError, match="expected no other weight for a frozen layer"):
        layer.weight = nn.Parameter(torch.ones(40, 200))


def test_writes_to_what_is_stored_are_noticed() -> None:
    for write in (
        lambda layer: layer.bias.mul_(2),
        lambda layer: layer.packed.values.mul_(2),
        lambda layer: layer.packed.words.zero_(),
        lambda layer: layer.register_parameter("bias", nn.Parameter(torch.zeros(40), False)),
    ):
        layer = PackedLinear.from_dense(pruned())
        with torch.no_grad():
            layer(torch.randn(2, 200))
            write(layer)
            for rows in (2, 40):
                with pytest.raises(RuntimeError, match="expected no writes to a frozen layer"):
                    layer(torch.randn(rows, 200))


def test_averages_of_a_model_have_the_same_bits() -> None:
    model = nn.Sequential(PackedLinear.from_dense(pruned()))
    x = torch.randn(2, 200)
    expected = model(x)
    averaged = torch.optim.swa_utils.AveragedModel(model, use_buffers=True)
    assert list(model.buffers()) == []
    assert torch.equal(averaged(x), expected)


def test_what_is_computed_from_the_weight_is_ordinary() -> None:
    weight = PackedLinear.from_dense(pruned()).weight
    doubled = weight * 2
    assert type(doubled) is torch.Tensor
    assert torch.equal(weight[0] * 1, weight.sum(0) * 0 + weight[0])
    doubled.zero_()
    assert type(weight.topk(2)[0]) is torch.Tensor
    assert type(copy.deepcopy(weight)) is torch.Tensor
    assert type(pickle.loads(pickle.dumps(weight))) is torch.Tensor
    assert "FrozenTensor(tensor(" in repr(weight)
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
        (nn.Conv2d(1, 1, 1), TypeError, "SparseLinear, got Conv2d"),
        (nn.Linear(2, 2).double(), TypeError, "float32, bfloat16 or float16, got torch.float64"),
        (nn.Linear(0, 2), ValueError, "with elements"),
        (torch.ones(2, 2), TypeError, "SparseLinear, got Tensor"),
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
    assert copy.deepcopy(layer).packed.values.data_ptr() != layer.packed.values.data_ptr()
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x), layer(x))


@pytest.mark.parametrize("part", ["words", "crow_indices", "values", "bias"])
def test_a_damaged_file_is_refused(part: str, tmp_path: Path) -> None:
    layer = PackedLinear.from_dense(pruned())
    tensor = layer.bias if part == "bias" else getattr(layer.packed, part)
    given = tensor.detach().contiguous().view(torch.uint8).view(-1)[:64].numpy().tobytes()
    path = tmp_path / "layer.pt"
    torch.save(layer, path)
    whole = path.read_bytes()
    assert whole.count(given) == 1
    place = whole.index(given) + 5
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
    with pytest.raises((ValueError, RuntimeError), match=r"damaged since|PytorchStreamReader"):
        torch.load(path, weights_only=False)
    path.write_bytes(whole)
    assert torch.equal(torch.load(path, weights_only=False).weight, layer.weight)


def test_a_state_without_its_digest_is_refused() -> None:
    state = PackedLinear.from_dense(pruned()).__getstate__()
    del state["digest"]
    with pytest.raises(ValueError, match="damaged since"):
        PackedLinear.__new__(PackedLinear).__setstate__(state)


def test_a_layer_that_was_compiled_is_copied_without_that() -> None:
    layer = PackedLinear.from_dense(pruned())
    layer.compile(backend="eager")
    x = torch.randn(2, 200)
    with torch.no_grad():
        expected = layer(x)
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), copy.copy(layer)):
            assert other._compiled_call_impl is None
            close(other(x), expected)
        assert copy.deepcopy(layer).bfloat16()(x.bfloat16()).dtype is torch.bfloat16


def test_devices_and_layouts_that_differ() -> None:
    dense = pruned()
    layer = PackedLinear.from_dense(dense)
    x = torch.randn(2, 200)
    with torch.no_grad():
        for sparse in (x.to_sparse(), x.to_sparse_csr()):
            close(layer(sparse), dense(sparse))
        meta = copy.deepcopy(layer).to("meta")
        assert meta(x.to("meta")).shape == (2, 40)
        for module, input in ((meta, x), (meta, torch.randn(40, 200)), (layer, x.to("meta"))):
            with pytest.raises(ValueError, match="like the layer, got"):
                module(input)
        copy.deepcopy(meta)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    assert torch.load(file, map_location="meta", weights_only=False).packed.values.is_meta


def test_layers_that_do_more_than_their_class_are_refused() -> None:
    class Adapted(nn.Linear):
        pass

    hooked, masked, forwarded = pruned(), pruned(), pruned()
    hooked.register_forward_hook(lambda module, args, output: output + 1)
    prune.l1_unstructured(masked, "weight", 0.5)
    forwarded.forward = lambda x: x  # type: ignore[method-assign]
    for module in (hooked, masked, forwarded):
        with pytest.raises(ValueError, match="without hooks, masks and a forward of its own"):
            PackedLinear.from_dense(module)
    computed = torch.nn.utils.parametrizations.weight_norm(pruned())
    attention = nn.MultiheadAttention(8, 2).out_proj
    for other in (Adapted(3, 3), sk.nn.MaskedLinear(3, 3), computed, attention, PackedLinear.from_dense(pruned())):
        with pytest.raises(TypeError, match="from_dense: expected"):
            PackedLinear.from_dense(other)


def test_what_a_sparse_layer_does_not_read_is_not_packed() -> None:
    sparse = sk.nn.SparseLinear.from_dense(pruned(), dense_grad=True)
    sparse(torch.randn(5, 200)).sum().backward()
    with torch.no_grad():
        sparse.weight -= 0.1 * sparse.weight.grad
        expected = sparse(torch.ones(1, 200))
        layer = PackedLinear.from_dense(sparse)
        close(layer(torch.ones(1, 200)), expected)
    assert layer.packed.nonzeros <= sparse.pattern.nnz


def test_other_layers_of_a_model_are_loaded() -> None:
    model = nn.Sequential(nn.Linear(3, 200), PackedLinear.from_dense(pruned()))
    model.load_state_dict({"0.weight": torch.ones(200, 3)}, strict=False)
    assert bool((model[0].weight == 1).all())


def test_the_state_dict_is_a_copy() -> None:
    layer = PackedLinear.from_dense(pruned())
    before = layer(torch.ones(1, 200))
    for value in layer.state_dict().values():
        value.zero_()
    assert torch.equal(layer(torch.ones(1, 200)), before)


def test_what_is_packed_wrongly_is_refused() -> None:
    packed = PackedLinear.from_dense(pruned()).packed
    for wrong in (
        packed._replace(words=torch.full_like(packed.words, -1)),
        packed._replace(words=packed.words.double()),
        packed._replace(crow_indices=packed.crow_indices.long()),
        packed._replace(columns=300),
        packed._replace(values=packed.values[:-1]),
        packed._replace(values=packed.values.to("meta")),
    ):
        with pytest.raises(ValueError, match="expected"):
            PackedLinear(wrong)
    for bias in (torch.zeros(39), torch.zeros(40).double()):
        with pytest.raises(ValueError, match="expected bias"):
            PackedLinear(packed, bias)


def test_it_moves_to_other_dtypes() -> None:
    layer = PackedLinear.from_dense(pruned())
    expected = layer.weight.bfloat16()
    layer.to(torch.bfloat16)
    assert layer.packed.words.dtype is torch.int64
    assert torch.equal(layer.weight, expected)
    assert layer(torch.randn(2, 200).bfloat16()).dtype is torch.bfloat16
    assert layer.type(torch.float16).packed.words.dtype is torch.int64
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
