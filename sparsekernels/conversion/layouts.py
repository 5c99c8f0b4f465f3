# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Whether a model's convolutions would be faster in channels_last as they are: in short dtypes torch's often are."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Mapping, Sequence

import torch

from .facts import Fact, Note
from .measure import LAYER, prefers, times_of
from .modes import Mode
from .modules import is_plain
from .survey import Given, Layer

_SHORT = (torch.bfloat16, torch.float16)
_LEAST_GAIN = 1.2
"""Below it nothing is said: images that come in another layout have to be copied."""


def channels_last_gain(layers: Sequence[Layer], given: Mapping[str, Sequence[Given]], mode: Mode) -> Fact | None:
    """What channels_last is worth to the largest convolution of a short dtype that has another layout, measured."""
    sizes = {layer.name: _multiplications(layer, given[layer.name]) for layer in layers}
    layer = max(layers, key=lambda layer: sizes[layer.name], default=None)
    if layer is None or not sizes[layer.name] or prefers():
        return None
    there = copy.deepcopy(layer.module).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    now, then = "as it is", "channels_last"
    with mode.gradients():
        inputs = [one.make() for one in given[layer.name]]
        last = [one.detach().contiguous(memory_format=torch.channels_last) for one in inputs]
        last = [one.requires_grad_(other.requires_grad) for one, other in zip(last, inputs, strict=True)]
        calls = {
            now: functools.partial(mode.run_layer, layer.module, inputs),
            then: functools.partial(mode.run_layer, there, last),
        }
        times = times_of(calls, LAYER)
    is_faster = bool(times.faster([then], now, _LEAST_GAIN))
    return Note.CHANNELS_LAST.of(layer=layer.name, gain=times.speedup(then, now)) if is_faster else None


def _multiplications(layer: Layer, given: Sequence[Given]) -> int:
    """Of a convolution in a short dtype whose images are in another layout; 0 of anything else."""
    module, weight = layer.module, layer.weight
    if type(module) is not torch.nn.Conv2d or weight is None or not is_plain(module):
        return 0
    if weight.device.type not in ("cpu", "cuda") or not all(
        one.dtype in _SHORT and len(one.shape) == 4 for one in given
    ):
        return 0
    if any(one.channels_last or math.prod(one.shape[2:]) == 1 or one.shape[1] == 1 for one in given):
        return 0
    pixels = sum(one.shape[0] * math.prod(one.shape[2:]) for one in given)
    return pixels * weight.numel() // math.prod(module.stride)
