# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""transformers' `Conv1D`; where transformers is not installed, one that does the same, under the same name."""

from __future__ import annotations

import sys
import types

import torch
from torch import Tensor, nn

IS_STAND_IN = False
"""Where it is, Python finds no module from which to unpickle it."""

try:
    from transformers.pytorch_utils import Conv1D
except ImportError:
    IS_STAND_IN = True

    class Conv1D(nn.Module):  # type: ignore[no-redef]
        """y = x W + b with W [nx, nf]."""

        def __init__(self, nf: int, nx: int) -> None:
            super().__init__()
            self.nf, self.nx = nf, nx
            self.weight = nn.Parameter(torch.empty(nx, nf))
            self.bias = nn.Parameter(torch.zeros(nf))
            nn.init.normal_(self.weight, std=0.02)

        def __repr__(self) -> str:
            return f"Conv1D(nf={self.nf}, nx={self.nx})"

        def forward(self, x: Tensor) -> Tensor:
            rows = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
            return rows.view(*x.size()[:-1], self.nf)

    Conv1D.__module__, Conv1D.__qualname__ = "transformers.pytorch_utils", "Conv1D"
    sys.modules["transformers.pytorch_utils"] = types.ModuleType("transformers.pytorch_utils")
    sys.modules["transformers.pytorch_utils"].Conv1D = Conv1D  # type: ignore[attr-defined]

__all__ = ["IS_STAND_IN", "Conv1D"]
