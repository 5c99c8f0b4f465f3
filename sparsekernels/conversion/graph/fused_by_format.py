# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""In a graph for inference: layers whose weight is in a format other than `Unstructured`."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...formats import BlockSparse
from ...ops.sparse_conv2d import by_format
from ...ops.sparse_conv2d.blocks import fused_forward
from ..blocks import has_kernels
from .fused import FusedSparse


class FusedBlocks(FusedSparse):
    """sparsekernels.nn's SparseConv2d and SparseLinear in blocks: one call of their kernel, or of their elements'.

    Where that is a kernel of blocks, its channels stay: without some of them, what is left would lie in other blocks.
    Else it is what a layer of single elements is, in chains as well.
    """

    def _pattern_of(self, layer: Any) -> Any:
        pattern = layer.pattern
        if type(pattern) is not BlockSparse or has_kernels(layer, pattern.block_size):
            return pattern
        return pattern.by_elements()[0]

    def _take(self, layer: Any, weight: Tensor, bias: Tensor | None) -> None:
        super()._take(layer, weight, bias)
        self.keeps_channels = type(self.pattern) is BlockSparse
        self._by_elements: tuple[Any, Tensor] | None = None  # where a call is not for the kernels

    @staticmethod
    def may_chain(layer: Any) -> bool:
        """Chains have no kernels for blocks."""
        return not has_kernels(layer, layer.pattern.block_size) and FusedSparse.may_chain(layer)

    def _run(self, input: Tensor, residual: Tensor | None, limits: bool = True) -> Tensor:
        if type(self.pattern) is not BlockSparse:
            return super()._run(input, residual, limits)
        low, high = (self.low, self.high) if limits else (None, None)
        operands = input, self.pattern, self._weight, self._bias, self._geometry
        result = fused_forward(*operands, residual, low, high, self.takes_residual)
        if result is not None:
            return result
        if self._by_elements is None:
            pattern, order = self.pattern.by_elements()
            self._by_elements = pattern, self._weight.index_select(0, order)
        pattern, values = self._by_elements
        return self._run_on(pattern, values, input, residual, low, high)


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
