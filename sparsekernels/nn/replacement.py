# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What stands in the place of a dense layer, sharing its parameters, and how these pass from one to the other."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from .._torch import are_functorch_transforms_active
from ..formats import SparseFormat
from ..ops.sparse_conv2d.outside import Guard


class Replacement(torch.nn.Module):
    """A layer that computes what a torch.nn.Conv2d or Linear does, faster where some elements of its weight are zero.

    Attributes:
        weight: The parameter, in its dense shape.
        pattern: Which elements of `weight` are used, where the layer keeps that as a weight format; else None.
        path: Its name in the model, where `convert` made it.
    """

    weight: Tensor
    pattern: SparseFormat | None = None
    path: str | None = None
    _guard: Guard
    _choice: ClassVar[tuple[str, ...]]
    """Attributes from which `places` follow."""

    @classmethod
    def sharing(cls, module: Any) -> Any:
        """A replacement of `module` that shares its parameters.

        Args:
            module: A torch.nn.Conv2d or Linear.

        Returns:
            The layer, which uses what is not zero in the weight now.
        """
        raise NotImplementedError

    @property
    def places(self) -> Any:
        """Which elements of the weight it computes with. The same object until that changes."""
        raise NotImplementedError

    def outside(self) -> int:
        """How many elements of `weight` that are left out are not zero: then the layer computes with all of it.

        Returns:
            The number, of all of the weight; 0 where the layer reads none of them by design; negative where its weight
            cannot be compared with what it leaves out: another shape, or not an ordinary tensor.
        """
        raise NotImplementedError

    def hand_back(self) -> None:
        """Make the weight what the layer computes with, in place, before another layer gets it."""

    def _begin_dense(self, input: Tensor, weight: Any) -> None:
        """Before a call with the whole weight: say so, once. Raises ValueError where torch would compute garbage."""
        name = type(self).__name__ if self.path is None else f"{type(self).__name__} {self.path!r}"
        if isinstance(weight, Tensor) and weight.device != input.device:
            raise ValueError(f"{name}: expected weight on {input.device} like input, got {weight.device}")
        guard = self._guard
        if guard.warned:
            return
        guard.warned = True
        count = -1 if are_functorch_transforms_active() else self.outside()
        what = f"{count} elements of its weight" if count >= 0 else "some elements of its weight, or all,"
        warnings.warn(
            f"{name}: {what} that it would leave out are not zero, so it computes with the whole weight, as the dense"
            f" layer does. {self._remedy}",
            stacklevel=5,
        )

    _remedy = ""

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        vars(self).setdefault("_guard", Guard())


_OWN = frozenset((*vars(torch.nn.Conv2d(1, 1, 1, device="meta")), *vars(torch.nn.Linear(1, 1, device="meta")))) | {
    "forward",
    "_compiled_call_impl",
    "dense_grad",
    "dense_rows",
    "packed_dense_rows",
    "pattern",
    "outputs",
    "inputs",
    "path",
    "_guard",
    "_kept",
    "instead",
}
"""The attributes of dense layers, and of those here."""


def own_attributes(module: torch.nn.Module) -> dict[str, Any]:
    """What was set on a layer beside the attributes that its kind has."""
    return {name: value for name, value in vars(module).items() if name not in _OWN}


def share_parameters(source: Any, target: torch.nn.Module) -> None:
    """Let `target` have the parameters of `source`, in their order, and its mode."""
    for name in ("weight", "bias"):
        setattr(target, name, getattr(source, name))
    for name in source._parameters:  # optimizers count them; torch.nn.utils.prune.remove puts a weight behind its bias
        target._parameters[name] = target._parameters.pop(name)
    target.train(source.training)


_OF_LINEAR = ("in_features", "out_features")
_OF_CONVOLUTION = (
    "in_channels",
    "out_channels",
    "kernel_size",
    "stride",
    "padding",
    "dilation",
    "groups",
    "padding_mode",
)
"""What the constructors take."""


def _options_of(module: torch.nn.Module) -> tuple[str, ...]:
    return _OF_LINEAR if isinstance(module, torch.nn.Linear) else _OF_CONVOLUTION


def share_options(source: torch.nn.Module, target: torch.nn.Module) -> None:
    """Give `target` the sizes and the like of `source`, which may have become others: a new head, say."""
    mine, theirs = vars(target), vars(source)
    mine.update(
        {name: theirs[name] for name in (*_options_of(source), "_reversed_padding_repeated_twice") if name in theirs}
    )


def share_attributes(source: torch.nn.Module, target: torch.nn.Module) -> None:
    """Give `target` the attributes that were set on `source`, and remove those that were not."""
    mine, theirs = vars(target), vars(source)
    for name in [name for name in mine if name not in _OWN and name not in theirs]:
        del mine[name]
    mine.update({name: value for name, value in theirs.items() if name not in _OWN})


def copy_parameters(source: Any, target: torch.nn.Module, weight: Tensor) -> None:
    for name, tensor in (("weight", weight), ("bias", source.bias)):
        if isinstance(tensor, Tensor):
            copy = tensor.detach().clone(memory_format=torch.preserve_format)
            setattr(target, name, torch.nn.Parameter(copy, getattr(source, name).requires_grad))
    target.train(source.training)


def check_dense(name: str, module: object, replacement: type) -> None:
    """Raise TypeError unless `module` is of the dense class that `replacement` derives from."""
    accepted = torch.nn.Linear if issubclass(replacement, torch.nn.Linear) else torch.nn.Conv2d
    if not isinstance(module, accepted):
        raise TypeError(f"{name}: expected module to be a torch.nn.{accepted.__name__}, got {type(module).__name__}")


def options_of(module: Any) -> dict[str, Any]:
    """What the constructor of a convolution or a Linear was called with; on meta, where nothing is initialized."""
    return {name: getattr(module, name) for name in _options_of(module)} | {
        "bias": module.bias is not None,
        "device": "meta",
    }


def choice_of(layer: Replacement) -> Iterator[tuple[dict[str, Any], str, Any]]:
    """What its `places` follow from: where it is kept, under which name, and what it is."""
    return ((vars(layer), name, vars(layer)[name]) for name in layer._choice)
