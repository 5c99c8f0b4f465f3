# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""sparse_conv2d and sparse_linear as citizens of torch: operators, compilers, transforms, autocast, meta tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sparse_conv2d_cases import conv_weight, linear_weight

import sparsekernels as sk
from sparsekernels.ops.convolution import geometry_of

ops = torch.ops.sparsekernels


def operator_calls() -> list[Any]:
    torch.manual_seed(0)
    weight = conv_weight(groups=2)
    geometry = geometry_of(weight.shape, (1, 2), 1, 1, 2)
    x = torch.randn(2, 4, 5, 6, requires_grad=True)
    g = torch.randn(2, 6, *geometry.output_size(5, 6), requires_grad=True)
    v, b = weight.values.clone().requires_grad_(), torch.randn(6, requires_grad=True)
    dense = weight.to_dense().requires_grad_()
    indices = (weight.crow_indices, weight.col_indices)
    transposed = tuple(weight.transposed(2))
    known = (*indices, None, transposed, geometry)
    image = (4, 5, 6, False)
    x0, g0, v0, b0 = (tensor.detach() for tensor in (x, g, v, b))
    last = x0.contiguous(memory_format=torch.channels_last)
    return [
        pytest.param(ops.sparse_conv2d.default, (x, v, b, *known), id="conv2d"),
        pytest.param(ops.sparse_conv2d.default, (x, v, None, *indices, None, (), geometry), id="not transposed before"),
        pytest.param(ops.sparse_conv2d.default, (last.requires_grad_(), v, b, *known), id="channels last"),
        pytest.param(
            ops.sparse_conv2d.default, (x, dense, b, *indices, weight.flat_indices, transposed, geometry), id="dense"
        ),
        pytest.param(ops.sparse_conv2d_input_gradient.default, (g, v, *known, *image), id="input gradient"),
        pytest.param(ops.sparse_conv2d_weight_gradient.default, (g, x, *known), id="weight gradient"),
        pytest.param(ops._sparse_conv2d.default, (x0, v0, b0, *indices, geometry), id="kernel conv2d"),
        pytest.param(
            ops._sparse_conv2d.default, (last.detach(), v0, None, *indices, geometry), id="kernel, channels last"
        ),
        pytest.param(
            ops._sparse_conv2d_input_gradient.default,
            (g0, v0, *transposed, geometry, 5, 6, False),
            id="kernel input gradient",
        ),
        pytest.param(
            ops._sparse_conv2d_input_gradient.default,
            (g0, v0, *transposed, geometry, 5, 6, True),
            id="kernel input gradient, channels last",
        ),
        pytest.param(
            ops._sparse_conv2d_weight_gradient.default, (g0, x0, *indices, geometry), id="kernel weight gradient"
        ),
    ]


@pytest.mark.parametrize(("operator", "arguments"), operator_calls())
def test_opcheck(operator: Any, arguments: tuple[Any, ...]) -> None:
    torch.library.opcheck(operator, arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("known", [False, True], ids=["not transposed before", "transposed before"])
def test_compile_with_dynamic_shapes(dtype: torch.dtype, known: bool) -> None:
    weight, matrix = conv_weight(dtype), linear_weight(dtype)
    if known:
        weight.transposed(1)
        matrix.transposed(1)

    def net(x: torch.Tensor, v: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        y = sk.sparse_conv2d(x, weight.with_values(v), b, 2, "valid").relu()
        return sk.sparse_linear(y.flatten(2).mean(2).repeat(1, 2)[:, :8], matrix, b)

    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True, dynamic=True, backend="aot_eager")
    v, b = weight.values.clone().requires_grad_(), torch.randn(6, dtype=dtype, requires_grad=True)
    for shape in ((2, 4, 9, 9), (3, 4, 7, 8)):
        x = torch.randn(shape, dtype=dtype, requires_grad=True)
        actual, expected = compiled(x, v, b), net(x, v, b)
        torch.testing.assert_close(actual, expected)
        for mine, theirs in zip(
            torch.autograd.grad(actual.sum(), (x, v, b)), torch.autograd.grad(expected.sum(), (x, v, b)), strict=True
        ):
            torch.testing.assert_close(mine, theirs)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x, v, b), expected)


def test_compiled_graphs_call_the_kernel_operators() -> None:
    from torch._dynamo.backends.common import aot_autograd

    targets: list[str] = []

    def record(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        targets.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    weight = conv_weight()
    weight.transposed(1)
    v = weight.values.requires_grad_()
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda x, v: sk.sparse_conv2d(x, weight.with_values(v)),
        fullgraph=True,
        backend=aot_autograd(fw_compiler=record),
    )
    compiled(torch.randn(2, 4, 5, 5, requires_grad=True), v).sum().backward()
    assert [target for target in targets if "sparse_conv2d" in target] == [
        "sparsekernels._sparse_conv2d.default",
        "sparsekernels._sparse_conv2d_input_gradient.default",
        "sparsekernels._sparse_conv2d_weight_gradient.default",
    ]
    assert not any("sort" in target for target in targets)  # the transposed pattern was there


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_compile_under_a_named_backend(backend: str) -> None:
    from sparse_conv2d_cases import runs

    if (backend, "cpu") not in runs():
        pytest.skip(f"{backend} was not built")
    weight, x = conv_weight(), torch.randn(2, 4, 5, 5, requires_grad=True)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: sk.sparse_conv2d(x, weight), fullgraph=True, backend="aot_eager")
    with sk.use_backend(backend):
        actual, expected = compiled(x), sk.sparse_conv2d(x, weight)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(*(torch.autograd.grad(y.sum(), x)[0] for y in (actual, expected)))


