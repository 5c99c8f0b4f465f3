# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""A graph for inference: each convolution and Linear takes over the BatchNorm, residual sum and ReLU behind it.

It serves calls without gradients. What it took from the modules (folded weights) is made anew when they have changed
since.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.fx
from torch import Tensor, nn

from ..facts import GraphObstacle
from ..modules import is_ordinary
from ..watch.tensors import Place
from .aliases import may_copy_arguments
from .attach import NO_ANSWER, ONE_AT_A_TIME, Recipe, own_class
from .base import Graph, Plan, assembled
from .chain import FusedChain, chain
from .channels import Link, choose_channels, links_of
from .fused import Fused
from .fusion import copy_where_views_may_not_be, drop_identities, fuse, pool
from .in_place import rests_on_layout, writes_to_layers
from .results import Order, asks_for_memory, is_default, laid_out, layout_of, may_reorder, orders_of
from .source import Source, tensors_of
from .trace import Trace
from .tracing import place_of
from .untraceable import Untraceable

_MOST_LAYOUTS = 32
"""Of arguments, for which is known how results lie in memory."""

_MOST_FOLDS = 3
"""Where other threads write to parameters while a graph is made."""

_UNKNOWN: Any = object()


@dataclass
class InferencePlan(Plan):
    """A plan with constants.

    fused    layers, with the constants that were made of their modules
    chained  fused layers that are one call, in the places of these
    links    between fused layers that may agree on channels
    writes   whether what is changed in place depends on the layout of arguments, or is one
    reorders whether what is fused may be given something that lies otherwise than new tensors do
    by_sizes whether something is a view of an argument or a copy by the argument's layout and sizes
    unfused  where weights and tensors are that are not folded, and by whose layout results may lie
    content  whether what tensors hold is looked at in each call, or only what torch counts as a write
    source   what the constants were made of; None where they are half made
    latest   the same of the last call that found something else: two such calls in a row have it folded
    """

    fused: Sequence[Fused]
    chained: Sequence[FusedChain]
    links: Sequence[Link]
    writes: bool
    reorders: bool
    by_sizes: bool
    unfused: Sequence[Place]
    content: bool
    source: Source | None = None
    latest: Source | None = None
    orders: dict[tuple[object, ...], list[Order | int] | None] = field(default_factory=dict)
    """In which order results are, by the layout of arguments and weights; None where the modules run."""
    _laid_out: frozenset[int] = frozenset()
    """Which of the weights that were folded lie otherwise than torch lays out new ones."""
    _calls: list[None] = field(default_factory=list)
    """One for each thread that is computing with the constants."""
    _folds: bool = False

    def enter(self) -> bool:
        """Before a call: whether the constants stay what they are until `leave`."""
        self._calls.append(None)  # and looks then, as `refresh` does: one of two threads sees the other
        if not self._folds:
            return True
        self._calls.pop()
        return False

    def leave(self) -> None:
        self._calls.pop()

    def weights_laid_out(self) -> frozenset[int]:
        """Which weights lie otherwise than torch lays out new ones: convolutions give results in channels_last then."""
        if not self.unfused:
            return self._laid_out
        # of a scripted module, places are no dicts
        tensors = [place[name] if name in place else None for place, name in self.unfused]  # noqa: SIM401
        others = [-1 - number for number, one in enumerate(tensors) if not is_ordinary(one) or not is_default(one)]
        return self._laid_out.union(others)

    def is_stale(self) -> bool:
        """Whether the constants are of something else than there is now."""
        return self.source is None or self.source.changed()

    def refresh(self) -> bool:
        """Fold and pack anew where parameters, statistics or patterns are others than those that were folded.

        That takes longer than a call of a small model. So it waits until two calls in a row find the same: a teacher
        that is averaged before each call would be folded each time.
        """
        with ONE_AT_A_TIME:
            if not self.is_stale():  # another thread was faster
                return True
            if self.latest is None or self.latest.changed():
                self.latest = Source(self.fused, self.content)
                return False
            self._folds = True
            try:
                if self._calls:  # other threads compute with what there is
                    return False
                self.latest = None
                self.freeze()
            finally:
                self._folds = False
        return True

    def freeze(self, fold: bool = True) -> None:
        """Make the constants of what the modules hold. Raises `Untraceable`, before it has done anything.

        Where another thread wrote to that meanwhile, there is no source: the constants are of nothing that there was.

        fold: not where the layers are new, and have just done that.
        """
        for layer in self.fused:
            obstacle = layer.obstacle()
            if obstacle is not None:
                raise Untraceable(obstacle)
        source = Source(self.fused, content=self.content)
        self.source = None  # for what raises halfway
        weights = [layer.parts[0].weight for layer in self.fused]
        self._laid_out = frozenset(
            number for number, one in enumerate(weights) if one.dim() == 4 and not is_default(one)
        )
        for layer in self.fused if fold else ():
            layer.fold()
        choose_channels(list(self.links))
        for layer in self.fused:
            layer.pack()
        for layers in self.chained:
            layers.pack()
        self.source = source if source.untouched() else None


