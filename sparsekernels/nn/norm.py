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

    See `sparsekernels.rms_norm` for shapes, dtypes, errors and promises.

    Args:
        normalized_shape: An int or the trailing sizes that are normalized.
        eps: None is the machine epsilon of the type computed in.
        elementwise_affine: Whether there is a weight, initialized to ones.
        device, dtype: Of the weight.

    Source:
        Zhang & Sennrich 2019, "Root Mean Square Layer Normalization", arXiv 1910.07467, section 3.
    """

    def forward(self, input: Tensor) -> Tensor:
        return rms_norm(input, self.normalized_shape, self.weight, self.eps)

    def add_forward(self, input: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """The norm of input + residual, and that sum: `sparsekernels.add_rms_norm` with this module's weight.

            sum = input + residual
            y = sum / sqrt(mean(sum^2) + eps) * weight

        Args:
            input: [*, normalized_shape].
            residual: Shape, dtype and device of `input`.

        Returns:
            y and the sum, both in the shape and dtype of `input`.

        Raises:
            TypeError: For a type or dtype that is not accepted.
            ValueError: For a shape or device that is not.
        """
        return add_rms_norm(input, residual, self.normalized_shape, self.weight, self.eps)
