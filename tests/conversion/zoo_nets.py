# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Small networks in the style of architectures that others wrote, for what their code does beside convolving."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SqueezeExcite(nn.Module):
    """As EfficientNet's and MobileNetV3's."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, 8, 1), nn.Conv2d(8, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.expand(F.silu(self.reduce(x.mean((2, 3), keepdim=True))))
        return x * torch.sigmoid(scale)


class InvertedResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        middle = 3 * inputs
        self.expand = nn.Sequential(nn.Conv2d(inputs, middle, 1, bias=False), nn.BatchNorm2d(middle), nn.Hardswish())
        self.depthwise = nn.Conv2d(middle, middle, 3, stride, 1, groups=middle, bias=False)
        self.norm, self.squeeze = nn.BatchNorm2d(middle), SqueezeExcite(middle)
        self.project = nn.Sequential(nn.Conv2d(middle, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.has_skip = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        x = self.project(self.squeeze(F.hardswish(self.norm(self.depthwise(self.expand(x))))))
        return x + shortcut if self.has_skip else x


class Backbone(nn.Module):
    """Stages, then a pooled head; `features` are used by others as well."""

    def __init__(self, *stages: nn.Module, channels: int, classes: int = 10) -> None:
        super().__init__()
        self.stages, self.head = nn.Sequential(*stages), nn.Linear(channels, classes)

    def features(self, x: Tensor) -> Tensor:
        return self.stages(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))


class DenseLayer(nn.Module):
    """Of DenseNet: a list of all that was computed before."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, 16, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(16), nn.Conv2d(16, growth, 3, padding=1, bias=False)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = self.conv1(F.relu(self.norm1(torch.cat(features, 1))))
        return self.conv2(F.relu(self.norm2(x)))


class DenseBlock(nn.ModuleList):
    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self:
            features.append(layer(features))
        return torch.cat(features, 1)


class Res2Net(nn.Module):
    """Splits the channels, and hands each part's result to the next."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        width = channels // 4
        self.conv1, self.bn1 = nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels)
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(3))
        self.conv3, self.bn3 = nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.chunk(F.relu(self.bn1(self.conv1(x))), 4, 1)
        results = [parts[0]]
        part = parts[1]
        for index, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True), 1):
            part = F.relu(norm(conv(part if index == 1 else part + parts[index])))
            results.append(part)
        return F.relu(self.bn3(self.conv3(torch.cat(results, 1))) + x)


class Shuffle(nn.Module):
    """ShuffleNet's unit: grouped convolutions, and channels that change places."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(
            nn.Conv2d(half, half, 1, groups=2, bias=False), nn.BatchNorm2d(half), nn.ReLU(inplace=True),
            nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False), nn.BatchNorm2d(half),
            nn.Conv2d(half, half, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU(inplace=True),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        kept, changed = x.chunk(2, 1)
        x = torch.cat([kept, self.branch(changed)], 1)
        batch, channels, height, width = x.shape
        return x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, channels, height, width)


class ConvNeXt(nn.Module):
    """Depthwise, LayerNorm over channels by a permutation, Linear layers as 1x1 convolutions, a learned scale."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(channels, channels, 7, padding=3, groups=channels), nn.LayerNorm(channels)
        self.fc1, self.fc2 = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)
        self.gamma = nn.Parameter(0.5 * torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + (self.gamma * self.fc2(F.gelu(self.fc1(y)))).permute(0, 3, 1, 2)


class UNet(nn.Module):
    """An encoder whose features the decoder takes again, of images of any even size."""

    def __init__(self) -> None:
        super().__init__()

        def stage(inputs: int, outputs: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())

        self.down = nn.ModuleList([stage(3, 8), stage(8, 16), stage(16, 24)])
        self.up = nn.ModuleList([stage(24 + 16, 16), stage(16 + 8, 8)])
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        kept = []
        for stage in self.down:
            x = stage(x if not kept else F.max_pool2d(x, 2))
            kept.append(x)
        x = kept.pop()
        for stage in self.up:
            skip = kept.pop()
            x = stage(torch.cat([F.interpolate(x, size=skip.shape[2:], mode="nearest"), skip], 1))
        return {"masks": self.head(x)}


class Attention(nn.Module):
    def __init__(self, width: int, causal: bool) -> None:
        super().__init__()
        self.qkv, self.proj, self.causal = nn.Linear(width, 3 * width), nn.Linear(width, width), causal

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, 2, width // 2).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.proj(y.transpose(1, 2).reshape(batch, length, width))


class Block(nn.Module):
    def __init__(self, width: int, causal: bool = False) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, causal)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(0.0), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """Patches, a token of the class, positions that are interpolated to the size of the image."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, stride=4)
        self.token = nn.Parameter(0.5 * torch.randn(1, 1, width))
        self.positions = nn.Parameter(0.5 * torch.randn(1, width, 4, 4))
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x)
        x = x + F.interpolate(self.positions, size=x.shape[2:], mode="bilinear")
        x = torch.cat([self.token.expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], 1)
        return self.head(self.norm(self.blocks(x))[:, 0])


