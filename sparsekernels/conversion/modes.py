# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Inference and training: which graphs and ways to run a model there are, what is timed, how results are compared.

More than 400 lines: both modes answer the same questions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from .._torch import is_any_autocast_enabled
from .agreement import (
    are_close,
    are_statistics_close,
    backward_at_random,
    difference,
    differentiable,
    is_out_of_memory,
    kept,
    point_alike,
)
from .exactness import SHORT, are_gradients_as_exact, is_statistic_as_exact
from .facts import Fact, Note, Way
from .float32_run import Draws
from .graph.base import Graph
from .graph.batch_norm import dropout_by_torch, norm_inputs
from .graph.inference import InferenceGraph
from .graph.trace import Trace
from .graph.training import TrainingGraph, TrainingPlan
from .graph.untraceable import Untraceable
from .installation import Conversion, Swap
from .measure import now, on_one_thread
from .survey import Recorded
from .watch.copies import are_equal, copy_of, is_lazy
from .watch.reach import Reach
from .watch.snapshot import leftovers, unchanged
from .watch.state import State


def without_gradients(model: nn.Module) -> contextlib.AbstractContextManager[object]:
    """In what a model runs that is to compute no gradients.

    Not in inference mode: a forward that differentiates does not run there, and what it keeps for later calls would be
    inference tensors, of which no training can make anything. That is, unless the model consists of such already.
    """
    tensors = (one for one in (*model.parameters(), *model.buffers()) if not is_lazy(one))
    if any(tensor.is_inference() for tensor in tensors):
        return torch.inference_mode()
    return torch.no_grad()


@dataclass(frozen=True, eq=False)
class Offer:
    """A way to run the model, perhaps one that gives what it gave before."""

    way: Way
    conversion: Conversion


class AsGraphs(Protocol):
    """Makes the conversion of exchanged layers that run as graphs; `layout` and `chains` as of `Mode.graph`."""

    def __call__(
        self, swaps: list[Swap], layout: torch.memory_format = torch.contiguous_format, chains: bool = False
    ) -> Conversion: ...


@contextlib.contextmanager
def _installed(conversion: Conversion) -> Iterator[None]:
    """Inside, the model runs so; its graphs are made already, of the layers as they are then."""
    with conversion.installed():
        with on_one_thread(), contextlib.suppress(Untraceable):  # then the modules run
            for graph in conversion.graphs:
                graph.prepare()
        yield


_UNKNOWN: Any = object()

_PASSES_IN_FLOAT32 = 8.0
"""What a pass in float32 may take, as so many of a shorter dtype: VGG16-D on a Xeon with AMX 6.3 s, and 0.7."""

_MAY_ROUND = (*SHORT, torch.float32)
"""Dtypes of results that may differ by the rounding of shorter ones, within the model."""


