# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What each layer becomes: the fastest of what it may be, as measured.

More than 400 lines: how a layer is measured, and how it is judged by that.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..nn.channel_dropped import used_pairs
from ..nn.replacement import LINEAR_KINDS, Replacement, has_rows, options_of
from ..usage import Disturbed
from .candidates import candidates_of, fused_of, has_candidates, may_chain, of_frozen
from .facts import Fact, LayerObstacle
from .graph.fused import Fused, FusedDense
from .measure import LAYER, SAME, AllTimes, Times, of_layer, on_one_thread, prefers, rules_out, times_of
from .modes import Mode, without_gradients
from .report import BLOCK, DENSE, PACKED, Ground, LayerReport
from .rows import (
    COLD,
    ROWS,
    UNKNOWN,
    Gains,
    GainsOfWays,
    by_cold_caches,
    gain_at,
    gains_at,
    gains_of,
    table_of,
    with_tables,
)
from .subclasses import OfSubclass
from .survey import LEAST_SPARSITY, Given, Layer

LEAST_GAIN = SAME
"""A layer is not exchanged for less."""

LEAST_IN_CHAIN = 0.5
"""What a layer that a chain can call has to reach alone, beside the dense one, to be tried between others: there it
saves its neighbors a trip to memory."""


@dataclass(frozen=True)
class Decision:
    """What a layer becomes.

    row          of the report
    replacement  None where it stays
    in_chain     what it may be instead, in a chain of sparse layers, though that is not faster by itself
    untimed      what it may be, by the names of decisions, where there was no time to measure it
    """

    row: LayerReport
    replacement: Replacement | None = None
    in_chain: Replacement | None = None
    untimed: Mapping[str, Replacement] = field(default_factory=dict)


@dataclass
class Measured:
    """What was measured of layers so far, by all that it depends on.

    parameters  bytes of the model's
    times       of layers, which layer they were measured on, and what it gains by rows
    gains       by rows, of layers
    """

    parameters: int
    times: dict[tuple[Any, ...], tuple[str, AllTimes, Gains]] = field(default_factory=dict)
    gains: dict[tuple[Any, ...], Gains] = field(default_factory=dict)


def decide(
    layer: Layer,
    given: Sequence[Sequence[Given]],
    mode: Mode,
    fuses: bool,
    decisions: Collection[str],
    measured: Measured,
    may_begin: bool = True,
) -> Decision:
    """What `layer` becomes.

    given: in each example, what it was given, once for each call. fuses: whether a graph will run it, with frozen
    weights and on images in the layout of `mode`. decisions: what it may become. measured: layers that are alike are
    measured once. may_begin: whether there is time to measure it.
    """
    with of_layer(layer.name) as preference:
        return _decide(layer, given, mode, fuses, decisions, measured, may_begin, preference)


