# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""How a graph hangs on a module: by a class of its own, whose `forward` runs the graph where that gives the same.
Norms that run as one operation hang there likewise.

    type(module)            a subclass of the module's class, under its name; made once for each class. `__class__` is
                            the module's own
    module.__dict__         has the recipe of the graph, which can be copied and pickled
    what was made of it     lives beside, for as long as the module does

So `module.forward` is a method of the module like any other, with the signature of its class. A copy that shares the
module's dict (`copy.copy`, the replicas of DataParallel) has no graph, since its parameters may be others; one that was
made with `copy.deepcopy` or by pickle makes a graph of its own. Nothing here keeps a module alive.
"""

from __future__ import annotations

import abc
import contextlib
import copyreg
import functools
import inspect
import os
import threading
import weakref
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import nn

from ...ops.fingerprint.op import swaps_tensors
from ..modules import GRAPH

NO_ANSWER = object()
"""In the place of a result: the modules have to run."""

ONE_AT_A_TIME = threading.RLock()
"""Held while a module is traced, since torch.fx patches `nn.Module.__call__` and we `isinstance`, and while constants
are folded anew."""

_LOCK = threading.RLock()
"""Of what is in this file. Who has it takes no other."""


def _lock() -> None:
    ONE_AT_A_TIME.acquire()
    _LOCK.acquire()


def _unlock() -> None:
    _LOCK.release()
    ONE_AT_A_TIME.release()


# no fork finds them held by another thread, nor the process as it is while one traces
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_lock, after_in_parent=_unlock, after_in_child=_unlock)

OWN_FORWARD = "_sparsekernels_own_forward"
"""The attribute of a class that is made here under which it has the `forward` of the module's class."""

_OF_SOURCE = ("__firstlineno__", "__static_attributes__")
"""What a class has for those who look for its source."""


