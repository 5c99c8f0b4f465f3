# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What code may ask of its surroundings: states of torch, of the process and of the thread; globals and attributes of
classes; the time. And which functions of torch's make tensors of numbers."""

from __future__ import annotations

import datetime
import os
import random
import threading
import time
import types
from collections.abc import Callable, Collection, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..graph.attach import OWN_FORWARD
from .entries import Entry, Same
from .state import Held, TooMuch, held_by, is_same

Asked = tuple[Callable[[], Any], Any]
"""A function and what it gave: a graph serves calls in which it gives the same."""

Defaults = tuple[types.FunctionType, tuple[Any, ...] | None, dict[str, Any] | None]
"""A function and what its arguments are where they are left out: `__defaults__` and `__kwdefaults__`."""

_FUNCTIONS: tuple[Any, ...] = (
    torch.is_grad_enabled,
    torch.is_inference_mode_enabled,
    torch.get_default_dtype,
    torch.get_default_device,
    torch.get_num_interop_threads,
    torch.get_float32_matmul_precision,
    torch.are_deterministic_algorithms_enabled,
    torch.is_deterministic_algorithms_warn_only_enabled,
    torch.backends.mha.get_fastpath_enabled,
    os.getpid,
    os.getcwd,
    threading.get_ident,
    threading.get_native_id,
    threading.current_thread,
    threading.active_count,
)

STATES: dict[int, Callable[[], Any]] = {id(getattr(one, "__code__", one)): one for one in _FUNCTIONS}
"""Functions without arguments, by the id of what a profiler sees: the function, or its code if it is Python's."""

ENVIRON: types.CodeType = type(os.environ).__getitem__.__code__
"""What reads an environment variable."""

_CLOCKS = (
    "time",
    "time_ns",
    "monotonic",
    "monotonic_ns",
    "perf_counter",
    "perf_counter_ns",
    "process_time",
    "process_time_ns",
    "thread_time",
    "thread_time_ns",
    "clock_gettime",
    "clock_gettime_ns",
    "ctime",
    "localtime",
    "gmtime",
    "strftime",
    "asctime",
)
_TELLING = frozenset(id(getattr(time, name)) for name in _CLOCKS if hasattr(time, name)) | {id(os.urandom)}


_SEEDS = frozenset(
    id(one.__code__)
    for one in (torch.random.manual_seed, torch.random.set_rng_state, torch.random.seed, random.Random.seed)
)
_OF_GENERATORS = ("manual_seed", "seed", "set_state", "setstate")


def sets_seed(function: Any) -> bool:
    """Whether a call sets the state of a random number generator. function: a builtin function, or the code of one of
    Python's.
    """
    if isinstance(function, types.CodeType):
        return id(function) in _SEEDS
    owner = getattr(function, "__self__", None)
    return function.__name__ in _OF_GENERATORS and (
        isinstance(owner, torch.Generator | random.Random) or type(owner).__module__.startswith("numpy.random")
    )


def tells_time(function: Any) -> bool:
    """Whether a builtin function gives something else each time: the time, or random numbers of the system's."""
    if id(function) in _TELLING:
        return True
    owner = getattr(function, "__self__", None)
    names = ("now", "utcnow", "today")
    return isinstance(owner, type) and issubclass(owner, datetime.date) and function.__name__ in names


_RANDOM_FACTORIES = ("rand", "randn", "randint", "randperm", "normal")
FACTORIES = (
    *_RANDOM_FACTORIES,
    *("zeros", "ones", "full", "empty", "tensor", "as_tensor", "scalar_tensor", "arange", "linspace", "logspace"),
    *("eye", "tril_indices", "triu_indices", "from_numpy"),
    *("bartlett_window", "blackman_window", "hamming_window", "hann_window", "kaiser_window"),
)
"""Functions of torch that make tensors of numbers and sizes, by nothing else than these and random numbers."""

_FACTORIES = frozenset(id(getattr(torch, name)) for name in FACTORIES)


_DRAWING = frozenset(id(getattr(torch, name)) for name in _RANDOM_FACTORIES)


def makes_tensors(function: Any) -> bool:
    """Whether a builtin function is one of `FACTORIES`."""
    return id(function) in _FACTORIES