class InferenceGraph(Graph):
    """A graph for calls without gradients, in evaluation mode.

    layout: into which images are brought, and results back into that of the modules': contiguous, in which fine-grained
    kernels are fastest, or channels_last, in which those of blocks are; `torch.preserve_format` leaves them. drops:
    whether channels that are not needed are left out. chains: whether sparse layers that follow each other become one
    call (chain.py). frozen: whether the constants stay what they are: nobody looks at what tensors hold, and what has
    visibly changed is an error.
    """

    training: ClassVar[bool] = False

    def __init__(
        self,
        module: nn.Module,
        dtype: torch.dtype,
        device: torch.device,
        layout: torch.memory_format,
        drops: bool = True,
        chains: bool = False,
        trace: Trace | None = None,
        frozen: bool = False,
    ) -> None:
        name = str(layout).removeprefix("torch.")  # torch.save has no word for the layout itself
        options = {"layout": name, "drops": drops, "chains": chains, "frozen": frozen}
        super().__init__(module, dtype, device, trace, **options)
        self.layout, self.drops, self.chains, self.frozen = layout, drops, chains, frozen

    @classmethod
    def of_recipe(cls, module: nn.Module, recipe: Recipe) -> Graph:
        options = {**recipe.options, "layout": getattr(torch, recipe.options["layout"])}
        graph = cls(module, **options)
        graph.recipe = recipe
        return graph

    def _answered(
        self, plan: InferencePlan, args: tuple[Any, ...], given: tuple[tuple[Any, ...], Mapping[str, Any]]
    ) -> Any:
        for _ in range(2):  # once more where constants were made anew
            if not plan.enter():
                return NO_ANSWER
            try:
                if not plan.is_stale():
                    plan.latest = None  # it keeps alive what it is of
                    layout = self._layout_of(plan, args)
                    answer = self._run(plan, args) if layout is None else self._laid_out(plan, args, layout)
                    break
            except Exception:  # the modules raise it as well, or their code has another way then
                if plan.writes:  # perhaps it has, to an argument
                    raise
                return NO_ANSWER
            finally:
                plan.leave()
            if not self._refreshed(plan):
                return NO_ANSWER
        else:
            return NO_ANSWER
        return self._shown(plan, args, layout, given) if answer is _UNKNOWN else answer

    def _refreshed(self, plan: InferencePlan) -> bool:
        if not self.frozen:
            return super()._refreshed(plan)
        if plan.source is not None and plan.source.changed():
            changed = plan.source.changed_in(self.module)
            few = ", ".join(map(repr, changed[:3])) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
            raise RuntimeError(
                "sparsekernels: expected a model that was converted with frozen=True to keep its parameters and"
                f" buffers, got changes of {few}; convert it again, or revert it first and change it then"
            )
        return True

    def _may_run(self, args: tuple[Any, ...]) -> bool:
        if not torch.is_grad_enabled():
            return True
        return not any(value.requires_grad for value in args) and not any(
            parameter.requires_grad for parameter in self.module.parameters()
        )

    def may_be_unchecked(self) -> bool:
        plan: Any = self._plan
        return super().may_be_unchecked() and not (plan is not None and plan.reorders)  # these answer in no layout

    def _layout_of(self, plan: InferencePlan, args: tuple[Tensor, ...]) -> tuple[object, ...] | None:
        """What decides how the results of the modules lie in memory; None where those of the graph do likewise."""
        weights = plan.weights_laid_out()
        is_as_modules = not plan.reorders and self.layout is not torch.channels_last
        if not weights and is_as_modules and all(map(is_default, args)):
            return None
        sizes = [arg.shape for arg in args if plan.by_sizes and not is_default(arg)]
        return weights, *map(layout_of, args), *sizes

    def _laid_out(self, plan: InferencePlan, args: tuple[Tensor, ...], layout: tuple[object, ...]) -> Any:
        """The result in the layout that the modules showed; `_UNKNOWN` where they did not yet."""
        if plan.writes:
            return NO_ANSWER  # the caller is to see what is written
        orders = plan.orders.get(layout, _UNKNOWN)
        if orders is None:
            return NO_ANSWER
        if orders is _UNKNOWN:
            return _UNKNOWN
        try:
            given = tuple(_in_layout(value, self.layout) for value in args)
            return laid_out(self._run(plan, given), orders, args)
        except LookupError:
            return _UNKNOWN
        except Exception:  # what is wrong with the arguments the modules say: nothing was written or drawn
            return NO_ANSWER

    def _shown(
        self,
        plan: InferencePlan,
        args: tuple[Tensor, ...],
        layout: tuple[object, ...] | None,
        given: tuple[tuple[Any, ...], Mapping[str, Any]],
    ) -> Any:
        """What the modules give, which shows how it lies in memory.

        Nothing is kept where random numbers were drawn, by another thread perhaps: the modules run in such calls.
        """
        self.shown += 1
        own: Any = own_class(self.module)
        positional, named = given
        before = torch.get_rng_state()
        result = own.forward(self.module, *positional, **named)
        if layout is not None and torch.equal(before, torch.get_rng_state()):
            if len(plan.orders) >= _MOST_LAYOUTS:
                plan.orders.clear()
            plan.orders[layout] = orders_of(result, args)
        return result

    def _plan_of(self, trace: Trace) -> InferencePlan:
        graph, modules = trace.fresh()
        if self.layout is not torch.preserve_format and (name := asks_for_memory(graph)):
            raise Untraceable(GraphObstacle.PLANNING_FAILED, error=f"{name} goes by where elements lie in memory")
        if writes_to_layers(graph, modules, functools.partial(place_of, trace.module)):
            raise Untraceable(GraphObstacle.WRITES_TO_LAYERS)
        drop_identities(graph, modules)
        if self.layout is torch.channels_last:
            copy_where_views_may_not_be(graph)
        before = tensors_of(modules.values(), content=not self.frozen)
        fused = fuse(graph, modules, self.layout)
        if self.layout is not torch.preserve_format:
            pool(graph, modules)
        if not fused:
            raise Untraceable(GraphObstacle.NOTHING_TO_FUSE)
        writes, reorders = rests_on_layout(graph, modules), may_reorder(graph, modules, fused)
        unfused = list(_unfused(trace.module, graph, modules))
        links = links_of(graph, fused, modules) if self.drops else []
        chained = chain(graph, fused) if self.chains and self.layout is torch.contiguous_format else {}
        parts = [part for layer in fused.values() for part in layer.parts if part is not None]
        made = assembled(trace, modules, graph, {**fused, **chained}, parts)
        plan = InferencePlan(
            made,
            trace.arguments,
            list(fused.values()),
            list(chained.values()),
            links,
            writes,
            reorders,
            may_copy_arguments(graph, modules),
            unfused,
            not self.frozen,
        )
        plan.freeze(fold=False)
        if not before.untouched():
            plan.source = None
        for _ in range(_MOST_FOLDS):
            if plan.source is not None:
                return plan
            plan.freeze()
        if plan.source is None and self.frozen:  # else the modules run until it is still
            raise Untraceable(GraphObstacle.PLANNING_FAILED, error="other threads write to its parameters meanwhile")
        return plan


def _in_layout(value: Tensor, layout: torch.memory_format) -> Tensor:
    return value.contiguous(memory_format=layout) if value.dim() == 4 and layout is not torch.preserve_format else value


def _unfused(module: nn.Module, graph: torch.fx.Graph, modules: Mapping[str, nn.Module]) -> Iterator[Place]:
    """Where the weights of convolutions are that are called as they are, and the tensors that the graph reads."""
    for node in graph.nodes:
        if node.op == "get_attr":
            place, name = place_of(module, str(node.target))
            if isinstance(place[name], Tensor):
                yield place, name
        elif node.op == "call_module" and node.target in modules:
            for part in modules[node.target].modules():
                for name, tensor in part._parameters.items():
                    if tensor is not None and tensor.dim() > 3:
                        yield part._parameters, name
