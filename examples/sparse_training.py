# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Train a network that is sparse from the first step: a tenth of the weights, whose places are learned as well."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsekernels.training import CosineDecay, Sparsifier

STEPS = 300


def data(count: int) -> tuple[Tensor, Tensor]:
    """Noise with a bright patch, and the quarter of the image that the patch is in."""
    images, labels = torch.randn(count, 1, 16, 16), torch.randint(4, (count,))
    for image, label in zip(images, labels.tolist(), strict=True):
        row, column = 8 * (label // 2), 8 * (label % 2)
        image[:, row + 2 : row + 6, column + 2 : column + 6] += 1.0
    return images, labels


def main() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(256, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 4)
    model = nn.Sequential(nn.Flatten(), *linear)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    sparsifier = Sparsifier(
        model,
        optimizer,
        density=0.1,
        algorithm="sparse momentum",  # or "SET", "RigL", "SRigL", "gradual magnitude", "static"
        prune_rate=CosineDecay(0.5, STEPS),
        update_every=30,
        last_update=STEPS - 30,
        example_input=torch.randn(64, 1, 16, 16),  # layers are measured at once, not after the first batch
    )
    print(sparsifier.line)
    for step in range(1, STEPS + 1):
        images, labels = data(64)
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()  # masks, and updates of the topology, are hooks of it
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.3f}, {sum(sparsifier.nonzeros.values())} nonzeros")
    images, labels = data(1000)
    print(f"accuracy on new images: {(model(images).argmax(1) == labels).float().mean().item():.1%}")
    for name, count in sparsifier.nonzeros.items():
        print(f"{name}: {count} of {sparsifier.masks[name].numel()} weights")


if __name__ == "__main__":
    main()
