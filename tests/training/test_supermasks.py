# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Supermasks: found by a criterion, learned, saved as a mask and a seed."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_networks import INPUTS, LABELS, Convolutions, accuracy, lenet, network, trainer
from torch import nn

import sparsekernels as sk
from sparsekernels.training import LearnedSupermask, Lottery, Supermask, criterion, one_shot_supermask
from sparsekernels.training.storage import read, save_atomically


def initial_of(factory: Any, seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return dict(factory().state_dict())


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("weights", ["rewind", "signed_constant"])
def test_one_shot(weights: str, rescale: bool) -> None:
    final = Lottery(network, trainer(60), seed=5).round(0).final
    supermask = one_shot_supermask(
        network, final, {"0": 0.2, "2": 0.3, "4": 0.5}, weights=weights, rescale=rescale, seed=5
    )
    assert supermask.counts == {"0.weight": 192, "2.weight": 346, "4.weight": 48}
    assert supermask.left == (192 + 346 + 48) / (960 + 1152 + 96)
    initial, made = initial_of(network, 5), supermask.network(network).state_dict()
    for name, value in initial.items():
        if name not in supermask.masks:
            assert torch.equal(made[name], value)
            continue
        mask = criterion("large_final_same_sign")(value, final[name], supermask.counts[name])
        assert torch.equal(supermask.masks[name], mask)
        under = value if weights == "rewind" else value.sign() * value.double().std(correction=0).float()
        assert torch.equal(made[name], under * (mask.numel() / int(mask.sum()) if rescale else 1) * mask)


def test_a_one_shot_supermask_beats_chance() -> None:
    """Untrained networks under the masks of criteria: best is that of large weights which kept their sign."""
    chance = LABELS.bincount().max().item() / len(INPUTS)
    names = "large_final_same_sign", "large_final", "random"
    found = torch.zeros(len(names), 4)
    for seed in range(4):
        final = Lottery(network, trainer(100), seed=seed).round(0).final
        for place, name in enumerate(names):
            options: dict[str, Any] = {"criterion": name, "weights": "signed_constant", "seed": seed}
            found[place, seed] = accuracy(one_shot_supermask(network, final, 0.5, **options).network(network))
    same_sign, large_final, random = found
    assert same_sign.min() > 1.8 * chance
    assert (same_sign > large_final + 0.1).all()
    assert random.max() < 1.2 * chance


@pytest.mark.parametrize(
    "factory", [network, Convolutions, lambda: Convolutions(torch.bfloat16), lambda: nn.Linear(5, 3)]
)
def test_a_file_of_a_mask_and_a_seed(factory: Any, tmp_path: Path) -> None:
    final = initial_of(factory, 1)
    path = tmp_path / "mask.pt"
    for weights, name in (("rewind", "large_final_same_sign"), ("signed_constant", "random")):
        first = one_shot_supermask(factory, final, 0.3, criterion=name, weights=weights, rescale=True, seed=2)
        first.save(path)
        again = Supermask.load(path)
        for one in dataclasses.fields(first):
            if one.name != "masks":
                assert getattr(again, one.name) == getattr(first, one.name)
        made, other = first.network(factory).state_dict(), again.network(factory).state_dict()
        assert all(torch.equal(value, other[name]) for name, value in made.items())
        assert other.keys() == final.keys()
    assert [one.name for one in tmp_path.iterdir()] == ["mask.pt"]


def test_a_file_has_no_weights(tmp_path: Path) -> None:
    """LeNet-300-100 is 1.07 MB, its masks 33 KB."""
    supermask = one_shot_supermask(lenet, initial_of(lenet, 1), 0.1, seed=0, fill=True)
    supermask.save(tmp_path / "mask.pt")
    assert 266_200 / 8 < (tmp_path / "mask.pt").stat().st_size < 266_200 / 8 + 6_000


def test_another_network_is_refused(tmp_path: Path) -> None:
    supermask = one_shot_supermask(network, initial_of(network, 1), 0.3)
    for factory, match in (
        (lambda: nn.Sequential(nn.Linear(20, 48)), "expected a weight '2.weight' of shape .*, got none of that name"),
        (lambda: nn.Sequential(nn.Linear(20, 40)), r"'0.weight' of shape \[48, 20\], got one of \[40, 20\]"),
        (
            lambda: network().double(),
            "expected initial weights of SHA-256 .*another architecture, dtype or initializer",
        ),
        (lambda: nn.Sequential(*network(), nn.BatchNorm1d(4)), "expected initial weights of SHA-256"),
        (lambda: nn.Sequential(torch.rand(1) and nn.Identity(), network())[1], "expected initial weights of SHA-256"),
    ):
        with pytest.raises(ValueError, match=match):
            supermask.network(factory)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected initial weights of SHA-256"):
        dataclasses.replace(supermask, seed=1).network(network)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mask.pt"
    with pytest.raises(FileNotFoundError):
        Supermask.load(path)
    path.write_bytes(b"mask")
    with pytest.raises(ValueError, match="Supermask.load: expected .*mask.pt to be a file of ours"):
        Supermask.load(path)
    one_shot_supermask(network, initial_of(network, 1), 0.3).save(path)
    content = torch.load(path, weights_only=True)
    content["masks"]["0.weight"][3] ^= 1
    save_atomically(content, path)
    with pytest.raises(ValueError, match=r"expected \{'0.weight': 288, .* weights in .*mask.pt, got"):
        Supermask.load(path)
    content["masks"]["0.weight"] = content["masks"]["0.weight"][1:]
    save_atomically(content, path)
    with pytest.raises(ValueError, match=r"expected 120 bytes for a mask of shape \[48, 20\]"):
        Supermask.load(path)
    save_atomically({"kind": "ticket"}, path)
    with pytest.raises(ValueError, match="expected .* to hold a supermask, got something else"):
        Supermask.load(path)


@pytest.mark.parametrize("weights", ["rewind", "signed_constant"])
def test_parts_that_do_not_fit_are_refused(weights: str, tmp_path: Path) -> None:
    path = tmp_path / "mask.pt"
    made = one_shot_supermask(network, initial_of(network, 1), 0.3, weights=weights)
    made.save(path)
    content = read("test", path)
    for key in content:
        save_atomically({name: value for name, value in content.items() if name != key}, path)
        with pytest.raises(ValueError, match=r"Supermask.load: expected .*mask.pt to hold a supermask"):
            Supermask.load(path)
    one = dict.fromkeys(made.masks, 0.1)
    changes: list[dict[str, Any]] = [{"rescale": "yes"}, {"seed": "1"}, {"weights": "reinit"}, {"deviations": None}]
    changes += [
        {"deviations": {} if weights == "signed_constant" else one},
        {"masks": {"0.weight": None}},
        {"masks": 1},
    ]
    changes += [{"deviations": {**one, "0.weight": value}} for value in (0.0, "1", -1.0, float("nan"))]
    changes += [{"shapes": {}}, {"shapes": 3}, {"shapes": {name: ["1"] for name in one}}, {"initial": 1}]
    for change in changes:
        save_atomically({**content, **change}, path)
        with pytest.raises(ValueError, match=r"Supermask(\.load)?: expected"):
            Supermask.load(path)
    for change in changes[:5]:
        with pytest.raises((TypeError, ValueError), match="Supermask: expected"):
            dataclasses.replace(made, **change)
    if weights == "signed_constant":
        doubled = dataclasses.replace(made, deviations={name: 2 * one for name, one in made.deviations.items()})
        with pytest.raises(ValueError, match="expected the deviation of '0.weight' to be that of its initial weights"):
            doubled.network(network)


def learned(factory: Any = network, steps: int = 150, **options: Any) -> LearnedSupermask:
    model = LearnedSupermask(factory, **options)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    order = torch.Generator().manual_seed(0)
    for _ in range(steps):
        places = torch.randint(512, (128,), generator=order)
        optimizer.zero_grad()
        F.cross_entropy(model(INPUTS[places]), LABELS[places]).backward()
        optimizer.step()
    return model


def test_masks_are_learned_and_nothing_else() -> None:
    model = learned(weights="signed_constant", seed=3)
    before = LearnedSupermask(network, weights="signed_constant", seed=3)
    assert accuracy(model) > 0.8
    assert accuracy(before) < 0.6
    frozen = before.model.state_dict()
    assert all(torch.equal(value, frozen[name]) for name, value in model.model.state_dict().items())
    assert not any(one.requires_grad for one in model.model.parameters())
    supermask = model.supermask()
    assert supermask.network(network)(INPUTS).equal(model.eval()(INPUTS))  # the same bits
    assert 0.2 < supermask.left < 0.9
    assert accuracy(supermask.network(network)) > 0.8


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_gradient_is_straight_through(dtype: torch.dtype, rescale: bool) -> None:
    """d loss / d m = d loss / d weight * weight * numel / ones * p (1 - p)"""
    model = LearnedSupermask(lambda: nn.Linear(20, 4, dtype=dtype), rescale=rescale, probability=0.3)
    state = copy.deepcopy(model.state_dict())
    inputs = INPUTS.to(dtype)
    model(inputs).square().sum().backward()
    model.load_state_dict(state)
    (mask,) = model._draw()
    assert 10 < int(mask.sum()) < 40
    scale = 80 / int(mask.sum()) if rescale else 1.0
    weight = (model.model.weight * scale * mask).detach().requires_grad_()
    F.linear(inputs, weight, model.model.bias).square().sum().backward()
    expected = weight.grad * model.model.weight * scale * 0.3 * 0.7
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2}[dtype]
    assert (model.scores[0].grad - expected).abs().max() <= tolerance * expected.abs().max()
    assert model.scores[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_draws_are_bernoulli_and_the_forward_is_exactly_masked() -> None:
    model = LearnedSupermask(lambda: nn.Linear(20, 4, bias=False), rescale=False, probability=0.3)
    seen = []
    for _ in range(200):
        made = model(torch.eye(20)).t()
        mask = made != 0
        assert torch.equal(made, model.model.weight * mask)
        seen.append(mask)
    kept = torch.stack(seen).float().mean(0)
    assert abs(kept.mean() - 0.3) < 0.02  # 4.9 standard deviations
    assert (kept - 0.3).abs().max() < 0.17  # of one weight 5.2 of them
    again = LearnedSupermask(lambda: nn.Linear(20, 4, bias=False), rescale=False, probability=0.3)
    assert torch.equal(again(torch.eye(20)).t() != 0, seen[0])


def test_training_is_resumed_with_the_same_bits(tmp_path: Path) -> None:
    def trained(parts: list[int]) -> LearnedSupermask:
        model, state = LearnedSupermask(network), None
        for steps in parts:
            model = LearnedSupermask(network)
            if state is not None:
                model.load_state_dict(torch.load(tmp_path / "state.pt"))
            optimizer = torch.optim.SGD(model.parameters(), lr=10)
            for _ in range(steps):
                optimizer.zero_grad()
                F.cross_entropy(model(INPUTS), LABELS).backward()
                optimizer.step()
            state = model.state_dict()
            torch.save(state, tmp_path / "state.pt")
        return model

    for one, other in zip(trained([6]).scores, trained([2, 4]).scores, strict=True):
        assert torch.equal(one, other)
    other = LearnedSupermask(network, seed=1)
    with pytest.raises(ValueError, match="LearnedSupermask: expected a state with seed 1, got 0"):
        other.load_state_dict(torch.load(tmp_path / "state.pt"))
    assert not other.scores[0].any()  # nothing of it was taken
    other = LearnedSupermask(network, rescale=False)
    with pytest.raises(ValueError, match="LearnedSupermask: expected a state with rescale False, got True"):
        other.load_state_dict(torch.load(tmp_path / "state.pt"))
    assert not other.scores[0].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_convolutions_and_tied_weights(dtype: torch.dtype) -> None:
    """Two layers of one weight have one mask; BatchNorm without running statistics is as initialized."""

    def factory() -> nn.Module:
        model = Convolutions(dtype)
        model.norm = nn.BatchNorm2d(6, dtype=dtype, track_running_stats=False)
        return model

    model = learned(factory, steps=20)
    assert model.names == ("conv.weight", "first.weight", "out.weight")
    made = model.supermask().network(factory)
    assert made.first.weight is made.again.weight  # type: ignore[union-attr]
    assert made.eval()(INPUTS).equal(model.eval()(INPUTS))
    with pytest.raises(ValueError, match=r"as initialized, got another 'norm.running_mean', which a mask and a seed"):
        learned(Convolutions, steps=1).supermask()


def test_counts_and_draws_of_learned_masks() -> None:
    model = learned(steps=30)
    exact = model.supermask(counts={"0.weight": 100, "2.weight": 1, "4.weight": 96})
    assert exact.counts == {"0.weight": 100, "2.weight": 1, "4.weight": 96}
    scores = model.scores[0].detach()
    assert scores[exact.masks["0.weight"]].min() >= scores[~exact.masks["0.weight"]].max()
    first, again, other = (model.supermask(draw=draw) for draw in (1, 1, 2))
    assert torch.equal(first.masks["0.weight"], again.masks["0.weight"])
    assert not torch.equal(first.masks["0.weight"], other.masks["0.weight"])


def test_the_result_can_be_converted() -> None:
    model = learned(steps=20).supermask(counts={"0.weight": 100, "2.weight": 100, "4.weight": 30}).network(network)
    expected = model(INPUTS)
    report = sk.convert(model.eval(), INPUTS)
    assert "of 3 layers are converted" in str(report)
    assert (model(INPUTS) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_bad_input_is_refused_in_words() -> None:
    final = initial_of(network, 1)
    for call, kind, match in (
        (
            lambda: one_shot_supermask(network, final, 0.0),
            ValueError,
            "left of '0' to be more than 0 and at most 1, got 0",
        ),
        (lambda: one_shot_supermask(network, final, {"0": 0.1}), TypeError, "left of '2' to be a number, got NoneType"),
        (
            lambda: one_shot_supermask(network, final, {"0": 1, "2": 1, "4": 1, "6": 1}),
            ValueError,
            "expected shares of layers that are pruned, got one of '6'",
        ),
        (lambda: one_shot_supermask(network, final, 0.005), ValueError, "left to keep a weight of '4', got 0 of 96"),
        (lambda: one_shot_supermask(network, {}, 0.5), ValueError, r"expected final to have '0.weight' of \[48, 20\]"),
        (lambda: one_shot_supermask(network, 1, 0.5), TypeError, "final to be a module or its state_dict, got int"),  # type: ignore[arg-type]
        (
            lambda: one_shot_supermask(network, final, 0.9),
            ValueError,
            "expected count up to .*, the weights of that sign",
        ),
        (lambda: LearnedSupermask(network, probability=1), ValueError, "expected probability less than 1, got 1"),
        (
            lambda: LearnedSupermask(network, weights="reinit"),
            ValueError,
            "weights to be 'rewind' or 'signed_constant'",
        ),
        (lambda: LearnedSupermask(nn.ReLU), ValueError, "expected a model with a Linear, Conv1d or Conv2d layer"),
        (
            lambda: LearnedSupermask(network).supermask(counts={}, draw=1),
            ValueError,
            "expected counts or draw, got both",
        ),
        (lambda: LearnedSupermask(network).supermask(counts={"0": 1}), ValueError, r"expected counts of \['0.weight'"),
        (
            lambda: LearnedSupermask(lambda: nn.Linear(2, 2)).supermask(counts={"weight": 5}),
            ValueError,
            "expected count from 0 to 4, got 5",
        ),
    ):
        with pytest.raises(kind, match=match):
            call()
    with pytest.raises(ValueError, match="expected scores above 0, as training makes them, got none"):
        LearnedSupermask(network).supermask()
    assert LearnedSupermask(network, probability=0.51).supermask().left == 1
    model = LearnedSupermask(network)
    with torch.no_grad():
        model.scores[1][0, 0] = float("nan")
    with pytest.raises(ValueError, match="expected finite scores, got NaN or infinity for '2.weight'"):
        model.supermask()
