# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""torch.fx, made to see what it does not: what is done in place, buffers, surroundings, and who asks for a tensor.

More than 400 lines: the tracer, and what is done around a trace so that nothing is left of it.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
import gc
import inspect
import itertools
import operator
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from ..._torch import TENSOR_CONSTANT, is_any_autocast_enabled, saved_tensors_hooks
from ...nn import RMSNorm
from ..candidates import candidate_of
from ..facts import GraphObstacle
from ..leftovers import obstacle_of_foreign
from ..modules import is_plain
from ..survey import KINDS
from ..watch.generators import Generators
from ..watch.reach import Reach, line_of
from ..watch.state import KEPT_BY_TORCH, LARGEST_ARRAY, State, is_same
from ..watch.surroundings import Beside
from ..watch.writes import Writes
from .aliases import may_be_several
from .attach import ONE_AT_A_TIME, OWN_FORWARD
from .class_questions import ClassQuestions
from .proxies import (
    Attribute,
    Proxy,
    compares_identity,
    factories_are_recorded,
    gives_tensor,
    is_proxy,
    is_tensor,
    known_attribute,
    proxies_are_tensors,
    sizes_are_not_asked,
)
from .signature import Arguments, Lent, contents_of
from .sizes import Decision, Sizes, Unknown, are_known, itself, kind_of
from .untraceable import Untraceable

Node = torch.fx.Node

Traced = tuple[torch.fx.Graph, Beside, list[Decision]]

ITEM = "item_"
"""Before the key of a tensor in a dict, where a node names that: a module has methods by the names of devices."""


