# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""RMSNorm as a module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..ops.rms_norm.arguments import CASTS
from ..ops.rms_norm.op import add_rms_norm, rms_norm


class RMSNorm(torch.nn.RMSNorm):
    """Drop-in for `torch.nn.RMSNorm`: the same constructor, parameters, state_dict and results, on fused kernels.

        y = x / sqrt(mean(x^2) + eps) * weight      (1 + weight with unit_offset)

    See `sparsekernels.rms_norm` for shapes, dtypes, errors and promises.

    Args:
        normalized_shape: An int or the trailing sizes that are normalized.
        eps: None is the machine epsilon of the type computed in.
        elementwise_affine: Whether there is a weight, initialized to ones, to zeros with `unit_offset`.
        device, dtype: Of the weight.
        cast, unit_offset: As in `sparsekernels.rms_norm`: "before" is Llama's norm, `unit_offset` Gemma's.

    Source:
        Zhang & Sennrich 2019, "Root Mean Square Layer Normalization", arXiv 1910.07467, section 3.
    """

    # of the class, so that a torch.nn.RMSNorm whose class becomes this one has them
    cast = "after"
    unit_offset = False

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        cast: str = "after",
        unit_offset: bool = False,
    ) -> None:
        if cast not in CASTS:
            raise ValueError(f"RMSNorm: expected cast of {' or '.join(map(repr, CASTS))}, got {cast!r}")
        if not isinstance(unit_offset, bool):
            raise TypeError(f"RMSNorm: expected unit_offset to be a bool, got {type(unit_offset).__name__}")
        if cast != type(self).cast:
            self.cast = cast
        if unit_offset != type(self).unit_offset:
            self.unit_offset = unit_offset
        super().__init__(normalized_shape, eps, elementwise_affine, device, dtype)  # type: ignore[arg-type]

    def reset_parameters(self) -> None:
        if self.weight is not None:
            torch.nn.init.constant_(self.weight, 0 if self.unit_offset else 1)

    def extra_repr(self) -> str:
        changed = [f"{name}={getattr(self, name)!r}" for name in ("cast", "unit_offset") if name in vars(self)]
        return ", ".join([super().extra_repr(), *changed])

    def forward(self, input: Tensor) -> Tensor:
        return rms_norm(input, self.normalized_shape, self.weight, self.eps, self.cast, self.unit_offset)

    def add_forward(self, input: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """The norm of input + residual, and that sum: `sparsekernels.add_rms_norm` with this module's weight.

            sum = input + residual
            y = sum / sqrt(mean(sum^2) + eps) * weight      (1 + weight with unit_offset)

        Args:
            input: [*, normalized_shape].
            residual: Shape, dtype and device of `input`.

        Returns:
            y and the sum, both in the shape of `input`; the sum has its dtype, and y that of the norm.

        Raises:
            TypeError: For a type or dtype that is not accepted.
            ValueError: For a shape or device that is not.
        """
        return add_rms_norm(input, residual, self.normalized_shape, self.weight, self.eps, self.cast, self.unit_offset)
