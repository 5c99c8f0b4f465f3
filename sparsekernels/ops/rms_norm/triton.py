# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""RMSNorm in Triton, one kernel a call. Signatures and semantics are those of `reference`.

Rows are read where they lie: the leading dimensions are collapsed as far as the strides of a call's tensors allow, and
what remains, up to four dimensions, the kernel walks. A tensor is copied only if its normalized dimensions are not
contiguous, or if more than four dimensions remain.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._triton import device_of, multiprocessors
from . import reference, triton_kernels
from .arguments import CAST_BEFORE, UNIT_OFFSET
from .triton_config import (
    GROUP,
    RowSpace,
    Tiling,
    backward_programs,
    backward_tiling,
    forward_tiling,
    row_space,
    vector_elements,
)


def forward(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    eps: float | None,
    variant: int = 0,
) -> Tensor:
    """y = x * r * w, with r = 1 / rms(x)."""
    output = reference.empty_output(input)
    _forward(input, None, output, None, normalized_shape, weight, eps, variant)
    return output


def add_forward(
    input: Tensor,
    residual: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    eps: float | None,
    variant: int = 0,
) -> tuple[Tensor, Tensor]:
    """The norm of s = input + residual, and s. s is rounded to the dtype of `input` before it is normalized."""
    output = reference.empty_output(input)
    total = reference.empty_output(input)
    _forward(input, residual, output, total, normalized_shape, weight, eps, variant)
    return output, total


def backward(
    grad_output: Tensor,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    eps: float | None,
    grad_sum: Tensor | None,
    need_input: bool,
    need_weight: bool,
    variant: int = 0,
) -> tuple[Tensor, Tensor]:
    """Gradients to input and weight.

    With a = w * dy (elementwise), d = mean(x^2) + eps, r = 1 / sqrt(d) = 1 / rms(x), c = mean(a * x) over a row:

        dx = r * (a - x * c / d)  (+ grad_sum)
        dw = sum over rows of dy * x * r

    Where a row nearly cancels (its length is small), c / d loses less than the reference's r^2 * c.

    A gradient that is not needed comes back as an empty tensor.
    """
    like_weight = input if weight is None else weight
    grad_input = reference.empty_output(input) if need_input else None
    grad_weight = like_weight.new_empty(tuple(normalized_shape)) if need_weight else None
    if need_input or need_weight:
        _backward(grad_output, input, grad_sum, grad_input, grad_weight, normalized_shape, weight, eps, variant)
    return (
        input.new_empty(0) if grad_input is None else grad_input,
        like_weight.new_empty(0) if grad_weight is None else grad_weight,
    )


def _forward(
    input: Tensor,
    residual: Tensor | None,
    output: Tensor,
    total: Tensor | None,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    eps: float | None,
    variant: int,
) -> None:
    """Fill `output`, and `total` where there is a residual."""
    if input.numel() == 0:
        return
    input = _with_contiguous_rows(input, normalized_shape)
    residual = None if residual is None else _with_contiguous_rows(residual, normalized_shape)
    space = row_space((input, residual, output), normalized_shape)
    if space is None:
        input, residual = input.contiguous(), None if residual is None else residual.contiguous()
        space = row_space((input, residual, output), normalized_shape)
        assert space is not None
    tiling = forward_tiling(space.cols, input.element_size())
    input_strides, residual_strides, output_strides = space.strides
    with device_of(input):
        _launch(
            triton_kernels.forward_loop if tiling.looped else triton_kernels.forward_tile,
            triton.cdiv(space.rows, tiling.block_rows),
            tiling,
            space,
            input=input,
            residual=residual,
            weight=None if weight is None else weight.contiguous(),
            output=output,
            total=total,
            eps=reference._default_eps(input) if eps is None else float(eps),
            input_strides=input_strides,
            residual_strides=residual_strides,
            output_strides=output_strides,
            CAST_BEFORE=bool(variant & CAST_BEFORE) and weight is not None,
            UNIT_OFFSET=bool(variant & UNIT_OFFSET),
        )


