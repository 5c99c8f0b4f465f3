# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""One conversion on its way: layers are decided, offers made and compared, and the fastest is installed."""

from __future__ import annotations

import collections
import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from .._torch import is_any_autocast_enabled, tree_leaves
from ..nn.replacement import Replacement
from ..timing import Effort, Interruptions
from .candidates import candidate_of, dropping
from .decide import LEAST_GAIN, Measured, decide, reason_to_stay
from .facts import Count, Fact, GraphObstacle, Note, Way
from .graph.base import Graph
from .graph.channels import dropped
from .graph.inference import InferenceGraph
from .graph.trace import Trace
from .graph.tracing import Untraceable, first_line
from .installation import Conversion, Swap
from .measure import CLOSE, MODEL, SAME, AllTimes, prefers, times_of
from .modes import Inference, Mode, Offer, Training
from .report import DENSE, ExampleReport, Ground, LayerReport, Report
from .survey import LEAST_SPARSITY, OTHERS, Call, Example, Layer, with_likes
from .watch.state import CONVERSION

_CERTAIN_GAIN = 1.25
"""The fastest of several is easily the luckiest: less is measured once more, by itself and for longer."""
_MOST_ROUNDS = 0.7
"""The share of these rounds in which it then has to be faster."""


@dataclass(frozen=True)
class _Region:
    """A part of the model that runs as a graph: its trace, and that graph as the layers are now."""

    trace: Trace
    graph: Graph