class _Tracer(torch.fx.Tracer):
    """Goes into the modules that a user wrote, unless something happens when they are called.

    torch.fx does not record in what surroundings something is computed: they have to stay the same. Buffers are
    recorded as parameters are, and not what they hold now.
    """

    proxy_buffer_attributes = True

    def __init__(self, module: nn.Module, arguments: Arguments, holds: Callable[[Any], bool]) -> None:
        """holds: whether the module, or what its code gets at, has a value."""
        super().__init__()
        self.holds = holds
        self._module, self._arguments, self.lent = module, arguments, Lent()
        self._modules = dict(module.named_modules())
        self._sizes = Sizes(self._modules, arguments.given, functools.partial(_tensor_of, module))
        self._are_known = True
        self._several: set[Node] = set()
        """Nodes that may give a tuple or a list."""
        self.refused = False
        """Whether it raised for a question, whatever the code that asked made of that."""
        self.lacks_sizes = False
        """Whether it did so since what computes sizes is not imported: that would keep functions that are patched."""
        self.calls_others = False
        """Whether it calls modules that do something beside, by a hook or a `forward` of their own."""
        self.made_at = ""
        """Where it was given the first tensor that code had made, as a sentence goes on."""
        self.decisions: list[Decision] = []
        if hasattr(type(module), OWN_FORWARD):
            self.traced_func_name = OWN_FORWARD
        self._surroundings = _surroundings()
        self._held = _held_elsewhere(module)
        devices = {tensor.device for tensor in (*module.parameters(), *module.buffers())}
        self.device = devices.pop() if len(devices) == 1 else None
        """Where everything is; a graph serves no tensor that is elsewhere."""
        self._thread = threading.get_ident()
        self.proxies: list[weakref.ref[torch.fx.Proxy]] = []
        self.questions = ClassQuestions(is_proxy, is_tensor, (Proxy, Attribute))

    def forget(self) -> None:
        """Let go of the module: functions inside of torch.fx refer to the tracer and to themselves.

        What another thread may ask that is in torch.fx's `__call__` at this moment stays.
        """
        for name in vars(self).keys() - {"_thread", "_autowrap_function_ids", "_autowrap_search", "proxies"}:
            del vars(self)[name]
        self._thread = -1  # nobody's

    def decided(self, proxy: torch.fx.Proxy, question: Callable[[Any], Any]) -> Any:
        """The answer to what code asks of a size; raises where it follows from something else."""
        try:
            return self._answer_to(proxy, question)
        except Unknown:
            self.refused = True
            raise Untraceable(GraphObstacle.DECIDES) from None

    def _answer_to(self, proxy: torch.fx.Proxy, question: Callable[[Any], Any]) -> Any:
        """Raises `Unknown`."""
        if kind_of(proxy.node) is None or not self._may_compute():
            raise Unknown
        with _unwatched():
            value = self._sizes.value_of(proxy.node)
        answer = question(value)
        decision = Decision(proxy.node, question, answer)
        if decision not in self.decisions:
            self.decisions.append(decision)
        return answer

    def _may_compute(self) -> bool:
        """Whether sizes follow from those of the arguments, and what computes them is imported."""
        self.lacks_sizes = self.lacks_sizes or (self._sizes.are_any and not Sizes.are_imported)
        return self._are_known and not self.lacks_sizes

    def likeness_of(self, node: Node) -> Any:
        """What `node` gives: the model's own tensor where it reads that, else fake ones; None where that is unknown."""
        if node.op == "get_attr":
            return _tensor_of(self._module, str(node.target))
        if node.op != "placeholder" and self._may_compute():
            with _unwatched(), contextlib.suppress(Unknown):
                return self._sizes.likeness_of(node)
        return None

    def may_be_several(self, node: Node) -> bool:
        """Whether what `node` gives may be a tuple or a list."""
        return node in self._several

    def count_of(self, proxy: torch.fx.Proxy) -> Any:
        """How many values a tuple or a list has for which `proxy` stands, or a proxy of that number; None where it is
        no such."""
        known = self.likeness_of(proxy.node) if proxy.node in self._several else None
        if kind_of(proxy.node) is not None or not isinstance(known, tuple | list):
            return None
        if type(known).__module__ == torch.return_types.__name__:  # as many for all sizes
            return len(known)
        return self.create_proxy("call_function", len, (proxy,), {})

    def is_none(self, node: Node) -> bool:
        """Whether `node` gives the weights of an attention that returns none: code compares them by identity."""
        whole, place = node.args
        if not isinstance(whole, Node) or place not in (1, -1):
            return False
        function: Any = whole.target
        args: tuple[Any, ...] = whole.args
        if whole.op == "call_module":
            function, args = type(self._modules[str(whole.target)]).forward, (None, *args)
        if function not in (nn.MultiheadAttention.forward, F.multi_head_attention_forward):
            return False
        given = inspect.signature(function).bind_partial(*args, **whole.kwargs).arguments
        return not given.get("need_weights", True)

    def attribute_of(self, proxy: Any, name: str) -> Any:
        """What code gets as an attribute of a tensor, or of a size."""
        made = Attribute(proxy, name)
        self.proxies.append(weakref.ref(made))
        node = proxy.node
        kind = kind_of(node)
        if kind is not None:
            if kind is not object and not hasattr(kind, name):
                raise AttributeError(f"{kind.__name__!r} object has no attribute {name!r}")
            return made
        try:
            known = known_attribute(node, name, self.device)
        except Untraceable:
            self.refused = True
            raise
        if known is not None:
            return known
        if name == "dtype" and gives_tensor(node):
            with contextlib.suppress(Unknown):
                return self._answer_to(made, itself)
            if compares_identity(sys._getframe(2)):
                self.refused = True
                raise Untraceable(GraphObstacle.DECIDES)
        elif not hasattr(Tensor, name) and gives_tensor(node):
            self._require_attribute(node, name)
        return made

    def _require_attribute(self, node: Node, name: str) -> None:
        """Code asks whether there is an attribute that not all tensors have."""
        if node.op in ("placeholder", "get_attr"):
            self.refused = True
            raise Untraceable(GraphObstacle.DECIDES)
        known = self.likeness_of(node)
        if known is not None and not hasattr(known, name):
            raise AttributeError(f"{type(known).__name__!r} object has no attribute {name!r}")

    def iter(self, obj: torch.fx.Proxy) -> Iterator[Any]:
        return (obj[place] for place in range(len(obj)))  # type: ignore[index]

    def is_outside(self) -> bool:
        """Whether what is called now is none of what is traced: another thread's, or for the sizes that it gives."""
        return threading.get_ident() != self._thread or self._sizes.computes

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if self.is_outside():
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, torch.fx.Proxy]) -> Any:
        if self.is_outside():
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_node(self, *args: Any, **kwargs: Any) -> Node:
        if _surroundings() != self._surroundings:
            raise Untraceable(GraphObstacle.SURROUNDINGS)
        if args[:2] == ("call_method", "backward"):  # which writes gradients
            raise Untraceable(GraphObstacle.SIDE_EFFECTS, place=line_of(sys._getframe(1)))
        node = super().create_node(*args, **kwargs)
        self._are_known = self._are_known and are_known([node], self._modules)
        of_several = node.target is operator.getitem and not self._several.isdisjoint(node.all_input_nodes)
        if of_several or may_be_several(node, self._modules, self._several):
            self._several.add(node)
        return node

    def create_arg(self, a: Any) -> Any:
        if is_proxy(a):
            return a.node
        if isinstance(a, int | float) and type(a).__module__ == "numpy":  # whose text is no number
            return super().create_arg(a.item())  # type: ignore[union-attr]
        if id(a) in self._held and self._held[id(a)][1] is a:
            return self.create_node("get_attr", self._held[id(a)][0], (), {})
        if isinstance(a, Tensor) and not self.made_at:
            node = super().create_arg(a)
            is_made = str(node.target).startswith(TENSOR_CONSTANT)  # type: ignore[union-attr]
            self.made_at = line_of(sys._getframe(1)) if is_made else ""
            return node
        is_array = type(a).__module__ == "numpy" and type(a).__name__ == "ndarray"
        if is_array or isinstance(a, torch.Generator):  # which the code has made, or a global
            self.refused = True
            raise Untraceable(GraphObstacle.MAKES_TENSORS if is_array else GraphObstacle.RANDOM)
        if dataclasses.is_dataclass(a) and not isinstance(a, type):
            named = {name: self.create_arg(value) for name, value in _fields_of(a).items()}
            return self.create_node("call_function", type(a), (), named)
        return super().create_arg(a)

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        """The function is called as a user does: torch.fx would patch its code, and a decorator's has no names."""
        proxies = {name: self.create_proxy("placeholder", name, (), {}) for name in self._arguments.read}
        args, kwargs = self.lent.made_of(self._arguments, proxies)

        def called(module: nn.Module) -> Any:
            result = root_fn(module, *args, **kwargs)
            self._require_fresh(result)
            return result

        return called, [self.root]

    def _require_fresh(self, result: Any) -> None:
        """A list or dict that the caller of a graph gets is made for it. Where it is one that somebody else has, too,
        what is written to it would be seen there. Raises `Untraceable`."""
        seen: set[int] = set()
        left = [result]
        while left:
            value = left.pop()
            if is_proxy(value):
                continue
            if isinstance(value, list | dict | set):
                if id(value) in seen or self.lent.holds(value) or self.holds(value):
                    raise Untraceable(GraphObstacle.RETURNS_ITS_OWN)
                seen.add(id(value))
            if isinstance(value, list | tuple):
                left.extend(value)
            elif isinstance(value, dict):
                left.extend(value.values())

    def proxy(self, node: Node) -> torch.fx.Proxy:
        made = Proxy(node, self)
        self.proxies.append(weakref.ref(made))
        return made

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        self.calls_others = self.calls_others or not is_plain(m)
        return (
            candidate_of(m) is not None
            or isinstance(m, RMSNorm | torch.jit.ScriptModule)
            or _is_layer_of_subclass(m)
            or obstacle_of_foreign(m) is not None
            or not is_plain(m)
            or super().is_leaf_module(m, module_qualified_name)
        )


