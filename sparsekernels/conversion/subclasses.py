# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Subclasses of Conv2d, Conv1d and Linear that only cast and pad before they multiply, and what takes their place.

What such a class does is not known by its name: a call of it is recorded, function by function. Where it asked a tensor
for nothing but sizes and kinds, its next call on the same sizes and kinds, with the same attributes, does the same.
"""

from __future__ import annotations

import contextlib
import inspect
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..dispatch import is_special
from ..nn import ChannelDroppedConv2d, ChannelDroppedLinear, SparseConv1d, SparseConv2d, SparseLinear
from ..nn.replacement import Replacement, own_attributes, share_attributes
from ..ops.convolution import pair
from .modules import has_hooks
from .watch.state import attributes_or_none, stamp_of


def _getters(*names: str) -> list[Any]:
    return [getattr(Tensor, name).__get__ for name in names]


_ASKS_KIND = (*_getters("dtype", "device", "layout", "is_cuda"), Tensor.is_floating_point)
_ASKS_SIZE = (*_getters("shape", "ndim"), Tensor.size, Tensor.dim, Tensor.ndimension)
_CASTS = (Tensor.to, Tensor.float, Tensor.half, Tensor.bfloat16, Tensor.type_as, Tensor.contiguous)

_SETTINGS = ("stride", "padding", "dilation", "groups", "padding_mode")
_MOST_KEPT = 256
"""Sizes for which steps are kept; then they are recorded anew."""


@dataclass(frozen=True)
class Steps:
    """What a layer does beside the product.

    dtype: what the input is cast to, None where it is not. pads: zeros left, right, above and below, beside the
    layer's own padding. result: what the result is cast to. asks_sizes: whether other sizes may have other steps.
    """

    dtype: torch.dtype | None
    pads: tuple[int, ...]
    result: torch.dtype | None
    asks_sizes: bool

    @property
    def casts(self) -> bool:
        return self.dtype is not None or self.result is not None

    def before(self, input: Tensor) -> Tensor:
        """What the product takes."""
        input = input if self.dtype is None else input.to(self.dtype)
        return F.pad(input, self.pads) if any(self.pads) else input

    def after(self, product: Tensor) -> Tensor:
        return product if self.result is None else product.to(self.result)


class _Recorder(TorchFunctionMode):
    """Follows a call from its input through casts and padding to one product by the layer's own weight and bias."""

    def __init__(self, module: Any, input: Tensor) -> None:
        super().__init__()
        self._module, self._now = module, input
        self._own = [one for one in (module.weight, module.bias) if one is not None]
        self._fits, self._product, self._asks_sizes = True, False, False
        self._given, self._taken, self._made = input.dtype, input.dtype, input.dtype
        self._pads: tuple[int, ...] = (0, 0, 0, 0)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self._fits = self._fits and self._follows(func, args, kwargs or {}, result)
        return result

    def steps(self, result: object) -> Steps | None:
        """What was done for `result`; None where that was something else."""
        if not (self._fits and self._product and isinstance(result, Tensor) and result is self._now):
            return None
        dtype = None if self._taken == self._given else self._taken
        after = None if result.dtype == self._made else result.dtype
        return Steps(dtype, self._pads, after, self._asks_sizes)

    def _follows(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: object) -> bool:
        if func in _ASKS_SIZE:
            self._asks_sizes = True
            return True
        if func in _ASKS_KIND:
            return True
        if func in _CASTS and any(args[0] is one for one in self._own):
            return result is args[0]
        if not isinstance(result, Tensor):
            return False
        if func in _CASTS:
            fits = args[0] is self._now and result.device == args[0].device
        elif func is F.pad:
            fits = not self._product and self._is_padding(*args, **kwargs)
        elif func in (torch.conv2d, torch.conv1d, F.linear):
            fits = not self._product and self._is_product(func, *args, **kwargs)
            self._product, self._made = True, result.dtype
        else:
            fits = False
        self._now = result
        return fits

    def _is_padding(self, input: Tensor, pad: Any, mode: str = "constant", value: Any = None) -> bool:
        sides, module = (*pad, 0, 0)[:4], self._module
        dims = 4 if isinstance(module, nn.Conv2d) else 3
        if input is not self._now or input.dim() != dims or mode != "constant" or value not in (None, 0):
            return False
        if dims == 3 and any(sides[2:]):  # channels
            return False
        if len(pad) not in (2, 4) or any(type(side) is not int or side < 0 for side in sides):
            return False
        self._pads = tuple(map(operator.add, self._pads, sides))
        return isinstance(module, nn.Conv2d | nn.Conv1d)

    def _is_product(
        self, func: Any, input: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any, **more: Any
    ) -> bool:
        module = self._module
        self._taken = input.dtype
        if input is not self._now or weight is not module.weight or bias is not module.bias:
            return False
        if isinstance(module, nn.Linear):
            return func is F.linear
        product, dims = (torch.conv2d, 2) if isinstance(module, nn.Conv2d) else (torch.conv1d, 1)
        given = dict(zip(("stride", "padding", "dilation", "groups"), rest, strict=False)) | more
        padding = given.get("padding", 0)
        strides = [(given.get(name, 1), getattr(module, name)) for name in ("stride", "dilation")]
        if isinstance(padding, str) or isinstance(module.padding, str):
            pads_alike = padding == module.padding
        else:
            pads_alike = pair("conv", "padding", padding, 0, dims) == pair("conv", "padding", module.padding, 0, dims)
        return (
            func is product
            and module.padding_mode == "zeros"
            and given.get("groups", 1) == module.groups
            and all(pair("conv", "", one, 1, dims) == pair("conv", "", other, 1, dims) for one, other in strides)
            and pads_alike
        )