def _decide(
    layer: Layer,
    given: Sequence[Sequence[Given]],
    mode: Mode,
    fuses: bool,
    decisions: Collection[str],
    measured: Measured,
    may_begin: bool,
    preference: tuple[str, ...] | None,
) -> Decision:
    weight = layer.weight
    row = LayerReport(
        name=layer.name,
        kind=type(layer.module).__name__,
        weight_shape=() if weight is None else tuple(weight.shape),
        input_shape=next((some[0].shape for some in given if some), None),
        sparsity=layer.sparsity,
        decision=DENSE,
        obstacle=reason_to_stay(layer, given),
        also=() if _names_all(layer.obstacle) else layer.also,
    )
    if row.obstacle is not None:
        return Decision(row)
    with on_one_thread():
        candidates, ruled_out = candidates_of(layer, decisions, blocks_count=not rules_out(BLOCK))
    row = replace(row, ruled_out=ruled_out, block=_block_of(candidates))
    if not candidates:
        return Decision(row)
    with on_one_thread():
        kind = _kind_of(layer, candidates, fuses)
    called = [index for index, some in enumerate(given) if some]
    key = *kind, tuple(map(tuple, given)), preference
    if key not in measured.times:
        if not may_begin:
            return Decision(replace(row, ground=Ground.LIMIT), untimed=candidates)
        examples = [given[index] for index in called]
        gains_by_rows = _gains_by_rows(layer, examples, candidates, mode, fuses, measured, kind)
        _give_tables(candidates, gains_by_rows)
        each, gains_by_rows = _measure_each(layer, examples, candidates, mode, fuses, gains_by_rows)
        measured.times[key] = layer.name, AllTimes(tuple(each), frozenset(of_frozen())), gains_by_rows
    measured_on, times, gains_by_rows = measured.times[key]
    _give_tables(candidates, gains_by_rows)
    best = next(iter(times.faster(candidates, DENSE, LEAST_GAIN)), None)
    if not times.measured:
        row = replace(row, ground=Ground.PREFERENCE)
        return Decision(row) if best is None else Decision(replace(row, decision=best), candidates[best])
    if best is None and not all(times.is_certain(name, DENSE) for name in candidates):
        return Decision(replace(row, ground=Ground.UNDECIDED))
    gains = {name: times.speedup(name, DENSE) for name in candidates}
    nearly = times.faster(candidates, DENSE, LEAST_IN_CHAIN) if fuses else []
    chained = [name for name in nearly if may_chain(name, layer.module, candidates[name])]
    in_chain = candidates[chained[0]] if chained else None
    dense_ms = times.milliseconds(DENSE)
    alike = None if measured_on == layer.name else measured_on
    if not times.is_clear([DENSE, *candidates]):
        row = replace(row, ground=Ground.PLAIN, measured_on=alike, decision=best or DENSE)
        return Decision(row, candidates[best] if best else None, None if best in chained else in_chain)
    row = replace(row, gains=gains, measured_on=alike, dense_ms=dense_ms, ms=dense_ms)
    if len(called) > 1:
        slowest = {name: times.slowest(name, DENSE) for name in candidates}
        row = replace(row, slowest={name: (called[place], gain) for name, (place, gain) in slowest.items()})
    if best is None:
        return Decision(row, None, in_chain)
    row = replace(row, decision=best, ms=dense_ms / gains[best])
    return Decision(row, candidates[best], None if best in chained else in_chain)


def expected_gain(layer: Layer, given: Sequence[Sequence[Given]]) -> float:
    """The multiplications by zero in one pass of each example: what there is to be gained by `layer`, about."""
    module: Any = layer.module
    weight, total = layer.weight, 0.0
    if weight is None or not weight.numel():
        return total
    for one in itertools.chain.from_iterable(given):
        places = math.prod(one.shape) / (one.shape[1] if weight.dim() > 2 else one.shape[-1])
        total += places / math.prod(getattr(module, "stride", (1,))) * weight.numel()
    return total * (layer.sparsity or 0.0)


def most_like(row: LayerReport, rows: Sequence[LayerReport]) -> LayerReport | None:
    """Of `rows` that were measured, the one whose layer is the most like that of `row`; None where none is."""
    alike = [one for one in rows if one.gains and one.kind == row.kind and one.weight_shape[2:] == row.weight_shape[2:]]
    return min(alike, key=lambda one: _distance(one, row), default=None)


def _distance(one: LayerReport, other: LayerReport) -> float:
    """How much the sizes of weights and inputs and the densities of two layers differ, as logarithms."""
    both = [
        (math.prod(row.weight_shape), math.prod(row.input_shape or ()), 1.001 - (row.sparsity or 0.0))
        for row in (one, other)
    ]
    return sum(abs(math.log(mine / theirs)) for mine, theirs in zip(*both, strict=True))


def _names_all(obstacle: Fact | None) -> bool:
    """Whether it names all places of a layer."""
    return obstacle is not None and obstacle.kind is LayerObstacle.SEVERAL_PLACES


def reason_to_stay(layer: Layer, given: Sequence[Sequence[Given]]) -> Fact | None:
    """Why `layer` is not even measured."""
    if layer.obstacle is not None:
        return layer.obstacle
    if not layer.is_pruned and layer.masked:
        return LayerObstacle.MASKED_BY_NNCF.of()
    if not layer.is_pruned and not has_candidates(layer):
        return LayerObstacle.FEW_ZEROS.of(least=LEAST_SPARSITY) if layer.sparsity else LayerObstacle.NO_ZEROS.of()
    if not any(given):
        return LayerObstacle.NOT_CALLED.of()
    return None


def _block_of(candidates: Mapping[str, Replacement]) -> tuple[int, int] | None:
    """The size of the blocks of the candidate that is in such."""
    patterns = [candidates[name].pattern for name in candidates if name == BLOCK]
    return None if not patterns or patterns[0] is None else patterns[0].block_size


