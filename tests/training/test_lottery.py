# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Tickets: the ladder of counts, what is pruned, where training starts, controls, what is refused."""

from __future__ import annotations

import itertools
import random
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from small_networks import INPUTS, LABELS, Convolutions, accuracy, lenet, network, trainer
from torch import Tensor, nn

from sparsekernels.training import Lottery, Ticket, kept_after, starting_weights

RATES = {"4": 0.1}


def largest(values: Tensor, count: int) -> Tensor:
    """By sorting, of a vector."""
    order = sorted(range(values.numel()), key=lambda place: -abs(values[place].item()))
    return torch.zeros(values.numel(), dtype=torch.bool).index_fill(0, torch.tensor(order[:count]), True)


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_the_ladder_of_the_paper() -> None:
    """20% a round and 10% in the output layer of LeNet-300-100, as its figures have it."""
    lottery = Lottery(lenet, trainer(), rate=0.2, rates={"5": 0.1}, rounds=20)
    assert sum(lottery.counts(0).values()) == 266_200
    published = {3: "51.28", 7: "21.07", 15: "3.58", 18: "1.85"}
    assert {round: f"{100 * lottery.left(round):.2f}" for round in published} == published
    assert lottery.counts(18) == {"1.weight": 4237, "3.weight": 540, "5.weight": 150}
    assert sum(lottery.counts(3).values()) == 120_422 + 15_360 + 729


def test_counts_are_the_exact_product_rounded_once() -> None:
    draws = random.Random(0)
    for _ in range(300):
        numel, percent, rounds = draws.randrange(10**7), draws.randrange(100), draws.randrange(30)
        kept = kept_after(numel, percent / 100, rounds)
        exact = Fraction(numel) * Fraction(100 - percent, 100) ** rounds
        assert abs(kept - exact) <= Fraction(1, 2)
    assert [kept_after(numel, 0.5, 1) for numel in (1, 3, 5, 7)] == [0, 2, 2, 4]  # halves to the even neighbor
    assert kept_after(10, 0.1, 1) == 9  # 10 * (1 - 0.1) is 9.0 in floats as well; this one is not:
    assert kept_after(10**17 + 10, 0.1, 1) == 9 * (10**16 + 1)


def test_iterative_pruning_by_layers() -> None:
    tickets = list(Lottery(network, trainer(), rates=RATES, rounds=4))
    assert [ticket.name for ticket in tickets] == [f"round-{round:02}" for round in range(5)]
    torch.manual_seed(0)
    initial = network().state_dict()
    assert same(tickets[0].start, initial)
    for before, ticket in itertools.pairwise(tickets):
        for name, mask in ticket.masks.items():
            rate = 0.1 if name == "4.weight" else 0.2
            assert ticket.counts[name] == kept_after(mask.numel(), rate, ticket.round)
            kept = before.masks[name]
            assert torch.equal(mask[kept], largest(before.final[name][kept], ticket.counts[name]))
            assert not mask[~kept].any()
            assert torch.equal(ticket.start[name], initial[name] * mask)
            assert torch.equal(ticket.final[name], ticket.final[name] * mask)
            assert not torch.equal(ticket.final[name], ticket.start[name])
        assert torch.equal(ticket.start["0.bias"], initial["0.bias"])
        numel = sum(mask.numel() for mask in ticket.masks.values())
        assert ticket.left == sum(ticket.counts.values()) / numel


def test_iterative_pruning_globally() -> None:
    """Layers with a rate of their own are by themselves."""
    lottery = Lottery(network, trainer(), scope="global", rates=RATES, rounds=3)
    tickets = list(lottery)
    for before, ticket in itertools.pairwise(tickets):
        names = ["0.weight", "2.weight"]
        count = kept_after(20 * 48 + 48 * 24, 0.2, ticket.round)
        assert sum(ticket.counts[name] for name in names) == count == lottery.counts(ticket.round)["together"]
        left = torch.cat([before.final[name][before.masks[name]] for name in names])
        kept = torch.cat([ticket.masks[name][before.masks[name]] for name in names])
        assert torch.equal(kept, largest(left, count))
        assert ticket.counts["4.weight"] == kept_after(96, 0.1, ticket.round)
    assert tickets[3].counts["0.weight"] / 960 != tickets[3].counts["2.weight"] / 1152


def test_a_rate_of_zero_never_prunes() -> None:
    ticket = Lottery(network, trainer(), rates={"4": 0}, rounds=2, ignore=["2"]).round(2)
    assert ticket.counts == {"0.weight": kept_after(960, 0.2, 2), "4.weight": 96}
    assert "2.weight" not in ticket.masks


