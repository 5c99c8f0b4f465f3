# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Masked layers run on sparse kernels while they are trained, and compute what dense ones with a mask would."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from training_nets import assert_masked, batches, network, sgd, train

from sparsekernels import nn as sparse_nn
from sparsekernels.conversion.graph.attach import graph_of
from sparsekernels.conversion.graph.training import TrainingGraph
from sparsekernels.testing import prefer
from sparsekernels.training import Masking, Sparsifier

SPARSE = (sparse_nn.SparseConv2d, sparse_nn.SparseLinear)


def sparse_run(algorithm: str, **options: Any) -> tuple[nn.Sequential, torch.optim.SGD, Sparsifier]:
    model = network()
    optimizer = sgd(model)
    sparsifier = Sparsifier(
        model, optimizer, 0.2, algorithm=algorithm, update_every=3, last_update=12, progress=False, **options
    )
    return model, optimizer, sparsifier


@pytest.mark.parametrize("algorithm", ["sparse momentum", "SET", "RigL", "SRigL", "static"])
@pytest.mark.parametrize("block", [None, (4, 4)])
def test_layers_become_sparse_after_the_first_batch(algorithm: str, block: tuple[int, int] | None) -> None:
    model, optimizer, sparsifier = sparse_run(algorithm, block=block)
    data = batches(model)
    assert sparsifier.line.startswith("sparse training: layers are dense with a mask until a step")
    with prefer("fine-grained", "block", "graph", "layers"):
        train(model, optimizer, 1, data)
    layers = [one for one in model if isinstance(one, SPARSE)]
    assert len(layers) == 4
    assert "4 layers on sparse kernels, 0 dense with a mask" in sparsifier.line
    for _ in range(12):
        train(model, optimizer, 1, data)
        assert_masked(model, sparsifier)
        for place, name in ((0, "0.weight"), (3, "3.weight"), (7, "7.weight"), (9, "9.weight")):
            layer: Any = model[place]
            assert torch.equal(layer.mask, sparsifier.masks[name])  # new weights are 0, and used
            assert layer.outside() == 0


@pytest.mark.parametrize("algorithm", ["sparse momentum", "RigL", "static"])
@pytest.mark.parametrize("every", ["auto", 3])
def test_the_same_network_as_without_kernels(algorithm: str, every: Any) -> None:
    """But for rounding, which in the end makes other choices: so for a few steps."""
    runs = []
    for kernels in (False, True):
        torch.manual_seed(0)
        options = {} if algorithm == "static" else {"dense_grad_every": every}
        model, optimizer, sparsifier = sparse_run(algorithm, kernels=kernels, **options)
        model.double()
        data = ((inputs.double(), labels) for inputs, labels in batches(model))
        with prefer("fine-grained", "graph", "layers"):
            losses = [train(model, optimizer, 1, data) for _ in range(8)]
        runs.append((losses, sparsifier.masks, model.state_dict()))
    assert runs[0][0] == pytest.approx(runs[1][0], rel=1e-9)
    for name, mask in runs[0][1].items():
        assert torch.equal(mask, runs[1][1][name])
    for name, value in runs[0][2].items():
        torch.testing.assert_close(value, runs[1][2][name], rtol=1e-7, atol=1e-9)


def test_dense_gradients_only_where_they_are_asked_for() -> None:
    model, optimizer, _ = sparse_run("RigL", example_input=torch.randn(8, 3, 8, 8))
    with prefer("fine-grained", "graph", "layers"):
        train(model, optimizer, 1, batches(model))
    data = batches(model)
    for step in range(2, 12):
        layers: list[Any] = [one for one in model if isinstance(one, SPARSE)]
        assert [one.dense_grad for one in layers] == [step % 3 == 0] * len(layers)
        train(model, optimizer, 1, data)


def test_updates_leave_the_graph_as_it_is() -> None:
    """To trace it anew would take time in each of them, and rounds in another way meanwhile."""
    model, optimizer, sparsifier = sparse_run("RigL")
    data = batches(model)
    with prefer("fine-grained", "graph", "layers"):
        train(model, optimizer, 1, data)
    graph = graph_of(model)
    assert isinstance(graph, TrainingGraph)
    runs: list[int] = []
    plan = graph.prepare()
    run = plan.made.run
    plan.made = dataclasses.replace(plan.made, run=lambda *args: runs.append(1) or run(*args))
    sparsifier._kernels[0]._limits = {"3.weight": 0.1}
    for _ in range(12):
        train(model, optimizer, 1, data)
    assert sparsifier.updates == 4
    assert len(runs) == 12


def test_layers_that_become_dense_are_torchs() -> None:
    """By a rule, not a clock; and they come back."""
    model, optimizer, sparsifier = sparse_run("static")
    data = batches(model)
    with prefer("fine-grained", "graph", "layers"):
        train(model, optimizer, 1, data)
    layer: Any = model[3]
    kernels = sparsifier._kernels[0]
    kernels._limits = {"3.weight": 0.4}
    for share, dense in ((0.9, True), (0.2, False), (0.41, True)):
        mask = torch.zeros_like(layer.mask).flatten()
        mask[: round(share * mask.numel())] = True
        sparsifier.set_masks({"3.weight": mask.view_as(layer.mask)})
        sparsifier.update()
        assert layer.dense_product is dense
        assert torch.equal(layer.mask, sparsifier.masks["3.weight"])
        assert ("(3)" in sparsifier.line) is dense
        optimizer.zero_grad()
        inputs, labels = next(data)
        F.cross_entropy(model(inputs), labels).backward()
        assert not layer.weight.grad[~layer.mask].any()


