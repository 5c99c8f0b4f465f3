# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""A network with what a training graph fuses, and its steps against those of the modules."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from conversion_checks import graph_of
from torch import Tensor, nn

from sparsekernels.pruning import prune_


class Stack(nn.Module):
    """BatchNorms with all that may stand behind them, each between two convolutions."""

    def __init__(self, p: float = 0.0) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(7))
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(6))
        self.norms[3] = nn.BatchNorm2d(8, momentum=None)
        self.norms[4] = nn.BatchNorm2d(8, affine=False)
        self.norms[5] = nn.BatchNorm2d(8, track_running_stats=False)
        self.relu, self.relu6, self.dropout = nn.ReLU(inplace=True), nn.ReLU6(), nn.Dropout(p)
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norms[0](self.convs[0](x)))
        x = self.dropout(self.relu6(self.norms[1](self.convs[1](x))))
        x = F.dropout(F.relu(self.norms[2](self.convs[2](x))), self.p, self.training)
        x = self.norms[3](self.convs[3](x))
        x = torch.relu(self.norms[4](self.convs[4](x)))
        x = F.hardtanh(self.norms[5](self.convs[5](x)))
        return self.convs[6](x)


def trained(p: float = 0.0) -> tuple[nn.Module, Tensor]:
    model = Stack(p).train()
    prune_(model, "random", 0.8)
    with torch.no_grad():
        for norm in model.norms:
            if norm.affine:
                norm.weight.uniform_(0.5, 1.5)
                norm.bias.normal_(0, 0.3)
    return model, torch.randn(6, 8, 9, 11)


def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    """The result, the gradients for it at the nonzeros, and the buffers afterwards."""
    model.zero_grad()
    x = x.clone().requires_grad_()
    result = model(x)
    result.square().mean().backward()
    assert x.grad is not None
    found = [result.detach(), x.grad]
    for parameter in model.parameters():
        assert parameter.grad is not None
        found.append(torch.where(parameter != 0, parameter.grad, 0) if parameter.dim() > 1 else parameter.grad)
    return found + [buffer.clone() for buffer in model.buffers()]


def assert_steps_alike(model: nn.Module, dense: nn.Module, wide: nn.Module, x: Tensor) -> None:
    """Results, gradients and buffers of a step, against the modules in float64; counts against those in float32."""
    for mine, truth, baseline in zip(
        gradients(model, x), gradients(wide, x.double()), gradients(dense, x), strict=True
    ):
        if truth.is_floating_point():
            torch.testing.assert_close(mine.double(), truth, rtol=1e-3, atol=1e-5)
        else:
            assert torch.equal(mine, baseline)


def calls(model: nn.Module) -> list[str]:
    return [name.partition(":")[2] for name in graph_of(model)]
