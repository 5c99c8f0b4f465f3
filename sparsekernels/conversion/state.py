"""What a model keeps beside its parameters, at any depth: whether it has changed, and how it is put back."""

from __future__ import annotations

import contextlib
import sys
import types
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .generators import Generators

KEPT_BY_TORCH = frozenset(vars(torch.nn.Module()))
"""What every module has: modes and hooks are looked at, parameters and children have their places."""


CONVERSION = "_sparsekernels_conversion"
"""The attribute in which a model keeps what undoes its conversion."""

_STAYS = frozenset({"forward", CONVERSION})
"""The attributes that a conversion leaves behind."""

_MOST = 5000
"""Things that are looked at in each call: a model that holds more is no model's own state (a trainer, a data set)."""

_LARGEST_ARRAY = 1 << 16
"""Bytes of a numpy array whose content is looked at."""

_OPAQUE = (nn.Module, type, types.ModuleType, types.FunctionType, types.MethodType, types.BuiltinFunctionType)
_OWNERS = frozenset({"torch", "sparsekernels", "builtins", "threading", "logging", "numpy", "random", "weakref"})
"""Packages whose objects are looked at as a whole: their attributes are their own business."""


class TooMuch(Exception):
    """There is more than can be looked at in each call."""


@dataclass(frozen=True)
class Held:
    """A thing that can change without being another: a list, a dict, a set, a tensor, an object with attributes.

    content   what it held, as `_content_of` gives it
    copy      of a tensor's elements, where they are to be put back
    """

    value: Any
    content: Any
    copy: Tensor | None = None

    def changed(self) -> bool:
        """Whether it holds other objects than it did, or a tensor other elements."""
        now = _content_of(self.value)
        if isinstance(self.value, dict):  # the order counts as well
            return list(now) != list(self.content) or any(now[key] is not self.content[key] for key in now)
        if isinstance(now, dict):
            return now.keys() != self.content.keys() or any(now[key] is not self.content[key] for key in now)
        if isinstance(now, list):
            pairs = zip(now, self.content, strict=False)
            return len(now) != len(self.content) or any(one is not other for one, other in pairs)
        return bool(now != self.content)

    def put_back(self) -> None:
        """Make it hold what it held. A tensor is the same but for its version."""
        value, content = self.value, self.content
        if isinstance(value, Tensor):
            if self.copy is not None and value.shape == self.copy.shape:
                with torch.no_grad(), torch.inference_mode(value.is_inference()):
                    value.copy_(self.copy)
        elif isinstance(value, list | deque):
            value.clear()
            value.extend(content)
        elif isinstance(value, dict | set):
            value.clear()
            value.update(content)
        elif isinstance(content, bytes):
            value[...] = sys.modules["numpy"].frombuffer(content, value.dtype).reshape(value.shape)
        elif isinstance(content, dict):
            for name in _attributes_of(value).keys() - content.keys():
                object.__delattr__(value, name)
            for name, one in content.items():
                object.__setattr__(value, name, one)


def held_by(values: Iterable[Any], copies: bool = False) -> list[Held]:
    """Whatever can change of what `values` hold, at any depth; save for modules and what others have made of objects.

    copies: whether elements of tensors are kept, to be put back. Raises `TooMuch`.
    """
    found: list[Held] = []
    seen: set[int] = set()
    left = list(values)
    while left:
        value = left.pop()
        if id(value) in seen:
            continue
        if isinstance(value, tuple | frozenset):
            left.extend(value)
            continue
        content = _content_of(value)
        if content is None:
            continue
        seen.add(id(value))
        keep = copies and isinstance(value, Tensor) and not isinstance(value, nn.Parameter)
        found.append(Held(value, content, value.detach().clone() if keep else None))
        if len(found) > _MOST:
            raise TooMuch("its attributes hold more than can be looked at in each call")
        if isinstance(content, dict):
            left.extend(content.values())
        elif isinstance(content, list | set):
            left.extend(content)
    return found


