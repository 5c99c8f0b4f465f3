# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Parameters that stand in for a model's own while backward passes are measured.

They are aliases of the same memory with gradients of their own, so that nothing that waits for a gradient is told of
one: hooks of parameters, optimizers that step in them, DistributedDataParallel.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from .watch.copies import is_lazy
from .watch.state import holders_of


@contextlib.contextmanager
def stand_ins(model: nn.Module) -> Iterator[None]:
    """Inside, all parameters of `model` that have a gradient are others, wherever modules and their attributes, lists
    and dicts hold them; each is the same in all these places.

    The model's own need no gradient meanwhile: code that has them from elsewhere computes none. Scripted modules keep
    theirs.
    """
    modules, places = holders_of(model)
    made: dict[int, tuple[Tensor, Tensor]] = {}
    for module in modules:
        for own in module._parameters.values():
            stand_in = None if own is None or id(own) in made else _stand_in_of(own)
            if own is not None and stand_in is not None:
                made[id(own)] = own, stand_in
    exchanged: list[tuple[Any, Any, Tensor, Tensor]] = []
    try:
        for place in places:
            for key, value in _items_of(place):
                if id(value) in made:
                    parameter, stand_in = made[id(value)]
                    exchanged.append((place, key, parameter, stand_in))
                    _put(place, key, stand_in)
        for parameter, _ in made.values():
            parameter.requires_grad_(False)
        yield
    finally:
        with contextlib.ExitStack() as stack:
            for parameter, _ in made.values():
                stack.callback(parameter.requires_grad_)
            for one in exchanged:
                stack.callback(_put_back, *one)


def _stand_in_of(parameter: Tensor) -> Tensor | None:
    """None for one that has no gradient, or is of a class that cannot be copied so."""
    if is_lazy(parameter) or not parameter.requires_grad or not parameter.is_leaf:
        return None
    try:
        alias = parameter.detach()
        if type(alias) is not type(parameter):
            alias = alias.as_subclass(type(parameter))
        alias.requires_grad_()
        vars(alias).update(vars(parameter))
    except Exception:
        return None
    return alias


def _items_of(place: Any) -> list[tuple[Any, Any]]:
    """What a dict or a list holds, by its keys."""
    if isinstance(place, dict):
        return list(place.items())
    return list(enumerate(place)) if isinstance(place, list) else []


def _put(place: Any, key: Any, value: Tensor) -> None:
    (dict if isinstance(place, dict) else list).__setitem__(place, key, value)


def _put_back(place: Any, key: Any, parameter: Tensor, stand_in: Tensor) -> None:
    """Unless there is something else by now."""
    with contextlib.suppress(LookupError):
        if place[key] is stand_in:
            _put(place, key, parameter)
