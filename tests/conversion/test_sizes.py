# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Code that looks at sizes to decide: a graph serves the calls in which it decides as it did when it was traced."""

from __future__ import annotations

import copy
import logging
import math
import re
import subprocess
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conversion_checks import FINE, GRAPH, Prefer, assert_agree, graphs_of
from torch import Tensor, nn

import sparsekernels as sk
from sparsekernels import _library
from sparsekernels._torch import FakeTensorMode
from sparsekernels.conversion.graph.attach import NO_ANSWER
from sparsekernels.conversion.graph.proxies import factories_are_recorded
from sparsekernels.pruning import prune_

pytestmark = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")

Decide = Callable[[nn.Module, Tensor], Tensor]


class Deciding(nn.Module):
    """Two convolutions; `decide` is the code between, which gives 8 channels."""

    def __init__(self, decide: Decide) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8)
        self.last = nn.Conv2d(8, 8, 3, padding=1)
        self.scale = nn.Parameter(torch.ones(1, 8, 1, 1))
        self.window = 4
        self.decide = decide

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.last(self.decide(self, torch.relu(self.norm(self.first(x))))))


def odd_sizes(self: nn.Module, x: Tensor) -> Tensor:
    _, _, height, width = x.shape
    if height % self.window or width % self.window:
        return F.pad(x, (0, -width % self.window, 0, -height % self.window)) * 2
    return x


def loops(self: nn.Module, x: Tensor) -> Tensor:
    parts = [x[:, :, row] * (row + 1) for row in range(x.shape[2])]
    return torch.stack(parts, 2)


def dimensions(self: nn.Module, x: Tensor) -> Tensor:
    assert len(x.shape) == x.dim() == x.ndim == 4
    assert x.size(1) == self.scale.shape[1], "channels"
    return x * self.scale


def numbers(self: nn.Module, x: Tensor) -> Tensor:
    height = x.size(2)
    if not isinstance(height, int) or not isinstance(x.shape, tuple | list):
        return x * 100
    rows = max(2, math.ceil(height / 3), int(height**0.5), round(height / 3))
    return F.adaptive_avg_pool2d(x, (rows, rows)) * float(height)


def stars(self: nn.Module, x: Tensor) -> Tensor:
    return x.flatten(1).view(*x.shape[:2], -1).view(*x.shape)


def of_a_pooled_one(self: nn.Module, x: Tensor) -> Tensor:
    pooled = F.max_pool2d(x, 2)
    return pooled if pooled.shape[-1] > 2 else F.interpolate(pooled, size=x.shape[-2:])


