# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""A folded BatchNorm, against the layer and the BatchNorm one after the other."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import sparsekernels as sk
from sparsekernels import _library
from sparsekernels.conversion.graph.fused import Fused, FusedDense, FusedSparse
from sparsekernels.testing import compare

pytestmark = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")

LAYERS = {
    "convolution": lambda bias: nn.Conv2d(8, 6, 3, bias=bias),
    "grouped": lambda bias: nn.Conv2d(8, 6, 3, groups=2, bias=bias),
    "linear": lambda bias: nn.Linear(8, 6, bias=bias),
}


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@torch.no_grad()
def test_folded_layers_compute_both(dtype: torch.dtype, name: str, bias: bool, affine: bool) -> None:
    layer: Any = LAYERS[name](bias)
    norm: Any = nn.BatchNorm1d(6, affine=affine) if name == "linear" else nn.BatchNorm2d(6, affine=affine)
    layer.weight *= torch.rand_like(layer.weight) < 0.5
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.1, 3)
    for parameter in norm.parameters():
        parameter.normal_(1)
    layer, norm = layer.to(dtype).eval(), norm.to(dtype).eval()
    x = (torch.randn(9, 8) if name == "linear" else torch.randn(3, 8, 7, 6)).to(dtype)
    truth = copy.deepcopy(norm).double()(copy.deepcopy(layer).double()(x.double()))
    baseline = norm(layer(x))
    layers: list[Fused] = [FusedDense(layer, norm)]
    if dtype is not torch.float64:  # there are no sparse kernels
        kind = sk.nn.SparseLinear if name == "linear" else sk.nn.SparseConv2d
        layers.append(FusedSparse(kind.sharing(layer), norm))
    for fused in layers:
        comparison = compare(type(fused).__name__, fused(x), truth, baseline, exact=dtype is torch.float64)
        assert comparison.passed, comparison
