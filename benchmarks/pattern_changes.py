# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What a change of all patterns costs in training: `python benchmarks/pattern_changes.py [THREADS [NETWORK:BATCH...]]`.

Every convolution and linear layer is sparse, at 5% and 10% of the weights. A round is three usual steps, `set_pattern`
of every layer with half of its nonzeros elsewhere, the step after that, which makes the machine code, and one more.
Medians in milliseconds; the share is what the change took, over 100 usual steps. More rounds than fill the cache of
kernels. Default one thread, lenet-5-caffe, vgg16-d and wrn-16-10 in batches of 128.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

import sparsekernels as sk
from sparsekernels.bench.models import MODELS

ROUNDS = 9
SPARSE = {torch.nn.Conv2d: sk.nn.SparseConv2d, torch.nn.Linear: sk.nn.SparseLinear}


def random_mask(weight: torch.Tensor, density: float) -> torch.Tensor:
    return torch.rand(weight.shape) < density


def make_sparse(model: torch.nn.Module, density: float) -> list[Any]:
    """The layers of the model, all of which become sparse."""
    layers = []
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) in SPARSE:
                layer = SPARSE[type(child)].from_dense(child, random_mask(child.weight, density))
                setattr(parent, name, layer)
                layers.append(layer)
    return layers


def moved(mask: torch.Tensor) -> torch.Tensor:
    """As many elements, half of them others."""
    result, kept = mask.flatten().clone(), mask.flatten().nonzero()[:, 0]
    dropped = kept[torch.randperm(kept.numel())[: kept.numel() // 2]]
    free = (~result).nonzero()[:, 0]
    result[dropped] = False
    result[free[torch.randperm(free.numel())[: dropped.numel()]]] = True
    return result.view_as(mask)


def set_patterns(layers: list[Any], masks: list[torch.Tensor]) -> None:
    for layer, mask in zip(layers, masks, strict=True):
        layer.set_pattern(mask)


def milliseconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3


def measure(name: str, batch: int, density: float) -> None:
    network = MODELS[name]
    model = network.make(pretrained=False).train()
    layers = make_sparse(model, density)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    images, labels = network.images(batch), torch.randint(network.classes, (batch,))

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

    step()
    times: dict[str, list[float]] = {"usual": [], "set_pattern": [], "next": [], "second": []}
    for _ in range(ROUNDS):
        times["usual"] += [milliseconds(step) for _ in range(3)]
        masks = [moved(layer.mask) for layer in layers]
        times["set_pattern"].append(milliseconds(lambda masks=masks: set_patterns(layers, masks)))
        times["next"].append(milliseconds(step))
        times["second"].append(milliseconds(step))
    usual, change, following, second = map(statistics.median, times.values())
    extra = following - usual
    share = (change + max(0.0, extra)) / usual
    print(
        f"{name} batch {batch} at {density:.0%}: step {usual:.1f}, set_pattern {change:.1f}, the next step"
        f" {extra:+.1f}, the second {second - usual:+.1f}, {share:.2f}% of 100 steps",
        flush=True,
    )


def main() -> None:
    threads = sys.argv[1] if len(sys.argv) > 1 else "1"
    networks = sys.argv[2:] or ["lenet-5-caffe:128", "vgg16-d:128", "wrn-16-10:128"]
    torch.set_num_threads(int(threads))
    torch.manual_seed(0)
    for one in networks:
        name, _, batch = one.partition(":")
        for density in (0.05, 0.1):
            measure(name, int(batch or 128), density)


if __name__ == "__main__":
    main()
