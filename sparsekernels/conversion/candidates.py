# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What a layer may become: one row for each kind of replacement, which whatever decides or fuses reads."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .._transformers import Conv1D
from ..formats import BlockSparse
from ..nn import (
    ChannelDroppedConv2d,
    ChannelDroppedLinear,
    PackedLinear,
    SparseConv1d,
    SparseConv2d,
    SparseLinear,
    SparseTransposedLinear,
)
from ..nn.channel_dropped import used_pairs
from ..nn.replacement import LINEAR_KINDS, Replacement
from .blocks import block_obstacle, block_of, runs_in_blocks
from .facts import CandidateObstacle, Fact
from .graph.fused import Fused, FusedDense, FusedSparse
from .graph.fused_by_format import FusedBlocks, FusedByFormat
from .graph.fused_subclass import FusedBlocksOfSubclass, FusedDenseOfSubclass, FusedSparseOfSubclass
from .graph.fused_transposed import (
    FusedDenseTransposed,
    FusedTransposed,
    FusedTransposedBlocks,
    FusedTransposedByFormat,
)
from .report import BLOCK, DENSE, PACKED
from .subclasses import (
    OfSubclass,
    SubclassChannelDroppedConv2d,
    SubclassChannelDroppedLinear,
    SubclassSparseConv1d,
    SubclassSparseConv2d,
    SubclassSparseLinear,
)
from .survey import LEAST_SPARSITY, Layer, is_kind


@dataclass(frozen=True)
class Candidate:
    """One kind of replacement.

    Attributes:
        name: Of the decision, as reports have it.
        obstacle: Takes a layer that may be exchanged; why it cannot become this, or None where it can.
        build: Takes the module of such a layer; the replacement, which shares its parameters.
        fused: Serves a replacement in a graph for inference, together with what stands behind it; None where graphs
            call it as it is.
        serves: Whether a module is such a replacement.
        drops: Whether it leaves out channels. Where a layer may become this, a graph leaves them out between layers.
        frozen: Whether a layer may become this in a model alone whose parameters stay what they are.
    """

    name: str
    obstacle: Callable[[Layer], Fact | None]
    build: Callable[[Any], Replacement]
    fused: type[Fused] | None
    serves: Callable[[nn.Module], bool]
    drops: bool = False
    frozen: bool = False


def channel_dropped_obstacle(layer: Layer) -> Fact | None:
    """Why there are no filters or input channels to leave out."""
    module: Any = layer.module
    if not isinstance(module, nn.Conv2d | nn.Linear):
        return CandidateObstacle.CHANNELS_OF_KIND.of(kind=type(module).__name__)
    groups = getattr(module, "groups", 1)
    if groups != 1:
        return CandidateObstacle.GROUPS.of(groups=groups)
    used = used_pairs(module.weight)
    return CandidateObstacle.NO_EMPTY_CHANNELS.of() if used.any(0).all() and used.any(1).all() else None


def _channel_dropped(module: Any) -> Replacement:
    kinds = (ChannelDroppedLinear, ChannelDroppedConv2d)
    if not is_kind(type(module)):
        kinds = (SubclassChannelDroppedLinear, SubclassChannelDroppedConv2d)
    kind = kinds[0] if isinstance(module, nn.Linear) else kinds[1]
    result: Replacement = kind.sharing(module)
    return result


def fine_grained_obstacle(layer: Layer) -> Fact | None:
    """Why its nonzeros alone are nothing to compute with."""
    module: Any = layer.module
    if not layer.is_pruned:
        return CandidateObstacle.FEW_ZEROS.of(least=LEAST_SPARSITY)
    return None if used_pairs(module.weight).any() else CandidateObstacle.ALL_ZERO.of()


_SPARSE: list[tuple[type, tuple[type[Replacement], ...]]] = [
    (nn.Linear, (SparseLinear, SubclassSparseLinear)),
    (nn.Conv2d, (SparseConv2d, SubclassSparseConv2d)),
    (nn.Conv1d, (SparseConv1d, SubclassSparseConv1d)),
    (Conv1D, (SparseTransposedLinear,)),
]
"""What a layer of a class becomes, and one of its subclasses."""


def sparse_layer(module: Any, format: str = "unstructured", block: tuple[int, int] | None = None) -> Replacement:
    """The sparse layer that takes the place of `module`, its weight in a format."""
    classes: Any = next(classes for kind, classes in _SPARSE if isinstance(module, kind))
    result: Replacement = classes[0 if is_kind(type(module)) else 1].sharing(module, format, block)
    return result


def is_sparse(module: nn.Module, format: str = "unstructured") -> bool:
    """Whether `module` is one of `sparse_layer`."""
    is_one = any(type(module) in classes for _, classes in _SPARSE)
    return is_one and getattr(module, "format", None) == format


def _block_obstacle(layer: Layer) -> Fact | None:
    return fine_grained_obstacle(layer) or block_obstacle(layer)


def _block_layer(module: Any) -> Replacement:
    return sparse_layer(module, BlockSparse.format, block_of(module))


def packed_obstacle(layer: Layer) -> Fact | None:
    """Why its nonzeros cannot take the place of its weight."""
    module: Any = layer.module
    if type(module) is not nn.Linear:
        return CandidateObstacle.PACKED_OF_KIND.of(kind=type(module).__name__)
    if not layer.is_pruned:
        return CandidateObstacle.FEW_ZEROS.of(least=LEAST_SPARSITY)
    device = module.weight.device.type
    return None if device == "cpu" else CandidateObstacle.PACKED_ON_DEVICE.of(device=device)


