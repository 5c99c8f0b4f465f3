# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Convolution by a weight in blocks in Triton. Signatures and semantics are those of `block_reference`.

An implicit product of matrices over channels_last images: what is not channels_last is copied. The tiles of a pattern
(block_tiles.py) are worked out at its first call and kept; their elements are the values, or gathered from them in
front of each call where blocks are smaller than tiles. Sums are in float32, in an order that the pattern and the number
of pixels fix: the same input gives the same bits.

    forward          a program sums up one row of tiles for some pixels
    input gradient   the same over the tiles of each column, for each phase of the stride: no atomics
    weight gradient  a program sums up some tiles of a row over a part of the pixels; a second kernel adds the parts
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from .._triton import device_of, float32_precision, multiprocessors
from ..convolution import LINEAR, Geometry
from . import block_triton_kernels as kernels
from . import reference
from .block_arguments import check_common, check_forward, check_input_gradient, check_weight, check_weight_gradient
from .block_pattern import Pattern
from .block_tiles import Lists, Tiles
from .block_triton_config import at_most, gradient_tiling, parts_of_positions, parts_of_sums, product_tiling

_BLOCK = 1024  # elements that a program of an elementwise kernel takes
_MOST_POSITIONS = 2**31 - 2**10  # counted in 32 bits
_MOST_PROGRAMS = 2**31 - 1
_L2 = 24 * 2**20  # bytes of activations that programs which run at once are kept to


def forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    crow_indices: Tensor,
    col_indices: Tensor,
    block: Sequence[int],
    rows: int,
    geometry: Sequence[int],
    residual: Tensor | None = None,
    low: float | None = None,
    high: float | None = None,
) -> Tensor:
    """The convolution of the padded input; plus residual, and no less than low nor more than high."""
    g = check_common(input, crow_indices, col_indices, block, geometry)
    check_forward(input, bias, rows, g, residual, low, high)
    channels, height, width = input.shape[1:]
    pattern = Pattern(crow_indices, col_indices, (block[0], block[1]), rows, channels // g.groups, g)
    with device_of(input):
        tiles = pattern.tiles(input.element_size())
        packed = _packed(input, weight, pattern, tiles)
        result = _empty(input, rows, *g.output_size(height, width))
        _product(
            _channels_last(input),
            packed,
            tiles.forward,
            result,
            g,
            depth=tiles.width,
            channels=tiles.height,
            rows_are_depth=False,
            sizes=(tiles.sizes[1], tiles.sizes[0]),
            rows_of_group=tiles.rows_of_group,
            step=(g.stride_h, g.stride_w),
            bias=None if bias is None else bias.contiguous(),
            residual=None if residual is None else _channels_last(residual),
            low=low,
            high=high,
        )
        return result.contiguous(memory_format=reference.memory_format(reference.is_channels_last(input)))


def input_gradient(
    grad_output: Tensor,
    weight: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    block: Sequence[int],
    geometry: Sequence[int],
    channels: int,
    height: int,
    width: int,
    channels_last: bool,
) -> Tensor:
    """Gradient to an input [N, channels, height, width]: a product for each phase of the stride that taps reach."""
    g = check_common(grad_output, crow_indices, col_indices, block, geometry)
    check_input_gradient(grad_output, channels, height, width, g)
    rows = grad_output.size(1)
    pattern = Pattern(crow_indices, col_indices, (block[0], block[1]), rows, channels // g.groups, g)
    with device_of(grad_output):
        tiles = pattern.tiles(grad_output.element_size())
        packed = _packed(grad_output, weight, pattern, tiles)
        result = _empty(grad_output, channels, height, width)
        if len(tiles.backward) < g.stride_h * g.stride_w:
            result.zero_()  # pixels that no tap reaches
        source = _channels_last(grad_output)
        for phase, lists in tiles.backward.items():
            _product(
                source,
                packed,
                lists,
                result,
                g,
                depth=tiles.height,
                channels=tiles.width,
                rows_are_depth=True,
                sizes=tiles.sizes,
                rows_of_group=tiles.columns_of_group,
                step=(1, 1),
                into=phase,
                apart=(g.stride_h, g.stride_w),
            )
        return result.contiguous(memory_format=reference.memory_format(channels_last))


def weight_gradient(
    grad_output: Tensor,
    input: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    block: Sequence[int],
    geometry: Sequence[int],
    count: int,
) -> Tensor:
    """Gradient to the values, of which there are `count`."""
    g = check_common(input, crow_indices, col_indices, block, geometry)
    check_weight_gradient(grad_output, input, g)
    rows, channels = grad_output.size(1), input.size(1) // g.groups
    batch, _, out_height, out_width = grad_output.shape
    positions = batch * out_height * out_width
    _check_positions(positions)
    pattern = Pattern(crow_indices, col_indices, (block[0], block[1]), rows, channels, g)
    with device_of(input):
        tiles = pattern.tiles(input.element_size())
        if count != tiles.values:
            raise ValueError(
                f"sparse_conv2d: expected count to be {tiles.values}, as the pattern has values, got {count}"
            )
        values = input.new_empty(count)
        if positions == 0 or count == 0:
            return values.zero_()
        tiling = gradient_tiling(input.element_size(), tiles.height, tiles.width)
        units = tiles.units(tiling.tiles)
        elements = tiles.count * tiles.height * tiles.width
        steps = triton.cdiv(positions, tiling.pixels)
        parts = parts_of_positions(units.size(0), positions, tiling.pixels, multiprocessors(input.device))
        steps_of_part = triton.cdiv(steps, parts)
        parts = triton.cdiv(steps, steps_of_part)
        sums = torch.empty(parts * elements, dtype=torch.float32, device=input.device)
        kernels.gradient[(units.size(0), parts)](
            grad_output=_channels_last(grad_output),
            source=_channels_last(input),
            table=tiles.table,
            units=units,
            sums=sums,
            positions=positions,
            steps_of_part=steps_of_part,
            height=input.size(2),
            width=input.size(3),
            channels=input.size(1),
            depth_of_group=channels,
            rows_of_group=tiles.rows_of_group,
            channels_of_group=tiles.sizes[0],
            out_channels=rows,
            columns=out_width,
            pixels_of_image=out_height * out_width,
            step_y=g.stride_h,
            step_x=g.stride_w,
            elements=elements,
            PIXELS=tiling.pixels,
            HEIGHT=tiles.height,
            WIDTH=tiles.width,
            TILES=tiling.tiles,
            ALIGN=_align(input.size(1), channels),
            OUT_ALIGN=_align(rows, tiles.sizes[0]),
            HEIGHT_FITS=tiles.sizes[0] % tiles.height == 0,
            DEPTH_FITS=channels % tiles.width == 0,
            ONE_TAP=_reads_its_pixel(g),
            PRECISION=_precision(input, g),
            num_warps=tiling.warps,
            num_stages=tiling.stages,
            enable_fp_fusion=True,  # said, because Triton 3.10 changes the default, and with it the bits
        )
        kernels.gather_sums[(triton.cdiv(count, _BLOCK),)](
            sums=sums,
            element=tiles.element,
            values=values,
            count=count,
            parts=parts,
            elements=elements,
            BLOCK=_BLOCK,
            num_warps=4,
        )
        return values


def _product(
    source: Tensor,
    packed: Tensor,
    lists: Lists,
    result: Tensor,
    geometry: Geometry,
    *,
    depth: int,
    channels: int,
    rows_are_depth: bool,
    sizes: tuple[int, int],
    rows_of_group: int,
    step: tuple[int, int],
    into: tuple[int, int] = (0, 0),
    apart: tuple[int, int] = (1, 1),
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    low: float | None = None,
    high: float | None = None,
) -> None:
    """Fill every `apart`-th pixel of `result` from pixel `into` on.

    depth, channels: of a tile. sizes: of a group, channels of the source and of the result.
    """
    batch, out_channels, out_height, out_width = result.shape
    image_rows, columns = (
        -(-(size - first) // every) for size, first, every in zip((out_height, out_width), into, apart, strict=True)
    )
    positions = batch * image_rows * columns
    _check_positions(positions)
    if positions == 0 or out_channels == 0:
        return
    rows = lists.order.numel()
    itemsize = source.element_size()
    align = _align(source.size(1), sizes[0])
    tiling = product_tiling(itemsize, depth, channels, at_most(positions), align * itemsize)
    tiles_of_pixels = triton.cdiv(positions, tiling.pixels)
    programs = tiles_of_pixels * rows
    _check_programs(programs)
    parts = 1
    if apart == (1, 1):
        entries = lists.entries.size(0)
        parts = parts_of_sums(programs, lists.longest, entries, rows, multiprocessors(source.device))
    sums = None
    if parts > 1:
        sums = torch.empty(parts * positions * out_channels, dtype=torch.float32, device=source.device)
    last: dict[str, Any] = {
        "bias": bias,
        "residual": residual,
        "result": result,
        "low": 0.0 if low is None else low,
        "high": 0.0 if high is None else high,
        "out_channels": out_channels,
        "parts": parts,
        "HAS_LOW": low is not None,
        "HAS_HIGH": high is not None,
    }
    kernels.product[(programs, parts)](
        source=source,
        tiles=packed,
        starts=lists.starts,
        order=lists.order,
        entries=lists.entries,
        sums=sums,
        positions=positions,
        pixels_of_group=min(tiles_of_pixels, max(1, _L2 // (tiling.pixels * source.size(1) * itemsize))),
        height=source.size(2),
        width=source.size(3),
        channels=source.size(1),
        depth_of_group=sizes[0],
        rows=rows,
        rows_of_group=rows_of_group,
        channels_of_group=sizes[1],
        columns=columns,
        pixels_of_image=image_rows * columns,
        step_y=step[0],
        step_x=step[1],
        out_height=out_height,
        out_width=out_width,
        out_step_y=apart[0],
        out_step_x=apart[1],
        out_y=into[0],
        out_x=into[1],
        PIXELS=tiling.pixels,
        DEPTH=depth,
        CHANNELS=channels,
        ROWS_ARE_DEPTH=rows_are_depth,
        ALIGN=align,
        OUT_ALIGN=_align(out_channels, sizes[1]),
        DEPTH_FITS=sizes[0] % depth == 0,
        ONE_TAP=_reads_its_pixel(geometry),
        IN_PARTS=parts > 1,
        PRECISION=_precision(source, geometry),
        num_warps=tiling.warps,
        num_stages=tiling.stages,
        enable_fp_fusion=True,  # said, because Triton 3.10 changes the default, and with it the bits
        **last,
    )
    if parts > 1:
        count = result.numel()
        kernels.finish[(triton.cdiv(count, _BLOCK),)](sums=sums, count=count, BLOCK=_BLOCK, num_warps=4, **last)


def _packed(image: Tensor, weight: Tensor, pattern: Pattern, tiles: Tiles) -> Tensor:
    """The elements of the tiles. weight: the values, or the dense weight."""
    g = pattern.geometry
    check_weight(image, weight, tiles.values, (pattern.rows, pattern.channels, g.kernel_h, g.kernel_w))
    if weight.dim() == 1:
        weight, place = weight.contiguous(), tiles.place
        if place is None:
            return weight
    else:
        if not weight.is_contiguous(memory_format=torch.channels_last):
            weight = weight.contiguous()
        place = pattern.places(tiles, weight)
    packed = weight.new_empty(place.numel())
    if packed.numel() > 0:
        kernels.pack[(triton.cdiv(packed.numel(), _BLOCK),)](
            values=weight, place=place, tiles=packed, count=packed.numel(), BLOCK=_BLOCK, num_warps=4
        )
    return packed


def _check_positions(positions: int) -> None:
    if positions > _MOST_POSITIONS:
        raise ValueError(f"sparse_conv2d: expected at most {_MOST_POSITIONS} pixels or rows on a GPU, got {positions}")


def _check_programs(programs: int) -> None:
    if programs > _MOST_PROGRAMS:
        raise ValueError(f"sparse_conv2d: expected a product of at most {_MOST_PROGRAMS} programs, got {programs}")


def _align(channels: int, of_group: int) -> int:
    return math.gcd(channels, of_group, 16)


def _reads_its_pixel(geometry: Geometry) -> bool:
    """Whether a pixel of the result reads one of the input alone, which never lies outside."""
    padding = geometry.pad_top, geometry.pad_bottom, geometry.pad_left, geometry.pad_right
    return geometry.taps == 1 and not any(padding)


def _precision(tensor: Tensor, geometry: Geometry) -> str:
    """As torch multiplies float32: a linear layer, the 1x1 convolution of images of one pixel, as matrices."""
    if tensor.dtype is not torch.float32:
        return "ieee"
    return float32_precision(convolution=geometry != LINEAR or tensor.shape[2:] != (1, 1))


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)


def _empty(like: Tensor, channels: int, height: int, width: int) -> Tensor:
    return torch.empty(
        (like.size(0), channels, height, width),
        dtype=like.dtype,
        device=like.device,
        memory_format=torch.channels_last,
    )
