# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The kernel operators of sparse_conv2d called with indices, images and numbers that make no sense: an exception, and
never a crash or a silent result.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from sparse_conv2d_cases import runs
from torch import Tensor

import sparsekernels as sk
from sparsekernels.ops.convolution import LINEAR, geometry_of
from sparsekernels.ops.sparse_conv2d import gradients
from sparsekernels.ops.sparse_conv2d.implementations import SPARSE_CONV2D

REFUSED = (ValueError, RuntimeError)

# Where each path begins. float64 is the reference's, whose operators are reached where nothing is compiled.
OPERATORS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], Callable[..., Tensor], torch.dtype]] = {
    "reference": (
        SPARSE_CONV2D.by_table.forward,
        SPARSE_CONV2D.by_table.input_gradient,
        SPARSE_CONV2D.by_table.weight_gradient,
        torch.float64,
    ),
}
if ("cpu", "cpu") in runs():
    OPERATORS["cpu"] = (
        torch.ops.sparsekernels._sparse_conv2d,
        torch.ops.sparsekernels._sparse_conv2d_input_gradient,
        torch.ops.sparsekernels._sparse_conv2d_weight_gradient,
        torch.float32,
    )
by_path = pytest.mark.parametrize("path", OPERATORS)
SHAPE = (6, 4, 3, 3)
GEOMETRY = list(geometry_of(SHAPE, 1, 1, 1, 1))


def pattern() -> sk.Unstructured:
    """A third of the columns, at least three a row: 0, 3, 6 ... and so on from another column in each row."""
    mask = torch.zeros(SHAPE, dtype=torch.bool).flatten(1)
    for row in range(SHAPE[0]):
        mask[row, row % 3 :: 3] = True
    return sk.Unstructured.of_mask(mask.view(SHAPE))


def changed(tensor: Tensor, *changes: tuple[int, int]) -> Tensor:
    tensor = tensor.clone()
    for index, value in changes:
        tensor[index] = value
    return tensor


def calls(path: str, batch: int, crow: Tensor, col: Tensor) -> list[Callable[[], Tensor]]:
    """The forward and the gradient to the weight with these indices."""
    forward, _, weight_gradient, dtype = OPERATORS[path]
    x, g = torch.randn(batch, 4, 7, 7, dtype=dtype), torch.randn(batch, crow.numel() - 1, 7, 7, dtype=dtype)
    v = torch.randn(col.numel(), dtype=dtype)
    return [
        lambda: forward(x, v, None, crow, col, GEOMETRY),
        lambda: weight_gradient(g, x, crow, col, GEOMETRY),
    ]


def transposed_call(
    path: str, batch: int, crow: Tensor, col: Tensor, permutation: Tensor, stride: int = 1
) -> Callable[[], Tensor]:
    _, input_gradient, _, dtype = OPERATORS[path]
    geometry = geometry_of(SHAPE, stride, 1, 1, 1)
    g, v = torch.randn(batch, 6, *geometry.output_size(7, 7), dtype=dtype), torch.randn(col.numel(), dtype=dtype)
    return lambda: input_gradient(g, v, crow, col, permutation, list(geometry), 7, 7, False)


# What is done to the column indices (36 columns forward, 54 transposed; each forward row has 12 nonzeros) ...
COLUMNS: dict[str, tuple[tuple[int, int], ...]] = {
    "negative": ((0, -1),),
    "very negative": ((5, -(2**31)),),
    "negative at the end": ((-1, -1),),
    "one too large": ((-1, 54),),
    "very large": ((11, 2**31 - 1),),
    "descending": ((0, 4), (1, 3)),
    "descending at the end": ((-1, 0),),
}
# ... and to the rows.
ROWS: dict[str, tuple[tuple[int, int], ...]] = {
    "descending": ((2, 40),),
    "beyond the end in between": ((2, 10**6),),
    "negative in between": ((2, -5),),
    "not from 0": ((0, 1),),
    "from below 0": ((0, -3),),
    "not to the end": ((-1, 30),),
    "beyond the end": ((-1, 10**6),),
}


