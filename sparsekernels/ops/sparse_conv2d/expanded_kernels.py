# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels of fine-grained weights. `expanded.py` launches them, `expanded_routes.py` says when.

All read a pattern as a `Bitmap` (bitmap.py): a word has the bits of 64 columns of a row, its start is where the first
of its stored elements is in the values. Element k of a word is stored where bit k is set, and is then the value at
start + how many bits are set below k. That is worked out for four elements at once: one count of the bits below the
four, then one addition each.

A tensor that a call does not have is None, and what would be done with it is not compiled.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .._triton_numbers import multiply_add, narrow, widen


@triton.jit
def _bits_set(x):
    """How many bits of a uint32 are set; the compiler knows these steps, and makes one instruction of them."""
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    return (x * 0x01010101) >> 24


@triton.jit
def _fours(word, start):
    """Of words [B] and their starts: the bits [B, 16] of each four elements, and where in the values the first is."""
    low = (word & 0xFFFFFFFF).to(tl.uint32)[:, None]
    high = ((word >> 32) & 0xFFFFFFFF).to(tl.uint32)[:, None]
    four = tl.arange(0, 16)[None, :]
    half = tl.where(four < 8, low, high)
    shift = ((four % 8) * 4).to(tl.uint32)
    below = half & ((tl.full((1, 16), 1, tl.uint32) << shift) - 1)
    before = _bits_set(below) + tl.where(four < 8, 0, _bits_set(low))
    return ((half >> shift) & 15).to(tl.int32), start[:, None] + before.to(tl.int32)


@triton.jit
def _value(values, permutation, place, stored):
    """The values at these places, which are in another order where there is a permutation; zero where none is stored.

    64 bits: 2^31 values are not far from 2^31 bytes.
    """
    if permutation is not None:
        place = tl.load(permutation + place, mask=stored, other=0)
    return tl.load(values + place.to(tl.int64), mask=stored, other=0.0)


@triton.jit
def _decoded(values, permutation, word, start):
    """The elements [B, 64] of words [B], zeros included."""
    bits, place = _fours(word, start)
    v0 = _value(values, permutation, place, (bits & 1) != 0)
    place += bits & 1
    v1 = _value(values, permutation, place, (bits & 2) != 0)
    place += (bits >> 1) & 1
    v2 = _value(values, permutation, place, (bits & 4) != 0)
    place += (bits >> 2) & 1
    v3 = _value(values, permutation, place, (bits & 8) != 0)
    return tl.reshape(tl.join(tl.join(v0, v2), tl.join(v1, v3)), (word.shape[0], 64))


