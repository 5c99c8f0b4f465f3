# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What stands for tensors and sizes while code is traced, and for functions of torch that make or describe tensors."""

from __future__ import annotations

import builtins
import contextlib
import dis
import functools
import itertools
import operator
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor

from ..facts import GraphObstacle
from ..watch.surroundings import FACTORIES
from .in_place import IN_PLACE
from .sizes import SIZES, expect_length, kind_of
from .untraceable import Untraceable

Node = torch.fx.Node


_OF_PROXIES = ("tracer", "node", "root", "attr", "_node")


class _Asked(torch.fx.Proxy):
    """Answers what follows from sizes, and keeps that it did."""

    tracer: Any

    def __setattr__(self, name: str, value: Any) -> None:
        """An attribute of a tensor, its `data` for instance, is no node of a graph."""
        if name not in _OF_PROXIES:
            self.tracer.refused = True
            raise Untraceable(GraphObstacle.SIDE_EFFECTS)
        super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        if name in _OF_PROXIES:  # of one that Python makes by itself
            raise AttributeError(name)
        return self.tracer.attribute_of(self, name)

    def __hash__(self) -> int:
        """No cache (lru_cache) finds something by a size, and keeps a proxy for that."""
        self.tracer.refused = True
        raise TypeError("what is found by a tensor or a size depends on it")

    def __reduce_ex__(self, protocol: Any) -> Any:
        self.tracer.refused = True
        raise TypeError("what is copied or saved by Python is no node of a graph")

    def __deepcopy__(self, memo: Any) -> Any:
        return self.__reduce_ex__(4)

    def __bool__(self) -> bool:
        count = self.tracer.count_of(self)
        return bool(self.tracer.decided(self, bool) if count is None else count)

    def __len__(self) -> int:
        if kind_of(self.node) is not None:
            return int(self.tracer.decided(self, len))
        count = self.tracer.count_of(self)
        size: Any = self.size(0) if count is None else count
        return int(size)

    def __getitem__(self, key: Any) -> Any:
        made = self.tracer.create_proxy("call_function", operator.getitem, (self, key), {})
        return None if self.tracer.is_none(made.node) else made

    def __setitem__(self, key: Any, value: Any) -> None:
        """What is written is a node, like what other methods write."""
        kind = kind_of(self.node)
        if kind is not None:
            raise TypeError(f"{kind.__name__!r} object does not support item assignment")
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})

    def __iter__(self) -> Iterator[Any]:
        count = _names_to_fill(sys._getframe(1))
        if count is None:
            return iter(self.tracer.iter(self))
        self.tracer.create_node("call_function", expect_length, (self.node, count), {})
        values: Any = self
        return iter([values[place] for place in range(count)])

    def __int__(self) -> int:
        return int(self.tracer.decided(self, int))

    def __index__(self) -> int:
        return int(self.tracer.decided(self, operator.index))

    def __float__(self) -> float:
        return float(self.tracer.decided(self, float))

    def __round__(self, digits: int | None = None) -> Any:
        return self.tracer.decided(self, functools.partial(round, ndigits=digits))

    def _in_place(self, function: Callable[..., Any], other: Any) -> torch.fx.Proxy:
        """What is done in place: torch's own proxies take `x += y` for `x = x + y`."""
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    def __radd__(self, other: Any) -> Any:
        """A list that a tuple is added to in place: Python asks the tuple first, as it has no such method."""
        if type(other) is list and self.tracer.count_of(self) is not None:
            other.extend(self)
            return other
        return self.tracer.create_proxy("call_function", operator.add, (other, self), {})

    def __divmod__(self, other: Any) -> Any:
        return self // other, self % other

    def __rdivmod__(self, other: Any) -> Any:
        return other // self, other % self

    def __format__(self, form: str) -> str:
        return self._text(operator.methodcaller("__format__", form))

    def __str__(self) -> str:
        return self._text(str)

    def __repr__(self) -> str:
        return self._text(repr)

    def _text(self, question: Callable[[Any], str]) -> str:
        """Does not raise: what says why a trace fails may name a tensor."""
        try:
            return str(self.tracer.decided(self, question))
        except Untraceable:
            return "a tensor"


