# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Functions that prune and grow: `(weight, signal, mask, count) -> mask`, of one layer, with exact counts.

A function of a user's own has the same form and is passed in the place of a name:

    def far_from_zero(weight, signal, mask, count):  # grows where |signal| is largest
        missing = (~mask).flatten().nonzero()[:, 0]
        grown = missing[signal.flatten()[missing].abs().topk(count).indices]
        return mask.flatten().index_fill(0, grown, True).view_as(mask)

All four arguments are about the same elements: those of the weight, or, of a layer in blocks, its blocks
[block rows, block columns, taps], of which weight and signal are L2 norms.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .allocation import allocate
from .selection import least

SALIENCY = 0.3
"""Of `constant_fan_in`: as Lasby et al. have it for most networks."""

MaskFunction = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""(weight, signal, mask, count) -> mask."""


def magnitude(weight: Tensor, signal: Tensor, mask: Tensor, count: int) -> Tensor:
    """Prune the kept weights that are least in magnitude.

        new = mask without the `count` kept weights of least |weight|; of equals, some, the same every time

    Args:
        weight: Any shape, finite.
        signal: Is not used.
        mask: bool, shape of `weight`: True where a weight is kept.
        count: How many to prune, 0 to the number of kept ones.

    Returns:
        bool, shape of `mask`, with `count` fewer.

    Raises:
        ValueError: For a count that the mask does not have.

    Source:
        Zhu & Gupta 2017, "To prune, or not to prune", arXiv 1710.01878.
    """
    kept = _kept(mask, count, "magnitude")
    return _without(mask, kept[least(weight.flatten()[kept].abs(), count)])


def set_pruning(weight: Tensor, signal: Tensor, mask: Tensor, count: int) -> Tensor:
    """Prune the least positive and the largest negative of the kept weights, each kind by its share of them.

        positive = round(count * p / (p + n))   least of the p kept weights >= 0
        negative = count - positive             largest of the n kept weights < 0

    Of the norms of blocks, which have no sign, those are the least.

    Args:
        weight: Any shape, finite.
        signal: Is not used.
        mask: bool, shape of `weight`: True where a weight is kept.
        count: How many to prune, 0 to the number of kept ones.

    Returns:
        bool, shape of `mask`, with `count` fewer.

    Raises:
        ValueError: For a count that the mask does not have.

    Source:
        Mocanu et al. 2018, "Scalable training of artificial neural networks with adaptive sparse connectivity inspired
        by network science", Nature Communications 9, algorithm 1.
    """
    kept = _kept(mask, count, "set_pruning")
    values = weight.flatten()[kept]
    is_negative = values < 0
    positive, negative = kept[~is_negative], kept[is_negative]
    of_positive = round(count * positive.numel() / max(kept.numel(), 1))
    of_positive = min(max(of_positive, count - negative.numel()), positive.numel())
    chosen = [
        positive[least(values[~is_negative], of_positive)],
        negative[least(-values[is_negative], count - of_positive)],
    ]
    return _without(mask, torch.cat(chosen))


def largest_signal(weight: Tensor, signal: Tensor, mask: Tensor, count: int) -> Tensor:
    """Grow where the signal of a missing weight is largest in magnitude: momentum, gradient or random numbers.

        new = mask with the `count` missing weights of largest |signal|; of equals, some, the same every time

    Args:
        weight: Is not used.
        signal: Any shape, finite.
        mask: bool, shape of `signal`: True where a weight is kept.
        count: How many to grow, 0 to the number of missing ones.

    Returns:
        bool, shape of `mask`, with `count` more.

    Raises:
        ValueError: For a count that the mask lacks.

    Source:
        By momentum: Dettmers & Zettlemoyer 2019, arXiv 1907.04840. By gradient: Evci et al. 2020, "Rigging the
        lottery", arXiv 1911.11134.
    """
    _check_missing(mask, count, "largest_signal")
    size = signal.abs().masked_fill_(mask, -1.0)  # kept ones come last
    return _with(mask, least(size.neg_().flatten(), count))


def neurons(weight: Tensor, signal: Tensor, mask: Tensor, count: int) -> Tensor:
    """Grow in the outputs whose missing weights have the largest signal on average, at random places in them.

        share[o] = mean |signal[o, i]| over missing i,   grown[o] proportional to it, as whole numbers of sum `count`

    The places are those of the largest of random numbers that the signal's own bits seed, so the same signal gives the
    same mask.

    Args:
        weight: Is not used.
        signal: [out, ...], finite.
        mask: bool, shape of `signal`: True where a weight is kept.
        count: How many to grow, 0 to the number of missing ones.

    Returns:
        bool, shape of `mask`, with `count` more.

    Raises:
        ValueError: For a count that the mask lacks.

    Source:
        The mode "momentum_neuron" of Dettmers & Zettlemoyer 2019, arXiv 1907.04840.
    """
    _check_missing(mask, count, "neurons")
    absent = ~mask.reshape(mask.size(0), -1)
    free = absent.sum(1)
    sums = (signal.reshape(absent.shape).to(torch.float64).abs() * absent).sum(1)
    grown = allocate(count, (sums / free.clamp(min=1)).tolist(), free.tolist())
    seed = int(sums.sum().view(torch.int64)) & 0x7FFFFFFF
    draws = torch.rand(absent.shape, generator=torch.Generator().manual_seed(seed)).to(mask.device)
    order = draws.masked_fill_(~absent, 2.0).argsort(1)
    places = torch.arange(absent.size(1), device=mask.device) < torch.tensor(grown, device=mask.device)[:, None]
    new = torch.zeros_like(absent).scatter_(1, order, places)
    return mask | new.view_as(mask)


def constant_fan_in(
    weight: Tensor, signal: Tensor, mask: Tensor, count: int, total: int | None = None, saliency: float = SALIENCY
) -> Tensor:
    """Prune and grow so that every output keeps the same number of inputs, and outputs with few salient ones go.

        kept[o, i]    = mask without the `count` kept weights of least |weight| in the layer
        salient[o]    = weights of `kept` in row o, and of the `count` missing ones of largest |signal|
        active        = outputs of the mask with salient[o] >= saliency * fan_in, at least as many as hold `total`
        fan_in        = round(total / outputs active), at least 1
        new[o]        = of active o: its `fan_in` largest of `kept`, then its missing ones of largest |signal|

    Args:
        weight: [out, ...], finite.
        signal: Shape of `weight`, finite: gradients.
        mask: bool, shape of `weight`: True where a weight is kept.
        count: How many weights to prune at first.
        total: How many weights the new mask should have; None for as many as `mask`. The nearest multiple of the number
            of active outputs is taken.
        saliency: The share of its fan-in that an output has to have in salient weights; 0 lets none go.

    Returns:
        bool, shape of `mask`; each row has the same number of True, or none.

    Raises:
        ValueError: For a count that the mask does not have, or a total that no mask has.

    Source:
        Lasby et al. 2024, "Dynamic sparse training with structured sparsity", arXiv 2305.02299, section 3.
    """
    rows = mask.reshape(mask.size(0), -1)
    total = int(rows.count_nonzero()) if total is None else total
    if not 0 <= total <= rows.numel():
        raise ValueError(f"constant_fan_in: expected total from 0 to {rows.numel()}, got {total}")
    if total == 0:
        return torch.zeros_like(mask)
    stay = magnitude(weight, signal, mask, min(count, int(rows.count_nonzero()))).reshape(rows.shape)
    size = signal.reshape(rows.shape).abs()
    wanted = largest_signal(weight, signal, mask, min(count, int((~rows).count_nonzero()))).reshape(rows.shape) & ~rows
    salient = (stay | wanted).sum(1)
    alive = rows.any(1)
    before = max(1, round(total / max(1, int(alive.sum()))))
    active = alive & (salient >= max(1.0, saliency * before)) if saliency > 0 else alive
    needed = max(1, -(-total // rows.size(1)))  # outputs that hold `total` when they are full
    if int(active.count_nonzero()) < needed:  # the most salient stay, those of the mask before others
        order = least(-(salient + alive * (rows.size(1) + 1.0) + active * (4.0 * rows.size(1))), needed)
        active = torch.zeros_like(alive).index_fill(0, order, True)
    fan_in = min(max(1, round(total / int(active.count_nonzero()))), rows.size(1))
    largest = weight.reshape(rows.shape).abs().masked_fill(~stay, -1.0).topk(fan_in, 1)
    new = torch.zeros_like(rows).scatter_(1, largest.indices, largest.values >= 0)
    lacking = fan_in - new.sum(1, keepdim=True)
    mixed = torch.randperm(rows.size(1), generator=torch.Generator().manual_seed(0)).to(mask.device)  # orders equals
    grown = mixed[size.masked_fill(new, -1.0)[:, mixed].topk(fan_in, 1).indices]
    places = torch.arange(fan_in, device=mask.device) < lacking
    new |= torch.zeros_like(rows).scatter_(1, grown, places)
    return (new & active[:, None]).view_as(mask)


def _kept(mask: Tensor, count: int, name: str) -> Tensor:
    kept = mask.flatten().nonzero()[:, 0]
    if not 0 <= count <= kept.numel():
        raise ValueError(f"{name}: expected count from 0 to the {kept.numel()} kept weights, got {count}")
    return kept


def _check_missing(mask: Tensor, count: int, name: str) -> None:
    missing = mask.numel() - int(mask.count_nonzero())
    if not 0 <= count <= missing:
        raise ValueError(f"{name}: expected count from 0 to the {missing} missing weights, got {count}")


def _without(mask: Tensor, places: Tensor) -> Tensor:
    return mask.flatten().index_fill(0, places, False).view_as(mask)


def _with(mask: Tensor, places: Tensor) -> Tensor:
    return mask.flatten().index_fill(0, places, True).view_as(mask)