@triton.jit
def _offset(row, col, rows_of_group, group_stride, row_stride, channel_stride, tap_stride, TAPS: tl.constexpr):
    """Where in a dense weight the element of a row and a column of the pattern lies: col is channel * TAPS + tap.

    Rows of a group follow each other by row_stride. No weight has more than 2^31 - 1 elements.
    """
    offset = (row // rows_of_group) * group_stride + (row % rows_of_group) * row_stride
    if TAPS == 1:
        return offset + col * channel_stride
    return offset + (col // TAPS) * channel_stride + (col % TAPS) * tap_stride


@triton.jit
def expand(
    values,
    permutation,
    words,
    starts,
    dense,
    total,
    words_used,
    row_of_words,
    columns,
    rows_of_group,
    group_stride,
    row_stride,
    channel_stride,
    tap_stride,
    TAPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Writes all of a dense weight, zeros included: BLOCK words a program, of the `total` = rows * words_used."""
    number = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row, place = number // words_used, number % words_used
    there = number < total
    at = row.to(tl.int64) * row_of_words + place
    word = tl.load(words + at, mask=there, other=0)
    start = tl.load(starts + at, mask=there, other=0)
    col = place[:, None] * 64 + tl.arange(0, 64)[None, :]
    offset = _offset(row[:, None], col, rows_of_group, group_stride, row_stride, channel_stride, tap_stride, TAPS)
    tl.store(dense + offset, _decoded(values, permutation, word, start), mask=there[:, None] & (col < columns))


@triton.jit
def _gather(dense, row, col, strides, values, place, stored, TAPS: tl.constexpr):
    """values[place] = the element of a dense weight there, where it is stored."""
    offset = _offset(row, col, strides[0], strides[1], strides[2], strides[3], strides[4], TAPS)
    found = tl.load(dense + offset, mask=stored, other=0.0)
    tl.store(values + place.to(tl.int64), narrow(found, values.dtype.element_ty), mask=stored)


@triton.jit
def gather(
    dense,
    values,
    words,
    starts,
    total,
    words_used,
    row_of_words,
    rows_of_group,
    group_stride,
    row_stride,
    channel_stride,
    tap_stride,
    TAPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The other way: the values of a pattern, of a dense weight of which no other element is read."""
    number = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row, place = number // words_used, number % words_used
    there = number < total
    at = row.to(tl.int64) * row_of_words + place
    word = tl.load(words + at, mask=there, other=0)
    bits, index = _fours(word, tl.load(starts + at, mask=there, other=0))
    strides = (rows_of_group, group_stride, row_stride, channel_stride, tap_stride)
    row = row[:, None]
    col = place[:, None] * 64 + tl.arange(0, 16)[None, :] * 4
    _gather(dense, row, col, strides, values, index, (bits & 1) != 0, TAPS)
    index += bits & 1
    _gather(dense, row, col + 1, strides, values, index, (bits & 2) != 0, TAPS)
    index += (bits >> 1) & 1
    _gather(dense, row, col + 2, strides, values, index, (bits & 4) != 0, TAPS)
    index += (bits >> 2) & 1
    _gather(dense, row, col + 3, strides, values, index, (bits & 8) != 0, TAPS)


@triton.jit
def _limited(y, low, high):
    """No less than low nor more than high; NaN stays."""
    if low is not None:
        y = tl.where(y < low, low, y)
    if high is not None:
        y = tl.where(y > high, high, y)
    return y


@triton.jit(do_not_specialize=["rows", "low", "high"])
def product(
    input,
    values,
    words,
    starts,
    bias,
    residual,
    output,
    partials,
    rows,
    outputs,
    columns,
    input_stride,
    words_used,
    row_of_words,
    words_of_part,
    low: tl.float32,
    high: tl.float32,
    PARTS: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    BLOCK_OUTPUTS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """output [rows, outputs] = input [rows, columns] by the weight, plus bias and residual, no less than low nor more
    than high: BLOCK_OUTPUTS x BLOCK_ROWS a program, whose weights are decoded to registers.

    The weight is the first operand, which tensor cores take from registers. With PARTS the columns are cut, and the
    sums of part p are written to partials [PARTS, rows, outputs]: `finish` adds them."""
    out = tl.program_id(0) * BLOCK_OUTPUTS + tl.arange(0, BLOCK_OUTPUTS)
    row = tl.program_id(1) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    part = tl.program_id(2)
    out_there, row_there = out < outputs, row < rows
    lane = tl.arange(0, 64)
    sums = tl.zeros((BLOCK_OUTPUTS, BLOCK_ROWS), tl.float32)
    first = part * words_of_part
    last = tl.minimum(first + words_of_part, words_used)
    at = out.to(tl.int64) * row_of_words
    source = input + row.to(tl.int64)[None, :] * input_stride
    for place in range(first, last):
        word = tl.load(words + at + place, mask=out_there, other=0)
        start = tl.load(starts + at + place, mask=out_there, other=0)
        col = place * 64 + lane[:, None]
        x = tl.load(source + col, mask=(col < columns) & row_there[None, :], other=0.0)
        sums = multiply_add(_decoded(values, None, word, start), x, sums, PRECISION)
    there = out_there[:, None] & row_there[None, :]
    if PARTS > 1:
        own = partials + (part.to(tl.int64) * rows + row)[None, :] * outputs + out[:, None]
        tl.store(own, sums, mask=there)
    else:
        if bias is not None:
            sums += widen(tl.load(bias + out, mask=out_there, other=0.0), tl.float32)[:, None]
        if residual is not None:
            other = residual + row.to(tl.int64)[None, :] * outputs + out[:, None]
            sums += widen(tl.load(other, mask=there, other=0.0), tl.float32)
        sums = _limited(sums, low if LOW else None, high if HIGH else None)
        y = narrow(sums, output.dtype.element_ty)
        tl.store(output + row.to(tl.int64)[None, :] * outputs + out[:, None], y, mask=there)


@triton.jit(do_not_specialize=["low", "high"])
def finish(
    partials,
    bias,
    residual,
    output,
    total,
    inner,
    channels,
    low: tl.float32,
    high: tl.float32,
    PARTS: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """output = the sum of PARTS partials, in order, plus bias and residual, no less than low nor more than high.

    All are of `total` elements in the same order; the channel of one is its number // inner % channels.
    """
    number = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = number < total
    source = partials + number
    y = widen(tl.load(source, mask=there, other=0.0), tl.float32)
    for _ in tl.static_range(1, PARTS):
        source += total
        y += widen(tl.load(source, mask=there, other=0.0), tl.float32)
    if bias is not None:
        y += widen(tl.load(bias + number // inner % channels, mask=there, other=0.0), tl.float32)
    if residual is not None:
        y += widen(tl.load(residual + number, mask=there, other=0.0), tl.float32)
    y = _limited(y, low if LOW else None, high if HIGH else None)
    tl.store(output + number, narrow(y, output.dtype.element_ty), mask=there)
