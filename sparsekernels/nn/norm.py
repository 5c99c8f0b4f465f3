# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""RMSNorm as a module."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops.rms_norm.op import add_rms_norm, rms_norm


class RMSNorm(torch.nn.RMSNorm):
    """Drop-in for `torch.nn.RMSNorm`: the same constructor, parameters, state_dict and results, on fused kernels.

        y = x / sqrt(mean(x^2) + eps) * weight

    normalized_shape: an int or the trailing sizes that are normalised. eps: None is the machine epsilon of the type
    computed in. elementwise_affine: whether there is a weight, initialised to ones. See `sparsekernels.rms_norm` for
    dtypes, errors and promises.
    """

    def forward(self, input: Tensor) -> Tensor:
        return rms_norm(input, self.normalized_shape, self.weight, self.eps)

    def add_forward(self, input: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """The norm of input + residual, and that sum: `sparsekernels.add_rms_norm` with this module's weight."""
        return add_rms_norm(input, residual, self.normalized_shape, self.weight, self.eps)
