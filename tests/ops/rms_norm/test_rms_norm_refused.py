# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What rms_norm and add_rms_norm refuse, and in which words."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import sparsekernels as sk

ops = torch.ops.sparsekernels

X, W = torch.randn(3, 8), torch.ones(8)
REFUSED = [
    pytest.param((X, (7,)), {}, ValueError, r"expected input of shape \[\*, 7\] .*, got \[3, 8\]", id="wrong size"),
    pytest.param(
        (X, (2, 3, 8)), {}, ValueError, "expected input of shape .*, got", id="more dimensions than there are"
    ),
    pytest.param((X, (8, 3)), {}, ValueError, "expected input of shape .*, got", id="wrong order"),
    pytest.param((X, (12, 2)), {}, ValueError, "expected input of shape .*, got", id="the same number of elements"),
    pytest.param(
        (X, ()), {}, ValueError, r"expected normalized_shape of at least one size, got \(\)", id="empty shape"
    ),
    pytest.param(
        (torch.tensor(1.0), ()),
        {},
        ValueError,
        r"expected normalized_shape of at least one size, got \(\)",
        id="scalar",
    ),
    pytest.param((X, 8), {}, TypeError, "expected normalized_shape to be sizes .*, got 8", id="shape is a number"),
    pytest.param(
        (X, (8.0,)), {}, TypeError, r"expected normalized_shape to be sizes .*, got \(8.0,\)", id="shape of floats"
    ),
    pytest.param((X, None), {}, TypeError, "expected normalized_shape to be sizes .*, got None", id="no shape"),
    pytest.param(
        (X, (8,), torch.ones(7)), {}, ValueError, r"expected weight of shape \[8\] .*, got \[7\]", id="short weight"
    ),
    pytest.param(
        (X, (8,), torch.ones(1, 8)), {}, ValueError, "expected weight of shape .*, got", id="weight of two dimensions"
    ),
    pytest.param((X, (8,), [1.0] * 8), {}, TypeError, "expected weight to be .*, got list", id="weight is a list"),
    pytest.param(
        (X, (8,), torch.ones(8, dtype=torch.int32)),
        {},
        TypeError,
        "expected weight of dtype .*, got torch.int32",
        id="int weight",
    ),
    pytest.param(
        (X, (8,), W.to("meta")),
        {},
        ValueError,
        "expected weight on cpu like input, got meta",
        id="weight on another device",
    ),
    pytest.param((X.int(), (8,)), {}, TypeError, "expected input of dtype .*, got torch.int32", id="int input"),
    pytest.param((X.bool(), (8,)), {}, TypeError, "expected input of dtype .*, got torch.bool", id="bool input"),
    pytest.param(
        (X.to(torch.complex64), (8,)),
        {},
        TypeError,
        "expected input of dtype .*, got torch.complex64",
        id="complex input",
    ),
    pytest.param(
        (X.to(torch.float8_e4m3fn), (8,)),
        {},
        TypeError,
        "expected input of dtype .*, got torch.float8",
        id="float8 input",
    ),
    pytest.param(
        (X.to_sparse(), (8,)), {}, TypeError, "expected input of layout .*, got torch.sparse_coo", id="sparse input"
    ),
    pytest.param((X.tolist(), (8,)), {}, TypeError, "expected input to be .*, got list", id="input is a list"),
    pytest.param((None, (8,)), {}, TypeError, "expected input to be .*, got NoneType", id="no input"),
    pytest.param((X, (8,)), {"eps": -1e-6}, ValueError, "expected eps .*, got -1e-06", id="negative eps"),
    pytest.param((X, (8,)), {"eps": float("nan")}, ValueError, "expected eps .*, got nan", id="NaN eps"),
    pytest.param(
        (X, {"size": 8}),
        {},
        TypeError,
        "expected normalized_shape to be sizes .*, got {'size': 8}",
        id="shape is a dict",
    ),
    pytest.param((X, (8,)), {"eps": "small"}, TypeError, "expected eps to be .*, got str", id="eps is text"),
]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("backend", [None, "cpu", "reference"])
@pytest.mark.parametrize(("arguments", "options", "error", "message"), REFUSED)
def test_bad_input_is_refused_in_words(
    arguments: tuple[Any, ...],
    options: dict[str, Any],
    error: type[Exception],
    message: str,
    backend: str | None,
    training: bool,
) -> None:
    def grad(value: Any) -> Any:
        fits = training and isinstance(value, torch.Tensor) and value.is_floating_point() and value.is_leaf
        return value.detach().clone().requires_grad_() if fits and value.dtype.itemsize > 1 else value

    arguments = tuple(grad(value) for value in arguments)

    def call() -> None:
        with pytest.raises(error, match=message):
            sk.rms_norm(*arguments, **options)
        with pytest.raises(error, match="add_rms_norm: " + message.removeprefix("rms_norm: ")):
            sk.add_rms_norm(arguments[0], arguments[0], *arguments[1:], **options)

    if backend is None:
        call()
    else:
        with sk.use_backend(backend):
            call()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("residual", "error"),
    [
        (torch.randn(3, 7), ValueError),
        (torch.randn(1, 8), ValueError),
        (torch.randn(3, 8, device="meta"), ValueError),
        (torch.ones(3, 8, dtype=torch.int64), TypeError),
        (None, TypeError),
    ],
    ids=["shape", "broadcast", "device", "integers", "none"],
)
def test_bad_residual_is_refused(residual: Any, error: type[Exception], training: bool) -> None:
    with pytest.raises(error, match="add_rms_norm: expected residual .*, got"):
        sk.add_rms_norm(X.clone().requires_grad_(training), residual, (8,))


def test_bad_calls_of_the_operators_do_not_crash() -> None:
    x, w, g = torch.randn(3, 8), torch.ones(8), torch.randn(3, 8)
    for call in (
        lambda: ops._rms_norm(x, 1, 7, w, None),
        lambda: ops._rms_norm(x, 3, 8, w, None),
        lambda: ops._rms_norm(x, 0, 1, None, None),
        lambda: ops._rms_norm(x, -1, 8, None, None),
        lambda: ops._rms_norm(x, 1, 8, torch.ones(9), None),
        lambda: ops._rms_norm(x, 1, 8, w, -1.0),
        lambda: ops._rms_norm(x.int(), 1, 8, None, None),
        lambda: ops._rms_norm_backward(g[:2], x, 1, 8, w, None, None, True, True),
        lambda: ops._rms_norm_backward(g.double(), x, 1, 8, w, None, None, True, True),
        lambda: ops._rms_norm_backward(g, x, 1, 8, None, None, None, True, True),
        lambda: ops._rms_norm_backward(g, x, 1, 8, w, None, g[:1], True, True),
    ):
        with pytest.raises((RuntimeError, ValueError, TypeError)):
            call()
