# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""How the Triton kernels for weights in blocks cut their work: pixels a program, warps, stages, parts of a sum."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from .._triton_table import from_table

_SHARED = 96 * 1024
"""Bytes of shared memory of a program, so that two are resident on sm_90, and one with room to spare on sm_80."""


@dataclass(frozen=True)
class Tiling:
    """What one program of a product works on.

    pixels  of the result, a power of two
    warps   a power of two
    stages  tiles in flight from memory
    """

    pixels: int
    warps: int
    stages: int


def _stages(bytes_of_stage: int) -> int:
    return max(2, min(5, _SHARED // bytes_of_stage))


@from_table("blocks.product", tunes=("pixels", "warps", "stages"))
@functools.cache
def product_tiling(itemsize: int, depth: int, channels: int, positions: int, access: int = 16) -> Tiling:
    """Of a product whose tiles are `depth` deep and have `channels` channels of the result.

    positions: no fewer than there are pixels, a power of two. access: to how many bytes a pixel's channels are aligned.

    A program reads `depth` channels of each of its pixels for every tile, so it takes many pixels: as have sums of 64
    registers a thread, of eight warps, and 32 KB a stage. It takes fewer in float32, whose operands are in registers,
    too, where there are no tensor cores, and where an access of the channels has fewer than 16 bytes, which takes more
    addresses. For a few pixels a tile is read by as many threads as it has 16 bytes.
    """
    most = min(16384 // channels, 32 * 1024 // (depth * itemsize), 256)
    if itemsize == 4:
        most = min(most, 64)
    if access < 16:
        most = max(16, min(most, 512 * access // depth))
    pixels = min(most, max(16, positions))
    if pixels == 16:
        warps = max(1, min(4, depth * channels * itemsize // (16 * 32)))
    else:
        warps = 8 if pixels == 256 or pixels * channels >= 128 * 128 else 4
    return Tiling(pixels, warps, _stages((pixels + channels) * depth * itemsize))


def at_most(positions: int) -> int:
    """A power of two that covers them, or the largest that makes a difference: what a table of tilings has rows for."""
    return min(1 << (max(1, positions) - 1).bit_length(), 2**16)


def parts_of_sums(programs: int, longest: int, entries: int, rows: int, multiprocessors: int) -> int:
    """Into how many parts the sums are cut, which programs of their own work on.

    One where programs fill the GPU twice; else as many as do, of at least four tiles each in a row of mean length.
    """
    if programs >= 2 * multiprocessors or rows == 0:
        return 1
    wanted = -(-2 * multiprocessors // max(1, programs))
    return max(1, min(wanted, entries // rows // 4, longest, 32))


@dataclass(frozen=True)
class GradientTiling:
    """What one program of a gradient to the weight works on.

    pixels  that it takes at a time, a power of two
    tiles   of one row that it sums up together: 1, 2 or 4
    warps   a power of two
    stages  tiles in flight from memory
    """

    pixels: int
    tiles: int
    warps: int
    stages: int


@from_table("blocks.gradient", tunes=("pixels", "tiles", "warps", "stages"))
@functools.cache
def gradient_tiling(itemsize: int, height: int, width: int) -> GradientTiling:
    """Of a gradient to tiles of height x width. Tiles of one row share what is read of the result's gradient."""
    tiles = max(1, min(4, 8192 // (height * width)))
    pixels = 64 if itemsize == 2 else 32
    return GradientTiling(pixels, tiles, 4, _stages((height + tiles * width) * pixels * itemsize))


def parts_of_positions(units: int, positions: int, pixels: int, multiprocessors: int) -> int:
    """Into how many parts the pixels of a gradient to the weight are cut: programs fill the GPU four times, and each
    has at least eight steps."""
    wanted = -(-4 * multiprocessors // max(1, units))
    return max(1, min(wanted, -(-positions // (8 * pixels)), 256))
