# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The tiles of a weight in blocks, their lists, and how kernels on a GPU cut their work."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsekernels import BlockSparse
from sparsekernels.ops.convolution import Geometry, geometry_of
from sparsekernels.ops.sparse_conv2d import block_triton_config as config
from sparsekernels.ops.sparse_conv2d.block_tiles import (
    HEIGHTS,
    WIDTHS,
    Lists,
    Tiles,
    cost_of_tile,
    sizes_within,
    tiles_of,
)

CASES: list[tuple[tuple[int, ...], tuple[int, int], float, dict[str, Any]]] = [
    ((64, 64, 1, 1), (32, 32), 0.002, {}),
    ((64, 64, 1, 1), (16, 16), 1.0, {}),
    ((64, 64, 1, 1), (16, 16), 0.0, {}),
    ((48, 20, 3, 2), (16, 8), 0.01, {"padding": 1}),
    ((21, 11, 3, 3), (8, 4), 0.02, {"padding": 1, "stride": 2}),
    ((18, 4, 3, 2), (4, 3), 0.05, {"groups": 3, "padding": (1, 0)}),
    ((96, 40, 1, 1), (24, 40), 0.001, {"stride": 3}),
    ((8, 8, 2, 3), (4, 1), 0.1, {"dilation": (2, 1), "stride": (3, 2)}),
    ((160, 150, 1, 1), (1, 1), 0.05, {}),
]
by_case = pytest.mark.parametrize(("shape", "block", "density", "options"), CASES, ids=str)


def made(
    shape: tuple[int, ...], block: tuple[int, int], density: float, options: dict[str, Any], itemsize: int = 2
) -> tuple[BlockSparse, Geometry, Tiles]:
    pattern = BlockSparse.from_dense(torch.randn(shape), torch.rand(shape) < density, block=block)
    g = geometry_of(shape, **{"stride": 1, "padding": 0, "dilation": 1, "groups": 1, **options})
    return pattern, g, tiles_of(pattern.flat_positions(), shape[0], shape[1], g, itemsize)


def packed(values: Tensor, tiles: Tiles) -> Tensor:
    if tiles.place is None:
        return values
    return torch.where(tiles.place >= 0, values[tiles.place.clamp(min=0)], 0)


@by_case
@pytest.mark.parametrize("itemsize", [2, 4])
def test_tiles_hold_the_weight(
    shape: tuple[int, ...], block: tuple[int, int], density: float, options: dict[str, Any], itemsize: int
) -> None:
    pattern, _, tiles = made(shape, block, density, options, itemsize)
    elements = packed(pattern.values, tiles).view(-1, tiles.height, tiles.width)
    assert elements.size(0) == tiles.count
    (outputs, inputs), dense = tiles.sizes, torch.zeros(shape).flatten(2)
    for tile, row, column, tap in zip(elements, tiles.row, tiles.column, tiles.tap, strict=True):
        group, within = divmod(int(row), tiles.rows_of_group)
        first, left = within * tiles.height, int(column) * tiles.width
        height, width = min(tiles.height, outputs - first), min(tiles.width, inputs - left)
        assert not tile[height:].any()
        assert not tile[:, width:].any()
        first += group * outputs
        dense[first : first + height, left : left + width, int(tap)] += tile[:height, :width]
    assert torch.equal(dense.view(shape), pattern.to_dense())
    if tiles.element is not None:
        assert torch.equal(elements.flatten()[tiles.element], pattern.values)
    assert tiles.row.equal(tiles.row.sort().values)


def check_lists(lists: Lists, rows: int) -> None:
    counts = lists.starts.diff()
    assert lists.starts[0] == 0
    assert lists.starts[-1] == lists.entries.size(0)
    assert lists.order.sort().values.tolist() == list(range(rows))
    assert counts[lists.order.long()].equal(counts.sort(descending=True).values)
    assert lists.longest == (int(counts.max()) if rows else 0)


