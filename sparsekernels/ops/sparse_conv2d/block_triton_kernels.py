# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels for weights in blocks. `block_triton.py` launches them, `block_tiles.py` says what tiles and
entries are.

Common to all. Images are channels_last: element (n, y, x, c) of one of H x W pixels and C channels is at
((n * H + y) * W + x) * C + c. Pixels are counted over images, rows and columns, the last fastest. DEPTH_FITS says that
tiles do not stand out of a group's channels. ALIGN divides the numbers of channels of the source, of a group and of
all, and OUT_ALIGN those of the result, so that accesses are as wide as that allows.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .._triton_numbers import multiply_add, narrow


@triton.jit(do_not_specialize=("count",))
def pack(values, place, tiles, count, BLOCK: tl.constexpr):
    """tiles[i] = values[place[i]], zero where that is negative."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    at = tl.load(place + i, mask=i < count, other=-1)
    tl.store(tiles + i, tl.load(values + at, mask=at >= 0, other=0.0), mask=i < count)


@triton.jit
def _finish(
    total, flat, channel, mask, bias, residual, result, low, high, HAS_LOW: tl.constexpr, HAS_HIGH: tl.constexpr
):  # fmt: skip
    """Write the sums of the elements `flat` of a result, with what comes behind a sum."""
    if bias is not None:
        total += tl.load(bias + channel, mask=mask, other=0.0).to(tl.float32)
    if residual is not None:
        total += tl.load(residual + flat, mask=mask, other=0.0).to(tl.float32)
    if HAS_LOW:  # comparisons, which leave NaN as it is
        total = tl.where(total < low, low, total)
    if HAS_HIGH:
        total = tl.where(total > high, high, total)
    tl.store(result + flat, narrow(total, result.dtype.element_ty), mask=mask)


_SIZES = (
    "positions", "pixels_of_group", "height", "width", "channels", "depth_of_group", "rows", "rows_of_group",
    "channels_of_group", "out_channels", "columns", "pixels_of_image", "step_y", "step_x", "out_height", "out_width",
    "out_step_y", "out_step_x", "out_y", "out_x", "parts",
)  # fmt: skip
"""Not compiled for: a kernel is the same for all sizes of images, and of layers but for ALIGN."""


@triton.jit(do_not_specialize=_SIZES)
def product(
    source,
    tiles,
    starts,
    order,
    entries,
    bias,
    residual,
    result,
    sums,
    low,
    high,
    positions,
    pixels_of_group,
    height,
    width,
    channels,
    depth_of_group,
    rows,
    rows_of_group,
    channels_of_group,
    out_channels,
    columns,
    pixels_of_image,
    step_y,
    step_x,
    out_height,
    out_width,
    out_step_y,
    out_step_x,
    out_y,
    out_x,
    parts,
    PIXELS: tl.constexpr,
    DEPTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    ROWS_ARE_DEPTH: tl.constexpr,
    ALIGN: tl.constexpr,
    OUT_ALIGN: tl.constexpr,
    DEPTH_FITS: tl.constexpr,
    ONE_TAP: tl.constexpr,
    IN_PARTS: tl.constexpr,
    HAS_LOW: tl.constexpr,
    HAS_HIGH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """PIXELS pixels and one row of CHANNELS channels of a result a program: a sum over the row's entries.

    Result pixel (i, j) of an image reads source pixels (i * step_y + y, j * step_x + x) of its entries, zero outside
    of height x width, and is written to pixel (out_y + i * out_step_y, out_x + j * out_step_x). There are `columns` j
    and `pixels_of_image` (i, j). A tile is [DEPTH, CHANNELS] in memory if ROWS_ARE_DEPTH, else [CHANNELS, DEPTH].
    Programs are ordered by groups of pixels whose sources fit L2, in these by rows, the longest first. IN_PARTS, the
    second program index is a part of the row's entries, and float32 sums go to sums [parts, positions, channels].
    """
    channels, depth_of_group = channels // ALIGN * ALIGN, depth_of_group // ALIGN * ALIGN
    out_channels = out_channels // OUT_ALIGN * OUT_ALIGN
    channels_of_group = channels_of_group // OUT_ALIGN * OUT_ALIGN
    program = tl.program_id(0)
    tiles_of_pixels = tl.cdiv(positions, PIXELS)
    group = program // (pixels_of_group * rows)
    first = group * pixels_of_group
    here = tl.minimum(pixels_of_group, tiles_of_pixels - first)
    within = program - group * pixels_of_group * rows
    row = tl.load(order + within // here)
    pixel = (first + within % here) * PIXELS + tl.arange(0, PIXELS)

    is_pixel = pixel < positions
    image = pixel // pixels_of_image
    i = (pixel - image * pixels_of_image) // columns
    j = pixel - image * pixels_of_image - i * columns
    y, x = i * step_y, j * step_x
    at = ((image.to(tl.int64) * height + y) * width + x) * channels
    group_of_row = row // rows_of_group
    at += group_of_row * depth_of_group
    depth = tl.arange(0, DEPTH)
    channel = tl.arange(0, CHANNELS)
    if ROWS_ARE_DEPTH:
        in_tile = depth[:, None] * CHANNELS + channel[None, :]
    else:
        in_tile = depth[:, None] + channel[None, :] * DEPTH

    begin, end = tl.load(starts + row), tl.load(starts + row + 1)
    if IN_PARTS:
        part = tl.program_id(1)
        count = end - begin
        end = begin + count * (part + 1) // parts
        begin += count * part // parts
    total = tl.zeros((PIXELS, CHANNELS), tl.float32)
    for entry in range(begin, end):
        tile = tl.load(entries + entry * 4)
        first_channel = tl.load(entries + entry * 4 + 3) * DEPTH
        mask = is_pixel
        from_here = first_channel
        if not ONE_TAP:
            dy, dx = tl.load(entries + entry * 4 + 1), tl.load(entries + entry * 4 + 2)
            from_here += (dy.to(tl.int64) * width + dx) * channels
            mask = mask & (y + dy >= 0) & (y + dy < height) & (x + dx >= 0) & (x + dx < width)
        pointers = source + ((at + from_here)[:, None] + depth[None, :])
        if DEPTH_FITS:
            a = tl.load(pointers, mask=mask[:, None], other=0.0)
        else:
            a = tl.load(pointers, mask=mask[:, None] & (first_channel + depth < depth_of_group)[None, :], other=0.0)
        w = tl.load(tiles + tile.to(tl.int64) * (DEPTH * CHANNELS) + in_tile)
        total = multiply_add(a, w, total, PRECISION)

    row_in_group = row - group_of_row * rows_of_group
    is_channel = row_in_group * CHANNELS + channel < channels_of_group
    to = group_of_row * channels_of_group + row_in_group * CHANNELS + channel
    mask = is_pixel[:, None] & is_channel[None, :]
    if IN_PARTS:
        flat = (tl.program_id(1).to(tl.int64) * positions + pixel)[:, None] * out_channels + to[None, :]
        tl.store(sums + flat, total, mask=mask)
    else:
        out_pixel = (image.to(tl.int64) * out_height + out_y + i * out_step_y) * out_width + out_x + j * out_step_x
        flat = out_pixel[:, None] * out_channels + to[None, :]
        channels_of_result = tl.zeros_like(total).to(tl.int32) + to[None, :]
        _finish(total, flat, channels_of_result, mask, bias, residual, result, low, high, HAS_LOW, HAS_HIGH)


@triton.jit(do_not_specialize=("count", "out_channels", "parts"))
def finish(
    sums,
    bias,
    residual,
    result,
    low,
    high,
    count,
    out_channels,
    parts,
    BLOCK: tl.constexpr,
    HAS_LOW: tl.constexpr,
    HAS_HIGH: tl.constexpr,
):
    """The parts of `product`, added in their order, with what it does at its end. count: elements of the result."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < count
    here = sums + i
    total = tl.load(here, mask=mask, other=0.0)
    for _ in range(1, parts):
        here += count
        total += tl.load(here, mask=mask, other=0.0)
    _finish(total, i, i % out_channels, mask, bias, residual, result, low, high, HAS_LOW, HAS_HIGH)