class Attempt:
    """One conversion of a model on its way."""

    def __init__(
        self,
        model: nn.Module,
        examples: Sequence[Example],
        layers: list[Layer],
        decisions: Collection[str],
    ) -> None:
        self._decisions, self._examples = decisions, examples
        self._args = tuple(value for example in examples for value in example.values)
        self._model, self._layers = model, layers
        kind = Training if model.training else Inference
        self._modes: list[Mode] = [kind(model, self._args, one.call, one.recorded) for one in examples]
        self._mode = self._modes[0]
        self._calls: dict[int, list[Call]] = {}
        for example in examples:
            for module, calls in example.recorded.calls.items():
                self._calls.setdefault(module, []).extend(calls)
        self._facts: list[Fact] = []
        self._interruptions = Interruptions()

    def run(self) -> Report:
        others = collections.Counter(type(part).__name__ for part in self._model.modules() if isinstance(part, OTHERS))
        if others:
            self._note(Note.OTHER_LAYERS, kinds=tuple(Count(count, name) for name, count in others.items()))
        self._facts += self._mode.notes()
        with self._interruptions.counted():
            report = self._run()
        if self._interruptions.per_second > Interruptions.DISTURBING and report.before_ms is not None:
            disturbed = Note.DISTURBED.of(per_second=self._interruptions.per_second)
            report = replace(report, facts=(*report.facts, disturbed))
        return report

    def _note(self, note: Note, **operands: object) -> None:
        self._facts.append(note.of(**operands))

    def _run(self) -> Report:
        of_each = [with_likes(self._layers, example.recorded.given) for example in self._examples]
        given = {layer.name: [some[layer.name] for some in of_each] for layer in self._layers}
        wanted = {id(layer.module) for layer in self._layers if reason_to_stay(layer, given[layer.name]) is None}
        if not wanted:
            self._facts.append(_why_nothing(self._layers))
            measured = Measured(0)
            rows = [decide(layer, given[layer.name], self._mode, False, (), measured).row for layer in self._layers]
            return self._report(rows)
        regions = self._regions(wanted)
        parts = [part for region in regions for part in region.trace.module.modules()]
        fused = {id(part) for part in parts} if self._mode.fuses_layers else set()
        measured = Measured(sum(one.numel() * one.element_size() for one in self._model.parameters()))
        rows = []
        swaps: list[Swap] = []
        in_chains: list[Swap] = []
        for layer in self._layers:
            fuses = id(layer.module) in fused
            decision = decide(layer, given[layer.name], self._mode, fuses, self._decisions, measured)
            rows.append(decision.row)
            owner, _, _ = layer.name.rpartition(".")
            swap = functools.partial(Swap, layer.name, self._model.get_submodule(owner), layer.module)
            if decision.replacement is not None:
                swaps.append(swap(decision.replacement))
            if decision.in_chain is not None:
                in_chains.append(swap(decision.in_chain))
        if not swaps and not any(_drops(region.graph) for region in regions):
            self._note(Note.NOTHING_PREFERRED if prefers() else Note.NOTHING_FASTER)
            return self._report(rows)
        offers = self._offers(swaps, in_chains, regions)
        if not offers:  # the notes say why
            return self._report([_unchanged(row) for row in rows])
        return self._install_fastest(rows, offers, in_chains)

    def _report(
        self,
        rows: list[LayerReport],
        before_ms: float | None = None,
        after_ms: float | None = None,
        way: Way = Way.BEFORE,
    ) -> Report:
        facts = tuple(self._facts)
        return Report(tuple(rows), before_ms, after_ms, self._mode.name, torch.get_num_threads(), facts, way)

    def _regions(self, wanted: set[int]) -> list[_Region]:
        """The largest parts of the model that run as a graph and have a layer that may be exchanged."""
        found: list[_Region] = []
        if is_any_autocast_enabled():
            self._note(Note.AUTOCAST)
            return found

        def visit(module: nn.Module, name: str) -> None:
            if id(module) in wanted or not any(id(part) in wanted for part in module.modules()):
                return
            try:
                if "forward" in vars(module):
                    raise Untraceable(GraphObstacle.FORWARD_REPLACED)
                trace = Trace.of(module)
                graph = self._graph(trace, contiguous=True)
                graph.prepare()
                calls = self._calls.get(id(module), [])
                if not any(map(graph.serves, calls)):
                    raise Untraceable(GraphObstacle.OTHER_ARGUMENTS if calls else GraphObstacle.NOT_CALLED)
            except Untraceable as error:
                if self._mode.names_obstacles and not isinstance(module, nn.ModuleList | nn.ModuleDict):
                    if name:
                        self._note(Note.NO_GRAPH_OF_PART, part=name, reason=error.fact)
                    else:
                        self._note(Note.NO_GRAPH, reason=error.fact)
                for key, child in module.named_children():
                    visit(child, f"{name}.{key}" if name else key)
            else:
                found.append(_Region(trace, graph))

        visit(self._model, "")
        return found

    def _graph(self, trace: Trace, contiguous: bool, chains: bool = False) -> Graph:
        calls = self._calls.get(id(trace.module), [])
        given = [(one.dtype, one.device) for call in calls for one in call or () if one is not None]
        given += [(value.dtype, value.device) for value in tree_leaves(self._args) if isinstance(value, Tensor)]
        kinds = [(dtype, device) for dtype, device in given if dtype.is_floating_point]
        if not kinds:
            raise Untraceable(GraphObstacle.NO_FLOATING_TENSOR)
        drops = not set(dropping()).isdisjoint(self._decisions)
        return self._mode.graph(trace, *kinds[0], contiguous, drops, chains)

    def _offers(self, swaps: list[Swap], in_chains: list[Swap], regions: list[_Region]) -> list[Offer]:
        """Ways to put the exchanged layers to use, whose results agree with those before.

        in_chains: layers that would not be exchanged for their own sake, or for something else.
        """
        mode = self._mode
        for one in self._modes:
            one.start()
        offers: list[Offer] = []
        for offer in mode.ways(swaps, in_chains, functools.partial(self._as_graphs, regions) if regions else None):
            expected = [one.expected for one in self._modes]
            agrees = self._agrees(offer, offers)
            if any(one.expected is not value for one, value in zip(self._modes, expected, strict=True)):
                offers = [one for one in offers if self._agrees(one, [])]
            if not agrees:
                if offer.way is mode.first:
                    break
                continue
            chained = offer.way in (Way.CHAINS, Way.CHAINS_OF_ALL)
            if chained and not any(graph.prepare().chained for graph in offer.conversion.graphs):
                continue  # no two layers follow each other
            offers.append(offer)
        return offers

    def _as_graphs(
        self, regions: list[_Region], swaps: list[Swap], contiguous: bool = True, chains: bool = False
    ) -> Conversion:
        return Conversion(swaps, [self._graph(region.trace, contiguous, chains) for region in regions])

    def _agrees(self, offer: Offer, before: list[Offer]) -> bool:
        """Whether the model gives what it gave in each example. If not, a note says what it does.

        before: the offers that agree.
        """
        for mode in self._modes:
            try:
                actual = mode.passed(offer.conversion)
            except Exception as error:  # code that takes another way for a graph's stand-ins than for tensors
                self._note(Note.RAISED, way=offer.way, error=first_line(error))
                return False
            if not mode.agrees(actual, [one.conversion for one in before]):
                self._note(Note.OTHER_RESULTS, way=offer.way)
                return False
        return True

    def _install_fastest(self, rows: list[LayerReport], offers: list[Offer], in_chains: list[Swap]) -> Report:
        conversions = {Way.BEFORE: Conversion([], []), **{offer.way: offer.conversion for offer in offers}}
        contexts = {way.value: conversion.installed for way, conversion in conversions.items()}
        before = Way.BEFORE.value

        def measured(ways: Collection[str], effort: Effort) -> AllTimes:
            each = []
            for mode, example in zip(self._modes, self._examples, strict=True):
                earlier = {before: example.recorded.seconds} if effort is MODEL else None
                calls = dict.fromkeys(ways, mode.step)
                each.append(times_of(calls, effort, contexts, warm=True, earlier=earlier))
            return AllTimes(tuple(each))

        times = measured(contexts, MODEL)
        offered = {offer.way.value: offer for offer in offers}
        best: Offer | None = None
        for way in times.faster(offered, before, LEAST_GAIN):
            if times.measured and times.speedup(way, before) < _CERTAIN_GAIN:
                again = measured((before, way), CLOSE)
                faster = again.faster([way], before, LEAST_GAIN)
                if not faster or max(one.share_faster(way, before) for one in again.each) < _MOST_ROUNDS:
                    continue
                times = again
            best = offered[way]
            break
        if best is None:
            if times.order is None:
                self._note(Note.MODEL_NOT_FASTER)
                self._note_slower(times, offered)
            else:
                named = not {way.value for way in Way}.isdisjoint(times.order)
                self._note(Note.NO_PREFERRED_WAY if named else Note.NO_WAY_NAMED)
            return self._report([_unchanged(row) for row in rows])
        graphs = best.conversion.graphs
        if times.measured and not graphs and any(offer.conversion.graphs for offer in offers):
            self._note(Note.GRAPH_NOT_FASTER)
        if graphs:
            if best.way in (Way.CHAINS, Way.CHAINS_OF_ALL):
                self._note(Note.CHAINS)
            self._facts += self._mode.fused(graphs)
        best.conversion.install()
        try:
            before_ms = times.milliseconds(before) if times.measured else None
            if best.way is Way.CHAINS_OF_ALL:
                chained = {swap.path: swap.replacement for swap in in_chains}
                rows = [_in_chain(row, chained[row.name]) if row.name in chained else row for row in rows]
            rows = _with_omissions(self._model, rows, graphs)
            after_ms = None if before_ms is None else before_ms / times.speedup(best.way.value, before)
            report = self._report(rows, before_ms, after_ms, best.way)
            if times.measured and len(self._examples) > 1:
                report = replace(report, examples=self._times_of_each(times, best.way.value, before))
        except BaseException:
            best.conversion.uninstall()
            raise
        vars(self._model)[CONVERSION] = best.conversion
        return report

    def _times_of_each(self, times: AllTimes, way: str, before: str) -> tuple[ExampleReport, ...]:
        found = []
        for example, one in zip(self._examples, times.each, strict=True):
            before_ms = one.milliseconds(before)
            found.append(ExampleReport(example.name, before_ms, before_ms / one.speedup(way, before)))
        return tuple(found)

    def _note_slower(self, times: AllTimes, offered: Mapping[str, Offer]) -> None:
        """Which example decided against what would be faster by the mean."""
        for way, offer in offered.items():
            place, gain = times.slowest(way, Way.BEFORE.value)
            if times.speedup(way, Way.BEFORE.value) >= LEAST_GAIN and gain <= 1 / SAME:
                self._note(Note.SLOWER_IN_EXAMPLE, way=offer.way, gain=gain, example=self._examples[place].name)


