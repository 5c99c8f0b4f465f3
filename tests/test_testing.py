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


def scaled(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return 2 * x, 3 * y


def test_lists_are_outputs() -> None:
    x, y = torch.randn(2, 3, requires_grad=True), torch.randn(3, requires_grad=True)
    found = verify(lambda x, y: [2 * x, 3 * y], scaled, [x, y])
    assert [one.name for one in found] == ["output 0", "output 1", "gradient 0", "gradient 1"]
    assert all(one.passed for one in found)


@pytest.mark.parametrize("gradients", [True, False])
def test_another_number_of_outputs(gradients: bool) -> None:
    x, y = torch.randn(2, 3, requires_grad=True), torch.randn(3, requires_grad=True)
    with pytest.raises(AssertionError, match="expected outputs as of the reference, 2, got 1"):
        verify(lambda x, y: 2 * x + 3 * y, scaled, [x, y], gradients)
    with pytest.raises(AssertionError, match="expected outputs as of the reference, 2, got 3"):
        verify(lambda x, y: (*scaled(x, y), x * y), scaled, [x, y], gradients)


def test_an_input_that_is_not_used() -> None:
    x, y = torch.randn(2, 3, requires_grad=True), torch.randn(3, requires_grad=True)

    def first(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return 2 * x, y.detach()

    for definition in (scaled, first):
        with pytest.raises(ValueError, match="got those of first, which do not depend on input 1"):
            verify(first, definition, [x, y])
    with pytest.raises(ValueError, match="do not depend on input 0, 1"):
        verify(lambda x, y: (x.detach(), y.detach()), scaled, [x, y])
    assert all(one.passed for one in verify(lambda x, y: (2 * x, 3 * y.detach()), scaled, [x, y.detach()]))


def test_outputs_that_are_no_tensors() -> None:
    with pytest.raises(TypeError, match="expected function to return a tensor, or a tuple or list .*, got dict"):
        verify(lambda x: {"y": x}, lambda x: x, [torch.randn(2)])
    with pytest.raises(TypeError, match="got tuple of Tensor, NoneType"):
        verify(lambda x: (x, None), lambda x: x, [torch.randn(2)])  # type: ignore[arg-type, return-value]