def recorded(module: nn.Module, input: Tensor) -> tuple[object, Steps | None]:
    """What the code of a subclass of a layer gives, and what it did; None where that was something else."""
    recorder = _Recorder(module, input)
    before = own_attributes(module)
    with recorder:
        result = type(module).forward(module, input)  # type: ignore[arg-type]
    after = own_attributes(module)
    same = before.keys() == after.keys() and all(after[name] is value for name, value in before.items())
    return result, recorder.steps(result) if same else None


_OF_THE_KIND = ("__call__", "state_dict", "load_state_dict", "_save_to_state_dict", "_load_from_state_dict", "_apply")


def has_own_forward_only(module: nn.Module) -> bool:
    """Whether nothing is at stake but the forward of a subclass: it is called, saved and loaded as its base is.

    Its children may have code of their own, and no parameters, buffers and hooks.
    """
    children = [child for child in module.modules() if child is not module]
    if any(child._parameters or child._buffers or has_hooks(child) for child in children):
        return False
    return all(getattr(type(module), name) is getattr(nn.Module, name) for name in _OF_THE_KIND)


class Instead:
    """The layer of a subclass that a replacement stands for, and the steps that it takes for tensors of each kind."""

    def __init__(self, source: Any) -> None:
        self.source = source
        self._settings: object = None
        self._steps: dict[object, Steps | None] = {}
        self._asks_sizes = True

    def __getstate__(self) -> dict[str, Any]:
        return {"source": self.source}  # the rest is recorded anew

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["source"])  # type: ignore[misc]

    def steps_for(self, layer: Any, input: Tensor) -> Steps | None:
        """What the source does with `input` before and after its product, where that was recorded.

        layer: the replacement, whose attributes count.
        """
        if self._settings != self._settings_of(layer):
            return None
        return self._steps.get(self._key_of(input))

    def run(self, layer: Any, input: Tensor) -> Tensor:
        """A call of the source with the present parameters and attributes of `layer`; what it does is recorded."""
        with self._lent(layer) as source:
            if not _is_recordable(layer, input):
                result: Tensor = type(source).forward(source, input)
                return result
            settings = self._settings_of(layer)
            if settings != self._settings or len(self._steps) >= _MOST_KEPT:
                self._settings, self._steps, self._asks_sizes = settings, {}, False
            given: Any
            given, steps = recorded(source, input)
            if steps is not None and steps.asks_sizes and not self._asks_sizes:
                self._asks_sizes, self._steps = True, {}
            self._steps[self._key_of(input)] = steps
            return given  # type: ignore[no-any-return]

    @contextlib.contextmanager
    def _lent(self, layer: Any) -> Iterator[Any]:
        source = self.source
        share_attributes(layer, source)
        for name in _SETTINGS:
            if hasattr(layer, name):
                setattr(source, name, getattr(layer, name))
        source.training = layer.training
        kept = dict(source._parameters)
        source._parameters.update(weight=layer.weight, bias=layer.bias)
        try:
            yield source
        finally:
            source._parameters.update(kept)

    def _key_of(self, input: Tensor) -> object:
        sizes = tuple(input.shape) if self._asks_sizes else input.dim()
        return input.dtype, sizes, torch.is_grad_enabled()

    def _settings_of(self, layer: Any) -> object:
        names = [getattr(layer, name, None) for name in _SETTINGS]
        attributes = {name: _frozen(value) for name, value in own_attributes(layer).items()}
        weight, bias = layer.weight, layer.bias
        kinds = weight.dtype, None if bias is None else bias.dtype
        return names, attributes, kinds, layer.training, type(self.source).forward