@contextlib.contextmanager
def _unwatched() -> Iterator[None]:
    """Inside, where torch's own code runs, nothing is looked into: there is a lot of it."""
    profile: Any = sys.getprofile()
    sys.setprofile(None)
    try:
        yield
    finally:
        sys.setprofile(profile)


def _held_elsewhere(module: nn.Module) -> dict[int, tuple[str, Any]]:
    """What a graph reads where modules keep it: attributes that are arrays of numpy or generators; such and tensors in
    a dict that is one, as code caches tensors by device. By their ids, with the names of nodes."""
    found: dict[int, tuple[str, Any]] = {}
    numpy = sys.modules.get("numpy")
    kinds = (torch.Generator,) if numpy is None else (torch.Generator, numpy.ndarray)
    for name, part in module.named_modules():
        for attribute, value in vars(part).items():
            if attribute in KEPT_BY_TORCH:
                continue
            target = f"{name}.{attribute}" if name else attribute
            if type(value) in kinds and not _is_large_array(value):
                found[id(value)] = target, value
            for key, item in value.items() if type(value) is dict else ():
                is_kept = type(item) in (Tensor, *kinds) and not _is_large_array(item)
                if is_kept and isinstance(key, str) and key.isidentifier():
                    found[id(item)] = f"{target}.{ITEM}{key}", item
    return found


def _is_large_array(value: Any) -> bool:
    """What code computes of an array by itself is noticed by the content, which is looked at in smaller ones."""
    return not isinstance(value, Tensor | torch.Generator) and value.nbytes > LARGEST_ARRAY


