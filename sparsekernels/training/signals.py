# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What growth looks at: an optimizer's momentum, the gradient, random numbers. And an optimizer's state of a weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

_EPSILON = 1e-8
"""Of the quotient of Adam's moments, as Dettmers & Zettlemoyer have it."""

_WITHOUT_MOMENTUM = frozenset({"Adagrad", "Rprop", "Adafactor", "LBFGS", "SparseAdam"})

_ELEMENTWISE = frozenset({"SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "RMSprop", "Adagrad", "Adadelta", "ASGD"})
"""torch's optimizers that leave a weight at zero whose gradient and state are zero. Muon, for one, moves all."""


def leaves_zeros(optimizer: Optimizer) -> bool:
    """Whether its step leaves a weight at zero whose value, gradient and state are zero.

    Args:
        optimizer: Any.

    Returns:
        True for those of torch that are known to; False for all others, subclasses included.
    """
    return _is_torchs(optimizer) and type(optimizer).__name__ in _ELEMENTWISE


def _is_torchs(optimizer: Optimizer) -> bool:
    return f"{type(optimizer).__module__}.".startswith("torch.optim.")


def momentum_of(state: dict[str, Any], shape: torch.Size) -> Tensor | None:
    """The momentum of a weight in an optimizer's state of it.

        momentum_buffer                     SGD, RMSprop, Muon
        exp_avg / (sqrt(exp_avg_sq) + 1e-8) Adam, AdamW, NAdam, RAdam
        exp_avg / (exp_inf + 1e-8)          Adamax
        exp_avg                             Lion and others

    Args:
        state: optimizer.state[weight].
        shape: Of the weight.

    Returns:
        A tensor in the shape of the weight; None where there is none.

    Source:
        Dettmers & Zettlemoyer 2019, arXiv 1907.04840, section 3.
    """
    buffer = state.get("momentum_buffer")
    if isinstance(buffer, Tensor) and buffer.shape == shape:
        return buffer
    first = state.get("exp_avg")
    if not isinstance(first, Tensor) or first.shape != shape:
        return None
    second, largest = state.get("exp_avg_sq"), state.get("exp_inf")
    if isinstance(second, Tensor) and second.shape == shape:
        return _wide(first) / (_wide(second).sqrt() + _EPSILON)
    if isinstance(largest, Tensor) and largest.shape == shape:
        return _wide(first) / (_wide(largest) + _EPSILON)
    return first


def _wide(tensor: Tensor) -> Tensor:
    """In float32 at least: in float16, 1e-8 is 0."""
    return tensor.float() if tensor.dtype.itemsize < 4 else tensor


def keeps_momentum(optimizer: Optimizer, parameters: set[Tensor]) -> bool:
    """Whether it is going to have a momentum of these, as far as its settings tell.

    Args:
        optimizer: Any.
        parameters: Some of its parameters.

    Returns:
        False for a momentum of 0 and for optimizers of torch that have none.
    """
    if _is_torchs(optimizer) and type(optimizer).__name__ in _WITHOUT_MOMENTUM:
        return False
    groups = [one for one in optimizer.param_groups if any(p in parameters for p in one["params"])]
    return all(group.get("momentum", 1) != 0 and "lambd" not in group and "rho" not in group for group in groups)


def state_tensors(state: dict[str, Any], shape: torch.Size) -> list[Tensor]:
    """The tensors of an optimizer's state that have an element for each of the weight's.

    Args:
        state: optimizer.state[weight].
        shape: Of the weight.

    Returns:
        The tensors themselves.
    """
    return [one for one in state.values() if isinstance(one, Tensor) and one.shape == shape and one.dim() > 0]


def random_like(weight: Tensor, generator: torch.Generator) -> Tensor:
    """float32, uniform from [0, 1), drawn on the CPU: the same on all devices.

    Args:
        weight: Gives shape and device.
        generator: On the CPU.

    Returns:
        The draws.
    """
    return torch.rand(weight.shape, generator=generator).to(weight.device)


SIGNALS = ("momentum", "gradient", "random")
"""The names of signals."""
