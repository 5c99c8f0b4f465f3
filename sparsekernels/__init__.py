# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Pruned PyTorch models that actually run faster on CPU, for inference and training."""

from . import _environment, _library, nn
from ._version import __version__
from .conversion import NormsReport, Report, convert, replace_norms, revert
from .dispatch import BackendError, use_backend
from .formats import BlockSparse, Unstructured
from .ops.masked_attention.op import masked_attention
from .ops.masked_matmul.op import BlockMask, PreparedMask, masked_matmul, prepare_mask
from .ops.rms_norm.op import add_rms_norm, rms_norm
from .ops.sparse_conv2d.op import sparse_conv1d, sparse_conv2d, sparse_linear

__all__ = [
    "BackendError",
    "BlockMask",
    "BlockSparse",
    "NormsReport",
    "PreparedMask",
    "Report",
    "Unstructured",
    "__version__",
    "add_rms_norm",
    "convert",
    "masked_attention",
    "masked_matmul",
    "nn",
    "prepare_mask",
    "replace_norms",
    "revert",
    "rms_norm",
    "sparse_conv1d",
    "sparse_conv2d",
    "sparse_linear",
    "use_backend",
]

_environment.warn_of_unknown()
_library.warn_of_missing()
