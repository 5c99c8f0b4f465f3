# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""A model is sparse from the first step on, its number of nonzeros is exact, and bad input changes nothing."""

from __future__ import annotations

import itertools
import os
import random

import pytest
import torch
import torch.nn.functional as F
from conv1d_of_transformers import Conv1D
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from training_nets import ALGORITHMS, assert_masked, batches, network, perceptron, sgd, train

from sparsekernels.training import CosineDecay, LinearDecay, Sparsifier

OPTIMIZERS = {
    "SGD": lambda model: sgd(model),
    "SGD without momentum": lambda model: torch.optim.SGD(model.parameters(), lr=0.05),
    "Adam": lambda model: torch.optim.Adam(model.parameters(), lr=1e-3, amsgrad=True),
    "AdamW": lambda model: torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1),
    "RMSprop": lambda model: torch.optim.RMSprop(model.parameters(), lr=1e-3, momentum=0.9, centered=True),
}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_nonzeros_are_exact_with_every_optimizer(algorithm: str, optimizer: str) -> None:
    model = network()
    of = OPTIMIZERS[optimizer](model)
    if algorithm == "sparse momentum" and optimizer == "SGD without momentum":
        with pytest.raises(ValueError, match="expected an optimizer with momentum for growth by momentum, got SGD"):
            Sparsifier(model, of, 0.1, algorithm=algorithm, update_every=2, last_update=6, kernels=False)
        return
    sparsifier = Sparsifier(model, of, 0.1, algorithm=algorithm, update_every=2, last_update=6, kernels=False)
    total = sum(mask.numel() for mask in sparsifier.masks.values())
    before, data = sparsifier.masks, batches(model)
    for _ in range(10):
        train(model, of, 1, data)
        assert_masked(model, sparsifier)
        if algorithm not in ("gradual magnitude", "SRigL"):
            assert sum(sparsifier.nonzeros.values()) == round(0.1 * total)
    assert sparsifier.updates == (0 if algorithm == "static" else 3)
    if algorithm == "gradual magnitude":
        assert sum(sparsifier.nonzeros.values()) == round(0.1 * total)
    if algorithm == "SRigL":
        for mask in sparsifier.masks.values():
            rows = mask.flatten(1).sum(1)
            assert rows[rows > 0].eq(rows.max()).all()
    same = all(torch.equal(before[name], mask) for name, mask in sparsifier.masks.items())
    assert same is (algorithm == "static")


def test_muon_moves_masked_weights_and_they_stay_zero() -> None:
    """Its update is the nearest orthogonal matrix to a momentum: none of that is zero."""
    model = perceptron()
    matrices = [one.weight for one in (model[0], model[2])]
    optimizer = torch.optim.Muon(matrices, lr=0.02)
    sparsifier = Sparsifier(model, optimizer, 0.2, algorithm="SET", update_every=3, kernels=False)
    data = batches(model)
    for _ in range(7):
        train(model, optimizer, 1, data)
        assert_masked(model, sparsifier)
        assert sum(sparsifier.nonzeros.values()) == round(0.2 * (20 * 24 + 24 * 5))


