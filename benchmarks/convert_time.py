# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""How long `convert` takes: `python benchmarks/convert_time.py [NETWORK [BATCH [SPARSITY [LIMIT [MODE]]]]]`, seconds.

Default resnet-50, 16, 0.9, inf, eval: random zeros in every layer, and no `max_seconds`. NETWORK may be resnet-18 as
well, MODE train. To compare two trees, run it in turn with PYTHONPATH set to each, on a machine that does nothing else.
"""

from __future__ import annotations

import sys
import time

import torch
from torch import Tensor, nn

import sparsekernels as sk
from sparsekernels.bench.models import MODELS
from sparsekernels.pruning import prune_


class Block(nn.Module):
    """Two 3x3 convolutions around a shortcut (He et al., 2016; arXiv:1512.03385)."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.relu, self.downsample = nn.ReLU(inplace=True), nn.Sequential()
        if stride != 1:
            self.downsample = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += self.downsample(x)
        return self.relu(y)


def resnet_18() -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True)]
    layers.append(nn.MaxPool2d(3, 2, 1))
    for channels, width, stride in ((64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)):
        layers += [Block(channels, width, stride), Block(width, width, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000))


def main() -> None:
    defaults = ("resnet-50", "16", "0.9", "inf", "eval")
    name, batch, sparsity, limit, mode = [*sys.argv[1:], *defaults[len(sys.argv) - 1 :]]
    torch.manual_seed(0)
    if name == "resnet-18":
        model, images = resnet_18(), torch.randn(int(batch), 3, 224, 224)
    else:
        model, images = MODELS[name].make(), MODELS[name].images(int(batch))
    model.train(mode == "train")
    prune_(model, "random", float(sparsity))
    with torch.set_grad_enabled(model.training):
        result = model(images)  # what torch does at its first call is no part of it
    if model.training:
        result.sum().backward()
        model.zero_grad()
    start = time.perf_counter()
    report = sk.convert(model, images, max_seconds=float(limit))
    seconds = time.perf_counter() - start
    converted = sum(row.decision != "dense" for row in report.layers)
    print(f"{name}, batch {batch}: {seconds:.1f} s, {converted} of {len(report.layers)} layers converted")
    print(report.summary())


if __name__ == "__main__":
    main()
