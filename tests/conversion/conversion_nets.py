# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Small models for the tests of convert, each with a trait that conversion has to respect."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsekernels.bench.models import calibrate_
from sparsekernels.pruning import prune_


class Residual(nn.Module):
    """Two convolutions around a shortcut; one nn.ReLU is called twice, the sum is in place."""

    def __init__(self, channels: int, outputs: int, shortcut_first: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, outputs, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential(nn.Conv2d(channels, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.relu = nn.ReLU(inplace=True)
        self.shortcut_first = shortcut_first

    def forward(self, x: Tensor) -> Tensor:
        if self.shortcut_first:
            other = self.shortcut(x)
            return self.relu(other + self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += self.shortcut(x)
        return self.relu(out)


class PreActivation(nn.Module):
    """BatchNorm and ReLU before the convolutions, functional; the sum has no ReLU behind it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(F.relu(self.bn1(x), inplace=True))
        out = F.dropout(F.relu(self.bn2(out)), p=0.3, training=self.training)
        return torch.add(x, self.conv2(out))


class Forked(nn.Module):
    """A convolution whose result is used before and after its BatchNorm, and one that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.again = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        raw = self.conv(x)
        return self.again(self.again(raw).relu() + self.bn(raw)).relu_()


class Writes(nn.Module):
    """Changes a convolution's input in place before the convolution's result is added to something."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.other = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.other(x)
        out = self.conv(x)
        x.mul_(2)
        return F.relu6(out + x)


class SharedSum(nn.Module):
    """In place, adds to a tensor that is used again."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        total = self.first(x)
        kept = total.view(total.shape)
        total += self.second(x)
        return torch.cat([total, kept, total.clamp(min=0)], 1)


class Limits(nn.Module):
    """ReLU6, Hardtanh, and other activations than those that are fused."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(8, 12, 3, padding=1, padding_mode="circular"),
            nn.ReLU6(),
            nn.Conv2d(12, 12, 3, groups=2),
            nn.Hardtanh(-0.2, 0.3),
            nn.MaxPool2d(3, 2, 1),
            nn.Conv2d(12, 8, 3, padding="same"),
            nn.GELU(),
            nn.Identity(),
            nn.Dropout2d(0.5),
            nn.Conv2d(8, 8, 2, stride=2, dilation=2, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(self.layers(x), 2, stride=1)


class Head(nn.Module):
    """Linear layers with BatchNorm1d, on matrices and on sequences; results in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(32, 24), nn.BatchNorm1d(24)
        self.second, self.third = nn.Linear(24, 24, bias=False), nn.Linear(24, 8)

    def forward(self, x: Tensor) -> dict[str, Any]:
        hidden = torch.relu(self.norm(self.first(x)))
        hidden = hidden + self.second(hidden)
        return {"hidden": hidden, "both": (self.third(hidden), [self.third(hidden.unsqueeze(1))])}


class Choosing(nn.Module):
    """Its code looks at the data: torch.fx cannot trace it, but its parts."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.tail = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        if x.sum() > 1e9:
            return x.mean((2, 3))
        return self.tail(x.mean((2, 3)))


def images(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(shape, generator=torch.Generator().manual_seed(3))


NETS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "sequential": (
        lambda: nn.Sequential(
            nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4, 24), nn.ReLU(True), nn.Linear(24, 10),
        ),
        images(3, 8, 8, 8),
    ),
    "residual": (lambda: nn.Sequential(Residual(8, 12), Residual(12, 12)), images(3, 8, 9, 7)),
    "residual, shortcut first": (lambda: Residual(8, 12, True), images(17, 8, 6, 6)),
    "pre-activation": (lambda: nn.Sequential(PreActivation(8), PreActivation(8)), images(4, 8, 8, 8)),
    "forked": (Forked, images(2, 8, 5, 5)),
    "writes": (Writes, images(2, 8, 5, 5)),
    "shared sum": (SharedSum, images(2, 8, 5, 5)),
    "limits": (Limits, images(2, 8, 12, 12)),
    "head": (Head, images(5, 32)),
    "choosing": (Choosing, images(3, 8, 6, 6)),
}  # fmt: skip


def make(name: str, sparsity: float = 0.7, kind: str = "random") -> tuple[nn.Module, Tensor]:
    """A pruned net in evaluation mode with lively BatchNorms, and what it is called with."""
    torch.manual_seed(1)
    build, input = NETS[name]
    model, x = build().eval(), input()
    calibrate_(model, x)
    prune_(model, kind, sparsity)
    return model, x


def drop_channels_(model: nn.Module) -> None:
    """Makes every third filter and every fourth input channel zero."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.weight[::3] = 0
                module.weight[:, ::4] = 0


class Doubled(nn.Module):
    """A parametrization with a factor of its own."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.factor
