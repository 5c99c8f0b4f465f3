# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
r"""Fine-grained weights on a GPU: expanded to dense ones for torch's products, or decoded inside of a product.

    F:  y  = conv(x, W)          W expanded from the values
    I:  dx = conv^T(dy, W)       W expanded from the values in the order of the transposed pattern
    W:  dv = (dense gradient) at the nonzeros

Tensor cores multiply whole tiles, so from some rows on nothing is faster than the dense product. What it costs more
here is to write W once: columns / rows of the product's own traffic. On few rows the product takes as long as its
weight takes to be read: then `product` reads the compressed one. expanded_routes.py says which it is.

The expanded weight is not kept: it is as large as the dense one, which who prunes does not want to have in memory.

Signatures and meaning are those of `reference`, but that bfloat16 and float16 are multiplied as such: sums are in
float32 as far as torch's settings of cuBLAS and cuDNN say so, and torch adds a convolution's bias to rounded ones. A
residual may cancel all but what rounding has lost, so it is added to float32 sums: `product_sums`, `conv2d_sums`.
Limits may come after rounding, which keeps the order. On the CPU, in Triton's interpreter, torch's products run in
float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from ... import dispatch
from .._bits import WORD
from .._triton import device_of, float32_precision, multiprocessors
from .._triton_numbers import INTERPRETED
from ..convolution import Geometry
from ..precision import wide_dtype
from . import expanded_kernels as kernels
from . import reference
from .bitmap import Bitmap, bitmap_of, has_compiled_linear
from .expanded_products import (
    as_images,
    as_rows,
    conv2d,
    conv2d_input,
    conv2d_sums,
    product_dtype,
    product_sums,
    tap_stride,
    whole_weight_gradient,
)
from .expanded_routes import Tiling, covering, goes_by_nonzeros, is_decoded, product_tiling
from .reference import is_channels_last, memory_format


def forward(
    input: Tensor,
    values: Tensor,
    bias: Tensor | None,
    crow_indices: Tensor,
    col_indices: Tensor,
    geometry: Sequence[int],
    residual: Tensor | None = None,
    low: float | None = None,
    high: float | None = None,
) -> Tensor:
    """The convolution by the weight of `values`; plus residual, and no less than low nor more than high.

    With a residual it is rounded once, at the end. A convolution that is no product with rows is then one in float32,
    which tensor cores multiply as tf32 where torch.backends.cudnn.allow_tf32 lets them: without a loss, since neither
    bfloat16 nor float16 has more bits.
    """
    g = Geometry(*geometry)
    outputs, of_group = crow_indices.numel() - 1, input.size(1) // g.groups
    if input.numel() == 0:
        return reference.forward(input, values, bias, crow_indices, col_indices, g, residual, low, high)
    rows = as_rows(input, g)
    with device_of(input):
        bitmap = bitmap_of(crow_indices, col_indices, of_group * g.taps)
        if bitmap is not None and rows is not None:
            y = _of_compressed(rows, values, bias, crow_indices, bitmap, residual, low, high)
            if y is not None:
                return as_images(y, input)
        weight = _expanded(values, None, bitmap, (crow_indices, col_indices), outputs, of_group, g, input, rows)
        added = None if bias is None else bias.to(weight.dtype)
        if rows is not None:
            by_rows = rows.to(weight.dtype)
            y = F.linear(by_rows, weight, added) if residual is None else product_sums(by_rows, weight)
            y = as_images(y, input)
        elif residual is None:
            y = conv2d(input.to(weight.dtype), weight, added, g)
        else:
            y = conv2d_sums(input, weight, g)
        y = y.contiguous(memory_format=memory_format(is_channels_last(input)))
        if residual is not None:
            return _finished(y, 1, bias, residual, low, high, input.dtype)
        if low is not None or high is not None:
            return _finished(y, 1, None, None, low, high, input.dtype)
        return y.to(input.dtype)


def input_gradient(
    grad_output: Tensor,
    values: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    permutation: Tensor,
    geometry: Sequence[int],
    height: int,
    width: int,
    channels_last: bool,
) -> Tensor:
    """Gradient to an input of height x width, in which layout; the indices are those of the transposed pattern."""
    g = Geometry(*geometry)
    images, channels, outputs = grad_output.size(0), crow_indices.numel() - 1, grad_output.size(1)
    shape, layout = (images, channels, height, width), memory_format(channels_last)
    if grad_output.numel() == 0:
        return grad_output.new_zeros(shape).contiguous(memory_format=layout)
    rows = as_rows(grad_output, g)
    with device_of(grad_output):
        bitmap = bitmap_of(crow_indices, col_indices, outputs // g.groups * g.taps, permutation)
        if bitmap is None:  # while a CUDA graph is captured: no table may be made, and torch's own steps need none
            return reference.input_gradient(
                grad_output, values, crow_indices, col_indices, permutation, g, height, width, channels_last
            )
        weight = _expanded_of_transposed(values, permutation, bitmap, channels, outputs, g, grad_output, rows)
        if rows is not None:
            gradient = as_images(F.linear(rows.to(weight.dtype), weight), grad_output)
        else:
            gradient = conv2d_input(shape, weight, grad_output.to(weight.dtype), g)
        return gradient.to(grad_output.dtype).contiguous(memory_format=layout)


def weight_gradient(
    grad_output: Tensor, input: Tensor, crow_indices: Tensor, col_indices: Tensor, geometry: Sequence[int]
) -> Tensor:
    """Gradient to the values: that of the dense weight at the nonzeros."""
    g = Geometry(*geometry)
    of_group = input.size(1) // g.groups
    gradient = input.new_empty(col_indices.shape)
    if gradient.numel() == 0 or grad_output.numel() == 0:
        return gradient.zero_()
    with device_of(input):
        bitmap = bitmap_of(crow_indices, col_indices, of_group * g.taps)
        if bitmap is None:
            return reference.weight_gradient(grad_output, input, crow_indices, col_indices, g)
        dense = whole_weight_gradient(grad_output, input, g)
        total, used = _words(bitmap, of_group * g.taps)
        block = _block(total)
        kernels.gather[(triton.cdiv(total, block),)](
            dense=dense,
            values=gradient,
            words=bitmap.words,
            starts=bitmap.starts,
            total=total,
            words_used=used,
            row_of_words=bitmap.words.size(1),
            rows_of_group=dense.size(0),
            group_stride=0,
            row_stride=dense.stride(0),
            channel_stride=dense.stride(1),
            tap_stride=tap_stride(dense),
            TAPS=g.taps,
            BLOCK=block,
            num_warps=4,
        )
    return gradient


# By the compressed weight


def _of_compressed(
    rows: Tensor,
    values: Tensor,
    bias: Tensor | None,
    crow_indices: Tensor,
    bitmap: Bitmap,
    residual: Tensor | None,
    low: float | None,
    high: float | None,
) -> Tensor | None:
    """The product by the compressed weight, as rows; None where the route is another."""
    count, outputs = rows.size(0), bitmap.words.size(0)
    if not is_decoded(count, outputs, rows.size(1), values.numel(), rows.dtype):
        return None
    residual = None if residual is None else _rows_like(residual)
    values, bias = values.contiguous(), None if bias is None else bias.contiguous()
    keeps_sums = residual is None or rows.dtype is wide_dtype(rows)  # the CUDA kernel returns them rounded
    by_nonzeros = goes_by_nonzeros(count, outputs, rows.size(1), values.numel()) and has_compiled_linear(rows)
    if keeps_sums and by_nonzeros and dispatch.forced != "triton":
        has_epilogue = residual is not None or low is not None or high is not None
        y: Tensor = torch.ops.sparsekernels._bitmap_linear(rows.contiguous(), bitmap.words, crow_indices, values, bias)
        return _finished(y, 1, None, residual, low, high, rows.dtype) if has_epilogue else y
    tiling = product_tiling(
        covering(count), outputs, -(-rows.size(1) // WORD), rows.dtype, multiprocessors(rows.device)
    )
    return _product(rows, values, bias, bitmap, residual, low, high, tiling)


def _rows_like(residual: Tensor) -> Tensor:
    """A residual of images as rows."""
    return residual.permute(0, 2, 3, 1).reshape(-1, residual.size(1)).contiguous()


def _product(
    rows: Tensor,
    values: Tensor,
    bias: Tensor | None,
    bitmap: Bitmap,
    residual: Tensor | None,
    low: float | None,
    high: float | None,
    tiling: Tiling,
) -> Tensor:
    count, outputs = rows.size(0), bitmap.words.size(0)
    parts = tiling.parts
    output = rows.new_empty((count, outputs))
    partials = torch.empty((parts, count, outputs), dtype=torch.float32, device=rows.device) if parts > 1 else None
    used = -(-rows.size(1) // WORD)
    kernels.product[(triton.cdiv(outputs, tiling.outputs), triton.cdiv(count, tiling.rows), parts)](
        input=rows,
        values=values,
        words=bitmap.words,
        starts=bitmap.starts,
        bias=bias,
        residual=residual,
        output=output,
        partials=partials,
        rows=count,
        outputs=outputs,
        columns=rows.size(1),
        input_stride=rows.stride(0),
        words_used=used,
        row_of_words=bitmap.words.size(1),
        words_of_part=triton.cdiv(used, parts),
        PARTS=parts,
        BLOCK_OUTPUTS=tiling.outputs,
        BLOCK_ROWS=tiling.rows,
        PRECISION=float32_precision(convolution=False),
        num_warps=tiling.warps,
        num_stages=tiling.stages,
        **_limits(low, high),
    )
    if partials is None:
        return output
    return _finished(partials, parts, bias, residual, low, high, rows.dtype)


def _limits(low: float | None, high: float | None) -> dict[str, Any]:
    return {"low": float(low or 0.0), "high": float(high or 0.0), "LOW": low is not None, "HIGH": high is not None}


def _finished(
    sums: Tensor,
    parts: int,
    bias: Tensor | None,
    residual: Tensor | None,
    low: float | None,
    high: float | None,
    dtype: torch.dtype,
) -> Tensor:
    """The sum of the parts, which come first where there are several, plus bias and residual, limited, in a dtype.

    One part is of images [N, C, H, W] in either layout, or of rows.
    """
    one = sums if parts == 1 else sums[0]
    output = torch.empty_like(one, dtype=dtype)
    layout = torch.channels_last if one.dim() == 4 and not one.is_contiguous() else torch.contiguous_format
    inner = 1 if one.dim() == 2 or layout is torch.channels_last else one.size(2) * one.size(3)
    total = output.numel()
    kernels.finish[(triton.cdiv(total, 1024),)](
        partials=sums,
        bias=None if bias is None else bias.contiguous(),
        residual=None if residual is None else residual.contiguous(memory_format=layout),
        output=output,
        total=total,
        inner=inner,
        channels=one.size(1),
        PARTS=parts,
        BLOCK=1024,
        num_warps=4,
        **_limits(low, high),
    )
    return output


# Weights made dense


def _words(bitmap: Bitmap, columns: int) -> tuple[int, int]:
    """How many words have columns of the weight: in all, and in a row."""
    used = -(-columns // WORD)
    return bitmap.words.size(0) * used, used


def _block(total: int) -> int:
    """Words that a program takes: 4096 elements, 32 for each thread; in the interpreter, all that there are."""
    return min(4096, triton.next_power_of_2(total)) if INTERPRETED.value else 64


def _expanded(
    values: Tensor,
    permutation: None,
    bitmap: Bitmap | None,
    indices: tuple[Tensor, Tensor],
    outputs: int,
    of_group: int,
    geometry: Geometry,
    input: Tensor,
    rows: Tensor | None,
) -> Tensor:
    """The dense weight, [O, C] for a product with rows, else [O, C/G, kh, kw] in the layout of the input."""
    shape = (outputs, of_group, geometry.kernel_h, geometry.kernel_w)
    if bitmap is None:  # while a CUDA graph is captured: no table may be made, and torch's own steps need none
        dense = reference.scattered(values, *indices, shape)
        weight = dense.contiguous(memory_format=memory_format(rows is None and is_channels_last(input)))
    else:
        weight = _empty_weight(values, shape, rows is None and is_channels_last(input))
        _expand(values, permutation, bitmap, weight, of_group * geometry.taps, outputs, 0, geometry.taps)
    weight = weight.to(product_dtype(input))
    return weight if rows is None else weight.flatten(1)


def _expanded_of_transposed(
    values: Tensor,
    permutation: Tensor,
    bitmap: Bitmap,
    channels: int,
    outputs: int,
    geometry: Geometry,
    grad_output: Tensor,
    rows: Tensor | None,
) -> Tensor:
    """The dense weight from the transposed pattern: [C, O] for a product with rows, else [O, C/G, kh, kw]."""
    g = geometry
    of_group, outputs_of_group = channels // g.groups, outputs // g.groups
    if rows is not None:
        weight = values.new_empty((channels, outputs))
        _expand(values, permutation, bitmap, weight[:, :, None, None], outputs, channels, 0, 1)
        return weight.to(product_dtype(grad_output))
    weight = _empty_weight(values, (outputs, of_group, g.kernel_h, g.kernel_w), is_channels_last(grad_output))
    by_input = weight.transpose(0, 1)  # a row of the pattern is an input channel of a group
    columns = outputs_of_group * g.taps
    _expand(values, permutation, bitmap, by_input, columns, of_group, outputs_of_group * weight.stride(0), g.taps)
    return weight.to(product_dtype(grad_output))


def _empty_weight(values: Tensor, shape: tuple[int, ...], channels_last: bool) -> Tensor:
    return torch.empty(shape, dtype=values.dtype, device=values.device, memory_format=memory_format(channels_last))


def _expand(
    values: Tensor,
    permutation: Tensor | None,
    bitmap: Bitmap,
    dense: Tensor,
    columns: int,
    rows_of_group: int,
    group_stride: int,
    taps: int,
) -> None:
    """Fill `dense`, a view whose first dimension are the rows of a group and whose second their channels."""
    total, used = _words(bitmap, columns)
    block = _block(total)
    kernels.expand[(triton.cdiv(total, block),)](
        values=values.contiguous(),
        permutation=permutation,
        words=bitmap.words,
        starts=bitmap.starts,
        dense=dense,
        total=total,
        words_used=used,
        row_of_words=bitmap.words.size(1),
        columns=columns,
        rows_of_group=rows_of_group,
        group_stride=group_stride,
        row_stride=dense.stride(0),
        channel_stride=dense.stride(1),
        tap_stride=tap_stride(dense),
        TAPS=taps,
        BLOCK=block,
        num_warps=4,
    )
