# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Bad settings, models, optimizers, masks and gradients of sparse training raise, and change nothing."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune
from training_nets import batches, perceptron, sgd, train

from sparsekernels.training import CosineDecay, Sparsifier


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda mask, count: mask.float(), "return a bool mask"),
        (lambda mask, count: mask.flatten(), "return a bool mask"),
        (lambda mask, count: None, "got NoneType"),
        (lambda mask, count: mask, "288|96|120|expected growth to return a mask with all of the kept weights"),
        (lambda mask, count: torch.ones_like(mask), "expected growth to return a mask with all"),
        (lambda mask, count: ~mask, "expected growth to return a mask with all"),
    ],
)
def test_functions_that_return_something_else_change_nothing(result: Any, message: str) -> None:
    model = perceptron()
    optimizer = sgd(model)
    own = lambda weight, signal, mask, count: result(mask, count)  # noqa: E731
    sparsifier = Sparsifier(model, optimizer, 0.2, algorithm="SET", growth=own, kernels=False)
    train(model, optimizer, 2, batches(model))
    before, state, draws = sparsifier.masks, copy.deepcopy(model.state_dict()), sparsifier.state_dict()["generator"]
    with pytest.raises(ValueError, match=message):
        sparsifier.update()
    assert all(torch.equal(mask, sparsifier.masks[name]) for name, mask in before.items())
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in state.items())
    assert torch.equal(draws, sparsifier.state_dict()["generator"])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_gradients_that_are_not_finite_refuse_the_step(value: float) -> None:
    model = perceptron()
    optimizer = sgd(model)
    sparsifier = Sparsifier(model, optimizer, 0.2, update_every=2, kernels=False)
    data = batches(model)
    train(model, optimizer, 3, data)
    state, masks = copy.deepcopy(model.state_dict()), sparsifier.masks
    optimizer.zero_grad()
    inputs, labels = next(data)
    F.cross_entropy(model(inputs), labels).backward()
    model[2].weight.grad[0, 0] = value
    with pytest.raises(FloatingPointError, match="expected finite gradients, got NaN or infinite ones of '2.weight'"):
        optimizer.step()
    assert all(torch.equal(one, model.state_dict()[name]) for name, one in state.items())
    assert all(torch.equal(one, sparsifier.masks[name]) for name, one in masks.items())
    assert sparsifier.steps == 3
    train(model, optimizer, 1, data)  # and training goes on
    assert (sparsifier.steps, sparsifier.updates) == (4, 2)


def test_large_gradients_are_no_infinite_ones() -> None:
    """Whose sum is."""
    model = perceptron()
    optimizer = sgd(model, lr=1e-38)
    Sparsifier(model, optimizer, 0.2, kernels=False)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 3e38)
    optimizer.step()


def test_weights_that_are_not_finite_refuse_the_update() -> None:
    model = perceptron()
    optimizer = sgd(model)
    sparsifier = Sparsifier(model, optimizer, 0.2, kernels=False)
    train(model, optimizer, 1, batches(model))
    masks = sparsifier.masks
    with torch.no_grad():
        model[0].weight[masks["0.weight"]] = float("nan")
    with pytest.raises(
        FloatingPointError, match="expected weights that are finite.* of '0.weight'; masks are unchanged"
    ):
        sparsifier.update()
    assert all(torch.equal(one, sparsifier.masks[name]) for name, one in masks.items())


