# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""A weight in blocks as tensor cores take it: tiles of one size, a power of two each way, at one tap each.

A tile is stored where a stored element lies in it. Where blocks are as large as tiles, or multiples of them, the tiles
hold the stored elements and nothing else. Smaller blocks share tiles, filled up with zeros, so that the activations
that a tile is multiplied with are read once for all of them; how large tiles are is chosen by what they would cost.

Tiles do not straddle groups. Tile rows are numbered through all groups, tile columns within one.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..convolution import Geometry

HEIGHTS = (16, 32, 64, 128)
"""Rows, output channels, that a tile may have."""

WIDTHS = (16, 32, 64)
"""Columns, input channels, that a tile may have."""

_FINEST = (HEIGHTS[0], WIDTHS[0])


class Lists(NamedTuple):
    """What a product sums up, for each row of its result's tiles: a result is the sum over a row's entries of

        source[pixel * step + (y, x), channels of the entry] times the entry's tile

    starts   int32 [rows + 1], where each row's entries start
    order    int32 [rows], the rows with the most entries first
    entries  int32 [entries, 4]: tile, y, x, and which tile of the source's channels in the group
    longest  entries of the longest row
    """

    starts: Tensor
    order: Tensor
    entries: Tensor
    longest: int


@dataclass(frozen=True, eq=False)
class Tiles:
    """The tiles of a pattern.

    height    rows of a tile
    width     columns of a tile
    sizes     of a group: output channels, input channels
    values    how many values the pattern has
    row       int64 [tiles], ascending: the tile row of each
    column    int64 [tiles], the tile column within the group
    tap       int64 [tiles]
    place     int32 [tiles * height * width], of each element where it is in the values, -1 for none; None where the
              values are the tiles as they are
    element   int32 [nnz], of each value where it is in the tiles; None likewise
    geometry  of the convolution
    """

    height: int
    width: int
    sizes: tuple[int, int]
    values: int
    row: Tensor
    column: Tensor
    tap: Tensor
    place: Tensor | None
    element: Tensor | None
    geometry: Geometry

    @property
    def count(self) -> int:
        return self.row.numel()

    @property
    def rows_of_group(self) -> int:
        """Tile rows of a group."""
        return -(-self.sizes[0] // self.height)

    @property
    def columns_of_group(self) -> int:
        """Tile columns of a group."""
        return -(-self.sizes[1] // self.width)

    def complete(self, most: int) -> None:
        """Work out all that is kept, with `units(most)`."""
        _ = self.forward, self.backward, self.table, self.units(most)

    def tensors(self) -> Iterator[Tensor]:
        """All that kernels read."""
        yield from (one for one in (self.place, self.element) if one is not None)
        for lists in (self.forward, *self.backward.values()):
            yield from (lists.starts, lists.order, lists.entries)
        yield self.table
        yield from self._units.values()

    @functools.cached_property
    def forward(self) -> Lists:
        """For the convolution: a row for each tile row."""
        y, x = self._shifts()
        return _lists(self.row, y, x, self.column, self.geometry.groups * self.rows_of_group)

    @functools.cached_property
    def backward(self) -> dict[tuple[int, int], Lists]:
        """For the gradient to the input, a row for each tile column of all groups, by phases of the stride: input
        pixels (a + i * stride_h, b + j * stride_w) sum over the taps that reach them. Other phases have none.
        """
        g, group = self.geometry, torch.div(self.row, self.rows_of_group, rounding_mode="floor")
        into, of = group * self.columns_of_group + self.column, self.row - group * self.rows_of_group
        by_row = torch.argsort((into * self.rows_of_group + of) * g.taps + self.tap)
        lists = {}
        for a in sorted({(ky * g.dilation_h - g.pad_top) % g.stride_h for ky in range(g.kernel_h)}):
            for b in sorted({(kx * g.dilation_w - g.pad_left) % g.stride_w for kx in range(g.kernel_w)}):
                y = a + g.pad_top - torch.div(self.tap, g.kernel_w, rounding_mode="floor") * g.dilation_h
                x = b + g.pad_left - self.tap % g.kernel_w * g.dilation_w
                some = by_row[((y % g.stride_h == 0) & (x % g.stride_w == 0))[by_row]]
                y = torch.div(y, g.stride_h, rounding_mode="floor")
                x = torch.div(x, g.stride_w, rounding_mode="floor")
                rows = g.groups * self.columns_of_group
                lists[a, b] = _lists(into[some], y[some], x[some], of[some], rows, tile=some)
        return lists

    @functools.cached_property
    def table(self) -> Tensor:
        """int32 [tiles, 4], for the gradient to the weight: tile row, y, x, tile column."""
        y, x = self._shifts()
        return torch.stack((self.row, y, x, self.column), 1).int().contiguous()

    @functools.cached_property
    def _units(self) -> dict[int, Tensor]:
        return {}

    def units(self, most: int) -> Tensor:
        """int32 [units, 2], first tile and number: consecutive tiles of one row, at most `most`."""
        found = self._units.get(most)
        if found is None:
            counts = torch.bincount(self.row, minlength=self.geometry.groups * self.rows_of_group)
            units = torch.div(counts + most - 1, most, rounding_mode="floor")
            row = torch.repeat_interleave(units)
            nth = torch.arange(row.numel(), device=row.device) - (units.cumsum(0) - units)[row]
            first = (counts.cumsum(0) - counts)[row] + nth * most
            found = torch.stack((first, (counts[row] - nth * most).clamp(max=most)), 1).int().contiguous()
            if found.is_cuda:
                torch.cuda.current_stream(found.device).synchronize()  # once: other streams find it complete
            self._units[most] = found
        return found

    def _shifts(self) -> tuple[Tensor, Tensor]:
        """How far from an output pixel times the stride the input pixel of each tile's tap is."""
        g = self.geometry
        y = torch.div(self.tap, g.kernel_w, rounding_mode="floor") * g.dilation_h - g.pad_top
        return y, self.tap % g.kernel_w * g.dilation_w - g.pad_left


def _lists(row: Tensor, y: Tensor, x: Tensor, source: Tensor, rows: int, tile: Tensor | None = None) -> Lists:
    """Of entries in ascending order of rows."""
    counts = torch.bincount(row, minlength=rows)
    starts = torch.zeros(rows + 1, dtype=torch.int32, device=row.device)
    starts[1:] = counts.cumsum(0)
    order = torch.argsort(counts, descending=True, stable=True).int()
    tile = torch.arange(row.numel(), device=row.device) if tile is None else tile
    entries = torch.stack((tile, y, x, source), 1).int().contiguous()
    return Lists(starts, order, entries, int(counts.max()) if rows > 0 else 0)


def tiles_of(flat: Tensor, outputs: int, inputs: int, geometry: Geometry, itemsize: int) -> Tiles:
    """The tiles of a pattern.

    Args:
        flat: int64 [nnz], where in the flattened weight [outputs, inputs, taps] each value is.
        outputs: Output channels, of all groups.
        inputs: Input channels of a group.
        geometry: Of the convolution.
        itemsize: Bytes of an element.

    Returns:
        The tiles, on the device of `flat`. Asks the device, so it is not for a CUDA graph.

    Raises:
        ValueError: For more elements of tiles than 32 bits count.
    """
    taps, sizes = geometry.taps, (outputs // geometry.groups, inputs)
    output = torch.div(flat, inputs * taps, rounding_mode="floor")
    input = torch.div(flat, taps, rounding_mode="floor") % inputs
    group = torch.div(output, sizes[0], rounding_mode="floor")
    within, tap = output - group * sizes[0], flat % taps

    def key_of(height: int, width: int) -> tuple[Tensor, int, int]:
        rows, columns = -(-sizes[0] // height), -(-sizes[1] // width)
        row = group * rows + torch.div(within, height, rounding_mode="floor")
        return (row * columns + torch.div(input, width, rounding_mode="floor")) * taps + tap, rows, columns

    height, width = _size(key_of(*_FINEST)[0], sizes, taps, itemsize)
    key, _, columns = key_of(height, width)
    found, tile = torch.unique(key, return_inverse=True)
    element = (tile * height + within % height) * width + input % width
    row = torch.div(found, columns * taps, rounding_mode="floor")
    column = torch.div(found, taps, rounding_mode="floor") % columns
    elements = found.numel() * height * width
    if elements >= 2**31:
        raise ValueError(
            f"sparse_conv2d: expected weight with less than 2^31 elements in tiles of {height}x{width}, got {elements}"
        )
    place = None
    if elements != flat.numel() or not torch.equal(element, torch.arange(elements, device=flat.device)):
        place = torch.full((elements,), -1, dtype=torch.int32, device=flat.device)
        place[element] = torch.arange(flat.numel(), dtype=torch.int32, device=flat.device)
    kept = None if place is None else element.int()
    return Tiles(height, width, sizes, flat.numel(), row, column, found % taps, place, kept, geometry)


def _size(finest: Tensor, sizes: tuple[int, int], taps: int, itemsize: int) -> tuple[int, int]:
    """The height and the width of tiles that cost the least. finest: of each element the tile that it is in, if tiles
    were of the least size."""
    rows, columns = (-(-size // step) for size, step in zip(sizes, _FINEST, strict=True))
    stored = torch.unique(finest)
    row, column = (
        torch.div(stored, columns * taps, rounding_mode="floor"),
        torch.div(stored, taps, rounding_mode="floor"),
    )
    column, tap = column % columns, stored % taps
    group = torch.div(row, rows, rounding_mode="floor")

    def cost(height: int, width: int) -> float:
        tall, broad = height // _FINEST[0], width // _FINEST[1]
        coarse = group * -(-rows // tall) + torch.div(row - group * rows, tall, rounding_mode="floor")
        key = (coarse * -(-columns // broad) + torch.div(column, broad, rounding_mode="floor")) * taps + tap
        return torch.unique(key).numel() * cost_of_tile(height, width, itemsize)

    return min(sizes_within(sizes, itemsize), key=lambda size: cost(*size))


def sizes_within(sizes: tuple[int, int], itemsize: int) -> Iterable[tuple[int, int]]:
    """The sizes that tiles may have over a group of so many outputs and inputs: none that would be half empty. Tiles of
    float32, which may be multiplied from registers, are no larger than 32 each way."""
    most = 32 if itemsize == 4 else max(*HEIGHTS, *WIDTHS)
    heights = [height for height in HEIGHTS if height == HEIGHTS[0] or height < min(2 * sizes[0], most + 1)]
    widths = [width for width in WIDTHS if width == WIDTHS[0] or width < min(2 * sizes[1], most + 1)]
    return [(height, width) for height in heights for width in widths]


def cost_of_tile(height: int, width: int, itemsize: int) -> float:
    """Cycles of a multiprocessor for one tile and one pixel, as a model of a Hopper GPU has them.

    Multiply-adds at 1,450 a cycle in bfloat16 (what dense products reach of 2,048), half of that in float32 as tf32;
    the pixel's channels at 35 bytes a cycle from L2; and what one step of the loop costs a program of 128 pixels.
    """
    return height * width * (itemsize / 2) / 1450 + width * itemsize / 35 + 40 / 128
