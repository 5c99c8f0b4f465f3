# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What stands for tensors and sizes while code is traced, and for functions of torch that make or describe tensors."""

from __future__ import annotations

import builtins
import contextlib
import functools
import operator
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.fx
from torch import Tensor

from ..facts import GraphObstacle
from ..watch.surroundings import FACTORIES
from .in_place import IN_PLACE
from .sizes import SIZES, kind_of
from .untraceable import Untraceable

Node = torch.fx.Node


class _Asked(torch.fx.Proxy):
    """Answers what follows from sizes, and keeps that it did."""

    tracer: Any

    def __setattr__(self, name: str, value: Any) -> None:
        """An attribute of a tensor, its `data` for instance, is no node of a graph."""
        if name not in ("tracer", "node", "root", "attr", "_node"):
            self.tracer.refused = True
            raise Untraceable(GraphObstacle.SIDE_EFFECTS)
        super().__setattr__(name, value)

    def __hash__(self) -> int:
        """No cache (lru_cache) finds something by a size, and keeps a proxy for that."""
        raise TypeError("what is found by a tensor or a size depends on it")

    def __bool__(self) -> bool:
        return bool(self.tracer.decided(self, bool))

    def __len__(self) -> int:
        size: Any = self if kind_of(self.node) is not None else self.size(0)
        return int(self.tracer.decided(size, len) if size is self else size)

    def __int__(self) -> int:
        return int(self.tracer.decided(self, int))

    def __index__(self) -> int:
        return int(self.tracer.decided(self, operator.index))

    def __float__(self) -> float:
        return float(self.tracer.decided(self, float))

    def __round__(self, digits: int | None = None) -> Any:
        return self.tracer.decided(self, functools.partial(round, ndigits=digits))

    def _in_place(self, function: Callable[..., Any], other: Any) -> Any:
        """What is done in place: torch's own proxies take `x += y` for `x = x + y`."""
        return self.tracer.create_proxy("call_function", function, (self, other), {})


class Attribute(torch.fx.proxy.Attribute, _Asked):
    pass


class Proxy(_Asked):
    """What stands for a tensor, or for what is computed of sizes."""

    _is_param = _is_buffer = False  # what torch asks of a tensor that becomes an attribute

    def __getattr__(self, name: str) -> Any:
        device = self.tracer.device if name == "device" else None
        if device is not None:
            return device
        made = Attribute(self, name)
        self.tracer.proxies.append(weakref.ref(made))
        return made


for _function in IN_PLACE:
    setattr(
        _Asked, f"__{_function.__name__}__", lambda self, other, function=_function: self._in_place(function, other)
    )


_GIVE_NO_TENSOR = {"size", "shape", "dim", "ndim", "ndimension", "numel", "nelement", "stride", "item", "tolist"}
_GIVE_NO_TENSOR |= {"dtype", "device", "layout", "requires_grad", "is_contiguous", "element_size", "is_cuda"}


@contextlib.contextmanager
def proxies_are_tensors() -> Iterator[None]:
    """Inside, `isinstance(proxy, Tensor)` is True, so that code takes the branch for tensors, which is to be recorded.

    Overriding `__class__` of the proxy instead would also convince torch's C++, which then reads it as a tensor.
    A size is an int or a torch.Size. What torch.finfo and torch.iinfo tell of the dtype of a proxy is recorded.
    """
    plain, infos = builtins.isinstance, (torch.finfo, torch.iinfo)

    def asked(value: Any, kinds: Any, /) -> bool:
        if type(value) not in (Proxy, Attribute):
            return plain(value, kinds)
        kind = SIZES.get(value.attr) if type(value) is Attribute else kind_of(value.node)
        if kind is not None and getattr(kinds, "__module__", None) == "collections.abc":
            return issubclass(kind, kinds)
        if kind is None and type(value) is Proxy and _is_tensor(value.node):
            kind = Tensor
        return plain(value, kinds) or (kind is not None and issubclass(kind, kinds))

    builtins.isinstance = asked  # type: ignore[assignment]
    torch.finfo, torch.iinfo = map(_recording, infos)  # type: ignore[misc]
    try:
        yield
    finally:
        torch.finfo, torch.iinfo = infos  # type: ignore[misc]
        builtins.isinstance = plain


def _recording(info: Any) -> Any:
    """A class in the place of `info`, called by all threads: of a proxy it makes a node, of all else what that does."""

    class Recording(type):
        def __call__(cls, *args: Any, **kwargs: Any) -> Any:
            for one in (*args, *kwargs.values()):
                if type(one) in (Proxy, Attribute):
                    return one.tracer.create_proxy("call_function", info, args, kwargs)
            return info(*args, **kwargs)

        def __instancecheck__(cls, value: Any) -> bool:
            return isinstance(value, info)

    return Recording(info.__name__, (), {})


@contextlib.contextmanager
def factories_are_recorded(tracer: Any) -> Iterator[None]:
    """Inside, tensors that code makes of numbers and sizes are nodes of the graph, which makes them in each call.

    Functions in the place of torch's: those look at sizes before a function mode is asked.
    """
    plain = {name: getattr(torch, name) for name in FACTORIES}

    def recording(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def recorded(*args: Any, **kwargs: Any) -> Any:
            if tracer.is_outside() or kwargs.keys() & {"out", "requires_grad"}:
                return function(*args, **kwargs)
            return tracer.create_proxy("call_function", function, args, kwargs)

        return recorded

    for name, function in plain.items():
        setattr(torch, name, recording(function))
    try:
        yield
    finally:
        for name, function in plain.items():
            setattr(torch, name, function)


def _is_tensor(node: Node) -> bool:
    """Whether `node` gives a tensor, and not a size or the like."""
    if node.op == "call_method":
        return node.target not in _GIVE_NO_TENSOR
    if node.op == "call_function" and node.target is getattr:
        return node.args[1] not in _GIVE_NO_TENSOR
    if node.op == "call_function" and getattr(node.target, "__module__", None) == "_operator":
        return any(map(_is_tensor, node.all_input_nodes))
    return True