class TestBadInput:
    @pytest.mark.parametrize("density", [0, -0.1, 1.5, float("nan"), True, "0.1"])
    def test_densities(self, density: Any) -> None:
        model = perceptron()
        with pytest.raises(ValueError, match="expected density above 0 and at most 1"):
            Sparsifier(model, sgd(model), density, kernels=False)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"algorithm": "rigl"}, "expected algorithm to be 'sparse momentum', 'SET', 'RigL', 'gradual magnitude'"),
            ({"distribution": "erk"}, "expected distribution to be 'uniform', 'ERK', 'SET'"),
            ({"prune": "least"}, "expected prune to be 'magnitude', 'SET', 'global magnitude'"),
            ({"growth": "most"}, "expected growth to be 'momentum', 'momentum of neurons', 'gradient', 'random'"),
            ({"redistribution": "no"}, "expected redistribution to be 'momentum', 'magnitude', 'nonzeros', 'none'"),
            ({"signal": "loss"}, "expected signal to be 'momentum', 'gradient', 'random'"),
            ({"algorithm": "static", "growth": "random"}, "expected no growth.* with algorithm 'static'"),
            ({"algorithm": "SRigL", "redistribution": "none"}, "expected no redistribution with algorithm 'SRigL'"),
            ({"algorithm": "gradual magnitude"}, "expected last_update"),
            ({"prune_rate": 1.5}, "expected prune_rate from 0 to 1"),
            ({"update_every": 0}, "expected update_every to be an int from 1 on"),
            ({"last_update": 1.5}, "expected last_update to be an int from 1 on"),
            ({"dense_grad_every": None}, "expected dense_grad_every for growth by momentum"),
            ({"dense_grad_every": "never"}, "expected dense_grad_every to be an int, None or 'auto'"),
            ({"algorithm": "RigL", "update_every": 5, "dense_grad_every": 2}, "to be a multiple of dense_grad_every"),
            ({"block": (0, 4)}, "expected block of sizes from 1 to 128"),
            ({"ignore": ["5"]}, "expected ignore of names of modules, got '5'"),
            ({"ignore": ["0", "2"]}, "expected a model with layers to prune"),
            ({"masks": {}}, "expected density or masks, got both"),
        ],
        ids=str,
    )
    def test_settings(self, options: dict[str, Any], message: str) -> None:
        model = perceptron()
        optimizer = sgd(model)
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(ValueError, match=message):
            Sparsifier(model, optimizer, 0.5, kernels=False, **options)
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
        train(model, optimizer, 1, batches(model))  # no hook is left
        assert model[0].weight.all()

    def test_models_and_optimizers_that_do_not_belong_together(self) -> None:
        model, other = perceptron(), perceptron()
        optimizer = sgd(other)
        with pytest.raises(
            ValueError, match="an optimizer of this model's parameters, got one without '0.weight' and 1"
        ):
            Sparsifier(model, optimizer, 0.5, kernels=False)
        train(other, optimizer, 1, batches(other))
        with pytest.raises(TypeError, match="expected optimizer to be a torch.optim.Optimizer, got dict"):
            Sparsifier(model, {}, 0.5, kernels=False)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="expected model to be a torch.nn.Module, got Linear"):
            Sparsifier(type("Linear", (), {})(), optimizer, 0.5)  # type: ignore[arg-type]

    def test_nothing_to_prune(self) -> None:
        model = nn.Sequential(nn.BatchNorm1d(4), nn.Embedding(3, 4))
        with pytest.raises(ValueError, match="expected a model with layers to prune"):
            Sparsifier(model, sgd(model), 0.5)

    def test_weights_that_are_computed(self) -> None:
        model = perceptron()
        prune.l1_unstructured(model[0], "weight", 0.5)
        with pytest.raises(ValueError, match="computed in '0': make it permanent first"):
            Sparsifier(model, sgd(model), 0.5)

    def test_masks(self) -> None:
        model = perceptron()
        optimizer = sgd(model)
        good = torch.ones(24, 20, dtype=torch.bool)
        for masks, error, message in (
            ({"1.weight": good}, ValueError, "expected masks by the names of weights, as '0.weight', '2.weight'"),
            (
                {"0.weight": good.float()},
                TypeError,
                "expected the mask of '0.weight' to be a tensor of dtype torch.bool",
            ),
            ({"0.weight": good[:3]}, ValueError, r"expected the mask of '0.weight' of shape \[24, 20\], got \[3, 20\]"),
        ):
            with pytest.raises(error, match=message):
                Sparsifier(model, optimizer, masks=masks, kernels=False)
        sparsifier = Sparsifier(model, optimizer, 0.5, kernels=False)
        with pytest.raises(ValueError, match="expected names of masked weights"):
            sparsifier.set_masks({"7.weight": good})
        with pytest.raises(ValueError, match="expected density or masks, got neither"):
            Sparsifier(model, optimizer)

    def test_updates_before_there_is_something_to_grow_by(self) -> None:
        model = perceptron()
        sparsifier = Sparsifier(model, sgd(model), 0.5, kernels=False)
        with pytest.raises(RuntimeError, match="expected a momentum of '0.weight' to grow by, got none"):
            sparsifier.update()

    def test_rates_of_schedules(self) -> None:
        class Bad:
            def step(self) -> None: ...
            def get_dr(self, prune_rate: float) -> float:
                return 1.5

        model = perceptron()
        sparsifier = Sparsifier(model, sgd(model), 0.5, prune_rate=Bad(), algorithm="SET", kernels=False)
        train(model, sparsifier.optimizer, 1, batches(model))
        with pytest.raises(ValueError, match="expected a prune rate from 0 to 1, got 1.5"):
            sparsifier.update()
        with pytest.raises(ValueError, match="expected T_max, a number of steps above 0"):
            CosineDecay(0.5, 0)

    def test_two_of_one_weight(self) -> None:
        model = perceptron()
        optimizer = sgd(model)
        first = Sparsifier(model, optimizer, 0.5, kernels=False)
        with pytest.raises(
            ValueError, match="expected weights that nothing else trains sparse, got '0.weight' of Spars"
        ):
            Sparsifier(model, optimizer, 0.5, kernels=False)
        first.remove()
        second = Sparsifier(model, optimizer, 0.5, kernels=False)
        train(model, optimizer, 1, batches(model))
        assert (first.steps, second.steps) == (0, 1)

    def test_copies_which_would_have_no_hooks(self) -> None:
        model = perceptron()
        sparsifier = Sparsifier(model, sgd(model), 0.5, kernels=False)
        for copies in (copy.deepcopy, copy.copy, pickle.dumps):
            with pytest.raises(TypeError, match="Sparsifier: expected no copy and no pickle"):
                copies(sparsifier)
        copy.deepcopy(model)
