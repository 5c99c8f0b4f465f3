# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""One conversion on its way: layers are decided, offers made and compared, and the fastest is installed.

More than 400 lines: the steps of one conversion follow each other and share what it has found.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from .._torch import is_any_autocast_enabled, tree_leaves
from ..nn.packed_linear import PackedLinear
from ..timing import Effort
from ..usage import Interruptions
from .agreement import is_out_of_memory
from .candidates import dropping, layout_of_graphs
from .chance import with_likes
from .decide import LEAST_GAIN, Decision, Measured, decide, expected_gain, is_dense_for, like, most_like, reason_to_stay
from .facts import Count, Fact, GraphObstacle, LayerObstacle, Note, Way
from .graph.attach import has_method, may_derive, own_class
from .graph.base import Graph
from .graph.classes import ComparedClasses
from .graph.signature import first_served
from .graph.trace import Trace
from .graph.untraceable import Untraceable, first_line
from .installation import Conversion, Swap
from .layer_gradients import wrong_gradient
from .layouts import channels_last_gain
from .leftovers import MASKS, is_forward_of_nncf, zeros_elsewhere
from .measure import (
    CLOSE,
    MODEL,
    AllTimes,
    Contexts,
    Times,
    now,
    on_one_thread,
    prefers,
    stopped_by,
    timed_on,
    times_of,
)
from .modes import Inference, Mode, Offer, Training
from .modules import is_ordinary
from .norm_decide import NormDecisions, decide_norms, kinds_of, norms_beside
from .outcome import as_it_was, drops_of, in_chain, with_omissions, with_tables, without_graphs
from .progress import Progress
from .report import DENSE, ExampleReport, Ground, LayerReport, Report
from .survey import LEAST_SPARSITY, OTHERS, Call, Example, Layer, admit_subclasses
from .watch.state import CONVERSION

