# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""torch.fx, made to see what it does not: what is done in place, buffers, surroundings, and who asks for a tensor."""

from __future__ import annotations

import builtins
import contextlib
import contextvars
import gc
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from ..._torch import is_any_autocast_enabled, saved_tensors_hooks
from ...nn import RMSNorm
from ..candidates import candidate_of
from ..facts import Fact, GraphObstacle
from ..leftovers import obstacle_of_foreign
from ..modules import is_plain
from ..survey import KINDS
from ..watch.generators import Generators
from ..watch.reach import Reach
from ..watch.state import KEPT_BY_TORCH, State
from ..watch.surroundings import Beside
from .attach import OWN_FORWARD
from .in_place import IN_PLACE

Node = torch.fx.Node

ITEM = "item_"
"""Before the key of a tensor in a dict, where a node names that: a module has methods by the names of devices."""


class Untraceable(Exception):
    """A module cannot be run as a graph; `fact` is why, and the message says it."""

    def __init__(self, obstacle: GraphObstacle, **operands: object) -> None:
        self.fact: Fact = obstacle.of(**operands)
        super().__init__(self.fact)


class _NotHashable(torch.fx.Proxy):
    """No cache (lru_cache) finds something by a size that is not known yet, and keeps a proxy for that."""

    def __hash__(self) -> int:
        raise TypeError("what is found by a tensor or a size depends on it")


class _Attribute(torch.fx.proxy.Attribute, _NotHashable):
    pass


class _Proxy(_NotHashable):
    """Also knows what is done in place: torch's own takes `x += y` for `x = x + y`."""

    _is_param = _is_buffer = False  # what torch asks of a tensor that becomes an attribute

    def __getattr__(self, name: str) -> Any:
        tracer: Any = self.tracer
        device = tracer.device if name == "device" and isinstance(tracer, _Tracer) else None
        if device is not None:
            return device
        made = _Attribute(self, name)
        tracer.proxies.append(weakref.ref(made))
        return made

    def _in_place(self, function: Callable[..., Any], other: Any) -> torch.fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {})


for _function in IN_PLACE:
    setattr(
        _Proxy, f"__{_function.__name__}__", lambda self, other, function=_function: self._in_place(function, other)
    )


_GIVE_NO_TENSOR = {"size", "shape", "dim", "ndim", "ndimension", "numel", "nelement", "stride", "item", "tolist"}
_GIVE_NO_TENSOR |= {"dtype", "device", "layout", "requires_grad", "is_contiguous", "element_size", "is_cuda"}


@contextlib.contextmanager
def _proxies_are_tensors() -> Iterator[None]:
    """Inside, `isinstance(proxy, Tensor)` is True, so that code takes the branch for tensors, which is to be recorded.

    Overriding `__class__` of the proxy instead would also convince torch's C++, which then reads it as a tensor.
    """
    plain = builtins.isinstance

    def asked(value: Any, kinds: Any, /) -> bool:
        return plain(value, kinds) or (type(value) is _Proxy and _is_tensor(value.node) and issubclass(Tensor, kinds))

    builtins.isinstance = asked  # type: ignore[assignment]
    try:
        yield
    finally:
        builtins.isinstance = plain


def _is_tensor(node: Node) -> bool:
    """Whether `node` gives a tensor, and not a size or the like."""
    if node.op == "call_method":
        return node.target not in _GIVE_NO_TENSOR
    if node.op == "call_function" and node.target is getattr:
        return node.args[1] not in _GIVE_NO_TENSOR
    if node.op == "call_function" and getattr(node.target, "__module__", None) == "_operator":
        return any(map(_is_tensor, node.all_input_nodes))
    return True


class _Tracer(torch.fx.Tracer):
    """Goes into the modules that a user wrote, unless something happens when they are called.

    torch.fx does not record in what surroundings something is computed: they have to stay the same. Buffers are
    recorded as parameters are, and not what they hold now.
    """

    proxy_buffer_attributes = True

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        if hasattr(type(module), OWN_FORWARD):
            self.traced_func_name = OWN_FORWARD
        self._surroundings = _surroundings()
        self._in_dicts = _tensors_in_dicts(module)
        devices = {tensor.device for tensor in (*module.parameters(), *module.buffers())}
        self.device = devices.pop() if len(devices) == 1 else None
        """Where everything is; a graph serves no tensor that is elsewhere."""
        self._thread = threading.get_ident()
        self.proxies: list[weakref.ref[torch.fx.Proxy]] = []

    def forget(self) -> None:
        """Let go of the module: functions inside of torch.fx refer to the tracer and to themselves.

        What another thread may ask that is in torch.fx's `__call__` at this moment stays.
        """
        for name in vars(self).keys() - {"_thread", "_autowrap_function_ids", "_autowrap_search", "proxies"}:
            del vars(self)[name]

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """A module that another thread calls meanwhile is none of what is traced."""
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, torch.fx.Proxy]) -> Any:
        """The same goes for what it reads of one."""
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_node(self, *args: Any, **kwargs: Any) -> Node:
        if _surroundings() != self._surroundings:
            raise Untraceable(GraphObstacle.SURROUNDINGS)
        return super().create_node(*args, **kwargs)

    def create_arg(self, a: Any) -> Any:
        if type(a) is _Proxy:
            return a.node
        if type(a) is Tensor and id(a) in self._in_dicts:
            return self.create_node("get_attr", self._in_dicts[id(a)], (), {})
        return super().create_arg(a)

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        """Arguments with a default are that, whatever it is, and not recorded."""
        function, args = super().create_args_for_root(root_fn, is_module, concrete_args)
        return function, [arg.node.args[0] if type(arg) is _Proxy and arg.node.args else arg for arg in args]

    def proxy(self, node: Node) -> torch.fx.Proxy:
        made = _Proxy(node, self)
        self.proxies.append(weakref.ref(made))
        return made

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return (
            candidate_of(m) is not None
            or isinstance(m, RMSNorm | torch.jit.ScriptModule)
            or _is_layer_of_subclass(m)
            or obstacle_of_foreign(m) is not None
            or not is_plain(m)
            or super().is_leaf_module(m, module_qualified_name)
        )


