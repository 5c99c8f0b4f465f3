# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Convolution by a weight in blocks on kernels of its own. There are none yet: by_format.py runs blocks by elements."""

from __future__ import annotations

import torch
from torch import Tensor

from ...formats import BlockSparse
from ..convolution import Geometry


def has_block_kernel(device: torch.device, dtype: torch.dtype, block: tuple[int, int]) -> bool:
    """Whether blocks of this size run on kernels of their own, which are faster than those of single elements."""
    return False


def fused_forward(
    input: Tensor,
    pattern: BlockSparse,
    values: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    residual: Tensor | None,
    low: float | None,
    high: float | None,
) -> Tensor | None:
    """y of input [N, C, H, W] plus residual, no less than low nor more than high; None where no kernel serves that.

    values: [nnz], in the order of blocks. Without gradients.
    """
    return None
