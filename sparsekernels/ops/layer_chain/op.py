# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Consecutive sparse layers of a network, and the pooling between them, as one call for inference.

There are no gradients: whoever uses a chain has the layers.

Source: Alwani et al., 2016, "Fused-Layer CNN Accelerators".
"""

from __future__ import annotations

from torch import Tensor

from ... import dispatch
from ...dispatch import select
from .implementations import LAYER_CHAIN, LayerChain

__all__ = ["is_compiled", "layer_chain"]


def layer_chain(like: Tensor) -> LayerChain:
    """An empty chain for tensors like `like`, of its dtype and on its device."""
    row = select(LAYER_CHAIN.implementations, LAYER_CHAIN.call_of(like), dispatch.forced)
    chain: LayerChain = row.kernels().LayerChain(like)
    return chain


def is_compiled(like: Tensor) -> bool:
    """Whether a chain for tensors like `like` is one call; else it is as slow as its layers."""
    return LAYER_CHAIN.is_compiled(like)
