# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""sparse_conv1d beside the matrix of cases: what it refuses, and how it is a citizen of torch."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sparse_conv2d_cases import conv_weight, linear_weight, sequence_weight
from torch import Tensor

import sparsekernels as sk
from sparsekernels.ops.sparse_conv2d import plans

X, W = torch.randn(2, 4, 9), sequence_weight()
WORDS = {
    "one dimension": (X[0, 0], W, {}, ValueError, r"input of shape \[N, C, L\] or \[C, L\], got \[9\]"),
    "four dimensions": (X[None], W, {}, ValueError, r"input of shape \[N, C, L\] .*, got \[1, 2, 4, 9\]"),
    "channels": (X[:, :3], W, {}, ValueError, "input of 4 channels with .* 1 groups, got 3"),
    "a channel more": (torch.randn(2, 5, 9), W, {}, ValueError, "input of 4 channels .*, got 5"),
    "unbatched channels": (X[0, :3], W, {}, ValueError, "input of 4 channels .*, got 3"),
    "channels of groups": (X, W, {"groups": 2}, ValueError, "input of 8 channels with .* 2 groups, got 4"),
    "groups": (X, W, {"groups": 4}, ValueError, "groups to divide the 6 outputs, got 4"),
    "no groups": (X, W, {"groups": 0}, ValueError, "groups to be .*, got 0"),
    "half a group": (X, W, {"groups": 0.5}, TypeError, "groups to be .*, got 0.5"),
    "stride 0": (X, W, {"stride": 0}, ValueError, "stride to be an integer of at least 1, got 0"),
    "two strides": (X, W, {"stride": (1, 1)}, ValueError, r"stride to be an integer of at least 1, got \(1, 1\)"),
    "no strides": (X, W, {"stride": []}, ValueError, r"stride to be an integer of at least 1, got \[\]"),
    "half a stride": (X, W, {"stride": 1.5}, TypeError, "stride to be an integer of at least 1, got 1.5"),
    "no stride": (X, W, {"stride": None}, TypeError, "stride to be an integer of at least 1, got None"),
    "far stride": (X, W, {"stride": 2**20}, ValueError, "stride below 1048576, got 1048576"),
    "two dilations": (X, W, {"dilation": [1, 2]}, ValueError, r"dilation to be an integer .*, got \[1, 2\]"),
    "dilation 0": (X, W, {"dilation": 0}, ValueError, "dilation to be an integer of at least 1, got 0"),
    "large dilation": (X, W, {"dilation": 2**20}, ValueError, "dilation below 1048576, got 1048576"),
    "kernel x dilation": (
        X,
        W,
        {"dilation": 2**19, "padding": 2**19},
        ValueError,
        "kernel size times dilation below .*, got 1572864",
    ),
    "two paddings": (X, W, {"padding": (1, 1)}, ValueError, r"padding to be an integer of at least 0, got \(1, 1\)"),
    "negative padding": (X, W, {"padding": -1}, ValueError, "padding to be an integer of at least 0, got -1"),
    "large padding": (X, W, {"padding": 2**20}, ValueError, "padding below 1048576, got 1048576"),
    "padding name": (X, W, {"padding": "full"}, ValueError, 'padding to be "same", "valid", an integer, got \'full\''),
    "same, stride": (X, W, {"padding": "same", "stride": 2}, ValueError, 'stride to be 1 with padding "same", got 2'),
    "short": (X[..., :2], W, {}, ValueError, "input of at least the 3 positions .*, got 2 without"),
    "wide kernel": (X, W, {"dilation": 5}, ValueError, "input of at least the 11 positions .*, got 9 without"),
    "bias": (X, W, {"bias": torch.ones(5)}, ValueError, r"bias of shape \[6\] .*, got \[5\]"),
    "bias dtype": (X, W, {"bias": torch.ones(6).double()}, TypeError, "bias of dtype .*, got torch.float64"),
    "bias list": (X, W, {"bias": [1.0] * 6}, TypeError, "bias to be .*, got list"),
    "dtypes": (X.double(), W, {}, TypeError, "weight of dtype .*, got torch.float32"),
    "int input": (X.int(), W, {}, TypeError, "input of dtype .*, got torch.int32"),
    "meta": (X.to("meta"), W, {}, ValueError, "input on cpu like weight, got meta"),
    "input list": (X.tolist(), W, {}, TypeError, "input to be .*, got list"),
    "no input": (None, W, {}, TypeError, "input to be .*, got NoneType"),
    "dense weight": (X, W.to_dense(), {}, TypeError, "weight to be .*Unstructured.*from_dense.*, got Tensor"),
    "matrix": (X, linear_weight(), {}, ValueError, r"weight of shape .*k\], got \[6, 8\]; .* goes to sparse_linear"),
    "filters": (X, conv_weight(), {}, ValueError, r"weight of .*k\], got \[6, 4, 3, 3\]; .* goes to sparse_conv2d"),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("name", WORDS)
def test_bad_input_is_refused_in_words(name: str, backend: str | None, training: bool) -> None:
    input: Any
    input, weight, options, error, message = WORDS[name]
    if training and isinstance(input, Tensor) and input.is_floating_point():
        input = input.detach().clone().requires_grad_()
    with (
        sk.use_backend(backend) if backend else contextlib.nullcontext(),
        pytest.raises(error, match="^sparse_conv1d: expected " + message),
    ):
        sk.sparse_conv1d(input, weight, **options)


@pytest.mark.parametrize("training", [False, True])
def test_others_refuse_its_weight(training: bool) -> None:
    words = r"got \[6, 4, 3\]; .* goes to sparse_conv1d"
    for function, shape in ((sk.sparse_conv2d, (2, 4, 9, 9)), (sk.sparse_conv2d, (4, 9, 9)), (sk.sparse_linear, (4,))):
        with pytest.raises(ValueError, match=words):
            function(torch.randn(shape).requires_grad_(training), W)


@pytest.mark.parametrize("weight", [conv_weight(), linear_weight()], ids=["filters", "matrix"])
def test_a_trace_refuses_the_weights_of_others(weight: sk.Unstructured) -> None:
    with pytest.raises(ValueError, match="^sparse_conv1d: expected weight of shape"):
        torch.fx.symbolic_trace(lambda x: sk.sparse_conv1d(x, weight))


@pytest.mark.skipif(not plans.AVAILABLE, reason="the CPU kernels are not built")
def test_a_plan_is_kept_beside_the_pattern() -> None:
    weight = sequence_weight()
    with torch.no_grad():
        for padding in (0, 0, 1, (1,), "same"):
            sk.sparse_conv1d(X, weight, padding=padding)
        assert len(weight.plans) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("known", [False, True], ids=["not transposed before", "transposed before"])
def test_compile_with_dynamic_shapes(dtype: torch.dtype, known: bool) -> None:
    weight = sequence_weight(dtype)
    if known:
        weight.transposed(1)

    def net(x: Tensor, v: Tensor, b: Tensor) -> Tensor:
        return sk.sparse_conv1d(x, weight.with_values(v), b, 2, "valid").relu()

    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True, dynamic=True, backend="aot_eager")
    v, b = weight.values.clone().requires_grad_(), torch.randn(6, dtype=dtype, requires_grad=True)
    for x in (torch.randn(2, 4, 9), torch.randn(3, 4, 17), torch.randn(3, 11, 4).transpose(1, 2)):
        x = x.to(dtype).requires_grad_()
        actual, expected = compiled(x, v, b), net(x, v, b)
        torch.testing.assert_close(actual, expected)
        for mine, theirs in zip(
            torch.autograd.grad(actual.sum(), (x, v, b)), torch.autograd.grad(expected.sum(), (x, v, b)), strict=True
        ):
            torch.testing.assert_close(mine, theirs)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x, v, b), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.filterwarnings("ignore:There is a performance drop")  # operators are looped over under vmap
