# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Masks hold exactly while a user trains, whatever the optimizer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_networks import INPUTS, LABELS, network, trainer
from torch import Tensor, nn

import sparsekernels as sk
from sparsekernels.training import HeldMasks, Lottery

OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "SGD": lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4),
    "Adam": lambda weights: torch.optim.Adam(weights, lr=1e-2, weight_decay=1e-2),
    "AdamW": lambda weights: torch.optim.AdamW(weights, lr=1e-2, weight_decay=0.1),
    "Muon": lambda weights: torch.optim.Muon([one for one in weights if one.dim() == 2], lr=1e-2),
    "RMSprop": lambda weights: torch.optim.RMSprop(weights, lr=1e-3, momentum=0.9),
    "LBFGS": lambda weights: torch.optim.LBFGS(weights, lr=0.5, max_iter=3),
}


def masks_of(model: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(one.shape, generator=generator) < 0.3 for name, one in model.named_parameters() if "w" in name
    }


def step(model: nn.Module, optimizer: Any) -> None:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(INPUTS), LABELS)
        loss.backward()
        return loss

    optimizer.step(closure)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_pruned_weights_are_what_they_were_after_each_step(name: str, frozen: bool) -> None:
    model = network()
    masks = masks_of(model)
    if not frozen:
        with torch.no_grad():
            for one, mask in masks.items():
                model.get_parameter(one).masked_fill_(~mask, 0)
    first = copy.deepcopy(model.state_dict())
    with HeldMasks(model, masks) as held:
        optimizer = OPTIMIZERS[name](model.parameters())
        for count in range(1, 6):
            step(model, optimizer)
            for one, mask in masks.items():
                weight = model.get_parameter(one)
                assert torch.equal(weight[~mask], first[one][~mask])
                assert not torch.equal(weight[mask], first[one][mask])
                assert not weight.grad[~mask].any()
            assert held.steps == count
        assert held.moved() == []
    step(model, optimizer)  # nothing is held any more
    moved = [one for one, mask in masks.items() if not torch.equal(model.get_parameter(one)[~mask], first[one][~mask])]
    assert moved
    assert held.steps == 5
    assert held.moved() == moved


@pytest.mark.parametrize("name", ["SGD", "Adam", "Muon"])
def test_kept_weights_are_trained_as_a_masked_network_is(name: str) -> None:
    """What is held is f(x; mask * weight), also for an optimizer that mixes the elements of a matrix."""
    model = network()
    masks = masks_of(model)
    with torch.no_grad():
        for one, mask in masks.items():
            model.get_parameter(one).masked_fill_(~mask, 0)
    other = copy.deepcopy(model)
    optimizer = OPTIMIZERS[name](other.parameters())
    for _ in range(4):
        optimizer.zero_grad()
        masked = {one: weight * masks[one] if one in masks else weight for one, weight in other.named_parameters()}
        F.cross_entropy(torch.func.functional_call(other, masked, (INPUTS,)), LABELS).backward()
        optimizer.step()
        with torch.no_grad():
            for one, mask in masks.items():
                other.get_parameter(one).masked_fill_(~mask, 0)
    with HeldMasks(model, masks):
        optimizer = OPTIMIZERS[name](model.parameters())
        for _ in range(4):
            optimizer.zero_grad()
            F.cross_entropy(model(INPUTS), LABELS).backward()
            optimizer.step()
    for one, weight in model.named_parameters():
        assert torch.equal(weight, other.get_parameter(one))


def test_optimizers_of_other_models_are_left_alone() -> None:
    model, other = network(), network()
    with HeldMasks(model, masks_of(model)) as held:
        optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
        step(other, optimizer)
        assert held.steps == 0
    assert all(bool(one.all()) for one in other.parameters())


def test_parameters_that_are_added_later_are_held() -> None:
    model = network()
    masks = masks_of(model)
    first = copy.deepcopy(model.state_dict())
    with HeldMasks(model, masks) as held:
        optimizer = torch.optim.Adam(model[0].parameters(), lr=0.1, weight_decay=1.0)  # type: ignore[index]
        step(model, optimizer)
        optimizer.add_param_group({"params": list(model[2].parameters())})  # type: ignore[index]
        step(model, optimizer)
        assert torch.equal(model.get_parameter("2.weight")[~masks["2.weight"]], first["2.weight"][~masks["2.weight"]])
        assert not torch.equal(model.get_parameter("2.weight"), first["2.weight"])
        assert held.moved() == []


def test_exceptions_end_it() -> None:
    model = network()
    masks = masks_of(model)
    with pytest.raises(KeyboardInterrupt), HeldMasks(model, masks):
        raise KeyboardInterrupt
    model(INPUTS).sum().backward()
    assert any(bool(model.get_parameter(one).grad[~mask].any()) for one, mask in masks.items())


