# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""SparseConv1d, and SparseTransposedLinear in the place of transformers' Conv1D: dense modules but for their work.

More than 400 lines: all that the two promise, one network of both in most tests.
"""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conv1d_of_transformers import Conv1D
from sparse_nets import assert_all_close, gradients, pruned
from torch import Tensor, nn

import sparsekernels as sk
from sparsekernels.nn import SparseConv1d, SparseTransposedLinear
from sparsekernels.pruning import largest_blocks, prune_blocks_
from sparsekernels.testing import assert_verified


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = pruned(nn.Conv1d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2))
        self.linear = pruned(Conv1D(5, 6))
        self.linear.bias.data.normal_()

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(F.relu(self.conv(x)).transpose(1, 2).contiguous())


def sparse(dense: Dense, dense_grad: bool = False) -> Dense:
    net = copy.deepcopy(dense)
    net.conv = SparseConv1d.from_dense(net.conv, dense_grad=dense_grad)
    net.linear = SparseTransposedLinear.from_dense(net.linear, dense_grad=dense_grad)
    return net


def sequences() -> Tensor:
    return torch.randn(3, 4, 17)


def masked(dense: Dense, found: list[Tensor]) -> list[Tensor]:
    """Zero where the weight is."""
    pairs = zip(dense.named_parameters(), found, strict=True)
    return [one * (parameter != 0) if name.endswith("weight") else one for (name, parameter), one in pairs]


by_dense_grad = pytest.mark.parametrize("dense_grad", [False, True])


def test_drop_in() -> None:
    dense, x = Dense(), sequences()
    net = sparse(dense)
    assert isinstance(net.conv, nn.Conv1d)
    torch.testing.assert_close(net(x), dense(x))
    assert_all_close(gradients(net, x), masked(dense, gradients(dense, x)))
    with torch.no_grad():
        torch.testing.assert_close(net(x), dense(x))
    state, expected = net.state_dict(), dense.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    for ours, theirs in ((net.conv, dense.conv), (net.linear, dense.linear)):
        assert torch.equal(ours.mask, theirs.weight != 0)
        assert ours.sparse_weight.nnz == theirs.weight.count_nonzero()
    assert "stride=(2,), padding=(2,), dilation=(2,), groups=2, sparsity=0." in repr(net.conv)
    assert repr(net.linear).startswith("SparseTransposedLinear(nf=5, nx=6, bias=True, sparsity=0.")


@pytest.mark.parametrize("shape", [(6,), (1, 6), (3, 6), (2, 3, 4, 6), (0, 6), (40, 6)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("bias", [False, True])
def test_transposed_linear_against_the_oracle(shape: tuple[int, ...], dtype: torch.dtype, bias: bool) -> None:
    layer = SparseTransposedLinear(70, 6, bias, dtype=dtype)
    layer.set_pattern(torch.rand(6, 70) < 0.3)
    mask, x = layer.mask, torch.randn(shape).to(dtype).requires_grad_()
    tensors = [x, layer.weight.detach().requires_grad_()]
    tensors += [torch.randn(70).to(dtype).requires_grad_()] if bias else []

    def ours(x: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(("weight", "bias"), parameters, strict=False)), (x,))

    def by_parameters(x: Tensor, *parameters: Tensor) -> Tensor:
        """Without a transform of torch.func."""
        for name, one in zip(("weight", "bias"), parameters, strict=False):
            layer._parameters[name] = one
        return layer(x)

    def definition(x: Tensor, weight: Tensor, *bias: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        y = x.to(wide) @ (weight * mask).to(wide)
        return (y + bias[0].to(wide) if bias else y).to(x.dtype)

    assert_verified(by_parameters, definition, tensors)
    assert_verified(ours, definition, tensors)
    with torch.no_grad():
        y = by_parameters(*tensors)
    assert y.is_contiguous()
    if dtype != torch.float64:
        assert torch.equal(y, by_parameters(*tensors).detach())  # one rounding, the bias included


@pytest.mark.parametrize("view", [lambda x: x[::2], lambda x: x[:, ::2], lambda x: x.t(), lambda x: x.expand(12, 12)])
def test_any_strides(view: Callable[[Tensor], Tensor]) -> None:
    layer, x = SparseTransposedLinear(5, 6), torch.randn(1, 12).expand(12, 12).clone()
    layer.set_pattern(torch.rand(6, 5) < 0.4)
    x = view(x)[..., :6]
    with torch.no_grad():
        torch.testing.assert_close(layer(x), x @ layer.weight + layer.bias)
    torch.testing.assert_close(layer(x), x @ layer.weight + layer.bias)


def test_the_constructors_are_those_of_the_dense_layers() -> None:
    torch.manual_seed(1)
    ours = SparseConv1d(4, 6, 3, bias=False)
    torch.manual_seed(1)
    theirs = nn.Conv1d(4, 6, 3, bias=False)
    assert torch.equal(ours.weight, theirs.weight)
    x = sequences()
    torch.testing.assert_close(ours(x), theirs(x))
    assert SparseConv1d(4, 6, 3, dtype=torch.float64)(sequences().double()).dtype == torch.float64
    torch.manual_seed(1)
    transposed = SparseTransposedLinear(6, 4)
    torch.manual_seed(1)
    assert torch.equal(transposed.weight, Conv1D(6, 4).weight)
    assert transposed.mask.all()
    x = torch.randn(2, 4)
    torch.testing.assert_close(transposed(x), F.linear(x, transposed.weight.t(), transposed.bias))
    plain = SparseTransposedLinear(6, 4, bias=False)
    assert list(plain.state_dict()) == ["weight"]
    torch.testing.assert_close(plain(x), x @ plain.weight)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [1, (2,), "same"])
def test_padding_modes(mode: Any, padding: Any) -> None:
    dense = pruned(nn.Conv1d(4, 6, 4, padding=padding, padding_mode=mode))
    x = sequences()
    torch.testing.assert_close(SparseConv1d.from_dense(dense)(x), dense(x))


def test_to_dense() -> None:
    dense, x = Dense(), sequences()
    dense.linear.bias.requires_grad_(False)
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


def test_parameters_are_shared() -> None:
    dense = Dense()
    for layer, kind in ((dense.conv, SparseConv1d), (dense.linear, SparseTransposedLinear)):
        other: Any = kind.sharing(layer)
        assert other.weight is layer.weight
        assert other.bias is layer.bias
        assert torch.equal(other.mask, layer.weight != 0)


def test_bad_modules_are_refused() -> None:
    with pytest.raises(TypeError, match=r"from_dense: expected module to be a torch.nn.Conv1d, got Conv2d"):
        SparseConv1d.from_dense(nn.Conv2d(4, 6, 3))
    with pytest.raises(TypeError, match=r"sharing: expected module to be a torch.nn.Conv1d, got Linear"):
        SparseConv1d.sharing(nn.Linear(4, 6))
    with pytest.raises(TypeError, match=r"expected module to be a torch.nn.Conv2d, got Conv1d"):
        sk.nn.SparseConv2d.from_dense(nn.Conv1d(4, 6, 3))
    for make in (SparseTransposedLinear.from_dense, SparseTransposedLinear.sharing):
        with pytest.raises(TypeError, match=r"expected module to be a transformers.pytorch_utils.Conv1D, got Linear"):
            make(pruned(nn.Linear(4, 6)))
    for make, layer in (
        (SparseConv1d.from_dense, nn.Conv1d(4, 6, 3)),
        (SparseTransposedLinear.from_dense, Conv1D(6, 4)),
    ):
        with pytest.raises(ValueError, match="expected weight with zeros, got none"):
            make(layer)
        with pytest.raises(ValueError, match="expected format to be .*, got 'csr'"):
            make(pruned(layer), format="csr")


@pytest.mark.parametrize("grad", [False, True])
def test_bad_input_is_refused_in_words(grad: bool) -> None:
    net = sparse(Dense())
    with torch.set_grad_enabled(grad):
        for channels in (3, 8):
            with pytest.raises(ValueError, match=f"sparse_conv1d: expected input of 4 channels.*, got {channels}"):
                net.conv(torch.randn(2, channels, 9))
        for bad, error, words in (
            (torch.randn(2, 7), ValueError, r"expected input of shape \[\*, 6\].*, got \[2, 7\]"),
            (torch.tensor(1.0), ValueError, r"expected input of shape \[\*, 6\].*, got \[\]"),
            (torch.randn(2, 6).double(), TypeError, "expected weight of dtype torch.float64 like input"),
            (torch.ones(2, 6).int(), TypeError, "expected input of dtype"),
            ([1.0], TypeError, "expected input to be"),
            (torch.randn(2, 6, device="meta"), ValueError, "expected input on cpu like weight, got meta"),
        ):
            with pytest.raises(error, match=words):
                net.linear(bad)


@pytest.mark.parametrize("block", [(4, 2), (1, 3), (16, 16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@by_dense_grad
def test_blocks(block: tuple[int, int], dtype: torch.dtype, dense_grad: bool) -> None:
    """Of outputs and inputs; the pattern of a weight [in, out] has them the other way about."""
    dense: Any = nn.Module()
    dense.conv, dense.linear = nn.Conv1d(20, 34, 3, groups=2), Conv1D(18, 34)
    kept = largest_blocks(dense.to(dtype).linear.weight.t(), block, 0.5).t()
    masks = prune_blocks_(dense, block, 0.5)
    assert torch.equal(masks["linear"], kept)
    for layer, kind, x in (
        (dense.conv, SparseConv1d, torch.randn(2, 20, 9, dtype=dtype)),
        (dense.linear, SparseTransposedLinear, torch.randn(3, 34, dtype=dtype)),
    ):
        options: Any = {"format": "block", "block": block}
        for ours in (kind.from_dense(layer, dense_grad=dense_grad, **options), kind.sharing(layer, **options)):
            assert ours.pattern.block_size == (block if kind is SparseConv1d else block[::-1])
            assert torch.equal(ours.mask, layer.weight != 0)
            torch.testing.assert_close(ours(x), layer(x), rtol=2e-2, atol=2e-2)
            with torch.no_grad():
                torch.testing.assert_close(ours(x), layer(x), rtol=2e-2, atol=2e-2)
            gradients = [torch.autograd.grad(one(x).square().sum(), one.weight)[0] for one in (ours, layer)]
            used = ours.mask | ours.dense_grad
            torch.testing.assert_close(gradients[0], gradients[1] * used, rtol=5e-2, atol=1e-1)
            for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
                assert torch.equal(other(x), ours(x))
                assert other.pattern.block_size == ours.pattern.block_size
            ours.set_pattern(torch.rand(ours.weight.shape) < 0.02)
            expected = copy.deepcopy(layer)
            expected.load_state_dict(ours.state_dict())
            torch.testing.assert_close(ours(x), expected(x), rtol=2e-2, atol=2e-2)
            torch.nn.init.normal_(layer.weight).data.mul_(masks["conv" if kind is SparseConv1d else "linear"])


def test_block_sizes_are_checked() -> None:
    for kind, layer in ((SparseConv1d, nn.Conv1d(4, 6, 3)), (SparseTransposedLinear, Conv1D(6, 4))):
        mask: Any = torch.rand(layer.weight.shape) < 0.5
        with pytest.raises(
            ValueError, match=r"from_dense: expected block, \(rows, columns\), with format 'block', got"
        ):
            kind.from_dense(layer, mask, format="block")
        with pytest.raises(ValueError, match="expected no block with format 'unstructured', got"):
            kind.from_dense(layer, mask, block=(2, 2))
        with pytest.raises(ValueError, match="expected block of sizes from 1 to 128, got 0x3"):
            kind.from_dense(layer, mask, format="block", block=(0, 3))
        with pytest.raises(TypeError, match="expected block to be two int"):
            kind.sharing(pruned(layer), format="block", block=4)


def test_backends() -> None:
    net, x = sparse(Dense()), sequences()
    expected = net(x)
    with sk.use_backend("reference"):
        torch.testing.assert_close(net(x), expected)
    with sk.use_backend("cuda"), pytest.raises(sk.BackendError):
        net.linear(torch.randn(2, 6))


# Files, copies, patterns


def test_load_a_dense_checkpoint() -> None:
    x, first, second = sequences(), Dense(), Dense()
    net = sparse(first).eval()
    with torch.no_grad():
        net.load_state_dict(second.state_dict())
        torch.testing.assert_close(net(x), second(x))
    for ours, theirs in ((net.conv, second.conv), (net.linear, second.linear)):
        assert torch.equal(ours.mask, theirs.weight != 0)
    first.load_state_dict(net.state_dict())
    torch.testing.assert_close(first(x), second(x))
    meta = SparseTransposedLinear(5, 6, device="meta")
    meta.load_state_dict(second.linear.state_dict(), assign=True)
    torch.testing.assert_close(meta(torch.ones(2, 6)), second.linear(torch.ones(2, 6)))


def test_set_pattern() -> None:
    net, x = sparse(Dense()), torch.randn(2, 6)
    for mask in (torch.rand(6, 5) < 0.5, torch.ones(6, 5).bool(), torch.zeros(6, 5).bool()):
        net.linear.set_pattern(mask)
        for grad in (False, True):
            with torch.set_grad_enabled(grad):
                torch.testing.assert_close(net.linear(x), x @ (net.linear.weight * mask) + net.linear.bias)
    with pytest.raises(ValueError, match=r"expected mask of shape \[6, 5\]"):
        net.linear.set_pattern(torch.ones(5, 6).bool())


def test_copies_pickles_and_moves() -> None:
    net, x = sparse(Dense()), sequences()
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), torch.load(file, weights_only=False)):
        assert torch.equal(other(x), net(x))
        with torch.no_grad():
            assert torch.equal(other(x), net(x))
            other.linear.weight.zero_()
            other.linear.bias.zero_()
            assert not other(x).any()
    for layer, y in ((net.conv, torch.randn(2, 4, 9)), (net.linear, torch.randn(2, 6))):
        layer.compile(backend="eager")
        assert torch.equal(pickle.loads(pickle.dumps(layer))(y), layer.forward(y))
        layer._compiled_call_impl = None
    half = copy.deepcopy(net).bfloat16()
    with torch.no_grad():
        assert half(x.bfloat16()).dtype == torch.bfloat16
        torch.testing.assert_close(half.double()(x.double()), net(x).double(), rtol=2e-2, atol=2e-2)
    assert half.to("meta")(x.to("meta").double()).shape == (3, 9, 5)
    assert half.to_empty(device="cpu").linear.mask.all()


@by_dense_grad
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_training_equals_masked_dense_training(optimizer: Any, dense_grad: bool) -> None:
    dense, x = Dense(), sequences()
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
    assert list(net.state_dict()["linear.weight"][~masks[1]].abs().unique()) == [0]  # what dense_grad moved is hidden


@by_dense_grad
def test_second_derivatives(dense_grad: bool) -> None:
    net = sparse(Dense(), dense_grad).double()
    x = torch.randn(1, 4, 7, dtype=torch.float64, requires_grad=True)

    def run(x: Tensor, *parameters: Tensor) -> Tensor:
        for (name, _), one in zip(list(net.named_parameters()), parameters, strict=True):
            owner, _, key = name.rpartition(".")
            net.get_submodule(owner)._parameters[key] = one
        return net(x)

    tensors = [x, *(parameter.detach().requires_grad_() for parameter in net.parameters())]
    if dense_grad:  # the gradient of what is not read is that of another function
        gradient = torch.autograd.grad(run(*tensors).sum(), tensors[3], create_graph=True)[0]
        assert gradient[~net.linear.mask].any()
        assert torch.autograd.gradgradcheck(lambda x: run(x, *tensors[1:]), tensors[:1])
    else:
        masks = [None, net.conv.mask, None, net.linear.mask, None]

        def at_nonzeros(*tensors: Tensor) -> Tensor:
            """What is moved elsewhere would make the layers dense."""
            pairs = zip(tensors, masks, strict=True)
            return run(*(one if mask is None else one * mask for one, mask in pairs))

        assert torch.autograd.gradcheck(at_nonzeros, tensors)
        assert torch.autograd.gradgradcheck(at_nonzeros, tensors)


@pytest.mark.parametrize("bias", [False, True])
def test_second_derivatives_of_plain_calls(bias: bool) -> None:
    """float32, in which a transposed product is one call of a kernel that is differentiated as an input gradient."""
    layer = SparseTransposedLinear(33, 20, bias)
    layer.set_pattern(torch.rand(20, 33) < 0.3)
    mask = layer.mask

    def derivatives(dense: bool) -> Callable[..., Tensor]:
        def run(x: Tensor, weight: Tensor, *more: Tensor) -> Tensor:
            if dense:
                y = x @ (weight * mask)
                y = y + more[0] if more else y
            else:
                layer._parameters.update(zip(("weight", "bias"), (weight, *more), strict=False))
                y = layer(x)
            first = torch.autograd.grad(y.pow(3).sum(), (x, weight, *more), create_graph=True)
            return torch.cat([(one * mask if one.shape == mask.shape else one).flatten() for one in first])

        return run

    tensors = [torch.randn(7, 20), layer.weight.detach().clone(), *([torch.randn(33)] if bias else [])]
    tensors = [one.requires_grad_() for one in tensors]
    found = []
    for dense in (False, True):
        first = derivatives(dense)(*tensors)
        second = torch.autograd.grad(first.square().sum(), tensors)
        found.append([first, second[0], second[1] * mask, *second[2:]])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))


# torch's tools


@by_dense_grad
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile(backend: str, dense_grad: bool) -> None:
    dense, x = Dense(), sequences()
    net = sparse(dense, dense_grad)
    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True, backend=backend)
    torch.testing.assert_close(compiled(x), dense(x))
    assert_all_close(gradients(compiled, x), gradients(net, x))
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), dense(x))
        net.linear.set_pattern(net.linear.mask & (torch.rand_like(net.linear.weight) < 0.5))
        torch.testing.assert_close(compiled(x), net(x))
        net.linear.weight.mul_(2)
        torch.testing.assert_close(compiled(x), net(x))


def test_compiled_graphs_do_not_work_out_what_follows_from_the_pattern() -> None:
    from torch._dynamo.backends.common import aot_autograd

    targets: list[str] = []

    def record(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        targets.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    net = sparse(Dense())
    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True, backend=aot_autograd(fw_compiler=record))
    compiled(sequences().requires_grad_()).sum().backward()
    assert not any("sort" in target or "repeat_interleave" in target or "nonzero" in target for target in targets)


@by_dense_grad
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_exported_and_traced(dense_grad: bool) -> None:
    net, x = sparse(Dense(), dense_grad).eval(), sequences()
    more = torch.randn(7, 4, 17)
    program = torch.export.export(net, (x,), dynamic_shapes={"x": {0: torch.export.Dim("batch", min=2)}})
    torch.testing.assert_close(program.module()(more), net(more))
    graph = torch.fx.symbolic_trace(net)
    torch.testing.assert_close(graph(more), net(more))
    assert_all_close(gradients(graph, more), gradients(net, more))
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            traced = torch.jit.trace(net, x)
            assert "planned" not in str(traced.inlined_graph)
            torch.testing.assert_close(traced(more), net(more))


@by_dense_grad
def test_autocast(dense_grad: bool) -> None:
    dense, x = Dense(), sequences()
    net = sparse(dense, dense_grad)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = net(x), dense(x)
        torch.testing.assert_close(ours, theirs, rtol=5e-2, atol=5e-2)
        assert ours.dtype == theirs.dtype == torch.bfloat16
        a, b = gradients(net, x), gradients(dense, x)
    for mine, expected in zip(a, b if dense_grad else masked(dense, b), strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, expected, rtol=1e-1, atol=2e-1)


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # operators are looped over under vmap
def test_functional_call() -> None:
    net, x = sparse(Dense()).eval(), sequences()
    with torch.no_grad():
        doubled = {name: 2 * parameter for name, parameter in net.named_parameters()}
        expected = copy.deepcopy(net)
        for parameter in expected.parameters():
            parameter.mul_(2)
        torch.testing.assert_close(torch.func.functional_call(net, doubled, (x,)), expected(x))

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(net, parameters, (x,)).pow(2).sum()

    parameters = {name: parameter.detach() for name, parameter in net.named_parameters()}
    assert_all_close(list(torch.func.grad(loss)(parameters, x).values()), gradients(net, x))
    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x[:, None])
    assert_all_close([gradient.sum(0) for gradient in each.values()], gradients(net, x))


def test_rows_that_are_faster_dense_are_computed_so() -> None:
    dense = Dense().linear
    layer = SparseTransposedLinear.sharing(dense)
    layer.dense_rows = (2, 4)
    with torch.no_grad():
        for rows in (1, 2, 3, 4, 5):
            x = torch.randn(rows, 6)
            torch.testing.assert_close(layer(x), dense(x))
            assert torch.equal(layer(x), dense(x)) or rows not in (2, 3)


def test_transformers_is_not_imported() -> None:
    code = (
        "import sys, torch, sparsekernels as sk\n"
        "layer = sk.nn.SparseTransposedLinear(8, 4)\n"
        "layer(torch.ones(2, 4))\n"
        "try:\n    sk.nn.SparseTransposedLinear.from_dense(torch.nn.Linear(4, 8))\n"
        "except TypeError:\n    pass\n"
        "assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_weight_of_another_shape_or_device_is_refused() -> None:
    layer, x = SparseTransposedLinear(5, 6), torch.randn(2, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for grad in (False, True):
            with torch.set_grad_enabled(grad):
                with pytest.raises(RuntimeError, match="shape|size"):  # torch's own
                    torch.func.functional_call(layer, {"weight": torch.randn(5, 6)}, (x,))
                with pytest.raises(ValueError, match="expected weight on cpu like input, got meta"):
                    torch.func.functional_call(layer, {"weight": torch.randn(6, 5, device="meta")}, (x,))
