# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Inference and training: which graphs and ways to run a model there are, what is timed, how results are compared."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from .agreement import are_close, backward_at_random, differentiable, kept, point_alike
from .facts import Fact, Note, Way
from .graph.base import Graph
from .graph.batch_norm import dropout_by_torch
from .graph.inference import InferenceGraph
from .graph.trace import Trace
from .graph.training import TrainingGraph, TrainingPlan
from .installation import Conversion, Swap
from .survey import Recorded
from .watch.state import unchanged


@dataclass(frozen=True, eq=False)
class Offer:
    """A way to run the model, perhaps one that gives what it gave before."""

    way: Way
    conversion: Conversion


class AsGraphs(Protocol):
    """Makes the conversion of exchanged layers that run as graphs; `contiguous` and `chains` as of `Mode.graph`."""

    def __call__(self, swaps: list[Swap], contiguous: bool = True, chains: bool = False) -> Conversion: ...


class Mode:
    """What `convert` asks of the mode that a model is in.

    name: as reports have it. fuses_layers: whether a graph runs layers with frozen weights, on contiguous images.
    names_obstacles: whether it is said which parts do not run as a graph, and why. first: the way without which no
    other agrees.
    """

    name: ClassVar[str]
    fuses_layers: ClassVar[bool]
    names_obstacles: ClassVar[bool]
    first: ClassVar[Way | None] = None

    expected: object = None
    """What results are compared with, where that does not depend on the offer. It may change at a comparison."""

    def __init__(self, model: nn.Module, args: tuple[Any, ...], call: Callable[[], object], recorded: Recorded) -> None:
        self._model, self._args, self._call, self._recorded = model, args, call, recorded

    def notes(self) -> tuple[Fact, ...]:
        """What is to be said of a conversion in this mode."""
        return ()

    def graph(
        self, trace: Trace, dtype: torch.dtype, device: torch.device, contiguous: bool, drops: bool, chains: bool
    ) -> Graph:
        """The graph of what was traced, for tensors of that kind; the others as of `InferenceGraph`."""
        raise NotImplementedError

    def fused(self, graphs: Sequence[Graph]) -> tuple[Fact, ...]:
        """What is to be said of the graphs that a model runs as."""
        raise NotImplementedError

    def start(self) -> None:
        """Before results are compared."""

    def ways(self, swaps: list[Swap], in_chains: list[Swap], as_graphs: AsGraphs | None) -> Iterator[Offer]:
        """Ways to put exchanged layers to use, whose results are still to be compared.

        in_chains: layers that would not be exchanged for their own sake, or for something else. as_graphs: None where
        nothing runs as a graph.
        """
        raise NotImplementedError

    def passed(self, conversion: Conversion) -> Any:
        """What the model gives where `conversion` is installed. Raises what the model raises then."""
        raise NotImplementedError

    def agrees(self, actual: Any, before: Sequence[Conversion]) -> bool:
        """Whether `actual`, what it `passed`, is what the model gave, but for rounding.

        before: the conversions that agree.
        """
        raise NotImplementedError

    def step(self) -> object:
        """One pass of the model, as it is timed."""
        raise NotImplementedError

    def gradients(self) -> contextlib.AbstractContextManager[object]:
        """Inside, gradients are recorded as in a pass."""
        raise NotImplementedError

    def run_layer(self, layer: Callable[[Tensor], Tensor], inputs: Sequence[Tensor]) -> None:
        """The calls of a layer in one pass, as they are timed."""
        raise NotImplementedError


class Inference(Mode):
    """Forward passes without gradients."""

    name = "eval"
    fuses_layers = True
    names_obstacles = True

    def __init__(self, model: nn.Module, args: tuple[Any, ...], call: Callable[[], object], recorded: Recorded) -> None:
        super().__init__(model, args, call, recorded)
        self.expected, self._may_be_another = recorded.result, recorded.repeatable

    def graph(
        self, trace: Trace, dtype: torch.dtype, device: torch.device, contiguous: bool, drops: bool, chains: bool
    ) -> Graph:
        return InferenceGraph(trace.module, dtype, device, contiguous, drops, chains, trace)

    def fused(self, graphs: Sequence[Graph]) -> tuple[Fact, ...]:
        return (Note.FUSED.of(),)

    def start(self) -> None:
        if not self._recorded.repeatable:
            self.expected = self._result()

    def ways(self, swaps: list[Swap], in_chains: list[Swap], as_graphs: AsGraphs | None) -> Iterator[Offer]:
        if as_graphs is not None:
            yield Offer(Way.GRAPH, as_graphs(swaps))
            yield Offer(Way.CHAINS, as_graphs(swaps, chains=True))
            if in_chains:
                others = {id(swap.original) for swap in in_chains}
                more = [swap for swap in swaps if id(swap.original) not in others] + in_chains
                yield Offer(Way.CHAINS_OF_ALL, as_graphs(more, chains=True))
            if any(isinstance(value, Tensor) and not value.is_contiguous() for value in self._args):
                yield Offer(Way.GRAPH_IN_INPUT_LAYOUT, as_graphs(swaps, contiguous=False))
        if swaps:
            yield Offer(Way.LAYERS, Conversion(swaps, []))

    def passed(self, conversion: Conversion) -> object:
        with conversion.installed():
            return self._result()

    def agrees(self, actual: object, before: Sequence[Conversion]) -> bool:
        """By its results.

        That of the first run may be another than all that follow, because of something that is no part of the model:
        the model runs once more before an offer is refused for that.
        """
        agrees = are_close(actual, self.expected)
        if not agrees and self._may_be_another:
            again = self._result()
            self._may_be_another = False
            if not are_close(again, self.expected):
                self.expected = again
                agrees = are_close(actual, again)
        return agrees

    def _result(self) -> object:
        """What the model gives as it is. It leaves no trace."""
        with torch.inference_mode(), unchanged(self._model):
            return kept(self._call())

    def step(self) -> object:
        with torch.inference_mode():
            return self._call()

    def gradients(self) -> contextlib.AbstractContextManager[object]:
        return torch.inference_mode()

    def run_layer(self, layer: Callable[[Tensor], Tensor], inputs: Sequence[Tensor]) -> None:
        for input in inputs:
            layer(input)


