# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The checks of settings, masks and checkpoints of sparse training, and their error messages."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .algorithms import Algorithm
from .bits import unpacked
from .weights import MaskedWeight


def check_count(where: str, name: str, value: object) -> None:
    """Raise ValueError unless it is None or an int from 1 on.

    Args:
        where: Who asks, for the error.
        name: Of the argument.
        value: Its value.
    """
    if value is not None and (isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1):
        raise ValueError(f"{where}: expected {name} to be an int from 1 on, or None, got {value!r}")


def check_seed(where: str, seed: object) -> None:
    """Raise TypeError unless it is an int.

    Args:
        where: Who asks, for the error.
        seed: Of random choices.
    """
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"{where}: expected seed to be an int, got {type(seed).__name__}")


def checked_dense_grad_every(
    where: str, algorithm: Algorithm, value: int | str | None, update_every: int | None
) -> int | None:
    """At which steps gradients of missing weights are computed.

    Args:
        where: Who asks, for errors.
        algorithm: What needs them.
        value: Every so many steps, None for never, "auto" for what the algorithm needs.
        update_every: Steps between updates.

    Returns:
        Every so many steps, or None.

    Raises:
        ValueError: For what the algorithm cannot do with.
    """
    if value == "auto":
        if not algorithm.needs_missing:
            return None
        return update_every or 1 if algorithm.grows_by_gradient else 1
    if isinstance(value, str):
        raise ValueError(f"{where}: expected dense_grad_every to be an int, None or 'auto', got {value!r}")
    check_count(where, "dense_grad_every", value)
    if value is None and algorithm.needs_missing:
        raise ValueError(
            f"{where}: expected dense_grad_every for growth by {algorithm.signal}, which looks at the gradients of"
            " missing weights, got None; growth by 'random' needs none"
        )
    if value is not None and algorithm.grows_by_gradient and (update_every or 1) % value:
        raise ValueError(
            f"{where}: expected update_every to be a multiple of dense_grad_every, so that the step before an update"
            f" has the gradients of missing weights, got {update_every!r} and {value!r}"
        )
    return value


def checked_mask(where: str, one: MaskedWeight, mask: object) -> Tensor:
    """A mask for a weight, on its device.

    Args:
        where: Who asks, for errors.
        one: The weight.
        mask: bool, its shape.

    Returns:
        A copy.

    Raises:
        TypeError: For what is not a bool tensor.
        ValueError: For another shape.
    """
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        given = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"{where}: expected the mask of {one.name!r} to be a tensor of dtype torch.bool, got {given}")
    if mask.shape != one.mask.shape:
        raise ValueError(
            f"{where}: expected the mask of {one.name!r} of shape {list(one.mask.shape)}, got {list(mask.shape)}"
        )
    return mask.detach().to(one.mask.device, copy=True)


def masks_of_state(
    where: str, weights: Mapping[str, MaskedWeight], state: Mapping[str, Any], exact: bool
) -> dict[str, Tensor]:
    """The masks of a checkpoint.

    Args:
        where: Who asks, for errors.
        weights: Those that there are.
        state: The part "weights" of a state.
        exact: Whether all together have as many as wanted.

    Returns:
        bool, on the CPU, by the names of the weights.

    Raises:
        ValueError: For other names, shapes, blocks or counts.
    """
    missing = [name for name in weights if name not in state]
    unknown = [name for name in state if name not in weights]
    if missing or unknown:
        what = f"no {missing[0]!r}" if missing else f"{unknown[0]!r}, which this model has not"
        raise ValueError(f"{where}: expected a state of the same architecture, got one with {what}")
    masks = {}
    for name, one in weights.items():
        found = state[name]
        block = None if found["block"] is None else tuple(found["block"])
        if list(found["shape"]) != list(one.mask.shape) or block != one.block:
            raise ValueError(
                f"{where}: expected a state of the same architecture, {name!r} of shape {list(one.mask.shape)} in"
                f" blocks {one.block}, got shape {list(found['shape'])} in blocks {block}"
            )
        try:
            mask = unpacked(found["mask"], one.mask.shape)
        except ValueError as error:
            raise ValueError(f"{where}: expected a state with the mask of {name!r}: {error}") from error
        if one.block is None and not one.mask.numel() >= int(found["wanted"]) >= 0:
            raise ValueError(f"{where}: expected {name!r} with at most {mask.numel()} nonzeros, got {found['wanted']}")
        masks[name] = mask
    used = sum(int(one.units_of_mask(masks[name]).count_nonzero()) for name, one in weights.items())
    wanted = sum(int(one["wanted"]) for one in state.values())
    if exact and used != wanted:
        raise ValueError(
            f"{where}: expected a state with {used} nonzeros or blocks wanted, as its masks have, got {wanted}"
        )
    return masks
