# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Code that takes apart what an operation returned, and code that writes to parts of tensors: both run as a graph."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conversion_checks import FINE, GRAPH, Prefer, graphs_of
from graph_checks import Code, Net, assert_same, images, twins
from torch import Tensor, nn

import sparsekernels as sk
from sparsekernels import _library
from sparsekernels.pruning import prune_

pytestmark = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")


def joined(self: nn.Module, h: Tensor) -> Tensor:
    return torch.cat(h.chunk(2, 1)[::-1], 1) + torch.cat(tensors=torch.split(h, 4, 1), dim=1)


def stacked(self: nn.Module, h: Tensor) -> Tensor:
    return torch.stack(h.unbind(1), 1) + torch.hstack(torch.tensor_split(h, 3, 1))


def added_tuples(self: nn.Module, h: Tensor) -> Tensor:
    parts = [h]
    parts += h.chunk(2, 1)
    whole = (h,)
    return torch.cat(whole + h.chunk(2, 1), 1)[:, 4:12] + torch.cat(h.chunk(2, 1) + whole, 1)[:, :8] + len(parts)


def loops(self: nn.Module, h: Tensor) -> Tensor:
    total = torch.zeros_like(h[:, :2])
    for place, (one, other) in enumerate(zip(h.chunk(4, 1), reversed(h.split(2, 1)), strict=True)):
        total = total + one * other * place
    return torch.cat([total, *[part * 2 for part in h.split([2, 2, 2, 2], 1)][1:]], 1)


def starred(self: nn.Module, h: Tensor) -> Tensor:
    first, *rest = h.chunk(4, 1)
    parts = h.chunk(3, 1)
    return torch.cat([*rest, first], 1) + sum(parts[place].mean() for place in range(len(parts)))


def several_results(self: nn.Module, h: Tensor) -> Tensor:
    values, places = torch.max(h, dim=1)
    best, *others = h.topk(3, 1)
    return h * values[:, None] + places[:, None] + sum(map(torch.mean, h.sort(1)[:1])) + best.mean() + len(others)


def classes(self: nn.Module, h: Tensor) -> Tensor:
    parts = h.chunk(2, 1)
    assert isinstance(parts, tuple | list)
    assert isinstance(parts[0], Tensor)
    return h if isinstance(parts, Tensor) else torch.cat(parts[::-1], 1)


def nested(self: nn.Module, h: Tensor) -> Tensor:
    return torch.cat([torch.cat(part.chunk(2, 1)[::-1], 1) for part in h.chunk(2, 1)], 1)


def counted(self: nn.Module, h: Tensor) -> Tensor:
    parts = h.split(8, 2)[1:]
    return h * (1 + len(parts)) if parts else h + 1


def filled(self: nn.Module, h: Tensor) -> Tensor:
    out = h.new_zeros(h.shape)
    out[:, :4] = h[:, 4:]
    other = torch.zeros(h.shape[0], 8, *h.shape[2:])
    for place, part in enumerate(h.chunk(4, 1)):
        other[:, 2 * place : 2 * place + 2] = part * place
    return out + other


def filled_by_masks(self: nn.Module, h: Tensor) -> Tensor:
    out, mask = torch.full_like(h, -1), h > 0.5
    out[mask] = h[mask]
    out[:, h.mean((0, 2, 3)).topk(2).indices] += 1
    h = h.clone()
    h[mask] = 0
    return out - h


def filled_constant(self: nn.Module, h: Tensor) -> Tensor:
    out = torch.ones(1, 8, 1, 1)
    out[0, 1] = h.mean()
    out[:, 2] = 3
    out *= 2
    return h * out.index_copy_(1, torch.tensor([4]), out[:, :1] * 3)


def residual_written(self: nn.Module, h: Tensor) -> Tensor:
    """The sum and the ReLU would be computed by one call, behind what is written between."""
    residual = h.clone()
    total = self.last(h) + residual
    residual[:, :4] = 7
    return torch.relu(total) + residual


def input_written(self: nn.Module, h: Tensor) -> Tensor:
    h = h * 1
    result = self.last(h).detach()
    h[:] = 0
    result[:, 0] -= 1
    return torch.relu(result) + h


