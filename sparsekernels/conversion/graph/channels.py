# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Channels that need not be computed, along the chains of a graph.

A fused layer's output channel need not be computed where nothing reads it: every layer that it goes to multiplies it by
zeros only. Nor where it is the same number k everywhere, because its filter is all zero and BatchNorm and ReLU make a
constant of its bias, if every layer that it goes to can do without: where k is zero, or where nothing is padded with
zeros, and then k times the weights goes into that layer's bias. Between layers there may be pooling and flattening,
which leave channels apart and constants what they are. Where anything else uses the channels (a residual sum, a result
of the model), all of them stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from ...ops.max_pool2d.op import max_pool2d
from .fused import Fused

_POOLING = (nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
POOLING_FUNCTIONS = (max_pool2d, F.max_pool2d, torch.max_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d)
_FLATTENING = (torch.flatten, "flatten")
_MEAN = (torch.mean, "mean")


@dataclass
class Link:
    """A fused layer, and all that read its channels: fused layers too, each with its number of inputs for a channel."""

    producer: Fused
    consumers: list[tuple[Fused, int]]


def links_of(graph: torch.fx.Graph, fused: Mapping[str, Fused], modules: Mapping[str, nn.Module]) -> list[Link]:
    """The links between the fused layers of `graph`, which it calls by their names, in its order.

    A layer that is called at several places takes no part: what it leaves out would be left out everywhere.
    """
    calls: list[Any] = [node for node in graph.nodes if node.op == "call_module" and node.target in fused]
    parts = [id(fused[node.target].parts[0]) for node in calls]
    links = []
    for node in calls:
        producer = fused[node.target]
        if len(node.args) > 1 or not _may_lose_channels(producer) or parts.count(id(producer.parts[0])) > 1:
            continue
        readers = _readers(node, fused, modules, False)
        if not readers:
            continue
        size = producer.weight.size(0)
        consumers = []
        for reader, is_flat in readers:
            consumer = fused[reader.target]
            pixels = consumer.weight.size(1) // size
            once = _may_lose_channels(consumer) and parts.count(id(consumer.parts[0])) == 1
            if not once or consumer.weight.size(1) != pixels * size or not _match(producer, consumer, pixels, is_flat):
                break
            consumers.append((consumer, pixels))
        else:
            links.append(Link(producer, consumers))
    return links


def _match(producer: Fused, consumer: Fused, pixels: int, is_flat: bool) -> bool:
    """Whether the inputs of one are the channels of the other, `pixels` neighbors each where images were flattened."""
    from_linear, to_linear = (isinstance(fused.parts[0], nn.Linear) for fused in (producer, consumer))
    if from_linear:
        return to_linear and not is_flat and pixels == 1
    return is_flat if to_linear else not is_flat and pixels == 1


def _may_lose_channels(fused: Fused) -> bool:
    layer, norm = fused.parts
    if fused.keeps_channels:
        return False
    if isinstance(layer, nn.Linear):
        return norm is None  # a BatchNorm1d behind it may stand for a sequence's positions
    return isinstance(layer, nn.Conv2d) and layer.groups == 1  # poolings of images take sequences for one image


Reader = tuple[Any, bool]


def _readers(
    node: Any, fused: Mapping[str, Fused], modules: Mapping[str, nn.Module], is_flat: bool
) -> list[Reader] | None:
    """The fused layers that read what `node` gives, perhaps pooled, and whether as matrices; None where others do."""
    readers: list[Reader] = []
    for user in node.users:
        if user.op == "call_module" and user.target in fused:
            if user.args[0] is not node or node in user.args[1:]:
                return None  # a residual
            readers.append((user, is_flat))
        elif user.args and user.args[0] is node and keeps_channels(user, modules):
            further = _readers(user, fused, modules, is_flat or _flattens(user, modules))
            if further is None:
                return None
            readers += further
        else:
            return None
    return readers


def _flattens(node: Any, modules: Mapping[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return type(modules[node.target]) is nn.Flatten
    return node.target in _FLATTENING or node.target in _MEAN


def keeps_channels(node: Any, modules: Mapping[str, nn.Module]) -> bool:
    """Whether each channel of the result is made of that channel alone, and a constant stays what it is."""
    if node.op == "call_module":
        module: Any = modules[node.target]
        if type(module) in _POOLING:
            return not getattr(module, "return_indices", False)
        return type(module) is nn.Flatten and module.start_dim == 1 and module.end_dim == -1
    if node.target in POOLING_FUNCTIONS:
        return not node.kwargs.get("return_indices", False) and len(node.args) < 7
    if node.target in _FLATTENING:
        start = node.args[1] if len(node.args) > 1 else node.kwargs.get("start_dim")
        return start == 1 and len(node.args) < 3 and "end_dim" not in node.kwargs
    if node.target in _MEAN and not node.kwargs.get("keepdim", False) and len(node.args) < 3:
        dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        return isinstance(dims, Sequence) and sorted(dims) in ([2, 3], [-2, -1])
    return False


def choose_channels(links: Iterable[Link]) -> None:
    """Choose the channels of every link for its layers, which have been folded and are packed afterwards."""
    for link in reversed(list(links)):
        producer, weight = link.producer, link.producer.weight
        size = weight.size(0)
        is_read = torch.zeros(size, dtype=torch.bool, device=producer.weight.device)
        for consumer, pixels in link.consumers:
            used = consumer.weight if consumer.outputs is None else consumer.weight[consumer.outputs]
            is_read |= (used != 0).transpose(0, 1).reshape(size, pixels, -1).flatten(1).any(1)
        constants = producer.constants()
        removable = ~(weight != 0).flatten(1).any(1)
        if any(consumer.pads_with_zeros for consumer, _ in link.consumers):
            removable &= constants == 0
        removable &= constants.isfinite()
        kept = is_read & ~removable
        if not kept.any():
            kept[0] = True  # there is no tensor without channels
        if kept.all():
            continue
        producer.outputs = kept.nonzero()[:, 0]
        for consumer, pixels in link.consumers:
            lost = removable & ~kept & (constants != 0)
            if lost.any():
                values = torch.where(lost, constants, 0).repeat_interleave(pixels)
                taps = consumer.weight.double().reshape(*consumer.weight.shape[:2], -1)
                added = taps.sum(2) @ values
                consumer.bias = added if consumer.bias is None else consumer.bias + added
            consumer.inputs = kept.repeat_interleave(pixels).nonzero()[:, 0]


def dropped(links: Iterable[Link]) -> dict[int, tuple[int, int]]:
    """By the id of each layer that leaves any out: how many outputs are not computed, and how many inputs not read."""
    result: dict[int, tuple[int, int]] = {}
    for link in links:
        for fused in (link.producer, *(consumer for consumer, _ in link.consumers)):
            kept: tuple[Tensor | None, ...] = (fused.outputs, fused.inputs)
            sizes = fused.weight.shape[:2]
            counts = [0 if places is None else size - places.numel() for size, places in zip(sizes, kept, strict=True)]
            if any(counts):
                result[id(fused.parts[0])] = (counts[0], counts[1])
    return result
