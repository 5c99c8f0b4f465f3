# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Mask criteria: which weights a pruned network keeps, by what they were at first and what training made of them.

A criterion is a pure function `(initial, final, count) -> mask` with exactly `count` weights kept. It sees the weights
that it chooses from and nothing else: of one layer or, one after the other, of several, so that the same function
prunes by layers and globally, at once and in rounds.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor

from ..checks import check_tensor
from .identity import identity
from .selection import least
from .storage import check_integer

Criterion = Callable[[Tensor, Tensor, int], Tensor]
"""(initial, final, count) -> mask."""

SCORES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "large_final": lambda initial, final: final.abs(),
    "small_final": lambda initial, final: -final.abs(),
    "large_init": lambda initial, final: initial.abs(),
    "small_init": lambda initial, final: -initial.abs(),
    "large_init_large_final": lambda initial, final: torch.minimum(initial.abs(), final.abs()),
    "small_init_small_final": lambda initial, final: -torch.maximum(initial.abs(), final.abs()),
    "magnitude_increase": lambda initial, final: final.abs() - initial.abs(),
    "movement": lambda initial, final: (final - initial).abs(),
}
"""What each criterion keeps the highest of, in float64. Both magnitudes are above a threshold where the lesser is, and
both below one where the greater is, so the two criteria of two conditions have one threshold that meets any budget."""

SIGNS = ("same_sign", "diff_sign")

CRITERIA = tuple(
    name for base in (*SCORES, "random") for name in (base, *(f"{base}_{restriction}" for restriction in SIGNS))
)
"""The names of all criteria: nine, and each of them among weights that kept their sign, or changed it."""


def criterion(name: str, *, seed: int = 0, fill: bool = False) -> Criterion:
    """The mask criterion of a name: keep the `count` weights of the highest scores.

        large_final               |wf|
        small_final              -|wf|
        large_init                |wi|
        small_init               -|wi|
        large_init_large_final    min(|wi|, |wf|)    both are at least a threshold
        small_init_small_final   -max(|wi|, |wf|)    both are at most a threshold
        magnitude_increase        |wf| - |wi|
        movement                  |wf - wi|
        random                    a random number
        ..._same_sign             only where wi * wf > 0
        ..._diff_sign             only where wi * wf < 0

    wi is a weight's initial value, wf its final one, compared in float64. Of equal scores some are kept, at random
    places that are the same every time, whatever the strides. A weight that is zero, before or after, has neither the
    same sign nor a different one.

    The function that is returned, `(initial, final, count) -> mask`, takes two tensors of one shape and device, each of
    a floating dtype, finite, of any strides, and an int from 0 to the number of weights; it returns bool in their
    shape, True at exactly `count`. Otherwise it raises TypeError or ValueError.

    Args:
        name: One of `CRITERIA`.
        seed: Of the draws of "random", which are made on the CPU.
        fill: What happens where fewer than `count` weights have the sign that is asked for. False: ValueError, which
            says how many there are. True: all of them are kept, and of the others those that the criterion keeps
            without its restriction.

    Returns:
        The criterion.

    Raises:
        ValueError: For another name.

    Source:
        Zhou et al. 2019, "Deconstructing lottery tickets: zeros, signs, and the supermask", arXiv 1905.01067, sections
        2 and 5.
    """
    if name not in CRITERIA:
        raise ValueError(f"criterion: expected name to be {', '.join(map(repr, CRITERIA))}, got {name!r}")
    base = name.removesuffix("_same_sign").removesuffix("_diff_sign")
    found = at_random(seed) if base == "random" else _by_score(base)
    if base != name:
        found = (same_sign if name.endswith("same_sign") else diff_sign)(found, fill=fill)
    return found


def _by_score(name: str) -> Criterion:
    def keep(initial: Tensor, final: Tensor, count: int) -> Tensor:
        first, last = _checked(name, initial, final, count)
        return highest(name, SCORES[name](first, last), count).view(final.shape)

    keep.__name__ = keep.__qualname__ = name
    return keep


def at_random(seed: int) -> Criterion:
    """The criterion that keeps weights at random, by draws from a CPU generator of this seed."""
    check_integer("at_random", "seed", seed)

    def random(initial: Tensor, final: Tensor, count: int) -> Tensor:
        last = _checked("random", initial, final, count)[1]
        order = torch.randperm(last.numel(), generator=torch.Generator().manual_seed(seed))[:count]
        return _at(order.to(final.device), last).view(final.shape)

    return random


