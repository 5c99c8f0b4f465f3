"""A module, or a part of a model, as a graph in which layers are fused.

`Engine.forward` stands in the place of a module's. It traces the module once (torch.fx), fuses, and runs that graph
where the result is that of the modules: eagerly, in the mode and on tensors of the kind it was made for. In any other
call, the modules run.

For inference, each convolution and Linear takes over the BatchNorm, residual sum and ReLU behind it; the graph serves
calls without gradients. What it took from the modules (folded weights) is made anew when they have changed since. For
training, each BatchNorm takes over the residual sum, the ReLU and the dropout behind it, and max pooling is ours; the
other modules are called as they are.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx
import torch.nn.modules.module as _module
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ..nn.replacement import Replacement
from ..ops.sparse_conv2d.op import is_special
from .batch_norm import FusedNorm
from .chain import FusedChain, chain
from .channels import Link, links_of, settle
from .fused import Fused
from .fusion import drop_identities, fuse, fuse_norms, pool, writes_to_input
from .modules import is_plain
from .state import CONVERSION, KEPT_BY_TORCH, Held, TooMuch, held_by, is_same
from .survey import Call
from .tracing import Untraceable, settle_arguments, traced

Node = torch.fx.Node

_ONE_AT_A_TIME = threading.RLock()
"""torch.fx exchanges `nn.Module.__call__` while it traces, and we `isinstance`; folding exchanges what a graph computes
with."""

_MOST_RETRACED = 4
"""So many times a model that has changed becomes another graph: one that changes all the time is none."""


@dataclass
class _Tensor:
    """A parameter or buffer at its place, and how one tells that it is another one now."""

    place: dict[str, Any]
    name: str
    tensor: Tensor
    version: int
    address: int

    def changed(self) -> bool:
        tensor = self.tensor
        return (
            self.place.get(self.name) is not tensor
            or tensor._version != self.version
            or tensor.data_ptr() != self.address
        )


@dataclass
class _Pattern:
    """Which weights a sparse layer uses."""

    layer: Replacement
    pattern: object

    def changed(self) -> bool:
        return self.layer.pattern is not self.pattern


@dataclass
class _Plan:
    """What was made of the module: the graph, and what it rests on.

    fixed     modules, attributes that the code may have looked at, and tensors that it reads, at their places
    shapes    which children, parameters and buffers there are
    held      what the code may have looked into, at any depth: lists, dicts, objects, tensors
    types     of the modules: a parametrization changes a class
    modules   those that are not called any more, or never were but gone through, and the modes that they were in
    tensors   those that fused layers were made of, and patterns
    chained   fused layers, in the places of these
    links     between fused layers that may agree on channels
    writes    whether an argument is changed in place
    """

    run: Callable[..., Any]
    arguments: int
    fixed: list[tuple[dict[str, Any], str, Any]]
    shapes: list[tuple[dict[str, Any], tuple[str, ...]]]
    held: list[Held]
    types: list[tuple[nn.Module, type]]
    modules: list[tuple[nn.Module, bool]]
    tensors: list[_Tensor | _Pattern]
    fused: list[Fused]
    chained: list[FusedChain]
    links: list[Link]
    writes: bool

    def stands(self) -> bool:
        """Whether the modules are still those that were traced, in the same modes and without hooks."""
        for place, name, value in self.fixed:
            if not is_same(place.get(name, self), value):
                return False
        for place, names in self.shapes:
            if tuple(place) != names:
                return False
        if any(held.changed() for held in self.held):
            return False
        for module, kind in self.types:
            if type(module) is not kind:
                return False
        for module, training in self.modules:
            if (
                module.training is not training
                or module._forward_hooks
                or module._forward_pre_hooks
                or module._backward_hooks
                or module._backward_pre_hooks
                or "forward" in module.__dict__
            ):
                return False
        return True

    def has_changed(self) -> bool:
        """Whether parameters are others than those that were folded."""
        return any(tensor.changed() for tensor in self.tensors)

    def freeze(self) -> None:
        """Make the fused layers anew of what their modules hold. Raises `Untraceable`, before it has done anything."""
        tensors = list(_tensors_of(self.fused))
        for fused in self.fused:
            fused.fold()
        settle(self.links)
        for fused in self.fused:
            fused.pack()
        for one in self.chained:
            one.pack()
        self.tensors = tensors


class Engine:
    """Stands for the `forward` of `module`; `dtype` and `device` are of the tensors that it is made for.

    contiguous: whether images are brought into contiguous layout, in which the sparse kernels are fastest, and results
    back into that of the input. drops: whether channels that are not needed are left out. chains: whether sparse layers
    that follow each other become one call (chain.py). training: whether it serves training; the three others then mean
    nothing.
    """

    def __init__(
        self,
        module: nn.Module,
        dtype: torch.dtype,
        device: torch.device,
        contiguous: bool,
        drops: bool = True,
        chains: bool = False,
        training: bool = False,
    ) -> None:
        self.module, self.dtype, self.device, self.training = module, dtype, device, training
        self.contiguous, self.drops, self.chains = contiguous, drops, chains
        self._plan: _Plan | None = None
        self._failed = False
        self._missed, self._retraced = False, 0

    def __getstate__(self) -> dict[str, Any]:
        # what follows from the modules is neither copied nor pickled
        return {**vars(self), "_plan": None, "_missed": False, "_retraced": 0}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module's `forward` returns."""
        if not torch.compiler.is_compiling() and self._takes(args, kwargs):
            plan = self._current_plan(args)
            if plan is not None:
                return self._run(plan, args)
        return type(self.module).forward(self.module, *args, **kwargs)

    def _current_plan(self, args: tuple[Any, ...]) -> _Plan | None:
        """The plan, with the parameters that there are now; None where the modules have to run."""
        if self._failed:
            return None
        try:
            plan = self._plan
            if plan is None:
                plan = self.prepare()
            if not plan.stands():
                plan = self._traced_anew()
            if plan is None or len(args) != plan.arguments:
                return None
            self._missed = False
            if not self.training and not self._wants_no_gradient(args):
                return None
            if plan.has_changed():
                with _ONE_AT_A_TIME:
                    if plan.has_changed():  # no other thread was faster
                        plan.freeze()
        except Untraceable:
            self._failed = self._plan is None  # what cannot be folded now can perhaps be later
            return None
        return plan

    def _traced_anew(self) -> _Plan | None:
        """A plan of the modules as they are now, if that is worth it.

        At first they run by themselves: code may keep something for later calls, which it finds there the next time.
        """
        if not self._missed or self._retraced == _MOST_RETRACED:
            self._missed = True
            return None
        with _ONE_AT_A_TIME:
            previous, self._plan = self._plan, None
            self._missed, self._retraced = False, self._retraced + 1
            try:
                plan = self.prepare()
            except Untraceable:
                self._plan = previous
                return None
        return plan if plan.stands() else None

    def _takes(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        if kwargs or self.module.training is not self.training or is_special():
            return False
        if self.training and not torch.is_grad_enabled():
            return False  # code may look at that: it was traced for training
        if torch.jit._trace.is_tracing() or _module._has_any_global_hook():
            return False
        for value in args:
            if type(value) is not Tensor or value.dtype is not self.dtype or value.device != self.device:
                return False
        return True

    def serves(self, call: Call) -> bool:
        """Whether it runs as a graph where it is called like this. Raises `Untraceable`."""
        alike = [one is not None and (one.dtype, one.device) == (self.dtype, self.device) for one in call or ()]
        return call is not None and all(alike) and len(alike) == self.prepare().arguments

    def _wants_no_gradient(self, args: tuple[Any, ...]) -> bool:
        if not torch.is_grad_enabled():
            return True
        return not any(value.requires_grad for value in args) and not any(
            parameter.requires_grad for parameter in self.module.parameters()
        )

    def _run(self, plan: _Plan, args: tuple[Any, ...]) -> Any:
        if self.training or not self.contiguous:
            return plan.run(*args)
        last = False
        if plan.writes and any(not value.is_contiguous() for value in args):
            return type(self.module).forward(self.module, *args)  # the caller is to see what is written
        for value in args:
            last = last or (value.dim() == 4 and not value.is_contiguous())
        if not last:
            return plan.run(*args)
        last = any(value.is_contiguous(memory_format=torch.channels_last) for value in args if value.dim() == 4)
        result = plan.run(*(one.contiguous() if one.dim() == 4 else one for one in args))
        return tree_map_only(Tensor, _to_channels_last, result) if last else result

    def prepare(self) -> _Plan:
        """Trace and fuse now, unless that was done. Raises `Untraceable`."""
        with _ONE_AT_A_TIME:
            if self._plan is None:
                if self.module.training is not self.training:
                    raise Untraceable(f"it is in {'training' if self.module.training else 'evaluation'} mode")
                if self.training:
                    self._plan = _training_plan_of(self.module)
                else:
                    self._plan = _plan_of(self.module, self.contiguous, self.drops, self.chains)
            return self._plan


def _to_channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def _plan_of(module: nn.Module, contiguous: bool, drops: bool, chains: bool) -> _Plan:
    graph = traced(module)
    arguments = settle_arguments(graph)
    modules = dict(module.named_modules())
    drop_identities(graph, modules)
    fused = fuse(graph, modules, contiguous)
    if contiguous:
        pool(graph, modules)
    if not fused:
        raise Untraceable("there is nothing to fuse")
    writes = any(writes_to_input(node, modules) for node in graph.nodes)
    links = links_of(graph, fused, modules) if drops else []
    chained = chain(graph, fused) if chains and contiguous else {}
    plan = _assembled(module, modules, graph, arguments, {**fused, **chained}, writes)
    plan.fused, plan.chained, plan.links = list(fused.values()), list(chained.values()), links
    plan.freeze()
    return plan


def _training_plan_of(module: nn.Module) -> _Plan:
    graph = traced(module)
    arguments = settle_arguments(graph)
    modules = dict(module.named_modules())
    drop_identities(graph, modules)
    norms = fuse_norms(graph, modules)
    if not pool(graph, modules) and not norms:
        raise Untraceable("there is nothing to fuse")
    return _assembled(module, modules, graph, arguments, norms, False)


def _assembled(
    module: nn.Module,
    modules: Mapping[str, nn.Module],
    graph: torch.fx.Graph,
    arguments: int,
    made: Mapping[str, Fused | FusedChain | FusedNorm],
    writes: bool,
) -> _Plan:
    """The plan that runs `graph`, of the modules that it names and of those that were `made` for it."""
    root: dict[str, Any] = {}
    read: list[tuple[dict[str, Any], str, Any]] = []
    for node in graph.nodes:
        if node.op == "call_module":
            root[node.target] = made.get(node.target) or modules[node.target]
        elif node.op == "get_attr":
            place, name = _place_of(module, node.target)
            root[node.target] = place[name]
            read.append((place, name, place[name]))
    run = torch.fx.GraphModule(root, graph).forward
    within = {id(part) for leaf in root.values() if isinstance(leaf, nn.Module) for part in leaf.modules()}
    makers = [one for one in made.values() if not isinstance(one, FusedChain)]
    taken = {id(one) for maker in makers for one in maker.taken}
    # one that was taken over in one place may be called in another
    passed = [one for one in modules.values() if id(one) not in within or id(one) in taken]
    attributes = [attribute for one in passed for attribute in _fixed_of(one)]
    fixed = [(place, name, value) for one in passed for place in _places(one) for name, value in place.items()]
    fixed += attributes
    try:
        held = held_by((value for _, _, value in attributes), {id(one) for one in modules.values()})
    except TooMuch as error:
        raise Untraceable(str(error)) from error
    # parameters and statistics may be others, as long as they are there: these are folded anew
    parts = [part for maker in makers for part in maker.parts if part is not None]
    owned = {id(place) for part in parts for place in _places(part)}
    fixed = [one for one in fixed if one[2] is None or id(one[0]) not in owned]
    # and these are looked at in each call
    norms = {id(vars(part)) for maker in makers if isinstance(maker, FusedNorm) for part in maker.parts}
    fixed = [one for one in fixed if id(one[0]) not in norms or one[1] not in ("eps", "momentum")]
    return _Plan(
        run=run,
        arguments=arguments,
        fixed=fixed + read,
        shapes=[(place, tuple(place)) for one in passed for place in _places(one)],
        held=held,
        types=[(one, type(one)) for one in passed],
        modules=[
            (one, one.training)
            for one in modules.values()
            if one is not module and (id(one) not in within or id(one) in taken or _is_norm(one))
        ],
        tensors=[],
        fused=[],
        chained=[],
        links=[],
        writes=writes,
    )


def _fixed_of(module: nn.Module) -> Iterator[tuple[dict[str, Any], str, Any]]:
    """The attributes of `module` that its code, or a kernel in its place, may have looked at."""
    attributes, followed = vars(module), isinstance(module, Replacement)  # a pattern is looked at in each call
    for name, value in attributes.items():
        if name not in KEPT_BY_TORCH and name not in _NOT_LOOKED_AT and not (followed and name == "pattern"):
            yield attributes, name, value


def _places(module: nn.Module) -> tuple[dict[str, Any], ...]:
    return module._modules, module._parameters, module._buffers


def _is_norm(module: nn.Module) -> bool:
    """Whether it does something else in training, where a graph may call it."""
    return isinstance(module, nn.modules.batchnorm._NormBase) and is_plain(module)


_NOT_LOOKED_AT = frozenset({"forward", CONVERSION})


def _place_of(module: nn.Module, target: str) -> tuple[dict[str, Any], str]:
    """Where the tensor called `target` is kept."""
    owner, _, name = target.rpartition(".")
    try:
        holder = module.get_submodule(owner)
    except AttributeError:
        raise Untraceable(f"it reads {target}, which is no module's") from None
    for place in (holder._parameters, holder._buffers, vars(holder)):
        if place.get(name) is not None:
            return place, name
    raise Untraceable("it makes tensors of its own, which might be others in each call")


def _tensors_of(fused: list[Fused]) -> Iterator[_Tensor | _Pattern]:
    for one in fused:
        for part in one.parts:
            if isinstance(part, Replacement) and part.pattern is not None:
                yield _Pattern(part, part.pattern)
            for place in () if part is None else (part._parameters, part._buffers):
                for name, tensor in place.items():
                    if tensor is not None:  # torch counts batches, but no changes of the running statistics
                        if tensor.is_inference():
                            raise Untraceable("its parameters are inference tensors, whose changes cannot be seen")
                        yield _Tensor(place, name, tensor, tensor._version, tensor.data_ptr())
