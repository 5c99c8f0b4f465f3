# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The masks that sparse training starts from, what it leaves dense, and its seeds."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import prune
from training_nets import batches, network, perceptron, sgd, train

from sparsekernels.pruning import finalize
from sparsekernels.training import Sparsifier, distribute


def test_given_masks_stay_in_number() -> None:
    model = perceptron()
    mask = torch.rand(24, 20) < 0.15
    optimizer = sgd(model)
    sparsifier = Sparsifier(model, optimizer, masks={"0.weight": mask}, algorithm="SET", update_every=1, kernels=False)
    assert list(sparsifier.masks) == ["0.weight"]
    assert torch.equal(sparsifier.masks["0.weight"], mask)
    train(model, optimizer, 3, batches(model))
    assert sparsifier.nonzeros == {"0.weight": int(mask.sum())}
    assert model[2].weight.all()
    more = torch.rand(24, 20) < 0.3
    sparsifier.set_masks({"0.weight": more})
    assert torch.equal(sparsifier.masks["0.weight"], more)
    train(model, optimizer, 1, batches(model))
    assert sparsifier.nonzeros == {"0.weight": int(more.sum())}


def test_models_that_another_tool_pruned_train_on() -> None:
    model = nn.ModuleDict({"net": perceptron(), "memory": nn.LSTM(5, 6)})
    prune.random_unstructured(model["net"][0], "weight", 0.7)
    prune.l1_unstructured(model["memory"], "weight_hh_l0", 0.5)
    optimizer = sgd(model)
    masks = finalize(model)
    optimizer.param_groups[0]["params"] = list(model.parameters())
    sparsifier = Sparsifier(model, optimizer, masks=masks, algorithm="SET", update_every=1, kernels=False)
    assert sparsifier.nonzeros == {"net.0.weight": 144, "memory.weight_hh_l0": 72}
    for _ in range(3):
        optimizer.zero_grad()
        model["memory"](model["net"](torch.randn(4, 20))[None])[0].square().sum().backward()
        optimizer.step()
    assert sparsifier.nonzeros == {"net.0.weight": 144, "memory.weight_hh_l0": 72}
    assert not torch.equal(sparsifier.masks["memory.weight_hh_l0"], masks["memory.weight_hh_l0"])


def test_densities_by_layer_and_layers_that_stay_dense() -> None:
    model = perceptron()
    sparsifier = Sparsifier(model, sgd(model), {"0.weight": 0.5}, kernels=False)
    assert sparsifier.nonzeros == {"0.weight": 240}
    model = perceptron()
    sparsifier = Sparsifier(model, sgd(model), 0.5, ignore=["2"], kernels=False)
    assert sparsifier.nonzeros == {"0.weight": 240}
    model = perceptron()
    model[0].weight.requires_grad_(False)
    sparsifier = Sparsifier(model, sgd(model), 0.5, kernels=False)
    assert list(sparsifier.masks) == ["2.weight"]


def test_distributions_at_the_start() -> None:
    for distribution in ("uniform", "ERK", "SET"):
        model = network()
        sparsifier = Sparsifier(model, sgd(model), 0.2, distribution=distribution, kernels=False)
        shapes = [mask.shape for mask in sparsifier.masks.values()]
        sizes = [mask.numel() for mask in sparsifier.masks.values()]
        expected = distribute(round(0.2 * sum(sizes)), shapes, sizes, distribution)
        assert list(sparsifier.nonzeros.values()) == expected


def test_the_same_seed_gives_the_same_run_whatever_torchs_generator_does() -> None:
    runs = []
    for torch_seed in (1, 2):
        model = perceptron()
        optimizer = sgd(model)
        torch.manual_seed(torch_seed)
        sparsifier = Sparsifier(model, optimizer, 0.2, algorithm="SET", update_every=1, seed=5, kernels=False)
        train(model, optimizer, 5, batches(model))
        runs.append((sparsifier.masks, model.state_dict()))
    assert all(torch.equal(one, runs[1][0][name]) for name, one in runs[0][0].items())
    assert all(torch.equal(one, runs[1][1][name]) for name, one in runs[0][1].items())
    other = perceptron()
    assert any(
        not torch.equal(one, runs[0][0][name])
        for name, one in Sparsifier(other, sgd(other), 0.2, seed=6, kernels=False).masks.items()
    )


def test_remove_leaves_an_ordinary_optimizer() -> None:
    model = perceptron()
    optimizer = sgd(model)
    sparsifier = Sparsifier(model, optimizer, 0.2, update_every=1, kernels=False)
    train(model, optimizer, 2, batches(model))
    sparsifier.remove()
    masks = sparsifier.masks
    train(model, optimizer, 2, batches(model))
    assert sparsifier.steps == 2
    assert model[0].weight.detach()[~masks["0.weight"]].any()  # momentum moves them again