@by_case
def test_lists_say_which_pixels_are_read(
    shape: tuple[int, ...], block: tuple[int, int], density: float, options: dict[str, Any]
) -> None:
    """Output q reads input q * stride + shift; of the gradient, input phase + q * stride reads output q + shift."""
    _, g, tiles = made(shape, block, density, options)
    check_lists(tiles.forward, g.groups * tiles.rows_of_group)
    row = torch.repeat_interleave(tiles.forward.starts.diff())
    of_forward = {
        (int(r), c, tile, y, x) for r, (tile, y, x, c) in zip(row, tiles.forward.entries.tolist(), strict=True)
    }
    assert len(of_forward) == tiles.count
    for _, _, tile, y, x in of_forward:
        ky, kx = divmod(int(tiles.tap[tile]), g.kernel_w)
        assert (y, x) == (ky * g.dilation_h - g.pad_top, kx * g.dilation_w - g.pad_left)

    seen = 0
    for (a, b), lists in tiles.backward.items():
        assert 0 <= a < g.stride_h
        assert 0 <= b < g.stride_w
        check_lists(lists, g.groups * tiles.columns_of_group)
        row = torch.repeat_interleave(lists.starts.diff())
        for r, (tile, y, x, source) in zip(row.tolist(), lists.entries.tolist(), strict=True):
            group, column = divmod(r, tiles.columns_of_group)
            # the output at q + (y, x) reads, by the same tile, the input at (a, b) + q * stride
            shift = (a - y * g.stride_h, b - x * g.stride_w)
            assert (group * tiles.rows_of_group + source, column, tile, *shift) in of_forward
            seen += 1
    assert seen == tiles.count


@by_case
def test_units_share_a_row(
    shape: tuple[int, ...], block: tuple[int, int], density: float, options: dict[str, Any]
) -> None:
    _, _, tiles = made(shape, block, density, options)
    assert tiles.table[:, 0].equal(tiles.row.int())
    for most in (1, 2, 4):
        covered: list[int] = []
        for first, count in tiles.units(most).tolist():
            assert 1 <= count <= most
            assert len(set(tiles.row[first : first + count].tolist())) == 1
            covered += range(first, first + count)
        assert covered == list(range(tiles.count))
        assert tiles.units(most) is tiles.units(most)


@pytest.mark.parametrize(("block", "sparsity"), [(16, 0.95), (32, 0.8), (32, 0.95), (64, 0.7), (64, 0.95)])
def test_values_of_sparse_blocks_are_tiles_as_they_are(block: int, sparsity: float) -> None:
    pattern = BlockSparse.from_dense(torch.randn(1024, 1024), block=(block, block), sparsity=sparsity)
    tiles = tiles_of(pattern.flat_positions(), 1024, 1024, geometry_of((1024, 1024, 1, 1), 1, 0, 1, 1), 2)
    assert (tiles.height, tiles.width) == (block, block)
    assert tiles.place is None


def test_full_weights_have_large_tiles() -> None:
    weight = torch.randn(512, 512)
    pattern = BlockSparse.from_dense(weight, torch.ones(512, 512, dtype=torch.bool), block=(16, 16))
    linear = geometry_of((512, 512, 1, 1), 1, 0, 1, 1)
    tiles = tiles_of(pattern.flat_positions(), 512, 512, linear, 2)
    assert (tiles.height, tiles.width) == (HEIGHTS[-1], WIDTHS[-1])
    tiles = tiles_of(pattern.flat_positions(), 512, 512, linear, 4)
    assert (tiles.height, tiles.width) == (32, 32)


def test_tiles_are_not_half_empty() -> None:
    assert set(sizes_within((512, 512), 2)) == set(itertools.product(HEIGHTS, WIDTHS))
    assert set(sizes_within((512, 512), 4)) == set(itertools.product((16, 32), (16, 32)))
    assert set(sizes_within((24, 3), 2)) == {(16, 16), (32, 16)}
    assert set(sizes_within((1, 1), 2)) == {(16, 16)}


# How work is cut