@by_path
@pytest.mark.parametrize("batch", [1, 17])
@pytest.mark.parametrize("name", COLUMNS)
def test_columns(path: str, batch: int, name: str) -> None:
    weight = pattern()
    for call in calls(path, batch, weight.crow_indices, changed(weight.col_indices, *COLUMNS[name])):
        with pytest.raises(REFUSED):
            call()
    crow, col, permutation = weight.transposed(1)
    for stride in (1, 2):
        with pytest.raises(REFUSED):
            transposed_call(path, batch, crow, changed(col, *COLUMNS[name]), permutation, stride)()


@by_path
@pytest.mark.parametrize("batch", [1, 17])
@pytest.mark.parametrize("name", ROWS)
def test_rows(path: str, batch: int, name: str) -> None:
    weight = pattern()
    for call in calls(path, batch, changed(weight.crow_indices, *ROWS[name]), weight.col_indices):
        with pytest.raises(REFUSED):
            call()
    crow, col, permutation = weight.transposed(1)
    for stride in (1, 2):
        with pytest.raises(REFUSED):
            transposed_call(path, batch, changed(crow, *ROWS[name]), col, permutation, stride)()


@by_path
def test_a_column_twice_is_refused_or_summed(path: str) -> None:
    weight = pattern()
    crow, col = weight.crow_indices, changed(weight.col_indices, (1, 0))
    for call in calls(path, 2, crow, col):
        try:
            result = call()
        except REFUSED:
            continue
        assert path == "cpu"  # the reference would take one of the two
        assert result.isfinite().all()


@by_path
@pytest.mark.parametrize("batch", [1, 17])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("value", [-1, -(2**31), 72, 2**31 - 1])
def test_permutations(path: str, batch: int, stride: int, value: int) -> None:
    crow, col, permutation = pattern().transposed(1)
    assert permutation.numel() == 72
    for at in (0, 40, -1):
        with pytest.raises(REFUSED):
            transposed_call(path, batch, crow, col, changed(permutation, (at, value)), stride)()


def refused_or(call: Callable[[], Tensor], shape: tuple[int, ...]) -> None:
    with contextlib.suppress(*REFUSED):
        assert tuple(call().shape) == shape


@by_path
@pytest.mark.parametrize("batch", [0, 1, 17])
def test_no_channels(path: str, batch: int) -> None:
    forward, input_gradient, weight_gradient, dtype = OPERATORS[path]
    none, crow = torch.zeros(0, dtype=torch.int32), torch.zeros(7, dtype=torch.int32)
    x, v, g = (torch.zeros(size, dtype=dtype) for size in ((batch, 0, 7, 7), (0,), (batch, 6, 7, 7)))
    with pytest.raises(REFUSED, match="channels"):
        forward(x, v, torch.ones(6, dtype=dtype), crow, none, GEOMETRY)
    refused_or(lambda: weight_gradient(g, x, crow, none, GEOMETRY), (0,))
    refused_or(lambda: input_gradient(g, v, crow[:1], none, none, GEOMETRY, 7, 7, False), (batch, 0, 7, 7))


@by_path
@pytest.mark.parametrize("batch", [0, 1, 17])
def test_no_outputs(path: str, batch: int) -> None:
    forward, input_gradient, weight_gradient, dtype = OPERATORS[path]
    none, crow = torch.zeros(0, dtype=torch.int32), torch.zeros(5, dtype=torch.int32)
    x, v = torch.zeros(batch, 4, 7, 7, dtype=dtype), torch.zeros(0, dtype=dtype)
    if path == "cpu":
        assert forward(x, v, None, crow[:1], none, GEOMETRY).shape == (batch, 0, 7, 7)
    refused_or(lambda: forward(x, v, None, crow[:1], none, GEOMETRY), (batch, 0, 7, 7))
    refused_or(lambda: weight_gradient(x[:, :0], x, crow[:1], none, GEOMETRY), (0,))
    refused_or(lambda: input_gradient(x[:, :0], v, crow, none, none, GEOMETRY, 7, 7, False), (batch, 4, 7, 7))


