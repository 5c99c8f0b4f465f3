# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Random number generators: whether code has drawn from one while it was traced."""

from __future__ import annotations

import contextlib
import functools
import random
import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch


def is_generator(value: object) -> bool:
    """Whether it is a random number generator with a state, torch's, Python's or numpy's."""
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.random.RandomState | numpy.random.Generator):
        return True
    return isinstance(value, torch.Generator | random.Random) and not isinstance(value, random.SystemRandom)


class Generators:
    """The states of the random number generators that the code of a model may draw from.

    torch's on the CPU and on each GPU, Python's, numpy's where that is in use, and the model's own. stirs: whether
    something is drawn of numpy's, so that a seed that was set before is another state; until that is put back.
    """

    def __init__(self, own: Iterable[Any], stirs: bool = False) -> None:
        generators: list[tuple[Callable[[], Any], Callable[[Any], object]]] = [
            (torch.get_rng_state, torch.set_rng_state),
            (random.getstate, random.setstate),
        ]
        if torch.cuda.is_initialized():
            for index in range(torch.cuda.device_count()):
                generators.append(
                    (
                        functools.partial(torch.cuda.get_rng_state, index),
                        functools.partial(torch.cuda.set_rng_state, device=index),
                    )
                )
        numpy = sys.modules.get("numpy")
        if numpy is not None:
            generators.append((numpy.random.get_state, numpy.random.set_state))
        for one in {id(one): one for one in own}.values():
            if isinstance(one, random.Random):
                generators.append((one.getstate, one.setstate))
            elif hasattr(one, "get_state"):  # torch's, and numpy's RandomState
                generators.append((one.get_state, one.set_state))
            else:
                bits = one.bit_generator
                generators.append(
                    (functools.partial(getattr, bits, "state"), functools.partial(setattr, bits, "state"))
                )
        kept = []
        for get, put in generators:
            with contextlib.suppress(Exception):  # one of somebody else's kind that does not give its state
                kept.append((get, put, get()))
        if stirs and numpy is not None:
            numpy.random.random_sample()
        self._kept = [(get, put, state, get()) for get, put, state in kept]

    def drawn(self) -> bool:
        """Whether anything was drawn."""
        return any(_differ(get(), now) for get, _, _, now in self._kept)

    def put_back(self) -> bool:
        """Whether anything had been drawn."""
        drawn = False
        for get, put, state, now in self._kept:
            drawn = drawn or _differ(get(), now)
            if _differ(get(), state):
                put(state)
        return drawn


def _differ(state: Any, other: Any) -> bool:
    """To the last bit; NaN is as NaN."""
    if type(state) is not type(other):
        return True
    if isinstance(state, dict):
        return state.keys() != other.keys() or any(_differ(value, other[key]) for key, value in state.items())
    if isinstance(state, tuple | list):
        if len(state) != len(other) or {*map(type, state)} == {int}:
            return bool(state != other)
        return any(map(_differ, state, other))
    if isinstance(state, torch.Tensor):
        return not torch.equal(state, other)
    return _text_of(state) != _text_of(other)


def _text_of(state: Any) -> str:
    """With every element, as numpy's own has not."""
    return str(state.tolist() if hasattr(state, "tolist") else state)
