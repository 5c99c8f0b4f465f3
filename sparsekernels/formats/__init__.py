# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Sparse weights as data: immutable, made of plain tensors, checked where they come from outside."""

from .block_sparse import BlockSparse
from .sparse_format import SparseFormat
from .unstructured import Unstructured

FORMATS: dict[str, type[SparseFormat]] = {
    Unstructured.format: Unstructured,
    BlockSparse.format: BlockSparse,
}
"""The formats by name: what `sparsekernels.nn` and `sparsekernels.convert` may choose from."""

__all__ = ["FORMATS", "BlockSparse", "SparseFormat", "Unstructured"]