@by_path
@pytest.mark.parametrize("at", range(10))
def test_numbers_that_are_too_large(path: str, at: int) -> None:
    """Kernel, stride, padding and dilation of 2^20 and more, each in both directions."""
    forward, _, _, dtype = OPERATORS[path]
    x, v = torch.zeros(1, 4, 7, 7, dtype=dtype), torch.zeros(1, dtype=dtype)
    crow, col = torch.tensor([0, 1], dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    for number in (2**20, 2**31, 2**62):
        with pytest.raises(REFUSED):
            forward(x, v, None, crow, col, [*LINEAR[:at], number, *LINEAR[at + 1 :]])


def test_a_dense_weight_without_its_nonzeros_is_refused() -> None:
    weight, x = pattern(), torch.randn(2, 4, 7, 7)
    arguments: tuple[Any, ...] = (weight.crow_indices, weight.col_indices, None, (), GEOMETRY)
    with pytest.raises(ValueError, match="expected flat_indices, .* with a dense weight, got None"):
        torch.ops.sparsekernels.sparse_conv2d(x, weight.to_dense(), None, *arguments)
    held = gradients.OperatorPattern(*arguments[:4], 4, 9)
    with pytest.raises(ValueError, match="expected flat_indices, .* with a dense weight, got None"):
        gradients.values_of(weight.to_dense(), held)


def test_bad_calls_of_the_operators_do_not_crash() -> None:
    weight, ops = pattern(), torch.ops.sparsekernels
    crow, col, v = weight.crow_indices, weight.col_indices, torch.randn(weight.nnz)
    geometry = list(geometry_of(SHAPE, 1, 0, 1, 1))
    transposed = weight.transposed(1)
    x, g = torch.randn(2, 4, 7, 7), torch.randn(2, 6, 5, 5)
    for call in (
        lambda: ops._sparse_conv2d(x[0], v, None, crow, col, geometry),
        lambda: ops._sparse_conv2d(x, v[1:], None, crow, col, geometry),
        lambda: ops._sparse_conv2d(x, v, torch.ones(5), crow, col, geometry),
        lambda: ops._sparse_conv2d(x, v, None, crow, col, geometry[:-1]),
        lambda: ops._sparse_conv2d(x, v, None, crow, col, [*geometry[:-1], 5]),
        lambda: ops._sparse_conv2d(x, v, None, crow, col, [*geometry[:2], 0, 0, *geometry[4:]]),
        lambda: ops._sparse_conv2d(x, v.half(), None, crow, col, geometry),
        lambda: ops._sparse_conv2d(x, v, None, crow.long(), col, geometry),
        lambda: ops._sparse_conv2d(x[..., :2], v, None, crow, col, geometry),
        lambda: ops._sparse_conv2d(x.int(), v.int(), None, crow, col, geometry),
        lambda: ops._sparse_conv2d_input_gradient(g[:, :5], v, *transposed, [*geometry[:-1], 2], 7, 7, False),
        lambda: ops._sparse_conv2d_input_gradient(g, v, *transposed, geometry, 9, 7, False),
        lambda: ops._sparse_conv2d_input_gradient(g, v[1:], *transposed, geometry, 7, 7, False),
        lambda: ops._sparse_conv2d_input_gradient(g, v, *transposed[:2], col[1:], geometry, 7, 7, False),
        lambda: ops._sparse_conv2d_weight_gradient(g[:1], x, crow, col, geometry),
        lambda: ops._sparse_conv2d_weight_gradient(g.half(), x, crow, col, geometry),
        lambda: ops._sparse_conv2d_weight_gradient(g[:, :5], x, crow, col, geometry),
        lambda: ops._sparse_conv2d_weight_gradient(g, x[..., 1:], crow, col, geometry),
        lambda: ops._sparse_conv2d(x[:, :0], v[:0], None, crow * 0, col[:0], geometry),
        lambda: ops._sparse_conv2d(x.view(2, -1, 1, 1), v, None, crow, col, list(LINEAR)[:3]),
    ):
        with pytest.raises((RuntimeError, ValueError, TypeError)):
            call()
