# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The table of layer_chain. An implementation is a class `LayerChain`.

The compiled one (csrc/layer_chain) runs a few images at a time: each thread takes some images of the batch through all
layers, so that what one layer writes is in the L2 cache when the next one reads it, and no thread waits for another
between two layers. How many images, and where a chain is better cut in two, it decides itself
(csrc/layer_chain/plan.cpp). All tensors are contiguous [N, C, H, W] on the CPU.
"""

from __future__ import annotations

from torch import Tensor

from ...formats.unstructured import Unstructured
from .._operation import Operation
from .._release import release_with
from ..convolution import Geometry
from ..precision import COMPUTED_IN_FLOAT32
from . import reference

LAYER_CHAIN = Operation(
    "layer_chain",
    reference,
    devices=("cpu",),
    dtypes=COMPUTED_IN_FLOAT32,
    format=Unstructured.format,
)
compiled = LAYER_CHAIN.compiled

_make = LAYER_CHAIN.define("_make_layer_chain(Tensor like) -> int")
_add_sparse_conv2d = LAYER_CHAIN.define(
    "_add_sparse_conv2d(int chain, int source, Tensor values, Tensor? bias, Tensor crow_indices, Tensor col_indices,"
    " int[] geometry, int channels, int residual, float? low, float? high) -> int"
)
_add_max_pool2d = LAYER_CHAIN.define("_add_max_pool2d(int chain, int source, int[] window) -> int")
_run = LAYER_CHAIN.define("_run_layer_chain(Tensor input, int chain) -> Tensor")
_free = LAYER_CHAIN.define("_free_layer_chain(int chain) -> ()")


class LayerChain:
    """As that of the reference; a chain is the compiled library's, and known by a number."""

    def __init__(self, like: Tensor) -> None:
        self._number: int = _make(like)
        release_with(self, _free, self._number)

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
        indices = crow_indices, col_indices
        if residual == -1:  # which is none to the operator
            raise ValueError(f"layer_chain: expected residual to be the number of a tensor, got {residual}")
        added = -1 if residual is None else residual
        number: int = _add_sparse_conv2d(
            self._number, source, values, bias, *indices, geometry, channels, added, low, high
        )
        return number

    def add_max_pool2d(self, source: int, window: tuple[int, ...]) -> int:
        number: int = _add_max_pool2d(self._number, source, window)
        return number

    def __call__(self, input: Tensor) -> Tensor:
        result: Tensor = _run(input, self._number)
        return result


compiled.LayerChain = LayerChain