@pytest.mark.parametrize("several", [False, True])
def test_rewinding_to_a_later_step(several: bool) -> None:
    def optimizers(model: Any) -> list[torch.optim.Optimizer]:
        matrices, others = ([one for one in model.parameters() if (one.dim() == 2) == is_2d] for is_2d in (True, False))
        if several:
            return [torch.optim.Muon(matrices, lr=1e-2), torch.optim.Adam(others, lr=1e-2)]
        return [torch.optim.Adam(model.parameters(), lr=1e-2)]

    seen: list[tuple[int, dict[str, Tensor]]] = []

    def each_step(model: nn.Module, masks: Any, step: int) -> None:
        seen.append((step, {name: one.detach().clone() for name, one in model.state_dict().items()}))

    lottery = Lottery(Convolutions, trainer(8, optimizers, each_step), rounds=2, rewind_step=3)
    ticket = lottery.round(0)
    step, rewound = seen[2]
    assert step == 2
    assert not same(rewound, ticket.start)
    for round in (1, 2):
        seen.clear()
        ticket = lottery.round(round)
        assert [step for step, _ in seen] == [3, 4, 5, 6, 7]
        masked = {
            name: one * ticket.masks[name.replace("again.w", "first.w")] if "weight" in name and one.dim() > 1 else one
            for name, one in rewound.items()
        }
        assert same(ticket.start, masked)
    assert torch.equal(ticket.start["norm.running_mean"], rewound["norm.running_mean"])
    assert rewound["norm.num_batches_tracked"] == 3
    assert lottery.control("random mask", 1).start["norm.num_batches_tracked"] == 3
    assert lottery.control("reinit", 1).start["norm.num_batches_tracked"] == 0


def test_one_shot_pruning() -> None:
    lottery = Lottery(network, trainer(), rates=RATES, rounds=6)
    whole, ticket = lottery.round(0), lottery.one_shot(6)
    for name, mask in ticket.masks.items():
        count = kept_after(mask.numel(), RATES.get(name.removesuffix(".weight"), 0.2), 6)
        assert torch.equal(mask.flatten(), largest(whole.final[name].flatten(), count))
        assert torch.equal(ticket.start[name], whole.start[name] * mask)
    assert ticket.name == "one-shot-06-large_final-rewind-zero"


def test_other_criteria_and_treatments() -> None:
    lottery = Lottery(network, trainer(), rounds=3)
    whole = lottery.round(0)
    ticket = lottery.one_shot(
        3, criterion="magnitude_increase_same_sign", kept="signed_constant", pruned="freeze_or_zero"
    )
    for name, mask in ticket.masks.items():
        initial, final = whole.start[name], whole.final[name]
        assert not (mask & (initial * final <= 0)).any()
        expected = starting_weights(initial, final, mask, kept="signed_constant", pruned="freeze_or_zero")
        assert torch.equal(ticket.start[name], expected)
        assert ticket.start[name][~mask].count_nonzero() > 0
        assert torch.equal(ticket.final[name][~mask], ticket.start[name][~mask])


def test_frozen_weights_stay_through_rounds() -> None:
    """What was frozen, or zero, when a weight was pruned, it is in all later rounds."""
    tickets = list(Lottery(network, trainer(), rounds=3, pruned="freeze_or_zero", kept="reinit"))
    for before, ticket in itertools.pairwise(tickets[1:]):
        for name, mask in before.masks.items():
            assert torch.equal(ticket.start[name][~mask], before.start[name][~mask])
            assert before.start[name][~mask].count_nonzero() > 0
            assert (before.start[name][~mask] == 0).sum() > 0
            both = mask & ticket.masks[name]
            assert not (ticket.start[name] == before.start[name])[both].any()  # new draws each round


def test_a_function_of_a_users_own_is_a_criterion() -> None:
    def small(initial: Tensor, final: Tensor, count: int) -> Tensor:
        kept = (-final.abs()).topk(count).indices
        return torch.zeros(final.shape, dtype=torch.bool).index_fill(0, kept, True)

    for scope in ("layers", "global"):
        lottery = Lottery(network, trainer(), rounds=2, criterion=small, scope=scope)
        named = Lottery(network, trainer(), rounds=2, criterion="small_final", scope=scope)
        assert same(lottery.round(2).masks, named.round(2).masks)


def test_functions_of_one_name_have_tickets_of_their_own() -> None:
    def keep(initial: Tensor, final: Tensor, count: int) -> Tensor:
        return torch.arange(len(final)) < count

    trainings: list[int] = []
    train = trainer(1, each_step=lambda model, masks, step: trainings.append(step))
    first, lottery = keep, Lottery(network, train, rounds=1)
    ticket = lottery.one_shot(1, criterion=first)
    assert same(lottery.one_shot(1, criterion=first).final, ticket.final)
    assert len(trainings) == 2

    def keep(initial: Tensor, final: Tensor, count: int) -> Tensor:  # type: ignore[no-redef]
        return torch.arange(len(final)) >= len(final) - count

    other = lottery.one_shot(1, criterion=keep)
    assert ticket.masks["0.weight"][0, 0]
    assert not other.masks["0.weight"][0, 0]
    assert len(trainings) == 3
    with pytest.raises(ValueError, match="one_shot: expected criterion to be a function with a name, .*lambda"):
        lottery.one_shot(1, criterion=lambda initial, final, count: keep(initial, final, count))


