# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Code that makes tensors, of sizes, random numbers and arrays: a graph does in each call, of what there is then."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conversion_checks import Prefer, graphs_of
from graph_checks import Code, assert_same, images, twins
from torch import Tensor

from sparsekernels import _library

pytestmark = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")

MEAN = np.ones(8, dtype=np.float32)


def noise_of_sizes(self: Any, h: Tensor) -> Tensor:
    noise = torch.randn(h.shape[0], 8, 1, 1) + torch.rand((h.shape[0], 1, 1, 1))
    return h + noise + torch.randint(0, 5, (h.shape[0], 1, 1, 1)) + torch.normal(0.0, 1.0, (8, 1, 1))


def mixed(self: Any, h: Tensor) -> Tensor:
    torch.rand(3)  # is not used, and is drawn
    share = torch.rand(h.shape[0], 1, 1, 1)
    return share * h + (1 - share) * h[torch.randperm(h.shape[0])] * torch.rand(1).item()


def dropped_paths(self: Any, h: Tensor) -> Tensor:
    kept = h.new_empty((h.shape[0],) + (1,) * (h.ndim - 1)).bernoulli_(0.7)
    return h * kept.div_(0.7) + torch.rand(8, 1, 1)


def functions_of_sizes(self: Any, h: Tensor) -> Tensor:
    """torch looks whether these are numbers before it looks for proxies: no decision."""
    flat = torch.reshape(h, (h.shape[0], -1)).topk(h.shape[1], 1)[0].mean()
    kept = torch.narrow(torch.roll(h, h.shape[0] // 2, 0), 0, 0, h.shape[0]) + torch.tril(h, h.shape[0])
    one = torch.broadcast_to(torch.zeros(()), (h.shape[0], 8, 1, 1)) + torch.select(h, 0, h.shape[0] - 1)
    return kept + one + flat + F.avg_pool2d(h, (h.shape[2], h.shape[3]))


@pytest.mark.parametrize("training", [False, True])
def test_functions_of_sizes(training: bool, prefer: Prefer) -> None:
    model, dense, report = twins(functions_of_sizes, training, prefer)
    assert [graph.module for graph in graphs_of(model)] == [model], report.notes
    for x in (images(3), images(5), images(2, 12)):
        assert_same(model, dense, x)
    assert not any(hasattr(function, "__wrapped__") for function in (torch.reshape, F.avg_pool2d))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("code", [noise_of_sizes, mixed, dropped_paths])
def test_random_tensors(code: Code, training: bool, prefer: Prefer) -> None:
    """Drawn in each call, in the same order."""
    model, dense, report = twins(code, training, prefer)
    assert [graph.module for graph in graphs_of(model)] == [model], report.notes
    for x in (images(3), images(5), images(2, 12)):
        assert_same(model, dense, x)
    with torch.set_grad_enabled(training):
        assert not torch.equal(model(images(5)), model(images(5)))


def test_a_generator_of_its_own(prefer: Prefer) -> None:
    def code(self: Any, h: Tensor) -> Tensor:
        return h + torch.randn(h.shape[0], 8, 1, 1, generator=self.generator)

    def given(model: Any) -> None:
        model.generator = torch.Generator().manual_seed(3)

    model, dense, report = twins(code, False, prefer, given)
    assert [graph.module for graph in graphs_of(model)] == [model], report.notes
    for x in (images(3), images(5)):
        assert_same(model, dense, x)
        given(model)
        given(dense)


def of_an_array(self: Any, h: Tensor) -> Tensor:
    h = h * torch.from_numpy(self.array)[:8, None, None] + torch.tensor(self.array)[:8, None, None]
    return h + torch.as_tensor(self.array, dtype=h.dtype)[:8, None, None] + h.new_tensor(self.kept["array"]).sum()


def of_a_list(self: Any, h: Tensor) -> Tensor:
    return h * torch.tensor([value + 1 for value in self.values])[:, None, None] + torch.as_tensor(self.values).sum()


def has_arrays(model: Any, size: int = 8) -> None:
    model.array = np.linspace(0, 1, size, dtype=np.float32)
    model.kept, model.values = {"array": np.ones(2, dtype=np.float32)}, [1.0] * 8


def written(model: Any) -> None:
    model.array *= 2
    model.values[1] = -3.0


def exchanged(model: Any) -> None:
    model.array, model.values = model.array[::-1].copy(), [2.0] * 8


def written_in_the_dict(model: Any) -> None:
    model.kept["array"][0] = 7
    model.values.reverse()
    model.values[0] = 7.0


def of_an_array_and_its_largest(self: Any, h: Tensor) -> Tensor:
    return h * torch.from_numpy(self.array)[:8, None, None] / float(self.array.max() + 1)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("code", [of_an_array, of_an_array_and_its_largest, of_a_list])
def test_what_tensors_are_made_of(code: Code, training: bool, prefer: Prefer) -> None:
    model, dense, report = twins(code, training, prefer, has_arrays)
    assert [graph.module for graph in graphs_of(model)] == [model], report.notes
    for x in (images(3), images(5)):
        assert_same(model, dense, x)
    for change in (written, exchanged, written_in_the_dict):
        for one in (model, dense):
            change(one)
        for x in (images(3), images(5)):
            assert_same(model, dense, x)


@pytest.mark.parametrize("code", [of_an_array, of_an_array_and_its_largest])
def test_large_arrays(code: Code, prefer: Prefer) -> None:
    """Their content is not compared in each call."""
    model, dense, report = twins(code, False, prefer, lambda one: has_arrays(one, 1 << 15))
    assert not list(graphs_of(model))
    assert any("makes tensors of its own" in note for note in report.notes)
    for one in (model, dense):
        written(one)
    with torch.no_grad():
        torch.testing.assert_close(model(images(3)), dense(images(3)))


def part_of_an_array(self: Any, h: Tensor) -> Tensor:
    return h * torch.from_numpy(self.array[:1])


def made_array(self: Any, h: Tensor) -> Tensor:
    return h * torch.from_numpy(self.array * 2)[:, None, None]


def global_array(self: Any, h: Tensor) -> Tensor:
    return h * torch.as_tensor(MEAN)[:, None, None]


def by_a_class(self: Any, h: Tensor) -> Tensor:
    return h * torch.Tensor(self.values)[:, None, None]


def counts(self: Any, h: Tensor) -> Tensor:
    self.count = getattr(self, "count", 0) + 1
    return h


def keeps(self: Any, h: Tensor) -> Tensor:
    self.values.append(h.shape[0])
    return h


def decided_by_chance(self: Any, h: Tensor) -> Tensor:
    return h * 2 if torch.rand(1) < 0.5 else h


def drawn_by_python(self: Any, h: Tensor) -> Tensor:
    return h * random.random()


def drawn_by_a_new_generator(self: Any, h: Tensor) -> Tensor:
    return h + torch.randn(8, 1, 1, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (part_of_an_array, "makes tensors of its own"),
        (made_array, "makes tensors of its own"),
        (global_array, "makes tensors of its own"),
        (by_a_class, "makes tensors of its own"),
        (counts, "changes attributes"),
        (keeps, "changes attributes"),
        (decided_by_chance, "draws random numbers"),
        (drawn_by_python, "draws random numbers"),
        (drawn_by_a_new_generator, "draws random numbers"),
    ],
)
def test_what_cannot_be_followed(code: Code, reason: str, prefer: Prefer) -> None:
    """The reason names the line."""
    model, dense, report = twins(code, False, prefer, has_arrays)
    assert not list(graphs_of(model))
    line = code.__code__.co_firstlineno + 1
    expected = f" (at line {line} of test_made_tensors)"
    assert any(reason in note and expected in note for note in report.notes), report.notes
    written(model)
    written(dense)
    results = []
    for one in (model, dense):
        torch.manual_seed(1)
        random.seed(1)
        with torch.no_grad():
            results.append(one(images(5)))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