def draws(function: Any) -> bool:
    """Whether a builtin function draws random numbers, of those that are called so: numpy's are not."""
    return id(function) in _DRAWING or isinstance(getattr(function, "__self__", None), random.Random)


_CODE = (type, property, types.FunctionType, types.BuiltinFunctionType, types.ModuleType)
_STAY = (property, staticmethod, types.FunctionType)
"""Of which a class gives the same each time."""

_MOST_HELD, _MOST_ELEMENTS = 16, 256
"""Containers and objects that are looked into in each call, and what they hold: more are no settings."""


@dataclass(frozen=True)
class Beside:
    """What code read that is no part of the model. Asked in each call.

    globals, classes: values, functions and methods at their places and in their classes, by identity. asked: functions
    with what they gave, closures' variables among them. defaults: of arguments of functions. held: containers and
    objects among these values, which may change without being others. names: of attributes that code may have read.
    """

    globals: Same
    classes: Same
    asked: Sequence[Asked]
    defaults: Sequence[Defaults]
    held: Sequence[Held]
    names: AbstractSet[str]

    @classmethod
    def of(
        cls,
        entries: Iterable[Entry],
        kinds: Iterable[type],
        names: AbstractSet[str],
        asked: Sequence[Asked],
        functions: Iterable[types.FunctionType],
        registered: Collection[int],
        code: bool,
    ) -> Beside:
        """entries: globals that code names, at their places. kinds: classes of what it got at. names: of attributes
        that it reads. functions: those that it called. registered: ids of the modules of the model. code: whether
        methods and properties count."""
        defaults = [(one, one.__defaults__, one.__kwdefaults__) for one in functions]
        named = [(place, name, value) for _, _, place in defaults if place for name, value in place.items()]
        entries = [*entries, *named]
        classes, fresh = list[tuple[type, str, Any]](), list[Entry]()
        for kind in kinds:
            for base, name in _read_of(kind, names):
                value = vars(base)[name]
                if not code and (callable(value) or hasattr(value, "__get__")):
                    continue
                if isinstance(value, _STAY) or not hasattr(type(value), "__get__"):
                    classes.append((kind, name, getattr(kind, name)))
                else:  # a class method, which is bound anew each time, or code of a user's
                    fresh.append((vars(base), name, value))  # type: ignore[arg-type]
        values = [value for _, _, value in (*entries, *classes)] + [value for _, value in asked]
        values += [value for _, given, _ in defaults for value in given or ()]
        values = [value for value in values if not isinstance(value, (*_CODE, nn.Module))]
        held = [one for value in values for one in _held_by(value, registered)]
        held = list({id(one.value): one for one in held}.values())
        return cls(Same([*entries, *fresh]), Same(classes, getattr), asked, defaults, held, names)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to look at."""
        return not (self.globals.is_any or self.classes.is_any or self.asked or self.defaults or self.held)

    def holds(self) -> bool:
        return (
            self.globals.holds()
            and self.classes.holds()
            and all(is_same(read(), value) for read, value in self.asked)
            and all(one.__defaults__ is given and one.__kwdefaults__ is named for one, given, named in self.defaults)
            and not any(held.changed() for held in self.held)
        )


def _held_by(value: Any, registered: Collection[int]) -> list[Held]:
    """What can change in a value, if that is little; not what modules have."""
    try:
        held = held_by([value], registered)
    except TooMuch:
        return []
    elements = sum(len(one.items or ()) + len(one.attributes or ()) for one in held)
    is_much = len(held) > _MOST_HELD or elements > _MOST_ELEMENTS
    return [] if is_much else [one for one in held if not isinstance(one.value, nn.Module)]


def _read_of(kind: type, names: AbstractSet[str]) -> Iterable[tuple[type, str]]:
    """The attributes of a class with these names, methods and properties as well, and none of torch's: in which class
    they are."""
    if type(kind).__getattribute__ is not type.__getattribute__:
        return
    found: set[str] = set()
    for base in kind.__mro__:
        for name in (vars(base).keys() & names) - found:
            found.add(name)
            # a class that is made for a graph has a `forward` that runs it
            if not base.__module__.startswith("torch.") and not (name == "forward" and OWN_FORWARD in vars(base)):
                yield base, name