def _backward(
    grad_output: Tensor,
    input: Tensor,
    grad_sum: Tensor | None,
    grad_input: Tensor | None,
    grad_weight: Tensor | None,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    eps: float | None,
    variant: int,
) -> None:
    """Fill `grad_input` and `grad_weight`, either of which may be None."""
    if input.numel() == 0:
        if grad_weight is not None:
            grad_weight.zero_()
        return
    grad_output = _with_contiguous_rows(grad_output, normalized_shape)
    input = _with_contiguous_rows(input, normalized_shape)
    grad_sum = None if grad_sum is None else _with_contiguous_rows(grad_sum, normalized_shape)
    space = row_space((input, grad_output, grad_sum, grad_input), normalized_shape)
    if space is None:
        grad_sum = None if grad_sum is None else grad_sum.contiguous()
        grad_output, input = grad_output.contiguous(), input.contiguous()
        space = row_space((input, grad_output, grad_sum, grad_input), normalized_shape)
        assert space is not None
    tiling = backward_tiling(space.cols, input.element_size())
    programs = backward_programs(space.rows, tiling, multiprocessors(input.device))
    input_strides, grad_output_strides, grad_sum_strides, grad_input_strides = space.strides
    partials = counters = None
    with device_of(input):
        if grad_weight is not None:
            groups = triton.cdiv(programs, GROUP)
            accumulate = torch.float64 if input.dtype == torch.float64 else torch.float32
            partials = torch.empty((programs + groups, space.cols), dtype=accumulate, device=input.device)
            counters = _zeroed_counters(input.device, 1 + groups)
        _launch(
            triton_kernels.backward_loop if tiling.looped else triton_kernels.backward_tile,
            programs,
            tiling,
            space,
            grad_output=grad_output,
            input=input,
            weight=None if weight is None else weight.contiguous(),
            grad_sum=grad_sum,
            grad_input=grad_input,
            grad_weight=grad_weight,
            partials=partials,
            counters=counters,
            eps=reference._default_eps(input) if eps is None else float(eps),
            grad_output_strides=grad_output_strides,
            input_strides=input_strides,
            grad_sum_strides=grad_sum_strides,
            grad_input_strides=grad_input_strides,
            maxnreg=128,  # so that `backward_programs` are resident at once
            GROUP=GROUP,
            UNIT_OFFSET=bool(variant & UNIT_OFFSET),
            CHUNK_COLS=min(tiling.block_cols, 64 * tiling.num_warps),  # 32 elements of GROUP rows a thread
        )


def _with_contiguous_rows(tensor: Tensor, normalized_shape: Sequence[int]) -> Tensor:
    if tensor.is_contiguous() or reference.rows_are_contiguous(tensor, normalized_shape):
        return tensor
    return tensor.contiguous()


def _launch(kernel: Any, programs: int, tiling: Tiling, space: RowSpace, *, input: Tensor, **arguments: Any) -> None:
    vec = vector_elements(space.cols, input.element_size())
    aligned = all(stride % vec == 0 for strides in space.strides for stride in strides)
    kernel[(programs,)](
        input=input,
        rows=space.rows,
        cols=space.cols,
        inner_sizes=space.sizes[1:],
        INDEX=tl.int32 if max(space.rows, space.cols) <= 2**30 else tl.int64,
        VEC=vec,
        INPUT_VEC=vec if aligned else 1,
        BLOCK_ROWS=tiling.block_rows,
        BLOCK_COLS=tiling.block_cols,
        num_warps=tiling.num_warps,
        num_stages=1,
        enable_fp_fusion=True,  # said, because Triton 3.10 changes the default, and with it the bits
        **arguments,
    )


_counters: dict[tuple[int, int], Tensor] = {}


def _zeroed_counters(device: torch.device, count: int) -> Tensor:
    """`count` zeros for one launch on the current stream, which leaves them zero.

    Kept for each stream, so that a backward is one launch: launches on one stream follow each other, launches on two
    have two sets. A CUDA graph may be replayed on any stream, beside others and beside eager calls: while one is being
    captured every call gets zeros of its own, in the graph's memory and filled by the graph.
    """
    if device.type != "cuda" or torch.cuda.is_current_stream_capturing():
        return torch.zeros(count, dtype=torch.int32, device=device)
    key = (device.index, torch.cuda.current_stream(device).cuda_stream)
    kept = _counters.get(key)
    if kept is None or kept.numel() < count:
        kept = _counters[key] = torch.zeros(max(count, 256), dtype=torch.int32, device=device)
    return kept
