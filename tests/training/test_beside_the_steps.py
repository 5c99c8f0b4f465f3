# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What happens beside the steps: weights that are loaded, gradients that others read, functions that write, layers that
take no part."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from training_nets import assert_masked, batches, network, perceptron, sgd, train

from sparsekernels.testing import prefer
from sparsekernels.training import Masking, Sparsifier, load_checkpoint, save_checkpoint


def on_kernels(algorithm: str = "SET", density: Any = 0.2, **options: Any) -> tuple[nn.Sequential, Any, Sparsifier]:
    model = network()
    optimizer = sgd(model)
    sparsifier = Sparsifier(model, optimizer, density, algorithm=algorithm, progress=False, **options)
    with prefer("fine-grained", "graph", "layers"):
        train(model, optimizer, 1, batches(model))
    return model, optimizer, sparsifier


def assert_layers_have_the_masks(model: nn.Sequential, sparsifier: Sparsifier) -> None:
    for place in (0, 3, 7, 9):
        layer: Any = model[place]
        assert torch.equal(layer.mask, sparsifier.masks[f"{place}.weight"])


@pytest.mark.parametrize("order", [0, 1])
def test_a_full_layer_with_new_weights_is_loaded_as_it_is(order: int, tmp_path: Path) -> None:
    """Its new weights are 0, and used."""
    model, optimizer, sparsifier = on_kernels()
    mask = torch.zeros_like(sparsifier.masks["9.weight"])
    mask[:, :5] = True
    sparsifier.set_masks({"9.weight": mask})
    sparsifier.set_masks({"9.weight": torch.ones_like(mask)})  # all are used, most are 0
    parts = {"model": model, "optimizer": optimizer, "sparsifier": sparsifier}
    save_checkpoint(tmp_path / "run.pt", **parts)
    data = batches(model)
    train(model, optimizer, 2, data)
    other_model, other_optimizer, other = on_kernels()
    again = {"model": other_model, "optimizer": other_optimizer, "sparsifier": other}
    load_checkpoint(tmp_path / "run.pt", **(dict(reversed(again.items())) if order else again))
    assert_layers_have_the_masks(other_model, other)
    train(other_model, other_optimizer, 2, batches(model))
    for name, value in model.state_dict().items():
        assert torch.equal(value, other_model.state_dict()[name]), name


def test_other_weights_that_are_loaded_are_masked_by_the_next_step() -> None:
    model, optimizer, sparsifier = on_kernels("static")
    masks = sparsifier.masks
    model.load_state_dict(network(seed=5).state_dict())
    train(model, optimizer, 1, batches(model))
    assert_masked(model, sparsifier)
    assert_layers_have_the_masks(model, sparsifier)
    assert all(torch.equal(mask, sparsifier.masks[name]) for name, mask in masks.items())
    for name, parameter in model.named_parameters():
        if name in masks:
            assert not optimizer.state[parameter]["momentum_buffer"][~masks[name]].any()


def test_a_pattern_that_somebody_else_sets_does_not_stay() -> None:
    model, optimizer, sparsifier = on_kernels("static")
    layer: Any = model[3]
    layer.set_pattern(torch.rand(layer.weight.shape) < 0.5)
    train(model, optimizer, 1, batches(model))
    assert_layers_have_the_masks(model, sparsifier)
    assert_masked(model, sparsifier)


def test_copies_of_a_model_load_as_ever() -> None:
    model, _, sparsifier = on_kernels("static")
    twin = copy.deepcopy(model)
    twin.load_state_dict(model.state_dict())
    masks = sparsifier.masks
    twin.load_state_dict(network(seed=5).state_dict())
    assert all(torch.equal(mask, sparsifier.masks[name]) for name, mask in masks.items())
    assert_masked(model, sparsifier)


@pytest.mark.parametrize("every", [1, 4])
def test_whoever_clips_gradients_finds_the_same_on_kernels(every: int) -> None:
    norms = []
    for kernels in (False, True):
        model = network().double()
        optimizer = sgd(model)
        Sparsifier(model, optimizer, 0.2, update_every=4, dense_grad_every=every, kernels=kernels, progress=False)
        data, found = batches(model), []
        with prefer("fine-grained", "graph", "layers"):
            for _ in range(5):
                inputs, labels = next(data)
                optimizer.zero_grad()
                F.cross_entropy(model(inputs.double()), labels).backward()
                found.append(float(nn.utils.clip_grad_norm_(model.parameters(), 1e9)))
                optimizer.step()
        norms.append(found)
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)


