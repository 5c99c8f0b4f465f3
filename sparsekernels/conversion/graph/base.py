# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What stands in the place of a module's `forward`, and runs it as a graph where the result is the same.

It traces the module once (torch.fx), fuses, and runs that graph eagerly, in the mode and on tensors of the kind it was
made for. In any other call, the modules run. inference.py and training.py say what is fused.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.fx
from torch import Tensor, nn

from ..._torch import NormBase, has_any_global_hook, is_jit_tracing
from ...dispatch import is_special
from ..facts import GraphObstacle
from ..modules import is_plain
from ..survey import Call
from ..watch.state import TooMuch
from ..watch.watch import Fixed, Watch
from .trace import Trace
from .tracing import Untraceable

ONE_AT_A_TIME = threading.RLock()
"""Held while a module is traced, since torch.fx patches `nn.Module.__call__` and we `isinstance`, and while constants
are folded anew, since that changes what a graph computes with."""

_MOST_RETRACED = 4
"""How often a model that has changed is traced again: one that changes all the time runs as no graph."""


@dataclass
class Plan:
    """What was made of a module: how to run it, and what that rests on."""

    run: Callable[..., Any]
    arguments: int
    watch: Watch

    def refresh(self) -> None:
        """Follow what parameters have become. Raises `Untraceable`, before it has done anything."""


class Graph:
    """Stands for the `forward` of `module`; `dtype` and `device` are of the tensors that it is made for.

    trace: of the module as it is, where there is one already.
    """

    training: ClassVar[bool]

    def __init__(self, module: nn.Module, dtype: torch.dtype, device: torch.device, trace: Trace | None = None) -> None:
        self.module, self.dtype, self.device = module, dtype, device
        self._trace = trace
        self._plan: Plan | None = None
        self._failed = False
        self._missed, self._retraced = False, 0

    def __getstate__(self) -> dict[str, Any]:
        # what follows from the modules is neither copied nor pickled
        return {**vars(self), "_trace": None, "_plan": None, "_missed": False, "_retraced": 0}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module's `forward` returns."""
        if not torch.compiler.is_compiling() and self._takes(args, kwargs):
            plan = self._current_plan(args)
            if plan is not None:
                return self._run(plan, args)
        return type(self.module).forward(self.module, *args, **kwargs)

    def prepare(self) -> Any:
        """Trace and fuse now, unless that was done. Returns the plan. Raises `Untraceable`."""
        with ONE_AT_A_TIME:
            if self._plan is None:
                if self.module.training is not self.training:
                    mode = "training" if self.module.training else "evaluation"
                    raise Untraceable(GraphObstacle.MODE, mode=mode)
                trace, self._trace = self._trace, None
                self._plan = self._plan_of(trace or Trace.of(self.module))
            return self._plan

    def plan_anew(self, trace: Trace) -> None:
        """Fuse once more: `trace` holds, the parameters are others. Raises `Untraceable`."""
        with ONE_AT_A_TIME:
            self._plan, self._trace = None, trace
            self.prepare()

    def serves(self, call: Call) -> bool:
        """Whether it runs as a graph where it is called like this. Raises `Untraceable`."""
        alike = [given is not None and (given.dtype, given.device) == (self.dtype, self.device) for given in call or ()]
        return call is not None and all(alike) and len(alike) == self.prepare().arguments

    def _plan_of(self, trace: Trace) -> Plan:
        raise NotImplementedError

    def _run(self, plan: Any, args: tuple[Any, ...]) -> Any:
        return plan.run(*args)

    def _may_run(self, args: tuple[Any, ...]) -> bool:
        """Whether gradients are wanted as they were when it was traced."""
        raise NotImplementedError

    def _takes(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        if kwargs or self.module.training is not self.training or is_special():
            return False
        if is_jit_tracing() or has_any_global_hook():
            return False
        for value in args:
            if type(value) is not Tensor or value.dtype is not self.dtype or value.device != self.device:
                return False
        return True

    def _current_plan(self, args: tuple[Any, ...]) -> Plan | None:
        """The plan, with the parameters that there are now; None where the modules have to run."""
        if self._failed:
            return None
        try:
            plan = self._plan
            if plan is None:
                plan = self.prepare()
            if not plan.watch.unchanged():
                plan = self._traced_anew()
            if plan is None or len(args) != plan.arguments:
                return None
            self._missed = False
            if not self._may_run(args):
                return None
            plan.refresh()
        except Untraceable:
            self._failed = self._plan is None  # what cannot be folded now can perhaps be later
            return None
        return plan

    def _traced_anew(self) -> Plan | None:
        """A plan of the modules as they are now, if that is worth it.

        At first they run by themselves: code may keep something for later calls, which it finds there the next time.
        """
        if not self._missed or self._retraced == _MOST_RETRACED:
            self._missed = True
            return None
        with ONE_AT_A_TIME:
            previous, self._plan = self._plan, None
            self._missed, self._retraced = False, self._retraced + 1
            try:
                plan = self.prepare()
            except Untraceable:
                self._plan = previous
                return None
        return plan if plan.watch.unchanged() else None


@dataclass(frozen=True)
class Assembled:
    """A graph that can be run, and the watch over what it was traced from."""

    run: Callable[..., Any]
    watch: Watch


def assembled(
    module: nn.Module,
    modules: Mapping[str, nn.Module],
    graph: torch.fx.Graph,
    made: Mapping[str, Any],
    followed: Iterable[nn.Module],
    free: Sequence[tuple[nn.Module, Sequence[str]]] = (),
) -> Assembled:
    """`graph` made runnable, of the modules that it names and of those that were `made` for it.

    made: by the names under which the graph calls them; `taken` of each are the modules that it stands for, if any.
    followed, free: see `Watch.of`.
    """
    root: dict[str, Any] = {}
    read: list[Fixed] = []
    for node in graph.nodes:
        if node.op == "call_module":
            root[node.target] = made.get(node.target) or modules[node.target]
        elif node.op == "get_attr":
            place, name = _place_of(module, node.target)
            root[node.target] = place[name]
            read.append((place, name, place[name]))
    run = torch.fx.GraphModule(root, graph).forward
    within = {id(part) for leaf in root.values() if isinstance(leaf, nn.Module) for part in leaf.modules()}
    taken = {id(part) for maker in made.values() for part in getattr(maker, "taken", ())}
    # one that was taken over in one place may be called in another
    passed = [part for part in modules.values() if id(part) not in within or id(part) in taken]
    modes = [
        part
        for part in modules.values()
        if part is not module and (id(part) not in within or id(part) in taken or _is_norm(part))
    ]
    try:
        watch = Watch.of(passed, modules.values(), modes, read, followed, free)
    except TooMuch as error:
        raise Untraceable(GraphObstacle.TOO_MUCH) from error
    return Assembled(run, watch)


def _is_norm(module: nn.Module) -> bool:
    """Whether it does something else in training, where a graph may call it."""
    return isinstance(module, NormBase) and is_plain(module)


def _place_of(module: nn.Module, target: str) -> tuple[dict[str, Any], str]:
    """Where the tensor called `target` is kept."""
    owner, _, name = target.rpartition(".")
    try:
        holder = module.get_submodule(owner)
    except AttributeError:
        raise Untraceable(GraphObstacle.NO_MODULE, target=target) from None
    for place in (holder._parameters, holder._buffers, vars(holder)):
        if place.get(name) is not None:
            return place, name
    raise Untraceable(GraphObstacle.MAKES_TENSORS)
