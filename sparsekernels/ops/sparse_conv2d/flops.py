# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What torch's FlopCounterMode counts of sparse operators: two for each nonzero and position of each image.

Its module imports triton, so it is not imported here: counters that are active learn the formulas from a call.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import torch
from torch import Tensor

from ..._torch import flop_counters
from . import implementations as implementations  # defines the operators


def _of_forward(
    input: Tensor, values: Tensor, bias: Tensor | None, crow: Tensor, col: Tensor, *rest: Any, out_val: Tensor
) -> int:
    return _flops(col, out_val)


def _of_input_gradient(
    grad_output: Tensor, values: Tensor, crow: Tensor, col: Tensor, *rest: Any, out_val: Tensor
) -> int:
    return _flops(col, grad_output)


def _of_weight_gradient(
    grad_output: Tensor, input: Tensor, crow: Tensor, col: Tensor, *rest: Any, out_val: Tensor
) -> int:
    return _flops(col, grad_output)


def _flops(col: Tensor, output: Tensor) -> int:
    """The three have the same products. output: [N, O, H, W]."""
    return 2 * col.numel() * output.size(0) * math.prod(output.shape[2:])


_FORMULAS = (
    (torch.ops.sparsekernels._sparse_conv2d, _of_forward),
    (torch.ops.sparsekernels._sparse_conv2d_input_gradient, _of_input_gradient),
    (torch.ops.sparsekernels._sparse_conv2d_weight_gradient, _of_weight_gradient),
)


def teach_counters() -> None:
    """Give the formulas to the FlopCounterModes that are active, unless they have others."""
    if "torch.utils.flop_counter" not in sys.modules:
        return
    for counter in flop_counters():
        for operator, formula in _FORMULAS:
            counter.flop_registry.setdefault(operator, formula)
