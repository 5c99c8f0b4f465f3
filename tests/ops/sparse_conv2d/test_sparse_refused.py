# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What sparse_conv2d and sparse_linear refuse, and in which words."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sparse_conv2d_cases import conv_weight, linear_weight

import sparsekernels as sk

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
        X, W.to_dense(), {}, TypeError, "expected weight to be .*Unstructured or BlockSparse.*, got Tensor", id="dense"
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
    with (
        sk.use_backend("cuda"),
        pytest.raises(sk.BackendError, match="expected a .*, 'cpu', 'triton', 'reference', got 'cuda'"),
    ):
        sk.sparse_conv2d(X, W)
    with (
        sk.use_backend("cpu"),
        pytest.raises(sk.BackendError, match=r"use_backend\('cpu'\): expected .*, got .*: .*(float64|not built)"),
    ):
        sk.sparse_conv2d(X.double(), W.to(torch.float64))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors(layout: torch.layout) -> None:
    nested = torch.nested.nested_tensor([torch.randn(3, 8), torch.randn(5, 8)], layout=layout)
    linear = sk.nn.SparseLinear.from_dense(torch.nn.Linear(8, 4), torch.rand(4, 8) < 0.5)
    for layer in (linear, sk.nn.RMSNorm(8)):
        with pytest.raises(TypeError, match="expected input to be a tensor of one shape, got a nested tensor"):
            layer(nested)
