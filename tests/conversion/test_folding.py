# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""A folded BatchNorm, against torch.nn.utils.fusion."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_weights, fuse_linear_bn_weights

import sparsekernels as sk
from sparsekernels import _library
from sparsekernels.conversion.graph.fused import FusedDense, FusedSparse
from sparsekernels.testing import compare

pytestmark = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")

LAYERS = {
    "convolution": lambda bias: nn.Conv2d(8, 6, 3, bias=bias),
    "grouped": lambda bias: nn.Conv2d(8, 6, 3, groups=2, bias=bias),
    "linear": lambda bias: nn.Linear(8, 6, bias=bias),
}


def folded_by_torch(layer: Any, norm: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The weight and the bias, computed in `dtype`."""
    fold = fuse_linear_bn_weights if isinstance(layer, nn.Linear) and norm.affine else fuse_conv_bn_weights
    layer_tensors, norm_tensors = (
        [None if one is None else one.detach().to(dtype) for one in tensors]
        for tensors in (
            (layer.weight, layer.bias),
            (norm.running_mean, norm.running_var, norm.weight, norm.bias),
        )
    )
    mean, variance, *affine = norm_tensors
    weight, bias = fold(*layer_tensors, mean, variance, norm.eps, *affine)
    return weight.detach(), bias.detach()


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@torch.no_grad()
def test_folding_is_torchs(dtype: torch.dtype, name: str, bias: bool, affine: bool) -> None:
    layer: Any = LAYERS[name](bias)
    norm: Any = nn.BatchNorm1d(6, affine=affine) if name == "linear" else nn.BatchNorm2d(6, affine=affine)
    layer.weight *= torch.rand_like(layer.weight) < 0.5
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.1, 3)
    for parameter in norm.parameters():
        parameter.normal_(1)
    layer, norm = layer.to(dtype).eval(), norm.to(dtype).eval()
    sparse = (sk.nn.SparseLinear if name == "linear" else sk.nn.SparseConv2d).sharing(layer)
    truth, baseline = folded_by_torch(layer, norm, torch.float64), folded_by_torch(layer, norm, dtype)
    for fused in (FusedDense(layer, norm), FusedSparse(sparse, norm)):
        comparisons = [
            compare(name, *tensors, exact=dtype is torch.float64)
            for name, *tensors in zip(("weight", "bias"), (fused.weight, fused.bias), truth, baseline, strict=True)
        ]
        assert all(one.passed for one in comparisons), comparisons
