# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""A graph computes with what its parameters hold, however that was written; or, frozen, says that they have changed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conversion_checks import DENSE, DROPPED, FINE, GRAPH, Prefer, assert_agree, graphs_of
from torch import Tensor, nn

import sparsekernels as sk
from sparsekernels.pruning import prune_


def net() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(72, 10)
    ).eval()
    with torch.no_grad():
        model[0].weight[:2] = 0
        model[1].running_mean.normal_()
    prune_(model, "random", 0.8)
    return model


def converted(prefer: Prefer, decision: str, **options: Any) -> tuple[nn.Sequential, nn.Sequential, Tensor]:
    model, x = net(), torch.randn(3, 8, 7, 7)
    dense = copy.deepcopy(model)
    prefer(decision, GRAPH)
    sk.convert(model, x, **options)
    assert len(list(graphs_of(model))) == 1
    return model, dense, x


def flat(model: nn.Module) -> Callable[[], object]:
    """Parameters are views of one buffer, which is written."""
    buffer, at = torch.cat([one.detach().flatten() for one in model.parameters()]), 0
    for one in model.parameters():
        one.data = buffer[at : at + one.numel()].view_as(one)
        at += one.numel()
    return lambda: buffer.mul_(1.5)


def one_by_numpy(model: nn.Module) -> None:
    array = model[3].weight.detach().numpy().reshape(-1)
    array[array.nonzero()[0][-1]] += 0.5


WRITES: dict[str, Callable[[Any], object]] = {
    "numpy": lambda model: model[0].weight.detach().numpy().__imul__(1.5),
    "one element by numpy": one_by_numpy,
    "dlpack": lambda model: torch.from_dlpack(model[5].weight.detach()).mul_(1.5),
    "data": lambda model: [one.data.copy_(1.5 * one.data) for one in model.parameters()],
    "a bias": lambda model: model[3].bias.data.add_(1),
    "statistics": lambda model: model[1].running_var.numpy().__imul__(2),
    "data of another address": lambda model: setattr(model[0].weight, "data", 2 * model[0].weight.data),
    "the storage": lambda model: model[0].weight.untyped_storage().copy_((2 * model[0].weight).untyped_storage()),
}


@pytest.mark.parametrize("decision", [FINE, DROPPED, DENSE])
@pytest.mark.parametrize("write", WRITES)
def test_every_write_is_seen(prefer: Prefer, write: str, decision: str) -> None:
    model, dense, x = converted(prefer, decision)
    for _ in range(2):
        for one in (model, dense):
            WRITES[write](one)
        for _ in range(3):  # the layers, then the graph made anew, then that again
            assert_agree(model, dense, x)
    (graph,) = graphs_of(model)
    assert not graph.prepare().source.changed()


@pytest.mark.parametrize("decision", [FINE, DENSE])
def test_a_flat_buffer(prefer: Prefer, decision: str) -> None:
    model, x = net(), torch.randn(3, 8, 7, 7)
    dense = copy.deepcopy(model)
    writes = [flat(one) for one in (model, dense)]
    prefer(decision, GRAPH)
    sk.convert(model, x)
    for _ in range(3):
        for write in writes:
            write()
        assert_agree(model, dense, x)


def test_data_that_comes_back_to_its_address(prefer: Prefer) -> None:
    model, dense, x = converted(prefer, FINE)
    for factor in (2, 3):
        for one in (model, dense):
            data = one[0].weight.data
            one[0].weight.data = torch.zeros_like(data)
            data.mul_(factor)
            one[0].weight.data = data
        assert_agree(model, dense, x)


def test_memory_that_another_process_writes(prefer: Prefer) -> None:
    model, x = net(), torch.randn(3, 8, 7, 7)
    model.share_memory()
    prefer(FINE, GRAPH)
    sk.convert(model, x)
    context = torch.multiprocessing.get_context("fork")
    child = context.Process(target=lambda: model[5].weight.detach().mul_(2))
    child.start()
    child.join()
    dense = sk.revert(copy.deepcopy(model))
    assert_agree(model, dense, x)


def test_a_model_that_changes_before_each_call_is_not_folded_each_time(
    prefer: Prefer, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, dense, x = converted(prefer, FINE)
    (graph,) = graphs_of(model)
    folded: list[int] = []
    monkeypatch.setattr(type(graph.prepare()), "freeze", lambda plan: folded.append(1))
    for _ in range(4):
        for one in (model, dense):
            for parameter in one.parameters():
                parameter.data.mul_(0.99)
        assert_agree(model, dense, x)
    assert not folded
    model(x)
    with torch.no_grad():
        model(x)
    assert folded


CHANGES: dict[str, Callable[[Any], object]] = {
    "in place": lambda model: model[0].weight.detach().mul_(2),
    "another parameter": lambda model: setattr(model[5], "weight", nn.Parameter(model[5].weight * 2)),
    "another shape": lambda model: setattr(model[0].weight, "data", model[0].weight.data.transpose(0, 1)),
    "statistics": lambda model: model[1].running_mean.add_(1),
    "load_state_dict": lambda model: model.load_state_dict(net().state_dict()),
    "a pattern": lambda model: model[3].set_pattern(torch.ones(8, 8, 3, 3, dtype=torch.bool)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_frozen_models_say_that_they_have_changed(prefer: Prefer, change: str) -> None:
    model, _, x = converted(prefer, FINE, frozen=True)
    with torch.no_grad():
        CHANGES[change](model)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="frozen=True"):
                model(x)
    sk.revert(model)
    dense = copy.deepcopy(model)
    sk.convert(model, x, frozen=True)
    assert_agree(model, dense, x)


def test_a_frozen_model_may_train(prefer: Prefer) -> None:
    """The layers do, with what there is; the graph then says that it is too old."""
    model, dense, x = converted(prefer, FINE, frozen=True)
    for one in (model, dense):
        one.train()
        one(x).square().sum().backward()
        with torch.no_grad():
            one[0].bias.sub_(one[0].bias.grad)
        one.eval()
    torch.testing.assert_close(model(x), dense(x), rtol=1e-4, atol=1e-4)
    with pytest.raises(RuntimeError, match=r"'0\.bias'"), torch.no_grad():
        model(x)