def test_functional_transforms(dtype: torch.dtype) -> None:
    pattern = sequence_weight(dtype)

    def ours(x: Tensor, w: Tensor) -> Tensor:
        return sk.sparse_conv1d(x, pattern.with_values(pattern.values_of(w)), padding=1).pow(3).sum()

    def theirs(x: Tensor, w: Tensor) -> Tensor:
        return F.conv1d(x, w * pattern.mask, padding=1).pow(3).sum()

    x, w = torch.randn(3, 1, 4, 5, dtype=dtype), torch.randn(6, 4, 3, dtype=dtype)
    tolerance = {"rtol": 1e-3, "atol": 1e-3} if dtype == torch.float32 else {}
    for transform, argument in (
        (lambda f: torch.func.grad(f, argnums=(0, 1)), x[0]),
        (lambda f: torch.func.vmap(f, in_dims=(0, None)), x),
        (lambda f: torch.func.vmap(torch.func.grad(f, argnums=(0, 1)), in_dims=(0, None)), x),
        (lambda f: torch.func.jacrev(torch.func.jacrev(f)), x[0]),
        (lambda f: torch.func.jacfwd(f, argnums=0), x[0]),
        (lambda f: torch.func.hessian(f), x[0]),
    ):
        torch.testing.assert_close(transform(ours)(argument, w), transform(theirs)(argument, w), **tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("training", [False, True])
def test_autocast_as_in_torch(dtype: torch.dtype, training: bool) -> None:
    weight = sequence_weight().to(dtype if dtype == torch.float64 else torch.float32)
    dense = weight.to_dense().requires_grad_(training)
    v = weight.values.clone().requires_grad_(training)
    x = torch.randn(2, 4, 9, dtype=dtype, requires_grad=training)
    b = torch.randn(6, dtype=weight.dtype, requires_grad=training)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = sk.sparse_conv1d(x, weight.with_values(v), b), F.conv1d(x, dense, b)
    assert ours.dtype == theirs.dtype
    torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)
    if training:
        a = torch.autograd.grad(ours.float().sum(), (x, v, b))
        c = torch.autograd.grad(theirs.float().sum(), (x, dense, b))
        for mine, torchs in zip(a, (c[0], weight.values_of(c[1]), c[2]), strict=True):
            assert mine.dtype == torchs.dtype
            torch.testing.assert_close(mine, torchs, rtol=2e-2, atol=1e-1)


def test_meta_tensors_and_traces() -> None:
    weight = sequence_weight()
    there = torch.empty(2, 4, 9, device="meta", dtype=torch.bfloat16)
    y = sk.sparse_conv1d(there, weight.to("meta", torch.bfloat16), stride=2)
    assert (y.shape, y.dtype, y.device.type) == ((2, 6, 4), torch.bfloat16, "meta")
    graph = torch.fx.symbolic_trace(lambda x: sk.sparse_conv1d(x, weight, padding=1))
    for x in (X, torch.randn(3, 7, 4).transpose(1, 2)):
        torch.testing.assert_close(graph(x), sk.sparse_conv1d(x, weight, padding=1))
    traced = torch.jit.trace(lambda x: sk.sparse_conv1d(x, weight, padding=1), X)
    assert "planned" not in str(traced.inlined_graph)
    torch.testing.assert_close(traced(X), sk.sparse_conv1d(X, weight, padding=1))
