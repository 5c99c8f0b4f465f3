# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What a model keeps beside its parameters, at any depth: whether it has changed, and how it is put back."""

from __future__ import annotations

import array
import contextlib
import operator
import sys
import types
from collections import OrderedDict, deque
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from ...ops.fingerprint.op import fingerprint
from ..modules import GRAPH
from .copies import are_equal, copy_of, is_lazy, write_back
from .generators import is_generator

KEPT_BY_TORCH = frozenset(vars(torch.nn.Module()))
"""What every module has: modes and hooks are looked at, parameters and children have their places."""


CONVERSION = "_sparsekernels_conversion"
"""The attribute in which a model keeps what undoes its conversion."""

STAYS = frozenset({"forward", GRAPH, CONVERSION})
"""The attributes that a conversion leaves behind."""

_MOST = 20_000
"""Elements that are looked at in each call: a model that holds more keeps other things there than settings."""

_LARGEST_TENSOR = 1 << 20
"""Bytes of a tensor among attributes whose content is looked at."""

LARGEST_ARRAY = 1 << 16
"""Bytes of a numpy array whose content is looked at."""

_OPAQUE = (type, types.ModuleType, types.FunctionType, types.MethodType, types.BuiltinFunctionType)
_OWNERS = frozenset({"torch", "sparsekernels", "builtins", "threading", "logging", "numpy", "random", "weakref"})
"""Packages whose objects are looked at as a whole: their attributes are their own business."""

_VALUES = (bool, int, float, complex, str, bytes)


class TooMuch(Exception):
    """There is more than can be looked at in each call."""


def is_same(value: Any, other: Any) -> bool:
    """Whether two values are one object, or plain values between which no code can tell."""
    if value is other:
        return True
    if type(value) is not type(other) or type(value) not in _VALUES:
        return False
    return bool(value == other) and repr(value) == repr(other)  # zeros have a sign


@dataclass(frozen=True)
class Held:
    """A thing that can change without being another: a list, a dict, a set, a tensor, an object with attributes.

    items       what it held: a list, a dict or a set; of an array its bytes, of a tensor version and address; or None
    attributes  what it has beside, or None
    copy        of a tensor's elements, where they are to be put back
    """

    value: Any
    items: Any
    attributes: dict[str, Any] | None
    copy: Tensor | None = None

    def changed(self) -> bool:
        """Whether it holds other things than it did, or has other attributes."""
        value, items = self.value, self.items
        try:
            if self.attributes is not None and not same_dicts(attributes_of(value), self.attributes):
                return True
            if isinstance(items, dict):
                return not same_dicts(value, items) or any(map(operator.ne, value, items))
            if isinstance(items, list):
                return len(value) != len(items) or not all(map(is_same, _elements(value), items))
            if items is None:
                return self.copy is not None and not are_equal(value, self.copy)
            return bool(items_of(value) != items)
        except Exception:  # by the `==` of a class that is not ours
            return True

    def put_back(self) -> None:
        """Make it hold what it held; a tensor has another version then. By the means of Python's own classes: those of
        the user's may do anything."""
        value, items = self.value, self.items
        if isinstance(items, dict):
            base: Any = OrderedDict if isinstance(value, OrderedDict) else dict
            base.clear(value)
            for key, item in items.items():
                base.__setitem__(value, key, item)
        elif isinstance(items, list) and isinstance(value, deque):
            deque.clear(value)
            deque.extend(value, items)
        elif isinstance(items, list):
            list.__setitem__(value, slice(None), items)
        elif isinstance(items, set):
            set.clear(value)
            set.update(value, items)
        elif isinstance(items, bytes) and isinstance(value, bytearray | array.array):
            del value[:]
            value.extend(items) if isinstance(value, bytearray) else value.frombytes(items)
        elif isinstance(items, bytes) and items:
            value[...] = sys.modules["numpy"].frombuffer(items, value.dtype).reshape(value.shape)
        elif self.copy is not None:
            write_back(value, self.copy)
        if self.attributes is not None:
            self._put_back_attributes(self.attributes)

    def _put_back_attributes(self, attributes: dict[str, Any]) -> None:
        now, slots = attributes_of(self.value), dict(_slots_of(type(self.value)))
        for name in now.keys() | attributes.keys():
            if name in now and name in attributes and now[name] is attributes[name]:
                continue
            if name in slots and name in attributes:
                slots[name].__set__(self.value, attributes[name])
            elif name in slots:
                slots[name].__delete__(self.value)
            elif name in attributes:
                self.value.__dict__[name] = attributes[name]
            else:
                del self.value.__dict__[name]


def put_back(held: Iterable[Held]) -> bool:
    """Restore all that can be restored. Returns whether anything had changed."""
    changed = False
    for one in held:
        if one.changed():
            changed = True
            with contextlib.suppress(Exception):
                one.put_back()
    return changed


