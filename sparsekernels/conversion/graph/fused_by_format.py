# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""In a graph for inference: layers whose weight is in a format other than `Unstructured`."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...ops.sparse_conv2d import by_format
from ...ops.sparse_conv2d.blocks import fused_forward
from .fused import FusedSparse


class FusedBlocks(FusedSparse):
    """sparsekernels.nn's SparseConv2d and SparseLinear in blocks: one call of their kernel, or of their elements'.

    Its channels stay: without some of them, what is left would lie in other blocks.
    """

    keeps_channels = True

    def _take(self, layer: Any, weight: Tensor, bias: Tensor | None) -> None:
        super()._take(layer, weight, bias)
        self._by_elements: tuple[Any, Tensor] | None = None

    @staticmethod
    def may_chain(layer: Any) -> bool:
        """Chains have no kernels for blocks."""
        return False

    def _run(self, input: Tensor, residual: Tensor | None, limits: bool = True) -> Tensor:
        low, high = (self.low, self.high) if limits else (None, None)
        operands = input, self.pattern, self._weight, self._bias, self._geometry
        result = fused_forward(*operands, residual, low, high)
        if result is not None:
            return result
        if self._by_elements is None:
            pattern, order = self.pattern.by_elements()
            self._by_elements = pattern, self._weight.index_select(0, order)
        return self._run_on(*self._by_elements, input, residual, low, high)


class FusedByFormat(FusedSparse):
    """Layers whose format does not run on `Unstructured`'s kernels: its convolution and what is behind."""

    @staticmethod
    def may_chain(layer: Any) -> bool:
        return False

    def _run(self, input: Tensor, residual: Tensor | None, limits: bool = True) -> Tensor:
        result = by_format.conv2d(input, self.pattern, self._weight, self._bias, self._geometry)
        if limits:
            return self._end(result, residual)
        return result if residual is None else result + residual
