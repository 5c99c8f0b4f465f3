# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What a layer may become: one row for each kind of replacement, which whatever decides or fuses reads."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..nn import ChannelDroppedConv2d, ChannelDroppedLinear, SparseConv2d, SparseLinear
from ..nn.channel_dropped import used_pairs
from ..nn.replacement import Replacement
from .graph.fused import Fused, FusedDense, FusedSparse
from .report import CHANNEL_DROPPED, DENSE, FINE_GRAINED
from .survey import LEAST_SPARSITY, Layer


@dataclass(frozen=True)
class Candidate:
    """One kind of replacement.

    Attributes:
        name: Of the decision, as reports have it.
        applies: Takes a layer that may be exchanged; whether it can become this.
        build: Takes the module of such a layer; the replacement, which shares its parameters.
        fused: Serves a replacement in a graph for inference, together with what stands behind it.
        serves: Whether a module is such a replacement.
    """

    name: str
    applies: Callable[[Layer], bool]
    build: Callable[[Any], Replacement]
    fused: type[Fused]
    serves: Callable[[nn.Module], bool]


def has_empty_channels(layer: Layer) -> bool:
    """Whether there are filters or input channels that are all zero, and can be told apart."""
    module: Any = layer.module
    used = used_pairs(module.weight)
    return getattr(module, "groups", 1) == 1 and not bool(used.any(0).all() and used.any(1).all())


def _channel_dropped(module: Any) -> Replacement:
    kind = ChannelDroppedLinear if isinstance(module, nn.Linear) else ChannelDroppedConv2d
    result: Replacement = kind.sharing(module)
    return result


def fine_grained_applies(layer: Layer) -> bool:
    """Whether the layer has enough zeros, and not only zeros."""
    module: Any = layer.module
    return layer.sparsity is not None and layer.sparsity >= LEAST_SPARSITY and bool(used_pairs(module.weight).any())


def sparse_layer(module: Any, format: str = "unstructured") -> Replacement:
    """The sparse layer that takes the place of `module`, its weight in a format."""
    kind = SparseLinear if isinstance(module, nn.Linear) else SparseConv2d
    result: Replacement = kind.sharing(module, format)
    return result


def is_sparse(module: nn.Module, format: str = "unstructured") -> bool:
    """Whether `module` is one of `sparse_layer`."""
    return type(module) in (SparseLinear, SparseConv2d) and getattr(module, "format", None) == format


CANDIDATES: list[Candidate] = [
    Candidate(FINE_GRAINED, applies=fine_grained_applies, build=sparse_layer, fused=FusedSparse, serves=is_sparse),
    Candidate(
        CHANNEL_DROPPED,
        applies=has_empty_channels,
        build=_channel_dropped,
        fused=FusedDense,
        serves=lambda module: type(module) in (ChannelDroppedLinear, ChannelDroppedConv2d),
    ),
]
"""All of them, beside staying dense."""


def decisions() -> tuple[str, ...]:
    """The names of what a layer may become; the first is what it was."""
    return (DENSE, *(row.name for row in CANDIDATES))


def candidates_of(layer: Layer, names: Collection[str]) -> Mapping[str, Replacement]:
    """What the layer may become, of the decisions `names`. All share its parameters."""
    return {row.name: row.build(layer.module) for row in CANDIDATES if row.name in names and row.applies(layer)}


def has_candidates(layer: Layer) -> bool:
    """Whether there is anything that a layer that may be exchanged can become."""
    return any(row.applies(layer) for row in CANDIDATES)


def may_chain(name: str, module: nn.Module) -> bool:
    """Whether a chain can call what `module` becomes by the decision `name`."""
    return any(row.name == name and row.fused.may_chain(module) for row in CANDIDATES)


def candidate_of(module: nn.Module) -> Candidate | None:
    """The row that a replacement was made by; None for other modules."""
    return next((row for row in CANDIDATES if row.serves(module)), None)


def fused_of(module: nn.Module) -> type[Fused] | None:
    """What serves a layer in a graph for inference; None for what no graph fuses."""
    if type(module) in (torch.nn.Conv2d, torch.nn.Linear):
        return FusedDense
    row = candidate_of(module)
    return None if row is None else row.fused
