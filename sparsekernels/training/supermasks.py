# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Supermasks: networks that are a mask over random weights, found by a criterion, saved as mask and seed."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import check_mask
from .bits import packed
from .bitwise import bits_of, masked
from .criteria import Criterion, choose, criterion
from .held import weights_of
from .storage import build, check_integer, checksum, derived, load, save_atomically, snapshot, unpack
from .tickets import Counted
from .treatments import deviation_of, starting_weights

WEIGHTS = ("rewind", "signed_constant")
"""What is under a mask: the initial weights, or their signs times the standard deviation of their layer."""


def rescaled(weight: Tensor, mask: Tensor) -> Tensor:
    """The weight times numel / (number of ones of the mask)."""
    return weight * (mask.numel() / max(1, int(mask.count_nonzero())))


def check_weights(where: str, weights: object) -> None:
    """Raise ValueError unless it is one of `WEIGHTS`."""
    if weights not in WEIGHTS:
        raise ValueError(f"{where}: expected weights to be {' or '.join(map(repr, WEIGHTS))}, got {weights!r}")


def weights_under(initial: Tensor, deviation: float | None) -> Tensor:
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

    Raises:
        TypeError: For attributes of another type.
        ValueError: For an unknown kind of weights, or deviations of other weights than those that have masks.
    """

    masks: dict[str, Tensor] = field(repr=False)
    seed: int
    initial: str = field(repr=False)
    weights: str = "rewind"
    rescale: bool = False
    deviations: dict[str, float] = field(default_factory=dict, repr=False)
    torch_version: str = str(torch.__version__)

    def __post_init__(self) -> None:
        """Raise unless the parts have the types that they are to have, and fit together."""
        for name, kind in (("masks", dict), ("initial", str), ("rescale", bool), ("deviations", dict)):
            if not isinstance(getattr(self, name), kind):
                given = type(getattr(self, name)).__name__
                raise TypeError(f"Supermask: expected {name} to be a {kind.__name__}, got {given}")
        check_integer("Supermask", "seed", self.seed)
        check_weights("Supermask", self.weights)
        for mask in self.masks.values():
            check_mask("Supermask", mask)
        wanted = set() if self.weights == "rewind" else set(self.masks)
        if set(self.deviations) != wanted:
            raise ValueError(
                f"Supermask: expected deviations of {sorted(wanted)}, as {self.weights!r} has them, got those of"
                f" {sorted(self.deviations)}"
            )
        for name, one in self.deviations.items():
            if not isinstance(one, float) or not 0 < one < math.inf:
                raise ValueError(f"Supermask: expected the deviation of {name!r} to be a float above 0, got {one!r}")

    def network(self, factory: Callable[[], nn.Module]) -> nn.Module:
        """The network, made anew, bit for bit, with zeros where weights are pruned.

        Args:
            factory: Makes the model, as the one did whose initial weights the masks are for.

        Returns:
            The model, on the CPU. It is an ordinary one: `sparsekernels.convert` makes it faster.

        Raises:
            TypeError: For what is no function, or makes no module.
            ValueError: Where its layers, their shapes, the initial weights or their deviations are others.
        """
        model = build("Supermask", factory, self.seed)
        self._check(model)
        with torch.no_grad():
            for name, mask in self.masks.items():
                weight = model.get_parameter(name)
                wanted = self.deviations.get(name)
                if wanted is not None and not math.isclose(deviation_of(weight), wanted, rel_tol=1e-5):
                    found = deviation_of(weight)
                    raise ValueError(
                        f"Supermask: expected the deviation of {name!r} to be that of its initial weights, {found:g},"
                        f" got {wanted:g}"
                    )
                under = weights_under(weight, self.deviations.get(name))
                under = rescaled(under, mask) if self.rescale else under
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
        names = ("seed", "initial", "weights", "rescale", "deviations", "torch_version")
        found = load("Supermask.load", Path(path), "supermask", "masks", "shapes", "counts", *names)
        try:
            shapes = {
                name: [check_integer("", "a size", size) for size in found["shapes"][name]] for name in found["masks"]
            }
            masks = {name: unpack("Supermask.load", found["masks"][name], shape) for name, shape in shapes.items()}
            result = cls(masks, *(found[name] for name in names))
        except (TypeError, KeyError) as error:
            raise ValueError(f"Supermask.load: expected {path} to be one that save wrote, got {error}") from error
        if result.counts != found["counts"]:
            raise ValueError(f"Supermask.load: expected {found['counts']} weights in {path}, got {result.counts}")
        return result


def deviations_of(initial: Mapping[str, Tensor], weights: str) -> dict[str, float]:
    """The standard deviations of layers, where weights are made of them."""
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
    check_weights("one_shot_supermask", weights)
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
        count = round(one.numel() * share_of("one_shot_supermask", f"left of {layer!r}", shares.get(layer)))
        if count == 0:
            raise ValueError(f"one_shot_supermask: expected left to keep a weight of {layer!r}, got 0 of {one.numel()}")
        rule = _rule(criterion, derived(seed, "one-shot", name), fill)
        masks[name] = choose(rule, one, trained.cpu(), count)
    return Supermask(masks, seed, checksum(model), weights, bool(rescale), deviations_of(initial, weights))


def _rule(chosen: str | Criterion, seed: int, fill: bool) -> Criterion:
    return criterion(chosen, seed=seed, fill=fill) if isinstance(chosen, str) else chosen


def share_of(where: str, name: str, share: object) -> float:
    """Return it; raise unless it is a number more than 0 and at most 1."""
    if isinstance(share, bool) or not isinstance(share, numbers.Real):
        raise TypeError(f"{where}: expected {name} to be a number, got {type(share).__name__}")
    if not 0 < share <= 1:  # type: ignore[operator]
        raise ValueError(f"{where}: expected {name} to be more than 0 and at most 1, got {share}")
    return float(share)