def tensors_of_sizes(self: nn.Module, x: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    rows = (~torch.zeros((batch, height, width)).bool()).cumsum(1, dtype=torch.float32)
    rows = rows / (torch.arange(1, height + 1)[:, None] + torch.tensor([1.0, 1.0]).sum())
    columns = torch.ones(height, width, device=x.device).cumsum(1) + torch.full((1, width), 2.0, dtype=x.dtype)
    frequencies = 10 ** (torch.arange(channels) / channels)
    return x + torch.sin((rows + columns)[:, None] / frequencies[:, None, None])


def limits_of_dtypes(self: nn.Module, x: Tensor) -> Tensor:
    seen = torch.ones(x.shape[2], x.shape[3], dtype=torch.bool).tril()
    scores = x.masked_fill(~seen, torch.finfo(x.dtype).min)
    assert isinstance(torch.finfo(torch.float32), torch.finfo)
    return scores.softmax(-1) * torch.iinfo(torch.uint8).max


def sums_of_sizes(self: nn.Module, x: Tensor) -> Tensor:
    """Each of what the one before gives twice: there are as many paths as two to the power of their number."""
    dimensions, rows = x.dim(), x.shape[2]
    for _ in range(60):
        dimensions, rows = dimensions + dimensions // 2, rows + rows % 2
    return x * 2 if dimensions > 4 and rows % 4 == 0 else x


def images(batch: int, height: int, width: int | None = None) -> Tensor:
    return torch.randn(batch, 8, height, width or height, generator=torch.Generator().manual_seed(height))


def converted(decide: Decide, prefer: Prefer, x: Tensor) -> tuple[nn.Module, nn.Module, sk.Report]:
    torch.manual_seed(3)
    model = Deciding(decide).eval()
    prune_(model, "random", 0.8)
    dense = copy.deepcopy(model)
    prefer(FINE, GRAPH)
    return model, dense, sk.convert(model, x)


def serves(model: nn.Module, x: Tensor) -> bool:
    """Whether its graph answers, when a shape is there for the second time."""
    (graph,) = graphs_of(model)
    with torch.no_grad():
        return [graph.answer((x,), {}) is not NO_ANSWER for _ in range(2)][1]


@pytest.mark.parametrize(
    ("decide", "others", "elsewhere"),
    [
        (odd_sizes, [images(1, 16), images(5, 8), images(2, 8, 24)], [images(3, 10), images(3, 16, 18)]),
        (loops, [images(1, 16), images(2, 16, 10)], [images(3, 18)]),
        (dimensions, [images(1, 12), images(2, 9, 21)], []),
        (numbers, [images(1, 16), images(2, 16, 10)], [images(3, 18), images(3, 24)]),
        (stars, [images(1, 12), images(2, 9, 21)], []),
        (of_a_pooled_one, [images(1, 12), images(2, 14)], [images(3, 8), images(3, 9)]),
        (tensors_of_sizes, [images(1, 12), images(2, 9, 21)], []),
        (limits_of_dtypes, [images(1, 12), images(2, 9, 21)], []),
        (sums_of_sizes, [images(1, 24), images(2, 16, 9)], [images(2, 20)]),
    ],
)
def test_decisions_by_sizes(decide: Decide, others: list[Tensor], elsewhere: list[Tensor], prefer: Prefer) -> None:
    model, dense, report = converted(decide, prefer, images(2, 16))
    assert [graph.module for graph in graphs_of(model)] == [model], report.notes
    for x in [images(2, 16), *others]:
        assert serves(model, x)
        assert_agree(model, dense, x)
    for x in elsewhere:
        assert not serves(model, x)
        assert_agree(model, dense, x)
    again = copy.deepcopy(model)
    for x in [*elsewhere, *others]:  # the copy is traced for the first of these
        assert_agree(again, dense, x)
        assert serves(again, (elsewhere or others)[0])


def by_content(self: nn.Module, x: Tensor) -> Tensor:
    return x if x.sum() > 1e9 else x + 1


def by_what_depends_on_content(self: nn.Module, x: Tensor) -> Tensor:
    return x if x.nonzero().shape[0] > 1 else x + 1


def by_strides(self: nn.Module, x: Tensor) -> Tensor:
    return x if x.stride()[1] > 1 else x + 1


def by_what_was_reshaped(self: nn.Module, x: Tensor) -> Tensor:
    other = x + 0
    other.unsqueeze_(0)
    return x if other.dim() == 5 else x + 1


@pytest.mark.parametrize("decide", [by_content, by_what_depends_on_content, by_strides, by_what_was_reshaped])
def test_decisions_by_something_else(decide: Decide, prefer: Prefer) -> None:
    model, dense, report = converted(decide, prefer, images(2, 16))
    assert not list(graphs_of(model))
    line = decide.__code__.co_firstlineno
    places = "|".join(str(line + below) for below in (1, 3))
    assert any(re.search(rf"decides by what .* \(at line ({places}) of test_sizes\)", note) for note in report.notes)
    assert_agree(model, dense, images(2, 16))


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * 2


def test_the_report_names_a_function_of_autograd(prefer: Prefer) -> None:
    model, dense, report = converted(lambda self, x: Twice.apply(x), prefer, images(2, 16))
    assert any("its forward calls Twice, a torch.autograd.Function, " in note for note in report.notes), report.notes
    assert_agree(model, dense, images(2, 16))


def test_tensors_that_code_makes_are_others_in_each_call(prefer: Prefer) -> None:
    """It writes to one, and makes another of what has changed."""
    torch.manual_seed(3)
    shifts = [0.5]

    def decide(self: nn.Module, x: Tensor) -> Tensor:
        total = torch.zeros(x.shape[0], 1, 1, 1)
        total += 1
        total[:1].fill_(torch.tensor(self.shifts[0]))
        return x * total

    model = Deciding(decide).eval()
    model.shifts = shifts
    prune_(model, "random", 0.8)
    dense = copy.deepcopy(model)
    prefer(FINE, GRAPH)
    sk.convert(model, images(2, 16))
    assert serves(model, images(3, 12))
    for x in (images(3, 12), images(3, 12)):
        assert_agree(model, dense, x)
    for one in (model, dense):
        one.shifts[0] = 3.0
    assert_agree(model, dense, images(3, 12))
    functions = (torch.zeros, torch.ones, torch.tensor, torch.finfo)
    assert [function.__module__ for function in functions] == ["torch"] * 4
    assert torch.finfo is type(torch.finfo(torch.float32))


def in_another_dtype(self: nn.Module, x: Tensor) -> Tensor:
    torch.set_default_dtype(torch.float64)
    try:
        steps = torch.linspace(0, 1, x.shape[-1])
    finally:
        torch.set_default_dtype(torch.float32)
    return x + steps.cos().sub(0.5).to(x.dtype) if steps.dtype == torch.float64 else x


def test_tensors_that_depend_on_what_the_code_has_set(prefer: Prefer) -> None:
    model, dense, report = converted(in_another_dtype, prefer, images(2, 16))
    assert any("under torch.no_grad, autocast, a checkpoint or the like" in note for note in report.notes), report.notes
    assert_agree(model, dense, images(3, 12))


def test_what_code_keeps_that_is_imported_while_it_is_traced() -> None:
    nodes: list[Any] = []
    tracer = types.SimpleNamespace(is_outside=lambda: False, create_proxy=lambda *node: nodes.append(node))
    with factories_are_recorded(tracer):
        kept = torch.zeros
        kept(2, dtype=torch.int64)
    assert nodes == [("call_function", torch.zeros, (2,), {"dtype": torch.int64})]
    assert torch.equal(kept(3), torch.zeros(3))
    assert len(nodes) == 1


def test_what_is_imported_for_sizes_keeps_nothing_that_is_patched() -> None:
    """In a new process, where the first question imports half of torch."""
    program = """
import sys, types, torch, sparsekernels as sk
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 16)
    def forward(self, x):
        return torch.relu(self.layer(x) if x.dtype == self.layer.weight.dtype else x)
net = Net().eval()
with torch.no_grad(): net.layer.weight[:, 2:] = 0
with sk.testing.prefer("fine-grained", "graph"):
    report = sk.convert(net, torch.randn(4, 16))
assert "the model runs as a graph" in str(report), report
assert "torch._dynamo.utils" in sys.modules
patched = [name for name, module in list(sys.modules.items()) for value in list(vars(module).values())
           if isinstance(value, types.FunctionType) and hasattr(value, "__wrapped__")
           and value.__wrapped__ in (nn.Module.__getattr__, nn.Module.__call__)]
assert not patched, patched
"""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def test_decisions_by_the_size_of_a_parameter(prefer: Prefer) -> None:
    """It may become another in place."""

    def decide(self: nn.Module, x: Tensor) -> Tensor:
        return x + self.scale if self.scale.shape[1] == x.shape[1] else x * 3

    model, dense, _ = converted(decide, prefer, images(2, 16))
    assert serves(model, images(1, 12))
    for one in (model, dense):
        one.scale.data = torch.ones(1, 1, 1, 1)
    assert_agree(model, dense, images(2, 16))
    assert_agree(model, dense, images(1, 12))


def test_a_layer_that_gets_a_hook(prefer: Prefer) -> None:
    """It is not called for the sizes alone."""
    model, dense, _ = converted(of_a_pooled_one, prefer, images(2, 16))
    called: list[int] = []
    model.last.register_forward_hook(lambda module, args, result: called.append(len(result)))
    for x in (images(3, 20), images(3, 20)):
        assert_agree(model, dense, x)
    assert called == [3, 3]


def test_training_counts_each_batch_once(prefer: Prefer) -> None:
    torch.manual_seed(3)
    model = Deciding(of_a_pooled_one).train()
    prune_(model, "random", 0.8)
    dense = copy.deepcopy(model)
    prefer(FINE, GRAPH)
    sk.convert(model, images(2, 16))
    assert [graph.module for graph in graphs_of(model)] == [model]
    for x in (images(2, 16), images(3, 18), images(3, 18), images(3, 8)):
        torch.testing.assert_close(model(x), dense(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.norm.running_mean, dense.norm.running_mean)
    assert int(model.norm.num_batches_tracked) == 4
    assert serves_in_training(model, images(4, 20))


def serves_in_training(model: nn.Module, x: Tensor) -> bool:
    (graph,) = graphs_of(model)
    return [graph.answer((x,), {}) is not NO_ANSWER for _ in range(2)][1]


def of_a_product(self: nn.Module, x: Tensor) -> Tensor:
    rows = x.mean((1, 2)) @ self.scale.view(8, 1)
    return x + rows.mean() if rows.shape[0] > 1 else x


def test_nothing_is_logged_where_sizes_do_not_fit(prefer: Prefer, caplog: pytest.LogCaptureFixture) -> None:
    model, _, _ = converted(of_a_product, prefer, images(2, 16))
    assert serves(model, images(3, 16))
    log = logging.getLogger(FakeTensorMode.__module__)
    log.addHandler(caplog.handler)
    try:
        for _ in range(2):
            with torch.no_grad(), pytest.raises(RuntimeError):
                model(images(2, 20))
    finally:
        log.removeHandler(caplog.handler)
    assert not caplog.records
