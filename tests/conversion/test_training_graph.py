# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""convert in training mode: the graph in which BatchNorm, sum, ReLU and dropout are one step, and pooling is ours."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conversion_checks import FINE, GRAPH, Prefer, graphs_of
from conversion_nets import make
from torch import Tensor, nn
from training_graph_checks import assert_steps_alike, calls, gradients, trained

import sparsekernels as sk
from sparsekernels import _library
from sparsekernels.bench.models import MODELS
from sparsekernels.conversion.facts import Note
from sparsekernels.conversion.graph.batch_norm import dropout_by_torch
from sparsekernels.pruning import prune_
from sparsekernels.testing import compare

pytestmark = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")


def test_results(prefer: Prefer) -> None:
    """Results, gradients and running statistics over several steps, against the modules in float64."""
    model, x = trained()
    dense = copy.deepcopy(model)
    wide = copy.deepcopy(model).double()
    prefer(FINE, GRAPH)
    report = sk.convert(model, x)
    assert report.mode == "train"
    note = "In training mode, BatchNorm and what stands behind it are one step: ReLU, ReLU6 or Hardtanh."
    assert note in report.notes
    assert not any("ropout" in note or "sum" in note for note in report.notes)
    assert not {"dropout", "relu", "relu6", "hardtanh"} & {name.rpartition(".")[2] for name in calls(model)}
    norms = [name for name in calls(model) if name.startswith("sparsekernels_norm_")]
    assert len(norms) == 6
    for step in range(3):
        assert_steps_alike(model, dense, wide, x + step)
    assert [int(norm.num_batches_tracked) for norm in model.norms[:4]] == [3, 3, 3, 3]
    sk.revert(model)
    assert not list(graphs_of(model))


def test_oracle(prefer: Prefer) -> None:
    """A forward pass, element by element."""
    model, x = trained()
    dense, wide = copy.deepcopy(model), copy.deepcopy(model).double()
    prefer(FINE, GRAPH)
    sk.convert(model, x)
    with torch.no_grad():
        comparison = compare("result", model(x), wide(x.double()), dense(x))
    assert comparison.passed, comparison


def test_dropout(prefer: Prefer) -> None:
    """Another draw in each call, the same from the same seed; torch's own on request."""
    model, x = trained(0.4)
    dense = copy.deepcopy(model)
    prefer(FINE, GRAPH)
    sk.convert(model, x)
    with dropout_by_torch():
        torch.manual_seed(4)
        mine = model(x)
        torch.manual_seed(4)
        theirs = dense(x)
    torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)
    torch.manual_seed(4)
    one, other = model(x), model(x)
    torch.manual_seed(4)
    assert torch.equal(one, model(x))
    assert not torch.equal(one, other)
    # over many draws, what torch's dropout gives
    with torch.no_grad():
        mean_of_mine = torch.stack([model(x) for _ in range(400)]).mean(0)
        mean_of_theirs = torch.stack([dense(x) for _ in range(400)]).mean(0)
    assert (mean_of_mine - mean_of_theirs).abs().mean() < 0.15 * mean_of_theirs.abs().mean()


def test_evaluation_and_back(prefer: Prefer) -> None:
    """In evaluation mode the layers run one by one; the graph waits."""
    model, x = trained(0.4)
    dense = copy.deepcopy(model)
    prefer(FINE, GRAPH)
    sk.convert(model, x)
    torch.testing.assert_close(model.eval()(x), dense.eval()(x), rtol=1e-3, atol=1e-4)
    before = model.norms[0].running_mean.clone()
    assert torch.equal(before, dense.norms[0].running_mean)
    model.train()(x)
    assert not torch.equal(before, model.norms[0].running_mean)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_calls_are_the_modules(prefer: Prefer, dtype: torch.dtype) -> None:
    model, x = trained()
    dense = copy.deepcopy(model)
    prefer(FINE, GRAPH)
    sk.convert(model, x)
    for one in (model, dense):
        one.to(dtype)
    torch.testing.assert_close(model(x.to(dtype)), dense(x.to(dtype)), rtol=3e-2, atol=3e-2)
    for one in (model, dense):
        one.float()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model(x), dense(x), rtol=3e-2, atol=3e-2)
    last = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(model(last), dense(last), rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="more than 1 value"):
        model.norms[0](torch.ones(1, 8, 1, 1))
    with pytest.raises(ValueError, match="more than 1 value"):
        model(torch.ones(1, 8, 1, 1))


