# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Supermasks that are learned, while the weights under them stay as they are initialized."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .bitwise import bits_of, masked
from .criteria import highest
from .held import weights_of
from .storage import build, check_integer, checksum, derived, snapshot
from .supermasks import Supermask, check_weights, deviations_of, rescaled, share_of, weights_under


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
        check_weights("LearnedSupermask", weights)
        self.seed = check_integer("LearnedSupermask", "seed", seed)
        if share_of("LearnedSupermask", "probability", probability) == 1:
            raise ValueError("LearnedSupermask: expected probability less than 1, got 1")
        self.factory, self.weights, self.rescale = factory, weights, bool(rescale)
        self.model = build("LearnedSupermask", factory, self.seed)
        initial = weights_of("LearnedSupermask", self.model, ignore)
        self._initial = checksum(self.model)
        self._deviations = deviations_of(initial, weights)
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
            weight.copy_(weights_under(weight, self._deviations[name]))

    def get_extra_state(self) -> dict[str, Any]:
        return {**self._settings(), "calls": self._calls}

    def _settings(self) -> dict[str, Any]:
        return {"seed": self.seed, "initial": self._initial, "weights": self.weights, "rescale": self.rescale}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        for name, value in self._settings().items():
            if state.get(name) != value:
                raise ValueError(f"LearnedSupermask: expected a state with {name} {value!r}, got {state.get(name)!r}")
        self._calls = check_integer("LearnedSupermask", "calls of the state", state.get("calls"))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        masks = self._draw() if self.training else [one.detach() > 0 for one in self.scores]
        weights = {}
        for name, mask, scores in zip(self.names, masks, self.scores, strict=True):
            under: Tensor = self.model.get_parameter(name)
            under = rescaled(under, mask) if self.rescale else under
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
            ValueError: For `counts` and `draw` together, counts of other layers, neither where no score is above 0 (as
                before training, with a `probability` up to 0.5), or a network of which something else than the scores
                has changed, such as the statistics of a BatchNorm: masks and a seed do not make that.
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
        if counts is None and draw is None and not any(bool(mask.any()) for mask in masks.values()):
            raise ValueError(
                "supermask: expected scores above 0, as training makes them, got none, so that no weight would be kept;"
                " counts keeps the highest"
            )
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