def _kind_of(layer: Layer, candidates: Mapping[str, Replacement], fuses: bool) -> tuple[Any, ...]:
    """What the times of `layer` depend on, except its inputs and the positions of its nonzeros: its options, and,
    rounded to two digits, the numbers of nonzeros, of nonempty filters and of nonempty channels."""
    module: Any = layer.module
    weight = module.weight
    options = tuple(value for name, value in options_of(module).items() if name != "device")
    used = used_pairs(weight)
    counts = int(weight.count_nonzero()), int(used.any(0).sum()), int(used.any(1).sum())
    nonzeros = tuple(f"{count:.2g}" for count in counts)
    trained = weight.requires_grad, module.bias is not None and module.bias.requires_grad
    storage = weight.dtype, weight.stride()
    return type(module), options, storage, trained, nonzeros, tuple(candidates), _block_of(candidates), fuses


def _gains_by_rows(
    layer: Layer,
    examples: Sequence[Sequence[Given]],
    candidates: Mapping[str, nn.Module],
    mode: Mode,
    fuses: bool,
    measured: Measured,
    kind: tuple[Any, ...],
) -> Gains:
    """For what numbers of rows the candidates of a linear layer gain how much over dense; nothing of other layers."""
    dense: Any = layer.module
    if prefers() or not isinstance(dense, LINEAR_KINDS):
        return {}
    first = examples[0][0]
    called_with = {rows for example in examples for rows in _rows_of(example) if rows <= ROWS[-1]}
    also = called_with if mode.falls_back else set()
    key = *kind, first.dtype, first.device, frozenset(also)
    if key not in measured.gains:
        found: dict[str, GainsOfWays] = {}
        for name, candidate in candidates.items():
            if name == PACKED:  # which has no dense weight to go to
                with without_gradients(dense):
                    found[name] = {COLD: gains_at(dense, candidate, first, measured.parameters, called_with)}
                continue
            ways: dict[str, Callable[[Tensor], Tensor]] = {"dense_rows": candidate}
            if fuses:
                ways["packed_dense_rows"] = _fused(candidate)
            with without_gradients(dense):
                found[name] = gains_of(dense, ways, first, measured.parameters, also)
        measured.gains[key] = found
    return measured.gains[key]


def _rows_of(example: Sequence[Given]) -> set[int]:
    """Of the inputs of a Linear."""
    return {math.prod(one.shape[:-1]) for one in example} - {0}


def is_dense_for(replacement: nn.Module, examples: Sequence[Sequence[Given]]) -> bool:
    """Whether, where no graph serves it, it goes to its dense weight in all calls of these examples."""
    table = vars(replacement).get("dense_rows", ())
    called_with = set().union(*map(_rows_of, examples)) if table else set()
    return bool(called_with) and all(has_rows(table, rows) for rows in called_with)


def _give_tables(candidates: Mapping[str, nn.Module], gains: Gains) -> None:
    for name, ways in with_tables(gains).items():
        vars(candidates[name]).update({way: table_of(found) for way, found in ways.items()})


def _measure_each(
    layer: Layer,
    examples: Sequence[Sequence[Given]],
    candidates: Mapping[str, nn.Module],
    mode: Mode,
    fuses: bool,
    gains: Gains,
) -> tuple[list[Times], Gains]:
    """Times in each example, and what to make of `gains` by them."""
    each, tables = _measure_with_fallbacks(layer, examples, candidates, mode, fuses, with_tables(gains))
    each = [by_cold_caches(times, example, gains) for times, example in zip(each, examples, strict=True)]
    return each, {**gains, **tables}


def _measure_with_fallbacks(
    layer: Layer,
    examples: Sequence[Sequence[Given]],
    candidates: Mapping[str, nn.Module],
    mode: Mode,
    fuses: bool,
    gains: Gains,
) -> tuple[list[Times], Gains]:
    """Times in each example, and what to make of `gains` by them.

    A candidate that was not faster in an example falls back to its dense weight for the numbers of rows there, so that
    it is judged by the others. In a single example, it is judged by what it takes without that.
    """
    each = [_measure(layer, example, candidates, mode, fuses) for example in examples]
    if not mode.falls_back or not gains:
        return each, gains
    if len(examples) == 1:
        return [_without_fallbacks(each[0], _rows_of(examples[0]), gains)], gains
    lower: dict[str, dict[int, float]] = {name: {} for name in gains}
    for times, example in zip(each, examples, strict=True):
        for name in gains:
            gain = times.speedup(name, DENSE)
            if gain < SAME:
                lower[name].update(dict.fromkeys(_rows_of(example), gain))
    lowered = {name: {way: {**found, **lower[name]} for way, found in ways.items()} for name, ways in gains.items()}
    changed = {rows for name in gains for rows in lower[name] if _differ_for(rows, lowered[name], gains[name])}
    _give_tables(candidates, lowered)
    for place, example in enumerate(examples):
        if not changed.isdisjoint(_rows_of(example)):
            each[place] = _measure(layer, example, candidates, mode, fuses)
        each[place] = _with_fallbacks(each[place], example, candidates, lowered)
    return each, lowered


