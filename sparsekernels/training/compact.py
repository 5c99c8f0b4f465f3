# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""An optimizer's state of used weights alone: during its step it has vectors of these in the place of the weights.

    values = weight[mask], values.grad = weight.grad[mask]   before the step, which moves `values`
    weight[mask] = values                                    behind it

Between two steps the optimizer has the weights, whose state has an element for each used one. So it may be saved and
loaded as ever, gradients may be clipped and scaled, and ranks may average them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .weights import MaskedWeight


class _Values:
    """The used elements of one weight."""

    def __init__(self, one: MaskedWeight) -> None:
        self.elements = one.elements
        weight = one.parameter
        self.gradient: Tensor | None = None
        self.parameter = nn.Parameter(torch.empty(self.elements.count, dtype=weight.dtype, device=weight.device))

    def is_of(self, one: MaskedWeight) -> bool:
        return self.elements.mask is one.local_mask and self.parameter.device == one.parameter.device


class CompactState:
    """What exchanges weights for vectors of used elements, and back.

    Args:
        optimizer: One that treats each element by itself.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._values: dict[str, _Values] = {}
        self._exchanged: list[tuple[MaskedWeight, _Values]] = []
        self._gradients: dict[str, tuple[Tensor, Tensor]] = {}  # by the name of a weight: its gradient, its values

    def _of(self, one: MaskedWeight) -> _Values:
        found = self._values.get(one.name)
        if found is None or not found.is_of(one):
            found = self._values[one.name] = _Values(one)
        return found

    def gradient_of(self, one: MaskedWeight) -> Tensor:
        """The used elements of a weight's gradient, which the next `before_step` gives to the optimizer.

        Args:
            one: A weight that has a gradient.

        Returns:
            A vector.
        """
        assert one.parameter.grad is not None
        values = self._of(one).elements.take(one.parameter.grad)
        self._gradients[one.name] = one.parameter.grad, values
        return values

    def before_step(self, weights: Iterable[MaskedWeight]) -> None:
        """Give the optimizer the vectors.

        Args:
            weights: Whose gradients are there.
        """
        self.after_step()  # where the last step raised
        gradients, self._gradients = self._gradients, {}
        found = {id(one.parameter): one for one in weights if one.parameter.grad is not None}
        for group in self._optimizer.param_groups:
            for place, parameter in enumerate(group["params"]):
                one = found.get(id(parameter))
                if one is None:
                    continue
                values = self._of(one)
                self.adopt(one)
                with torch.no_grad():
                    values.parameter.copy_(values.elements.take(parameter))
                gradient, taken = gradients.get(one.name, (None, None))
                values.parameter.grad = taken if gradient is parameter.grad else values.elements.take(parameter.grad)
                # if the step raises, no second gradient is added to this one
                values.gradient, parameter.grad = parameter.grad, None
                group["params"][place] = values.parameter
                state = self._optimizer.state.pop(parameter, None)
                if state is not None:
                    self._optimizer.state[values.parameter] = state
                self._exchanged.append((one, values))

    def after_step(self) -> None:
        """Give it the weights again, moved."""
        exchanged = {id(values.parameter): (one, values) for one, values in self._exchanged}
        for group in self._optimizer.param_groups if exchanged else ():
            for place, parameter in enumerate(group["params"]):
                if id(parameter) not in exchanged:
                    continue
                one, values = exchanged[id(parameter)]
                values.elements.spread_into(one.parameter, values.parameter.detach())
                one.parameter.grad, values.parameter.grad, values.gradient = values.gradient, None, None
                group["params"][place] = one.parameter
                state = self._optimizer.state.pop(parameter, None)
                if state is not None:
                    self._optimizer.state[one.parameter] = state
        self._exchanged = []

    def change(self, one: MaskedWeight, kept: Tensor, mask: Tensor) -> None:
        """Exchange the mask of a weight, and what the state has of it: of new weights it is 0.

        Args:
            one: The weight, with its old mask.
            kept: bool, of the old mask what stays.
            mask: bool, the new one.
        """
        old = self._of(one)
        state = self._optimizer.state.get(one.parameter, {})
        one.mask = mask
        new = self._of(one)
        for name, value in list(state.items()):
            if isinstance(value, Tensor) and value.dim() == 1 and value.shape == old.parameter.shape:
                whole = old.elements.spread(value)
                state[name] = new.elements.take(whole.masked_fill_(~kept.to(whole.device), 0))

    def adopt(self, one: MaskedWeight) -> None:
        """Make a state that has all elements of a weight one of those that are used.

        Args:
            one: The weight.

        Raises:
            RuntimeError: For one of another number of elements.
        """
        values = self._of(one)
        state = self._optimizer.state.get(one.parameter, {})
        for name, value in list(state.items()):
            if not isinstance(value, Tensor) or value.dim() == 0:
                continue
            if value.shape == one.parameter.shape and value.dim() > 1:
                state[name] = values.elements.take(value)
            elif value.shape != values.parameter.shape:
                raise RuntimeError(
                    f"compact_state: expected {name} of the {values.elements.count} used elements of {one.name!r}, got"
                    f" shape {list(value.shape)}"
                )

    def expanded(self, one: MaskedWeight, state: dict[str, Any]) -> dict[str, Any]:
        """A state with all elements of a weight, those that are not used as zero.

        Args:
            one: The weight.
            state: What the optimizer has of it.

        Returns:
            Another dict.
        """
        values = self._of(one)
        return {
            name: values.elements.spread(value)
            if isinstance(value, Tensor) and value.dim() == 1 and value.shape == values.parameter.shape
            else value
            for name, value in state.items()
        }