@dataclass
class Prediction:
    logits: Tensor
    hidden: tuple[Tensor, ...]


class RotaryBlock(nn.Module):
    """Of a Llama: positions turn queries and keys, a gate multiplies; called by keyword, returns a tuple."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate, self.up = nn.Linear(width, 2 * width, bias=False), nn.Linear(width, 2 * width, bias=False)
        self.down = nn.Linear(2 * width, width, bias=False)

    def forward(self, hidden: Tensor, *, positions: tuple[Tensor, Tensor], mask: Tensor) -> tuple[Any, ...]:
        cos, sin = positions

        def turned(x: Tensor) -> Tensor:
            first, second = x.chunk(2, -1)
            return x * cos + torch.cat([-second, first], -1) * sin

        x = self.norm(hidden)
        scores = turned(self.q(x)) @ turned(self.k(x)).transpose(1, 2) / x.shape[-1] ** 0.5
        scores = scores.masked_fill(mask, float("-inf"))
        hidden = hidden + self.o(torch.softmax(scores, -1) @ self.v(x))
        return (hidden + self.down(F.silu(self.gate(hidden)) * self.up(hidden)),)


class Llama(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, width)
        self.layers = nn.ModuleList(RotaryBlock(width) for _ in range(2))
        self.head = nn.Linear(width, 40, bias=False)
        self.register_buffer("frequencies", 1.0 / 100 ** (torch.arange(0, width, 2) / width), persistent=False)

    def forward(self, ids: Tensor) -> Prediction:
        hidden = self.embed(ids)
        angles = (torch.arange(ids.shape[1])[:, None] * self.frequencies).repeat(1, 2)
        positions = angles.cos().to(hidden.dtype), angles.sin().to(hidden.dtype)
        mask = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).triu(1)
        states = [hidden]
        for layer in self.layers:
            hidden = layer(hidden, positions=positions, mask=mask)[0]
            states.append(hidden)
        return Prediction(self.head(hidden), tuple(states))


class Mixer(nn.Module):
    """Layers over patches and over channels, by transpositions."""

    def __init__(self, patches: int = 16, width: int = 24) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, stride=4)
        self.over_patches = nn.Sequential(nn.Linear(patches, 32), nn.GELU(), nn.Linear(32, patches))
        self.over_channels = nn.Sequential(nn.Linear(width, 48), nn.GELU(), nn.Linear(48, width))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.patches(x), 4).flatten(2).transpose(1, 2)
        x = x + self.over_patches(self.norm(x).transpose(1, 2)).transpose(1, 2)
        return self.head((x + self.over_channels(self.norm(x))).mean(1))


def stem(outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


ZOO: dict[str, Callable[[], nn.Module]] = {
    "MobileNet": lambda: Backbone(stem(8), InvertedResidual(8, 8, 1), InvertedResidual(8, 12, 2), channels=12),
    "DenseNet": lambda: Backbone(stem(8), DenseBlock([DenseLayer(8 + 4 * i, 4) for i in range(3)]), channels=20),
    "Res2Net": lambda: Backbone(stem(16), Res2Net(16), Res2Net(16), channels=16),
    "ShuffleNet": lambda: Backbone(stem(16), Shuffle(16), Shuffle(16), channels=16),
    "ConvNeXt": lambda: Backbone(nn.Conv2d(3, 12, 4, stride=4), ConvNeXt(12), ConvNeXt(12), channels=12),
    "UNet": UNet,
    "ViT": VisionTransformer,
    "GPT": lambda: nn.Sequential(nn.Embedding(40, 16), Block(16, True), Block(16, True), nn.Linear(16, 40)),
    "Llama": Llama,
    "Mixer": Mixer,
}


def input_of(name: str, batch: int, size: int) -> Tensor:
    """Images of 16 x 16 or 24 x 24, or a sequence of 8 or 12 tokens."""
    generator = torch.Generator().manual_seed(batch + size)
    if name in ("GPT", "Llama"):
        return torch.randint(40, (batch, 8 + 4 * size), generator=generator)
    return torch.randn(batch, 3, 16 + 8 * size, 16 + 8 * size, generator=generator)
