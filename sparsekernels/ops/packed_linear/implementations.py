# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The table of packed_linear, and its kernel operators: csrc/packed_linear."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._bits import words_of_row
from .._operation import Operation
from ..precision import COMPUTED_IN_FLOAT32
from . import reference

PACKED_LINEAR = Operation("packed_linear", reference, devices=("cpu",), dtypes=COMPUTED_IN_FLOAT32)

MOST_ROWS = 16
"""Of the input of `forward` on the CPU."""


def check(words: Tensor, crow_indices: Tensor, values: Tensor, columns: int) -> None:
    """Raise ValueError for tensors that are not a packed weight of so many columns, as far as sizes tell."""
    given = words.dtype, crow_indices.dtype
    if given != (torch.int64, torch.int32) or not values.dtype.is_floating_point:
        raise ValueError(
            f"packed_linear: expected words of int64, crow_indices of int32 and floating-point values, got {given[0]},"
            f" {given[1]} and {values.dtype}"
        )
    if not words.device == crow_indices.device == values.device:
        raise ValueError(
            f"packed_linear: expected one device, got {words.device}, {crow_indices.device} and {values.device}"
        )
    if words.dim() != 2 or words.size(1) != words_of_row(columns):
        expected = f"words [out, {words_of_row(columns)}] for {columns} columns"
        raise ValueError(f"packed_linear: expected {expected}, got {list(words.shape)}")
    if crow_indices.shape != (words.size(0) + 1,):
        raise ValueError(f"packed_linear: expected crow_indices [{words.size(0) + 1}], got {list(crow_indices.shape)}")
    if values.dim() != 1 or values.numel() < reference.SLACK:
        raise ValueError(
            f"packed_linear: expected values of one dimension with {reference.SLACK} behind the last, got"
            f" {list(values.shape)}"
        )


def _check_forward(input: Tensor, words: Tensor, crow_indices: Tensor, values: Tensor, bias: Tensor | None) -> None:
    if input.dim() == 0 or input.size(-1) == 0:
        raise ValueError(f"packed_linear: expected input [*, in] with columns, got {list(input.shape)}")
    check(words, crow_indices, values, input.size(-1))
    if any(one is not None and one.device != input.device for one in (values, bias)):
        raise ValueError(f"packed_linear: expected weight and bias on {input.device} like input, got another device")
    if bias is not None and bias.shape != words.shape[:1]:
        raise ValueError(f"packed_linear: expected bias [{words.size(0)}], got {list(bias.shape)}")


def _fake_forward(input: Tensor, words: Tensor, crow_indices: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
    _check_forward(input, words, crow_indices, values, bias)
    return input.new_empty((*input.shape[:-1], words.size(0)))


def _check_rows(words: Tensor, crow_indices: Tensor, values: Tensor, columns: int, begin: int, end: int) -> None:
    check(words, crow_indices, values, columns)
    if not 0 <= begin <= end <= words.size(0):
        raise ValueError(f"packed_linear: expected a range of rows that the weight has, got [{begin}, {end}]")


forward: Any = PACKED_LINEAR.kernel(
    "forward",
    "_packed_linear(Tensor input, Tensor words, Tensor crow_indices, Tensor values, Tensor? bias) -> Tensor",
    _fake_forward,
    check=_check_forward,
)
rows: Any = PACKED_LINEAR.kernel(
    "rows",
    "_unpacked_rows(Tensor words, Tensor crow_indices, Tensor values, int columns, int begin, int end) -> Tensor",
    lambda words, crow_indices, values, columns, begin, end: values.new_empty((end - begin, columns)),
    check=_check_rows,
    input=2,
)