@pytest.mark.parametrize("options", [{"foreach": True, "weight_decay": 0}, {"foreach": False}, {"nesterov": False}])
def test_growth_by_gradient_looks_at_the_gradient(options: dict[str, Any]) -> None:
    """SGD with Nesterov's momentum and foreach writes into .grad."""
    model = perceptron()
    optimizer = sgd(model, **options)
    sparsifier = Sparsifier(model, optimizer, 0.3, algorithm="RigL", update_every=3, kernels=False)
    data = batches(model)
    train(model, optimizer, 2, data)
    inputs, labels = next(data)
    optimizer.zero_grad(set_to_none=False)
    F.cross_entropy(model(inputs), labels).backward()
    gradient, kept = model[0].weight.grad.clone(), sparsifier.masks["0.weight"]
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    grown = sparsifier.masks["0.weight"] & ~kept
    left = ~kept & ~grown
    assert grown.any()
    assert gradient[grown].abs().min() >= gradient[left].abs().max()


def test_growth_by_gradient_is_never_at_random_instead() -> None:
    model = perceptron()
    optimizer = sgd(model)
    sparsifier = Sparsifier(model, optimizer, 0.3, algorithm="RigL", update_every=4, last_update=4, kernels=False)
    data = batches(model)
    train(model, optimizer, 2, data)
    with pytest.raises(RuntimeError, match="expected a step with gradients of missing weights just before the update"):
        sparsifier.update()
    train(model, optimizer, 4, data)
    assert sparsifier.updates == 1
    with pytest.raises(RuntimeError, match="got none"):
        sparsifier.update()


def test_functions_that_write_to_what_they_are_given() -> None:
    def prune(weight: Tensor, signal: Tensor, mask: Tensor, count: int) -> Tensor:
        weight.zero_()
        kept = mask.flatten().nonzero()[:, 0]
        mask.view(-1)[kept[:count]] = False
        return mask

    def grow(weight: Tensor, signal: Tensor, mask: Tensor, count: int) -> Tensor:
        signal.zero_()
        missing = (~mask).flatten().nonzero()[:, 0]
        mask.view(-1)[missing[:count]] = True
        return mask

    model = perceptron()
    optimizer = sgd(model)
    sparsifier = Sparsifier(model, optimizer, 0.2, prune=prune, growth=grow, kernels=False)
    train(model, optimizer, 3, batches(model))
    momentum = optimizer.state[model[0].weight]["momentum_buffer"].clone()
    kept, weight = sparsifier.masks["0.weight"], model[0].weight.detach().clone()
    report = sparsifier.update()
    assert report.pruned["0.weight"] == 48
    assert torch.equal(optimizer.state[model[0].weight]["momentum_buffer"], momentum)
    stay = kept & sparsifier.masks["0.weight"]
    stay.view(-1)[kept.flatten().nonzero()[:48, 0]] = False  # pruned, and perhaps grown again
    assert torch.equal(model[0].weight.detach()[stay], weight[stay])


def test_a_schedule_that_goes_by_the_rate_before(tmp_path: Path) -> None:
    class Geometric:
        def step(self) -> None: ...

        def get_dr(self, prune_rate: float) -> float:
            return prune_rate * 0.5

    def make() -> tuple[nn.Sequential, Any, Masking]:
        model = perceptron()
        mask = Masking(sgd(model), Geometric(), prune_rate=0.8, growth_mode="random", kernels=False)
        mask.add_module(model, 0.5)
        return model, mask.optimizer, mask

    model, optimizer, mask = make()
    assert mask.prune_rate == 0.8
    train(model, optimizer, 2, batches(model))
    assert mask.prune_rate == pytest.approx(0.2)
    save_checkpoint(tmp_path / "run.pt", mask=mask)
    _, _, other = make()
    load_checkpoint(tmp_path / "run.pt", mask=other)
    assert other.prune_rate == mask.prune_rate


@pytest.mark.parametrize("compact", [False, True])
def test_fused_optimizers_that_a_scaler_lets_skip(compact: bool) -> None:
    model = perceptron()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    sparsifier = Sparsifier(
        model, optimizer, 0.2, algorithm="SET", update_every=1, compact_state=compact, kernels=False
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**126)
    inputs, labels = next(batches(model))
    before = copy.deepcopy(model.state_dict())
    optimizer.zero_grad()
    scaler.scale(F.cross_entropy(model(inputs), labels) * 1e3).backward()
    scaler.step(optimizer)
    scaler.update()
    assert sparsifier.steps == 0
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())


def test_gradual_pruning_ends_at_its_density_off_the_grid() -> None:
    model = perceptron()
    optimizer = sgd(model)
    sparsifier = Sparsifier(
        model, optimizer, 0.1, algorithm="gradual magnitude", update_every=4, last_update=10, kernels=False
    )
    train(model, optimizer, 11, batches(model))
    assert sum(sparsifier.nonzeros.values()) == 60


