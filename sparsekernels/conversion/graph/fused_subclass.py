# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""In a graph for inference: what takes the place of a subclass's layer, which pads before it multiplies."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .fused import Fused, FusedDense, FusedSparse
from .fused_by_format import FusedBlocks


class FusedOfSubclass(Fused):
    """Where it was not recorded what the subclass does with such an input, its own code runs, and modules behind it."""

    keeps_channels = True

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        layer: Any
        layer, norm = self.parts
        steps = layer.instead.steps_for(layer, input)
        if steps is None or steps.casts:
            result = layer(input)
            if norm is not None:
                result = norm(result)
            elif steps is None and (residual is not None or self.low is not None or self.high is not None):
                result = result.clone()  # which is changed in place: its own code may have given anything
            return self._end(result, residual)
        return super().forward(steps.before(input), residual)

    @staticmethod
    def may_chain(layer: Any) -> bool:
        return False


class FusedSparseOfSubclass(FusedOfSubclass, FusedSparse):
    """Of a layer with its nonzeros only."""


class FusedBlocksOfSubclass(FusedOfSubclass, FusedBlocks):
    """Of a layer with its blocks only."""


class FusedDenseOfSubclass(FusedOfSubclass, FusedDense):
    """Of a layer without its zero channels."""