def test_controls() -> None:
    lottery = Lottery(network, trainer(), rounds=3)
    ticket = lottery.round(3)
    anew, other = lottery.control("reinit", 3), lottery.control("reinit", 3, draw=1)
    assert same(anew.masks, ticket.masks)
    for name, mask in ticket.masks.items():
        assert not (anew.start[name] == ticket.start[name])[mask].any()
        assert not (anew.start[name] == other.start[name])[mask].any()
        assert not anew.final[name][~mask].any()
    assert not torch.equal(anew.start["0.bias"], ticket.start["0.bias"])
    shuffled = lottery.control("random mask", 3)
    assert shuffled.counts == ticket.counts
    for name, mask in shuffled.masks.items():
        assert torch.equal(shuffled.start[name], lottery.round(0).start[name] * mask)
        assert not torch.equal(mask, ticket.masks[name])
    assert same(lottery.control("random mask", 3, draw=1).masks, shuffled.masks) is False


@pytest.mark.parametrize(("kept", "pruned"), [("signed_constant", "zero"), ("rewind_or_zero", "freeze_or_zero")])
def test_random_masks_are_treated_as_the_ticket_is(kept: str, pruned: str) -> None:
    lottery = Lottery(network, trainer(), rounds=2, kept=kept, pruned=pruned, rewind_step=3)
    before, shuffled = lottery.round(1), lottery.control("random mask", 2)
    rewound = lottery._rewound()
    for name, mask in shuffled.masks.items():
        expected = starting_weights(rewound[name], before.final[name], mask, kept=kept, pruned=pruned)
        assert torch.equal(shuffled.start[name], expected)
        assert not torch.equal(expected[mask], rewound[name][mask])


