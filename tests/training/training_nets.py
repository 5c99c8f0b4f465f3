# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Small networks, and steps that train them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsekernels.training import Sparsifier

ALGORITHMS = ("sparse momentum", "SET", "RigL", "gradual magnitude", "SRigL", "static")


def network(seed: int = 0) -> nn.Sequential:
    """Two convolutions and two linear layers, with a norm."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(384, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )


def perceptron(seed: int = 0, inputs: int = 20, hidden: int = 24, outputs: int = 5) -> nn.Sequential:
    """Two linear layers."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


def sgd(model: nn.Module, **options: Any) -> torch.optim.SGD:
    """With Nesterov's momentum and weight decay."""
    return torch.optim.SGD(
        model.parameters(), **({"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4} | options)
    )


def batches(model: nn.Module, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Random inputs for one of the networks here, and classes, without end."""
    generator = torch.Generator().manual_seed(seed)
    shape = (8, 20) if isinstance(model[0], nn.Linear) else (8, 3, 8, 8)  # type: ignore[index]
    while True:
        yield torch.randn(shape, generator=generator), torch.randint(5, (8,), generator=generator)


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, data: Iterator[tuple[Tensor, Tensor]]
) -> float:
    """Some steps; the last loss."""
    loss = torch.tensor(0.0)
    for _ in range(steps):
        inputs, labels = next(data)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
    return loss.item()


def assert_masked(model: nn.Module, sparsifier: Sparsifier) -> None:
    """Nothing is outside of the masks."""
    parameters = dict(model.named_parameters())
    for name, mask in sparsifier.masks.items():
        assert not parameters[name].detach()[~mask].any(), name
