# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""A chain of layers one by one, on the references of the layers' own operations."""

from __future__ import annotations

import functools
from collections.abc import Callable

from torch import Tensor

from ..convolution import Geometry
from ..max_pool2d import reference as max_pool2d
from ..sparse_conv2d import reference as sparse_conv2d
from ..sparse_conv2d.arguments import check_forward, check_limits


class LayerChain:
    """A chain in the dtype of `like`; layers are added in order, each gives the number of the tensor that it makes.

    Tensor 0 is the chain's input. All tensors are [N, C, H, W].
    """

    def __init__(self, like: Tensor) -> None:
        self._dtype = like.dtype
        self._layers: list[Callable[[list[Tensor]], Tensor]] = []

    def add_sparse_conv2d(
        self,
        source: int,
        values: Tensor,
        bias: Tensor | None,
        crow_indices: Tensor,
        col_indices: Tensor,
        geometry: Geometry,
        channels: int,
        residual: int | None = None,
        low: float | None = None,
        high: float | None = None,
    ) -> int:
        """min(max(conv2d(source) + bias + residual, low), high); `channels` are those of the source."""

        def run(tensors: list[Tensor]) -> Tensor:
            if tensors[source].size(1) != channels:
                raise ValueError(
                    f"layer_chain: expected a source of {channels} channels, got {tensors[source].size(1)}"
                )
            added = None if residual is None else tensors[residual]
            arguments = tensors[source], values, bias, crow_indices, col_indices, geometry, added, low, high
            check_forward(*arguments)
            return sparse_conv2d.forward(*arguments)

        check_limits(low, high)
        if values.dtype != self._dtype:
            raise ValueError(f"layer_chain: expected values of {self._dtype} as the chain, got {values.dtype}")
        return self._add(run, source, residual)

    def add_max_pool2d(self, source: int, window: tuple[int, ...]) -> int:
        """As the operation max_pool2d."""
        pool = functools.partial(max_pool2d.forward, window=window)
        return self._add(lambda tensors: pool(tensors[source]), source)

    def _add(self, layer: Callable[[list[Tensor]], Tensor], *sources: int | None) -> int:
        if any(number is not None and not 0 <= number <= len(self._layers) for number in sources):
            raise ValueError(f"layer_chain: expected numbers of tensors from 0 to {len(self._layers)}, got {sources}")
        self._layers.append(layer)
        return len(self._layers)

    def __call__(self, input: Tensor) -> Tensor:
        """The last layer's result."""
        if not self._layers:
            raise ValueError("layer_chain: expected a chain with layers, got an empty one")
        if input.dtype != self._dtype or input.dim() != 4:
            raise ValueError(
                f"layer_chain: expected input [N, C, H, W] of {self._dtype}, got {list(input.shape)} of {input.dtype}"
            )
        tensors = [input]
        for layer in self._layers:
            tensors.append(layer(tensors))
        return tensors[-1]
