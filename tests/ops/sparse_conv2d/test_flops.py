# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What torch's FlopCounterMode counts: nonzeros, in each direction."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sparsekernels import _library
from sparsekernels.nn import SparseConv2d, SparseLinear
from sparsekernels.pruning import prune_

pytestmark = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")


@pytest.mark.parametrize("groups", [1, 2])
def test_nonzeros_are_counted(groups: int) -> None:
    net = nn.Sequential(
        nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=groups), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 20, 10)
    )
    prune_(net, "random", 0.9)
    sparse = nn.Sequential(SparseConv2d.from_dense(net[0]), nn.ReLU(), nn.Flatten(), SparseLinear.from_dense(net[3]))
    x = torch.randn(3, 8, 8, 10, requires_grad=True)
    forward = 2 * 3 * (20 * sparse[0].pattern.nnz + sparse[3].pattern.nnz)
    sparse(x)  # calls by a plan before and after
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        sparse(x)
    assert counter.get_total_flops() == forward
    with FlopCounterMode(display=False) as counter:
        sparse(x).sum().backward()
    assert counter.get_total_flops() == 3 * forward
    assert counter.get_flop_counts()["Global"][torch.ops.sparsekernels._sparse_conv2d] == forward