class _NamedTensor(type):
    """Of classes that are Tensor in a text: transformers looks for torch's name in `str(type(x))`."""

    def __repr__(cls) -> str:
        return repr(Tensor)


class Attribute(torch.fx.proxy.Attribute, _Asked, metaclass=_NamedTensor):
    pass


class Proxy(_Asked, metaclass=_NamedTensor):
    """What stands for a tensor, or for what is computed of sizes."""

    _is_param = _is_buffer = False  # what torch asks of a tensor that becomes an attribute


def is_proxy(value: object) -> bool:
    return type(value) in (Proxy, Attribute)


def is_tensor(value: Any) -> bool:
    """Whether a proxy stands for what has the class Tensor."""
    if type(value) is not Proxy or kind_of(value.node) is not None:
        return False
    return bool(value.node.op != "get_attr") and gives_tensor(value.node)


for _function in IN_PLACE:
    setattr(
        _Asked, f"__{_function.__name__}__", lambda self, other, function=_function: self._in_place(function, other)
    )


_GIVE_NO_TENSOR = {"size", "shape", "dim", "ndim", "ndimension", "numel", "nelement", "stride", "item", "tolist"}
_GIVE_NO_TENSOR |= {"dtype", "device", "layout", "requires_grad", "is_contiguous", "element_size", "is_cuda"}


_ARE_TENSORS = {"T", "mT", "H", "mH", "real", "imag", "data"}
_BY_DEVICE = {"is_cuda": "cuda", "is_cpu": "cpu", "is_mps": "mps", "is_xpu": "xpu", "is_meta": "meta"}
_MAY_BE_NONE = {"grad", "_grad", "grad_fn", "_base", "requires_grad", "is_leaf", "retains_grad", "output_nr", "layout"}
_MAY_BE_NONE |= {"_version", "names", "_backward_hooks", "grad_dtype"}
"""Attributes of a tensor that code compares by identity (`x.grad_fn is None`), so that no proxy can stand for them."""


def known_attribute(node: Node, name: str, device: torch.device | None) -> Any:
    """What a tensor's attribute is in all calls that a graph serves; None where that is not known. Raises `Untraceable`
    where the code may decide by it."""
    if device is not None and (name == "device" or name in _BY_DEVICE):
        return device if name == "device" else device.type == _BY_DEVICE[name]
    if name == "layout" and node.op == "placeholder":
        return torch.strided
    if name in _MAY_BE_NONE and gives_tensor(node):
        raise Untraceable(GraphObstacle.DECIDES)
    return None


@contextlib.contextmanager
def proxies_are_tensors() -> Iterator[None]:
    """Inside, `isinstance(proxy, Tensor)` is True, so that code takes the branch for tensors, which is to be recorded.

    Overriding `__class__` of the proxy instead would also convince torch's C++, which then reads it as a tensor.
    A size is an int or a torch.Size. What torch.finfo and torch.iinfo tell of the dtype of a proxy is recorded.
    """
    plain, infos = builtins.isinstance, (torch.finfo, torch.iinfo)

    def asked(value: Any, kinds: Any, /) -> bool:
        if not is_proxy(value) or (plain(kinds, type) and issubclass(kinds, torch.fx.Proxy)):  # which torch.fx asks
            return plain(value, kinds)
        attribute = value.attr if type(value) is Attribute else ""
        kind = SIZES.get(attribute) if attribute else kind_of(value.node)
        if kind is None and (attribute in _ARE_TENSORS or (not attribute and gives_tensor(value.node))):
            return _is_tensor_of(value, kinds, plain)
        if kind is not None and getattr(kinds, "__module__", None) == "collections.abc":
            return issubclass(kind, kinds)
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
                if is_proxy(one):
                    return one.tracer.create_proxy("call_function", info, args, kwargs)
            return info(*args, **kwargs)

        def __instancecheck__(cls, value: Any) -> bool:
            return isinstance(value, info)

    return Recording(info.__name__, (), {})


_OF_SIZES: tuple[tuple[Any, str], ...] = (
    *((torch, name) for name in ("reshape", "narrow", "tile", "broadcast_to", "unflatten", "roll", "select", "topk")),
    *((torch, name) for name in ("tril", "triu", "avg_pool1d")),
    *((F, name) for name in ("avg_pool1d", "avg_pool2d", "avg_pool3d")),
)
"""Functions of a tensor and sizes that look whether these are numbers before they look for proxies."""


