# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""How a packed layer takes the place of a dense one, whose weight it lets go of, and gives it back."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

from ..ops.packed_linear.weight import PackedWeight
from .replacement import Replacement


class PackedLayer(Replacement):
    """What `convert` and `revert` need of a `PackedLinear`."""

    packed: PackedWeight
    _choice = ()
    _reference: weakref.ref[torch.nn.Parameter] | None = None
    """To the parameter that it was made of and lets go of, as long as somebody else has it; see `release`."""
    _version = 0
    """Of that parameter, when it let go of it."""
    _requires_grad = True
    """Whether that did."""

    @classmethod
    def sharing(cls, module: Any) -> Any:
        """The nonzeros of a layer, and its bias itself.

        Args:
            module: A torch.nn.Linear in float32, bfloat16 or float16.

        Returns:
            The layer, in evaluation mode.
        """
        with torch.inference_mode(False):
            result = cls(PackedWeight.of(module.weight))
        result._parameters["bias"] = module._parameters["bias"]
        result._take(result.packed)
        return result

    @property
    def places(self) -> PackedWeight:
        """What is stored."""
        return self.packed

    def outside(self) -> int:
        """How many elements of the weight it leaves out that are not zero.

        Returns:
            0: what it stores is the weight.
        """
        return 0

    def release(self) -> None:
        """Let go of the dense weight that the layer it stands for has: its memory is free, where nobody else has it.

        `hand_back` makes it again.
        """
        if self.origin is not None:
            dense = self.origin.layer_of(self)
            parameter = dense._parameters["weight"]
            if parameter is not None:
                self._reference, self._requires_grad = weakref.ref(parameter), parameter.requires_grad
                self._version = version_of(parameter)
                dense._parameters["weight"] = None
        self._parameters["weight"] = None

    def hand_back(self) -> None:
        """Have a dense weight again, a parameter: the one that it was made of where that is alive, and what it was."""
        parameter = None if self._reference is None else self._reference()
        if parameter is None or version_of(parameter) != self._version:
            with torch.inference_mode(False):
                parameter = torch.nn.Parameter(self.packed.dense(), self._requires_grad)
        self._parameters["weight"] = parameter

    def forget_weight(self) -> None:
        """The layer that it stands for has its weight: whoever still calls this one calls what it was."""
        self._parameters["weight"] = None

    def _take(self, packed: PackedWeight) -> None:
        raise NotImplementedError


def version_of(parameter: Tensor) -> int:
    """Another one after it was written to, where torch counts that."""
    return -1 if parameter.is_inference() else parameter._version
