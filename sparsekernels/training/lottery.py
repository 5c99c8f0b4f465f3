# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Lottery tickets: train, prune, rewind, repeat; one-shot pruning and controls beside it; all of it can be resumed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .criteria import Criterion, check_criterion, choose, criterion, name_of
from .held import HeldMasks, weights_of
from .ladder import exact_rate, kept_after
from .storage import State, build, check_integer, checksum, derived, is_finite, plain, seeded, snapshot
from .tickets import Ticket, Tickets
from .treatments import check_treatments, starting_weights

Train = Callable[[nn.Module, HeldMasks, int], Any]
"""(model, masks, start_step) -> result."""

_Way = tuple[str | Criterion, str, str]
"""Criterion, and what becomes of kept and of pruned weights."""

TOGETHER = "together"
"""The group of the layers that are pruned globally."""


class Lottery:
    """Iterative magnitude pruning with rewinding, one-shot pruning and their controls.

        w0 = factory()                      wk = w0 after k = rewind_step steps
        m[0] = 1,  w[0] = train(w0)
        m[r] = of the weights in m[r-1] the kept_after(numel, rate, r) largest |w[r-1]|,  w[r] = train(m[r] * wk)

    `for ticket in Lottery(...)` trains round after round, from 0, the whole network, to `rounds`. Every training is
    seeded by `seed` and what it is, so it has the same result whatever ran before. With a folder, each is a file, which
    is written at once when it has ended; what is there already is read and not trained again. A process that is killed
    and started again goes on behind its last finished training, with the same bits, as far as `train` has the same
    result when it is called again.

    `train(model, masks, start_step)` trains the model in place, from that step on (of the data and of schedules), and
    returns what is to be kept: None, numbers, str or tensors, in dicts and lists. It makes its optimizers as always:
    the masks hold by themselves, for every torch.optim.Optimizer (see `HeldMasks`). torch's, Python's and numpy's
    generators are seeded before it is called; torch.initial_seed() is that seed, the same for all tickets of a round.

    Args:
        factory: Makes the model, on the CPU. It is called behind torch.manual_seed(seed).
        train: See above. Whether it, or what of the model has no parameters, is as it was when a folder is resumed is
            not known.
        rate: The share of the weights left that a round prunes, in each layer.
        rates: Other rates by layer name; 0 prunes a layer never. The paper has half the rate in the output layer.
        rounds: How many rounds of pruning; more can be asked for later, in the same folder.
        scope: "layers", or "global": layers without a rate of their own are pruned together, the least weights of all.
        rewind_step: Which optimizer step of round 0 the weights are rewound to. 0: to their initialization.
        criterion: What is kept: a name of `CRITERIA`, or a function `(initial, final, count) -> mask` of vectors, the
            weights that are left of a layer, or of all layers one after the other. Tickets of functions are told apart
            by what these compute with: their code, defaults, closures, and global variables.
        kept, pruned: What the kept weights start from and the pruned ones stay at; see `starting_weights`.
        fill: See `criterion`.
        ignore: Names of layers, or of modules with all of their layers, that are not pruned and not counted.
        device: Where models are trained.
        seed: Of everything random.
        folder: Where the files are; it is made. None: trainings are kept in memory.

    Raises:
        TypeError: For arguments of another type, or a criterion with something, such as a file, in its closure of which
            it cannot be told whether it is the same when resumed.
        ValueError: For rates outside of [0, 1), names that are no layer's, an unknown scope, criterion or treatment, a
            model without layers to prune, rounds that leave nothing of a layer, or a folder with another experiment.
            When training: for a result that cannot be saved (TypeError), weights, biases or buffers that are not finite
            any more, pruned weights that have moved or no steps of an optimizer (RuntimeError). Then nothing is saved.

    Source:
        Frankle & Carbin 2019, "The lottery ticket hypothesis", arXiv 1803.03635. Late rewinding: Frankle et al. 2019,
        "Stabilizing the lottery ticket hypothesis", arXiv 1903.01611.
    """

    def __init__(
        self,
        factory: Callable[[], nn.Module],
        train: Train,
        *,
        rate: float = 0.2,
        rates: Mapping[str, float] | None = None,
        rounds: int = 15,
        scope: str = "layers",
        rewind_step: int = 0,
        criterion: str | Criterion = "large_final",
        kept: str = "rewind",
        pruned: str = "zero",
        fill: bool = False,
        ignore: Collection[str] = (),
        device: torch.device | str = "cpu",
        seed: int = 0,
        folder: str | Path | None = None,
    ) -> None:
        if not callable(train):
            raise TypeError(f"Lottery: expected train to be a function, got {type(train).__name__}")
        if scope not in ("layers", "global"):
            raise ValueError(f"Lottery: expected scope to be 'layers' or 'global', got {scope!r}")
        check_treatments("Lottery", kept, pruned)
        check_criterion("Lottery", criterion)
        self.factory, self.train, self.device = factory, train, torch.device(device)
        self.rounds = check_integer("Lottery", "rounds", rounds)
        self.rewind_step = check_integer("Lottery", "rewind_step", rewind_step)
        self.seed = check_integer("Lottery", "seed", seed)
        self._way: _Way = (criterion, kept, pruned)
        self._fill = bool(fill)
        model = build("Lottery", factory, self.seed)
        weights = weights_of("Lottery", model, ignore)
        self._sizes = {name: weight.numel() for name, weight in weights.items()}
        if rates is not None and not isinstance(rates, Mapping):
            raise TypeError(f"Lottery: expected rates to be a mapping of layer names, got {type(rates).__name__}")
        self._rates, self._groups = self._plan(rate, rates or {}, scope)
        for name, count in self.counts(self.rounds).items():
            if count == 0:
                raise ValueError(
                    f"Lottery: expected rounds that leave weights in each layer, got {self.rounds}, which leave none in"
                    f" {name!r}"
                )
        settings = {
            "seed": self.seed,
            "initial weights (SHA-256)": checksum(model),
            "rates": {group: str(rate) for group, rate in self._rates.items()},
            "layers": self._groups,
            "rewind_step": self.rewind_step,
            "criterion": name_of("Lottery", criterion),
            "kept": kept,
            "pruned": pruned,
            "fill": self._fill,
        }
        self._tickets = Tickets(None if folder is None else Path(folder), settings)
        self._initial = snapshot("Lottery", model)

    def _plan(
        self, rate: float, rates: Mapping[str, float], scope: str
    ) -> tuple[dict[str, float], dict[str, list[str]]]:
        """The rate of each group, and the weights in it."""
        by_weight = {f"{layer}.weight" if layer else "weight": rate for layer, rate in rates.items()}
        for layer, name in zip(rates, by_weight, strict=True):
            if name not in self._sizes:
                raise ValueError(f"Lottery: expected rates of layers that are pruned, got one of {layer!r}")
        groups: dict[str, list[str]] = {}
        for name in self._sizes:
            groups.setdefault(TOGETHER if scope == "global" and name not in by_weight else name, []).append(name)
        found = {group: by_weight.get(group, rate) for group in groups}
        for group, one in found.items():
            exact_rate("Lottery", f"rates[{group!r}]" if group in by_weight else "rate", one)
        return found, groups

    def counts(self, round: int) -> dict[str, int]:
        """How many weights are left after a round, trained or not.

        Args:
            round: From 0 on.

        Returns:
            By parameter name; where the scope is global, of all layers without a rate of their own in "together".
        """
        return {
            group: kept_after(sum(self._sizes[name] for name in names), self._rates[group], round)
            for group, names in self._groups.items()
        }

    def left(self, round: int) -> float:
        """The share of the weights that is left after a round, trained or not.

        Args:
            round: From 0 on.

        Returns:
            0 to 1.
        """
        return sum(self.counts(round).values()) / sum(self._sizes.values())

    def __iter__(self) -> Iterator[Ticket]:
        for round in range(self.rounds + 1):
            yield self.round(round)

    def round(self, round: int) -> Ticket:
        """The ticket of a round; what is missing up to it is trained.

        Args:
            round: 0 to `rounds`; 0 is the whole network.

        Returns:
            The ticket.

        Raises:
            ValueError: For a round that is not one of these, and as the class says.
        """
        self._check_round("round", round)
        names = [f"round-{number:02}" for number in range(round + 1)]
        number = max((one for one in range(round + 1) if names[one] in self._tickets), default=-1)
        ticket = self._found(names[number], number) if number >= 0 else self._whole(names[0])
        for later in range(max(number, 0) + 1, round + 1):
            ticket = self._pruned(names[later], later, ticket, self._way)
        return ticket

    def _found(self, name: str, round: int) -> Ticket:
        """One that is finished."""
        ticket, wanted = self._tickets[name], self.counts(round)
        counts = {group: sum(ticket.counts.get(one, 0) for one in names) for group, names in self._groups.items()}
        if ticket.round != round or counts != wanted:
            raise ValueError(f"Lottery: expected {name} of round {round} with {wanted} weights, got {counts}")
        return ticket

    def _whole(self, name: str) -> Ticket:
        masks = {weight: torch.ones(self._initial[weight].shape, dtype=torch.bool) for weight in self._sizes}
        return self._trained(name, 0, masks, self._initial, {}, 0)

    def _rewound(self) -> State:
        """What weights are rewound to, which is there once round 0 has been trained."""
        state = self._initial if self.rewind_step == 0 else self._tickets.state("rewind")
        if state is None:
            raise ValueError("Lottery: expected rewind.pt in the folder, where round-00.pt is; remove that to train it")
        return state

    def one_shot(
        self,
        round: int,
        *,
        criterion: str | Criterion | None = None,
        kept: str | None = None,
        pruned: str | None = None,
    ) -> Ticket:
        """The network of round 0 pruned at once to what a round leaves, and trained.

        Args:
            round: 1 to `rounds`.
            criterion, kept, pruned: As the constructor's. None: as there.

        Returns:
            The ticket.

        Raises:
            ValueError: For a round that is not one of these, and as the class says.
        """
        self._check_round("one_shot", round, 1)
        chosen = (criterion, kept, pruned)
        way: _Way = tuple(theirs if one is None else one for one, theirs in zip(chosen, self._way, strict=True))  # type: ignore[assignment]
        check_criterion("one_shot", way[0])
        check_treatments("one_shot", way[1], way[2])
        name = "-".join([f"one-shot-{round:02}", name_of("one_shot", way[0]), way[1], way[2]])
        return self._found(name, round) if name in self._tickets else self._pruned(name, round, self.round(0), way)

    def control(self, kind: str, round: int, *, draw: int = 0) -> Ticket:
        """What a ticket is to be compared with: as many weights in each layer, without what the ticket is said to have.

            "reinit"       the ticket's masks, and all parameters initialized anew, from step 0
            "random mask"  the ticket's number of weights in each layer at random places, which start from, and the
                           others stay at, what the same treatment makes of them (`kept`, `pruned`)

        Args:
            kind: "reinit" or "random mask".
            round: 1 to `rounds`.
            draw: Which of any number of draws.

        Returns:
            The ticket.

        Raises:
            ValueError: For another kind, a round that is not one of these, and as the class says.
        """
        if kind not in ("reinit", "random mask"):
            raise ValueError(f"control: expected kind to be 'reinit' or 'random mask', got {kind!r}")
        self._check_round("control", round, 1)
        check_integer("control", "draw", draw)
        name = f"{kind.replace(' ', '-')}-{round:02}-{draw}"
        if name in self._tickets:
            return self._found(name, round)
        ticket = self.round(round)
        if kind == "reinit":
            fresh = self._fresh(name)
            weights = {one: torch.where(mask, fresh[one], ticket.start[one]) for one, mask in ticket.masks.items()}
            return self._trained(name, round, ticket.masks, fresh, weights, 0)
        masks = {}
        for one, mask in ticket.masks.items():
            draws = criterion("random", seed=derived(self.seed, name, one))
            masks[one] = draws(ticket.start[one], ticket.final[one], int(mask.sum()))
        return self._treated(name, round, masks, self.round(round - 1), self._way)

    def _check_round(self, where: str, round: int, least: int = 0) -> None:
        if check_integer(where, "round", round, least) > self.rounds:
            raise ValueError(f"{where}: expected round up to {self.rounds}, the rounds of this Lottery, got {round}")

    def _fresh(self, name: str) -> State:
        return snapshot("Lottery", build("Lottery", self.factory, derived(self.seed, name, "initialization")))

    def _pruned(self, name: str, round: int, before: Ticket, way: _Way) -> Ticket:
        """Prune a ticket to the counts of a round, and train what is left."""
        masks, counts, rewound = dict(before.masks), self.counts(round), self._rewound()
        for group, names in self._groups.items():
            if self._rates[group] == 0:
                continue
            left = [before.masks[one] for one in names]
            initial, final = (
                torch.cat([state[one][mask].to(torch.float64) for one, mask in zip(names, left, strict=True)])
                for state in (rewound, before.final)
            )
            rule = way[0]
            if isinstance(rule, str):
                rule = criterion(rule, seed=derived(self.seed, name, group), fill=self._fill)
            chosen = choose(rule, initial, final, counts[group]).split([int(mask.sum()) for mask in left])
            for one, mask, keep in zip(names, left, chosen, strict=True):
                masks[one] = torch.zeros_like(mask).masked_scatter(mask, keep)
        return self._treated(name, round, masks, before, way)

    def _treated(self, name: str, round: int, masks: dict[str, Tensor], before: Ticket, way: _Way) -> Ticket:
        """Train what masks leave of a ticket from where its treatment says."""
        fresh, rewound = self._fresh(name) if "reinit" in way[1] else None, self._rewound()
        weights = {}
        for one, mask in masks.items():
            weights[one] = starting_weights(
                rewound[one],
                before.final[one],
                mask,
                kept=way[1],
                pruned=way[2],
                fresh=None if fresh is None else fresh[one],
                seed=derived(self.seed, name, one, "start"),
            )
        return self._trained(name, round, masks, rewound, weights, self.rewind_step)

    def _trained(
        self,
        name: str,
        round: int,
        masks: dict[str, Tensor],
        state: State,
        weights: Mapping[str, Tensor],
        start_step: int,
    ) -> Ticket:
        """Train from a state with other weights in it, and save that."""
        model = build("Lottery", self.factory, self.seed)
        model.load_state_dict(state)
        with torch.no_grad():
            for one, values in weights.items():
                model.get_parameter(one).copy_(values)
        start = snapshot("Lottery", model)
        model.to(self.device)
        rewound: list[State] = []

        def after_step(step: int) -> None:
            if round == 0 and step == self.rewind_step:
                rewound[:] = [snapshot("Lottery", model)]

        with seeded(derived(self.seed, "train", round)), HeldMasks(model, masks, after_step) as held:
            result = plain("Lottery", "what train returns", self.train(model, held, start_step))
        self._check_trained(name, model, start, held)
        if round == 0 and self.rewind_step > 0:
            if not rewound:
                raise RuntimeError(
                    f"Lottery: expected at least rewind_step, {self.rewind_step}, steps in train, got {held.steps}"
                )
            self._tickets.add_state("rewind", rewound[0])
        ticket = Ticket(name, round, masks, start, snapshot("Lottery", model), result)
        self._tickets.add(ticket)
        return ticket

    def _check_trained(self, name: str, model: nn.Module, start: State, held: HeldMasks) -> None:
        if held.steps == 0:
            raise RuntimeError(
                "Lottery: expected train to make steps of a torch.optim.Optimizer of the model's weights, got none"
            )
        for one, value in model.state_dict().items():
            before = start.get(one)  # a buffer may be -inf from the beginning
            if isinstance(value, Tensor) and not is_finite(value) and (before is None or is_finite(before)):
                raise ValueError(f"Lottery: expected finite weights after {name}, got NaN or infinity in {one!r}")
        if moved := held.moved():
            raise RuntimeError(f"Lottery: expected pruned weights to stay as they are in train, got others in {moved}")
