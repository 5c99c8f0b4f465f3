# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Masks of an exact number of nonzeros or blocks, the same every time, and pruning a model by them; and the masks of
models that other tools pruned."""

from .masks import (
    MASKS,
    PRUNINGS,
    SPREAD,
    kept_weights,
    largest,
    largest_blocks,
    mask,
    prunable,
    prune_,
    prune_blocks_,
)
from .others import finalize, masks_of

__all__ = [
    "MASKS",
    "PRUNINGS",
    "SPREAD",
    "finalize",
    "kept_weights",
    "largest",
    "largest_blocks",
    "mask",
    "masks_of",
    "prunable",
    "prune_",
    "prune_blocks_",
]
