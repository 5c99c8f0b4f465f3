# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What runs in the place of a module's `forward` where the result is the same.

It traces the module once (torch.fx), fuses, and runs that graph eagerly, in the mode and on tensors of the kind it was
made for. In any other call, the modules run. attach.py says how it hangs on the module, inference.py and training.py
what is fused.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.fx
from torch import nn

from ..._torch import NormBase, dispatch_modes, has_any_global_hook, has_function_mode, is_jit_tracing
from ...dispatch import is_special
from ..facts import GraphObstacle
from ..modules import is_plain
from ..survey import PLAIN, Call
from ..watch.entries import Entry
from ..watch.state import TooMuch
from ..watch.watch import Watch
from .attach import NO_ANSWER, ONE_AT_A_TIME, Recipe, own_class
from .signature import Arguments
from .sizes import Guards
from .trace import Trace
from .tracing import place_of
from .untraceable import Untraceable, first_line

_MOST_RETRACED = 4
"""How often a model that has changed is traced again: one that changes all the time runs as no graph."""


@dataclass(frozen=True)
class Assembled:
    """A graph that can be run, the watch over what it was traced from, and the names of what it calls."""

    run: Callable[..., Any]
    watch: Watch
    calls: tuple[str, ...]


@dataclass
class Plan:
    """What was made of a module: how to run it, how it is called, and what that rests on.

    guard: which calls it serves, where code decides by sizes.
    """

    made: Assembled
    arguments: Arguments
    guard: Guards | None = field(default=None, kw_only=True)

    @property
    def run(self) -> Callable[..., Any]:
        return self.made.run

    @property
    def watch(self) -> Watch:
        return self.made.watch

    def serves(self, call: Call, dtype: torch.dtype, device: torch.device) -> bool:
        """Whether it can run where the module is called like that."""
        given = self.arguments.serves(call, dtype, device)
        return given is not None and (self.guard is None or self.guard.holds(given, at_once=True))

    def refresh(self) -> bool:
        """Follow what parameters have become; False where the modules have to run meanwhile.

        Raises `Untraceable`, before it has done anything.
        """
        return True


