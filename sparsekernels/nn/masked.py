# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""A linear layer whose mask is an argument: for masks that change in every step, as supermasks do."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import check_tensor
from ..ops.masked_matmul.linear import masked_linear


class MaskedLinear(torch.nn.Linear):
    """A linear layer whose weight is masked by an argument of each call.

        y = x @ (weight * mask).T + bias

    A bool mask selects, and the gradient of the weight is zero where it leaves out. A floating mask multiplies and has
    a gradient, dmask = (dy.T @ x) * weight, also where it is zero: what training the scores of a supermask needs. Where
    a mask is False or zero the weight is not read. weight * mask is not kept for the backward pass. For a mask that
    stays for many calls `SparseLinear` is faster. Parameters and state_dict are those of `torch.nn.Linear`.

    Args:
        in_features, out_features, bias, device, dtype: As of `torch.nn.Linear`.

    Source:
        Ramanujan et al., 2020, "What's Hidden in a Randomly Weighted Neural Network?", arXiv:1911.13299, section 3.
    """

    def forward(self, input: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        """y.

        Args:
            input: [*, in_features].
            mask: [out_features, in_features]; bool, or of the dtype of `weight`.

        Returns:
            [*, out_features].

        Raises:
            TypeError: For an input or a mask of another dtype.
            ValueError: For another shape or device.
        """
        self._check(input, mask)
        return masked_linear(input, self.weight, mask, self.bias)

    def _check(self, input: Tensor, mask: Tensor) -> None:
        where, weight = "MaskedLinear", self.weight
        check_tensor(where, "input", input)
        if input.dim() < 1 or input.size(-1) != self.in_features:
            raise ValueError(f"{where}: expected input of shape [*, {self.in_features}], got {list(input.shape)}")
        if not isinstance(mask, Tensor):
            raise TypeError(f"{where}: expected mask to be a torch.Tensor, got {type(mask).__name__}")
        is_cast = mask.is_floating_point() and torch.is_autocast_enabled(weight.device.type)
        if mask.dtype not in (torch.bool, weight.dtype) and not is_cast:
            raise TypeError(
                f"{where}: expected mask of dtype torch.bool or {weight.dtype} like weight, got {mask.dtype}"
            )
        if mask.shape != weight.shape:
            raise ValueError(
                f"{where}: expected mask of shape {list(weight.shape)} like weight, got {list(mask.shape)}"
            )
        for name, one in (("input", input), ("mask", mask)):
            if one.device != weight.device:
                raise ValueError(f"{where}: expected {name} on {weight.device} like weight, got {one.device}")
