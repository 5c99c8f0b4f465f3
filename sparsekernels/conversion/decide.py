# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What each layer becomes: the fastest of what it may be, as measured."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from ..nn import SparseLinear
from ..nn.channel_dropped import used_pairs
from ..nn.replacement import Replacement, options_of
from .candidates import candidates_of, fused_of, has_candidates, may_chain
from .facts import Fact, LayerObstacle
from .measure import LAYER, SAME, AllTimes, Times, on_one_thread, prefers, times_of
from .modes import Mode
from .report import DENSE, Ground, LayerReport
from .rows import tables_of
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
    times       of layers, and which layer they were measured on
    tables      for which numbers of rows a layer is faster dense, by itself and in a graph
    """

    parameters: int
    times: dict[tuple[Any, ...], tuple[str, AllTimes]] = field(default_factory=dict)
    tables: dict[tuple[Any, ...], dict[str, tuple[bool, ...]]] = field(default_factory=dict)


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
    weights and on contiguous images. decisions: what it may become. measured: layers that are alike are measured once.
    may_begin: whether there is time to measure it.
    """
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
        candidates, ruled_out = candidates_of(layer, decisions)
    row = replace(row, ruled_out=ruled_out)
    if not candidates:
        return Decision(row)
    with on_one_thread():
        kind = _kind_of(layer, candidates, fuses)
    called = [index for index, some in enumerate(given) if some]
    key = *kind, tuple(map(tuple, given))
    _give_tables(layer, given[called[0]][0], candidates, fuses, measured, kind, may_begin)
    if key not in measured.times:
        if not may_begin:
            return Decision(replace(row, ground=Ground.LIMIT), untimed=candidates)
        each = tuple(_measure(layer, given[index], candidates, mode, fuses) for index in called)
        measured.times[key] = layer.name, AllTimes(each)
    measured_on, times = measured.times[key]
    best = next(iter(times.faster(candidates, DENSE, LEAST_GAIN)), None)
    if not times.measured:
        row = replace(row, ground=Ground.PREFERENCE)
        return Decision(row) if best is None else Decision(replace(row, decision=best), candidates[best])
    gains = {name: times.speedup(name, DENSE) for name in candidates}
    nearly = times.faster(candidates, DENSE, LEAST_IN_CHAIN) if fuses else []
    chained = [name for name in nearly if may_chain(name, layer.module)]
    in_chain = candidates[chained[0]] if chained else None
    dense_ms = times.milliseconds(DENSE)
    alike = None if measured_on == layer.name else measured_on
    row = replace(row, gains=gains, measured_on=alike, dense_ms=dense_ms, ms=dense_ms)
    if len(called) > 1:
        slowest = {name: times.slowest(name, DENSE) for name in candidates}
        row = replace(row, slowest={name: (called[place], gain) for name, (place, gain) in slowest.items()})
    if best is None:
        return Decision(row, None, in_chain)
    table = vars(candidates[best]).get("dense_rows", ())
    row = replace(row, decision=best, ms=dense_ms / gains[best], dense_rows=table)
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
    assert layer.sparsity is not None
    if layer.sparsity < LEAST_SPARSITY and layer.masked:
        return LayerObstacle.MASKED_BY_NNCF.of()
    if layer.sparsity < LEAST_SPARSITY and not has_candidates(layer):
        return LayerObstacle.FEW_ZEROS.of(least=LEAST_SPARSITY) if layer.sparsity else LayerObstacle.NO_ZEROS.of()
    if not any(given):
        return LayerObstacle.NOT_CALLED.of()
    return None


def _kind_of(layer: Layer, candidates: Collection[str], fuses: bool) -> tuple[Any, ...]:
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
    return type(module), options, storage, trained, nonzeros, tuple(candidates), fuses


def _give_tables(
    layer: Layer,
    given: Given,
    candidates: Mapping[str, nn.Module],
    fuses: bool,
    measured: Measured,
    kind: tuple[Any, ...],
    may_begin: bool,
) -> None:
    """Let the candidate that has only the nonzeros of a Linear know for which numbers of rows it is faster dense."""
    sparse = next((one for one in candidates.values() if isinstance(one, SparseLinear)), None)
    if sparse is None or prefers():
        return
    key = *kind, given.dtype, given.device
    if key not in measured.tables:
        if not may_begin:
            return
        ways: dict[str, Callable[[Tensor], Tensor]] = {"dense_rows": sparse}
        fused = fused_of(sparse) if fuses else None
        if fused is not None:
            ways["packed_dense_rows"] = fused(sparse, contiguous=True)
        dense: Any = layer.module
        measured.tables[key] = tables_of(dense, ways, given, measured.parameters)
    vars(sparse).update(measured.tables[key])


def _measure(
    layer: Layer, given: Sequence[Given], candidates: Mapping[str, nn.Module], mode: Mode, fuses: bool
) -> Times:
    """All of the calls of one pass of the model together; in training with their backward passes."""
    calls: dict[str, Callable[[], None]] = {}
    with mode.gradients():
        inputs = [one.make() for one in given]
        calls[DENSE] = functools.partial(mode.run_layer, layer.module, inputs)
        for name, module in candidates.items():
            if fuses:
                as_laid_out = [one.contiguous() for one in inputs]
                fused = fused_of(module)
                assert fused is not None
                calls[name] = functools.partial(mode.run_layer, fused(module, contiguous=True), as_laid_out)
            else:
                calls[name] = functools.partial(mode.run_layer, module, inputs)
        return times_of(calls, LAYER)