def test_nan_gradients_of_pruned_weights_go_nowhere() -> None:
    model = nn.Linear(20, 4)
    masks = {"weight": torch.zeros(4, 20, dtype=torch.bool)}
    masks["weight"][:, :3] = True
    with torch.no_grad():
        model.weight.masked_fill_(~masks["weight"], 0)
    with HeldMasks(model, masks):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        inputs = INPUTS.clone()
        (model(inputs).square().sum() + (model.weight[:, 5] / 0).square().sum()).backward()
        optimizer.step()
    assert bool(model.weight.isfinite().all())
    assert not model.weight[~masks["weight"]].any()


def test_layers_may_be_replaced_by_sparse_ones() -> None:
    """Before the optimizer is made, as always; then they are what is trained and held."""
    modules = []

    def train(model: Any, masks: Any, start_step: int) -> None:
        for place in (0, 2):
            if not bool(masks[f"{place}.weight"].all()):
                model[place] = sk.nn.SparseLinear.from_dense(model[place], masks[f"{place}.weight"], dense_grad=True)
                modules.append(model[place])
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(5):
            step(model, optimizer)

    lottery = Lottery(network, train, rounds=2)
    ticket = lottery.round(2)
    assert len(modules) == 4
    for one, name in zip(modules[2:], ("0.weight", "2.weight"), strict=True):
        assert torch.equal(one.mask, ticket.masks[name])
        assert not ticket.final[name][~ticket.masks[name]].any()
        assert not torch.equal(ticket.final[name], ticket.start[name])


def test_masks_are_given_to_the_user() -> None:
    seen: list[Any] = []
    lottery = Lottery(network, trainer(1, each_step=lambda model, masks, step: seen.append(dict(masks))), rounds=1)
    ticket = lottery.round(1)
    assert seen[1].keys() == ticket.masks.keys()
    assert all(torch.equal(seen[1][name], mask) for name, mask in ticket.masks.items())


def test_it_can_be_entered_again_and_inside() -> None:
    model = network()
    masks = masks_of(model)
    held = HeldMasks(model, masks)

    def check(holds: bool) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        first = copy.deepcopy(model.state_dict())
        step(model, optimizer)
        for one, mask in masks.items():
            assert torch.equal(model.get_parameter(one)[~mask], first[one][~mask]) is holds
            assert bool(model.get_parameter(one).grad[~mask].any()) is not holds

    for _ in range(2):
        with held:
            check(True)
            with held:
                check(True)
            check(True)
            assert held.moved() == []
        check(False)  # and the next time these values are held
    assert held.steps == 1  # of each optimizer
    with pytest.raises(ZeroDivisionError), held, held:
        raise ZeroDivisionError
    check(False)


@pytest.mark.parametrize("where", ["before", "inside"])
def test_a_layer_that_is_frozen_at_first_is_held(where: str) -> None:
    model = network()
    masks = masks_of(model)
    model[0].requires_grad_(False)
    with HeldMasks(model, masks) as held:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        if where == "inside":
            step(model, optimizer)
            assert not model[0].weight.requires_grad
            assert model[0].weight.grad is None
        model[0].requires_grad_()
        for _ in range(2):
            step(model, optimizer)
            assert not model[0].weight.grad[~masks["0.weight"]].any()
            assert model[0].weight.grad.any()
        assert held.moved() == []


def test_a_user_cannot_change_the_masks_of_a_ticket() -> None:
    def train(model: nn.Module, masks: Any, start_step: int) -> None:
        trainer(1)(model, masks, start_step)
        masks["0.weight"].zero_()

    assert Lottery(network, train).round(0).counts["0.weight"] == 960


@pytest.mark.parametrize("way", ["accumulation", "clipping", "GradScaler", "torch.compile"])
def test_ways_to_train(way: str) -> None:
    model = network()
    masks = masks_of(model)
    first = copy.deepcopy(model.state_dict())
    called: Any = torch.compile(model, backend="aot_eager") if way == "torch.compile" else model
    scaler = torch.amp.GradScaler("cpu", enabled=way == "GradScaler")
    with HeldMasks(model, masks) as held:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            for _ in range(2 if way == "accumulation" else 1):
                with torch.autocast("cpu", torch.bfloat16, enabled=way == "GradScaler"):
                    loss = F.cross_entropy(called(INPUTS).float(), LABELS)
                scaler.scale(loss).backward()
            if way == "clipping":
                pruned = {one: weight.grad[~masks[one]] for one, weight in model.named_parameters() if one in masks}
                assert not any(bool(one.any()) for one in pruned.values())  # they are no part of the norm
                nn.utils.clip_grad_norm_(model.parameters(), 0.01)
            scaler.step(optimizer)
            scaler.update()
        assert held.steps == 3
    for one, mask in masks.items():
        assert torch.equal(model.get_parameter(one)[~mask], first[one][~mask])
        assert not torch.equal(model.get_parameter(one)[mask], first[one][mask])