@triton.jit
def _channels_of(
    source, at, y, x, is_pixel, table, tile, height, width, channels, depth_of_group, WIDTH: tl.constexpr,
    DEPTH_FITS: tl.constexpr, ONE_TAP: tl.constexpr
):  # fmt: skip
    """The channels that one tile of a gradient reads: [pixels, WIDTH]."""
    first_channel = tl.load(table + tile * 4 + 3) * WIDTH
    mask = is_pixel
    from_here = first_channel
    if not ONE_TAP:
        dy, dx = tl.load(table + tile * 4 + 1), tl.load(table + tile * 4 + 2)
        from_here += (dy.to(tl.int64) * width + dx) * channels
        mask = mask & (y + dy >= 0) & (y + dy < height) & (x + dx >= 0) & (x + dx < width)
    column = tl.arange(0, WIDTH)
    mask = mask[:, None]
    if not DEPTH_FITS:
        mask = mask & (first_channel + column < depth_of_group)[None, :]
    return tl.load(source + ((at + from_here)[:, None] + column[None, :]), mask=mask, other=0.0)


_GRADIENT_SIZES = (
    "positions", "steps_of_part", "height", "width", "channels", "depth_of_group", "rows_of_group",
    "channels_of_group", "out_channels", "columns", "pixels_of_image", "step_y", "step_x",
)  # fmt: skip


