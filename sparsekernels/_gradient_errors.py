# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""How far a network's gradients are off: for `convert`'s own checks and for `sparsekernels.testing`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def gradient_errors(actual: Sequence[Tensor], truth: Sequence[Tensor]) -> Tensor:
    """The relative error of the gradient of each parameter of a network.

        |actual - truth| / |truth|   in Euclidean norms

    Each counts as one vector: an activation that rounding moves across the kink of a ReLU changes single elements by
    more than rounding does. One that nearly vanishes, as that of a bias in front of a BatchNorm, counts as a hundredth
    of all together. The error of a gradient that is not finite is infinite.

    Args:
        actual: A gradient for each of n parameters.
        truth: The true ones, in the same order.

    Returns:
        float64 [n].
    """
    lengths = torch.stack([one.double().norm() for one in truth])
    differences = torch.stack([(a.double() - b.double()).norm() for a, b in zip(actual, truth, strict=True)])
    least = 0.01 * lengths.norm()
    errors = torch.where(differences == 0, 0.0, differences / lengths.clamp(min=least))
    return torch.where(errors.isfinite(), errors, float("inf"))


def gradient_error(actual: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    """The largest of `gradient_errors`.

    Args:
        actual: A gradient for each parameter.
        truth: The true ones, in the same order.

    Returns:
        The largest relative error.
    """
    return float(gradient_errors(actual, truth).max())