@pytest.mark.parametrize("algorithm", ["sparse momentum", "RigL", "SET"])
def test_layers_that_take_no_part_stay_as_they_are(algorithm: str) -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.unused = nn.Linear(20, 24), nn.Linear(24, 5), nn.Linear(20, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x).relu())  # type: ignore[no-any-return]

    torch.manual_seed(0)
    model = Heads()
    optimizer = sgd(model)
    sparsifier = Sparsifier(model, optimizer, 0.2, algorithm=algorithm, update_every=1, kernels=False)
    unused = sparsifier.masks["unused.weight"]
    for step in range(4):
        optimizer.zero_grad()
        if step == 2:
            model.second.weight.requires_grad_(False)  # frozen later
        model(torch.randn(4, 20)).square().sum().backward()
        optimizer.step()
    assert sparsifier.updates == 4
    assert sum(sparsifier.nonzeros.values()) == round(0.2 * (480 + 120 + 100))
    if algorithm != "SET":
        assert torch.equal(sparsifier.masks["unused.weight"], unused)


def test_a_bias_that_is_not_finite_refuses_the_step() -> None:
    model = perceptron()
    optimizer = sgd(model)
    Sparsifier(model, optimizer, 0.2, kernels=False)
    inputs, labels = next(batches(model))
    F.cross_entropy(model(inputs), labels).backward()
    model[0].bias.grad[1] = float("nan")
    before = model[0].bias.detach().clone()
    with pytest.raises(FloatingPointError, match="of '0.bias'"):
        optimizer.step()
    assert torch.equal(model[0].bias, before)


def test_every_layer_keeps_one_when_all_are_pruned_at_once() -> None:
    model = perceptron()
    optimizer = sgd(model)
    with torch.no_grad():
        model[2].weight.mul_(1e-6)
    sparsifier = Sparsifier(
        model, optimizer, 0.3, algorithm="SET", prune="global magnitude", prune_rate=0.9, kernels=False
    )
    train(model, optimizer, 1, batches(model))
    with torch.no_grad():
        model[2].weight.mul_(1e-6)
    report = sparsifier.update()
    assert sum(report.pruned.values()) == round(0.9 * 144) + round(0.9 * 36)
    assert sum(sparsifier.nonzeros.values()) == 180


def test_no_class_goes_by_constant_fan_in() -> None:
    model = perceptron()
    optimizer = sgd(model)
    sparsifier = Sparsifier(model, optimizer, 0.2, algorithm="SRigL", update_every=1, prune_rate=0.8, kernels=False)
    with torch.no_grad():
        model[2].weight[3:] *= 1e-6
    train(model, optimizer, 6, batches(model))
    assert sparsifier.masks["2.weight"].any(1).all()


def test_a_failed_attempt_leaves_no_hook() -> None:
    model = perceptron()
    for _ in range(3):
        with pytest.raises(ValueError, match="expected an optimizer of this model's parameters"):
            Sparsifier(model, sgd(perceptron()), 0.5)
    assert not model._forward_pre_hooks
    assert not model._load_state_dict_post_hooks
    sparsifier = Sparsifier(model, sgd(model), 0.5)
    sparsifier.remove()
    assert not model._forward_pre_hooks
    assert not model._load_state_dict_post_hooks
    assert not model[0].weight._backward_hooks


def test_zero_initialized_layers_are_measured_by_their_masks() -> None:
    model = network()
    nn.init.zeros_(model[9].weight)
    optimizer = sgd(model)
    sparsifier = Sparsifier(model, optimizer, 0.2, algorithm="static", progress=False)
    with prefer("fine-grained", "graph", "layers"):
        train(model, optimizer, 1, batches(model))
    assert "4 layers on sparse kernels" in sparsifier.line
    assert_layers_have_the_masks(model, sparsifier)


def test_adam_in_float16_has_a_momentum() -> None:
    model = perceptron().half()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-4)
    sparsifier = Sparsifier(model, optimizer, 0.2, update_every=1, kernels=False)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
        parameter.grad.view(-1)[::3] = 1e-3
    optimizer.step()
    assert sparsifier.updates == 1


@pytest.mark.parametrize("name", ["Adagrad", "Adafactor", "LBFGS", "Rprop"])
def test_optimizers_without_momentum_are_refused_at_once(name: str) -> None:
    model = perceptron()
    optimizer = getattr(torch.optim, name)(model.parameters())
    with pytest.raises(ValueError, match="expected an optimizer with momentum"):
        Sparsifier(model, optimizer, 0.2)
