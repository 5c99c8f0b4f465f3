# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Masks of an exact number of nonzeros, the same every time, and pruning a model by them."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

SPREAD = 0.75
"""Standard deviation of the logarithms of a clustered mask's odds, of rows and of input channels each."""


def mask(kind: str, shape: Sequence[int], sparsity: float, seed: int = 0) -> Tensor:
    """The mask (bool, true where a weight is kept) of `kind`, one of `MASKS`, over a weight of `shape`.

    The weight is (out_channels, in_channels per group, ...). Of its numel, round(numel * (1 - sparsity)) are kept:
    those whose draws from an exponential distribution of the kind's odds are the least, which is how one draws that
    many without putting any back.
    """
    generator = torch.Generator().manual_seed(seed)
    count = math.prod(shape)
    kept = round(count * (1 - sparsity))
    draws = torch.empty(tuple(shape), dtype=torch.float64).exponential_(generator=generator)
    return _least(draws / MASKS[kind](shape, generator), kept)


def _least(values: Tensor, count: int) -> Tensor:
    """The mask of the `count` least of `values`; of equals, the first."""
    if count == 0:
        return torch.zeros_like(values, dtype=torch.bool)
    limit = values.flatten().kthvalue(count).values
    result = values < limit
    equal = (values == limit).flatten().nonzero()[: count - int(result.sum()), 0]
    result.view(-1)[equal] = True
    return result


def random(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Every weight has the same odds."""
    return torch.ones((), dtype=torch.float64)


def clustered(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Each output channel (row) and each input channel has odds of its own, and a weight their product.

    The odds are log-normal, so that most channels are about as dense as all together, a few several times as dense,
    and a few nearly empty, as magnitude pruning leaves them.
    """

    def odds(*shape: int) -> Tensor:
        return torch.exp(SPREAD * torch.randn(*shape, generator=generator, dtype=torch.float64))

    after = (1,) * (len(shape) - 2)
    return odds(shape[0], 1, *after) * odds(1, shape[1], *after)


MASKS: dict[str, Callable[[Sequence[int], torch.Generator], Tensor]] = {"random": random, "clustered": clustered}
"""The kinds: of the weight's shape, the odds of each weight to be kept (broadcast to that shape)."""

PRUNINGS = (*MASKS, "magnitude")
"""How weights are chosen: at random in one of two ways, or by their magnitude."""


def kept_weights(kind: str, weight: Tensor, sparsity: float, seed: int = 0) -> Tensor:
    """The mask of `kind`, one of `PRUNINGS`, over `weight`, on its device: of so many weights as `mask` keeps."""
    if kind == "magnitude":
        return largest(weight, sparsity)
    return mask(kind, weight.shape, sparsity, seed).to(weight.device)


def largest(weight: Tensor, sparsity: float) -> Tensor:
    """The mask of the round(numel * (1 - sparsity)) weights that are the largest in magnitude; of equals, the first."""
    return _least(-weight.detach().abs().contiguous(), round(weight.numel() * (1 - sparsity)))


def prunable(model: nn.Module) -> Iterator[tuple[str, nn.Conv2d | nn.Linear]]:
    """Name and module of every Linear and Conv2d, save depthwise convolutions (groups == in_channels > 1)."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) or (
            isinstance(module, nn.Conv2d) and not 1 < module.groups == module.in_channels
        ):
            yield name, module


@torch.no_grad()
def prune_(model: nn.Module, kind: str, sparsity: float, seed: int = 0) -> dict[str, Tensor]:
    """Zeroes the share `sparsity` of each weight of the `prunable` modules, in place; returns the masks by module name.

    kind is one of PRUNINGS. A mask (bool, true where the weight is kept) has exactly round(numel * (1 - sparsity)) of
    a layer's weights; where it is random, it depends on the seed, the layer's name and the shape, and on no other
    layer. Weights that were zero before count as others do: trained networks have some. Raises ValueError for another
    kind, or a sparsity that is not within [0, 1].
    """
    if kind not in PRUNINGS:
        raise ValueError(f"prune_: expected kind to be {', '.join(map(repr, PRUNINGS))}, got {kind!r}")
    if not 0 <= sparsity <= 1:
        raise ValueError(f"prune_: expected sparsity from 0 to 1, got {sparsity:g}")
    masks = {}
    for name, module in prunable(model):
        kept = kept_weights(kind, module.weight, sparsity, seed=zlib.crc32(f"{seed}/{name}".encode()))
        masks[name] = kept
        module.weight.masked_fill_(~kept, 0)
    return masks