def test_second_derivatives(prefer: Prefer) -> None:
    """A gradient penalty, as the modules give it."""
    model, x = trained()
    dense = copy.deepcopy(model).double()
    prefer(FINE, GRAPH)
    sk.convert(model, x)
    found = []
    for one, given in ((model, x), (dense, x.double())):
        given = given.clone().requires_grad_()
        (first,) = torch.autograd.grad(one(given).square().sum(), given, create_graph=True)
        penalty = first.square().sum()
        found.append(torch.autograd.grad(penalty, [norm.weight for norm in one.norms if norm.affine]))
    for mine, truth in zip(*found, strict=True):
        torch.testing.assert_close(mine.double(), truth, rtol=1e-2, atol=1e-3 * truth.abs().max().item())


def test_without_gradients(prefer: Prefer) -> None:
    """Statistics are taken all the same, as by torch."""
    model, x = trained()
    dense = copy.deepcopy(model)
    prefer(FINE, GRAPH)
    sk.convert(model, x)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            torch.testing.assert_close(model(x), dense(x), rtol=1e-3, atol=1e-4)
    for mine, theirs in zip(model.buffers(), dense.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["pre-activation", "residual", "residual, shortcut first"])
def test_training_goes_on(prefer: Prefer, name: str) -> None:
    """Twenty steps beside the dense model; dropout is torch's, which draws the same."""
    model, x = make(name)
    dense = copy.deepcopy(model)
    prefer(FINE, GRAPH)
    optimizers = [torch.optim.SGD(module.train().parameters(), 0.02, momentum=0.9) for module in (model, dense)]
    sk.convert(model, x)
    assert list(graphs_of(model))
    losses: list[list[float]] = [[], []]
    masks = [parameter != 0 for parameter in dense.parameters()]
    with dropout_by_torch():
        for step in range(20):
            for index, (module, optimizer) in enumerate(zip((model, dense), optimizers, strict=True)):
                optimizer.zero_grad()
                torch.manual_seed(step)
                loss = (module(x) - 1).square().mean()
                loss.backward()
                losses[index].append(loss.item())
                for parameter, mask in zip(module.parameters(), masks, strict=True):
                    if parameter.dim() > 1:
                        parameter.grad.mul_(mask)
                optimizer.step()
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=5e-3, atol=1e-4)
    assert losses[0][-1] < 0.8 * losses[0][0]


def test_a_network_by_the_clock() -> None:
    """WRN-28-2 converts to a graph that passes its check, and is faster by it."""
    model = MODELS["wrn-28-2"].make().train()
    prune_(model, "random", 0.9)
    report = sk.convert(model, MODELS["wrn-28-2"].images(16))
    assert list(graphs_of(model))
    assert report.speedup is not None
    assert report.speedup > 1


def test_one_backward_pass_of_both(prefer: Prefer) -> None:
    """torch's BatchNorm saves running statistics, which the graph moves: as torch does, without counting a change."""
    model, x = trained()
    prefer(FINE, GRAPH)
    sk.convert(model, x)
    versions = [buffer._version for buffer in model.norms[0].buffers()]
    one = model(x.contiguous(memory_format=torch.channels_last).requires_grad_())
    other = model(x)
    (one.sum() + other.sum()).backward()
    moved = [buffer._version - version for buffer, version in zip(model.norms[0].buffers(), versions, strict=True)]
    assert moved == [0, 0, 2]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad])
