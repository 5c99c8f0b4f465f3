# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The table of packed_linear, and its kernel operators: csrc/packed_linear."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .._operation import Operation
from ..precision import COMPUTED_IN_FLOAT32
from . import reference

PACKED_LINEAR = Operation("packed_linear", reference, devices=("cpu",), dtypes=COMPUTED_IN_FLOAT32)

MOST_ROWS = 16
"""Of the input of `forward` on the CPU."""


def check(words: Tensor, crow_indices: Tensor, values: Tensor, columns: int) -> None:
    """Raise ValueError for tensors that are not a packed weight of so many columns, as far as sizes tell."""
    if words.dim() != 2 or words.size(1) != reference.words_of_row(columns):
        expected = f"words [out, {reference.words_of_row(columns)}] for {columns} columns"
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
    if bias is not None and bias.shape != words.shape[:1]:
        raise ValueError(f"packed_linear: expected bias [{words.size(0)}], got {list(bias.shape)}")


forward: Any = PACKED_LINEAR.kernel(
    "forward",
    "_packed_linear(Tensor input, Tensor words, Tensor crow_indices, Tensor values, Tensor? bias) -> Tensor",
    lambda input, words, crow_indices, values, bias: input.new_empty((*input.shape[:-1], words.size(0))),
    check=_check_forward,
)
rows: Any = PACKED_LINEAR.kernel(
    "rows",
    "_unpacked_rows(Tensor words, Tensor crow_indices, Tensor values, int columns, int begin, int end) -> Tensor",
    lambda words, crow_indices, values, columns, begin, end: values.new_empty((end - begin, columns)),
    check=lambda words, crow_indices, values, columns, begin, end: check(words, crow_indices, values, columns),
    input=2,
)