def _content_of(value: Any) -> Any:
    """What `value` holds: a list, a dict, a set; a tensor's address and version; an array's bytes; None for what cannot
    change or is not looked into."""
    if isinstance(value, Tensor):
        return _stamp_of(value)
    if isinstance(value, dict):
        return dict(value)
    if isinstance(value, list | deque):
        return list(value)
    if isinstance(value, set):
        return set(value)
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.ndarray):
        return value.tobytes() if value.nbytes <= _LARGEST_ARRAY and not value.dtype.hasobject else None
    if isinstance(value, _OPAQUE) or type(value).__module__.partition(".")[0] in _OWNERS:
        return None
    return _attributes_of(value) if hasattr(value, "__dict__") or _slots_of(type(value)) else None


def _attributes_of(value: Any) -> dict[str, Any]:
    """Those in its dict and in its slots."""
    found = dict(getattr(value, "__dict__", None) or {})
    for name in _slots_of(type(value)):
        with contextlib.suppress(AttributeError):
            found[name] = object.__getattribute__(value, name)
    return found


def _slots_of(kind: type) -> tuple[str, ...]:
    found: list[str] = []
    for one in kind.__mro__:
        slots = vars(one).get("__slots__", ())
        found += [slots] if isinstance(slots, str) else slots
    return tuple(name for name in found if name not in ("__dict__", "__weakref__"))


def _stamp_of(tensor: Tensor) -> tuple[Any, ...] | None:
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided:
        return None
    return (None if tensor.is_inference() else tensor._version, tensor.data_ptr(), tensor.shape)


class State:
    """The attributes of modules, and whatever these hold at any depth.

    without: names of attributes that are not looked at. Scripted modules are their own business. Where they hold too
    much, `is_whole` is False, and only the attributes themselves are looked at.
    """

    def __init__(self, modules: Iterable[nn.Module], without: Collection[str] = ()) -> None:
        own = [module for module in modules if not isinstance(module, torch.jit.ScriptModule)]
        self._without = without
        self._attributes = [(module, self._attributes_of(module)) for module in own]
        self.is_whole = True
        try:
            self._held = held_by([one for _, attributes in self._attributes for one in attributes.values()], True)
        except TooMuch:
            self._held, self.is_whole = [], False

    def _attributes_of(self, module: nn.Module) -> dict[str, Any]:
        return {name: value for name, value in vars(module).items() if name not in self._without}

    def put_back(self) -> bool:
        """Restore it all; whether anything had changed."""
        changed = False
        for module, attributes in self._attributes:
            now, kept = vars(module), self._attributes_of(module)
            if kept.keys() != attributes.keys() or any(kept[name] is not attributes[name] for name in kept):
                changed = True
                for name in kept.keys() - attributes.keys():
                    del now[name]
                now.update(attributes)
        for held in self._held:
            if held.changed():
                changed = True
                held.put_back()
        return changed


@contextlib.contextmanager
def unchanged(model: torch.nn.Module) -> Iterator[None]:
    """What runs inside leaves no trace: not in buffers (running statistics), attributes, gradients, random numbers.

    Save for the attributes that a conversion leaves behind.
    """
    modules = list(model.modules())
    state = State(modules, KEPT_BY_TORCH | _STAYS)
    places = [(module, dict(module._buffers)) for module in modules if not isinstance(module, torch.jit.ScriptModule)]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    generators = Generators(model)
    for parameter, _ in gradients:
        parameter.grad = None
    with torch.random.fork_rng():
        try:
            yield
        finally:
            state.put_back()
            for module, place in places:
                module._buffers.update(place)
            with torch.no_grad():
                for buffer, kept in buffers:
                    if not torch.equal(buffer, kept):
                        buffer.copy_(kept)
            for parameter, gradient in gradients:
                parameter.grad = gradient
            generators.put_back()
