# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""A small dense network, and the same with sparse layers, for the tests of the modules."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F

import sparsekernels as sk


def pruned(module: Any, density: float = 0.3) -> Any:
    with torch.no_grad():
        module.weight.mul_(torch.rand_like(module.weight) < density)
    return module


class Dense(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = pruned(torch.nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2))
        self.linear = pruned(torch.nn.Linear(6, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(F.relu(self.conv(x)).mean((2, 3)))


def sparse(dense: Dense, dense_grad: bool = False) -> Dense:
    net = copy.deepcopy(dense)
    net.conv = sk.nn.SparseConv2d.from_dense(net.conv, dense_grad=dense_grad)
    net.linear = sk.nn.SparseLinear.from_dense(net.linear, dense_grad=dense_grad)
    return net


def images() -> torch.Tensor:
    return torch.randn(3, 4, 8, 8)


def masked(dense: Dense, gradients: list[torch.Tensor]) -> list[torch.Tensor]:
    """Zero where the weight is."""
    return [
        gradient * (parameter != 0) if name.endswith("weight") else gradient
        for (name, parameter), gradient in zip(dense.named_parameters(), gradients, strict=True)
    ]


def gradients(net: torch.nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(net(x).pow(2).sum(), list(net.parameters())))


def assert_all_close(actual: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for mine, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
