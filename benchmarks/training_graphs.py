# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""How many fresh networks have their training graph refused: `python benchmarks/training_graphs.py [WIDTH]`.

Ten each at 90, 95 and 98% zeros, of convolutions with a bias, BatchNorm and ReLU, 32 channels wide by default. None
should be.
"""

from __future__ import annotations

import sys

import torch
from torch import nn

import sparsekernels as sk
from sparsekernels.pruning import prune_
from sparsekernels.testing import prefer


def network(width: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (3, width, width, width):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    layers.insert(6, nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


def main() -> None:
    width = int(sys.argv[1]) if len(sys.argv) > 1 else 32
    for sparsity in (0.9, 0.95, 0.98):
        refused = 0
        for seed in range(10):
            torch.manual_seed(seed)
            model = network(width).train()
            prune_(model, "random", sparsity)
            with prefer("fine-grained", "graph", "layers"):
                refused += sk.convert(model, torch.randn(8, 3, 32, 32)).way.value != "graph"
        print(f"{sparsity:.0%} zeros: {refused} of 10 refused")


if __name__ == "__main__":
    main()
