# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""In a graph for inference: linear layers whose weight is [in, out], transformers' Conv1D and what replaces it.

The replacements run as the linear layer with the transposed weight, whose values are packed.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...ops.convolution import LINEAR
from ...ops.sparse_conv2d.transposed_linear import dense_product
from ..facts import GraphObstacle
from .fused import Fused, FusedSparse, Norm
from .fused_by_format import FusedBlocks, FusedByFormat


class _FusedTransposed(Fused):
    """What these have in common."""

    keeps_channels = True
    output_dim = 1

    @classmethod
    def obstacle_of(cls, layer: Any, norm: Norm | None = None) -> GraphObstacle | None:
        return super().obstacle_of(layer) if norm is None else GraphObstacle.PARAMETERS

    @staticmethod
    def may_chain(layer: Any) -> bool:
        return False


class FusedDenseTransposed(_FusedTransposed):
    """transformers' Conv1D as it is."""

    def _product(self, input: Tensor) -> Tensor:
        return dense_product(input, self._weight, self._bias)


class FusedTransposed(_FusedTransposed, FusedSparse):
    """sparsekernels.nn's SparseTransposedLinear."""

    def _take(self, layer: Any, weight: Tensor, bias: Tensor | None) -> None:
        flipped = layer.flipped()
        self.pattern = flipped.pattern
        self._linear, self._geometry, self._pad = True, LINEAR, None
        self._begin_table(layer, weight.t())
        Fused._take(self, layer, flipped.values_of(weight), bias)


class FusedTransposedBlocks(FusedTransposed, FusedBlocks):
    """The same in blocks."""

    def _pattern_of(self, layer: Any) -> Any:
        return layer.pattern

    def _take(self, layer: Any, weight: Tensor, bias: Tensor | None) -> None:
        super()._take(layer, weight, bias)
        self._by_elements = None


class FusedTransposedByFormat(FusedTransposed, FusedByFormat):
    """The same in a format that does not run on `Unstructured`'s kernels."""
