# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""sparse_conv2d and sparse_linear as citizens of torch: operators, compilers, transforms, autocast, meta tensors; and
what they refuse.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import sparsekernels as sk
from sparsekernels.ops.convolution import geometry_of

ops = torch.ops.sparsekernels


def conv_weight(dtype: torch.dtype = torch.float32, groups: int = 1) -> sk.Unstructured:
    shape = (6, 4 // groups, 3, 3)
    return sk.Unstructured.from_dense(torch.randn(shape, dtype=dtype), torch.rand(shape) < 0.3)


def linear_weight(dtype: torch.dtype = torch.float32) -> sk.Unstructured:
    return sk.Unstructured.from_dense(torch.randn(6, 8, dtype=dtype), torch.rand(6, 8) < 0.3)


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
        pytest.raises(sk.BackendError, match="no forward-mode derivatives"),
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


# What is refused

X, W, L = torch.randn(2, 4, 7, 7), conv_weight(), linear_weight()
# Its nonzeros are of the first channel only, so the kernels find all that they read in any input.
LOW = sk.Unstructured.from_dense(torch.randn(6, 4, 3, 3), (torch.arange(4) == 0)[:, None, None].expand(6, 4, 3, 3))
REFUSED = [
    pytest.param(X[0, 0], W, {}, ValueError, r"expected input of shape \[N, C, H, W\] .*, got \[7, 7\]", id="an image"),
    pytest.param(X[None], W, {}, ValueError, "expected input of shape .*, got", id="five dimensions"),
    pytest.param(X[:, :3], W, {}, ValueError, "expected input of 4 channels with .* 1 groups, got 3", id="channels"),
    pytest.param(
        torch.randn(2, 8, 7, 7), W, {}, ValueError, "expected input of 4 channels .*, got 8", id="twice the channels"
    ),
    pytest.param(
        torch.randn(2, 5, 7, 7), W, {}, ValueError, "expected input of 4 channels .*, got 5", id="a channel more"
    ),
    pytest.param(
        torch.randn(2, 0, 7, 7), W, {}, ValueError, "expected input of 4 channels .*, got 0", id="no channels"
    ),
    pytest.param(
        X[:, :3],
        LOW,
        {},
        ValueError,
        "expected input of 4 channels .*, got 3",
        id="a channel less, whose weights are zero",
    ),
    pytest.param(
        X, LOW, {"groups": 2}, ValueError, "expected input of 8 channels .*, got 4", id="half the channels, likewise"
    ),
    pytest.param(X, W, {"stride": 2**20}, ValueError, "expected stride below .*, got 1048576", id="far stride"),
    pytest.param(
        X, W, {"stride": (1, 2**31)}, ValueError, "expected stride below .*, got 2147483648", id="farther stride"
    ),
    pytest.param(X, W, {"padding": 2**20}, ValueError, "expected padding below .*, got 1048576", id="large padding"),
    pytest.param(X, W, {"dilation": 2**20}, ValueError, "expected dilation below .*, got 1048576", id="large dilation"),
    pytest.param(
        X,
        W,
        {"dilation": 2**19, "padding": 2**19},
        ValueError,
        "expected kernel size times dilation below .*, got 1572864",
        id="kernel x dilation",
    ),
    pytest.param(
        X, W, {"stride": [1, 1, 1]}, ValueError, r"expected stride to be .*, got \[1, 1, 1\]", id="list of three"
    ),
    pytest.param(X, W, {"stride": [0]}, ValueError, r"expected stride to be .*, got \[0\]", id="list of 0"),
    pytest.param(
        X, W, {"dilation": [1, 1.5]}, TypeError, r"expected dilation to be .*, got \[1, 1.5\]", id="list of a half"
    ),
    pytest.param(
        X, W, {"groups": 2}, ValueError, "expected input of 8 channels with .* 2 groups, got 4", id="channels of groups"
    ),
    pytest.param(X, W, {"groups": 4}, ValueError, "expected groups to divide the 6 outputs, got 4", id="groups"),
    pytest.param(X, W, {"groups": 0}, ValueError, "expected groups to be .*, got 0", id="no groups"),
    pytest.param(X, W, {"groups": 1.5}, TypeError, "expected groups to be .*, got 1.5", id="groups of a half"),
    pytest.param(X, W, {"stride": 0}, ValueError, "expected stride to be .*, got 0", id="stride 0"),
    pytest.param(
        X, W, {"stride": (1, 1, 1)}, ValueError, r"expected stride to be .*, got \(1, 1, 1\)", id="three strides"
    ),
    pytest.param(X, W, {"stride": ()}, ValueError, r"expected stride to be .*, got \(\)", id="no strides"),
    pytest.param(X, W, {"stride": 1.5}, TypeError, "expected stride to be .*, got 1.5", id="stride of a half"),
    pytest.param(X, W, {"stride": None}, TypeError, "expected stride to be .*, got None", id="stride None"),
    pytest.param(X, W, {"dilation": 0}, ValueError, "expected dilation to be .*, got 0", id="dilation 0"),
    pytest.param(X, W, {"padding": -1}, ValueError, "expected padding to be .*, got -1", id="negative padding"),
    pytest.param(
        X,
        W,
        {"padding": (1, 1, 1, 1)},
        ValueError,
        r"expected padding to be .*, got \(1, 1, 1, 1\)",
        id="four paddings",
    ),
    pytest.param(
        X, W, {"padding": "full"}, ValueError, "expected padding to be \"same\".*, got 'full'", id="padding name"
    ),
    pytest.param(
        X,
        W,
        {"padding": "same", "stride": 2},
        ValueError,
        "expected stride to be 1 with padding.*, got 2",
        id="same and stride",
    ),
    pytest.param(
        X, W, {"dilation": 4}, ValueError, "expected input of at least the 9x9 pixels .*, got 7x7", id="large kernel"
    ),
    pytest.param(
        X[..., :2], W, {}, ValueError, "expected input of at least the 3x3 pixels .*, got 7x2", id="small image"
    ),
    pytest.param(X, W, {"bias": torch.ones(5)}, ValueError, r"expected bias of shape \[6\] .*, got \[5\]", id="bias"),
    pytest.param(
        X, W, {"bias": torch.ones(1, 6)}, ValueError, "expected bias of shape .*, got", id="bias of two dimensions"
    ),
    pytest.param(
        X,
        W,
        {"bias": torch.ones(6).double()},
        TypeError,
        "expected bias of dtype .*, got torch.float64",
        id="bias dtype",
    ),
    pytest.param(
        X,
        W,
        {"bias": torch.ones(6, device="meta")},
        ValueError,
        "expected bias on cpu like weight, got meta",
        id="bias on meta",
    ),
    pytest.param(X, W, {"bias": [1.0] * 6}, TypeError, "expected bias to be .*, got list", id="bias list"),
    pytest.param(X.double(), W, {}, TypeError, "expected weight of dtype .*, got torch.float32", id="dtypes"),
    pytest.param(X.bfloat16(), W, {}, TypeError, "expected weight of dtype .*, got torch.float32", id="half input"),
    pytest.param(
        X, W.to(torch.float64), {}, TypeError, "expected weight of dtype .*, got torch.float64", id="float64 weight"
    ),
    pytest.param(X.int(), W, {}, TypeError, "expected input of dtype .*, got torch.int32", id="int input"),
    pytest.param(X.to("meta"), W, {}, ValueError, "expected input on cpu like weight, got meta", id="input on meta"),
    pytest.param(
        X.to_sparse(), W, {}, TypeError, "expected input of layout .*, got torch.sparse_coo", id="sparse input"
    ),
    pytest.param(X.tolist(), W, {}, TypeError, "expected input to be .*, got list", id="input list"),
    pytest.param(None, W, {}, TypeError, "expected input to be .*, got NoneType", id="no input"),
    pytest.param(
        X, W.to_dense(), {}, TypeError, "expected weight to be .*Unstructured.from_dense.*, got Tensor", id="dense"
    ),
    pytest.param(
        X, L, {}, ValueError, r"expected weight of shape .*, got \[6, 8\].*goes to sparse_linear", id="linear weight"
    ),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sizes_are_refused_alike_in_all_dtypes(dtype: torch.dtype) -> None:
    for name in ("stride", "padding", "dilation"):
        with pytest.raises(ValueError, match=f"sparse_conv2d: expected {name} below 1048576, got 1048576"):
            sk.sparse_conv2d(X.to(dtype), W.to(dtype), **{name: 2**20})
    assert sk.sparse_conv2d(X.to(dtype), W.to(dtype), stride=2**20 - 1).shape == (2, 6, 1, 1)


@pytest.mark.parametrize("training", [False, True])
def test_lists(training: bool) -> None:
    """As torch takes them, in eager calls as well, whose geometries are looked up."""
    x = X.clone().requires_grad_(training)
    for options in ({"stride": [2, 2]}, {"padding": [1, 2]}, {"dilation": [2, 1]}, {"stride": [2], "padding": [1]}):
        torch.testing.assert_close(sk.sparse_conv2d(x, W, **options), F.conv2d(x, W.to_dense(), **options))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize(("input", "weight", "options", "error", "message"), REFUSED)
def test_bad_input_is_refused_in_words(
    input: Any,
    weight: Any,
    options: dict[str, Any],
    error: type[Exception],
    message: str,
    backend: str | None,
    training: bool,
) -> None:
    if training and isinstance(input, torch.Tensor) and input.is_floating_point():
        input = input.detach().clone().requires_grad_()
    with sk.use_backend(backend) if backend else contextlib.nullcontext(), pytest.raises(error, match=message):
        sk.sparse_conv2d(input, weight, **options)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("input", "weight", "bias", "error", "message"),
    [
        (torch.randn(3, 7), L, None, ValueError, r"expected input of shape \[\*, 8\] .*, got \[3, 7\]"),
        (torch.randn(4, 4), L, None, ValueError, r"expected input of shape .*, got \[4, 4\]"),
        (torch.tensor(1.0), L, None, ValueError, r"expected input of shape .*, got \[\]"),
        (torch.randn(3, 8), L, torch.ones(8), ValueError, r"expected bias of shape \[6\] .*, got \[8\]"),
        (torch.randn(3, 8).half(), L, None, TypeError, "expected weight of dtype .*, got torch.float32"),
        (torch.randn(3, 8), W, None, ValueError, "expected weight of shape .*, got .*goes to sparse_conv2d"),
        (torch.randn(3, 8), torch.randn(6, 8), None, TypeError, "expected weight to be .*, got Tensor"),
        ([1.0], L, None, TypeError, "expected input to be .*, got list"),
    ],
)
def test_bad_input_of_linear(
    input: Any, weight: Any, bias: Any, error: type[Exception], message: str, training: bool
) -> None:
    if training and isinstance(input, torch.Tensor):
        input = input.clone().requires_grad_()
    with pytest.raises(error, match="sparse_linear: " + message):
        sk.sparse_linear(input, weight, bias)


def test_a_backend_that_cannot_run_the_call_says_why() -> None:
    with sk.use_backend("triton"), pytest.raises(sk.BackendError, match="no such implementation, only cpu, reference"):
        sk.sparse_conv2d(X, W)
    with (
        sk.use_backend("cpu"),
        pytest.raises(sk.BackendError, match="'cpu' was asked for but.*float64|not built"),
    ):
        sk.sparse_conv2d(X.double(), W.to(torch.float64))