def ours(x: torch.Tensor, w: torch.Tensor, pattern: sk.Unstructured) -> torch.Tensor:
    y = sk.sparse_conv2d(x, pattern.with_values(pattern.values_of(w)), padding=1)
    return y.pow(3).sum()


def theirs(x: torch.Tensor, w: torch.Tensor, pattern: sk.Unstructured) -> torch.Tensor:
    return F.conv2d(x, w * pattern.mask, padding=1).pow(3).sum()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.filterwarnings("ignore:There is a performance drop")  # operators are looped over under vmap
def test_functional_transforms(dtype: torch.dtype) -> None:
    pattern = conv_weight(dtype)
    x, w = torch.randn(3, 1, 4, 3, 3, dtype=dtype), torch.randn(6, 4, 3, 3, dtype=dtype)
    tolerance = {"rtol": 1e-3, "atol": 1e-3} if dtype == torch.float32 else {}
    for transform, argument in (
        (lambda f: torch.func.grad(f, argnums=(0, 1)), x[0]),
        (lambda f: torch.func.vmap(f, in_dims=(0, None)), x),
        (lambda f: torch.func.vmap(torch.func.grad(f, argnums=(0, 1)), in_dims=(0, None)), x),
        (lambda f: torch.func.jacrev(torch.func.jacrev(f)), x[0]),
        (lambda f: torch.func.jacfwd(f, argnums=0), x[0]),
        (lambda f: torch.func.hessian(f), x[0]),
    ):
        actual = transform(lambda x, w: ours(x, w, pattern))(argument, w)
        expected = transform(lambda x, w: theirs(x, w, pattern))(argument, w)
        torch.testing.assert_close(actual, expected, **tolerance)


def test_forward_mode() -> None:
    pattern, matrix = conv_weight(), linear_weight()
    x, tangent = torch.randn(2, 2, 4, 5, 5)
    for function, other in (
        (lambda x: sk.sparse_conv2d(x, pattern), lambda x: F.conv2d(x, pattern.to_dense())),
        (
            lambda x: sk.sparse_linear(x.flatten(1)[:, :8], matrix),
            lambda x: F.linear(x.flatten(1)[:, :8], matrix.to_dense()),
        ),
    ):
        torch.testing.assert_close(
            torch.func.jvp(function, (x,), (tangent,)), torch.func.jvp(other, (x,), (tangent,)), rtol=1e-4, atol=1e-4
        )
    with (
        sk.use_backend("cpu"),
        torch.autograd.forward_ad.dual_level(),
        pytest.raises(sk.BackendError, match="expected a call without forward-mode derivatives, .*, got one with"),
    ):
        sk.sparse_conv2d(x, pattern)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("device", ["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
@pytest.mark.parametrize("training", [False, True])
def test_autocast_as_in_torch(device: str, dtype: torch.dtype, training: bool) -> None:
    weight = conv_weight().to(device, dtype if dtype == torch.float64 else torch.float32)
    dense = weight.to_dense().requires_grad_(training)
    v = weight.values.clone().requires_grad_(training)
    x = torch.randn(2, 4, 5, 5, device=device, dtype=dtype, requires_grad=training)
    b = torch.randn(6, device=device, dtype=weight.dtype, requires_grad=training)
    with torch.autocast(device, torch.bfloat16):
        ours = sk.sparse_conv2d(x, weight.with_values(v), b)
        theirs = F.conv2d(x, dense, b)
        by_operator = ops.sparse_conv2d(
            x, v, b, weight.crow_indices, weight.col_indices, None, (), geometry_of(weight.shape, 1, 0, 1, 1)
        )
    assert ours.dtype == theirs.dtype == by_operator.dtype
    torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)
    assert torch.equal(by_operator, ours)
    if training:
        a = torch.autograd.grad(ours.float().sum(), (x, v, b))
        c = torch.autograd.grad(theirs.float().sum(), (x, dense, b))
        for mine, torchs in zip(a, (c[0], weight.values_of(c[1]), c[2]), strict=True):
            assert mine.dtype == torchs.dtype
            torch.testing.assert_close(mine, torchs, rtol=2e-2, atol=1e-1)


def test_compile_under_autocast() -> None:
    weight, x = conv_weight(), torch.randn(2, 4, 5, 5, requires_grad=True)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: sk.sparse_conv2d(x, weight), fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        actual, expected = compiled(x), sk.sparse_conv2d(x, weight)
    assert actual.dtype == torch.bfloat16
    torch.testing.assert_close(actual, expected)


def test_meta_tensors() -> None:
    x = torch.empty(2, 4, 9, 9, device="meta", dtype=torch.bfloat16)
    weight = conv_weight(torch.bfloat16).to("meta")
    y = sk.sparse_conv2d(x, weight, stride=2)
    assert (y.shape, y.dtype, y.device.type) == ((2, 6, 4, 4), torch.bfloat16, "meta")
    assert sk.sparse_conv2d(x.to(memory_format=torch.channels_last), weight).is_contiguous(
        memory_format=torch.channels_last
    )
    assert sk.sparse_linear(torch.empty(3, 5, 8, device="meta"), linear_weight().to("meta")).shape == (3, 5, 6)


def test_gradient_checkpointing() -> None:
    from torch.utils.checkpoint import checkpoint

    weight, x = conv_weight(), torch.randn(2, 4, 5, 5, requires_grad=True)
    plain = torch.autograd.grad(sk.sparse_conv2d(x, weight).pow(2).sum(), x)[0]
    again = checkpoint(lambda x: sk.sparse_conv2d(x, weight), x, use_reentrant=False)
    assert torch.equal(plain, torch.autograd.grad(again.pow(2).sum(), x)[0])
