# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""How many nonzeros each layer has: initial distributions and redistribution, as whole numbers of an exact sum."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction

from torch import Tensor


def allocate(total: int, shares: Sequence[float], capacities: Sequence[int]) -> list[int]:
    """Whole numbers in proportion to `shares`, none above its capacity, whose sum is `total`.

        count[i] = min(capacity[i], e * share[i])   with e so that the sum is `total`, then by the largest remainder

    What a full one cannot take goes to the others by their shares. Where those with a share are full, the rest goes to
    the others by the room that they have.

    Args:
        total: The sum, from 0 on.
        shares: Of each, from 0 on, finite.
        capacities: The most that each takes.

    Returns:
        The numbers.

    Raises:
        ValueError: For a total that is more than all capacities, a negative share or one that is not finite.
    """
    if len(shares) != len(capacities):
        raise ValueError(f"allocate: expected a share for each of {len(capacities)} capacities, got {len(shares)}")
    if any(not math.isfinite(share) or share < 0 for share in shares):
        raise ValueError(f"allocate: expected shares that are finite and not negative, got {list(shares)}")
    if not 0 <= total <= sum(capacities):
        raise ValueError(f"allocate: expected total from 0 to the capacity of {sum(capacities)}, got {total}")
    exact = [Fraction(share) for share in shares]
    counts = [Fraction(0)] * len(exact)
    left, open_ones = Fraction(total), [i for i, capacity in enumerate(capacities) if capacity > 0]
    while left > 0:
        sum_of = sum((exact[i] for i in open_ones), Fraction(0))
        if sum_of == 0:  # nobody who has a share has room: the others, by their room
            exact = [Fraction(capacity) for capacity in capacities]
            sum_of = sum((exact[i] for i in open_ones), Fraction(0))
        full = [i for i in open_ones if left * exact[i] >= capacities[i] * sum_of]
        if not full:
            for i in open_ones:
                counts[i] = left * exact[i] / sum_of
            break
        for i in full:
            counts[i] = Fraction(capacities[i])
        left -= sum(capacities[i] for i in full)
        closed = set(full)
        open_ones = [i for i in open_ones if i not in closed]
    whole = [math.floor(count) for count in counts]
    rest = total - sum(whole)
    by_remainder = sorted(range(len(counts)), key=lambda i: (whole[i] - counts[i], i))
    for i in [i for i in by_remainder if whole[i] < capacities[i]][:rest]:
        whole[i] += 1
    return whole


def at_least_one(counts: Sequence[int], sizes: Sequence[int]) -> list[int]:
    """The same sum with at least one in each that has a place, taken from those that have most, where it suffices.

    A layer without a weight gives the same for every input, and everything before it gets no gradient.
    """
    counts = list(counts)
    for i, size in enumerate(sizes):
        if counts[i] == 0 < size:
            donor = max(range(len(counts)), key=lambda j: counts[j])
            if counts[donor] > 1:
                counts[donor] -= 1
                counts[i] = 1
    return counts


def _uniform(shape: Sequence[int]) -> float:
    """The same density in each layer."""
    return 1.0


def _erk(shape: Sequence[int]) -> float:
    """sum of the dimensions / product: Erdos-Renyi-Kernel."""
    return sum(shape) / math.prod(shape)


def _er(shape: Sequence[int]) -> float:
    """(out + in) / (out * in): Erdos-Renyi."""
    return (shape[0] + shape[1]) / (shape[0] * shape[1]) if len(shape) > 1 else 1.0


DISTRIBUTIONS: dict[str, Callable[[Sequence[int]], float]] = {"uniform": _uniform, "ERK": _erk, "SET": _er}
"""Initial distributions by name: of a weight's shape, what its density is proportional to."""


def distribute(total: int, shapes: Sequence[Sequence[int]], sizes: Sequence[int], distribution: str) -> list[int]:
    r"""How many of `total` nonzeros each layer starts with.

        count[l] = size[l] * min(1, e * s[l])   with e so that the sum is `total`, at least 1 in each layer

        s[l] = 1                                             "uniform"
        s[l] = (out + in + kh + kw) / (out * in * kh * kw)   "ERK"
        s[l] = (out + in) / (out * in)                       "SET"

    Args:
        total: Nonzeros in all layers.
        shapes: Of the weights.
        sizes: How many elements each weight has, or blocks.
        distribution: "uniform", "ERK" or "SET".

    Returns:
        The numbers; their sum is `total`.

    Raises:
        ValueError: For another distribution, or a total that the layers do not hold.

    Source:
        Mocanu et al. 2018, Nature Communications 9 (SET); Evci et al. 2020, arXiv 1911.11134, section 3 (ERK).
    """
    if distribution not in DISTRIBUTIONS:
        names = ", ".join(map(repr, DISTRIBUTIONS))
        raise ValueError(f"distribute: expected distribution to be {names}, got {distribution!r}")
    rule = DISTRIBUTIONS[distribution]
    shares = [size * rule(shape) for shape, size in zip(shapes, sizes, strict=True)]
    return at_least_one(allocate(total, shares, sizes), sizes)


# What a layer's share of the new weights is: (weight, signal, mask, pruned) -> a number from 0 on.

ShareFunction = Callable[[Tensor, Tensor, Tensor, int], float]


def momentum_share(weight: Tensor, signal: Tensor, mask: Tensor, pruned: int) -> float:
    """mean |signal| of the weights that are kept."""
    return float(signal[mask].abs().double().mean()) if bool(mask.any()) else 0.0


def magnitude_share(weight: Tensor, signal: Tensor, mask: Tensor, pruned: int) -> float:
    """mean |weight| of the weights that are kept."""
    return float(weight[mask].abs().double().mean()) if bool(mask.any()) else 0.0


def nonzeros_share(weight: Tensor, signal: Tensor, mask: Tensor, pruned: int) -> float:
    """How many weights are kept."""
    return float(mask.count_nonzero())


def no_share(weight: Tensor, signal: Tensor, mask: Tensor, pruned: int) -> float:
    """How many weights the layer lost, which it has again."""
    return float(pruned)
