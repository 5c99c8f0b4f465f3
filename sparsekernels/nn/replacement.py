# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What stands in the place of a dense layer, sharing its parameters, and how these pass from one to the other."""

from __future__ import annotations

import copy
import warnings
import weakref
from bisect import bisect_right
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .._torch import are_functorch_transforms_active
from .._transformers import CONV1D, Conv1D, is_conv1d
from ..dispatch import is_special
from ..formats import SparseFormat
from ..ops.sparse_conv2d.outside import Guard, is_for_torch


class Siblings:
    """The layers of one conversion: what goes for several of them is said once. Copies and pickles begin without any;
    layers join again as they are restored."""

    def __init__(self) -> None:
        self._layers: list[weakref.ref[Replacement]] = []

    def add(self, layer: Replacement) -> None:
        """`layer` is one of them."""
        self._layers = [one for one in self._layers if one() is not None] + [weakref.ref(layer)]

    def others(self, layer: Replacement) -> list[Replacement]:
        """Those that are alive, but for `layer`."""
        alive = [one() for one in self._layers]
        return [one for one in alive if one is not None and one is not layer]

    def __reduce__(self) -> tuple[Any, ...]:
        return Siblings, ()


class Origin:
    """The layer that a replacement stands for, which belongs to it alone: shallow copies are given one of their own."""

    def __init__(self, layer: torch.nn.Module, of: Replacement) -> None:
        self._layer = layer
        self.siblings = Siblings()
        self._of: weakref.ref[Replacement] | None = weakref.ref(of)
        self._is_back = False

    def layer_of(self, replacement: Replacement) -> torch.nn.Module:
        """The layer that `replacement` stands for; where that is another's by now, one like it."""
        if self._of is None:  # a deep copy
            self._of = weakref.ref(replacement)
        if self._of() is replacement and not self._is_back:
            return self._layer
        if all(getattr(self._layer, name) is getattr(replacement, name) for name in ("weight", "bias")):
            return self._layer
        twin = copy.copy(self._layer)
        for name in ("_parameters", "_buffers", "_modules"):
            vars(twin)[name] = dict(vars(twin)[name])
        return twin

    def restored(self, replacement: Replacement) -> None:
        """`replacement` has this from a deep copy or a pickle, or shares it with what it is a shallow copy of."""
        if self._of is None:
            self.siblings.add(replacement)

    def names(self, kind: str) -> frozenset[str]:
        """Of the parameters, buffers or modules that the layer has; kind: where torch keeps them."""
        return frozenset(getattr(self._layer, kind))

    def is_back(self, whether: bool) -> None:
        """Whether the layer is in its place, and has the parameters that it had there since."""
        self._is_back = whether

    def __getstate__(self) -> dict[str, Any]:
        return {"_layer": self._layer, "_of": None, "_is_back": self._is_back, "siblings": self.siblings}


