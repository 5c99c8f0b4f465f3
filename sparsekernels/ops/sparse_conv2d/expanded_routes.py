# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""On how many rows a product decodes its weight, and from how many on the weight is expanded first; and the tiles.

Two ways, and what bounds them, by rows n and a weight of e elements in b bytes each, of which d e are stored:

    expanded   (3/16 e + b d e + b e) / B  +  max(b e / B, 2 n e / P)   written once, then the dense product
    decoded    max((3/16 e + b d e) / B, e ceil(n / rows of a tile) / D + 2 n e / (0.6 P))

with the memory's bytes B, the tensor cores' operations P and the elements that are decoded, D, in a second. A bit and a
start of 4 bytes for each 64 make 3/16 of a byte. D is counted in instructions: `_CYCLES_OF_ELEMENT`. A warp decodes,
then multiplies, and small tiles are not multiplied at the full rate.

`MOST_DECODED` has the rows of this model, which `python -m sparsekernels.ops.sparse_conv2d.expanded_routes` writes out.
What a device has measured comes first: ops/_triton_table.py.
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from .._triton_table import from_table

TILE_ROWS: Mapping[int, int] = {2: 128, 4: 32}
"""By bytes of an element: the rows of an input that a program multiplies at a time, at most. Beyond, it decodes again.
float32 is multiplied outside of the tensor cores, by threads whose registers do not hold the sums of more."""

DENSITIES = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
"""Of a weight: a row of the table holds up to these."""

_RATE_OF_SMALL_TILES = 0.6

_CYCLES_OF_ELEMENT = 1 / 14
"""Of a multiprocessor, to decode an element: some 27 instructions of a thread for four, of which a multiprocessor
issues four for 32 threads in a cycle, and one count of bits a cycle for 16 of them. Not measured."""


@dataclass(frozen=True)
class Device:
    """What bounds a product on GPUs of a compute capability: rates of the largest of them, in units of a second.

    bytes      of memory read or written
    products   operations of tensor cores, two for a multiply-add, by bytes of an element
    elements   that are decoded
    """

    bytes: float
    products: Mapping[int, float]
    elements: float


DEVICES: Mapping[int, Device] = {
    8: Device(2.0e12, {2: 2.5e14, 4: 1.7e13}, 108 * 1.41e9 / _CYCLES_OF_ELEMENT),
    9: Device(3.35e12, {2: 7.0e14, 4: 5.0e13}, 132 * 1.75e9 / _CYCLES_OF_ELEMENT),
    10: Device(8.0e12, {2: 1.6e15, 4: 7.0e13}, 148 * 1.85e9 / _CYCLES_OF_ELEMENT),
}
"""By major compute capability: A100, H100, B200, of data sheets, tensor cores at what large products reach. float32 is
not multiplied by tensor cores unless torch allows tf32."""


def expanded_seconds(device: Device, rows: int, elements: int, density: float, itemsize: int) -> float:
    """Of a product by a weight that is expanded first."""
    compressed = elements * (3 / 16 + itemsize * density)
    written = (compressed + elements * itemsize) / device.bytes
    return written + dense_seconds(device, rows, elements, itemsize)


def dense_seconds(device: Device, rows: int, elements: int, itemsize: int) -> float:
    """Of a product by a dense weight."""
    return max(elements * itemsize / device.bytes, 2 * rows * elements / device.products[itemsize])