@pytest.mark.parametrize("dense_grad", [False, True])
@pytest.mark.parametrize("outside", [False, True])
def test_dense_products_have_the_layers_gradients(dense_grad: bool, outside: bool) -> None:
    for dense, shape in (
        (nn.Linear(12, 7), (5, 12)),
        (nn.Conv2d(4, 6, 3), (2, 4, 6, 6)),
        (nn.Conv1d(4, 6, 3), (2, 4, 9)),
    ):
        mask = torch.rand(dense.weight.shape) < 0.5
        kind: Any = {
            nn.Linear: sparse_nn.SparseLinear,
            nn.Conv2d: sparse_nn.SparseConv2d,
            nn.Conv1d: sparse_nn.SparseConv1d,
        }
        layer = kind[type(dense)].from_dense(dense.double(), mask, dense_grad=dense_grad)
        other = copy.deepcopy(layer)
        other.dense_product = True
        if outside and dense_grad:  # which nobody reads
            for one in (layer, other):
                with torch.no_grad():
                    one.weight[~mask] = 1.0
        results = []
        for one in (layer, other):
            x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
            y = one(x)
            (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
            (dx.square().sum() + y.sum()).backward()
            results.append((y.detach(), dx.detach(), x.grad, one.weight.grad, one.bias.grad))
        for mine, theirs in zip(*results, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-10)


def test_gradual_pruning_is_measured_again_as_it_becomes_sparser() -> None:
    model = network()
    optimizer = sgd(model)
    sparsifier = Sparsifier(
        model, optimizer, 0.1, algorithm="gradual magnitude", update_every=1, last_update=8, progress=False
    )
    data = batches(model)
    with prefer("fine-grained", "graph", "layers"):
        train(model, optimizer, 1, data)
        assert not any(isinstance(one, SPARSE) for one in model[3:4])
        train(model, optimizer, 8, data)
    assert all(isinstance(model[place], SPARSE) for place in (3, 7))
    assert_masked(model, sparsifier)


def test_remove_gives_the_model_its_own_layers_back() -> None:
    model, optimizer, sparsifier = sparse_run("RigL")
    with prefer("fine-grained", "graph", "layers"):
        train(model, optimizer, 2, batches(model))
    sparsifier.remove()
    assert [type(one) for one in model if isinstance(one, nn.Conv2d | nn.Linear)] == [nn.Conv2d] * 2 + [nn.Linear] * 2
    assert_masked(model, sparsifier)
    assert not model._forward_pre_hooks


def test_models_that_cannot_be_converted_train_on() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.calls = nn.Linear(20, 5), 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            if self.calls > 1 and self.calls < 40:
                raise RuntimeError("once is enough")
            return self.linear(x)  # type: ignore[no-any-return]

    model = Odd()
    optimizer = sgd(model)
    sparsifier = Sparsifier(model, optimizer, 0.2, algorithm="SET", update_every=1, progress=False)
    F.cross_entropy(model(torch.randn(4, 20)), torch.tensor([0, 1, 2, 3])).backward()
    optimizer.step()
    assert "all layers are dense with a mask" in sparsifier.line
    assert "once is enough" in sparsifier.line
    assert sum(sparsifier.nonzeros.values()) == 20


def test_autocast_is_measured_as_it_is_trained() -> None:
    model = network()
    optimizer = sgd(model)
    sparsifier = Sparsifier(model, optimizer, 0.2, algorithm="SET", update_every=2, progress=False)
    data = batches(model)
    with prefer("fine-grained", "graph", "layers"):
        for _ in range(4):
            inputs, labels = next(data)
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = F.cross_entropy(model(inputs), labels)
            loss.backward()
            optimizer.step()
    assert sparsifier._kernels[0].state_dict()["autocast"] == {"cpu": "torch.bfloat16"}
    assert any(isinstance(one, SPARSE) for one in model)
    assert_masked(model, sparsifier)


def test_masking_runs_on_kernels_as_well() -> None:
    model = network()
    mask = Masking(sgd(model), prune_every_k_steps=2)
    mask.add_module(model, 0.2)
    with prefer("fine-grained", "graph", "layers"):
        train(model, mask.optimizer, 5, batches(model))  # type: ignore[arg-type]
    assert any(isinstance(one, SPARSE) for one in model)
    mask.remove_weight("3")
    train(model, mask.optimizer, 2, batches(model))  # type: ignore[arg-type]
    assert model[3].weight.all()


def test_evaluation_in_between() -> None:
    model, optimizer, _ = sparse_run("sparse momentum")
    data = batches(model)
    with prefer("fine-grained", "graph", "layers"):
        for _ in range(5):
            train(model, optimizer, 2, data)
            model.eval()
            with torch.inference_mode():
                inputs, _ = next(data)
                dense = copy.deepcopy(network())
                dense.load_state_dict(model.state_dict())
                torch.testing.assert_close(model(inputs), dense.eval()(inputs), rtol=1e-4, atol=1e-4)
            model.train()