def _is_layer_of_subclass(module: nn.Module) -> bool:
    """Whether it is one layer to convert, too: what takes its place pads as its code does, which looks at sizes."""
    layers = [part for part in module.modules() if isinstance(part, KINDS)]
    return isinstance(module, KINDS) and len(layers) == 1


def _surroundings() -> tuple[Any, ...]:
    """Whether gradients are wanted, dtypes changed, and saved tensors packed (as checkpoints do); the dtype and the
    device of tensors that are made of numbers."""
    modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), is_any_autocast_enabled()
    return *modes, saved_tensors_hooks(), torch.get_default_dtype(), torch.get_default_device()


def traced(module: nn.Module, arguments: Arguments) -> Traced:
    """What `forward` of the module does with tensors, what it read beside, and what it decides by sizes.

    Tensors that the code makes of numbers are the code's own business, unless it fails with them: then they become
    nodes of the graph; likewise where torch asked for sizes to make them, so that fewer calls would be served. Raises
    `Untraceable`.

    The module is as it was, and so is all else that its code gets at. Patches functions of the whole process meanwhile,
    so that one call at a time runs; in other threads they do what they did.
    """
    makes_tensors = False
    found: Traced | None = None
    failed: Untraceable | None = None
    while True:
        reach = Reach(module.modules())
        try:
            with ONE_AT_A_TIME:
                latest = _traced(module, arguments, reach, makes_tensors)
        except _SizesNotImported:
            Sizes.import_them()
            continue
        except Untraceable as error:
            if found is not None:
                return found
            if failed is not None and failed.obstacle is GraphObstacle.RANDOM:
                raise failed from None
            if makes_tensors or not reach.makes_tensors or error.obstacle not in _OF_TENSORS:
                raise
            failed = error
        else:
            is_asked = any(decision.question is operator.index for decision in latest[2])
            if found is not None:
                return min(found, latest, key=lambda one: len(one[2]))
            if makes_tensors or not reach.makes_tensors or not is_asked:
                return latest
            found = latest
        makes_tensors = True


class _SizesNotImported(Untraceable):
    """Code asks for a size, and what computes those is to be imported."""


_OF_TENSORS = (
    GraphObstacle.MAKES_TENSORS,
    GraphObstacle.TRACING_FAILED,
    GraphObstacle.DECIDES,
    GraphObstacle.RANDOM,
)
"""What tensors that code makes may cause: they become attributes, or are made of sizes that nobody knows yet."""


def _traced(module: nn.Module, arguments: Arguments, reach: Reach, makes_tensors: bool) -> Traced:
    """makes_tensors: whether the graph does, in the place of the code."""
    before = State(module.modules())
    if not before.is_whole:
        raise Untraceable(GraphObstacle.TOO_MUCH)
    drawn, writes = Generators(before.generators, stirs=True), Writes(module, buffers=True, alone=False)
    tracer = _Tracer(module, arguments, lambda value: before.holds(value) or reach.holds(value))
    recorded = factories_are_recorded(tracer) if makes_tensors else contextlib.nullcontext()
    if makes_tensors:
        reach.asked.append((torch.get_default_dtype, torch.get_default_dtype()))
    trained = [(one, one.requires_grad) for one in module.parameters()]
    failed: Untraceable | None = None
    try:
        with (
            writes.watched(),
            proxies_are_tensors(),
            sizes_are_not_asked(),
            recorded,
            reach.watched(lambda: Untraceable(_heard(reach)), tracer.questions.look),
        ):
            graph: torch.fx.Graph = contextvars.copy_context().run(_trace, tracer, module)
    except Exception as error:  # whatever the module's own code raises when it is given no tensors
        failed = Untraceable.within(error)
    finally:
        changes = itertools.chain(before.changes(), reach.effects())
        stored_at = next((reach.stores[one] for one in changes if one in reach.stores), "")
        changed = [before.put_back(), reach.put_back(), tracer.lent.changed(), writes.are_any]
        changed += [reach.settings.are_any, *(_wants(one, wanted) for one, wanted in trained)]
        has_drawn = drawn.put_back()
        proxies, decisions = tracer.proxies, tracer.decisions
        if tracer.questions.asked is not None:
            failed = Untraceable(GraphObstacle.ASKS_THE_CLASS, place=tracer.questions.asked)
        elif tracer.refused and failed is None:
            failed = Untraceable(GraphObstacle.DECIDES)
        elif tracer.calls_others and reach.sets_context and failed is None:
            failed = Untraceable(GraphObstacle.SURROUNDINGS)  # in which hooks may leave something for this code
        lacks_sizes, made_at = tracer.lacks_sizes, tracer.made_at
        tracer.forget()  # functions inside of torch.fx refer to it and to themselves
    changed.append(_remove(proxies))
    if lacks_sizes:
        raise _SizesNotImported(GraphObstacle.DECIDES)
    if reach.speaks or reach.tells_time:
        if failed is None or failed.obstacle is not _heard(reach):
            failed = Untraceable(_heard(reach))
        raise failed
    if made_at and any(changed) and (failed is None or failed.obstacle is GraphObstacle.TRACING_FAILED):
        raise Untraceable(GraphObstacle.MAKES_TENSORS, place=made_at)
    if any(changed) and (failed is None or failed.obstacle is GraphObstacle.TRACING_FAILED):
        raise Untraceable(GraphObstacle.SIDE_EFFECTS, place=stored_at)
    if failed is not None:
        raise failed
    if has_drawn or reach.sets_seed:
        raise Untraceable(GraphObstacle.RANDOM, place=reach.drawn_at)
    return graph, reach.beside(), decisions