def _drops(graph: Graph) -> dict[int, tuple[int, int]]:
    """How many outputs and inputs of each layer, by its id, a graph leaves out."""
    return dropped(graph.prepare().links) if isinstance(graph, InferenceGraph) else {}


def _with_omissions(model: nn.Module, rows: list[LayerReport], graphs: list[Graph]) -> list[LayerReport]:
    """`rows`, with what the graphs leave out."""
    counts: dict[int, tuple[int, int]] = {}
    for graph in graphs:
        counts |= _drops(graph)
    result = []
    for row in rows:
        omitted = counts.get(id(model.get_submodule(row.name)), (0, 0))
        if any(omitted):
            row = replace(row, omitted=omitted)
            if row.decision == DENSE:
                row = replace(row, decision=dropping()[0], ground=Ground.GRAPH, ms=None)
        result.append(row)
    return result


def _in_chain(row: LayerReport, replacement: Replacement) -> LayerReport:
    """The row of a layer that became `replacement` for the sake of its neighbors."""
    candidate = candidate_of(replacement)
    assert candidate is not None
    return replace(row, decision=candidate.name, ground=Ground.CHAIN, ms=None)


def _unchanged(row: LayerReport) -> LayerReport:
    """The row of a layer that stays, since the whole model was not faster."""
    if row.decision == DENSE:
        return row
    ground = row.ground if row.ground is Ground.PREFERENCE else Ground.MODEL
    return replace(row, decision=DENSE, ground=ground, ms=row.dense_ms, dense_rows=())


def _why_nothing(layers: list[Layer]) -> Fact:
    if not layers:
        return Note.NO_LAYERS.of()
    if max(layer.sparsity or 0 for layer in layers) < LEAST_SPARSITY:
        return Note.NOT_PRUNED.of(least=LEAST_SPARSITY)
    return Note.NO_LAYER_FITS.of()