_CERTAIN_GAIN = 1.25
"""The fastest of several is easily the luckiest: less is measured once more, by itself and for longer."""
_NEARLY = 0.9
"""What is faster on the whole, and reaches this in all examples, is measured once more as well: a little is chance."""
_CERTAIN_BY_ONE = 1.6
"""Where a single run of the model as it was is that much slower, it is enough when time is short."""
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
        pace: Progress,
        frozen: bool = False,
    ) -> None:
        self._decisions, self._examples, self._pace = decisions, examples, pace
        self._unmeasured: list[str] = []
        self._pass_seconds = 0.0
        self._args = tuple(value for example in examples for value in example.values)
        self._model, self._layers = model, layers
        of_each = [with_likes(layers, example.recorded.given) for example in examples]
        self._given = {layer.name: [some[layer.name] for some in of_each] for layer in layers}
        admit_subclasses(layers, {name: list(itertools.chain(*some)) for name, some in self._given.items()})
        kind = Training if model.training else Inference
        self._modes: list[Mode] = [kind(model, self._args, one.call, one.recorded, one.in_float32) for one in examples]
        for mode in self._modes:
            mode.frozen = frozen
        self._mode = self._modes[0]
        self._calls: dict[int, list[Call]] = {}
        for example in examples:
            for module, calls in example.recorded.calls.items():
                self._calls.setdefault(module, []).extend(calls)
        self._facts: list[Fact] = []
        self._writes = examples[0].recorded.writes
        self._traces: dict[int, Trace] = {}
        self._norms = NormDecisions()
        self._compared = ComparedClasses(model.modules())
        for layer in layers:
            where = self._compared.at_all(type(layer.module))
            if layer.obstacle is None and where:
                layer.obstacle = LayerObstacle.CLASS_COMPARED.of(where=where, kind=type(layer.module).__name__)
        self._interruptions = Interruptions()
        self._freeing: frozenset[str] = frozenset()
        """Of the ways to run the model, those that let go of dense weights."""

    def run(self) -> Report:
        others = collections.Counter(type(part).__name__ for part in self._model.modules() if isinstance(part, OTHERS))
        if others:
            self._note(Note.OTHER_LAYERS, kinds=tuple(Count(count, name) for name, count in others.items()))
        own = {id(layer.module) for layer in self._layers}
        self._elsewhere = list(zeros_elsewhere(self._model, own, LEAST_SPARSITY))
        self._facts += [*self._elsewhere, *self._mode.notes()]
        given = {name: list(itertools.chain(*some)) for name, some in self._given.items()}
        tensors = (one for one in (*self._model.parameters(), *self._model.buffers()) if is_ordinary(one))
        given_tensors = (one for one in tree_leaves(self._args) if isinstance(one, Tensor))
        timed = timed_on(itertools.chain(tensors, given_tensors))
        with self._interruptions.counted(), stopped_by(self._pace.stop), timed:
            layout = channels_last_gain(self._layers, given, self._mode)
            self._facts += [] if layout is None else [layout]
            report = self._run()
        if self._writes.unseen:
            report = replace(report, facts=(*report.facts, Note.WRITTEN.of(names=tuple(self._writes.unseen))))
        has_times = report.before_ms is not None or any(row.gains for row in report.layers)
        if self._interruptions.per_second > Interruptions.DISTURBING and has_times:
            disturbed = Note.DISTURBED.of(per_second=self._interruptions.per_second)
            report = replace(report, facts=(*report.facts, disturbed), disturbed=report.before_ms is not None)
        return report

    def take_parameters(self) -> None:
        """Let what was installed have the parameters that the model has by now: others stood in for them."""
        conversion = vars(self._model).get(CONVERSION)
        if conversion is not None:
            conversion.share_parameters()
            for module, graph in conversion.live_graphs():
                with contextlib.suppress(Untraceable):  # which the first call finds out as well
                    graph.plan_anew(self._traces[id(module)])

    def _before_zero_scales(self) -> set[int]:
        """The ids of layers whose channels may be dead for the scales of a BatchNorm, whatever their weights are."""
        if not self._mode.fuses_layers or all(fact.kind is not Note.ZERO_SCALES for fact in self._elsewhere):
            return set()
        return {id(layer.module) for layer in self._layers if layer.obstacle is None and any(self._given[layer.name])}

    def _why_nothing(self) -> list[Fact]:
        """Where there are zeros, if not in layers that may be exchanged."""
        if any(fact.kind is Note.CONVERTED_BEFORE for fact in self._facts):
            return []
        if any(layer.module.weight.is_meta for layer in self._layers if isinstance(layer.module.weight, Tensor)):
            return [Note.NO_DATA.of()]
        obstacles = [layer.obstacle.kind for layer in self._layers if layer.obstacle is not None]
        if masked := sum(kind in MASKS for kind in obstacles):
            return [Note.MASKS_OF_TOOLS.of(count=masked, total=len(self._layers))]
        if any(layer.is_pruned for layer in self._layers):
            return [Note.NO_LAYER_FITS.of()]
        if self._elsewhere:
            return []
        return [Note.NOT_PRUNED.of(least=LEAST_SPARSITY) if self._layers else Note.NO_LAYERS.of()]

    def _note(self, note: Note, **operands: object) -> None:
        self._facts.append(note.of(**operands))

    def _run(self) -> Report:
        given = self._given
        with on_one_thread():
            wanted = {id(layer.module) for layer in self._layers if reason_to_stay(layer, given[layer.name]) is None}
            traced = wanted | self._before_zero_scales()
            layout = layout_of_graphs((one for one in self._layers if id(one.module) in wanted), self._decisions)
        for mode in self._modes:
            mode.layout = layout
        if wanted:
            self._decide_norms()
        obstacles = [layer.obstacle.kind for layer in self._layers if layer.obstacle is not None]
        if LayerObstacle.CONVERTED in obstacles:
            converted = obstacles.count(LayerObstacle.CONVERTED)
            self._note(Note.CONVERTED_BEFORE, count=converted, total=len(self._layers))
        self._pace.at("tracing")
        with on_one_thread(), Conversion([], [], self._norms.norms).installed():  # which a graph then calls
            regions = self._regions(traced) if traced else []
        if not wanted and not any(drops_of(region.graph) for region in regions):
            self._facts += self._why_nothing()
            self._facts += norms_beside(self._model, self._pace)
            measured = Measured(0)
            rows = [decide(layer, given[layer.name], self._mode, False, (), measured).row for layer in self._layers]
            return self._report(rows)
        parts = [part for region in regions for part in region.trace.module.modules()]
        fused = {id(part) for part in parts} if self._mode.fuses_layers else set()
        rows = []
        swaps: list[Swap] = []
        in_chains: list[Swap] = []
        decided = self._decide(fused)
        for layer in self._layers:
            decision = decided[layer.name]
            rows.append(decision.row)
            owner, _, _ = layer.name.rpartition(".")
            swap = functools.partial(Swap.of, layer.name, self._model.get_submodule(owner), layer.module)
            if decision.replacement is not None:
                swaps.append(swap(decision.replacement))
            if decision.in_chain is not None:
                in_chains.append(swap(decision.in_chain))
        if self._mode.compares_gradients:
            swaps = self._with_right_gradients(swaps, rows)
        if not swaps and not any(drops_of(region.graph) for region in regions):
            regions = []
        if not swaps and not regions and not self._norms.norms:
            if not any(row.ground in (Ground.LIMIT, Ground.UNDECIDED) for row in rows):
                self._note(Note.NOTHING_PREFERRED if prefers() else Note.NOTHING_FASTER)
            return self._report(rows)
        offers = self._offers(swaps, in_chains, regions)
        if not offers:  # the notes say why
            return self._report([as_it_was(row) for row in rows])
        return self._install_fastest(rows, offers, in_chains)

    def _decide_norms(self) -> None:
        self._norms = decide_norms(self._model, self._examples, self._mode, self._compared, self._pace)
        self._facts += self._norms.facts
        if self._norms.untimed:
            self._unmeasured.append(f"{self._norms.untimed} norms")

    def _check_norms(self) -> None:
        """Where the model, with nothing but its norms exchanged, gives something else or raises, they stay."""
        norms = self._norms.norms
        if not norms:
            return
        self._pace.at("checking results with other norms")
        kinds, found = kinds_of([norm for norm, _ in norms]), None
        if self._pace.stop(2 * sum(mode.seconds for mode in self._modes)):
            self._unmeasured.append(f"{len(norms)} norms")
            self._norms = NormDecisions()
            return
        for mode in self._modes:
            try:
                actual = mode.passed(Conversion([], [], norms))
                if not mode.agrees_entirely(actual):
                    found = Note.NORMS_OTHER_RESULTS.of(kinds=kinds, by=mode.differs_by(actual))
            except Exception as error:  # code that looks at what a norm is
                found = Note.NORMS_RAISED.of(kinds=kinds, error=first_line(error))
            if found is not None:
                self._facts.append(found)
                self._norms = NormDecisions()
                return

    def _decide(self, fused: set[int]) -> Mapping[str, Decision]:
        """What each layer becomes. Where time is limited, what promises most is measured first, and longest."""
        pace, given, left, order = self._pace, self._given, 0.0, self._layers
        promises = {layer.name: expected_gain(layer, given[layer.name]) for layer in order}
        if pace.limited:
            left, order = sum(promises.values()), sorted(order, key=lambda layer: promises[layer.name], reverse=True)
        # for the comparison of the whole model, passes of which this is about the time; but something is to be compared
        passes = sum(
            mode.passes_to_compare * one.recorded.seconds for mode, one in zip(self._modes, self._examples, strict=True)
        )
        reserve = min(pace.left * 0.6, passes) if pace.limited else 0.0
        decided: dict[str, Decision] = {}
        measured = Measured(sum(one.nbytes for one in self._model.parameters() if is_ordinary(one)))
        for layer in order:
            pace.at("measuring layers", len(decided), len(order))
            share = promises[layer.name] / left if left else 0.0
            until = pace.left - share * (pace.left - reserve) if pace.limited else reserve
            arguments = layer, given[layer.name], self._mode, id(layer.module) in fused, self._decisions, measured
            with stopped_by(functools.partial(pace.stop, until)):
                decided[layer.name] = decide(*arguments, may_begin=not pace.stop(reserve))
            left -= promises[layer.name]
        rows = [decision.row for decision in decided.values()]
        untimed = [name for name, decision in decided.items() if decision.untimed]
        for name in untimed:
            similar = most_like(decided[name].row, rows)
            if similar is not None:
                decided[name] = like(decided[name], decided[similar.name])
        if untimed:
            self._unmeasured.append(f"{len(untimed)} of {len(order)} layers")
        return decided

    def _with_right_gradients(self, swaps: list[Swap], rows: list[LayerReport]) -> list[Swap]:
        """Those whose gradients are the original layers'; the rows of the others become dense, and notes say so."""
        right: list[Swap] = []
        places = {row.name: place for place, row in enumerate(rows)}
        for done, swap in enumerate(swaps):
            self._pace.at("comparing gradients", done, len(swaps))
            if self._pace.limited and self._pace.stop():
                self._unmeasured.append(f"the gradients of {len(swaps) - done} layers")
                rows[:] = [as_it_was(row) if row.name in {one.path for one in swaps[done:]} else row for row in rows]
                break
            given = itertools.chain(*self._given[swap.path])
            row = rows[places[swap.path]]
            try:
                of = wrong_gradient(swap.original, swap.replacement, list(given))
            except Exception as error:
                self._note(Note.LAYER_RAISED, layer=swap.path, decision=row.decision, error=first_line(error))
            else:
                if of is None:
                    right.append(swap)
                    continue
                self._note(Note.OTHER_GRADIENTS, layer=swap.path, decision=row.decision, of=of)
            rows[places[swap.path]] = as_it_was(row)
        return right

    def _report(
        self,
        rows: list[LayerReport],
        before_ms: float | None = None,
        after_ms: float | None = None,
        way: Way = Way.BEFORE,
    ) -> Report:
        if self._pace.met:
            unmeasured = tuple(self._unmeasured) or ("some repetitions, and some numbers of rows",)
            self._note(Note.LIMIT, seconds=self._pace.max_seconds, unmeasured=unmeasured)
        undecided = sum(row.ground is Ground.UNDECIDED for row in rows)
        if undecided:
            self._note(Note.UNDECIDED, count=undecided, total=len(rows))
        facts = tuple(self._facts)
        return Report(tuple(rows), before_ms, after_ms, self._mode.name, torch.get_num_threads(), facts, way)

    def _regions(self, wanted: set[int]) -> list[_Region]:
        """The largest parts of the model that run as a graph and have a layer that may be exchanged."""
        found: list[_Region] = []
        refused: list[tuple[str, nn.Module, Fact]] = []
        if is_any_autocast_enabled():
            self._note(Note.AUTOCAST)
            return found
        self._visit(self._model, "", wanted, found, refused)
        self._facts += without_graphs(refused)
        return found

    def _visit(
        self,
        module: nn.Module,
        name: str,
        wanted: set[int],
        found: list[_Region],
        refused: list[tuple[str, nn.Module, Fact]],
    ) -> None:
        """Add the largest parts of `module` that run as a graph, and those that do not, with why."""
        if id(module) in wanted or not any(id(part) in wanted for part in module.modules()):
            return
        try:
            self._require_attachable(module)
            called = self._calls.get(id(module), [])
            trace = Trace.of(module, first_served(module, called))
            graph = self._graph(trace, torch.contiguous_format)
            graph.prepare()
            if not any(map(graph.serves, called)):
                raise Untraceable(GraphObstacle.OTHER_ARGUMENTS if called else GraphObstacle.NOT_CALLED)
        except Untraceable as error:
            if self._mode.names_obstacles and not isinstance(module, nn.ModuleList | nn.ModuleDict):
                refused.append((name, module, error.fact))
            for key, child in module.named_children():
                self._visit(child, f"{name}.{key}" if name else key, wanted, found, refused)
        else:
            found.append(_Region(trace, graph))
            self._traces[id(module)] = trace

    def _require_attachable(self, module: nn.Module) -> None:
        """Raises `Untraceable` where no graph can hang on `module`."""
        kind = own_class(module)
        if "forward" in vars(module):
            nncf = is_forward_of_nncf(module)
            raise Untraceable(GraphObstacle.FORWARD_OF_NNCF if nncf else GraphObstacle.FORWARD_REPLACED)
        if not has_method(module):
            raise Untraceable(GraphObstacle.FORWARD_NO_METHOD)
        if not may_derive(kind):
            raise Untraceable(GraphObstacle.METACLASS, metaclass=type(kind).__name__)
        where = self._compared.by_identity(kind)
        if where:
            raise Untraceable(GraphObstacle.COMPARES_CLASSES, where=where, kind=kind.__name__)

    def _graph(self, trace: Trace, layout: torch.memory_format, chains: bool = False) -> Graph:
        calls = self._calls.get(id(trace.module), [])
        given = [(one.dtype, one.device) for call in calls for one in call.tensors()]
        given += [(value.dtype, value.device) for value in tree_leaves(self._args) if isinstance(value, Tensor)]
        if calls:  # with integers alone
            given += [(parameter.dtype, parameter.device) for parameter in trace.module.parameters()]
        kinds = [(dtype, device) for dtype, device in given if dtype.is_floating_point]
        if not kinds:
            raise Untraceable(GraphObstacle.NO_FLOATING_TENSOR if calls else GraphObstacle.NOT_CALLED)
        drops = not set(dropping()).isdisjoint(self._decisions)
        return self._mode.graph(trace, *kinds[0], layout, drops, chains)

    def _offers(self, swaps: list[Swap], in_chains: list[Swap], regions: list[_Region]) -> list[Offer]:
        """Ways to put the exchanged layers to use, whose results agree with those before.

        in_chains: layers that would not be exchanged for their own sake, or for something else.
        """
        mode = self._mode
        for one in self._modes:
            one.start()
        self._check_norms()
        norms = self._norms.norms
        offers: list[Offer] = []
        ways = list(mode.ways(swaps, in_chains, functools.partial(self._as_graphs, regions) if regions else None))
        for place, offer in enumerate(ways):
            if offer.way is Way.LAYERS and mode.falls_back:
                served = [
                    one for one in offer.conversion.swaps if not is_dense_for(one.replacement, self._given[one.path])
                ]
                ways[place] = replace(offer, conversion=replace(offer.conversion, swaps=served))
        ways = [one for one in ways if one.conversion.swaps or one.conversion.graphs]
        if norms and all(offer.way is not Way.LAYERS for offer in ways):
            ways.append(Offer(Way.LAYERS, Conversion([], [])))
        ways = [replace(offer, conversion=replace(offer.conversion, norms=norms)) for offer in ways]
        if self._pace.limited and mode.first is None:  # the fastest as a rule is not to be left out
            ways.sort(key=lambda offer: offer.way is not Way.CHAINS)
        for done, offer in enumerate(ways):
            self._pace.at("checking results", done, len(ways))
            if self._pace.stop(2 * self._pass_seconds if offers else 0.0):  # a check, and a pass that is timed
                self._unmeasured += [f"the whole model running as {offer.way.words}" for offer in ways[done:]]
                break
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
        self,
        regions: list[_Region],
        swaps: list[Swap],
        layout: torch.memory_format = torch.contiguous_format,
        chains: bool = False,
    ) -> Conversion:
        return Conversion(swaps, [self._graph(region.trace, layout, chains) for region in regions])

    def _agrees(self, offer: Offer, before: list[Offer]) -> bool:
        """Whether the model gives what it gave in each example. If not, a note says what it does.

        before: the offers that agree.
        """
        self._pass_seconds = 0.0
        for mode, example in zip(self._modes, self._examples, strict=True):
            try:
                start = now()
                actual = mode.passed(offer.conversion)
                self._pass_seconds += now() - start
            except Exception as error:  # code that takes another way for a graph's stand-ins than for tensors
                self._note(Note.RAISED, way=offer.way, error=first_line(error))
                return False
            try:
                agrees = mode.agrees(actual, [one.conversion for one in before])
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                self._note(Note.RAISED, way=offer.way, error=first_line(error))
                return False
            if not agrees:
                where = f" with {example.name}" if len(self._examples) > 1 else ""
                self._note(Note.OTHER_RESULTS, way=offer.way, by=where + mode.differs_by(actual))
                return False
        if any(graph.may_be_unchecked() for graph in offer.conversion.graphs):  # what agrees is the modules
            self._note(Note.NOT_RUN, way=offer.way)
            return False
        return True

    def _install_fastest(self, rows: list[LayerReport], offers: list[Offer], in_chains: list[Swap]) -> Report:
        conversions = {Way.BEFORE: Conversion([], []), **{offer.way: offer.conversion for offer in offers}}
        contexts = {way.value: conversion.installed for way, conversion in conversions.items()}
        self._freeing = frozenset(
            way.value for way, conversion in conversions.items() if packed_among(conversion.swaps)
        )
        before = Way.BEFORE.value
        self._pace.at("timing the whole model")
        earlier = [{before: example.recorded.seconds} for example in self._examples]
        times = self._without_before(contexts, before) or self._times(contexts, MODEL, contexts, earlier)
        offered = {offer.way.value: offer for offer in offers}
        best: Offer | None = None
        doubtful = False
        judged = dict.fromkeys(offered, times)
        faster = times.faster(offered, before, LEAST_GAIN)
        nearly = times.faster(offered, before, LEAST_GAIN, _NEARLY)
        open_ones = [way for way in offered if not times.is_certain(way, before)]
        for way in dict.fromkeys((*faster, *nearly, *open_ones)):
            if times.measured and (way not in faster or times.speedup(way, before) < _CERTAIN_GAIN):
                again = self._times((before, way), CLOSE, contexts)
                judged[way] = again
                doubtful = doubtful or not again.is_certain(way, before)
                if (
                    not again.faster([way], before, LEAST_GAIN)
                    or max(one.share_faster(way, before) for one in again.each) < _MOST_ROUNDS
                ):
                    continue
                times = again
            best = offered[way]
            break
        if best is None:
            if times.order is None:
                is_certain = all(times.is_certain(way, before) for way in offered) and not doubtful
                layers = any(row.decision != DENSE for row in rows)
                as_graph = any(offer.conversion.graphs for offer in offers)
                how = "with the faster layers" if layers else "as a graph" if as_graph else "with other norms"
                self._note(Note.MODEL_NOT_FASTER if is_certain else Note.MODEL_UNDECIDED, how=how)
                self._note_slower(judged, offered)
            else:
                named = not {way.value for way in Way}.isdisjoint(times.order)
                self._note(Note.NO_PREFERRED_WAY if named else Note.NO_WAY_NAMED)
            if self._norms.runs is not None and self._norms.runs.kind is Note.NORMS:
                self._note(Note.NORMS_ALONE, **self._norms.runs.operands)
            return self._report([as_it_was(row) for row in rows])
        graphs = best.conversion.graphs
        if times.measured and not graphs and any(offer.conversion.graphs for offer in offers):
            self._note(Note.GRAPH_NOT_FASTER)
        if graphs:
            if best.way in (Way.CHAINS, Way.CHAINS_OF_ALL):
                self._note(Note.CHAINS)
            self._facts += self._mode.fused(graphs)
        if self._norms.runs is not None:
            self._facts.append(self._norms.runs)
        self._note_freed(best.conversion.swaps)
        installed = best.conversion.install()
        try:
            before_ms = times.milliseconds(before) if times.measured else None
            if best.way is Way.CHAINS_OF_ALL:
                chained = {swap.path: swap.replacement for swap in in_chains}
                rows = [in_chain(row, chained[row.name]) if row.name in chained else row for row in rows]
            exchanged = {swap.path for swap in best.conversion.swaps}
            rows = [row if row.name in exchanged else as_it_was(row) for row in rows]
            rows = with_omissions(self._model, rows, graphs)
            if self._mode.falls_back:
                rows = with_tables(self._model, rows, graphs)
            after_ms = None if before_ms is None else before_ms / times.speedup(best.way.value, before)
            report = self._report(rows, before_ms, after_ms, best.way)
            if times.measured:
                pair = before, best.way.value
                report = replace(report, runs=times.samples(pair), disturbed=not times.is_clear(pair))
            if times.measured and len(self._examples) > 1:
                report = replace(report, examples=self._times_of_each(times, best.way.value, before))
        except BaseException:
            best.conversion.uninstall()
            raise
        vars(self._model)[CONVERSION] = installed
        return report

    def _note_freed(self, swaps: Sequence[Swap]) -> None:
        packed = packed_among(swaps)
        if packed:
            after = sum(swap.replacement.nbytes for swap in packed)  # type: ignore[misc]
            before = sum(swap.original.weight.nbytes for swap in packed)  # type: ignore[union-attr, misc]
            self._note(Note.FREED, count=len(packed), dense=before / 1e6, packed=after / 1e6)

    def _times(
        self, ways: Collection[str], effort: Effort, contexts: Contexts, earlier: Sequence[Mapping[str, float]] = ()
    ) -> AllTimes:
        """Times of passes of each example. earlier: of each, as of `times_of`. They share the time that is left."""
        pace, each = self._pace, []
        for index, mode in enumerate(self._modes):
            others = len(self._modes) - index - 1
            reserve = pace.left * others / (others + 1) if pace.limited and others else 0.0
            with stopped_by(functools.partial(pace.stop, reserve)):
                calls = dict.fromkeys(ways, mode.step)
                each.append(times_of(calls, effort, contexts, warm=True, earlier=earlier[index] if earlier else None))
                self._examples[index].recorded.put_back()
        return AllTimes(tuple(each), self._freeing)

    def _without_before(self, contexts: Contexts, before: str) -> AllTimes | None:
        """Times, with that of the check for the model as it was; None where there is time, or the difference small."""
        if prefers() or not self._pace.stop(1.5 * sum(mode.seconds for mode in self._modes)):
            return None
        others = [way for way in contexts if way != before]
        measured = self._times(others, MODEL, contexts)
        pairs = zip(measured.each, self._modes, strict=True)
        with_before = tuple(Times({**one.rounds, before: [mode.seconds]}) for one, mode in pairs)
        times = AllTimes(with_before, self._freeing)
        if not any(times.slowest(way, before)[1] >= _CERTAIN_BY_ONE for way in others):
            return None
        self._unmeasured.append("the model as it was (its time is that of one run)")
        return times

    def _times_of_each(self, times: AllTimes, way: str, before: str) -> tuple[ExampleReport, ...]:
        found = []
        for example, one in zip(self._examples, times.each, strict=True):
            before_ms = one.milliseconds(before)
            found.append(ExampleReport(example.name, before_ms, before_ms / one.speedup(way, before)))
        return tuple(found)

    def _note_slower(self, judged: Mapping[str, AllTimes], offered: Mapping[str, Offer]) -> None:
        """Which example decided against what would be faster by the mean. judged: by which times, for each way."""
        for way, offer in offered.items():
            times = judged[way]
            place, gain = times.slowest(way, Way.BEFORE.value)
            if times.speedup(way, Way.BEFORE.value) >= LEAST_GAIN and gain <= times.least(way):
                self._note(Note.SLOWER_IN_EXAMPLE, way=offer.way, gain=gain, example=self._examples[place].name)


def packed_among(swaps: Iterable[Swap]) -> list[Swap]:
    """Those after which a dense weight is let go of."""
    return [swap for swap in swaps if isinstance(swap.replacement, PackedLinear)]