class RunsAs(Protocol):
    """What a module runs as: a graph, or one operation."""

    recipe: Recipe

    @classmethod
    def of_recipe(cls, module: nn.Module, recipe: Recipe) -> Any:
        """What a recipe of this class makes of a module."""

    def answer(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """What the module's `forward` returns; `NO_ANSWER` where the module's own has to run."""


class Recipe:
    """What a graph is made by: its class and its options. Belongs to one module; copies of it are for another.

    live: the graph that was made of it for its owner, which copies and pickles do not have. The module has it, so that
    both go together, also where what the graph looks at refers to the module. Else it goes when the module does, not
    when garbage is collected: the graph looks at the dict of the module, which has the recipe.
    """

    def __init__(self, kind: type[RunsAs], options: Mapping[str, Any]) -> None:
        self.kind, self.options = kind, dict(options)
        self.owner: weakref.ref[nn.Module] | None = None
        self.live: RunsAs | None = None
        self._end: weakref.finalize[..., nn.Module] | None = None

    def let_live(self, module: nn.Module, graph: RunsAs | None) -> None:
        """What `module` runs as from now on."""
        self.live = graph
        if self._end is not None:
            self._end.detach()
        self._end = None if graph is None else weakref.finalize(module, _end, weakref.ref(self))
        if self._end is not None:
            self._end.atexit = False

    def __getstate__(self) -> dict[str, Any]:
        return {"kind": self.kind, "options": self.options, "owner": None, "live": None, "_end": None}


def _end(recipe: weakref.ref[Recipe]) -> None:
    """Its owner is no more."""
    of = recipe()
    if of is not None:
        of.live = None


class _OwnForward:
    """Looked up in each call: the class may get another."""

    def __get__(self, module: Any, kind: Any) -> Any:
        own: Any = next(other for other in kind.__mro__ if _RunsAsGraph in other.__bases__).__bases__[1]
        return own.forward


class _RunsAsGraph:
    """Among the bases of the classes made here."""

    def __init_subclass__(cls) -> None:
        """That of the module's class is for classes that its author wrote."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced = super().__reduce_ex__(protocol)
        if not isinstance(reduced, tuple):
            return reduced
        kind, own = type(self), own_class(self)
        make, args = reduced[0], tuple(own if one is kind else one for one in reduced[1])
        if make is copyreg.__newobj__:  # type: ignore[attr-defined]
            make = _made_anew
        return (own if make is kind else make, args, *reduced[2:])

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)  # type: ignore[misc]
        recipe: Recipe | None = vars(self).get(GRAPH)
        if recipe is not None and recipe.owner is None:  # a copy's
            recipe.owner = weakref.ref(self)  # type: ignore[arg-type]

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        _let_swap(self)
        return super()._apply(*args, **kwargs)  # type: ignore[misc]

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        _let_swap(self)
        super()._load_from_state_dict(*args, **kwargs)  # type: ignore[misc]


def _let_swap(module: Any) -> None:
    """Where torch is going to exchange what is behind parameters, to which nothing else may refer: the next call makes
    the graph anew."""
    if swaps_tensors():
        with _LOCK:
            recipe = attached(module)
            if recipe is not None:
                recipe.let_live(module, None)


def _made_anew(kind: type, *args: Any) -> Any:
    """What a copy or a pickle starts from: an object of `kind` that may have a graph."""
    with contextlib.suppress(TypeError):
        kind = _class_with_graph(kind)
    return kind.__new__(kind, *args)


def own_class(module: object) -> type:
    """The class of a module as its author knows it."""
    return _made_of(type(module))


def _made_of(kind: type) -> type:
    return kind.__bases__[1] if _RunsAsGraph in kind.__bases__ else kind


def has_method(module: nn.Module) -> bool:
    """Whether its `forward` is an ordinary method of its class."""
    return inspect.isfunction(inspect.getattr_static(own_class(module), "forward", None))


def may_derive(kind: type) -> bool:
    """Whether there can be a class with a graph of `kind`: another metaclass may do anything with one that is made."""
    return type(kind) in _METACLASSES


def attach(module: nn.Module, recipe: Recipe, graph: RunsAs | None = None) -> None:
    """Let calls of `module` run as the graph of `recipe`, where it serves them.

    graph: what was made of the recipe; else the first call makes it.
    """
    with _LOCK:
        detach(module)
        recipe.owner = weakref.ref(module)
        recipe.let_live(module, graph)
        vars(module)[GRAPH] = recipe
        if _RunsAsGraph not in type(module).__mro__:
            module.__class__ = _class_with_graph(type(module))


def detach(module: nn.Module) -> None:
    """Let the module be what it was. Nothing happens where it has no graph."""
    with _LOCK:
        recipe = attached(module)
        if recipe is not None:
            recipe.let_live(module, None)
        vars(module).pop(GRAPH, None)
        if type(module) is not own_class(module):  # a subclass that somebody made since stays
            module.__class__ = own_class(module)


def attached(module: nn.Module) -> Recipe | None:
    """The recipe of the graph that hangs on `module`, if it is the module's own."""
    recipe: Recipe | None = vars(module).get(GRAPH)
    return recipe if recipe is not None and (recipe.owner is None or recipe.owner() is module) else None


def has_graph(module: nn.Module) -> bool:
    """Whether a graph hangs on `module`, be it another's, of which it is a shallow copy."""
    return GRAPH in vars(module) or type(module) is not own_class(module)


def graph_of(module: nn.Module) -> RunsAs | None:
    """The graph that calls of `module` run as, made of its recipe where it is not there yet."""
    recipe: Recipe | None = module.__dict__.get(GRAPH)
    if recipe is None:
        return None
    live, owner = recipe.live, recipe.owner
    if live is not None and owner is not None and owner() is module:
        return live
    with _LOCK:
        if recipe.owner is None:  # a copy
            recipe.owner = weakref.ref(module)
        if recipe.owner() is not module:
            return None
        live = recipe.live
        if live is None:
            live = recipe.kind.of_recipe(module, recipe)
            recipe.let_live(module, live)
        return live


class _AsItsBase(type):
    """Of the classes made here: each equals the one that it is made of, and is found where that is."""

    def __eq__(cls, other: object) -> bool:
        if not isinstance(other, type):
            return NotImplemented
        return _made_of(cls) is _made_of(other)

    def __hash__(cls) -> int:
        return type.__hash__(_made_of(cls))


class _AbstractAsItsBase(_AsItsBase, abc.ABCMeta):
    pass


_METACLASSES: dict[type, type] = {type: _AsItsBase, abc.ABCMeta: _AbstractAsItsBase}
for _metaclass in list(_METACLASSES.values()):
    _METACLASSES[_metaclass] = _metaclass  # of a class that somebody derived from one
    copyreg.pickle(_metaclass, lambda kind: (_made_of, (_made_of(kind),)))  # type: ignore[arg-type, return-value]


def _class_with_graph(kind: type) -> type:
    """The subclass of `kind` whose `forward` runs the graph. Raises TypeError where there can be none."""
    with _LOCK:
        other: type
        for other in type.__subclasses__(kind):
            if _RunsAsGraph in other.__bases__:
                return other
        if not may_derive(kind):
            raise TypeError(f"{kind.__name__} has the metaclass {type(kind).__name__}")
        made: type
        body = {
            "__module__": kind.__module__,
            "__qualname__": kind.__qualname__,
            "__doc__": kind.__doc__,
            "forward": _forward_of(kind),
            OWN_FORWARD: _OwnForward(),
            "__class__": property(lambda self: kind if type(self) is made else type(self), _set_class),
        }
        body |= {name: vars(kind)[name] for name in _OF_SOURCE if name in vars(kind)}
        made = _METACLASSES[type(kind)](kind.__name__, (_RunsAsGraph, kind), body)
        return made


def _set_class(module: Any, kind: type) -> None:
    object.__dict__["__class__"].__set__(module, kind)


def _forward_of(kind: Any) -> Callable[..., Any]:
    @functools.wraps(kind.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_compiling():
            graph = graph_of(self)
            if graph is not None:
                answer = graph.answer(args, kwargs)
                if answer is not NO_ANSWER:
                    return answer
        return kind.forward(self, *args, **kwargs)  # looked up in each call: it may be another by then

    return forward
