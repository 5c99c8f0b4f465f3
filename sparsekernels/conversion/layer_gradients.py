# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Whether the gradients of what takes a layer's place are the layer's own, by that layer alone.

In a whole model of bfloat16 they cannot tell: rounding moves activations across the kinks of ReLUs, which changes what
comes out of a deep network's backward pass entirely. From one layer's input and output gradient to its own gradients
there is one rounding each.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .._torch import is_any_autocast_enabled
from .agreement import backward_seeds, differentiable
from .exactness import LARGEST_GRADIENT_ERROR, is_gradient_alike
from .survey import Given

_LARGEST_IN_FLOAT32 = 0.01
"""Between gradients of float32, whose products torch may be allowed to round to bfloat16. A row of a thousand that is
left out is 0.03."""


def wrong_gradient(original: nn.Module, replacement: nn.Module, given: Sequence[Given]) -> str | None:
    """Which gradient of `replacement` is not that of `original`: "the input", or the name of a parameter; None if none.

    Both get random numbers in the place of what the layer was `given`. Zeros of a parameter that have no gradient need
    none: these are left out. Raises what the layers raise.
    """
    parameters = dict(original.named_parameters())
    for one in dict.fromkeys(given):
        theirs, mine = (_gradients_of(layer, one) for layer in (original, replacement))
        for name, expected in theirs.items():
            actual = mine.get(name)
            if expected is None:  # the layer detaches it
                if actual is not None and bool(actual.any()):
                    return name
                continue
            if actual is None:
                actual = torch.zeros_like(expected)
            if name in parameters:
                expected = expected.masked_fill((parameters[name] == 0) & (actual == 0), 0.0)
            is_exact = expected.dtype is torch.float32 and not is_any_autocast_enabled()
            largest = _LARGEST_IN_FLOAT32 if is_exact else LARGEST_GRADIENT_ERROR
            if not is_gradient_alike(actual, expected, largest=largest, one_by_one=True):
                return name
    return None


_INPUT = "the input"


def _gradients_of(layer: nn.Module, given: Given) -> dict[str, Tensor | None]:
    """Of the input, where that has one, and the parameters, by their names; from random ones of the output."""
    input = given.make()
    wanted = {_INPUT: input} if input.requires_grad else {}
    wanted |= {name: one for name, one in layer.named_parameters() if one.requires_grad}
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(3)  # what a class of somebody else's draws is the same for both
        outputs = differentiable(layer(input))
    if not outputs or not wanted:
        return {}
    gradients = torch.autograd.grad(outputs, list(wanted.values()), backward_seeds(outputs), allow_unused=True)
    return dict(zip(wanted, gradients, strict=True))
