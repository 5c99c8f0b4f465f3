# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Drop-in modules."""

from .channel_dropped import ChannelDroppedConv2d, ChannelDroppedLinear
from .masked import MaskedLinear
from .norm import RMSNorm
from .packed_linear import PackedLinear
from .sparse import SparseConv2d, SparseLinear
from .sparse_conv1d import SparseConv1d
from .transposed_linear import SparseTransposedLinear

__all__ = [
    "ChannelDroppedConv2d",
    "ChannelDroppedLinear",
    "MaskedLinear",
    "PackedLinear",
    "RMSNorm",
    "SparseConv1d",
    "SparseConv2d",
    "SparseLinear",
    "SparseTransposedLinear",
]