class Graph:
    """Runs `module`; `dtype` and `device` are of the tensors that it is made for. Does not keep the module alive.

    trace: of the module as it is, where there is one already.
    """

    training: ClassVar[bool]

    def __init__(
        self,
        module: nn.Module,
        dtype: torch.dtype,
        device: torch.device,
        trace: Trace | None = None,
        **options: Any,
    ) -> None:
        self._module = weakref.ref(module)
        self.dtype, self.device = dtype, device
        self.recipe = Recipe(type(self), {"dtype": dtype, "device": device, **options})
        self._trace = trace
        self._plan: Plan | None = None
        self._failed = False
        self._missed, self._retraced = False, 0
        self._has_run = False
        self.shown = 0
        """In how many calls the modules ran, to show how their results lie in memory."""

    @classmethod
    def of_recipe(cls, module: nn.Module, recipe: Recipe) -> Graph:
        """The graph that a recipe of this class makes of a module."""
        graph = cls(module, **recipe.options)
        graph.recipe = recipe
        return graph

    @property
    def module(self) -> nn.Module:
        module = self._module()
        if module is None:
            raise RuntimeError("the module of a graph is gone")
        return module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the module's `forward` returns."""
        answer = self.answer(args, kwargs)
        if answer is not NO_ANSWER:
            return answer
        own: Any = own_class(self.module)
        return own.forward(self.module, *args, **kwargs)

    def answer(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """What the module's `forward` returns; `NO_ANSWER` where the modules have to run."""
        if self._failed or self.module.training is not self.training or is_special():
            return NO_ANSWER
        if is_jit_tracing() or has_any_global_hook() or dispatch_modes() or has_function_mode():
            return NO_ANSWER
        plan = self._current_plan(args, kwargs)
        if plan is None:
            return NO_ANSWER
        given = plan.arguments.bound(args, kwargs)
        if given is None or not all(map(_is_plain_tensor, given)) or not self._may_run(given):
            return NO_ANSWER
        if not plan.arguments.fit(given, self.dtype, self.device):
            return NO_ANSWER
        if plan.guard is not None and not plan.guard.holds(given):
            return NO_ANSWER
        return self._answered(plan, given, (args, kwargs))

    def prepare(self, call: Call | None = None) -> Any:
        """Trace and fuse now, unless that was done. Returns the plan. Raises `Untraceable`.

        call: see `Trace.of`.
        """
        with ONE_AT_A_TIME:
            if self._plan is None:
                if self.module.training is not self.training:
                    mode = "training" if self.module.training else "evaluation"
                    raise Untraceable(GraphObstacle.MODE, mode=mode)
                trace, self._trace = self._trace, None
                try:
                    trace = trace or Trace.of(self.module, call)
                    plan = self._plan_of(trace)
                    plan.guard = trace.guard()
                    self._plan = plan
                except Untraceable:
                    raise
                except Exception as error:  # whatever is wrong with what the modules hold: they can still be called
                    raise Untraceable(GraphObstacle.PLANNING_FAILED, error=first_line(error)) from error
            return self._plan

    def plan_anew(self, trace: Trace) -> None:
        """Fuse once more: `trace` holds, the parameters are others. Raises `Untraceable`."""
        with ONE_AT_A_TIME:
            self._plan, self._trace = None, trace
            self.prepare()

    def serves(self, call: Call) -> bool:
        """Whether it runs as a graph where it is called like this. Raises `Untraceable`."""
        plan: Plan = self.prepare(call)
        return call is not None and plan.serves(call, self.dtype, self.device)

    def _plan_of(self, trace: Trace) -> Plan:
        raise NotImplementedError

    def _run(self, plan: Any, args: tuple[Any, ...]) -> Any:
        result = plan.run(*args)
        self._has_run = True
        return result

    def may_be_unchecked(self) -> bool:
        """Whether the modules ran in all calls so far, and it may answer others."""
        return not self._has_run

    def _answered(self, plan: Any, args: tuple[Any, ...], given: tuple[tuple[Any, ...], Mapping[str, Any]]) -> Any:
        """args: what the graph reads. given: what the module was called with."""
        return self._run(plan, args) if self._refreshed(plan) else NO_ANSWER

    def _may_run(self, args: tuple[Any, ...]) -> bool:
        """Whether gradients are wanted as they were when it was traced."""
        raise NotImplementedError

    def _current_plan(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Plan | None:
        """The plan of the modules as they are; None where they have to run."""
        try:
            plan = self._plan
            if plan is None:
                plan = self.prepare(Call.of(args, kwargs))
            if plan.watch.unchanged():
                self._missed = False
                return plan
            return self._traced_anew(args, kwargs)
        except Untraceable:
            self._failed = True
            return None

    def _refreshed(self, plan: Any) -> bool:
        try:
            return plan.refresh()
        except Exception:  # whatever is wrong with what the modules hold; it can perhaps be folded later
            return False

    def _traced_anew(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Plan | None:
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
                plan: Plan = self.prepare(Call.of(args, kwargs))
            except Untraceable:
                self._plan = previous
                return None
        return plan if plan.watch.unchanged() else None


def assembled(
    trace: Trace,
    modules: Mapping[str, nn.Module],
    graph: torch.fx.Graph,
    made: Mapping[str, Any],
    followed: Iterable[nn.Module],
    free: Sequence[tuple[nn.Module, Sequence[str]]] = (),
) -> Assembled:
    """`graph`, made of that of `trace`, made runnable, of the modules that it names and of those `made` for it.

    made: by the names under which the graph calls them; `taken` of each are the modules that it stands for, if any.
    followed, free: see `Watch`.
    """
    module = trace.module
    root: dict[str, Any] = {}
    read: list[Entry] = []
    for node in graph.nodes:
        if node.op == "call_module":
            root[node.target] = made.get(node.target) or modules[node.target]
        elif node.op == "get_attr":
            place, name = place_of(module, node.target)
            root[node.target] = place[name]
            read.append((place, name, place[name]))
    run = _runner(root, graph)
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
        watch = Watch(module, passed, modules.values(), modes, read, followed, free, trace.beside)
    except TooMuch as error:
        raise Untraceable(GraphObstacle.TOO_MUCH) from error
    calls = tuple(f"{node.op}:{node.target}" for node in graph.nodes if node.op.startswith("call"))
    return Assembled(run, watch, calls)


class _Holder:
    """What the code of a graph has its modules and tensors from."""


def _runner(root: Mapping[str, Any], graph: torch.fx.Graph) -> Callable[..., Any]:
    """The code of a graph, with what it calls and reads by name.

    Not by a GraphModule: it and its graph refer to each other, so that the garbage collector alone would free what is
    in them, and it registers buffers anew in the modules that it is given.
    """
    source = graph.python_code("self")
    space: dict[str, Any] = dict(source.globals)
    exec(compile(source.src, "<sparsekernels graph>", "exec"), space)
    holder = _Holder()
    for target, value in root.items():
        owner: Any = holder
        *path, name = target.split(".")
        for part in path:
            owner = vars(owner).setdefault(part, _Holder()) if type(owner) is _Holder else owner
        if type(owner) is _Holder:  # else a module of the model, which has it
            setattr(owner, name, value)
    return functools.partial(space["forward"], holder)


def _is_plain_tensor(value: object) -> bool:
    return type(value) in PLAIN and value.layout is torch.strided  # type: ignore[attr-defined]


def _is_norm(module: nn.Module) -> bool:
    """Whether it does something else in training, where a graph may call it."""
    return isinstance(module, NormBase) and is_plain(module)