def _tensors_in_dicts(module: nn.Module) -> dict[int, str]:
    """Where modules keep tensors in a dict that is an attribute, by the tensors' ids: code caches them by device."""
    return {
        id(tensor): f"{name}.{attribute}.{ITEM}{key}" if name else f"{attribute}.{ITEM}{key}"
        for name, part in module.named_modules()
        for attribute, value in vars(part).items()
        if type(value) is dict and attribute not in KEPT_BY_TORCH
        for key, tensor in value.items()
        if type(tensor) is Tensor and isinstance(key, str) and key.isidentifier()
    }


def _is_layer_of_subclass(module: nn.Module) -> bool:
    """Whether it is one layer to convert, too: what takes its place pads as its code does, which looks at sizes."""
    layers = [part for part in module.modules() if isinstance(part, KINDS)]
    return isinstance(module, KINDS) and len(layers) == 1


def _surroundings() -> tuple[Any, ...]:
    """Whether gradients are wanted, dtypes changed, and saved tensors packed (as checkpoints do)."""
    hooks = saved_tensors_hooks()
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), is_any_autocast_enabled(), hooks


def traced(module: nn.Module) -> tuple[torch.fx.Graph, Beside]:
    """What `forward` of the module does with tensors, and what it read beside. Raises `Untraceable`.

    The module is as it was, and so is all else that its code gets at. Patches functions of the whole process meanwhile,
    so that one call at a time may run; in other threads they do what they did.
    """
    before = State(module.modules())
    if not before.is_whole:
        raise Untraceable(GraphObstacle.TOO_MUCH)
    drawn, reach, tracer = Generators(before.generators), Reach(module.modules()), _Tracer(module)
    failed: Untraceable | None = None
    try:
        with _proxies_are_tensors(), reach.watched(silent=_stops):
            graph: torch.fx.Graph = contextvars.copy_context().run(_trace, tracer, module)
    except Untraceable as error:
        failed = error.with_traceback(None)
    except Exception as error:  # whatever the module's own code raises when it is given no tensors
        failed = Untraceable(GraphObstacle.TRACING_FAILED, error=first_line(error))
    finally:
        changed = [before.put_back(), reach.put_back()]
        has_drawn = drawn.put_back()
        proxies = tracer.proxies
        tracer.forget()  # functions inside of torch.fx refer to it and to themselves
    changed.append(_remove(proxies))
    if reach.speaks or reach.tells_time:
        raise Untraceable(GraphObstacle.SPEAKS if reach.speaks else GraphObstacle.TELLS_TIME)
    if any(changed):
        raise Untraceable(GraphObstacle.SIDE_EFFECTS)
    if has_drawn:
        raise Untraceable(GraphObstacle.RANDOM)
    if failed is not None:
        raise failed
    return graph, reach.beside()


def _stops() -> Untraceable:
    """Where code is about to do what no graph can do in its place; the reason is told afterwards."""
    return Untraceable(GraphObstacle.SIDE_EFFECTS)


def _trace(tracer: _Tracer, module: nn.Module) -> torch.fx.Graph:
    """Within a context of its own. Raises `Untraceable` where the code has set a variable of that."""
    before = dict(contextvars.copy_context().items())
    graph = tracer.trace(module)
    if any(value is not before.get(variable) for variable, value in contextvars.copy_context().items()):
        raise Untraceable(GraphObstacle.SIDE_EFFECTS)
    return graph


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


def remove_defaults(graph: torch.fx.Graph) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Removes arguments with a default, which the graph does not read.

    Returns the names of those that are left, and the defaults of the others by name.
    """
    left: list[str] = []
    defaults: dict[str, Any] = {}
    for node in [node for node in graph.nodes if node.op == "placeholder"]:
        name = str(node.target)
        if name.startswith("*"):
            if node.users:
                raise Untraceable(GraphObstacle.VARIADIC, argument=name)
        elif not node.args:
            left.append(name)
            continue
        else:
            defaults[name] = node.args[0]
            if isinstance(node.args[0], Tensor):
                raise Untraceable(GraphObstacle.TENSOR_BY_DEFAULT, argument=name)
        graph.erase_node(node)
    return tuple(left), defaults


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}".rstrip(": ")
