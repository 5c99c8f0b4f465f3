# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What the tests of convert have in common: names of decisions, the oracle over a whole model, and its graphs."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from sparsekernels.conversion.graph.attach import graph_of as attached_graph
from sparsekernels.conversion.graph.base import Graph
from sparsekernels.testing import compare

convert_module = importlib.import_module("sparsekernels.conversion.convert")  # the package has the function
attempt_module = importlib.import_module("sparsekernels.conversion.attempt")

FINE, DROPPED, BLOCK, DENSE = "fine-grained", "channel-dropped", "block", "dense"
GRAPH, CHAINS, LAYERS, ALL_CHAINS = "graph", "chains", "layers", "chains of all layers"
CHAINED = {"sequential", "residual", "residual, shortcut first", "limits"}
Prefer = Callable[..., None]


def run(model: nn.Module, x: Tensor) -> list[Tensor]:
    with torch.inference_mode():
        return [one for one in tree_leaves(model(x.clone())) if isinstance(one, Tensor)]


def assert_agree(model: nn.Module, dense: nn.Module, x: Tensor) -> None:
    """The oracle over a whole model: the dense one in float64 is the truth, itself in the dtype of x the baseline."""
    truth = run(copy.deepcopy(dense).double(), x.double())
    for index, results in enumerate(zip(run(model, x), truth, run(dense, x), strict=True)):
        comparison = compare(f"result {index}", *results)
        assert comparison.passed, comparison


def graphs_of(model: nn.Module) -> Iterator[Graph]:
    for module in model.modules():
        graph = attached_graph(module)
        if isinstance(graph, Graph):
            yield graph


def graph_of(model: nn.Module) -> list[str]:
    """The names of what the one graph of the model calls."""
    (graph,) = graphs_of(model)
    return list(graph.prepare().made.calls)
