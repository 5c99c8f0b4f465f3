# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""How a graph is called: with the tensors that it reads, and with what else was given when it was traced."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..facts import GraphObstacle
from ..survey import Call, Given
from ..watch.state import is_same
from .attach import own_class
from .untraceable import Untraceable

_MODES = (type(None), bool, str, torch.dtype, torch.device, torch.memory_format)
"""Classes of arguments for one of which a graph can be made: numbers may be others in each call."""

_MISSING = object()


@dataclass(frozen=True)
class Leaf:
    """In the place of a tensor: the name of what a graph reads there."""

    name: str


@dataclass(frozen=True)
class Arguments:
    """How a graph is called.

    args, kwargs  what it was traced with: a `Leaf` in the place of each tensor, also in tuples, lists and dicts; what
                  is one tensor in several places is one leaf
    positions     names of the arguments of `forward` that may be given by position, in order
    unnamed       those of these that may not be given by name
    declared      names of the others that it has; what else is given by name is in its `**kwargs`, in that order
    defaults      what arguments are where they are left out
    given         the tensors that it was traced for, by the names of leaves; empty where none were known
    read          all names of leaves, in the order of the graph
    whole         for each of these, whether that is no floating number: indices or a mask
    is_wrapped    whether a decorator stands before `forward`: then what is given by name is to be so again, in that
                  order
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    positions: tuple[str, ...]
    unnamed: frozenset[str]
    declared: frozenset[str]
    defaults: Mapping[str, Any]
    given: Mapping[str, Given]
    read: tuple[str, ...]
    is_wrapped: bool
    whole: tuple[bool, ...] = field(init=False)
    _named: Mapping[str, Any] = field(init=False)
    _others: list[str] = field(init=False)
    _is_plain: bool = field(init=False)

    def __post_init__(self) -> None:
        named = {**dict(zip(self.positions, self.args, strict=False)), **self.kwargs}
        plain = all(type(one) is Leaf for one in named.values()) and self.positions[: len(self.read)] == tuple(named)
        whole = [name in self.given and not _is_number(self.given[name].dtype) for name in self.read]
        object.__setattr__(self, "whole", tuple(whole))
        object.__setattr__(self, "_named", named)
        object.__setattr__(self, "_others", [name for name in self.kwargs if name not in self.declared])
        object.__setattr__(self, "_is_plain", plain and not (self.is_wrapped and self.kwargs))

    @classmethod
    def of(cls, module: nn.Module, call: Call | None) -> Arguments:
        """Of a call that the graph is for; without one, of all arguments that have no default. Raises `Untraceable`."""
        own: Any = own_class(module)
        parameters = list(inspect.signature(own.forward, follow_wrapped=False).parameters.values())
        if parameters[0].kind is not inspect.Parameter.VAR_POSITIONAL:  # `self`
            del parameters[0]
        by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        positions = [one.name for one in parameters if one.kind in by_position]
        unnamed = {one.name for one in parameters if one.kind is inspect.Parameter.POSITIONAL_ONLY}
        may_be_named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        declared = {one.name for one in parameters if one.kind in may_be_named}
        variadic = [one.name for one in parameters if one.kind is inspect.Parameter.VAR_POSITIONAL]
        defaults = {one.name: one.default for one in parameters if one.default is not inspect.Parameter.empty}
        for name, default in defaults.items():
            if isinstance(default, Tensor):
                raise Untraceable(GraphObstacle.TENSOR_BY_DEFAULT, argument=name)
        names = _Names(positions, defaults)
        if call is None:
            needed = [one for one in parameters if one.default is inspect.Parameter.empty]
            args = tuple(names.leaf(one.name, None) for one in needed if one.kind in by_position)
            named = [one.name for one in needed if one.kind is inspect.Parameter.KEYWORD_ONLY]
            kwargs = {name: names.leaf(name, None) for name in named}
        else:
            if not unnamed.isdisjoint(call.kwargs):  # two arguments of one name
                raise Untraceable(GraphObstacle.OTHER_ARGUMENTS)
            if len(call.args) > len(positions):
                if not variadic:
                    raise Untraceable(GraphObstacle.OTHER_ARGUMENTS)
                positions += [f"*{variadic[0]}{place}" for place in range(len(positions), len(call.args))]
            args = tuple(names.argument(name, one) for name, one in zip(positions, call.args, strict=False))
            kwargs = {name: names.argument(name, one) for name, one in call.kwargs.items()}
        is_wrapped = hasattr(own.forward, "__wrapped__") or bool(variadic)
        return cls(
            args,
            kwargs,
            tuple(positions),
            frozenset(unnamed),
            frozenset(declared),
            defaults,
            names.given,
            tuple(names.leaves),
            is_wrapped,
        )

    def bound(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...] | None:
        """What the graph reads of a call; None for a call with something else than it was traced with."""
        if not kwargs and self._is_plain and len(args) == len(self.read):
            return args if _are_distinct(args) else None
        if len(args) > len(self.positions):
            return None
        if self.is_wrapped and (len(args) != len(self.args) or list(kwargs) != list(self.kwargs)):
            return None
        values = dict(zip(self.positions, args, strict=False))
        if not values.keys().isdisjoint(kwargs) or not self.unnamed.isdisjoint(kwargs):
            return None
        if [name for name in kwargs if name not in self.declared] != self._others:
            return None
        values.update(kwargs)
        found: dict[str, Any] = {}
        for name, template in self._named.items():
            if not _matches(values.pop(name, self.defaults.get(name, _MISSING)), template, found):
                return None
        if not all(is_same(value, self.defaults.get(name, _MISSING)) for name, value in values.items()):
            return None
        given = tuple([found[name] for name in self.read])
        return given if _are_distinct(given) else None

    def serves(self, call: Call, dtype: torch.dtype, device: torch.device) -> tuple[Given, ...] | None:
        """What a graph for tensors of that kind reads of such a call; None where it cannot run."""
        given = self.bound(call.args, call.kwargs)
        if given is None or any(not isinstance(one, Given) for one in given):
            return None
        return given if self.fit(given, dtype, device) else None

    def fit(self, given: tuple[Any, ...], dtype: torch.dtype, device: torch.device) -> bool:
        """Whether the graph is for tensors of these kinds: of the dtype, and whole numbers where there were such."""
        for one, whole in zip(given, self.whole, strict=True):
            if one.device != device or (_is_number(one.dtype) if whole else one.dtype is not dtype):
                return False
        return True


def first_served(module: nn.Module, calls: Sequence[Call]) -> Call | None:
    """The first of `calls` that a graph can be made for; where there is none, the first; None without any."""
    for call in calls:
        with contextlib.suppress(Untraceable):
            Arguments.of(module, call)
            return call
    return calls[0] if calls else None


def _are_distinct(given: tuple[Any, ...]) -> bool:
    """Whether no two are one tensor: code may look at that (`key is query`)."""
    return len(given) < 2 or len(set(map(id, given))) == len(given)


def _is_number(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point or dtype.is_complex


class _Names:
    """Gives leaves their names. taken: those of arguments, which leaves within a container do not have."""

    def __init__(self, taken: list[str], defaults: Mapping[str, Any]) -> None:
        self._taken, self._defaults = set(taken), defaults
        self.leaves: list[str] = []
        self._known: dict[int, Leaf] = {}
        self.given: dict[str, Given] = {}

    def leaf(self, name: str, given: Given | None) -> Leaf:
        while not name.isidentifier() or name in self.leaves:
            name = f"argument_{len(self.leaves)}" if not name.isidentifier() else f"{name}_"
        self.leaves.append(name)
        if given is not None:
            self.given[name] = given
        return Leaf(name)

    def argument(self, name: str, value: Any) -> Any:
        return value if is_same(value, self._defaults.get(name, _MISSING)) else self.template(name, value)

    def template(self, name: str, value: Any) -> Any:
        if isinstance(value, Given):
            if id(value) not in self._known:
                self._known[id(value)] = self.leaf(name, value)
            return self._known[id(value)]
        if type(value) in (tuple, list):
            return type(value)([self.template(self._within(name, place), one) for place, one in enumerate(value)])
        if type(value) is dict and all(type(key) in (str, int) for key in value):
            return {key: self.template(self._within(name, key), one) for key, one in value.items()}
        if type(value) in _MODES:
            return value
        if isinstance(value, Tensor):
            raise Untraceable(GraphObstacle.TENSOR_SUBCLASS, kind=type(value).__name__)
        raise Untraceable(GraphObstacle.OTHER_ARGUMENTS)

    def _within(self, name: str, key: object) -> str:
        inner = f"{name}_{key}"
        return f"{inner}_" if inner in self._taken else inner


def _matches(value: Any, template: Any, found: dict[str, Any]) -> bool:
    """Whether an argument is as it was; tensors go to `found`."""
    if type(template) is Leaf:
        return value is not _MISSING and found.setdefault(template.name, value) is value
    if type(template) in (tuple, list):
        if type(value) is not type(template) or len(value) != len(template):
            return False
        return all(_matches(one, other, found) for one, other in zip(value, template, strict=True))
    if type(template) is dict:
        if type(value) is not dict or not _are_alike(value, template):
            return False
        return all(_matches(value[key], other, found) for key, other in template.items())
    return is_same(value, template) or (type(template) is type(value) is torch.device and bool(value == template))


def _are_alike(keys: Collection[Any], others: Collection[Any]) -> bool:
    """Whether they are the same, in the same order; those of `others` are strings and numbers."""
    return len(keys) == len(others) and all(map(is_same, keys, others))


class Lent:
    """The arguments that code is traced with. Code that writes to a list or dict among them is no graph."""

    def __init__(self) -> None:
        self._containers: list[tuple[Any, list[Any]]] = []

    def made_of(self, arguments: Arguments, proxies: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """By position and by name, with `proxies` in the places of leaves, or whatever else is given by their names."""

        def made(template: Any) -> Any:
            if type(template) is Leaf:
                return proxies[template.name]
            if type(template) is tuple:
                return tuple([made(one) for one in template])
            if type(template) is list:
                return self._kept([made(one) for one in template])
            if type(template) is dict:
                return self._kept({key: made(one) for key, one in template.items()})
            return template

        return made(arguments.args), {name: made(one) for name, one in arguments.kwargs.items()}

    def _kept(self, container: Any) -> Any:
        self._containers.append((container, contents_of(container)))
        return container

    def holds(self, value: Any) -> bool:
        """Whether it is one of the containers."""
        return any(value is container for container, _ in self._containers)

    def changed(self) -> bool:
        """Whether one of the containers holds other things than it did."""
        return any(list(map(id, contents_of(value))) != list(map(id, held)) for value, held in self._containers)


def contents_of(value: Any) -> list[Any]:
    """Of a list, a tuple or a set; the keys and values of a dict."""
    return [*value, *value.values()] if isinstance(value, dict) else list(value)