def same_dicts(now: dict[Any, Any], then: dict[Any, Any]) -> bool:
    """Whether two dicts with the same keys in the same order hold the same."""
    if len(now) != len(then) or now.keys() != then.keys():
        return False
    if type(now).__getitem__ is dict.__getitem__:
        return all(is_same(now[key], then[key]) for key in then)
    return all(is_same(dict.__getitem__(now, key), then[key]) for key in then)


def _elements(value: Any) -> Iterator[Any]:
    """Of a list or deque, whatever a class of the user's gives in their place."""
    return list.__iter__(value) if isinstance(value, list) else deque.__iter__(value)


def held_by(
    values: Iterable[Any], registered: Collection[int], copies: bool = False, generators: list[Any] | None = None
) -> list[Held]:
    """All mutable objects reachable from `values`, except inside objects of the packages in `_OWNERS`.

    registered: ids of modules that are compared elsewhere. copies: whether to copy the elements of tensors, so that
    they can be restored. generators: where random number generators go. Raises `TooMuch`.
    """
    held: list[Held] = []
    seen: set[int] = set(registered)
    left, count = list(values), 0
    while left:
        value = left.pop()
        if id(value) in seen:
            continue
        if generators is not None and is_generator(value):
            generators.append(value)
        if isinstance(value, tuple | frozenset):
            left.extend(value)
            count += len(value)
        else:
            items, attributes = items_of(value), attributes_or_none(value)
            keep = copies and isinstance(value, Tensor) and not isinstance(value, nn.Parameter)
            if items is None and attributes is None and not keep:
                continue
            seen.add(id(value))
            held.append(Held(value, items, attributes, copy_of(value) if keep else None))
            for inner in (items, attributes):
                if isinstance(inner, dict):
                    left.extend(inner.values())
                elif isinstance(inner, list | set):
                    left.extend(inner)
            count += 1 + sum(len(inner) for inner in (items, attributes) if isinstance(inner, dict | list | set))
            count += len(items) // 64 if isinstance(items, bytes) else 0
        if count > _MOST:
            raise TooMuch
    return held


def items_of(value: Any) -> Any:
    """What a container holds, or a tensor's version and address, or the bytes of an array; None for anything else.

    By the means of Python's own classes: `__getitem__` of a user's may make something new each time.
    """
    if isinstance(value, Tensor):
        return stamp_of(value)
    if isinstance(value, dict):
        ordered: Any = OrderedDict if isinstance(value, OrderedDict) else dict
        return {key: dict.__getitem__(value, key) for key in ordered.__iter__(value)}
    if isinstance(value, list | deque):
        return list(_elements(value))
    if isinstance(value, set):
        return set(value)
    if isinstance(value, bytearray | array.array):
        return bytes(value) if memoryview(value).nbytes <= LARGEST_ARRAY else None
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.ndarray):
        return value.tobytes() if value.nbytes <= LARGEST_ARRAY and not value.dtype.hasobject else None
    return None


def attributes_or_none(value: Any) -> dict[str, Any] | None:
    """Of an object that is looked into; None for others."""
    if not isinstance(value, nn.Module):
        if isinstance(value, (*_OPAQUE, Tensor)) or type(value).__module__.partition(".")[0] in _OWNERS:
            return None
        if not hasattr(value, "__dict__") and not _slots_of(type(value)):
            return None
    return attributes_of(value)


def attributes_of(value: Any) -> dict[str, Any]:
    """What an object has in its dict and in its slots; of a module, what torch did not put there."""
    if isinstance(value, nn.Module):
        return {name: attribute for name, attribute in vars(value).items() if name not in KEPT_BY_TORCH | STAYS}
    attributes = dict(getattr(value, "__dict__", {}))
    for name, slot in _slots_of(type(value)):
        with contextlib.suppress(AttributeError):  # it is empty
            attributes[name] = slot.__get__(value)
    return attributes


def _slots_of(kind: type) -> list[tuple[str, Any]]:
    """By name, as the class keeps them."""
    return [
        (name, slot)
        for base in kind.__mro__
        if base.__module__ != "builtins"
        for name, slot in vars(base).items()
        if isinstance(slot, types.MemberDescriptorType)
    ]


def stamp_of(tensor: Tensor) -> tuple[Any, ...] | None:
    """What tells that something was written to a tensor, as far as versions do; None where nothing does."""
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided or tensor.is_nested:
        return None
    if tensor.is_inference():  # no version counts what is written to it
        return None
    stamp = (tensor._version, tensor.data_ptr(), tensor.shape, tensor.stride())
    if not tensor.is_cpu or isinstance(tensor, nn.Parameter) or tensor.nbytes > _LARGEST_TENSOR:
        return stamp
    return (*stamp, fingerprint([tensor.detach()]).value(True))


