# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The oracle itself: what it lets through, and what it does not."""

from __future__ import annotations

import pytest
import torch
from rms_norm_cases import DTYPES

from sparsekernels.ops.rms_norm import reference
from sparsekernels.testing import assert_verified, compare, gradient_error, gradient_errors, verify


def norm(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return reference.forward(x, w.shape, w, 1e-6)


def inputs(dtype: torch.dtype) -> list[torch.Tensor]:
    return [torch.randn(20, 64).to(dtype).requires_grad_(), torch.randn(64).to(dtype).requires_grad_()]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_reference_passes(dtype: torch.dtype) -> None:
    assert len(verify(norm, norm, inputs(dtype))) == 3  # the output and two gradients
    assert_verified(norm, norm, inputs(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("factor", [1.01, 0.99])
def test_a_factor_does_not(dtype: torch.dtype, factor: float) -> None:
    with pytest.raises(AssertionError, match="output 0"):
        assert_verified(lambda x, w: (norm(x, w).double() * factor).to(x.dtype), norm, inputs(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_arithmetic_in_half_precision_does_not(dtype: torch.dtype) -> None:
    """The bound is on the largest error, so one draw in twenty is lucky; a matrix of cases is not."""

    def narrow(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * w

    caught = sum(not all(one.passed for one in verify(narrow, norm, inputs(dtype))) for _ in range(20))
    assert caught >= 16


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_output_that_is_not_written_shows(dtype: torch.dtype) -> None:
    def forgets(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        result = torch.empty_like(x)
        result[:-1] = norm(x, w)[:-1]
        return result

    with pytest.raises(AssertionError, match="NaN or infinity in other places"):
        assert_verified(forgets, norm, inputs(dtype), gradients=False)


def test_shape_dtype_and_special_values_count() -> None:
    x = torch.randn(4, 8)
    assert not compare("shape", x[:2], x.double(), x).passed
    with pytest.raises(AssertionError, match="float64"):
        assert_verified(lambda x, w: norm(x, w).double(), norm, inputs(torch.float32), gradients=False)
    special = x.clone()
    special[0, 0] = torch.inf
    assert compare("same", special, special.double(), special).passed
    assert not compare("other sign", special, special.double(), special * torch.tensor([-1.0])).passed


def test_without_an_input_that_requires_a_gradient_there_are_none() -> None:
    tensors = [tensor.detach() for tensor in inputs(torch.float32)]
    assert [one.name for one in verify(norm, norm, tensors)] == ["output 0"]
    assert_verified(norm, norm, tensors)


def test_a_tensor_is_no_sequence_of_inputs() -> None:
    with pytest.raises(TypeError, match="verify: expected inputs to be a sequence of tensors, got a tensor"):
        verify(norm, norm, torch.ones(2, 2))  # type: ignore[arg-type]


def test_gradient_errors_are_of_each_parameter() -> None:
    truth = [torch.tensor([3.0, 4.0]), torch.tensor([0.0]), torch.tensor([1.0]), torch.tensor([0.0])]
    actual = [
        torch.tensor([3.0, 4.5]),
        torch.tensor([0.01]),
        torch.tensor([float("nan")]),
        torch.tensor([float("inf")]),
    ]
    length = 26.0**0.5  # of all together: the second counts as a hundredth of it
    errors = gradient_errors(actual, truth)
    torch.testing.assert_close(
        errors, torch.tensor([0.1, 1 / length, float("inf"), float("inf")], dtype=torch.float64), rtol=1e-6, atol=0
    )
    assert gradient_error(actual, truth) == float("inf")
    assert gradient_error(truth, truth) == 0