def test_tables_have_rows_for_few_numbers_of_pixels() -> None:
    assert [config.at_most(one) for one in (0, 1, 2, 3, 16, 17, 10**9)] == [1, 1, 2, 4, 16, 32, 2**16]


@pytest.mark.parametrize(
    ("itemsize", "depth", "channels"),
    [(2, *size) for size in itertools.product(HEIGHTS, HEIGHTS)]
    + [(4, *s) for s in itertools.product((16, 32), (16, 32))],
)
def test_product_tilings(itemsize: int, depth: int, channels: int) -> None:
    for positions, access in itertools.product([1, 15, 16, 17, 100, 10**6, 2**31], [2, 8, 16]):
        tiling = config.product_tiling(itemsize, depth, channels, config.at_most(positions), access)
        for power in (tiling.pixels, tiling.warps):
            assert power & (power - 1) == 0
        assert 16 <= tiling.pixels <= max(16, 2 * positions)
        assert tiling.pixels * channels <= 16384
        assert tiling.pixels * channels <= 64 * 32 * tiling.warps * (2 if tiling.warps < 8 else 1)
        assert 1 <= tiling.warps <= 8
        assert 2 <= tiling.stages <= 5
        stage = (tiling.pixels + channels) * depth * itemsize
        assert tiling.stages * stage <= 163 * 1024 - 1024


@pytest.mark.parametrize("itemsize", [2, 4])
def test_gradient_tilings(itemsize: int) -> None:
    for height, width in sizes_within((512, 512), itemsize):
        tiling = config.gradient_tiling(itemsize, height, width)
        assert tiling.tiles in (1, 2, 4)
        assert tiling.tiles * height * width <= max(8192, height * width)
        assert tiling.stages * (height + tiling.tiles * width) * tiling.pixels * itemsize <= 163 * 1024 - 1024


def test_sums_are_cut_where_programs_are_few() -> None:
    assert config.parts_of_sums(programs=1000, longest=100, entries=10**4, rows=100, multiprocessors=132) == 1
    assert config.parts_of_sums(programs=64, longest=100, entries=6400, rows=64, multiprocessors=132) == 5
    assert config.parts_of_sums(programs=64, longest=8, entries=512, rows=64, multiprocessors=132) == 2
    assert config.parts_of_sums(programs=1, longest=1, entries=1, rows=1, multiprocessors=132) == 1
    assert config.parts_of_sums(programs=4, longest=0, entries=0, rows=4, multiprocessors=132) == 1
    assert config.parts_of_sums(programs=0, longest=0, entries=0, rows=0, multiprocessors=132) == 1
    assert config.parts_of_positions(units=1, positions=10, pixels=64, multiprocessors=132) == 1
    assert config.parts_of_positions(units=100, positions=10**6, pixels=64, multiprocessors=132) == 6
    assert config.parts_of_positions(units=10**4, positions=10**6, pixels=64, multiprocessors=132) == 1


def test_the_table_of_the_model_in_the_docs() -> None:
    """Speedups by the cost of tiles, and if its parts overlapped, for blocks at random places."""

    def speedup(block: int, density: float, overlaps: bool) -> float:
        def cost(height: int, width: int) -> float:
            within = max(1, height // block) * max(1, width // block)
            parts = height * width / 1450, width * 2 / 35
            one = max(parts) if overlaps else cost_of_tile(height, width, 2)
            return (1 - (1 - density) ** within) * one / (height * width)

        return 1 / 1450 / min(cost(*size) for size in sizes_within((4096, 4096), 2))

    text = (Path(__file__).parents[3] / "docs" / "block_sparse.md").read_text(encoding="utf-8")
    for block in (64, 32, 16, 8):
        cells = (
            f"{speedup(block, density, False):.1f}x to {speedup(block, density, True):.1f}x"
            for density in (0.5, 0.3, 0.2, 0.1, 0.05)
        )
        assert f"\n| {block}x{block} | {' | '.join(cells)} |\n" in text