@triton.jit(do_not_specialize=_GRADIENT_SIZES)
def gradient(
    grad_output,
    source,
    table,
    units,
    sums,
    positions,
    steps_of_part,
    height,
    width,
    channels,
    depth_of_group,
    rows_of_group,
    channels_of_group,
    out_channels,
    columns,
    pixels_of_image,
    step_y,
    step_x,
    elements,
    PIXELS: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    TILES: tl.constexpr,
    ALIGN: tl.constexpr,
    OUT_ALIGN: tl.constexpr,
    HEIGHT_FITS: tl.constexpr,
    DEPTH_FITS: tl.constexpr,
    ONE_TAP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The gradient to up to TILES tiles of one row, over a part of the pixels: sums [parts, tiles, HEIGHT, WIDTH], of
    `elements` each, in float32.

    Tile (o, c) is the sum over pixels of grad_output[pixel, o] * source[pixel * step + (y, x), c].
    """
    channels, depth_of_group = channels // ALIGN * ALIGN, depth_of_group // ALIGN * ALIGN
    out_channels = out_channels // OUT_ALIGN * OUT_ALIGN
    channels_of_group = channels_of_group // OUT_ALIGN * OUT_ALIGN
    tl.static_assert(TILES == 1 or TILES == 2 or TILES == 4)
    unit = tl.program_id(0)
    first, count = tl.load(units + unit * 2), tl.load(units + unit * 2 + 1)
    row = tl.load(table + first * 4)
    group = row // rows_of_group
    row_in_group = row - group * rows_of_group
    channel = tl.arange(0, HEIGHT)
    to = group * channels_of_group + row_in_group * HEIGHT + channel
    last = first + count - 1
    most1 = tl.where(count > 1, positions, 0)  # pixels of the second tile, and so on
    most2 = tl.where(count > 2, positions, 0)
    most3 = tl.where(count > 3, positions, 0)

    total0 = tl.zeros((HEIGHT, WIDTH), tl.float32)
    total1 = total0
    total2 = total0
    total3 = total0
    begin = tl.program_id(1) * steps_of_part
    end = tl.minimum(begin + steps_of_part, tl.cdiv(positions, PIXELS))
    for step in range(begin, end):
        pixel = step * PIXELS + tl.arange(0, PIXELS)
        is_pixel = pixel < positions
        image = pixel // pixels_of_image
        i = (pixel - image * pixels_of_image) // columns
        j = pixel - image * pixels_of_image - i * columns
        y, x = i * step_y, j * step_x
        at = ((image.to(tl.int64) * height + y) * width + x) * channels + group * depth_of_group
        mask = is_pixel[:, None]
        if not HEIGHT_FITS:
            mask = mask & (row_in_group * HEIGHT + channel < channels_of_group)[None, :]
        flat = pixel.to(tl.int64)[:, None] * out_channels + to[None, :]
        dy = tl.trans(tl.load(grad_output + flat, mask=mask, other=0.0))
        c = _channels_of(source, at, y, x, is_pixel, table, first, height, width, channels, depth_of_group, WIDTH,
                         DEPTH_FITS, ONE_TAP)  # fmt: skip
        total0 = multiply_add(dy, c, total0, PRECISION)
        if TILES > 1:
            c = _channels_of(source, at, y, x, pixel < most1, table, tl.minimum(first + 1, last), height,
                             width, channels, depth_of_group, WIDTH, DEPTH_FITS, ONE_TAP)  # fmt: skip
            total1 = multiply_add(dy, c, total1, PRECISION)
        if TILES > 2:
            c = _channels_of(source, at, y, x, pixel < most2, table, tl.minimum(first + 2, last), height,
                             width, channels, depth_of_group, WIDTH, DEPTH_FITS, ONE_TAP)  # fmt: skip
            total2 = multiply_add(dy, c, total2, PRECISION)
            c = _channels_of(source, at, y, x, pixel < most3, table, tl.minimum(first + 3, last), height,
                             width, channels, depth_of_group, WIDTH, DEPTH_FITS, ONE_TAP)  # fmt: skip
            total3 = multiply_add(dy, c, total3, PRECISION)

    into = sums + tl.program_id(1).to(tl.int64) * elements + first.to(tl.int64) * (HEIGHT * WIDTH)
    in_tile = channel[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    tl.store(into + in_tile, total0)
    if TILES > 1:
        tl.store(into + HEIGHT * WIDTH + in_tile, total1, mask=in_tile < tl.where(count > 1, HEIGHT * WIDTH, 0))
    if TILES > 2:
        tl.store(into + 2 * HEIGHT * WIDTH + in_tile, total2, mask=in_tile < tl.where(count > 2, HEIGHT * WIDTH, 0))
        tl.store(into + 3 * HEIGHT * WIDTH + in_tile, total3, mask=in_tile < tl.where(count > 3, HEIGHT * WIDTH, 0))


@triton.jit(do_not_specialize=("count", "parts", "elements"))
def gather_sums(sums, element, values, count, parts, elements, BLOCK: tl.constexpr):
    """values[k]: the sums at element[k] of `elements`, or at k, added over the parts in their order."""
    k = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = k < count
    at = k
    if element is not None:
        at = tl.load(element + k, mask=mask, other=0).to(tl.int64)
    here = sums + at
    total = tl.load(here, mask=mask, other=0.0)
    for _ in range(1, parts):
        here += elements
        total += tl.load(here, mask=mask, other=0.0)
    tl.store(values + k, narrow(total, values.dtype.element_ty), mask=mask)
