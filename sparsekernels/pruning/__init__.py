# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Masks of an exact number of nonzeros or blocks, the same every time, and pruning a model by them."""

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

__all__ = [
    "MASKS",
    "PRUNINGS",
    "SPREAD",
    "kept_weights",
    "largest",
    "largest_blocks",
    "mask",
    "prunable",
    "prune_",
    "prune_blocks_",
]
