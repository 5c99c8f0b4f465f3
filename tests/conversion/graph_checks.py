# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""A small network with any code between its layers, whose graph is compared with the same network before."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from conversion_checks import FINE, GRAPH, Prefer, graphs_of
from torch import Tensor, nn

import sparsekernels as sk
from sparsekernels.conversion.graph.attach import NO_ANSWER
from sparsekernels.pruning import prune_

Code = Callable[[nn.Module, Tensor], Tensor]


class Net(nn.Module):
    """Two convolutions; `code` is what lies between, which gives 8 channels."""

    def __init__(self, code: Code) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.last = nn.Conv2d(8, 8, 3, padding=1)
        self.code = code

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.last(self.code(self, torch.relu(self.norm(self.first(x))))))


def images(batch: int, height: int = 8) -> Tensor:
    return torch.randn(batch, 8, height, 8, generator=torch.Generator().manual_seed(batch))


def twins(
    code: Code, training: bool, prefer: Prefer, give: Callable[[nn.Module], None] = lambda model: None
) -> tuple[nn.Module, nn.Module, sk.Report]:
    """The converted model, and the same before. give: attributes, to each."""
    torch.manual_seed(1)
    model = Net(code).train(training)
    prune_(model, "random", 0.8)
    dense = copy.deepcopy(model)
    give(model)
    give(dense)
    prefer(FINE, GRAPH)
    return model, dense, sk.convert(model, images(3))


def assert_same(model: nn.Module, dense: nn.Module, x: Tensor, served: bool = True) -> None:
    """Twice, since a new shape is computed with when it comes again; then by a graph."""
    with torch.set_grad_enabled(model.training):
        for seed in (1, 2):
            results = []
            for one in (model, dense):
                torch.manual_seed(seed)
                results.append((one(x.clone()), torch.rand(())))  # as many random numbers were drawn
            torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
        (graph,) = graphs_of(model)
        assert (graph.answer((x.clone(),), {}) is not NO_ANSWER) == served
    dense.load_state_dict(model.state_dict())  # what that pass has counted