class Mode:
    """What `convert` asks of the mode that a model is in.

    name: as reports have it. fuses_layers: whether a graph runs layers with frozen weights, in a layout of its own.
    falls_back: whether calls of a linear layer may go to its dense weight, which those with gradients do not.
    names_obstacles: whether it is said which parts do not run as a graph, and why. first: the way without which no
    other agrees. seconds: what a pass of the model as it was took, the last time that somebody looked.
    passes_to_compare: what it takes to compare ways to run the model, as so many times the first run.
    compares_gradients: whether those of each layer are compared before.
    """

    name: ClassVar[str]
    fuses_layers: ClassVar[bool]
    falls_back: ClassVar[bool]
    names_obstacles: ClassVar[bool]
    first: ClassVar[Way | None] = None
    passes_to_compare: float
    compares_gradients: ClassVar[bool] = False

    frozen: bool = False
    """Whether what graphs make of parameters stays what it is."""
    layout: torch.memory_format = torch.contiguous_format
    """Of images in graphs that are made for one layout: channels_last where kernels for blocks run convolutions."""

    expected: Any = None
    """What results are compared with, where that does not depend on the offer. It may change at a comparison."""

    def __init__(
        self,
        model: nn.Module,
        args: tuple[Any, ...],
        call: Callable[[], object],
        recorded: Recorded,
        in_float32: Callable[..., Any],
    ) -> None:
        self._model, self._args, self._call, self._recorded = model, args, call, recorded
        self._in_float32 = in_float32
        self.seconds = recorded.seconds
        self._left: tuple[State, Reach] | None = None

    def notes(self) -> tuple[Fact, ...]:
        """What is to be said of a conversion in this mode."""
        return ()

    def graph(
        self,
        trace: Trace,
        dtype: torch.dtype,
        device: torch.device,
        layout: torch.memory_format,
        drops: bool,
        chains: bool,
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

    def agrees_entirely(self, actual: Any) -> bool:
        """The same of what is to have the gradients of the model as it was, too."""
        return self.agrees(actual, ())

    def differs_by(self, actual: Any) -> str:
        """By how much `actual`, which does not agree, differs, as a sentence goes on."""
        raise NotImplementedError

    def step(self) -> None:
        """One pass of the model, as it is timed. What its code leaves somewhere does not grow from step to step."""
        if not self._recorded.leaves:
            self._step()
            return
        if self._left is None:
            self._left = leftovers(self._model), self._recorded.reach.now()
        try:
            self._step()
        finally:
            for left in self._left:
                left.put_back()

    def _step(self) -> None:
        raise NotImplementedError

    @contextlib.contextmanager
    def _without_trace(self) -> Iterator[Callable[[], frozenset[object]]]:
        """Calls of the model leave nothing behind. Inside, the function gives the places where they have so far."""
        with unchanged(self._model) as kept, self._recorded.reach.unchanged() as reach:
            try:
                yield lambda: frozenset((*kept.effects(), *reach.effects()))
            finally:
                self._recorded.put_back()

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
    falls_back = True
    names_obstacles = True
    passes_to_compare = 1.2

    def __init__(
        self,
        model: nn.Module,
        args: tuple[Any, ...],
        call: Callable[[], object],
        recorded: Recorded,
        in_float32: Callable[..., Any],
    ) -> None:
        super().__init__(model, args, call, recorded, in_float32)
        self.expected, self._may_be_another = (recorded.result, frozenset()), recorded.repeatable
        self._exact: object = _UNKNOWN

    def graph(
        self,
        trace: Trace,
        dtype: torch.dtype,
        device: torch.device,
        layout: torch.memory_format,
        drops: bool,
        chains: bool,
    ) -> Graph:
        return InferenceGraph(trace.module, dtype, device, layout, drops, chains, trace, self.frozen)

    def fused(self, graphs: Sequence[Graph]) -> tuple[Fact, ...]:
        return (Note.FUSED.of(),)

    def start(self) -> None:
        if not self._recorded.repeatable:
            self.expected = self._result()

    def ways(self, swaps: list[Swap], in_chains: list[Swap], as_graphs: AsGraphs | None) -> Iterator[Offer]:
        if as_graphs is not None:
            if self.layout is torch.channels_last:
                yield Offer(Way.GRAPH_IN_CHANNELS_LAST, as_graphs(swaps, self.layout))
            yield Offer(Way.GRAPH, as_graphs(swaps))
            yield Offer(Way.CHAINS, as_graphs(swaps, chains=True))
            if in_chains:
                others = {id(swap.original) for swap in in_chains}
                more = [swap for swap in swaps if id(swap.original) not in others] + in_chains
                yield Offer(Way.CHAINS_OF_ALL, as_graphs(more, chains=True))
            is_other = any(isinstance(value, Tensor) and not value.is_contiguous() for value in self._args)
            if is_other and self.layout is torch.contiguous_format:
                yield Offer(Way.GRAPH_IN_INPUT_LAYOUT, as_graphs(swaps, torch.preserve_format))
        if swaps:
            yield Offer(Way.LAYERS, Conversion(swaps, []))

    def passed(self, conversion: Conversion) -> object:
        with _installed(conversion):
            before = sum(graph.shown for graph in conversion.graphs)
            result = self._result()
            if sum(graph.shown for graph in conversion.graphs) > before:  # it was that of modules
                result = self._result()
            return result

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
        return agrees or self._rounds_alike(actual)

    def _rounds_alike(self, actual: object) -> bool:
        """Whether the model in float32 shows that `actual` is about as far off as what it gave."""
        if self._recorded.random:
            return False
        if self._exact is _UNKNOWN:
            with without_gradients(self._model), self._without_trace():
                result = self._in_float32()
                self._exact = None if result is None else (kept(result), None)
        return self._exact is not None and are_close(actual, self.expected, self._exact, _MAY_ROUND)

    def differs_by(self, actual: Any) -> str:
        (mine, left), (theirs, expected) = actual, self.expected
        return difference(mine, theirs) if left == expected else ", in what is left elsewhere"

    def _result(self) -> object:
        """What the model gives as it is, and where its code leaves something. None of that is left."""
        with without_gradients(self._model), self._without_trace() as effects:
            return kept(self._call()), effects()

    def _step(self) -> None:
        with without_gradients(self._model):
            self._call()

    def gradients(self) -> contextlib.AbstractContextManager[object]:
        return torch.no_grad()

    def run_layer(self, layer: Callable[[Tensor], Tensor], inputs: Sequence[Tensor]) -> None:
        for input in inputs:
            layer(input)


class Training(Mode):
    """Forward and backward passes."""

    name = "train"
    fuses_layers = False
    falls_back = False
    names_obstacles = False
    first = Way.LAYERS  # a graph has the same layers
    passes_to_compare = 8.0
    compares_gradients = True

    _layers: _Passed
    """What the layers one by one gave."""
    _exact: _Passed | None = _UNKNOWN

    def __init__(
        self,
        model: nn.Module,
        args: tuple[Any, ...],
        call: Callable[[], object],
        recorded: Recorded,
        in_float32: Callable[..., Any],
    ) -> None:
        super().__init__(model, args, call, recorded, in_float32)
        self._autocast = is_any_autocast_enabled()
        if self._autocast or any(one.dtype in SHORT for one in model.parameters()):
            self.passes_to_compare += _PASSES_IN_FLOAT32

    def notes(self) -> tuple[Fact, ...]:
        mode = Note.TRAINING_MODE.of()
        return (mode,) if self._recorded.differentiable else (mode, Note.NO_GRADIENT.of())

    def graph(
        self,
        trace: Trace,
        dtype: torch.dtype,
        device: torch.device,
        layout: torch.memory_format,
        drops: bool,
        chains: bool,
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
        all that may. The layers' own gradients are others, by design, and have been compared layer by layer.
        """
        if not before:
            other = self.passed(Conversion([], []))
            self.seconds, self._layers, self._other = other.seconds, actual, other
            return actual.agrees_with(other, False, self._in_float32_once)
        # what is no part of the model may have changed since
        return any(actual.agrees_with(other, True, self._in_float32_once) for other in self._layers_now(before[0]))

    def agrees_entirely(self, actual: _Passed) -> bool:
        self._other = self.passed(Conversion([], []))
        return actual.agrees_with(self._other, True, self._in_float32_once)

    def _layers_now(self, layers: Conversion) -> Iterator[_Passed]:
        """What the layers one by one gave, and what they give now."""
        self._other = self._layers
        yield self._layers
        self._other = self._layers = self.passed(layers)
        yield self._layers

    def differs_by(self, actual: _Passed) -> str:
        return actual.differs_by(self._other, self._exact if isinstance(self._exact, _Passed) else None)

    def passed(self, conversion: Conversion) -> _Passed:
        """A forward and backward pass from given gradients, with torch's own dropout, without constant channels."""
        with _installed(conversion), self._without_trace() as effects:
            return self._passed_of(self._model, self._call, effects)

    def _passed_of(
        self, model: nn.Module, call: Callable[[], object], effects: Callable[[], frozenset[object]] = frozenset
    ) -> _Passed:
        with dropout_by_torch(), norm_inputs(perturbs=not self._autocast) as inputs:
            start = now()
            result = call()
            backward_at_random(result)
            seconds = now() - start
            buffers = [(copy_of(buffer), inputs.size(buffer)) for buffer in model.buffers()]
            parameters = list(model.parameters())
            gradients = [parameter.grad for parameter in parameters]
            return _Passed(kept(result), buffers, parameters, gradients, inputs.wrong, seconds, effects())

    def _in_float32_once(self) -> _Passed | None:
        """What the model as it was gives in float32; None where that is not known, or draws other random numbers."""
        if self._exact is _UNKNOWN:
            with self._without_trace(), self._drawn() as drawn:
                self._exact = self._in_float32(self._passed_of)
            if self._exact is not None and self._recorded.random and drawn != self._draws():
                self._exact = None
        return self._exact

    def _draws(self) -> list[tuple[Any, ...]] | None:
        """What the model as it is draws; None where it raises while somebody watches."""
        try:
            with self._without_trace(), self._drawn() as drawn:
                self._passed_of(self._model, self._call)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            return None
        return drawn

    @contextlib.contextmanager
    def _drawn(self) -> Iterator[list[tuple[Any, ...]]]:
        """Inside, what the model draws of random numbers is noted."""
        with Draws() if self._recorded.random else contextlib.nullcontext() as draws:
            yield [] if draws is None else draws.draws

    def _step(self) -> None:
        """A backward pass from the sum of all results follows the forward pass."""
        torch.autograd.backward([_real(one).sum() for one in differentiable(self._call())])

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
    """What a forward and backward pass gave, and where its code left something.

    buffers: with the size of what each running mean is the mean of.
    """

    result: object
    buffers: list[tuple[Tensor | None, float]]
    parameters: Sequence[Tensor]
    gradients: list[Tensor | None]
    wrong: bool
    seconds: float
    effects: frozenset[object]

    def agrees_with(self, other: _Passed, gradients: bool, in_float32: Callable[[], _Passed | None]) -> bool:
        """But for rounding. gradients: whether these are to agree, too.

        in_float32: what the model as it was gives in float32, which is asked for where more than rounding as a rule is
        differs.
        """
        if self.wrong or self.effects != other.effects or len(self.buffers) != len(other.buffers):
            return False
        alike = self._are_buffers_alike(other) and are_close(self.result, other.result)
        if alike and (not gradients or point_alike(self.gradients, other.gradients)):
            return True
        exact = in_float32()
        return exact is not None and self._is_as_exact(other, gradients, exact)

    def _are_buffers_alike(self, other: _Passed, exact: _Passed | None = None) -> bool:
        truths = [None] * len(self.buffers) if exact is None else [truth for truth, _ in exact.buffers]
        three = zip(self.buffers, other.buffers, truths, strict=False)
        return len(truths) == len(self.buffers) and all(
            _is_buffer_close(mine, theirs, size) or is_statistic_as_exact(mine, theirs, truth, size)
            for (mine, _), (theirs, size), truth in three
        )

    def _is_as_exact(self, other: _Passed, gradients: bool, exact: _Passed) -> bool:
        if not self._are_buffers_alike(other, exact):
            return False
        if not are_close(self.result, other.result, exact.result, _MAY_ROUND):
            return False
        return not gradients or are_gradients_as_exact(
            self.gradients, other.gradients, exact.gradients, self.parameters
        )

    def differs_by(self, other: _Passed, exact: _Passed | None) -> str:
        """By how much: of the results, else what of: what is left elsewhere, buffers or gradients."""
        if not are_close(self.result, other.result, None if exact is None else exact.result, _MAY_ROUND):
            return difference(self.result, other.result)
        if self.effects != other.effects:
            return ", in what is left elsewhere"
        return ", in gradients" if self._are_buffers_alike(other, exact) else ", in buffers"


def _is_buffer_close(buffer: Tensor | None, other: Tensor | None, size: float) -> bool:
    """But for rounding, where it holds numbers; counts and whatever else there is are the same.

    size: of what it is a mean of.
    """
    if buffer is None or other is None:
        return buffer is other
    numbers = buffer.is_floating_point() and buffer.layout == torch.strided and not buffer.is_meta
    if numbers and not buffer.is_nested:
        return are_statistics_close(buffer, other, size)
    return are_equal(buffer, other)


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
