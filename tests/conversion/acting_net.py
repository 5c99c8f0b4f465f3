# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""A small network whose forward does something else besides."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from sparsekernels.pruning import prune_


class Net(nn.Module):
    """Linear, BatchNorm, ReLU, Linear; `act` is what else its forward does with what is between them."""

    def __init__(self, act: Callable[[Tensor], object] = lambda _: None) -> None:
        super().__init__()
        self.one, self.norm, self.two, self.act = nn.Linear(16, 32), nn.BatchNorm1d(32), nn.Linear(32, 8), act

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.one(x)).relu()
        self.act(h)
        return self.two(h)


def pruned(model: nn.Module, training: bool = False) -> nn.Module:
    prune_(model, "random", 0.8)
    return model.train(training)