def _is_recordable(layer: nn.Module, input: object) -> bool:
    """Whether what a call does may be recorded, or was. Not where its weight is computed: that is done once a call."""
    if type(input) is not Tensor or is_special() or torch.compiler.is_compiling():
        return False
    return "weight" in layer._parameters and "bias" in layer._parameters


class _Same:
    """An object, equal to itself alone."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.value is self.value

    __hash__ = None  # type: ignore[assignment]


def _frozen(value: Any, within: tuple[int, ...] = ()) -> object:
    """What an attribute is, at any depth, so that one that is changed in place is another."""
    if isinstance(value, bool | int | float | str | None):
        return type(value), value
    if id(value) in within:
        return None
    within = (*within, id(value))
    if isinstance(value, dict):
        return _Same(value), {key: _frozen(one, within) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value), [_frozen(one, within) for one in value]
    if isinstance(value, Tensor):
        return _Same(value), stamp_of(value)
    attributes = attributes_or_none(value)
    held = None if attributes is None else {name: _frozen(one, within) for name, one in attributes.items()}
    return _Same(value), held


class OfSubclass(Replacement):
    """What the classes below have in common: they cast and pad as the subclass did whose place they take.

    On sizes and kinds that were not seen before, and where an attribute has changed, its own code runs once, and what
    it does is recorded; where that is more than to cast and pad, its own code always runs.
    """

    instead: Instead

    @classmethod
    def sharing(cls, module: Any, *format: Any) -> Any:
        result = super().sharing(module, *format)  # type: ignore[safe-super]
        result.instead = Instead(module)
        share_attributes(module, result)
        result._modules.update(module._modules)
        return result

    def __getattr__(self, name: str) -> Any:
        """What the subclass has beside, its methods and class attributes."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            instead = vars(self).get("instead")
            if instead is None or not hasattr(type(instead.source), name):
                raise
            value = inspect.getattr_static(type(instead.source), name)
            return value.__get__(self, type(self)) if hasattr(value, "__get__") else value

    def forward(self, input: Tensor) -> Tensor:
        steps = self.instead.steps_for(self, input) if _is_recordable(self, input) else None
        if steps is None:
            return self.instead.run(self, input)
        product: Tensor = super().forward(steps.before(input))  # type: ignore[misc]
        return steps.after(product)


class SubclassSparseConv2d(OfSubclass, SparseConv2d):
    """In the place of a Conv2d's subclass."""


class SubclassSparseConv1d(OfSubclass, SparseConv1d):
    """In the place of a Conv1d's subclass."""


class SubclassSparseLinear(OfSubclass, SparseLinear):
    """In the place of a Linear's subclass."""


class SubclassChannelDroppedConv2d(OfSubclass, ChannelDroppedConv2d):
    """In the place of a Conv2d's subclass."""


class SubclassChannelDroppedLinear(OfSubclass, ChannelDroppedLinear):
    """In the place of a Linear's subclass."""