class Replacement(torch.nn.Module):
    """A layer that computes what a dense one does, faster where some elements of its weight are zero.

    Attributes:
        weight: The parameter, in its dense shape.
        pattern: Which elements of `weight` are used, where the layer keeps that as a weight format; else None.
        path: Its name in the model, where `convert` made it.
        origin: What it stands for, where `convert` made it.
    """

    weight: Tensor
    pattern: SparseFormat | None = None
    path: str | None = None
    origin: Origin | None = None
    _guard: Guard
    _choice: ClassVar[tuple[str, ...]]
    """Attributes from which `places` follow."""

    @classmethod
    def sharing(cls, module: Any) -> Any:
        """A replacement of `module` that shares its parameters.

        Args:
            module: A layer of the dense class that this one derives from.

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

    def _outside_of(self, weight: Any) -> int:
        """`outside`, of what `weight` is in a call."""
        raise NotImplementedError

    def _kept_weight(self) -> Tensor | None:
        """`weight`, or, where code computes that in each access, what it may be computed from."""
        if "weight" in self._parameters:
            return self._parameters["weight"]
        kept = (*self.parameters(), *self.buffers())
        return kept[0] if kept else getattr(self, "weight", None)

    def _dense_product(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """What the dense layer gives, of a linear layer."""
        return F.linear(input, weight, bias)

    def hand_back(self) -> None:
        """Make the weight what the layer computes with, in place, before another layer gets it."""

    def _dense_weight(self, input: Tensor, weight: Any) -> Any:
        """What torch's product multiplies by where ours does not serve: nonzeros that are left out count, and are told.

        Where it is for the input or the bias alone, what is left out has no gradient, as ever.
        """
        is_comparable = is_for_torch(input) or not are_functorch_transforms_active()
        if is_comparable and self._guard.outside(self.places, weight) == 0:
            return torch.where(self.places.mask, weight, 0)
        self._begin_dense(input, weight)
        return weight

    def _begin_dense(self, input: Tensor, weight: Any) -> None:
        """Before a call with the whole weight: say so, once. Raises ValueError where torch would compute garbage."""
        name = type(self).__name__ if self.path is None else f"{type(self).__name__} {self.path!r}"
        if isinstance(weight, Tensor) and weight.device != input.device:
            raise ValueError(f"{name}: expected weight on {input.device} like input, got {weight.device}")
        guard = self._guard
        if guard.warned:
            return
        count = -1 if are_functorch_transforms_active() else self._outside_of(weight)
        others = self._alike() if count > 0 else {}
        count += sum(others.values())
        what = f"{count} elements of its weight" if count >= 0 else "some elements of its weight, or all,"
        it = "it would leave out are not zero, so it computes with the whole weight, as the dense layer does"
        if others:
            name += f" and {len(others)} more layer{'s' if len(others) > 1 else ''}"
            what = f"{count} elements of their weights"
            it = "they would leave out are not zero, so they compute with the whole weights, as dense layers do"
        again = "" if self.path is None else "Convert the model again if they are meant (a merged adapter); "
        warnings.warn(f"{name}: {what} that {it}. {again}{self._remedy}", stacklevel=5)
        for one in (self, *others):
            one._guard.warned = True  # where warnings are errors, each call raises

    def _alike(self) -> dict[Replacement, int]:
        """The other layers of its conversion that have not said it yet, with how many elements of theirs are meant."""
        others = [] if self.origin is None else self.origin.siblings.others(self)
        others = [one for one in others if not one._guard.warned and "weight" in one._parameters]
        by_weight = {id(one.weight): one for one in others if one.weight is not self.weight}  # of shallow copies once
        counts = {one: one.outside() for one in by_weight.values()}
        return {one: count for one, count in counts.items() if count > 0}

    _remedy = ""

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        vars(self).setdefault("_guard", Guard())
        if self.origin is not None:
            self.origin.restored(self)


DENSE_KINDS = (torch.nn.Linear, torch.nn.Conv2d, torch.nn.Conv1d)
"""The classes of torch that there are replacements of, which derive from them."""

LINEAR_KINDS: tuple[Any, ...] = (torch.nn.Linear, Conv1D)
"""Layers that multiply rows, of which `dense_rows` are measured."""


_OWN = frozenset((*vars(torch.nn.Conv2d(1, 1, 1, device="meta")), *vars(torch.nn.Linear(1, 1, device="meta")))) | {
    "forward",
    "_compiled_call_impl",
    "dense_grad",
    "dense_product",
    "dense_rows",
    "packed_dense_rows",
    "pattern",
    "outputs",
    "inputs",
    "path",
    "origin",
    "_guard",
    "_kept",
    "_flipped",
    "instead",
    "packed",
    "_on_cpu",
    "_seen",
    "_reference",
    "_version",
    "_requires_grad",
}
"""The attributes of dense layers, and of those here."""


def has_rows(table: tuple[int, ...], rows: int) -> bool:
    """Whether a table such as `SparseLinear.dense_rows` has this number of rows."""
    return bisect_right(table, rows) % 2 == 1


def dense_or_none(module: Any, input: Tensor) -> Tensor | None:
    """The dense product of a linear layer, in a plain call without gradients for a number of rows that its table has.

    None for all other calls, and where torch refuses the input: whoever goes on says why. It costs what looking up two
    parameters costs a torch.nn.Linear: small layers are not to be slower for it.
    """
    if type(input) is not Tensor or is_special():
        return None
    if bisect_right(module.dense_rows, input.numel() // (module.in_features or 1)) % 2 == 0:
        return None
    own = module._parameters
    try:
        weight, bias = own["weight"], own["bias"]
    except KeyError:  # a weight that is computed is computed once
        return None
    if torch.is_grad_enabled() and _requires_grad(input, weight, bias):
        return None
    try:
        product: Tensor = module._dense_product(input, weight, bias)
        return product
    except (RuntimeError, TypeError):
        return None


def _requires_grad(*tensors: Any) -> bool:
    return any(isinstance(one, Tensor) and one.requires_grad for one in tensors)


def own_attributes(module: torch.nn.Module) -> dict[str, Any]:
    """What was set on a layer beside the attributes that its kind has."""
    own = _own_names_of(module)
    return {name: value for name, value in vars(module).items() if name not in own}


def _own_names_of(module: torch.nn.Module) -> frozenset[str]:
    """The attributes that its kind has."""
    return _OWN if isinstance(module, DENSE_KINDS) else _OWN.union(_OF_TRANSPOSED)


def share_parameters(source: Any, target: torch.nn.Module) -> None:
    """Let `target` have the parameters of `source`, in their order, and its mode."""
    for name in ("weight", "bias"):
        setattr(target, name, getattr(source, name))
    for name in source._parameters:  # optimizers count them; torch.nn.utils.prune.remove puts a weight behind its bias
        target._parameters[name] = target._parameters.pop(name)
    target.train(source.training)


_OF_LINEAR = ("in_features", "out_features")
_OF_TRANSPOSED = ("nf", "nx")
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
    if isinstance(module, torch.nn.Linear):
        return _OF_LINEAR
    return _OF_CONVOLUTION if isinstance(module, DENSE_KINDS) else _OF_TRANSPOSED


def share_options(source: torch.nn.Module, target: torch.nn.Module) -> None:
    """Give `target` the sizes and the like of `source`, which may have become others: a new head, say."""
    mine, theirs = vars(target), vars(source)
    mine.update(
        {name: theirs[name] for name in (*_options_of(source), "_reversed_padding_repeated_twice") if name in theirs}
    )


def share_attributes(source: torch.nn.Module, target: torch.nn.Module) -> None:
    """Give `target` the attributes that were set on `source`, and remove those that were not."""
    mine, theirs, own = vars(target), vars(source), _own_names_of(source)
    for name in [name for name in mine if name not in own and name not in theirs]:
        del mine[name]
    mine.update({name: value for name, value in theirs.items() if name not in own})


def copy_parameters(source: Any, target: torch.nn.Module, weight: Tensor) -> None:
    for name, tensor in (("weight", weight), ("bias", source.bias)):
        if isinstance(tensor, Tensor):
            copy = tensor.detach().clone(memory_format=torch.preserve_format)
            setattr(target, name, torch.nn.Parameter(copy, getattr(source, name).requires_grad))
    target.train(source.training)


def check_dense(name: str, module: object, replacement: type) -> None:
    """Raise TypeError unless `module` is of the dense class that `replacement` takes the place of."""
    kind = next((kind for kind in DENSE_KINDS if issubclass(replacement, kind)), None)
    if not (is_conv1d(module) if kind is None else isinstance(module, kind)):
        accepted = ".".join(CONV1D) if kind is None else f"torch.nn.{kind.__name__}"
        raise TypeError(f"{name}: expected module to be a {accepted}, got {type(module).__name__}")


def options_of(module: Any) -> dict[str, Any]:
    """What the constructor of a dense layer was called with; on meta, where nothing is initialized."""
    return {name: getattr(module, name) for name in _options_of(module)} | {
        "bias": module.bias is not None,
        "device": "meta",
    }


def choice_of(layer: Replacement) -> Iterator[tuple[dict[str, Any], str, Any]]:
    """What its `places` follow from: where it is kept, under which name, and what it is."""
    return ((vars(layer), name, vars(layer)[name]) for name in layer._choice)
