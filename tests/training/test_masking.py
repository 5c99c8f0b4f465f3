# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Scripts written for sparse_learning run with the import changed, and functions of its form work, exactly."""

from __future__ import annotations

import argparse
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from training_nets import batches, network, perceptron, sgd

from sparsekernels.training import CosineDecay, LinearDecay, Masking, add_sparse_args

GROWTH = ("momentum", "momentum_neuron", "random", "gradient", "global_momentum_growth")
PRUNE = ("magnitude", "SET", "global_magnitude")
REDISTRIBUTION = ("momentum", "magnitude", "nonzero", "none")


def run(mask: Masking, model: nn.Module, steps: int = 3, epochs: int = 3) -> None:
    data = batches(model)
    for epoch in range(epochs):
        for _ in range(steps):
            inputs, labels = next(data)
            mask.optimizer.zero_grad()
            F.cross_entropy(model(inputs), labels).backward()
            mask.step()
        if epoch + 1 < epochs:
            mask.at_end_of_epoch()


@pytest.mark.parametrize("decay", ["cosine", "linear"])
def test_the_ten_lines(decay: str) -> None:
    parser = argparse.ArgumentParser()
    add_sparse_args(parser)
    args = parser.parse_args(["--density", "0.2", "--growth", "momentum", "--redistribution", "none"])
    assert (args.prune, args.prune_rate, args.dense, args.verbose) == ("magnitude", 0.5, False, False)
    assert parser.parse_args(["--prune", "mine"]).prune == "mine"  # whom the script gives a function
    model = network()
    optimizer = sgd(model)
    schedule = CosineDecay(args.prune_rate, 9) if decay == "cosine" else LinearDecay(args.prune_rate, 9)
    mask = Masking(
        optimizer,
        schedule,
        prune_rate=args.prune_rate,
        prune_mode=args.prune,
        growth_mode=args.growth,
        redistribution_mode=args.redistribution,
        verbose=args.verbose,
        kernels=False,
    )
    mask.add_module(model, density=args.density)
    total = sum(one.numel() for one in mask.masks.values())
    before = {name: one.clone() for name, one in mask.masks.items()}
    assert list(before) == ["0.weight", "3.weight", "7.weight", "9.weight"]
    run(mask, model)
    assert (mask.steps, mask.updates) == (9, 2)
    assert sum(int(one.sum()) for one in mask.masks.values()) == round(0.2 * total)
    assert any(not torch.equal(one, before[name]) for name, one in mask.masks.items())
    assert mask.prune_rate == pytest.approx(0.005 if decay == "cosine" else 0.0)
    parameters = dict(model.named_parameters())
    assert not any(parameters[name].detach()[~one].any() for name, one in mask.masks.items())