def _differ_for(rows: int, one: GainsOfWays, other: GainsOfWays) -> bool:
    """Whether the two have so many rows served otherwise."""
    return any(has_rows(table_of(one[way]), rows) != has_rows(table_of(other[way]), rows) for way in one)


def _with_fallbacks(times: Times, example: Sequence[Given], candidates: Mapping[str, nn.Module], gains: Gains) -> Times:
    """Where all calls go to the dense weight, dense times are a candidate's, by whatever the two samples differ.

    A subclass does something before, which counts.
    """
    same = {
        name: times.rounds[DENSE]
        for name, ways in gains.items()
        if not isinstance(candidates[name], OfSubclass)
        and all(has_rows(table_of(found), rows) for found in ways.values() for rows in _rows_of(example))
    }
    return replace(times, rounds={**times.rounds, **same})


def _without_fallbacks(times: Times, called_with: Collection[int], gains: Gains) -> Times:
    """Where all calls go to the dense weight, a candidate takes what its gains at these numbers of rows say.

    Otherwise it would be compared with itself, and by chance be faster.
    """
    rounds, dense = dict(times.rounds), times.rounds[DENSE]
    for name, ways in gains.items():
        found = list(ways.values())[-1]  # of what serves it in a graph, where one does
        if called_with and all(has_rows(table_of(found), rows) for rows in called_with):
            gain = min(1.0, *(gain_at(found, rows) for rows in called_with))
            kind = float if gain != UNKNOWN and times.is_clear([name, DENSE]) else Disturbed
            rounds[name] = [kind(seconds / (gain or 1.0)) for seconds in dense]
    return replace(times, rounds=rounds)


def like(decision: Decision, other: Decision) -> Decision:
    """What there was no time to measure becomes what `other`, of the layer most like it, became."""
    name = other.row.decision
    if name not in decision.untimed:
        return decision
    replacement = decision.untimed[name]
    tables = ("dense_rows", "packed_dense_rows")
    vars(replacement).update({one: vars(other.replacement)[one] for one in tables if one in vars(other.replacement)})
    return Decision(replace(decision.row, decision=name, measured_on=other.row.name), replacement)


def _measure(
    layer: Layer, given: Sequence[Given], candidates: Mapping[str, nn.Module], mode: Mode, fuses: bool
) -> Times:
    """All of the calls of one pass of the model together; in training with their backward passes."""
    calls: dict[str, Callable[[], None]] = {}
    with mode.gradients():
        inputs = [one.make() for one in given]
        as_laid_out = [_in_layout(one, mode.layout) for one in inputs] if fuses else inputs
        dense = layer.module
        if fuses and mode.layout is torch.channels_last and type(dense) is nn.Conv2d:
            # what it would be beside other layers, often faster than what it was
            calls[DENSE] = functools.partial(mode.run_layer, FusedDense(dense, layout=mode.layout), as_laid_out)
        else:
            calls[DENSE] = functools.partial(mode.run_layer, dense, inputs)
        for name, module in candidates.items():
            called = _fused(module, mode.layout) if fuses and fused_of(module) is not None else module
            calls[name] = functools.partial(mode.run_layer, called, as_laid_out)
        return times_of(calls, LAYER)


def _in_layout(input: Tensor, layout: torch.memory_format) -> Tensor:
    return input.contiguous(memory_format=layout) if input.dim() == 4 else input.contiguous()


def _fused(module: nn.Module, layout: torch.memory_format = torch.contiguous_format) -> Fused:
    """What serves it in a graph."""
    kind = fused_of(module)
    assert kind is not None
    return kind(module, layout=layout)
