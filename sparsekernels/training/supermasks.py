# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Supermasks: networks that are a mask over random weights, found by a criterion or learned, saved as mask and seed."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .bits import packed
from .bitwise import bits_of, masked
from .criteria import Criterion, choose, criterion, highest
from .held import weights_of
from .storage import build, check_integer, checksum, derived, load, save_atomically, snapshot, unpack
from .tickets import Counted
from .treatments import deviation_of, starting_weights

WEIGHTS = ("rewind", "signed_constant")
"""What is under a mask: the initial weights, or their signs times the standard deviation of their layer."""


def _rescaled(weight: Tensor, mask: Tensor) -> Tensor:
    """The weight times numel / (number of ones of the mask)."""
    return weight * (mask.numel() / max(1, int(mask.count_nonzero())))


def _check_weights(where: str, weights: object) -> None:
    if weights not in WEIGHTS:
        raise ValueError(f"{where}: expected weights to be {' or '.join(map(repr, WEIGHTS))}, got {weights!r}")


def _under(initial: Tensor, deviation: float | None) -> Tensor:
    """The weights under a mask; without a deviation the initial ones."""
    everything = torch.ones_like(initial, dtype=torch.bool)
    kept = "rewind" if deviation is None else "signed_constant"
    return starting_weights(initial, initial, everything, kept=kept, deviation=deviation)