_CHANNEL_DROPPED = (
    ChannelDroppedLinear,
    ChannelDroppedConv2d,
    SubclassChannelDroppedLinear,
    SubclassChannelDroppedConv2d,
)


_FINE = "fine-grained"

CANDIDATES: list[Candidate] = [
    Candidate(_FINE, obstacle=fine_grained_obstacle, build=sparse_layer, fused=FusedSparse, serves=is_sparse),
    Candidate(
        "channel-dropped",
        obstacle=channel_dropped_obstacle,
        build=_channel_dropped,
        fused=FusedDense,
        serves=lambda module: type(module) in _CHANNEL_DROPPED,
        drops=True,
    ),
    Candidate(
        BLOCK,
        obstacle=_block_obstacle,
        build=_block_layer,
        fused=FusedBlocks,
        serves=functools.partial(is_sparse, format=BlockSparse.format),
    ),
    Candidate(
        PACKED,
        obstacle=packed_obstacle,
        build=PackedLinear.sharing,
        fused=None,
        serves=lambda module: type(module) is PackedLinear,
        frozen=True,
    ),
]
"""All of them, beside staying dense."""


_OF_SUBCLASSES: tuple[tuple[type[Fused], type[Fused]], ...] = (
    (FusedBlocks, FusedBlocksOfSubclass),
    (FusedSparse, FusedSparseOfSubclass),
    (Fused, FusedDenseOfSubclass),
)
"""What serves a subclass's replacement, by what serves one of a layer of torch's."""

_OF_TRANSPOSED: tuple[tuple[type[Fused], type[Fused]], ...] = (
    (FusedBlocks, FusedTransposedBlocks),
    (FusedByFormat, FusedTransposedByFormat),
    (FusedSparse, FusedTransposed),
)
"""The same for replacements of transformers' Conv1D."""


def decisions() -> tuple[str, ...]:
    """The names of what a layer may become; the first is what it was."""
    return (DENSE, *(row.name for row in CANDIDATES))


def of_frozen() -> tuple[str, ...]:
    """The names of decisions for a frozen model alone."""
    return tuple(row.name for row in CANDIDATES if row.frozen)


def dropping() -> tuple[str, ...]:
    """The names of decisions that leave out channels."""
    return tuple(row.name for row in CANDIDATES if row.drops)


def candidates_of(
    layer: Layer, names: Collection[str], blocks_count: bool = True
) -> tuple[Mapping[str, Replacement], Mapping[str, Fact]]:
    """What the layer may become, of the decisions `names`, and why it cannot become the others of them.

    All replacements share its parameters. blocks_count: whether blocks may stand for single elements on their kernels.
    """
    rows = [row for row in CANDIDATES if row.name in names]
    if not isinstance(layer.module, LINEAR_KINDS):
        rows = [row for row in rows if row.name != PACKED]  # nobody expects that of a convolution
    obstacles = {row.name: row.obstacle(layer) for row in rows}
    is_offered = all(name in obstacles and obstacles[name] is None for name in (_FINE, BLOCK))
    # The same is not timed twice.
    if is_offered and blocks_count and not runs_in_blocks(layer.module):
        obstacles[_FINE] = CandidateObstacle.SAME_AS_BLOCK.of()
    ruled_out = {name: obstacle for name, obstacle in obstacles.items() if obstacle is not None}
    may = obstacles.keys() - ruled_out.keys()
    return {row.name: row.build(layer.module) for row in CANDIDATES if row.name in may}, ruled_out


def layout_of_graphs(layers: Iterable[Layer], names: Collection[str]) -> torch.memory_format:
    """In which images are in a graph: channels_last where kernels for blocks may run a convolution, which read so."""
    in_blocks = BLOCK in names and any(
        isinstance(layer.module, nn.Conv2d) and _block_obstacle(layer) is None and runs_in_blocks(layer.module)
        for layer in layers
    )
    return torch.channels_last if in_blocks else torch.contiguous_format


def has_candidates(layer: Layer) -> bool:
    """Whether there is anything that a layer that may be exchanged can become."""
    return any(row.obstacle(layer) is None for row in CANDIDATES)


def may_chain(name: str, module: nn.Module, replacement: nn.Module) -> bool:
    """Whether a chain can call `replacement`, what `module` becomes by the decision `name`."""
    fused = next((row.fused for row in CANDIDATES if row.name == name), None)
    return is_kind(type(module)) and fused is not None and fused.may_chain(replacement)


def candidate_of(module: nn.Module) -> Candidate | None:
    """The row that a replacement was made by; None for other modules."""
    return next((row for row in CANDIDATES if row.serves(module)), None)


def fused_of(module: nn.Module) -> type[Fused] | None:
    """What serves a layer in a graph for inference; None for what no graph fuses."""
    if type(module) in (nn.Conv2d, nn.Conv1d, nn.Linear):
        return FusedDense
    if isinstance(module, Conv1D):
        return FusedDenseTransposed if is_kind(type(module)) else None
    row = candidate_of(module)
    if row is None or row.fused is None:
        return None
    if isinstance(module, OfSubclass):
        return next(of_subclass for kind, of_subclass in _OF_SUBCLASSES if issubclass(row.fused, kind))
    if isinstance(module, SparseTransposedLinear):
        return next(of_transposed for kind, of_transposed in _OF_TRANSPOSED if issubclass(row.fused, kind))
    return row.fused