@pytest.mark.parametrize("name", ["bias", "running_mean"])
def test_what_is_no_number_any_more_is_no_ticket(name: str, tmp_path: Path) -> None:
    def factory() -> nn.Module:
        model = Convolutions()
        model.register_buffer("attention", torch.full((2, 2), -torch.inf))
        return model

    def train(model: Any, masks: Any, start_step: int) -> None:
        trainer(1)(model, masks, start_step)
        with torch.no_grad():
            getattr(model.norm, name)[0] = torch.nan if bad else 0.0

    bad = True
    with pytest.raises(ValueError, match=f"expected finite weights after round-00, got NaN or .* 'norm.{name}'"):
        Lottery(factory, train, folder=tmp_path).round(0)
    assert not list(tmp_path.glob("round*"))
    bad = False
    Lottery(factory, train, folder=tmp_path).round(0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_convolutions_dtypes_and_tied_weights(dtype: torch.dtype) -> None:
    tickets = list(Lottery(lambda: Convolutions(dtype), trainer(4), rounds=2))
    assert list(tickets[0].masks) == ["conv.weight", "first.weight", "out.weight"]  # one for both layers
    for ticket in tickets:
        for name, mask in ticket.masks.items():
            assert ticket.counts[name] == kept_after(mask.numel(), 0.2, ticket.round)
            assert ticket.final[name].dtype == dtype
            assert not ticket.final[name][~mask].any()
        assert torch.equal(ticket.final["again.weight"], ticket.final["first.weight"])
    kept = tickets[1].masks["conv.weight"]
    assert torch.equal(kept.flatten(), largest(tickets[0].final["conv.weight"].flatten(), 43))


def test_a_ticket_learns() -> None:
    """A quarter of the weights, and the task's four classes are told apart nearly as well as by all of them."""
    lottery = Lottery(network, trainer(80), rounds=6, rates=RATES)
    whole, ticket = lottery.round(0), lottery.round(6)
    assert 0.26 < ticket.left < 0.29
    assert whole.result["accuracy"] > 0.9
    assert ticket.result["accuracy"] > 0.85
    chance = LABELS.bincount().max().item() / len(INPUTS)
    assert chance < 0.4
    model = network()
    model.load_state_dict(ticket.final)
    assert accuracy(model) == ticket.result["accuracy"]


def test_results_depend_on_the_seed_alone() -> None:
    def all_of(seed: int) -> list[Ticket]:
        lottery = Lottery(network, trainer(), rounds=2, seed=seed)
        return [lottery.control("reinit", 2), lottery.round(2), lottery.one_shot(1)]

    state = torch.get_rng_state(), random.getstate()
    first = all_of(3)
    assert torch.equal(torch.get_rng_state(), state[0])
    assert random.getstate() == state[1]
    torch.manual_seed(99)
    for ticket, again in zip(first, all_of(3), strict=True):
        assert same(ticket.final, again.final)
    assert not same(all_of(4)[1].final, first[1].final)


def test_trainings_of_a_round_are_seeded_alike() -> None:
    seeds: list[int] = []
    train = trainer(1, each_step=lambda model, masks, step: seeds.append(torch.initial_seed()))
    lottery = Lottery(network, train, rounds=2)
    tickets = [lottery.round(2), lottery.control("reinit", 2), lottery.control("random mask", 2), lottery.one_shot(2)]
    assert [ticket.round for ticket in tickets] == [2, 2, 2, 2]
    assert seeds[2:] == [seeds[2]] * 4
    assert len(set(seeds)) == 3


def test_bad_input_is_refused_in_words() -> None:
    def refused(match: str, kind: type[Exception] = ValueError, factory: Any = network, **given: Any) -> None:
        with pytest.raises(kind, match=match):
            Lottery(factory, given.pop("train", trainer()), **given)

    refused("expected rate from 0 on and less than 1, got 1.0", rate=1)
    refused("expected rate to be a number, got str", TypeError, rate="0.2")
    refused(r"expected rates\['4.weight'\] from 0 on and less than 1, got -0.1", rates={"4": -0.1})
    refused("expected rates of layers that are pruned, got one of '1'", rates={"1": 0.1})
    refused("expected kept to be 'rewind', .*", kept=["rewind"])
    refused("expected pruned to be 'zero', .*", pruned={})
    refused("expected scope to be 'layers' or 'global', got 'all'", scope="all")
    refused("expected criterion to be a function, 'large_final', .*, got 'final'", criterion="final")
    refused("expected kept to be 'rewind', .*, got 'stay'", kept="stay")
    refused("expected rounds from 0 on, got -1", rounds=-1)
    refused("expected rounds that leave weights in each layer, got 30, which leave none in '4.weight'", rounds=30)
    refused("expected train to be a function, got int", TypeError, train=1)
    refused("expected factory to be a function that makes a model, got Sequential", TypeError, network())
    refused("expected factory to make a torch.nn.Module, got int", TypeError, lambda: 1)
    refused("expected a model with a Linear, Conv1d or Conv2d layer to prune, got none", factory=nn.ReLU)
    refused("expected ignore of names of modules, got 'fc'", ignore=["fc"])
    refused("expected ignore to be a collection of names, got '0'", TypeError, ignore="0")
    refused("expected rates to be a mapping of layer names, got float", TypeError, rates=0.1)
    refused("expected seed to be an int, got float", TypeError, seed=0.5)
    refused("on the CPU, whose draws .* got 'weight' on meta", factory=lambda: nn.Linear(2, 2, device="meta"))
    lottery = Lottery(network, trainer(), rounds=2)
    for call, match in (
        (lambda: lottery.round(3), "round: expected round up to 2, .* got 3"),
        (lambda: lottery.one_shot(0), "one_shot: expected round from 1 on, got 0"),
        (lambda: lottery.control("reset", 1), "control: expected kind to be 'reinit' or 'random mask', got 'reset'"),
        (lambda: lottery.one_shot(1, criterion="?"), "expected criterion to be a function"),
    ):
        with pytest.raises(ValueError, match=match):
            call()


def test_trainings_that_are_none_are_refused() -> None:
    def moves(model: nn.Module, masks: Any, step: int) -> None:
        with torch.no_grad():
            model[0].weight.add_(1)  # type: ignore[index,union-attr,operator]

    def diverges(model: nn.Module, masks: Any, step: int) -> None:
        with torch.no_grad():
            model[2].weight[0, 0] = float("inf") if step == 1 else 0  # type: ignore[index,union-attr,operator]

    def returns(result: Any) -> Any:
        return lambda model, masks, start: (trainer(1)(model, masks, start), result)[1]

    for train, kind, match in (
        (lambda model, masks, start: None, RuntimeError, "make steps of a torch.optim.Optimizer .* got none"),
        (trainer(2, each_step=moves), RuntimeError, r"pruned weights to stay .* got others in \['0.weight'\]"),
        (
            trainer(2, each_step=diverges),
            ValueError,
            "finite weights after round-00, got NaN or infinity in '2.weight'",
        ),
        (returns(object()), TypeError, "what train returns to be made of None, .* got object in it"),
    ):
        with pytest.raises(kind, match=match):
            Lottery(network, train, rounds=1).round(1)
    with pytest.raises(RuntimeError, match="at least rewind_step, 5, steps in train, got 4"):
        Lottery(network, trainer(4), rewind_step=5).round(0)