def test_new_statistics_of_a_model_for_inference(prefer: Prefer, mode: Callable[[], Any]) -> None:
    """torch's BatchNorm counts batches, but no change of its running statistics."""
    model, x = make("residual")
    dense = copy.deepcopy(model)
    prefer(FINE, GRAPH)
    sk.convert(model, x)
    with torch.inference_mode():
        model(x)
    for one in (model, dense):
        one.train()
        with mode():
            one(3 * x + 1)
        one.eval()
    with torch.inference_mode():
        torch.testing.assert_close(model(x), dense(x), rtol=1e-3, atol=1e-4)


class Pooled(nn.Module):
    """A residual block as ResNet's behind a stem: a sum in place, on either side, with and without limits; pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.pool = nn.Conv2d(8, 8, 3, padding=1), nn.MaxPool2d(3, 2, 1)
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 1) for _ in range(4))
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.norms[0](self.stem(x)).relu())
        y = self.norms[1](self.convs[0](x))
        y += x
        y = y.relu_()
        z = torch.add(self.norms[2](self.convs[1](y)), self.norms[3](self.convs[2](x)))
        return F.max_pool2d(self.norms[4](self.convs[3](z)) + z, 2)


def test_sums_and_pooling(prefer: Prefer) -> None:
    model, x = Pooled().train(), torch.randn(6, 8, 13, 15)
    prune_(model, "random", 0.7)
    dense, wide = copy.deepcopy(model), copy.deepcopy(model).double()
    prefer(FINE, GRAPH)
    sk.convert(model, x)
    found = calls(model)
    assert [name.rpartition(".")[2] for name in found if "sparsekernels_norm" not in name and "conv" not in name] == [
        "stem",
        *[name for name in found if "max_pool2d" in name],
    ], found
    assert len([name for name in found if "max_pool2d" in name]) == 2
    for step in range(2):
        assert_steps_alike(model, dense, wide, x + step)


def test_pooling_alone_is_a_graph(prefer: Prefer) -> None:
    model, x = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.MaxPool2d(2)).train(), torch.randn(4, 8, 10, 10)
    prune_(model, "random", 0.7)
    dense = copy.deepcopy(model)
    prefer(FINE, GRAPH)
    sk.convert(model, x)
    assert len(list(graphs_of(model))) == 1
    for mine, theirs in zip(gradients(model, x), gradients(dense, x), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("behind", "notes"),
    [
        ([nn.ReLU()], ["In training mode, BatchNorm and what stands behind it are one step: ReLU."]),
        (
            [nn.ReLU(), nn.Dropout(0.25)],
            [
                "In training mode, BatchNorm and what stands behind it are one step: ReLU, dropout.",
                "Fused dropout draws other random numbers than torch's from the same seed.",
            ],
        ),
        ([], ["In training mode, BatchNorm has kernels of its own."]),
    ],
)
@pytest.mark.parametrize(("norm", "pools"), [(True, False), (True, True), (False, True)])
def test_notes_name_what_is_fused(
    prefer: Prefer, behind: list[nn.Module], notes: list[str], norm: bool, pools: bool
) -> None:
    parts = [*([nn.BatchNorm2d(8)] if norm else []), *behind, *([nn.MaxPool2d(2)] if pools else [])]
    model = nn.Sequential(nn.Conv2d(8, 8, 3), *parts).train()
    prune_(model, "random", 0.7)
    prefer(FINE, GRAPH)
    report = sk.convert(model, torch.randn(4, 8, 10, 10))
    pooling = ["In training mode, max pooling has a kernel of its own."] if pools else []
    assert list(report.notes) == [str(Note.TRAINING_MODE.of()), *(notes if norm else []), *pooling]


def test_a_sum_is_named(prefer: Prefer) -> None:
    model, x = Pooled().train(), torch.randn(6, 8, 13, 15)
    prune_(model, "random", 0.7)
    prefer(FINE, GRAPH)
    note = "In training mode, BatchNorm and what stands behind it are one step: the residual sum, ReLU"
    assert any(one.startswith(note) for one in sk.convert(model, x).notes)
