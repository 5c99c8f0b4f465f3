# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What code decides by the sizes and dtypes of tensors, while it is traced and in later calls.

A trace goes one way wherever code looks at a size to decide (`if height % 32`, `range(batch)`). Sizes and dtypes follow
from those of the arguments: they are computed on fake tensors, which have no elements, so nothing else can decide. A
graph serves the calls in which every such decision is the same.

More than 400 lines: how sizes are computed while a module is traced, and again in later calls.
"""

from __future__ import annotations

import contextlib
import logging
import math
import operator
import threading
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
import torch.fx
from torch import nn

from ..._torch import FakeTensorMode, NormBase
from ..modules import is_plain
from ..progress import excused
from ..watch.entries import Same

Node = torch.fx.Node

_MOST_COMPUTED = 16
"""For so many shapes of the arguments it is computed what a graph decides, where that takes some tenths of a second:
as long as many passes, where decisions depend on sizes deep in the model."""
_MOST_KEPT = 1024
"""For so many shapes otherwise."""

SIZES: Mapping[str, type] = {"shape": torch.Size, "ndim": int, "dtype": torch.dtype}
"""Attributes of tensors that are sizes, or the dtype."""
_METHODS = {"dim": int, "ndimension": int, "numel": int, "nelement": int, "is_floating_point": bool, "is_complex": bool}
_FUNCTIONS: Mapping[Any, type] = {torch.numel: int, torch.is_floating_point: bool, torch.is_complex: bool, len: int}
_OF_KIND = {"dtype", "ndim", "dim", "ndimension", "is_floating_point", "is_complex"}
_COMPARISONS = {operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge, operator.not_}
_RESHAPES = {"unsqueeze_", "squeeze_", "t_", "transpose_", "swapaxes_", "swapdims_", "resize_", "resize_as_", "set_"}
_RESHAPES |= {"as_strided_", "sparse_resize_", "sparse_resize_and_clear_"}
_OWNERS = ("torch", "_operator", "math", "sparsekernels")


_shape, _dtype = operator.attrgetter("shape"), operator.attrgetter("dtype")


class Sized(Protocol):
    """A tensor, or what is recorded of one."""

    @property
    def shape(self) -> Sequence[int]: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def device(self) -> torch.device: ...


class Unknown(Exception):
    """A value does not follow from the sizes of the arguments alone, or nobody knows these."""


class Decision(NamedTuple):
    """What code asked of a size, and how it was answered."""

    node: Node
    question: Callable[[Any], Any]
    answer: Any


def expect_length(value: Any, count: int) -> None:
    """What Python asks where a value is unpacked to so many names."""
    if len(value) != count:
        given = f"not enough values to unpack (expected {count}, got {len(value)})"
        raise ValueError(given if len(value) < count else f"too many values to unpack (expected {count})")


def itself(value: Any) -> Any:
    """A question: what it is."""
    return value


_KIND = "sparsekernels_kind"
"""Under which a node keeps it: with those of the nodes above it, a question for each would take exponential time."""


def kind_of(node: Node) -> type | None:
    """The class of what `node` gives, where that follows from sizes; `object` where it may be several; else None."""
    if not _is_of_others(node):
        return _own_kind(node)
    left = [node]
    while _KIND not in node.meta:
        one = left[-1]
        above = [other for other in one.all_input_nodes if _is_of_others(other) and _KIND not in other.meta]
        if above:
            left += above
        else:
            one.meta[_KIND] = _kind_by_others(one)
            left.pop()
    kind: type | None = node.meta[_KIND]
    return kind


def _is_of_others(node: Node) -> bool:
    """Whether the class of what it gives follows from those of what it is given."""
    if node.op != "call_function" or node.target is getattr or node.target in _FUNCTIONS:
        return False
    return getattr(node.target, "__module__", None) in ("_operator", "math")


def _own_kind(node: Node) -> type | None:
    """Of one that is none of these."""
    if node.op == "call_method":
        if node.target == "size":
            return torch.Size if len(node.args) == 1 and not node.kwargs else int
        return _METHODS.get(str(node.target))
    if node.op != "call_function":
        return None
    return SIZES.get(str(node.args[1])) if node.target is getattr else _FUNCTIONS.get(node.target)


def _kind_by_others(node: Node) -> type | None:
    """Of one whose inputs know theirs."""
    kinds = [one.meta[_KIND] if _is_of_others(one) else _own_kind(one) for one in node.all_input_nodes]
    if not kinds or None in kinds:
        return None
    if node.target is operator.getitem and kinds[0] is torch.Size:
        return torch.Size if isinstance(node.args[1], slice) else int
    if node.target in _COMPARISONS:
        return bool
    if node.target in (math.ceil, math.floor):
        return int
    given = [one for one in node.args if not isinstance(one, Node)]
    whole = all(kind is int for kind in kinds) and all(type(one) is int for one in given)
    whole = whole and node.target not in (operator.truediv, operator.pow)
    return int if whole and getattr(node.target, "__module__", None) == "_operator" else object


class Sizes:
    """What follows from the sizes of the arguments, while a module is traced.

    modules: by the names under which the graph calls them. given: what is known of the arguments, by their names.
    tensor_of: the tensor that a node reads.
    """

    are_imported: ClassVar[bool] = False
    """Whether what computes them is imported: half of torch, which takes more than a second."""

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        given: Mapping[str, Sized],
        tensor_of: Callable[[str], torch.Tensor],
    ) -> None:
        self._modules, self._given, self._tensor_of = modules, given, tensor_of
        self._values: dict[Node, Any] = {}
        self._mode: FakeTensorMode | None = None
        self.computes = False
        """Whether it is at that: what modules do then is not to be traced."""

    @classmethod
    def import_them(cls) -> None:
        with excused():
            FakeTensorMode()
        cls.are_imported = True

    @property
    def are_any(self) -> bool:
        """Whether something is known of the arguments."""
        return bool(self._given)

    def value_of(self, node: Node) -> Any:
        """What `node` gives, where that is a size. Raises `Unknown`."""
        if kind_of(node) is None:
            raise Unknown
        return self.likeness_of(node)

    def likeness_of(self, node: Node) -> Any:
        """What `node` gives, fake tensors in the places of tensors. Raises `Unknown`."""
        if not self.are_any:
            raise Unknown
        self.computes = True
        try:
            if self._mode is None:
                self._mode = FakeTensorMode(allow_non_fake_inputs=True)
            with _unlogged(), torch.no_grad(), self._mode:
                for one in upstream([node], self._values):
                    self._values[one] = self._computed(one)
        except Exception as error:  # what fake tensors, or the modules on them, raise
            raise Unknown from error
        finally:
            self.computes = False
        return self._values[node]

    def _computed(self, node: Node) -> Any:
        if node.op == "placeholder":
            given = self._given[str(node.target)]
            return torch.empty(tuple(given.shape), dtype=given.dtype, device=given.device)
        if node.op == "get_attr":
            assert self._mode is not None
            held = self._tensor_of(str(node.target))
            return self._mode.from_tensor(held) if isinstance(held, torch.Tensor) else held  # an array, a generator
        arguments: Any = torch.fx.node.map_arg((node.args, dict(node.kwargs)), self._values.__getitem__)
        args, kwargs = arguments
        if node.op == "call_function":
            function: Any = node.target
            return function(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        module = self._modules[str(node.target)]
        return args[0] if _keeps_size(module) else module(*args, **kwargs)


def _keeps_size(module: nn.Module) -> bool:
    """Whether it is not called for what sizes it gives: in training mode it would count this batch."""
    return isinstance(module, NormBase)


@contextlib.contextmanager
def _unlogged() -> Iterator[None]:
    """Inside, torch does not log for this thread that an operation has failed on fake tensors: nobody asked for it."""
    log, thread = logging.getLogger(FakeTensorMode.__module__), threading.get_ident()

    def is_of_others(record: logging.LogRecord) -> bool:
        return record.thread != thread

    log.addFilter(is_of_others)
    try:
        yield
    finally:
        log.removeFilter(is_of_others)


def upstream(nodes: Iterable[Node], known: Container[Node] = ()) -> list[Node]:
    """`nodes`, and all that they are computed from, each behind what it needs; not `known`, and what those need."""
    result: dict[Node, None] = {}
    left = [(node, False) for node in nodes]
    while left:
        node, is_ready = left.pop()
        if is_ready:
            result[node] = None
        elif node not in result and node not in known:
            left.append((node, True))
            left.extend((one, False) for one in node.all_input_nodes if one not in result)
    return list(result)


def are_known(nodes: Iterable[Node], modules: Mapping[str, nn.Module]) -> bool:
    """Whether sizes follow from those of the arguments: all that is called is torch's or ours, and what it is called on
    keeps its sizes."""
    for node in nodes:
        if node.kwargs.get("out") is not None:
            return False
        if node.op == "call_module":
            module = modules.get(str(node.target))
            is_known = type(module).__module__.startswith(("torch.nn.", "sparsekernels."))
            if module is None or not is_known or not is_plain(module):
                return False
        elif node.op == "call_function" and node.target not in (getattr, len):
            owner = getattr(node.target, "__module__", None) or type(node.target).__module__
            if owner.partition(".")[0] not in _OWNERS or getattr(node.target, "__name__", "") in _RESHAPES:
                return False
        elif node.op == "call_method" and node.target in _RESHAPES:
            return False
    return True


class Guards:
    """Whether code would decide for other arguments as it did when it was traced.

    See `Guard`. What dtypes and numbers of dimensions decide is asked apart, since most calls have the same.
    """

    def __init__(
        self,
        decisions: Sequence[Decision],
        modules: Mapping[str, nn.Module],
        given: Mapping[str, Sized],
        names: Sequence[str],
        place_of: Callable[[str], tuple[dict[str, Any], str]],
    ) -> None:
        of_kind = _of_kind(upstream(decision.node for decision in decisions))
        by_kind = [decision for decision in decisions if decision.node in of_kind]
        by_size = [decision for decision in decisions if decision.node not in of_kind]
        self._guards = [
            Guard(some, modules, given, names, place_of, is_by_kind)
            for some, is_by_kind in ((by_kind, True), (by_size, False))
            if some
        ]

    def holds(self, args: Sequence[Sized], at_once: bool = False) -> bool:
        """Whether the graph decides right for `args`; False for shapes beyond those that are looked at.

        at_once: whether that is computed for new shapes however long it takes; else it waits until they come again.
        """
        return all(guard.holds(args, at_once) for guard in self._guards)


class Guard:
    """Of some decisions.

    given: the arguments that it was traced for, by their names. names: of those of a call, in its order. place_of:
    where the tensors that the graph reads are. is_by_kind: whether all follow from dtypes and numbers of dimensions.
    """

    def __init__(
        self,
        decisions: Sequence[Decision],
        modules: Mapping[str, nn.Module],
        given: Mapping[str, Sized],
        names: Sequence[str],
        place_of: Callable[[str], tuple[dict[str, Any], str]],
        is_by_kind: bool,
    ) -> None:
        self._decisions, self._names = list(decisions), list(names)
        nodes = upstream([decision.node for decision in decisions])
        targets = [str(node.target) for node in nodes if node.op == "call_module"]
        self._modules = {target: modules[target] for target in targets}
        self._places = {str(node.target): place_of(str(node.target)) for node in nodes if node.op == "get_attr"}
        called = [module for module in self._modules.values() if not _keeps_size(module)]
        parts = {id(part): part for module in called for part in module.modules()}.values()
        held = [(place, name) for part in parts for place in (part._parameters, part._buffers) for name in place]
        held += self._places.values()
        self._absent = Same((place, name, None) for place, name in held if place[name] is None)
        held = [(place, name) for place, name in held if place[name] is not None]
        self._held_in, self._held_as = [place for place, _ in held], [name for _, name in held]
        self._shapes = self._shapes_now()
        self._nodes, self._is_by_kind = nodes, is_by_kind
        self._is_quick = not self._modules
        self._seen: set[tuple[Any, ...]] = set()
        self._known: dict[tuple[Any, ...], bool] = {}
        if given:
            self._known[self._key_of([given[name] for name in names])] = True

    def holds(self, args: Sequence[Sized], at_once: bool) -> bool:
        key = self._key_of(args)
        known = self._known.get(key)
        if known is None:
            known = self._asked(key, args, at_once or self._is_quick or self._is_by_kind)
        return known and self._absent.holds() and self._shapes_now() == self._shapes

    def _key_of(self, args: Sequence[Sized]) -> tuple[Any, ...]:
        default = torch.get_default_dtype()  # of what is computed of whole numbers
        if self._is_by_kind:
            return default, *[(len(arg.shape), arg.dtype) for arg in args]
        return default, *[(arg.shape, arg.dtype) for arg in args]

    def _asked(self, key: tuple[Any, ...], args: Sequence[Sized], at_once: bool) -> bool:
        if len(self._known) >= (_MOST_KEPT if self._is_quick else _MOST_COMPUTED):
            return False
        if not at_once and key not in self._seen:
            if len(self._seen) < _MOST_KEPT:
                self._seen.add(key)
            return False
        try:
            known = self._decides_alike(args)
        except Exception:  # what the modules raise for these arguments they raise themselves
            if self._is_by_kind:  # for other sizes they may not
                return False
            known = False
        self._known[key] = known
        return known

    def _shapes_now(self) -> tuple[list[Any], list[Any]]:
        """And dtypes, of the tensors that the sizes depend on: they change in place, too. Empty where one is gone."""
        try:
            held = list(map(operator.getitem, self._held_in, self._held_as))
            return list(map(_shape, held)), list(map(_dtype, held))
        except (KeyError, AttributeError):
            return [], []

    def _decides_alike(self, args: Sequence[Sized]) -> bool:
        """Raises what modules raise for such arguments."""

        def tensor_of(target: str) -> torch.Tensor:
            place, name = self._places[target]
            tensor: torch.Tensor = place[name]
            return tensor

        if not are_known(self._nodes, self._modules):  # one has got a hook
            return False
        sizes = Sizes(self._modules, dict(zip(self._names, args, strict=True)), tensor_of)
        return all(_is_alike(question(sizes.value_of(node)), answer) for node, question, answer in self._decisions)


def _of_kind(nodes: Sequence[Node]) -> set[Node]:
    """Those that follow from the dtypes and the numbers of dimensions of the arguments.

    nodes: each behind what it needs.
    """
    squeezed: set[Node] = set()
    """What is computed of something that may have lost dimensions, by sizes."""
    found: set[Node] = set()
    for node in nodes:
        if "squeeze" in str(node.target) or not squeezed.isdisjoint(node.all_input_nodes):
            squeezed.add(node)
        elif _asks_for_kind(node) or (_is_operator(node) and found.issuperset(node.all_input_nodes)):
            found.add(node)
    return found


def _is_operator(node: Node) -> bool:
    return getattr(node.target, "__module__", None) == "_operator"


def _asks_for_kind(node: Node) -> bool:
    if node.op == "call_method":
        return node.target in _OF_KIND
    return node.op == "call_function" and node.target is getattr and node.args[1] in _OF_KIND


def _is_alike(value: Any, answer: Any) -> bool:
    return type(value) is type(answer) and bool(value == answer)