@pytest.mark.parametrize("growth", GROWTH)
@pytest.mark.parametrize("prune", PRUNE)
@pytest.mark.parametrize("redistribution", REDISTRIBUTION)
def test_every_mode_is_exact(growth: str, prune: str, redistribution: str) -> None:
    model = perceptron()
    mask = Masking(
        sgd(model),
        CosineDecay(0.5, 6),
        prune_mode=prune,
        growth_mode=growth,
        redistribution_mode=redistribution,
        prune_every_k_steps=2,
        kernels=False,
    )
    mask.add_module(model, 0.2, sparse_init="linear")
    run(mask, model, steps=6, epochs=1)
    assert mask.updates == 3
    assert mask.total_nonzero == 120


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"growth_mode": "momentums"}, "expected growth_mode to be 'random', 'momentum', 'momentum_neuron'"),
        ({"prune_mode": "threshold"}, "expected prune_mode to be 'magnitude', 'SET', 'global_magnitude'"),
        ({"redistribution_mode": "all"}, "expected redistribution_mode to be 'momentum', 'magnitude'"),
    ],
)
def test_unknown_modes_name_the_others(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Masking(sgd(perceptron()), CosineDecay(0.5, 5), **options)


def test_functions_of_its_form_are_called_as_it_calls_them() -> None:
    seen: list[str] = []

    def my_redistribution(masking: Masking, name: str, weight: nn.Parameter, mask: Tensor) -> float:
        seen.append(f"share {name}")
        momentum = masking.optimizer.state[weight]["momentum_buffer"]
        return momentum[mask.bool()].abs().sum().item()

    def my_pruning(masking: Masking, mask: Tensor, weight: Tensor, name: str) -> Tensor:
        seen.append(f"prune {name} {masking.name2nonzeros[name]} {masking.name2zeros[name]}")
        assert not (weight[mask == 0] != 0).any()
        return mask * (weight.abs() > 0.05)  # a threshold: as many as there are

    def my_growth(masking: Masking, name: str, new_mask: Tensor, total_regrowth: int, weight: Tensor) -> Tensor:
        seen.append(f"grow {name}")
        missing = (~new_mask).flatten().nonzero()[:, 0]
        extra = 3 if name == "0.weight" else -2  # about as many
        return new_mask.flatten().index_fill(0, missing[: max(total_regrowth + extra, 0)], True).view_as(new_mask)

    model = perceptron()
    mask = Masking(
        sgd(model),
        CosineDecay(0.5, 6),
        prune_mode=my_pruning,
        growth_mode=my_growth,
        redistribution_mode=my_redistribution,
        kernels=False,
    )
    mask.add_module(model, 0.2)
    run(mask, model, steps=2, epochs=3)
    assert mask.total_nonzero == 120
    assert seen[:2] == ["prune 0.weight 96 384", "prune 2.weight 24 96"]
    assert seen[2:6] == ["share 0.weight", "share 2.weight", "grow 0.weight", "grow 2.weight"]
    assert mask.total_removed > 0


def test_several_modules_share_a_budget() -> None:
    first, second = perceptron(0), perceptron(1)
    optimizer = torch.optim.SGD([*first.parameters(), *second.parameters()], lr=0.05, momentum=0.9)
    mask = Masking(optimizer, CosineDecay(0.5, 6), kernels=False)
    mask.add_module(first, 0.2)
    with pytest.raises(ValueError, match="expected weights of other names than before, got '0.weight' again"):
        mask.add_module(second, 0.2)
    wrapped = nn.ModuleDict({"second": second})
    mask.add_module(wrapped, 0.4)
    assert mask.total_nonzero == 120 + 240
    assert mask.modules == [first, wrapped]


def test_what_is_left_out() -> None:
    model = nn.Sequential(nn.Embedding(10, 6), nn.LSTM(6, 5), nn.Linear(5, 3), nn.LayerNorm([2, 3]))
    mask = Masking(sgd(model), CosineDecay(0.5, 6), kernels=False)
    mask.add_module(model, 0.5, remove_param_names=["3."])
    assert list(mask.masks) == ["0.weight", "1.weight_ih_l0", "1.weight_hh_l0", "2.weight"]
    mask.remove_weight("2")
    mask.remove_weight_partial_name("_hh_")
    mask.remove_type(nn.Embedding)
    assert list(mask.masks) == ["1.weight_ih_l0"]
    with pytest.raises(ValueError, match="expected names of masked weights"):
        mask.remove_weight("2")


def test_masks_of_what_is_not_zero() -> None:
    model = perceptron()
    with torch.no_grad():
        model[0].weight.mul_(torch.rand(24, 20) < 0.3)
    count = int((model[0].weight != 0).sum())
    mask = Masking(sgd(model), CosineDecay(0.5, 6), redistribution_mode="none", kernels=False)
    mask.add_module(model, 0.3, sparse_init="resume")
    assert mask.name2nonzeros == {"0.weight": count, "2.weight": 120}
    run(mask, model, steps=2, epochs=2)
    assert mask.name2nonzeros == {"0.weight": count, "2.weight": 120}


def test_bad_modules_change_nothing() -> None:
    model = perceptron()
    mask = Masking(sgd(model), CosineDecay(0.5, 6), kernels=False)
    for arguments, error, message in (
        ((model, 0.0), ValueError, "Masking.add_module: expected density above 0"),
        ((model, 0.5, "random"), ValueError, "expected sparse_init to be 'constant', 'uniform', 'linear'"),
        ((perceptron(), 0.5), ValueError, "expected an optimizer of this model's parameters"),
        ((nn.BatchNorm1d(3), 0.5), ValueError, "expected a model with layers to prune"),
        (("model", 0.5), TypeError, "expected module to be a torch.nn.Module"),
    ):
        with pytest.raises(error, match=message):
            mask.add_module(*arguments)  # type: ignore[arg-type]
    assert mask.masks == {}
    assert model[0].weight.all()
    with pytest.raises(TypeError, match="expected prune_rate to be a number or to have step"):
        Masking(sgd(model), 0.5)  # type: ignore[arg-type]


def test_what_verbose_prints(capsys: pytest.CaptureFixture[str]) -> None:
    model = perceptron()
    mask = Masking(sgd(model), CosineDecay(0.5, 6), verbose=True, kernels=False)
    mask.add_module(model, 0.2)
    printed = capsys.readouterr().out
    assert "0.weight: 96 of 480 nonzeros, density 0.2000" in printed
    assert "all: 120 nonzeros, density 0.2000, prune rate 0.5000" in printed
