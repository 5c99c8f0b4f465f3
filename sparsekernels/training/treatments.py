# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Where a pruned network starts: the values of the weights that a mask keeps, and of those that it prunes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import check_mask, check_tensor
from .storage import check_integer


@dataclass(frozen=True)
class _Weights:
    initial: Tensor
    final: Tensor
    mask: Tensor
    fresh: Tensor | None
    deviation: float | None
    seed: int

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)


def _fresh(given: _Weights) -> Tensor:
    if given.fresh is None:
        raise ValueError("starting_weights: expected fresh, new draws of the initializer, for 'reinit', got None")
    return given.fresh


def _shuffled(given: _Weights, groups: Tensor) -> Tensor:
    """The initial values of the kept weights, exchanged at random within groups."""
    result, generator = given.initial.clone(memory_format=torch.contiguous_format), given.generator()
    flat, kept, groups = result.view(-1), given.mask.flatten(), groups.flatten()
    for group in (False, True):
        places = (kept & (groups == group)).nonzero()[:, 0]
        flat[places] = flat[places[torch.randperm(places.numel(), generator=generator).to(places.device)]]
    return result


def _reshuffled(given: _Weights) -> Tensor:
    return _shuffled(given, torch.zeros_like(given.mask))


def _reshuffled_by_sign(given: _Weights) -> Tensor:
    return _shuffled(given, given.initial.signbit())


def deviation_of(initial: Tensor) -> float:
    """The standard deviation of all of a layer's weights, rounded to float32, which hides the order of the sum."""
    return float(initial.detach().cpu().double().flatten().std(correction=0).float())


def _constant(given: _Weights) -> Tensor:
    deviation = deviation_of(given.initial) if given.deviation is None else given.deviation
    if not 0 < deviation < float("inf"):
        raise ValueError(f"starting_weights: expected a standard deviation above 0 for constants, got {deviation:g}")
    return torch.full_like(given.initial, deviation)


def _random_signs(given: _Weights) -> Tensor:
    negative = torch.rand(given.initial.shape, generator=given.generator()) < 0.5
    constant = _constant(given)
    return torch.where(negative.to(constant.device), -constant, constant)


def _toward_zero(given: _Weights) -> Tensor:
    """The initial values, or zero where training made a weight smaller."""
    shrank = given.final.to(torch.float64).abs() < given.initial.to(torch.float64).abs()
    return given.initial.masked_fill(shrank, 0)


KEPT: dict[str, Callable[[_Weights], Tensor]] = {
    "rewind": lambda given: given.initial,
    "reinit": _fresh,
    "signed_reinit": lambda given: _fresh(given).abs().copysign(given.initial),
    "reshuffle": _reshuffled,
    "signed_reshuffle": _reshuffled_by_sign,
    "constant": _random_signs,
    "signed_constant": lambda given: _constant(given).copysign(given.initial),
    "rewind_or_zero": _toward_zero,
}
"""What the kept weights start from."""

PRUNED: dict[str, Callable[[_Weights], Tensor]] = {
    "zero": lambda given: torch.zeros_like(given.initial),
    "freeze": lambda given: given.initial,
    "freeze_or_zero": _toward_zero,
}
"""What the pruned weights stay at."""


def check_treatments(where: str, kept: object, pruned: object) -> None:
    """Raise ValueError unless these are names of treatments."""
    for name, value, table in (("kept", kept, KEPT), ("pruned", pruned, PRUNED)):
        if not isinstance(value, str) or value not in table:
            raise ValueError(f"{where}: expected {name} to be {', '.join(map(repr, table))}, got {value!r}")


def starting_weights(
    initial: Tensor,
    final: Tensor,
    mask: Tensor,
    *,
    kept: str = "rewind",
    pruned: str = "zero",
    fresh: Tensor | None = None,
    deviation: float | None = None,
    seed: int = 0,
) -> Tensor:
    """The weights that a pruned layer starts with, and at those that are pruned stays at.

        kept:    rewind            wi
                 reinit            new draws
                 signed_reinit     |new draws| with the sign of wi
                 reshuffle         the wi of kept weights, exchanged at random
                 signed_reshuffle  the same among the positive ones, and among the negative ones
                 constant          s or -s, at random
                 signed_constant   s with the sign of wi
                 rewind_or_zero    0 where |wf| < |wi|, else wi       variant 2, with freeze_or_zero
        pruned:  zero              0
                 freeze            wi
                 freeze_or_zero    0 where |wf| < |wi|, else wi       variant 1

    wi are the initial weights, wf the final ones, s the standard deviation of all of the layer's wi. A zero has the
    sign of its sign bit, as a rule positive.

    Args:
        initial: Weights that training began with, any shape, floating.
        final: What it made of them, in the same shape.
        mask: bool, the same shape: True where a weight is kept.
        kept: What the weights start from that are kept.
        pruned: What the others stay at.
        fresh: New draws of the layer's initializer, in the same shape, for "reinit" and "signed_reinit".
        deviation: s, above 0. None: that of `initial`, rounded to float32.
        seed: Of shuffling and random signs, drawn on the CPU.

    Returns:
        The weights, in the shape, dtype and device of `initial`.

    Raises:
        TypeError: For what is no tensor, a dtype that is not floating, or a mask that is not bool.
        ValueError: For shapes that differ, another treatment, missing draws, or constants of a deviation of 0.

    Source:
        Zhou et al. 2019, "Deconstructing lottery tickets: zeros, signs, and the supermask", arXiv 1905.01067, sections
        3 (kept) and 4 (pruned).
    """
    check_treatments("starting_weights", kept, pruned)
    check_integer("starting_weights", "seed", seed)
    check_mask("starting_weights", mask)
    for name, tensor in (("initial", initial), ("final", final), ("fresh", fresh)):
        if name != "fresh" or tensor is not None:
            check_tensor("starting_weights", name, tensor)
    for name, tensor in (("final", final), ("mask", mask), ("fresh", fresh)):
        if tensor is not None and tensor.shape != initial.shape:
            raise ValueError(
                f"starting_weights: expected {name} of shape {list(initial.shape)}, as initial, got"
                f" {list(tensor.shape)}"
            )
    with torch.no_grad():
        final, mask = final.to(initial.device), mask.to(initial.device)
        fresh = None if fresh is None else fresh.to(initial.device, initial.dtype)
        given = _Weights(initial, final, mask, fresh, deviation, seed)
        return torch.where(mask, KEPT[kept](given), PRUNED[pruned](given))