class Training(Mode):
    """Forward and backward passes."""

    name = "train"
    fuses_layers = False
    names_obstacles = False
    first = Way.LAYERS  # a graph has the same layers

    def notes(self) -> tuple[Fact, ...]:
        mode = Note.TRAINING_MODE.of()
        return (mode,) if self._recorded.differentiable else (mode, Note.NO_GRADIENT.of())

    def graph(
        self, trace: Trace, dtype: torch.dtype, device: torch.device, contiguous: bool, drops: bool, chains: bool
    ) -> Graph:
        return TrainingGraph(trace.module, dtype, device, trace)

    def fused(self, graphs: Sequence[Graph]) -> tuple[Fact, ...]:
        """Of what there is in them."""
        plans: list[TrainingPlan] = [graph.prepare() for graph in graphs]
        norms = [norm for plan in plans for norm in plan.norms]
        has = {
            "the residual sum": any(norm.adds for norm in norms),
            "ReLU": any((norm.act.low, norm.act.high) == (0, None) for norm in norms),
            "ReLU6 or Hardtanh": any(norm.act.high is not None for norm in norms),
            "dropout": any(norm.act.p > 0 for norm in norms),
        }
        facts = []
        if any(has.values()):
            facts.append(Note.FUSED_IN_TRAINING.of(behind=tuple(name for name, there in has.items() if there)))
        elif norms:
            facts.append(Note.NORM_IN_TRAINING.of())
        if has["dropout"]:
            facts.append(Note.DROPOUT_IN_TRAINING.of())
        if any(plan.pools for plan in plans):
            facts.append(Note.POOLING_IN_TRAINING.of())
        return tuple(facts)

    def ways(self, swaps: list[Swap], in_chains: list[Swap], as_graphs: AsGraphs | None) -> Iterator[Offer]:
        yield Offer(Way.LAYERS, Conversion(swaps, []))
        if as_graphs is not None:
            yield Offer(Way.GRAPH, as_graphs(swaps))

    def agrees(self, actual: _Passed, before: Sequence[Conversion]) -> bool:
        """By results, buffers and, where other conversions agree, gradients.

        Gradients are compared with those of the layers one by one: nothing but the graph differs then, so rounding is
        all that may. The layers' own gradients are others, by design.
        """
        other = self.passed(before[0] if before else Conversion([], []))
        return actual.agrees_with(other, gradients=bool(before))

    def passed(self, conversion: Conversion) -> _Passed:
        """A forward and backward pass from given gradients, with torch's own dropout."""
        with conversion.installed(), unchanged(self._model), dropout_by_torch():
            result = self._call()
            backward_at_random(result)
            buffers = [buffer.clone() for buffer in self._model.buffers()]
            return _Passed(kept(result), buffers, [parameter.grad for parameter in self._model.parameters()])

    def step(self) -> object:
        """A backward pass from the sum of all results follows the forward pass."""
        result = self._call()
        torch.autograd.backward([_real(one).sum() for one in differentiable(result)])
        return result

    def gradients(self) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext()

    def run_layer(self, layer: Callable[[Tensor], Tensor], inputs: Sequence[Tensor]) -> None:
        for input in inputs:
            output = layer(input)
            if output.requires_grad:
                input.grad = None
                torch.autograd.backward(output, torch.ones_like(output))


@dataclass(frozen=True)
class _Passed:
    """What a forward and backward pass gave."""

    result: object
    buffers: list[Tensor]
    gradients: list[Tensor | None]

    def agrees_with(self, other: _Passed, gradients: bool) -> bool:
        """But for rounding. gradients: whether these are to agree, too."""
        counts = [[one for one in each.buffers if not one.is_floating_point()] for each in (self, other)]
        same = all(map(torch.equal, *counts))
        same = same and are_close((self.result, self.buffers), (other.result, other.buffers))
        return same and (not gradients or point_alike(self.gradients, other.gradients))


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