def same_sign(criterion: Criterion, *, fill: bool = False) -> Criterion:
    """A criterion among the weights whose sign is what it was at first.

    Args:
        criterion: A function `(initial, final, count) -> mask`, which is given vectors in float64.
        fill: What happens where there are fewer than `count` of them; see `criterion`.

    Returns:
        The restricted criterion, a function of the same form.
    """
    return _restricted("same_sign", criterion, lambda signs: signs > 0, fill)


def diff_sign(criterion: Criterion, *, fill: bool = False) -> Criterion:
    """A criterion among the weights whose sign has changed.

    Args:
        criterion: A function `(initial, final, count) -> mask`, which is given vectors in float64.
        fill: What happens where there are fewer than `count` of them; see `criterion`.

    Returns:
        The restricted criterion, a function of the same form.
    """
    return _restricted("diff_sign", criterion, lambda signs: signs < 0, fill)


def _restricted(name: str, criterion: Criterion, allows: Callable[[Tensor], Tensor], fill: bool) -> Criterion:
    def keep(initial: Tensor, final: Tensor, count: int) -> Tensor:
        first, last = _checked(name, initial, final, count)
        allowed = allows(first.sign() * last.sign())
        among, others = allowed.nonzero()[:, 0], (~allowed).nonzero()[:, 0]
        if count <= among.numel():
            kept = among[choose(criterion, first[among], last[among], count)]
        elif fill:
            rest = choose(criterion, first[others], last[others], count - among.numel())
            kept = torch.cat([among, others[rest]])
        else:
            raise ValueError(
                f"{name}: expected count up to {among.numel()}, the weights of that sign, got {count}; fill=True takes"
                " others as well"
            )
        return _at(kept, last).view(final.shape)

    keep.__name__ = keep.__qualname__ = f"{getattr(criterion, '__name__', 'criterion')}_{name}"
    return keep


def choose(criterion: Criterion, initial: Tensor, final: Tensor, count: int) -> Tensor:
    """The mask of a criterion, which may be a user's own; raises where that is no mask of `count` weights."""
    mask = criterion(initial, final, count)
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != final.shape:
        given = f"{mask.dtype} {list(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"criterion: expected it to return torch.bool {list(final.shape)}, got {given}")
    if int(mask.sum()) != count:
        raise ValueError(f"criterion: expected it to keep {count} weights, got {int(mask.sum())}")
    return mask.to(final.device)


def check_criterion(where: str, chosen: object) -> None:
    """Raise ValueError unless it is a name of `CRITERIA`, or a function with a name of its own."""
    if not callable(chosen) and chosen not in CRITERIA:
        names = ", ".join(map(repr, CRITERIA))
        raise ValueError(f"{where}: expected criterion to be a function, {names}, got {chosen!r}")
    if callable(chosen) and getattr(chosen, "__name__", "<lambda>") == "<lambda>":
        raise ValueError(
            f"{where}: expected criterion to be a function with a name, which its tickets have, got {chosen}"
        )


def name_of(where: str, chosen: str | Criterion) -> str:
    """Of a criterion, in files: a function's own, and a part of the check sum of what it computes with."""
    if isinstance(chosen, str):
        return chosen
    name = f"{getattr(chosen, '__module__', '')}.{getattr(chosen, '__qualname__', '')}"
    return re.sub(r"[^\w.]", "", name) + f"-{identity(where, chosen)[:16]}"


def _checked(name: str, initial: Tensor, final: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Both in float64 and one dimension."""
    for what, tensor in (("initial", initial), ("final", final)):
        check_tensor(name, what, tensor)
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{name}: expected {what} of finite numbers, got NaN or infinity among them")
    if initial.shape != final.shape or initial.device != final.device:
        raise ValueError(
            f"{name}: expected initial of shape {list(final.shape)} on {final.device}, as final, got"
            f" {list(initial.shape)} on {initial.device}"
        )
    if check_integer(name, "count", count) > final.numel():
        raise ValueError(f"{name}: expected count from 0 to {final.numel()}, got {count}")
    first, last = (tensor.detach().to(torch.float64).flatten() for tensor in (initial, final))
    return first, last


def highest(name: str, scores: Tensor, count: int) -> Tensor:
    """The mask of the `count` highest; of equal ones, some, the same every time."""
    if check_integer(name, "count", count) > scores.numel():
        raise ValueError(f"{name}: expected count from 0 to {scores.numel()}, got {count}")
    flat = scores.flatten()
    return _at(least(-flat, count), flat).view(scores.shape)


def _at(places: Tensor, like: Tensor) -> Tensor:
    return torch.zeros_like(like, dtype=torch.bool).index_fill(0, places, True)
