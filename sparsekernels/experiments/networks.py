# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The networks of the experiments, as they are published, and how images of 28x28 pixels are given to them.

Networks for 32x32 images in color get the image with a black margin of 2 pixels, three times: their first layer stays
the published one, with its 3 input channels, and the layers are those that the benchmark measures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..bench.models import LeNet5Caffe, LeNet300100, WideResNet, vgg16_d
from .datasets import seed_of

MARGIN = 2
"""Pixels on each side that make 32 of 28."""


@dataclass(frozen=True)
class Network:
    """A network.

    build     the module, its parameters as torch initializes them
    in_color  whether its images are [batch, 3, 32, 32], else [batch, 1, 28, 28]
    about     what it is
    """

    build: Callable[[], nn.Module]
    in_color: bool
    about: str

    def make(self, seed: int) -> nn.Module:
        """The network in training mode, initialized by the seed; torch's own generator is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(seed, "weights"))
            return self.build().train()

    def prepare(self, images: Tensor, black: float) -> Tensor:
        """Images [batch, 1, 28, 28] as this network takes them; `black` is the value of a black pixel."""
        if not self.in_color:
            return images
        return F.pad(images, (MARGIN,) * 4, value=black).expand(-1, 3, -1, -1).contiguous()


NETWORKS: Mapping[str, Network] = {
    "lenet-300-100": Network(LeNet300100, False, "LeNet-300-100"),
    "lenet-5-caffe": Network(LeNet5Caffe, False, "LeNet-5-Caffe"),
    "vgg16-d": Network(vgg16_d, True, "VGG16-D"),
    "wrn-16-8": Network(lambda: WideResNet(16, 8), True, "WRN-16-8"),
}
"""The networks by name; `sparsekernels/bench/models.py` has them."""
