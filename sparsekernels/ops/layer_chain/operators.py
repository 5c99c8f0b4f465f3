# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Layers of a network as one call for inference, a few images at a time: `LayerChain`.

Each thread takes some images of the batch through all layers, so that what one layer writes is in the second cache when
the next one reads it, and nobody waits for another thread between two layers. How many images, and where a chain is
better cut in two, the kernel decides (csrc/layer_chain/plan.cpp). The operators behind it:

    _make_layer_chain(Tensor like) -> int                     in the dtype of `like`; its number
    _add_sparse_conv2d(int chain, int source, ...) -> int     as _sparse_conv2d; the number of the tensor that it makes
    _add_max_pool2d(int chain, int source, int[] window) -> int
    _run_layer_chain(Tensor input, int chain) -> Tensor
    _free_layer_chain(int chain) -> ()

Tensor 0 is the chain's input; `source` and `residual` are numbers of tensors, residual -1 for none. All tensors are
contiguous [N, C, H, W] on the CPU. There are no gradients and no other implementation: whoever uses it has the layers.
"""

from __future__ import annotations

import weakref

import torch
from torch import Tensor

from ... import _library  # noqa: F401 (loads the kernels)
from ..._torch import has_kernel
from ..convolution import Geometry

library = torch.library.Library("sparsekernels", "FRAGMENT")
for _schema in (
    "_make_layer_chain(Tensor like) -> int",
    "_add_sparse_conv2d(int chain, int source, Tensor values, Tensor? bias, Tensor crow_indices, Tensor col_indices,"
    " int[] geometry, int channels, int residual, float? low, float? high) -> int",
    "_add_max_pool2d(int chain, int source, int[] window) -> int",
    "_run_layer_chain(Tensor input, int chain) -> Tensor",
    "_free_layer_chain(int chain) -> ()",
):
    library.define(_schema)

AVAILABLE = has_kernel("sparsekernels::_run_layer_chain", "CPU")
"""Whether the compiled library has chains."""

_operators = torch.ops.sparsekernels
_run = _operators._run_layer_chain.default


class LayerChain:
    """A chain in the dtype of `like`; layers are added in order, each gives the number of the tensor that it makes."""

    def __init__(self, like: Tensor) -> None:
        self._number: int = _operators._make_layer_chain(like)
        self._free = weakref.finalize(self, _operators._free_layer_chain, self._number)

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
        number: int = _operators._add_sparse_conv2d(
            self._number,
            source,
            values,
            bias,
            crow_indices,
            col_indices,
            geometry,
            channels,
            -1 if residual is None else residual,
            low,
            high,
        )
        return number

    def add_max_pool2d(self, source: int, window: tuple[int, ...]) -> int:
        """As `ops.max_pool2d`."""
        number: int = _operators._add_max_pool2d(self._number, source, window)
        return number

    def __call__(self, input: Tensor) -> Tensor:
        """The last layer's result."""
        result: Tensor = _run(input, self._number)
        return result
