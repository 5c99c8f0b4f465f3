# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What stands in the place of a dense layer, sharing its parameters, and how these pass from one to the other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..formats import SparseFormat


class Replacement(torch.nn.Module):
    """A layer that computes what a torch.nn.Conv2d or Linear does, of a weight of which some elements are not read.

    Attributes:
        weight: The parameter, in its dense shape.
        pattern: Which elements of `weight` are used, where the layer keeps that as a weight format; else None.
    """

    weight: Tensor
    pattern: SparseFormat | None = None

    @classmethod
    def sharing(cls, module: Any) -> Any:
        """A replacement of `module` that shares its parameters.

        Args:
            module: A torch.nn.Conv2d or Linear.

        Returns:
            The layer, which uses what is not zero in the weight now.
        """
        raise NotImplementedError

    def clear_unused(self) -> None:
        """Set the elements of `weight` that are not used to zero, in place: an optimizer may have moved them."""
        raise NotImplementedError

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        self.clear_unused()
        super()._save_to_state_dict(destination, prefix, keep_vars)


def clear(weight: torch.nn.Parameter, unused: Tensor) -> None:
    """Sets elements that nothing reads to zero, in place; a zero keeps its sign.

    Through `data`: autograd, which reads none of them either, has no reason to refuse a graph that was made before.
    """
    with torch.inference_mode(weight.is_inference()):
        weight.data.masked_fill_(unused & (weight.data != 0), 0)


_OWN = frozenset((*vars(torch.nn.Conv2d(1, 1, 1, device="meta")), *vars(torch.nn.Linear(1, 1, device="meta")))) | {
    "forward",
    "_compiled_call_impl",
    "dense_grad",
    "dense_rows",
    "packed_dense_rows",
    "pattern",
}
"""The attributes of dense layers, and of those here."""


def share_parameters(source: Any, target: torch.nn.Module) -> None:
    """Let `target` have the parameters of `source`, in their order, and its mode."""
    for name in ("weight", "bias"):
        setattr(target, name, getattr(source, name))
    for name in source._parameters:  # optimizers count them; torch.nn.utils.prune.remove puts a weight behind its bias
        target._parameters[name] = target._parameters.pop(name)
    target.train(source.training)


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
    if isinstance(module, torch.nn.Linear):
        names: tuple[str, ...] = ("in_features", "out_features")
    else:
        names = (
            "in_channels",
            "out_channels",
            "kernel_size",
            "stride",
            "padding",
            "dilation",
            "groups",
            "padding_mode",
        )
    return {name: getattr(module, name) for name in names} | {"bias": module.bias is not None, "device": "meta"}
