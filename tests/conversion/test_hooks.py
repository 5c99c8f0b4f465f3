# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Hooks while convert measures: they are called, and find their state afterwards as it was."""

from __future__ import annotations

import array
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conversion_checks import FINE, GRAPH, LAYERS, Prefer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

import sparsekernels as sk
from sparsekernels import _library
from sparsekernels.pruning import prune_

pytestmark = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")


class Counter:
    """A hook with state of many kinds: beside itself in a global and in its class."""

    everywhere = 0

    def __init__(self) -> None:
        self.calls, self.bytes, self.array = [0], bytearray(), array.array("i")

    def __call__(self, *_: Any) -> None:
        global _hooks_called
        _hooks_called += 1
        Counter.everywhere += 1
        self.calls[0] += 1
        self.bytes.append(1)
        self.array.append(1)

    def state(self) -> tuple[object, ...]:
        return _hooks_called, Counter.everywhere, list(self.calls), bytes(self.bytes), list(self.array)


_hooks_called = 0


def _as_function(counter: Counter) -> Callable[..., None]:
    def hook(*arguments: Any) -> None:
        counter(*arguments)

    return hook


@pytest.mark.parametrize("training", [False, True])
def test_hooks_of_all_kinds(training: bool, prefer: Prefer) -> None:
    """Of layers, containers, the model and all modules: whatever they count stands where it stood."""
    model = nn.Sequential(nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16)), nn.Linear(16, 4))
    prune_(model, "random", 0.8)
    counters: list[Counter] = []
    handles: list[RemovableHandle] = []
    kinds = ("forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook")
    places = [(model.get_submodule(name), f"register_{kind}") for name in ("", "0", "0.1") for kind in kinds]
    everywhere = ("forward_hook", "forward_pre_hook", "full_backward_hook")
    for owner, register in (*places, *((nn.modules.module, f"register_module_{kind}") for kind in everywhere)):
        counters.append(Counter())
        handles.append(getattr(owner, register)(_as_function(counters[-1])))
    try:
        before = [counter.state() for counter in counters]
        prefer(FINE, GRAPH, LAYERS)
        assert sk.convert(model.train(training), torch.randn(4, 16, requires_grad=True)).converted
        assert [counter.state() for counter in counters] == before
        model(torch.randn(4, 16, requires_grad=True)).sum().backward()
        assert all(counter.calls[0] for counter in counters)
    finally:
        for handle in handles:
            handle.remove()


def test_a_global_that_a_hook_has_as_well_is_noticed(prefer: Prefer) -> None:
    """The model's own code reads it: what the graph was made of has changed."""
    model = nn.Sequential(ReadsGlobal()).eval()
    prune_(model, "random", 0.8)
    model[0].register_full_backward_hook(lambda *_: _scale)
    prefer(FINE, GRAPH, LAYERS)
    sk.convert(model, torch.randn(4, 16))
    x = torch.randn(4, 16)
    global _scale
    with torch.no_grad():
        expected = 3 * model(x)
        try:
            _scale = 3.0
            torch.testing.assert_close(model(x), expected)
        finally:
            _scale = 1.0


_scale = 1.0


class ReadsGlobal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x) * _scale)