@given(
    sizes=st.lists(st.integers(1, 30), min_size=2, max_size=5),
    density=st.floats(0.01, 1.0),
    rate=st.floats(0, 1),
    algorithm=st.sampled_from(["sparse momentum", "SET", "RigL"]),
    distribution=st.sampled_from(["uniform", "ERK", "SET"]),
    prune=st.sampled_from([None, "SET", "global magnitude"]),
    growth=st.sampled_from([None, "momentum of neurons", "global momentum", "random"]),
    redistribution=st.sampled_from([None, "momentum", "magnitude", "nonzeros", "none"]),
    block=st.sampled_from([None, (2, 3), (16, 16)]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60)
def test_random_networks_keep_their_number(
    sizes: list[int],
    density: float,
    rate: float,
    algorithm: str,
    distribution: str,
    prune: str | None,
    growth: str | None,
    redistribution: str | None,
    block: tuple[int, int] | None,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(*(nn.Linear(a, b) for a, b in itertools.pairwise(sizes)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sparsifier = Sparsifier(
        model,
        optimizer,
        density,
        algorithm=algorithm,
        distribution=distribution,
        prune=prune,
        growth=growth,
        redistribution=redistribution,
        prune_rate=rate,
        block=block,
        seed=seed,
        kernels=False,
        update_every=1,
    )
    weights = list(sparsifier._weights.values())
    units = sum(one.wanted for one in weights)
    assert units == max(1, round(density * sum(one.count for one in weights)))
    for _ in range(8):
        optimizer.zero_grad()
        model(torch.randn(4, sizes[0])).square().sum().backward()
        for parameter in model.parameters():  # whatever the loss is, the step is small
            assert parameter.grad is not None
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
        used = sum(int(one.units_of_mask(one.mask).sum()) for one in weights)
        assert used == units
        assert_masked(model, sparsifier)
        if block is None:
            assert sum(sparsifier.nonzeros.values()) == units


def test_many_updates_without_an_error() -> None:
    """Of random networks, with random settings, from random momenta; tests/legs.sh many-updates has 10^4."""
    draws, updates = random.Random(0), 0
    while updates < int(os.environ.get("MANY_UPDATES", "600")):
        sizes = [draws.randint(1, 12) for _ in range(draws.randint(2, 5))]
        torch.manual_seed(updates)
        model = nn.Sequential(*(nn.Linear(a, b) for a, b in itertools.pairwise(sizes)))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        sparsifier = Sparsifier(
            model,
            optimizer,
            draws.uniform(0.05, 1.0),
            algorithm=draws.choice(["sparse momentum", "SET", "RigL"]),
            distribution=draws.choice(["uniform", "ERK", "SET"]),
            redistribution=draws.choice(["momentum", "magnitude", "nonzeros", "none"]),
            prune_rate=draws.random(),
            block=draws.choice([None, (3, 2)]),
            seed=updates,
            kernels=False,
        )
        weights = list(sparsifier._weights.values())
        wanted = sum(one.wanted for one in weights)
        for one in weights:
            one.parameter.grad = torch.randn_like(one.parameter)
        optimizer.step()
        for _ in range(100):
            for one in weights:
                optimizer.state[one.parameter]["momentum_buffer"].normal_()
                one.parameter.data.add_(torch.randn_like(one.parameter) * one.mask)
            gradients = {one.name: torch.randn_like(one.parameter) for one in weights}
            sparsifier._updater.gradients = sparsifier.steps, gradients
            sparsifier.update()
            assert sum(int(one.units_of_mask(one.mask).sum()) for one in weights) == wanted
        updates += 100


def test_new_weights_start_at_zero_and_without_a_past() -> None:
    model = perceptron()
    optimizer = sgd(model)
    sparsifier = Sparsifier(model, optimizer, 0.3, algorithm="RigL", kernels=False)
    train(model, optimizer, 3, batches(model))
    before = sparsifier.masks
    report = sparsifier.update()
    for name, weight in model.named_parameters():
        if name not in before:
            continue
        now = sparsifier.masks[name]
        assert report.pruned[name] == report.grown[name] == round(0.5 * int(before[name].sum()))
        assert report.nonzeros[name] == int(now.sum())
        new = now & ~before[name]
        assert new.any()
        assert not weight.detach()[new].any()
        assert not optimizer.state[weight]["momentum_buffer"][~(now & before[name])].any()


def test_momentum_of_missing_weights_accumulates_for_sparse_momentum() -> None:
    model = perceptron()
    optimizer = sgd(model)
    sparsifier = Sparsifier(model, optimizer, 0.3, kernels=False)
    train(model, optimizer, 3, batches(model))
    for weight, mask in (
        (model[0].weight, sparsifier.masks["0.weight"]),
        (model[2].weight, sparsifier.masks["2.weight"]),
    ):
        momentum = optimizer.state[weight]["momentum_buffer"]
        assert momentum[~mask].any()
        sparsifier.update()
        grown = sparsifier.masks["0.weight" if weight is model[0].weight else "2.weight"] & ~mask
        left = ~mask & ~grown
        if grown.any() and left.any():
            assert momentum[grown].abs().min() >= momentum[left].abs().max()


@pytest.mark.parametrize("every", [1, 2, 4])
def test_gradients_of_missing_weights_at_the_steps_asked_for(every: int) -> None:
    model = perceptron()
    optimizer = sgd(model, weight_decay=0)
    sparsifier = Sparsifier(model, optimizer, 0.3, update_every=4, last_update=8, dense_grad_every=every, kernels=False)
    data = batches(model)
    for step in range(1, 13):
        masks = sparsifier.masks
        train(model, optimizer, 1, data)
        missing = model[0].weight.grad[~masks["0.weight"]].any().item()
        assert missing is (step <= 8 and step % every == 0), step


def test_algorithms_without_growth_by_gradient_need_none() -> None:
    for algorithm in ("SET", "static", "gradual magnitude"):
        model = perceptron()
        optimizer = sgd(model)
        sparsifier = Sparsifier(
            model, optimizer, 0.3, algorithm=algorithm, update_every=2, last_update=4, kernels=False
        )
        masks = sparsifier.masks
        train(model, optimizer, 1, batches(model))
        assert not model[0].weight.grad[~masks["0.weight"]].any()


def test_gradual_pruning_follows_its_cube() -> None:
    model = perceptron()
    optimizer = sgd(model)
    sparsifier = Sparsifier(
        model, optimizer, 0.1, algorithm="gradual magnitude", update_every=1, last_update=10, kernels=False
    )
    data, seen = batches(model), []
    assert sparsifier.density == 1
    for _ in range(12):
        train(model, optimizer, 1, data)
        seen.append(sparsifier.nonzeros["0.weight"])
    final = round(0.1 * 480)
    assert seen == [round(final + (480 - final) * (1 - min(step, 10) / 10) ** 3) for step in range(1, 13)]


def test_schedules_are_asked_at_every_update() -> None:
    for schedule, expected in ((CosineDecay(0.5, 4, 0.1), [0.3, 0.1, 0.1]), (LinearDecay(0.4, 4), [0.2, 0.0, 0.0])):
        model = perceptron()
        optimizer = sgd(model)
        sparsifier = Sparsifier(model, optimizer, 0.5, algorithm="SET", prune_rate=schedule, kernels=False)
        data, rates = batches(model), []
        for _ in range(3):
            train(model, optimizer, 2, data)
            report = sparsifier.update()
            rates.append(report.rate)
            assert report.pruned["0.weight"] == round(report.rate * 240)
        assert rates == pytest.approx(expected)


def test_a_users_own_growth_in_five_lines() -> None:
    def by_position(weight: Tensor, signal: Tensor, mask: Tensor, count: int) -> Tensor:
        missing = (~mask).flatten().nonzero()[:, 0]
        return mask.flatten().index_fill(0, missing[:count], True).view_as(mask)

    model = perceptron()
    optimizer = sgd(model)
    sparsifier = Sparsifier(model, optimizer, 0.2, algorithm="SET", growth=by_position, kernels=False)
    train(model, optimizer, 2, batches(model))
    sparsifier.update()
    assert sparsifier.masks["0.weight"].flatten()[:20].all()
    assert sum(sparsifier.nonzeros.values()) == 120


def test_closures_are_masked_as_well() -> None:
    model = perceptron()
    optimizer = sgd(model)
    sparsifier = Sparsifier(model, optimizer, 0.2, algorithm="SET", kernels=False)
    inputs, labels = next(batches(model))

    def closure() -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), labels)
        loss.backward()
        return loss  # type: ignore[return-value]

    before = optimizer.step(closure)
    assert not model[0].weight.grad[~sparsifier.masks["0.weight"]].any()
    assert sparsifier.step(closure) < before
    assert_masked(model, sparsifier)
    assert sparsifier.steps == 2


def test_gradients_accumulate_over_backward_passes() -> None:
    model = perceptron()
    optimizer = sgd(model)
    sparsifier = Sparsifier(model, optimizer, 0.3, algorithm="RigL", update_every=1, kernels=False)
    data = batches(model)
    optimizer.zero_grad()
    for _ in range(3):
        inputs, labels = next(data)
        F.cross_entropy(model(inputs), labels).backward()
    gradient = model[0].weight.grad.clone()
    kept = sparsifier.masks["0.weight"]
    optimizer.step()
    grown = sparsifier.masks["0.weight"] & ~kept
    assert grown.any()
    assert gradient[grown].abs().min() >= gradient[~kept & ~grown].abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_weights_of_every_dtype(dtype: torch.dtype) -> None:
    model = perceptron().to(dtype)
    optimizer = sgd(model)
    sparsifier = Sparsifier(model, optimizer, 0.2, update_every=2, kernels=False)
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.randn(8, 20, dtype=dtype)).square().mean().backward()
        optimizer.step()
        assert sum(sparsifier.nonzeros.values()) == 120
        assert_masked(model, sparsifier)


def test_float16_steps_that_a_scaler_skips_count_for_nothing() -> None:
    model = perceptron()
    optimizer = sgd(model)
    sparsifier = Sparsifier(model, optimizer, 0.2, update_every=1, kernels=False)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**126)
    inputs, labels = next(batches(model))
    for _ in range(3):
        optimizer.zero_grad()
        scaler.scale(F.cross_entropy(model(inputs), labels) * 1e3).backward()
        scaler.step(optimizer)  # infinite gradients: the optimizer is not called
        scaler.update()
    assert sparsifier.steps == 0
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    optimizer.zero_grad()
    scaler.scale(F.cross_entropy(model(inputs), labels)).backward()
    scaler.step(optimizer)
    assert (sparsifier.steps, sparsifier.updates) == (1, 1)


def test_layouts_and_shared_weights() -> None:
    torch.manual_seed(0)
    shared = nn.Linear(12, 12, bias=False)
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.Flatten(), Conv1D(12, 24), shared, shared).to(
        memory_format=torch.channels_last
    )
    optimizer = sgd(model)
    sparsifier = Sparsifier(model, optimizer, 0.25, update_every=1, block=(2, 3), kernels=False)
    assert list(sparsifier.masks) == ["0.weight", "2.weight", "3.weight"]
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.randn(2, 4, 4, 4)).square().mean().backward()
        optimizer.step()
        assert_masked(model, sparsifier)
    mask = sparsifier.masks["2.weight"]  # [in, out]: blocks of 3 inputs by 2 outputs
    blocks = mask.view(8, 3, 6, 2)
    assert torch.equal(blocks.any(3).any(1), blocks.all(3).all(1))
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
