# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The pattern of a call on a GPU, as operators are given it, and its tiles, which are kept beside its indices."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..._torch import outside_of_transforms
from .._kept import Kept
from ..convolution import Geometry
from .block_reference import pattern_of
from .block_tiles import Tiles, tiles_of
from .block_triton_config import gradient_tiling

_tiles: Kept[Tiles] = Kept("its tiles", Tiles.tensors)
_places: Kept[Tensor] = Kept("the places of its tiles in a dense weight", lambda place: (place,))


class Pattern(NamedTuple):
    """What the operators are called with beside tensors of numbers; channels: of a group."""

    crow_indices: Tensor
    col_indices: Tensor
    block: tuple[int, int]
    rows: int
    channels: int
    geometry: Geometry

    @property
    def key(self) -> tuple[Any, ...]:
        return self.block, self.rows, self.channels, self.geometry

    def flat_positions(self) -> Tensor:
        """int64 [nnz], where in the flattened weight each value is; validates the indices."""
        pattern = pattern_of(
            self.crow_indices, self.col_indices, self.block, self.rows, self.channels, self.geometry, torch.float32
        )
        return pattern.flat_positions()

    def tiles(self, itemsize: int) -> Tiles:
        """The tiles, for elements of so many bytes, with all that any pass needs. Worked out once.

        Raises:
            RuntimeError: Where they are not yet known and a CUDA graph is captured: a call before that finds them.
            TypeError, ValueError: As `BlockSparse` does.
        """

        def make() -> Tiles:
            with outside_of_transforms(), torch.no_grad():
                made = tiles_of(self.flat_positions(), self.rows, self.channels, self.geometry, itemsize)
                made.complete(gradient_tiling(itemsize, made.height, made.width).tiles)
                return made

        return _tiles.get((self.col_indices, self.crow_indices), (self.key, itemsize), make)

    def places(self, tiles: Tiles, weight: Tensor) -> Tensor:
        """int32: of each element of the tiles where it is in the memory of a dense weight, -1 for none. Kept as well.

        weight: contiguous, or channels_last.

        Raises:
            RuntimeError: As `tiles` does.
        """
        channels_last = not weight.is_contiguous()

        def make() -> Tensor:
            with outside_of_transforms(), torch.no_grad():
                flat, taps = self.flat_positions(), self.geometry.taps
                if channels_last:
                    output = torch.div(flat, self.channels * taps, rounding_mode="floor")
                    channel = torch.div(flat, taps, rounding_mode="floor") % self.channels
                    flat = (output * taps + flat % taps) * self.channels + channel
                if tiles.place is None:
                    return flat.int()
                found = flat.int()[tiles.place.clamp(min=0).long()] if flat.numel() > 0 else tiles.place
                return torch.where(tiles.place >= 0, found, -1)

        key = self.key, tiles.height, tiles.width, channels_last
        return _places.get((self.col_indices, self.crow_indices), key, make)