CODES: list[Code] = [joined, stacked, added_tuples, loops, starred, several_results, classes, nested, filled]
CODES += [filled_by_masks, filled_constant, residual_written]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("code", CODES)
def test_pieces(code: Code, training: bool, prefer: Prefer) -> None:
    model, dense, report = twins(code, training, prefer)
    assert [graph.module for graph in graphs_of(model)] == [model], report.notes
    for x in (images(3), images(5), images(2, 12)):
        assert_same(model, dense, x)


def test_an_input_that_is_written_afterwards(prefer: Prefer) -> None:
    model, dense, _ = twins(input_written, False, prefer)
    for x in (images(3), images(5)):
        assert_same(model, dense, x)


@pytest.mark.parametrize("training", [False, True])
def test_the_number_of_pieces(training: bool, prefer: Prefer) -> None:
    """It decides: a graph serves the calls in which it is the same."""
    model, dense, _ = twins(counted, training, prefer)
    assert_same(model, dense, images(5))
    assert_same(model, dense, images(5, 16), served=False)


def attends(self: Any, h: Tensor) -> Tensor:
    tokens = h.flatten(2).transpose(1, 2)
    result, weights = self.attention(tokens, tokens, tokens, need_weights=False)
    return h * 9 if weights is not None else result.transpose(1, 2).reshape(h.shape)


@pytest.mark.parametrize("training", [False, True])
def test_attention_without_weights(training: bool, prefer: Prefer) -> None:
    """Code compares what stands for them by identity."""

    def give(model: Any) -> None:
        torch.manual_seed(2)
        model.attention = nn.MultiheadAttention(8, 2, batch_first=True).train(training)

    model, dense, report = twins(attends, training, prefer, give)
    assert [graph.module for graph in graphs_of(model)] == [model], report.notes
    for x in (images(3), images(5)):
        assert_same(model, dense, x)


def test_a_graph_is_checked_where_the_modules_run_first(prefer: Prefer) -> None:
    """Which they do to show how results lie in memory, where something was transposed."""

    def code(self: Any, h: Tensor) -> Tensor:
        other = h.transpose(2, 3).sigmoid()
        return other * 9 if callable(h) else other  # as what stands for tensors while it is traced is

    model, dense, report = twins(code, False, prefer)
    assert any("its results differed from the original model's" in note for note in report.notes), report.notes
    for _ in range(2):
        with torch.no_grad():
            torch.testing.assert_close(model(images(3)), dense(images(3)), rtol=1e-4, atol=1e-4)


class Writing(Net):
    def forward(self, x: Tensor) -> Tensor:
        x[:, 0] = 0
        for part in x.chunk(2, 1):
            part[:, 1] = 2
        return super().forward(x)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_what_is_written_to_an_argument(memory_format: torch.memory_format, prefer: Prefer) -> None:
    torch.manual_seed(1)
    model = Writing(lambda self, h: h).eval()
    prune_(model, "random", 0.8)
    dense = copy.deepcopy(model)
    prefer(FINE, GRAPH)
    sk.convert(model, images(3))
    assert [graph.module for graph in graphs_of(model)] == [model]
    for _ in range(2):
        pair = [images(3).contiguous(memory_format=memory_format) for _ in range(2)]
        with torch.no_grad():
            torch.testing.assert_close(model(pair[0]), dense(pair[1]))
        assert torch.equal(*pair)
        assert pair[0][:, 5].eq(2).all()


def by_content(self: nn.Module, h: Tensor) -> Tensor:
    places = (h > 1).nonzero(as_tuple=True)
    return h * len(torch.unique(places[0]))


def test_a_number_that_follows_from_content(prefer: Prefer) -> None:
    model, dense, report = twins(by_content, False, prefer)
    assert not list(graphs_of(model))
    line = by_content.__code__.co_firstlineno + 2
    assert any("decides by what tensors hold" in note and f"line {line} of" in note for note in report.notes)
    with torch.no_grad():
        torch.testing.assert_close(model(images(5)), dense(images(5)), rtol=1e-4, atol=1e-4)


def test_a_size_cannot_be_written(prefer: Prefer) -> None:
    def code(self: nn.Module, h: Tensor) -> Tensor:
        shape = h.shape
        try:
            shape[0] = 1  # type: ignore[index]
        except TypeError:
            return h + 1
        return F.pad(h, (1, 1))

    model, dense, _ = twins(code, False, prefer)
    assert_same(model, dense, images(5))