def _wants(parameter: Tensor, gradient: bool) -> bool:
    """Whether it had changed that a parameter wants a gradient, or none."""
    changed = parameter.requires_grad is not gradient
    if changed:
        parameter.requires_grad_(gradient)
    return changed


def _heard(reach: Reach) -> GraphObstacle:
    """What code was about to do that no graph can do in its place."""
    return GraphObstacle.SPEAKS if reach.speaks else GraphObstacle.TELLS_TIME


def _trace(tracer: _Tracer, module: nn.Module) -> torch.fx.Graph:
    """Within a context of its own. Raises `Untraceable` where the code has set a variable of that."""
    before = dict(contextvars.copy_context().items())
    graph = tracer.trace(module)
    if any(value is not before.get(variable) for variable, value in contextvars.copy_context().items()):
        raise Untraceable(GraphObstacle.SIDE_EFFECTS)
    return graph


def _fields_of(value: Any) -> dict[str, Any]:
    """What a dataclass is made of. Raises `Untraceable` where one that is made of that would be another."""
    fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
    made = type(value)(**fields)
    same = all(getattr(made, field.name) is getattr(value, field.name) for field in dataclasses.fields(value))
    if isinstance(value, dict):
        same = same and list(map(id, contents_of(made))) == list(map(id, contents_of(value)))
    attributes, others = getattr(value, "__dict__", {}), getattr(made, "__dict__", {})
    same = same and attributes.keys() == others.keys()
    if not same or not all(is_same(attributes[name], others[name]) for name in attributes):
        raise Untraceable(GraphObstacle.RETURNS_MORE, kind=type(value).__name__)
    return fields


def _tensor_of(module: nn.Module, target: str) -> Tensor:
    place, name = place_of(module, target)
    tensor: Tensor = place[name]
    return tensor


def _remove(proxies: Sequence[weakref.ref[torch.fx.Proxy]]) -> bool:
    """Whether something still held one of `proxies`. Lists and dicts do not any more."""
    if all(proxy() is None for proxy in proxies):
        return False
    gc.collect()
    left = [proxy for proxy in (one() for one in proxies) if proxy is not None]
    for proxy in left:
        for holder in gc.get_referrers(proxy):
            with contextlib.suppress(Exception):
                _take_out(proxy, holder, left)
    return bool(left)


def _take_out(proxy: torch.fx.Proxy, holder: Any, left: list[torch.fx.Proxy]) -> None:
    if isinstance(holder, list) and holder is not left:
        holder[:] = [one for one in holder if one is not proxy]
    elif isinstance(holder, dict):
        for key in [key for key, value in holder.items() if value is proxy]:
            del holder[key]


def place_of(module: nn.Module, target: str) -> tuple[dict[str, Any], str]:
    """Where the tensor called `target` is kept."""
    owner, _, name = target.rpartition(".")
    try:
        holder = module.get_submodule(owner)
    except AttributeError:
        owner, _, attribute = owner.rpartition(".")
        holder = module.get_submodule(owner)
        cache, key = vars(holder).get(attribute), name.removeprefix(ITEM)
        if type(cache) is dict and cache.get(key) is not None:
            return cache, key
        raise Untraceable(GraphObstacle.NO_MODULE, target=target) from None
    for place in (holder._parameters, holder._buffers, vars(holder)):
        if place.get(name) is not None:
            return place, name
    raise Untraceable(GraphObstacle.MAKES_TENSORS)
