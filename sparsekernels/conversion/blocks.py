# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Whether the zeros of a layer lie in blocks, and in which."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._transformers import is_conv1d
from ..blocks import stored, touched
from ..ops.sparse_conv2d.blocks import has_block_kernel
from .facts import CandidateObstacle, Fact
from .survey import Layer

BLOCKS = ((32, 32), (16, 16), (16, 2), (16, 1), (4, 4))
"""That are looked for, the most promising first: the larger, the fewer gathers and the fuller the registers."""

LEAST_FILL = 0.9
"""Of the elements of blocks, the share that is not zero: so a larger block may cost a tenth more products.

Chance does not reach it: blocks that are kept at random with density d, seen as blocks of twice the size, have a share
of 1 / (2 - d), below 0.77 at the least sparsity that is measured.
"""


def block_obstacle(layer: Layer) -> Fact | None:
    """Why there are no blocks to compute with, of a layer whose nonzeros alone are something to compute with."""
    module: Any = layer.module
    sizes = _sizes(module)
    if not sizes:
        weight = _weight_of(module)
        return CandidateObstacle.NO_BLOCK_KERNEL.of(dtype=str(_computed_in(weight))[6:], device=weight.device.type)
    if block_of(module) is None:
        return CandidateObstacle.NO_BLOCKS.of(blocks=tuple("{}x{}".format(*block) for block in sizes))
    return None


def block_of(module: Any) -> tuple[int, int] | None:
    """The first of `BLOCKS` that hold the nonzeros of a layer with few zeros beside; None without any.

    Those with kernels of their own come first. Others run by their elements, which counts on the CPU alone.
    """
    mask = _weight_of(module).detach() != 0
    nonzeros = int(mask.sum())
    for block in _sizes(module):
        if nonzeros >= LEAST_FILL * stored(touched(mask, block), mask.shape, block):
            return block
    return None


def runs_in_blocks(module: Any) -> bool:
    """Whether the blocks of a layer, which has such, run on kernels of their own, not on those of single elements."""
    return block_of(module) in _with_kernels(module)


def _sizes(module: Any) -> list[tuple[int, int]]:
    by_elements = BLOCKS if _weight_of(module).device.type == "cpu" else ()
    return list(dict.fromkeys((*_with_kernels(module), *by_elements)))


def _with_kernels(module: Any) -> list[tuple[int, int]]:
    """Those of `BLOCKS` that run on kernels of their own."""
    return [block for block in BLOCKS if has_kernels(module, block)]


def has_kernels(module: Any, block: tuple[int, int]) -> bool:
    """Whether blocks of this size in a layer run on kernels of their own: in block rows within one group each."""
    weight, groups = _weight_of(module), getattr(module, "groups", 1)
    fits = groups == 1 or weight.size(0) // groups % block[0] == 0
    return fits and has_block_kernel(weight.device, _computed_in(module.weight), block)


def _weight_of(module: Any) -> Tensor:
    """By outputs and inputs."""
    weight: Tensor = module.weight
    return weight.t() if is_conv1d(module) else weight


def _computed_in(weight: Tensor) -> torch.dtype:
    """The dtype of a product by a weight now: autocast's, where that is on."""
    kind = weight.device.type
    if torch.is_autocast_enabled(kind) and weight.dtype is not torch.float64:
        return torch.get_autocast_dtype(kind)
    return weight.dtype
