# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Random number generators: whether code has drawn from one while it was traced."""

from __future__ import annotations

import functools
import random
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class Generators:
    """The states of the random number generators that the code of `module` may draw from.

    torch's on the CPU, Python's, numpy's where that is in use, and those that are attributes of modules.
    """

    def __init__(self, module: nn.Module) -> None:
        generators: list[tuple[Callable[[], Any], Callable[[Any], object]]] = [
            (torch.get_rng_state, torch.set_rng_state),
            (random.getstate, random.setstate),
        ]
        numpy = sys.modules.get("numpy")
        if numpy is not None:
            generators.append((numpy.random.get_state, numpy.random.set_state))
        for one in module.modules():
            for value in vars(one).values():
                if isinstance(value, torch.Generator):
                    generators.append((value.get_state, value.set_state))
                elif isinstance(value, random.Random):
                    generators.append((value.getstate, value.setstate))
                elif numpy is not None and isinstance(value, numpy.random.RandomState):
                    generators.append((value.get_state, value.set_state))
                elif numpy is not None and isinstance(value, numpy.random.Generator):
                    bits = value.bit_generator
                    generators.append(
                        (functools.partial(getattr, bits, "state"), functools.partial(setattr, bits, "state"))
                    )
        self._kept = [(get, put, get()) for get, put in generators]

    def drawn(self) -> bool:
        """Whether anything was drawn."""
        return any(_differ(get(), state) for get, _, state in self._kept)

    def put_back(self) -> bool:
        """Whether anything had been drawn."""
        drawn = False
        for get, put, state in self._kept:
            if _differ(get(), state):
                put(state)
                drawn = True
        return drawn


def _differ(state: Any, other: Any) -> bool:
    return str(_listed(state)) != str(_listed(other))


def _listed(state: Any) -> Any:
    """What can be compared as text to the last number."""
    if isinstance(state, dict):
        return {key: _listed(value) for key, value in state.items()}
    if isinstance(state, tuple | list):
        return [_listed(value) for value in state]
    return state.tolist() if hasattr(state, "tolist") else state