@dataclass(frozen=True, eq=False)
class Supermask(Counted):
    """A network that is a mask over untrained weights: masks, a seed, and what both were made for.

        weight = mask * wi   or   mask * s * sign(wi),   with rescale times numel / (number of ones of the mask)

    wi are the layer's initial weights, s is their standard deviation. All other parameters are as initialized.

    Attributes:
        masks: By parameter name, bool, on the CPU.
        seed: `factory` is called behind torch.manual_seed(seed).
        initial: SHA-256 of the untrained network: names, dtypes, shapes and bytes of its parameters and buffers.
        weights: "rewind" (the initial ones) or "signed_constant".
        rescale: Whether weights are multiplied by the inverse density of their mask.
        deviations: s by parameter name, for "signed_constant"; else empty.
        torch_version: The version of torch whose initializers drew the weights.
    """

    masks: dict[str, Tensor] = field(repr=False)
    seed: int
    initial: str = field(repr=False)
    weights: str = "rewind"
    rescale: bool = False
    deviations: dict[str, float] = field(default_factory=dict, repr=False)
    torch_version: str = str(torch.__version__)

    def network(self, factory: Callable[[], nn.Module]) -> nn.Module:
        """The network, made anew, bit for bit, with zeros where weights are pruned.

        Args:
            factory: Makes the model, as the one did whose initial weights the masks are for.

        Returns:
            The model, on the CPU. It is an ordinary one: `sparsekernels.convert` makes it faster.

        Raises:
            TypeError: For what is no function, or makes no module.
            ValueError: Where its layers, their shapes, or the initial weights are others.
        """
        model = build("Supermask", factory, self.seed)
        self._check(model)
        with torch.no_grad():
            for name, mask in self.masks.items():
                weight = model.get_parameter(name)
                under = _under(weight, self.deviations.get(name))
                under = _rescaled(under, mask) if self.rescale else under
                weight.copy_(masked(under, bits_of(mask, weight.dtype)))
        return model

    def _check(self, model: nn.Module) -> None:
        shapes = {name: list(one.shape) for name, one in model.named_parameters(remove_duplicate=False)}
        for name, mask in self.masks.items():
            if shapes.get(name) != list(mask.shape):
                given = "none of that name" if name not in shapes else f"one of {shapes[name]}"
                raise ValueError(f"Supermask: expected a weight {name!r} of shape {list(mask.shape)}, got {given}")
        found = checksum(model)
        if found != self.initial:
            raise ValueError(
                f"Supermask: expected initial weights of SHA-256 {self.initial[:16]}..., drawn by torch"
                f" {self.torch_version}, got {found[:16]}... from torch {torch.__version__}: another architecture,"
                " dtype or initializer, or a processor on which it draws otherwise"
            )

    def save(self, path: str | Path) -> None:
        """Write the file, atomically: the masks as bits, names, shapes, the seed, a check sum, and no weights.

        Args:
            path: Of the file.
        """
        content = {
            "kind": "supermask",
            "masks": {name: packed(mask) for name, mask in self.masks.items()},
            "shapes": {name: list(mask.shape) for name, mask in self.masks.items()},
            "counts": self.counts,
            "seed": self.seed,
            "initial": self.initial,
            "weights": self.weights,
            "rescale": self.rescale,
            "deviations": self.deviations,
            "torch_version": self.torch_version,
        }
        save_atomically(content, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> Supermask:
        """Read a file that `save` wrote.

        Args:
            path: Of the file.

        Returns:
            The supermask. Its `network` is what checks the initial weights.

        Raises:
            FileNotFoundError: Where there is none.
            ValueError: For a file of something else, or one that is damaged.
        """
        found = load("Supermask.load", Path(path), "supermask")
        masks = {name: unpack("Supermask.load", bits, found["shapes"][name]) for name, bits in found["masks"].items()}
        names = ("seed", "initial", "weights", "rescale", "deviations", "torch_version")
        result = cls(masks, *(found[name] for name in names))
        _check_weights("Supermask.load", result.weights)
        if result.counts != found["counts"]:
            raise ValueError(f"Supermask.load: expected {found['counts']} weights in {path}, got {result.counts}")
        return result


def _deviations(initial: Mapping[str, Tensor], weights: str) -> dict[str, float]:
    if weights == "rewind":
        return {}
    return {name: deviation_of(one) for name, one in initial.items()}


def one_shot_supermask(
    factory: Callable[[], nn.Module],
    final: nn.Module | Mapping[str, Any],
    left: float | Mapping[str, float],
    *,
    criterion: str | Criterion = "large_final_same_sign",
    weights: str = "rewind",
    rescale: bool = False,
    fill: bool = False,
    ignore: Collection[str] = (),
    seed: int = 0,
) -> Supermask:
    """The mask of a criterion over an untrained network, by what training made of its weights.

        count = round(numel * left)   of each layer, exactly

    Args:
        factory: Makes the model, on the CPU. It is called behind torch.manual_seed(seed).
        final: The same network after training: the module, or its state_dict, as `Ticket.final`.
        left: The share of the weights that is kept, more than 0, at most 1; or shares by layer name.
        criterion: A name of `CRITERIA`, or a function `(initial, final, count) -> mask`.
        weights: What is under the mask: "rewind", the initial weights, or "signed_constant".
        rescale: Whether weights are multiplied by the inverse density of their mask.
        fill: See `criterion`.
        ignore: Names of layers, or of modules with all of their layers, that keep all of their weights.
        seed: The seed that the training began with; of a `Lottery`, its `seed`.

    Returns:
        The supermask.

    Raises:
        TypeError: For arguments of another type, or a layer without a share.
        ValueError: For shares outside of (0, 1], or that leave nothing of a layer, a state of another network, and as
            `criterion` and `starting_weights` do.

    Source:
        Zhou et al. 2019, arXiv 1905.01067, section 5.
    """
    _check_weights("one_shot_supermask", weights)
    check_integer("one_shot_supermask", "seed", seed)
    model = build("one_shot_supermask", factory, seed)
    initial = {name: one.detach() for name, one in weights_of("one_shot_supermask", model, ignore).items()}
    state = snapshot("one_shot_supermask", final) if isinstance(final, nn.Module) else final
    if not isinstance(state, Mapping):
        raise TypeError(
            f"one_shot_supermask: expected final to be a module or its state_dict, got {type(final).__name__}"
        )
    shares = left if isinstance(left, Mapping) else {name.rpartition(".")[0]: left for name in initial}
    for layer in shares:
        if f"{layer}.weight".removeprefix(".") not in initial:
            raise ValueError(f"one_shot_supermask: expected shares of layers that are pruned, got one of {layer!r}")
    masks = {}
    for name, one in initial.items():
        trained, layer = state.get(name), name.rpartition(".")[0]
        if not isinstance(trained, Tensor) or trained.shape != one.shape:
            given = list(trained.shape) if isinstance(trained, Tensor) else "none"
            raise ValueError(f"one_shot_supermask: expected final to have {name!r} of {list(one.shape)}, got {given}")
        count = round(one.numel() * _share("one_shot_supermask", f"left of {layer!r}", shares.get(layer)))
        if count == 0:
            raise ValueError(f"one_shot_supermask: expected left to keep a weight of {layer!r}, got 0 of {one.numel()}")
        rule = _rule(criterion, derived(seed, "one-shot", name), fill)
        masks[name] = choose(rule, one, trained.cpu(), count)
    return Supermask(masks, seed, checksum(model), weights, bool(rescale), _deviations(initial, weights))


def _rule(chosen: str | Criterion, seed: int, fill: bool) -> Criterion:
    return criterion(chosen, seed=seed, fill=fill) if isinstance(chosen, str) else chosen


def _share(where: str, name: str, share: object) -> float:
    if isinstance(share, bool) or not isinstance(share, numbers.Real):
        raise TypeError(f"{where}: expected {name} to be a number, got {type(share).__name__}")
    if not 0 < share <= 1:  # type: ignore[operator]
        raise ValueError(f"{where}: expected {name} to be more than 0 and at most 1, got {share}")
    return float(share)


class LearnedSupermask(nn.Module):
    """A network whose weights stay as they are initialized, and whose masks are learned.

        training:    mask ~ Bernoulli(sigmoid(m)), drawn in each call;   d mask / d m = d sigmoid(m) / d m
        evaluation:  mask = m > 0, the likeliest
        weight = mask * wi   or   mask * s * sign(wi),   with rescale times numel / (number of ones of the mask)

    It wraps any module, a single Linear or Conv2d as well as a network, and is called as that is. Of its parameters the
    scores m alone are trained. A weight that several layers share has one mask. The mask's gradient at the draw is
    taken for that at its mean (straight-through), that of the number of ones is left out. Layers that are not prunable
    (biases, BatchNorm) stay as initialized.

    Draws are those of CPU generators, seeded by `seed` and the number of calls, which is in the state_dict: the same on
    every device, and resumed where they were.

    Args:
        factory: Makes the model, on the CPU. It is called behind torch.manual_seed(seed).
        seed: Of the weights and of the draws.
        weights: What is under the mask: "rewind", the initial weights, or "signed_constant".
        rescale: Whether weights are multiplied by the inverse density of the mask that was drawn: dynamic weight
            rescaling.
        probability: Of a weight to be kept, at first, more than 0, less than 1.
        ignore: Names of layers, or of modules with all of their layers, that keep all of their weights.

    Attributes:
        model: The module with the weights that are under the masks.
        names: Of the weights, in the order of `scores`.
        scores: m, float32 (float64 where the weight is), shape of the weight.

    Raises:
        TypeError: For arguments of another type.
        ValueError: For an unknown kind of weights, a probability that is not accepted, or a model without layers to
            prune.

    Source:
        Zhou et al. 2019, arXiv 1905.01067, section 5.1.
    """

    def __init__(
        self,
        factory: Callable[[], nn.Module],
        *,
        seed: int = 0,
        weights: str = "rewind",
        rescale: bool = True,
        probability: float = 0.5,
        ignore: Collection[str] = (),
    ) -> None:
        super().__init__()
        _check_weights("LearnedSupermask", weights)
        self.seed = check_integer("LearnedSupermask", "seed", seed)
        if _share("LearnedSupermask", "probability", probability) == 1:
            raise ValueError("LearnedSupermask: expected probability less than 1, got 1")
        self.factory, self.weights, self.rescale = factory, weights, bool(rescale)
        self.model = build("LearnedSupermask", factory, self.seed)
        initial = weights_of("LearnedSupermask", self.model, ignore)
        self._initial = checksum(self.model)
        self._deviations = _deviations(initial, weights)
        self.model.requires_grad_(False)
        self.names = tuple(initial)
        self._put_under(self.model)
        first = math.log(probability / (1 - probability))
        self.scores = nn.ParameterList(
            torch.full_like(one, first, dtype=torch.promote_types(one.dtype, torch.float32)) for one in initial.values()
        )
        self._calls = 0

    def _put_under(self, model: nn.Module) -> None:
        for name in self._deviations:
            weight = model.get_parameter(name).detach()
            weight.copy_(_under(weight, self._deviations[name]))

    def get_extra_state(self) -> dict[str, Any]:
        return {"seed": self.seed, "calls": self._calls, "initial": self._initial, "weights": self.weights}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        for name, value in (("seed", self.seed), ("initial", self._initial), ("weights", self.weights)):
            if state[name] != value:
                raise ValueError(f"LearnedSupermask: expected a state with {name} {value!r}, got {state[name]!r}")
        self._calls = state["calls"]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        masks = self._draw() if self.training else [one.detach() > 0 for one in self.scores]
        weights = {}
        for name, mask, scores in zip(self.names, masks, self.scores, strict=True):
            under: Tensor = self.model.get_parameter(name)
            under = _rescaled(under, mask) if self.rescale else under
            value = masked(under, bits_of(mask, under.dtype))
            if self.training and torch.is_grad_enabled():
                chance = scores.sigmoid()
                value = value + under * (chance - chance.detach()).to(under.dtype)  # adds 0
            weights[name] = value
        return functional_call(self.model, weights, args, kwargs)

    def _draw(self) -> list[Tensor]:
        self._calls += 1
        return [
            self._drawn(scores, derived(self.seed, "draw", self._calls, name))
            for name, scores in zip(self.names, self.scores, strict=True)
        ]

    @staticmethod
    def _drawn(scores: Tensor, seed: int) -> Tensor:
        wide = torch.promote_types(scores.dtype, torch.float32)  # bfloat16 has 256 numbers to draw
        draws = torch.rand(scores.shape, generator=torch.Generator().manual_seed(seed), dtype=wide)
        return draws.to(scores.device) < scores.detach().to(wide).sigmoid()

    def supermask(self, *, counts: Mapping[str, int] | None = None, draw: int | None = None) -> Supermask:
        """The network with its masks as they are now.

        Args:
            counts: How many weights each layer keeps, by parameter name: those of the highest scores. None: those whose
                score is above 0, which is what calls in evaluation mode compute with.
            draw: A seed: the masks are drawn as in training. Not together with `counts`.

        Returns:
            The supermask.

        Raises:
            TypeError: For arguments of another type.
            ValueError: For `counts` and `draw` together, counts of other layers, or a network of which something else
                than the scores has changed, such as the statistics of a BatchNorm: masks and a seed do not make that.
        """
        if counts is not None and draw is not None:
            raise ValueError("supermask: expected counts or draw, got both")
        if counts is not None and set(counts) != set(self.names):
            raise ValueError(f"supermask: expected counts of {list(self.names)}, got those of {list(counts)}")
        if draw is not None:
            check_integer("supermask", "draw", draw)
        self._check_unchanged()
        masks = {}
        for name, scores in zip(self.names, self.scores, strict=True):
            one = scores.detach().cpu()
            if not bool(one.isfinite().all()):
                raise ValueError(f"supermask: expected finite scores, got NaN or infinity for {name!r}")
            if counts is not None:
                masks[name] = highest("supermask", one, counts[name])
            else:
                masks[name] = one > 0 if draw is None else self._drawn(one, derived(draw, "draw", name))
        return Supermask(masks, self.seed, self._initial, self.weights, self.rescale, dict(self._deviations))

    def _check_unchanged(self) -> None:
        model = build("supermask", self.factory, self.seed)
        self._put_under(model)
        now = snapshot("supermask", self.model)
        for name, value in snapshot("supermask", model).items():
            if isinstance(value, Tensor) and (value.dtype != now[name].dtype or not torch.equal(value, now[name])):
                raise ValueError(
                    f"supermask: expected all but the scores as initialized, got another {name!r}, which a mask and a"
                    " seed do not make; BatchNorm has no running statistics with track_running_stats=False"
                )
