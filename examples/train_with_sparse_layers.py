# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Train a network with sparse layers: the zeros stay zero, and forward and backward passes skip them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import sparsekernels as sk


def pruned(layer: nn.Module, amount: float = 0.9) -> nn.Module:
    """`layer` with the smallest weights set to zero."""
    prune.l1_unstructured(layer, "weight", amount=amount)
    return prune.remove(layer, "weight")


def data(count: int) -> tuple[Tensor, Tensor]:
    """Noise with a bright patch, and the quarter of the image that the patch is in."""
    images, labels = torch.randn(count, 1, 16, 16), torch.randint(4, (count,))
    for image, label in zip(images, labels.tolist(), strict=True):
        row, column = 8 * (label // 2), 8 * (label % 2)
        image[:, row + 2 : row + 6, column + 2 : column + 6] += 1.0
    return images, labels


def main() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        sk.nn.SparseConv2d.from_dense(pruned(nn.Conv2d(32, 64, 3, padding=1))),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        sk.nn.SparseLinear.from_dense(pruned(nn.Linear(64 * 4 * 4, 4))),
    )
    print(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step in range(1, 61):
        images, labels = data(64)
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 0:
            print(f"step {step}: loss {loss.item():.3f}")
    images, labels = data(256)
    print(f"accuracy on new images: {(model(images).argmax(1) == labels).float().mean().item():.1%}")
    for name, layer in model.named_modules():
        if isinstance(layer, (sk.nn.SparseConv2d, sk.nn.SparseLinear)):
            print(f"layer {name}: {(layer.weight == 0).float().mean():.1%} of the weights are zero, as at the start")


if __name__ == "__main__":
    main()