def decoded_seconds(device: Device, rows: int, elements: int, density: float, itemsize: int) -> float:
    """Of a product that decodes its weight."""
    compressed = elements * (3 / 16 + itemsize * density)
    tiles = -(-rows // TILE_ROWS[itemsize])
    padded = max(16, rows)
    multiplied = 2 * padded * elements / (_RATE_OF_SMALL_TILES * device.products[itemsize])
    return max(compressed / device.bytes, tiles * elements / device.elements + multiplied)


def most_decoded_of(device: Device, density: float, itemsize: int) -> int:
    """Up to so many rows, in steps of 16 and of 128, decoding is no slower than expanding, by the model."""
    most, elements = 0, 4096 * 4096
    for rows in (*range(16, 128, 16), *range(128, 4097, 128)):
        if decoded_seconds(device, rows, elements, density, itemsize) > expanded_seconds(
            device, rows, elements, density, itemsize
        ):
            break
        most = rows
    return most


MOST_DECODED: Mapping[tuple[int, int], tuple[int, ...]] = {
    (8, 2): (112, 128, 128, 128, 128, 128),
    (8, 4): (16, 16, 16, 16, 32, 32),
    (9, 2): (128, 128, 128, 128, 128, 256),
    (9, 4): (32, 32, 32, 32, 32, 64),
    (10, 2): (128, 128, 128, 128, 128, 128),
    (10, 4): (16, 16, 16, 16, 16, 32),
}
"""By major capability and bytes of an element: for each of `DENSITIES`, the most rows on which a weight is decoded."""


def table_of_model() -> dict[tuple[int, int], tuple[int, ...]]:
    """What `MOST_DECODED` is by the model."""
    return {
        (major, itemsize): tuple(most_decoded_of(device, density, itemsize) for density in DENSITIES)
        for major, device in DEVICES.items()
        for itemsize in (2, 4)
    }


@dataclass(frozen=True)
class Most:
    """The most rows on which a weight is decoded."""

    rows: int


def _major() -> int:
    """Of the current GPU's compute capability, as the table has it; that of Hopper in Triton's interpreter."""
    return _major_of(torch.cuda.current_device() if torch.cuda.is_available() else None)


@functools.cache
def _major_of(device: int | None) -> int:
    major = 9 if device is None else torch.cuda.get_device_capability(device)[0]
    return max((known for known in DEVICES if known <= major), default=min(DEVICES))


@from_table("sparse_conv2d.decoded", tunes=("rows",))
def most_decoded(density: float, dtype: torch.dtype) -> Most:
    """By the table, on the current GPU. density: one of `DENSITIES`."""
    return Most(MOST_DECODED[_major(), dtype.itemsize][DENSITIES.index(density)])


def is_decoded(rows: int, outputs: int, columns: int, nnz: int, dtype: torch.dtype) -> bool:
    """Whether a product on so many rows is to decode its weight; asked where its GPU is the current one."""
    density = DENSITIES[bisect.bisect_left(DENSITIES, min(1.0, nnz / (outputs * columns)))]
    return rows <= most_decoded(density, dtype).rows


MOST_BY_NONZEROS: Mapping[int, float] = {1: 0.55, 2: 0.45, 4: 0.36, 8: 0.26, 16: 0.11}
"""For up to so many rows, the density up to which the CUDA kernel decodes faster than the Triton one, by their
instructions: 13.25, 16, 20, 28 and 47 for a nonzero and these rows, four of 32 threads in a cycle and 80% of them busy,
half at 16 rows (docs/cuda_kernels.md), where the other takes `_CYCLES_OF_ELEMENT` for each element, stored or not. Not
measured."""


def goes_by_nonzeros(rows: int, outputs: int, columns: int, nnz: int) -> bool:
    """Whether the CUDA kernel is to decode a weight, on GPUs that it is there for."""
    limit = next((limit for most, limit in MOST_BY_NONZEROS.items() if rows <= most), -1.0)
    return nnz <= limit * outputs * columns


@dataclass(frozen=True)
class Tiling:
    """What a program of a product takes: outputs x rows, of one of `parts` parts of the columns."""

    outputs: int
    rows: int
    parts: int
    warps: int
    stages: int


def covering(rows: int) -> int:
    """A power of two that covers them, or the largest that makes a difference: what a table of tilings has rows for."""
    return min(1 << (rows - 1).bit_length(), 4096)


@from_table("sparse_conv2d.product", tunes=("parts", "warps", "stages"))
@functools.cache
def product_tiling(rows: int, outputs: int, words: int, dtype: torch.dtype, multiprocessors: int) -> Tiling:
    """The tiles of a product by a weight of `words` words in a row, for up to `rows` rows, a power of two.

    64 outputs, what a group of four warps multiplies at once, by as many rows as there are, up to `TILE_ROWS`. The
    columns are cut until there are two programs for each multiprocessor, which read while the other decodes, into parts
    of no less than eight words: a part has to be summed once more.
    """
    tile = min(TILE_ROWS[dtype.itemsize], max(16, rows))
    programs = -(-outputs // 64) * -(-rows // tile)
    parts = 1
    while programs * parts < 2 * multiprocessors and words // (2 * parts) >= 8 and parts < 16:
        parts *= 2
    parts = -(-words // -(-words // parts))  # none of them without a word
    return Tiling(64, tile, parts, warps=4, stages=3)


if __name__ == "__main__":
    for key, row in table_of_model().items():
        print(f"    {key}: {row},")
