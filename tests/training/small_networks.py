# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Small experiments that the tests of this folder run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_DRAWS = torch.Generator().manual_seed(17)
INPUTS = torch.randn(512, 20, generator=_DRAWS)
LABELS = (INPUTS @ torch.randn(20, 4, generator=_DRAWS)).argmax(1)
"""A task that is linearly separable, of four classes."""


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(20, 48), nn.ReLU(), nn.Linear(48, 24), nn.ReLU(), nn.Linear(24, 4))


def lenet() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
    )


class Convolutions(nn.Module):
    """With a BatchNorm, a weight that two layers share, and weights of other strides."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, padding=1, dtype=dtype)
        self.conv.weight.data = self.conv.weight.data.contiguous(memory_format=torch.channels_last)
        self.norm = nn.BatchNorm2d(6, dtype=dtype)
        self.first = nn.Linear(120, 120, dtype=dtype)
        self.again = nn.Linear(120, 120, dtype=dtype)
        self.again.weight = self.first.weight
        self.out = nn.Linear(120, 4, dtype=dtype)
        self.out.weight.data = self.out.weight.data.t().contiguous().t()

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x.view(-1, 1, 4, 5).to(self.conv.weight.dtype))).relu().flatten(1)
        return self.out(self.again(self.first(x).relu()).relu())


def accuracy(model: nn.Module) -> float:
    training = model.training
    with torch.no_grad():
        scores = model.eval()(INPUTS)
    model.train(training)
    return (scores.argmax(1) == LABELS).float().mean().item()


def adam(model: nn.Module) -> list[torch.optim.Optimizer]:
    return [torch.optim.Adam(model.parameters(), lr=1e-2)]


def trainer(
    steps: int = 12,
    optimizers: Callable[[nn.Module], Iterable[torch.optim.Optimizer]] = adam,
    each_step: Callable[[nn.Module, Any, int], None] = lambda model, masks, step: None,
) -> Callable[[nn.Module, Any, int], Any]:
    """A `train` that calls `each_step` behind every step, and returns the accuracy."""

    def train(model: nn.Module, masks: Any, start_step: int) -> Any:
        chosen = list(optimizers(model))
        for step in range(start_step, steps):
            places = torch.randint(512, (64,))
            model.zero_grad()
            F.cross_entropy(model(INPUTS[places]), LABELS[places]).backward()
            for optimizer in chosen:
                optimizer.step()
            each_step(model, masks, step)
        return {"accuracy": accuracy(model)}

    return train