class State:
    """The attributes of modules and of their parameters and buffers, and whatever these hold at any depth.

    without: names of attributes that are not looked at. Scripted modules are skipped, and lazy ones, of which their
    first call makes something else. Where they hold too much, `is_whole` is False, and only the attributes themselves
    are looked at. generators: of random numbers, which are among what they hold, and are not compared.
    """

    def __init__(self, modules: Iterable[nn.Module], without: Collection[str] = ()) -> None:
        own = [module for module in modules if is_looked_into(module)]
        self._without = without
        self._attributes = [(module, self._attributes_of(module)) for module in own]
        self._held = [  # their dicts of parameters, hooks and the like
            Held(value, dict(value), None)
            for _, attributes in self._attributes
            for name, value in attributes.items()
            if name in KEPT_BY_TORCH and isinstance(value, dict)
        ]
        values = [
            value
            for _, attributes in self._attributes
            for name, value in attributes.items()
            if name not in KEPT_BY_TORCH
        ]
        tensors = [
            tensor for module in own for place in (module._parameters, module._buffers) for tensor in place.values()
        ]
        for attributes in (vars(tensor) for tensor in tensors if tensor is not None):
            self._held.append(Held(attributes, dict(attributes), None))
            values += [value for value in attributes.values() if not isinstance(value, Tensor)]  # as large as these
        self.generators = [value for value in values if is_generator(value)]
        self.is_whole = True
        try:
            self._held += held_by(values, {id(module) for module in own}, copies=True, generators=self.generators)
        except TooMuch:
            self.is_whole = False

    def holds(self, value: object) -> bool:
        """Whether it is a list, a dict or the like that the modules hold."""
        return any(held.value is value for held in self._held)

    def parameters(self) -> Iterator[Tensor]:
        """Leaves of autograd among what the modules hold, those of unregistered modules included."""
        for held in self._held:
            if isinstance(held.value, Tensor) and held.value.requires_grad and held.value.is_leaf:
                yield held.value
            elif isinstance(held.value, nn.Module):
                yield from held.value.parameters()

    def _attributes_of(self, module: nn.Module) -> dict[str, Any]:
        return {name: value for name, value in vars(module).items() if name not in self._without}

    def changed(self) -> bool:
        """Whether anything has changed, or there was too much to compare."""
        if not self.is_whole or any(held.changed() for held in self._held):
            return True
        return not all(same_dicts(self._attributes_of(module), attributes) for module, attributes in self._attributes)

    def effects(self) -> Iterator[object]:
        """The places that have changed: the same for a module and for what was put into its place."""
        for index, (module, attributes) in enumerate(self._attributes):
            yield from ((index, name) for name in self._changed_in(module, attributes))
        yield from (id(held.value) for held in self._held if held.changed())

    def changes(self) -> Iterator[object]:
        """The ids of modules with the names of attributes of theirs that have changed, and of changed containers."""
        for module, attributes in self._attributes:
            yield from ((id(module), name) for name in self._changed_in(module, attributes))
        yield from (id(held.value) for held in self._held if held.changed())

    def _changed_in(self, module: nn.Module, attributes: dict[str, Any]) -> Iterator[str]:
        now = self._attributes_of(module)
        for name in now.keys() | attributes.keys():
            if name not in now or name not in attributes or not is_same(now[name], attributes[name]):
                yield name

    def put_back(self) -> bool:
        """Restore everything that can be written (not a read-only array). Returns whether anything had changed."""
        changed = False
        for module, attributes in self._attributes:
            now, kept = vars(module), self._attributes_of(module)
            if not same_dicts(kept, attributes):
                changed = True
                for name in kept.keys() - attributes.keys():
                    del now[name]
                now.update(attributes)
        return put_back(self._held) or changed


def holders_of(model: nn.Module) -> tuple[list[nn.Module], list[Any]]:
    """The modules of `model`, those in attributes included; and all lists, dicts and objects that they hold, and dicts
    of parameters and attributes."""
    modules = [module for module in model.modules() if is_looked_into(module)]
    ids = {id(module) for module in modules}
    with contextlib.suppress(TooMuch):
        held = [one.value for one in held_by((value for one in modules for value in attributes_of(one).values()), ids)]
        more = [one for value in held if isinstance(value, nn.Module) for one in value.modules() if is_looked_into(one)]
        modules += {id(one): one for one in more if id(one) not in ids}.values()
        dicts = [vars(value) for value in held if hasattr(value, "__dict__") and not isinstance(value, nn.Module)]
        return modules, [*held, *dicts, *map(vars, modules), *(module._parameters for module in modules)]
    return modules, [*map(vars, modules), *(module._parameters for module in modules)]


def is_looked_into(module: nn.Module) -> bool:
    """Whether its attributes can be put back: not those of a scripted module, nor of one that is still to be made."""
    if isinstance(module, LazyModuleMixin):
        return not any(map(is_lazy, (*module.parameters(recurse=False), *module.buffers(recurse=False))))
    return not isinstance(module, torch.jit.ScriptModule)
