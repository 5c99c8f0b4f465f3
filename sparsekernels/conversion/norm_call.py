# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What a norm runs as: `rms_norm`, as long as everything is there that it was recognized by.

It hangs on the module as a graph does (graph/attach.py): the module is the same object, of the same class for its
author, with its parameters, attributes and hooks. Whatever has changed of what its code may read, that code runs.
"""

from __future__ import annotations

import inspect
import itertools
import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .._torch import dispatch_modes, has_function_mode, is_any_autocast_enabled, is_jit_tracing
from ..checks import DTYPES
from ..dispatch import is_transformed
from ..ops.rms_norm.op import rms_norm
from .graph.attach import NO_ANSWER, Recipe, attached, graph_of, own_class
from .norm_probe import PAIRS, is_torchs
from .survey import PLAIN
from .watch.state import attributes_of, is_same


class RMSNormCall:
    """Calls of one norm."""

    def __init__(self, module: nn.Module, recipe: Recipe) -> None:
        self.recipe, self._module = recipe, weakref.ref(module)
        options = recipe.options
        self._options = options["eps"], options["cast"], options["unit_offset"]
        self._weight, self._input, self._shape = options["weight"], options["input"], options["shape"]
        self._absent, self._count = options["absent"], options["count"]
        self._attributes = tuple(options["attributes"].items())
        self._names, self._length = options["attributes"].keys(), 0
        kind = own_class(module)
        self._pairs = frozenset(itertools.product(DTYPES, repeat=2) if kind is nn.RMSNorm else PAIRS)
        bases = [base for base in kind.__mro__ if base is not object and not base.__module__.startswith("torch.")]
        self._classes = tuple(
            (vars(base), name, value)
            for base in bases
            for name, value in vars(base).items()
            if not name.startswith("__")
        )

    @classmethod
    def of(cls, module: nn.Module, options: Mapping[str, Any], by_convert: bool = False) -> RMSNormCall:
        """That of a module which `recognized` gave these options. by_convert: whether it belongs to a conversion."""
        parameters, buffers = module._parameters, module._buffers
        names = [*parameters, *buffers]
        attributes = attributes_of(module)
        own: Any = own_class(module)
        recipe = Recipe(
            cls,
            {
                "eps": options["eps"],
                "cast": options["cast"],
                "unit_offset": options["unit_offset"],
                "weight": names[0] if names and options["elementwise_affine"] else None,
                "input": list(inspect.signature(own.forward).parameters)[1],
                "shape": tuple(attributes["normalized_shape"]) if is_torchs(module) else None,
                "absent": tuple(name for name in names if parameters.get(name) is None and buffers.get(name) is None),
                "count": len(names),
                "attributes": attributes,
                "by_convert": by_convert,
            },
        )
        return cls(module, recipe)

    @classmethod
    def of_recipe(cls, module: nn.Module, recipe: Recipe) -> RMSNormCall:
        """What a recipe of this class makes of a module."""
        return cls(module, recipe)

    def answer(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """What the module's `forward` returns; `NO_ANSWER` where its own has to run."""
        if len(args) == 1 and not kwargs:
            input = args[0]
        elif not args and len(kwargs) == 1 and self._input in kwargs:
            input = kwargs[self._input]
        else:
            return NO_ANSWER
        if type(input) not in PLAIN or input.layout is not torch.strided or input.is_nested:
            return NO_ANSWER
        if is_any_autocast_enabled() or is_transformed() or is_jit_tracing() or has_function_mode() or dispatch_modes():
            return NO_ANSWER
        module = self._module()
        if module is None or not self.holds():
            return NO_ANSWER
        shape = self._shape or input.shape[-1:]
        if not shape or input.shape[-len(shape) :] != shape:
            return NO_ANSWER
        weight: Tensor | None = None
        dtypes = input.dtype, input.dtype
        if self._weight is not None:
            own = module.__dict__
            weight = own["_parameters"].get(self._weight)
            if weight is None:
                weight = own["_buffers"].get(self._weight)
            if type(weight) not in PLAIN or weight.shape != shape or weight.device != input.device:
                return NO_ANSWER
            dtypes = input.dtype, weight.dtype
        if dtypes not in self._pairs:
            return NO_ANSWER
        return rms_norm(input, shape, weight, *self._options)

    def holds(self) -> bool:
        """Whether the module has what it was recognized by: attributes, tensors by their names, and code."""
        module = self._module()
        if module is None:
            return False
        own = module.__dict__
        parameters, buffers = own["_parameters"], own["_buffers"]
        if len(parameters) + len(buffers) != self._count or own["_modules"]:
            return False
        if len(own) != self._length:
            if attributes_of(module).keys() != self._names:
                return False
            self._length = len(own)
        for name, value in self._attributes:
            now = own[name]
            if now is not value and not _is_equal(now, value):
                return False
        for name in self._absent:
            if parameters.get(name) is not None or buffers.get(name) is not None:
                return False
        return all(place.get(name) is value for place, name, value in self._classes)


def norm_call_of(module: nn.Module) -> RMSNormCall | None:
    """What a norm runs as, if it does."""
    recipe = attached(module)
    if recipe is None or recipe.kind is not RMSNormCall:
        return None
    found = graph_of(module)
    return found if isinstance(found, RMSNormCall) else None


def is_plain_value(value: object) -> bool:
    """Whether it cannot change without being another."""
    if type(value) in (tuple, torch.Size):
        return all(map(is_plain_value, value))  # type: ignore[call-overload]
    return value is None or type(value) in (bool, int, float, str, torch.dtype, torch.device)


def _is_equal(value: Any, other: Any) -> bool:
    if type(value) is type(other) and type(value) in (tuple, torch.Size):
        return len(value) == len(other) and all(map(_is_equal, value, other))
    if type(value) is type(other) is torch.device:
        return bool(value == other)
    return is_same(value, other)
