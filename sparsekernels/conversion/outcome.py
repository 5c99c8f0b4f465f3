# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What the rows and notes of a report say of layers and parts once it is known how the model runs."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from ..nn.replacement import Replacement
from .candidates import candidate_of, dropping
from .facts import Fact, Note
from .graph.base import Graph
from .graph.channels import dropped
from .graph.inference import InferenceGraph
from .report import DENSE, Ground, LayerReport


def without_graphs(refused: list[tuple[str, nn.Module, Fact]]) -> list[Fact]:
    """What is to be said of parts that are no graphs: one sentence for those of one class for one reason."""
    alike: dict[tuple[type, str], list[tuple[str, Fact]]] = {}
    for name, module, fact in refused:
        alike.setdefault((type(module), str(fact) if name else ""), []).append((name, fact))
    facts = []
    for (kind, _), parts in alike.items():
        part, reason = parts[0]
        if not part:
            facts.append(Note.NO_GRAPH.of(reason=reason))
        elif len(parts) == 1:
            facts.append(Note.NO_GRAPH_OF_PART.of(part=part, reason=reason))
        else:
            facts.append(Note.NO_GRAPH_OF_PARTS.of(count=len(parts), kind=kind.__name__, part=part, reason=reason))
    return facts


def drops_of(graph: Graph) -> dict[int, tuple[int, int]]:
    """How many outputs and inputs of each layer, by its id, a graph leaves out."""
    return dropped(graph.prepare().links) if isinstance(graph, InferenceGraph) else {}


def with_omissions(model: nn.Module, rows: list[LayerReport], graphs: list[Graph]) -> list[LayerReport]:
    """`rows`, with what the graphs leave out."""
    counts: dict[int, tuple[int, int]] = {}
    for graph in graphs:
        counts |= drops_of(graph)
    result = []
    for row in rows:
        omitted = counts.get(id(model.get_submodule(row.name)), (0, 0))
        if any(omitted):
            row = replace(row, omitted=omitted)
            if row.decision == DENSE:
                row = replace(row, decision=dropping()[0], ground=Ground.GRAPH, ms=None)
        result.append(row)
    return result


def with_tables(model: nn.Module, rows: list[LayerReport], graphs: list[Graph]) -> list[LayerReport]:
    """`rows`, with the numbers of rows for which a graph or the layer itself multiplies by the dense weight."""
    plans = [graph.prepare() for graph in graphs if isinstance(graph, InferenceGraph)]
    tables = {id(one.parts[0]): one.dense_rows for plan in plans for one in plan.fused}
    layers = [model.get_submodule(row.name) for row in rows]
    found = [tables.get(id(layer), vars(layer).get("dense_rows", ())) for layer in layers]
    return [
        replace(row, dense_rows=table) if isinstance(layer, Replacement) else row
        for row, layer, table in zip(rows, layers, found, strict=True)
    ]


def in_chain(row: LayerReport, replacement: Replacement) -> LayerReport:
    """The row of a layer that became `replacement` for the sake of its neighbors."""
    candidate = candidate_of(replacement)
    assert candidate is not None
    return replace(row, decision=candidate.name, ground=Ground.CHAIN, ms=None)


def as_it_was(row: LayerReport) -> LayerReport:
    """The row of a layer that stays, since the whole model was not faster."""
    if row.decision == DENSE:
        return row
    if row.ground is Ground.LIMIT:
        return replace(row, decision=DENSE, measured_on=None)
    ground = row.ground if row.ground is Ground.PREFERENCE else Ground.MODEL
    return replace(row, decision=DENSE, ground=ground, ms=row.dense_ms)
