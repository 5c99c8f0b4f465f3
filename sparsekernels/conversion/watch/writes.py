# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What a model's code writes to its parameters, and how it is put back without copies of all of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from typing import Any

import torch
from torch import Tensor, nn

from ..._torch import FakeTensor, tree_leaves, written_arguments
from ...ops.fingerprint.op import fingerprint
from ..modules import is_ordinary
from .copies import copy_of, is_lazy, write_back
from .state import holders_of
from .watching_mode import WatchingMode


class Memory:
    """Where the elements of tensors are: `tensor.data = other` is undone."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._kept: list[tuple[Tensor, Tensor]] = []
        for tensor in tensors:
            with contextlib.suppress(Exception):  # a class of a user's
                if not is_lazy(tensor):
                    self._kept.append((tensor, tensor.data))

    def put_back(self, among: AbstractSet[int] | None = None) -> bool:
        """Whether any were elsewhere. among: only those that are in such memory now, see `memory_of`."""
        changed = False
        for tensor, own in self._kept:
            with contextlib.suppress(Exception):
                is_elsewhere = _place_of(tensor) != _place_of(own)
                if is_elsewhere and (among is None or memory_of(tensor) in among):
                    tensor.data = own
                    changed = True
        return changed


def _place_of(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device


class _Mode(WatchingMode):
    """Tells of each tensor that an operator is about to write to."""

    supports_higher_order_operators = True

    def __init__(self, writes: Writes) -> None:
        super().__init__()
        self._writes = writes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for value in written_arguments(func, args, kwargs):
            self._writes.note(value)
        result = func(*args, **kwargs)
        self._writes.note_made(result)
        return result


class Writes:
    """The parameters of a model that its code writes to where it is watched; and buffers, where these are asked for.

    Each is copied just before an operator first writes to its memory, under whatever name: only those that are written
    to take memory twice. What is written by other means (numpy, code that is compiled) or where nobody watches (in a
    backward pass) is seen when all is put back, by the content, on other devices by the version: these writes stay,
    those of one pass as a rule, and `unseen` has the names.

    buffers: whether these are watched too. alone: whether nobody else exchanges the memory of tensors meanwhile, as
    another thread may in a call: else only what is in memory that watched operators gave is put back where it was.
    """

    def __init__(self, model: nn.Module, buffers: bool = False, alone: bool = True) -> None:
        self.unseen: list[str] = []
        self._made: set[int] | None = None if alone else set()
        """The memory of what watched operators gave, where it counts."""
        self._has_moved = False
        self._names = _parameters_of(model)
        tensors = [*self._names, *(model.buffers() if buffers else ())]
        self._memory = Memory(tensors)
        self._kept: dict[int, tuple[Tensor, Tensor | None]] = {}
        self._sharing: dict[int, list[Tensor]] = {}
        for tensor in tensors:
            self._sharing.setdefault(memory_of(tensor), []).append(tensor)
        self._contents = {id(one): _content_of(one) for one in self._names}

    @property
    def are_any(self) -> bool:
        """Whether something was written to one of them."""
        return bool(self._kept) or self._has_moved

    def note(self, written: Tensor) -> None:
        """Called before an operator writes to a tensor."""
        for tensor in self._sharing.get(memory_of(written), ()):
            if id(tensor) not in self._kept:
                self._keep(tensor)

    def note_made(self, result: Any) -> None:
        """Called with what an operator gave."""
        if self._made is not None:
            self._made.update(memory_of(one) for one in tree_leaves(result) if isinstance(one, Tensor))

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Inside, writes are seen; afterwards, tensors hold what they held."""
        try:
            with _Mode(self):
                yield
        finally:
            self.put_back()

    def put_back(self) -> None:
        """All hold what they held, where they held it, or what was first seen of them. Versions may be higher."""
        self._has_moved |= self._memory.put_back(self._made)
        for tensor, kept in self._kept.values():
            write_back(tensor, kept)
        for parameter, name in self._names.items():
            if id(parameter) not in self._kept and _content_of(parameter) != self._contents[id(parameter)]:
                self.unseen.append(name)
                self._keep(parameter)

    def _keep(self, tensor: Tensor) -> None:
        with torch.inference_mode(False):
            self._kept[id(tensor)] = tensor, copy_of(tensor)


def _parameters_of(model: nn.Module) -> dict[Tensor, str]:
    """With their names; those of modules and lists in attributes included."""
    named: dict[Tensor, str] = {}
    modules, held = holders_of(model)
    for module in modules:
        held += module._parameters.values()
    for name, parameter in model.named_parameters():
        named[parameter] = name
    for value in held:
        if isinstance(value, nn.Parameter):
            named.setdefault(value, "a parameter in an attribute")
    return {parameter: name for parameter, name in named.items() if not is_lazy(parameter)}


def memory_of(tensor: Tensor) -> int:
    """What tensors that share memory have in common: the address of that. A wrapper has none, and is itself."""
    address = 0
    if not isinstance(tensor, FakeTensor):
        with contextlib.suppress(Exception):
            address = tensor.untyped_storage().data_ptr()
    return address or id(tensor)


def _content_of(tensor: Tensor) -> object:
    """What is another after a write; None where nothing tells."""
    with contextlib.suppress(Exception):
        if is_ordinary(tensor) and tensor.is_cpu:
            return fingerprint([tensor.detach()]).value(True)
        return tensor._version
    return None
