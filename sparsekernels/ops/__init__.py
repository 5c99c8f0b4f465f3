# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The operations, one folder each: mathematics, reference, implementations."""

from ._operation import Operation
from .batch_norm.implementations import BATCH_NORM
from .fingerprint.implementations import FINGERPRINT
from .layer_chain.implementations import LAYER_CHAIN
from .masked_attention.implementations import MASKED_ATTENTION
from .masked_matmul.implementations import MASKED_MATMUL
from .max_pool2d.implementations import MAX_POOL2D
from .packed_linear.implementations import PACKED_LINEAR
from .rms_norm.implementations import RMS_NORM
from .sparse_conv2d.implementations import SPARSE_CONV2D

OPERATIONS: list[Operation] = [
    RMS_NORM,
    SPARSE_CONV2D,
    BATCH_NORM,
    MAX_POOL2D,
    MASKED_MATMUL,
    MASKED_ATTENTION,
    PACKED_LINEAR,
    LAYER_CHAIN,
    FINGERPRINT,
]
"""Every operation: what `sparsekernels info` lists."""

__all__ = ["OPERATIONS"]
