"""What a model keeps beside its parameters, and how it is put back."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Collection, Iterator
from typing import Any

import torch

KEPT_BY_TORCH = frozenset(vars(torch.nn.Module()))
"""What every module has: modes and hooks are looked at, parameters and children have their places."""


CONVERSION = "_sparsekernels_conversion"
"""The attribute in which a model keeps what undoes its conversion."""

_STAYS = frozenset({"forward", CONVERSION})
"""The attributes that a conversion leaves behind."""

State = dict[str, tuple[Any, Any]]


def state_of(module: torch.nn.Module, without: Collection[str] = ()) -> State:
    """Every attribute, and a copy of what it holds where that is a list, a dict or a set."""
    return {
        name: (value, copy.copy(value) if isinstance(value, list | dict | set) else None)
        for name, value in vars(module).items()
        if name not in without
    }


def put_back(module: torch.nn.Module, state: State, without: Collection[str] = ()) -> bool:
    """Restore attributes and what they held; whether anything had changed."""
    attributes, changed = vars(module), False
    for name in [name for name in attributes if name not in state and name not in without]:
        del attributes[name]
        changed = True
    for name, (value, held) in state.items():
        if attributes.get(name, state) is not value:
            attributes[name] = value
            changed = True
        if held is not None and not holds(value, held):
            value.clear()
            value.extend(held) if isinstance(value, list) else value.update(held)
            changed = True
    return changed


def holds(value: Any, held: Any) -> bool:
    """Whether a list, a dict or a set holds the very objects that its copy does."""
    if len(value) != len(held):
        return False
    if isinstance(value, dict):
        return list(value) == list(held) and all(value[key] is held[key] for key in held)
    if isinstance(value, set):
        return bool(value == held)
    return all(one is other for one, other in zip(value, held, strict=True))


@contextlib.contextmanager
def unchanged(model: torch.nn.Module) -> Iterator[None]:
    """What runs inside leaves no trace: not in buffers (running statistics), attributes, gradients, random numbers.

    Save for the attributes that a conversion leaves behind.
    """
    without = KEPT_BY_TORCH | _STAYS
    own = [module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]
    states = [(module, state_of(module, without), dict(module._buffers)) for module in own]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    for parameter, _ in gradients:
        parameter.grad = None
    with torch.random.fork_rng():
        try:
            yield
        finally:
            for module, state, places in states:
                put_back(module, state, without)
                module._buffers.update(places)
            with torch.no_grad():
                for buffer, kept in buffers:
                    if not torch.equal(buffer, kept):
                        buffer.copy_(kept)
            for parameter, gradient in gradients:
                parameter.grad = gradient
