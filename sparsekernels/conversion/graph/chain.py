# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Fused sparse layers of a graph that follow each other, and the pooling between them, as one call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx
from torch import Tensor

from ...ops.layer_chain.implementations import LayerChain
from ...ops.layer_chain.op import is_compiled, layer_chain
from ...ops.max_pool2d.op import max_pool2d
from .fused import Fused, FusedSparse

Node = torch.fx.Node


@dataclass(frozen=True)
class _Step:
    """One layer of a chain: a fused layer or a pooling's window; tensors by number, of which 0 is the chain's input."""

    layer: FusedSparse | tuple[int, ...]
    source: int
    residual: int | None


class FusedChain(torch.nn.Module):
    """Layers of a graph from one tensor to another. They are not its children: it is packed anew when they are."""

    def __init__(self, steps: list[_Step]) -> None:
        super().__init__()
        self.steps = steps
        self._chain: LayerChain | None = None

    def pack(self) -> None:
        """Take over what the layers compute with now."""
        first = next(step.layer for step in self.steps if isinstance(step.layer, FusedSparse))
        chain = layer_chain(first.weight)
        for step in self.steps:
            if isinstance(step.layer, FusedSparse):
                step.layer.add_to(chain, step.source, step.residual)
            else:
                chain.add_max_pool2d(step.source, step.layer)
        self._chain = chain

    def forward(self, input: Tensor) -> Tensor:
        if self._chain is not None and input.dim() == 4:
            try:
                return self._chain(input)
            except ValueError:  # it does not fit: the layer says where
                pass
        return self._one_by_one(input)

    def _one_by_one(self, input: Tensor) -> Tensor:
        tensors = [input]
        for step in self.steps:
            source = tensors[step.source]
            if isinstance(step.layer, FusedSparse):
                tensors.append(step.layer(source, None if step.residual is None else tensors[step.residual]))
            else:
                tensors.append(max_pool2d(source, step.layer))
        return tensors[-1]

    def extra_repr(self) -> str:
        return f"{len(self.steps)} layers"


def chain(graph: torch.fx.Graph, fused: Mapping[str, Fused]) -> dict[str, FusedChain]:
    """Puts chains into the graph; returns them by the names under which it calls them."""
    result: dict[str, FusedChain] = {}
    for nodes in _sequences(graph, fused):
        name = f"sparsekernels_chain_{len(result)}"
        numbers: dict[Any, int] = {nodes[0].args[0]: 0}
        steps = []
        for node in nodes:
            layer: Any = fused[node.target] if node.op == "call_module" else node.args[1]
            residual = numbers[node.args[1]] if node.op == "call_module" and len(node.args) > 1 else None
            steps.append(_Step(layer, numbers[node.args[0]], residual))
            numbers[node] = len(steps)
        result[name] = FusedChain(steps)
        with graph.inserting_before(nodes[-1]):
            replacement = graph.call_module(name, (nodes[0].args[0],))
        nodes[-1].replace_all_uses_with(replacement)
        for node in reversed(nodes):
            graph.erase_node(node)
    return result


def _sequences(graph: torch.fx.Graph, fused: Mapping[str, Fused]) -> list[list[Any]]:
    """Neighboring nodes that a chain can be made of: one tensor leads into them and one out, two of them at least."""
    chains: list[list[Any]] = []
    nodes: list[Any] = list(graph.nodes)
    start = 0
    while start < len(nodes):
        sequence: list[Any] = []
        computed = set(nodes[start].args[:1])
        dtypes: set[torch.dtype] = set()
        length = 0
        for node in nodes[start:]:
            if not _may_be_chained(node, fused) or not computed.issuperset(node.all_input_nodes):
                break
            if node.op == "call_module":
                dtypes.add(fused[node.target].weight.dtype)
            if len(dtypes) > 1:
                break
            sequence.append(node)
            computed.add(node)
            if all(set(inner.users) <= computed for inner in sequence[:-1]):
                length = len(sequence)
        if length > 1 and any(node.op == "call_module" for node in sequence[:length]):
            chains.append(sequence[:length])
        start += max(1, length)
    return chains


def _may_be_chained(node: Any, fused: Mapping[str, Fused]) -> bool:
    if node.op == "call_module":
        layer = fused.get(node.target)
        if layer is None or not layer.may_chain(layer.parts[0]):
            return False
        return is_compiled(layer.weight)
    return node.op == "call_function" and node.target is max_pool2d