@contextlib.contextmanager
def sizes_are_not_asked() -> Iterator[None]:
    """Inside, such functions are recorded without a question to a size, which would be a decision."""
    plain = [(owner, name, getattr(owner, name)) for owner, name in _OF_SIZES]

    def recording(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def recorded(*args: Any, **kwargs: Any) -> Any:
            first: Any = args[0] if args else kwargs.get("input")
            if not is_proxy(first):
                return function(*args, **kwargs)
            return first.tracer.create_proxy("call_function", function, args, kwargs)

        return recorded

    for owner, name, function in plain:
        setattr(owner, name, recording(function))
    try:
        yield
    finally:
        for owner, name, function in plain:
            setattr(owner, name, function)


@contextlib.contextmanager
def factories_are_recorded(tracer: Any) -> Iterator[None]:
    """Inside, tensors that code makes of numbers and sizes are nodes of the graph, which makes them in each call.

    Functions in the place of torch's: those look at sizes before a function mode is asked. Code that is imported inside
    may keep them.
    """
    plain = {name: getattr(torch, name) for name in FACTORIES}
    is_over = False

    def recording(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def recorded(*args: Any, **kwargs: Any) -> Any:
            if is_over or tracer.is_outside() or kwargs.keys() & {"out", "requires_grad"}:
                return function(*args, **kwargs)
            return tracer.create_proxy("call_function", function, args, kwargs)

        return recorded

    for name, function in plain.items():
        setattr(torch, name, recording(function))
    try:
        yield
    finally:
        is_over = True
        for name, function in plain.items():
            setattr(torch, name, function)


def _is_tensor_of(value: Any, kinds: Any, plain: Callable[[Any, Any], bool]) -> bool:
    """Whether what is no size is of one of some classes."""
    if any(one is Tensor for one in _each(kinds, plain)) and not value.tracer.may_be_several(value.node):
        return True
    known = value.tracer.likeness_of(value.node)
    if known is not None and not plain(known, Tensor):  # several tensors
        return plain(known, kinds)
    if plain(known, Tensor) and type(known) in (Tensor, torch.nn.Parameter):  # the model's own
        return plain(known, kinds)
    for one in _each(kinds, plain):
        of_classes = one is not Tensor and plain(one, type) and issubclass(type(one), type(Tensor))
        if (of_classes and value.node.op == "placeholder") or type(one).__name__ == "tensortype":
            value.tracer.refused = True  # it may be a parameter, or one of torch.FloatTensor
            raise Untraceable(GraphObstacle.DECIDES)
    return plain(value, kinds) or issubclass(Tensor, kinds)


def _each(kinds: Any, plain: Callable[[Any, Any], bool]) -> Iterator[Any]:
    """The classes in what `isinstance` takes."""
    if plain(kinds, tuple | types.UnionType):
        for one in kinds if plain(kinds, tuple) else kinds.__args__:
            yield from _each(one, plain)
    else:
        yield kinds


def gives_tensor(node: Node) -> bool:
    """Whether `node` gives a tensor, and not a size or the like."""
    if node.op == "call_method":
        return node.target not in _GIVE_NO_TENSOR
    if node.op == "call_function" and node.target is getattr:
        return node.args[1] not in _GIVE_NO_TENSOR
    if node.op == "call_function" and getattr(node.target, "__module__", None) == "_operator":
        return any(map(gives_tensor, node.all_input_nodes))
    return True


def _names_to_fill(frame: types.FrameType) -> int | None:
    """How many names code is about to unpack a value to (`height, width = size`); None where it does something else."""
    for step in dis.get_instructions(frame.f_code):
        if step.offset >= frame.f_lasti:
            return int(step.argval) if step.opname == "UNPACK_SEQUENCE" else None
    return None


def compares_identity(frame: types.FrameType) -> bool:
    """Whether code compares anything else than None by `is`."""
    steps = list(dis.get_instructions(frame.f_code))
    pairs = itertools.pairwise(steps)
    return any(one.opname == "IS_OP" and before.opname != "LOAD_CONST" for before, one in pairs)
