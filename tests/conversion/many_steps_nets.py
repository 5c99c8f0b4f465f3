# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Small random networks for the test of many steps: the same number gives the same network in every process."""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsekernels.pruning import prune_

CHANNELS = (4, 6, 8)
INPUTS = 4


class Around(nn.Module):
    """A shortcut around a body; where the sizes differ, with a convolution of its own."""

    def __init__(self, body: nn.Module, shortcut: nn.Module | None, activation: bool) -> None:
        super().__init__()
        self.body, self.shortcut, self.activation = body, shortcut, activation

    def forward(self, x: Tensor) -> Tensor:
        total = self.body(x) + (x if self.shortcut is None else self.shortcut(x))
        return F.relu(total) if self.activation else total


class Branches(nn.Module):
    """Two bodies side by side."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.first(x), self.second(x)], 1)


class Pooled(nn.Module):
    """Images to vectors, of any size, and by a method of its own."""

    def __init__(self, flat: bool) -> None:
        super().__init__()
        self.flat = flat

    def forward(self, x: Tensor) -> Tensor:
        return self.vectors(F.adaptive_avg_pool2d(x, 2 if self.flat else 1))

    def vectors(self, x: Tensor) -> Tensor:
        return x.flatten(1)


class Net(nn.Module):
    """Layers of images, if it has any, then layers of vectors."""

    def __init__(self, features: nn.Module | None, head: nn.Module) -> None:
        super().__init__()
        self.features, self.head = features, head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x if self.features is None else self.features(x))


def network(number: int) -> Net:
    """A pruned network in training mode, of float32, whose BatchNorms are no identities."""
    draw = random.Random(number)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(number)
        channels = INPUTS
        features = None
        if draw.random() < 0.75:
            blocks: list[nn.Module] = []
            halved = 0
            for _ in range(draw.randint(1, 3)):
                pooling = draw.choice([nn.MaxPool2d(2), nn.AvgPool2d(2)] if halved < 2 else [nn.MaxPool2d(3, 1, 1)])
                block, channels = _block(draw, channels, pooling)
                halved += any(part is pooling and part.stride == 2 for part in block.modules())
                blocks.append(block)
            pooled = Pooled(draw.random() < 0.5)
            channels *= 4 if pooled.flat else 1
            features = nn.Sequential(*blocks, pooled)
        result = Net(features, _head(draw, channels))
        for module in result.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.2)
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 2)
        prune_(result, draw.choice(["random", "clustered"]), draw.choice([0.5, 0.7, 0.9]))
        with torch.no_grad():
            for module in result.modules():
                if isinstance(module, nn.Conv2d | nn.Linear) and draw.random() < 0.3:
                    module.weight[: len(module.weight) // 2] = 0
    return result


def inputs(net: Net, draw: random.Random, dtype: torch.dtype) -> Tensor:
    """What it can be called with: of several sizes and layouts."""
    generator = torch.Generator().manual_seed(draw.randint(0, 1 << 30))
    if net.features is None:
        return torch.randn(draw.choice([3, 4, 17]), INPUTS, generator=generator).to(dtype)
    height, width = draw.choice([(8, 8), (9, 6)])
    # two rows give a BatchNorm of vectors 1 and -1, whatever they are: its gradients are what rounding leaves
    vectors = any(isinstance(part, nn.BatchNorm1d) for part in net.modules())
    x = torch.randn(draw.choice([4 if vectors else 2, 3, 5]), INPUTS, height, width, generator=generator).to(dtype)
    layout = draw.random()
    if layout < 0.2:
        return x.contiguous(memory_format=torch.channels_last)
    return x.transpose(2, 3).contiguous().transpose(2, 3) if layout < 0.3 else x


def _activation(draw: random.Random) -> list[nn.Module]:
    return draw.choice(
        [[nn.ReLU()], [nn.ReLU(inplace=True)], [nn.ReLU6()], [nn.Hardtanh(-0.5, 0.5)], [nn.GELU()], [nn.SiLU()], []]
    )


def _convolution(draw: random.Random, inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    kernel = draw.choice([1, 3])
    groups = draw.choice([1, 1, 1, 2]) if inputs % 2 == outputs % 2 == 0 else 1
    layer = nn.Conv2d(
        inputs,
        outputs,
        kernel,
        stride,
        kernel // 2,
        groups=groups,
        bias=draw.random() < 0.5,
        padding_mode=draw.choice(["zeros", "zeros", "zeros", "replicate"]),
    )
    # no GroupNorm: its own backward pass crashed in channels_last (torch 2.13)
    norm = draw.choice(
        [[nn.BatchNorm2d(outputs)], [nn.BatchNorm2d(outputs)], [nn.InstanceNorm2d(outputs, affine=True)], []]
    )
    return [layer, *norm]


def _block(draw: random.Random, inputs: int, pooling: nn.Module) -> tuple[nn.Module, int]:
    """A block, and how many channels it gives."""
    outputs = draw.choice(CHANNELS)
    kind = draw.choice(["plain", "plain", "residual", "pooled", "depthwise", "branches"])
    plain = nn.Sequential(*_convolution(draw, inputs, outputs), *_activation(draw))
    if kind == "residual":
        body = nn.Sequential(*plain, *_convolution(draw, outputs, inputs))
        return Around(body, None, draw.random() < 0.7), inputs
    if kind == "pooled":
        return nn.Sequential(plain, pooling), outputs
    if kind == "depthwise":
        middle = nn.Conv2d(outputs, outputs, 3, padding=1, groups=outputs, bias=False)
        return nn.Sequential(plain, middle, nn.BatchNorm2d(outputs), nn.Dropout(0.0), *_activation(draw)), outputs
    if kind == "branches":
        other = draw.choice(CHANNELS)
        return Branches(plain, nn.Sequential(*_convolution(draw, inputs, other))), outputs + other
    if draw.random() < 0.3:
        return Around(plain, nn.Sequential(*_convolution(draw, inputs, outputs)), draw.random() < 0.7), outputs
    return plain, outputs


def _head(draw: random.Random, inputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(draw.randint(0, 2)):
        outputs = draw.choice([8, 12])
        layers.append(nn.Linear(inputs, outputs, draw.random() < 0.7))
        layers += draw.choice([[nn.BatchNorm1d(outputs)], [nn.LayerNorm(outputs)], [], []])
        layers += [*_activation(draw), *draw.choice([[nn.Dropout(0.0)], []])]
        inputs = outputs
    return nn.Sequential(*layers, nn.Linear(inputs, 5))
