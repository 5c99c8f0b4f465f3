# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""All that runs of a model may change, and how it is put back."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator

import torch
from torch import Tensor, nn

from .copies import are_equal, copy_of, write_back
from .generators import Generators
from .state import STAYS, State, is_looked_into, same_dicts, stamp_of
from .writes import Memory

_REPLACED = frozenset({"_modules", "_parameters", "_buffers"})
"""Where a conversion exchanges layers, and where the first call of a model may put parameters of its own making."""


def leftovers(model: nn.Module) -> State:
    """The state of a model, but for what a conversion exchanges."""
    return State(model.modules(), STAYS | _REPLACED)


class Snapshot:
    """What runs of a model may change: gradients, buffers, attributes, random numbers, and what torch keeps
    of modules.

    Except for the attributes that `convert` adds. without: names of further attributes that do not count. Whatever
    tensors a model holds, nothing here raises on their account: what cannot be copied is not put back.
    """

    def __init__(self, model: nn.Module, without: Collection[str] = ()) -> None:
        modules = list(model.modules())
        self._state = State(modules, {*STAYS, *without})
        self._places = [(module, dict(module._buffers)) for module in modules if is_looked_into(module)]
        self._buffers = [(buffer, copy_of(buffer)) for buffer in model.buffers()]
        parameters = dict.fromkeys((*model.parameters(), *self._state.parameters()))
        self._memory = Memory([*parameters, *model.buffers()])
        leaves = [*parameters, *(buffer for buffer in model.buffers() if buffer.is_leaf)]
        self._gradients = [(one, one.grad, one.requires_grad) for one in leaves]
        self._stamps = [(one, stamp_of(one)) for one in parameters]
        self._generators = Generators(self._state.generators)

    def changed(self) -> bool:
        """Whether anything has changed, parameters included, or there was too much to compare."""
        if any(stamp_of(parameter) != stamp for parameter, stamp in self._stamps) or self._has_gradients():
            return True
        if not all(same_dicts(module._buffers, place) for module, place in self._places):
            return True
        if not all(kept is None or are_equal(buffer, kept) for buffer, kept in self._buffers):
            return True
        return self._generators.drawn() or self._state.changed()

    def has_left(self) -> bool:
        """Whether attributes have changed, or what they hold; or gradients."""
        return self._state.changed() or self._has_gradients()

    def effects(self) -> Iterator[object]:
        """The places of attributes, and of what they hold, that have changed."""
        return self._state.effects()

    def _has_gradients(self) -> bool:
        """Whether gradients are others than they were, or others are wanted."""
        leaves = [(one, gradient, wanted) for one, gradient, wanted in self._gradients if one.is_leaf]
        return any(one.grad is not gradient or one.requires_grad is not wanted for one, gradient, wanted in leaves)

    def clear_gradients(self) -> None:
        """There are none, until they are put back."""
        for tensor, _, _ in self._gradients:
            tensor.grad = None

    def put_back_gradients(self) -> None:
        """Gradients are what they were, and the same are wanted."""
        for tensor, gradient, wanted in self._gradients:
            _give_back(tensor, gradient, wanted)

    def put_back(self) -> None:
        """Restore everything, except the elements of parameters (see `Writes`), whatever becomes of other parts."""
        with contextlib.ExitStack() as parts:
            parts.callback(self._state.put_back)
            parts.callback(self._generators.put_back)
            for buffer, kept in self._buffers:
                parts.callback(write_back, buffer, kept)
            for module, place in self._places:
                parts.callback(module._buffers.update, place)
            parts.callback(self.put_back_gradients)
            parts.callback(self._memory.put_back)  # first: buffers are written where they were


def _give_back(tensor: Tensor, gradient: Tensor | None, wanted: bool) -> None:
    with contextlib.suppress(Exception):
        if not tensor.is_leaf:  # a buffer that was written to with gradients
            tensor.detach_()
        tensor.grad = gradient
        if tensor.requires_grad is not wanted:
            tensor.requires_grad_(wanted)


@contextlib.contextmanager
def unchanged(model: nn.Module) -> Iterator[Snapshot]:
    """Restores buffers (running statistics), attributes, gradients and random number generators afterwards.

    Except for the attributes that `convert` adds.
    """
    kept = Snapshot(model, _REPLACED)
    kept.clear_gradients()
    with torch.random.fork_rng():
        try:
            yield kept
        finally:
            kept.put_back()
