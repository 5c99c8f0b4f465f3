# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Prune a small network with torch's own tool, convert it, and see what that gave: layer by layer and as a whole."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import sparsekernels as sk


def block(channels: int, filters: int) -> nn.Sequential:
    """A convolution with BatchNorm and ReLU."""
    conv = nn.Conv2d(channels, filters, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(filters), nn.ReLU())


def milliseconds(model: nn.Module, images: Tensor) -> float:
    """The time of one call, the best of ten."""
    times = []
    for _ in range(10):
        start = time.perf_counter()
        model(images)
        times.append(1e3 * (time.perf_counter() - start))
    return min(times)


def main() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(block(3, 64), block(64, 128), nn.MaxPool2d(2), block(128, 128), nn.Flatten())
    model.append(nn.Linear(128 * 16 * 16, 10)).eval()
    for layer in model.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            prune.l1_unstructured(layer, "weight", amount=0.9)
            prune.remove(layer, "weight")
    images = torch.randn(16, 3, 32, 32)  # a batch as the model will be used

    with torch.inference_mode():
        expected, before = model(images), milliseconds(model, images)
    print(sk.convert(model, images))  # in place; sk.revert(model) undoes it
    with torch.inference_mode():
        difference = (model(images) - expected).abs().max().item()
        after = milliseconds(model, images)
    print(f"dense {before:.2f} ms, converted {after:.2f} ms: {before / after:.2f} times as fast")
    print(f"largest difference between the outputs: {difference:.1e}")


if __name__ == "__main__":
    main()
