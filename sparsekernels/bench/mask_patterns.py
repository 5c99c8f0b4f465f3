# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The masks of the suite `masked`."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from torch import Tensor

import sparsekernels

from ..pruning import mask as mask_of
from .devices import PLACES
from .suite import Case, Selection
from .suite_keys import block_of

QUICK_PERCENT = 90.0
"""The sparsity of the short benchmark."""


@dataclass(frozen=True)
class Pattern:
    """A mask: bool by elements, and in blocks where it is made of such. percent: of the zeros."""

    name: str
    percent: float
    shape: tuple[int, int]
    device: str = "cpu"

    @functools.cached_property
    def mask(self) -> sparsekernels.BlockMask | Tensor:
        """As a user has it."""
        kind, _, _ = self.name.rpartition("-")
        share = round(self.percent / 100, 7)
        if not kind[0].isdecimal():
            return mask_of(kind, self.shape, share).to(PLACES[self.device])
        block = block_of(kind)
        grid = tuple(-(-size // step) for size, step in zip(self.shape, block, strict=True))
        return sparsekernels.BlockMask(mask_of("random", grid, share).to(PLACES[self.device]), block, self.shape)

    @functools.cached_property
    def elements(self) -> Tensor:
        """bool [M, N]."""
        return self.mask if isinstance(self.mask, Tensor) else self.mask.to_dense()


def chosen_patterns(case: Case, selection: Selection, shape: tuple[int, int]) -> list[Pattern]:
    """The masks of `case`, of matrices of `shape`, those in blocks first; what options name, or its keys."""
    chosen = bool(selection.blocks or selection.masks)
    blocks = selection.blocks if chosen else case.parameters["blocks"]
    masks = selection.masks if chosen else case.parameters["masks"]
    found = []
    for kinds, key in ((blocks, "block_sparsities"), (masks, "sparsities")):
        percents = selection.sparsities or ((QUICK_PERCENT,) if selection.quick else case.parameters[key])
        for kind in dict.fromkeys(kinds):
            found += [Pattern(f"{kind}-{one:g}", one, shape, case.device) for one in dict.fromkeys(percents)]
    return found
