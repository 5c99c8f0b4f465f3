# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Linear layers and convolutions without their filters and input channels that are all zero.

More than 400 lines: both kinds of layers share how channels are found, read and spread.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor

from .._torch import is_exported_to_onnx
from ..ops.sparse_conv2d.outside import Guard, Outside, is_for_torch, is_recorded
from ..ops.sparse_conv2d.reference import is_channels_last
from .replacement import Replacement, check_dense, copy_parameters, dense_or_none, options_of, share_parameters


def used_pairs(weight: Tensor) -> Tensor:
    """bool [out, in]: True where a filter has a nonzero for an input channel."""
    used = weight.detach() != 0
    return used.flatten(2).any(2) if used.dim() > 2 else used


def select(input: Tensor, channel: int, places: Tensor) -> Tensor:
    """What `input` has at some places along a dimension, counted from the last; images in channels_last stay that."""
    if channel == -3 and is_channels_last(input):
        return input.movedim(-3, -1).index_select(-1, places).movedim(-1, -3)
    return input.index_select(channel, places)


def spread(
    result: Tensor, outputs: Tensor, size: int, bias: Tensor | None, channel: int, channels_last: bool = False
) -> Tensor:
    """`result` at the places `outputs` of `size` along a dimension; elsewhere the bias [size], or zeros without.

    channel: the dimension, counted from the last, which is -1. channels_last: the layout of the images that it gives.
    """
    sizes = [*result.shape]
    sizes[channel] = size
    base = result.new_zeros(size) if bias is None else bias.to(result.dtype)
    base = base.view(-1, *[1] * (-channel - 1)).expand(sizes)
    if channels_last:  # the copy that index_copy makes is contiguous
        return base.clone(memory_format=torch.channels_last).index_copy_(channel, outputs, result)
    return base.index_copy(channel, outputs, result)


def at(bias: Tensor | None, outputs: Tensor) -> Tensor | None:
    """The bias of some outputs."""
    return None if bias is None else bias.index_select(0, outputs)


class Kept:
    """The part of a weight [out, in, ...] that some outputs have of some inputs. Immutable."""

    def __init__(self, shape: tuple[int, ...], outputs: Tensor, inputs: Tensor) -> None:
        self.shape, self.outputs, self.inputs = shape, outputs, inputs
        self.part = (outputs.numel(), inputs.numel(), *shape[2:])

    @property
    def device(self) -> torch.device:
        return self.outputs.device

    @property
    def nnz(self) -> int:
        return math.prod(self.part)

    @property
    def mask(self) -> Tensor:
        mask = torch.zeros(self.shape, dtype=torch.bool, device=self.device)
        mask[self.outputs[:, None], self.inputs] = True
        return mask

    @property
    def flat_indices(self) -> Tensor:
        """int64 [nnz], where in `weight.flatten()` they are."""
        taps = math.prod(self.shape[2:])
        pairs = self.outputs[:, None] * self.shape[1] + self.inputs
        return (pairs.flatten()[:, None] * taps + torch.arange(taps, device=self.device)).flatten()

    def values_of(self, weight: Tensor) -> Tensor:
        """weight[outputs][:, inputs]. Differentiable."""
        if self.part[0] < self.shape[0]:
            weight = weight.index_select(0, self.outputs)
        return weight.index_select(1, self.inputs) if self.part[1] < self.shape[1] else weight


class ChannelDropped(Replacement):
    """What the two modules below have in common: which filters and input channels take part."""

    outputs: Tensor
    inputs: Tensor
    _choice = ("outputs", "inputs")
    _remedy = (
        "set_channels() makes them part of it; where they are to stay zero, apply the masks after the optimizer's step"
    )

    def _start(self) -> None:
        self._guard = Guard()
        device = "cpu" if self.weight.is_meta else self.weight.device  # of all, the places are known there too
        self._keep(torch.ones(self.weight.shape[:2], dtype=torch.bool, device=device))

    def _keep(self, pairs: Tensor) -> None:
        """pairs [out, in]: True where a filter has a nonzero for an input channel."""
        self.outputs, self.inputs = (used.nonzero()[:, 0] for used in (pairs.any(1), pairs.any(0)))
        self._kept = Kept(tuple(self.weight.shape), self.outputs, self.inputs)
        self._guard.forget()

    def set_channels(self) -> None:
        """Leave out the filters and input channels that are all zero in `weight` now, and no others."""
        self._keep(used_pairs(self.weight))

    @property
    def places(self) -> Kept:
        """What takes part. The same object until that changes."""
        kept = self._kept
        if kept.outputs is not self.outputs or kept.inputs is not self.inputs:  # they were assigned
            kept = Kept(kept.shape, self.outputs, self.inputs)
            if not torch.compiler.is_compiling():
                self._kept = kept
        return kept

    @property
    def drops_outputs(self) -> bool:
        return self.outputs.numel() < self.weight.size(0)

    @property
    def drops_inputs(self) -> bool:
        return self.inputs.numel() < self.weight.size(1)

    def outside(self) -> int:
        """How many weights of what is left out are not zero: then the layer computes with all of them.

        Returns:
            The number; negative where the weight is of another shape or device, or not an ordinary tensor.
        """
        return self._outside_of(self.weight)

    def _outside_of(self, weight: Tensor) -> int:
        return self._guard.outside(self.places, weight)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        weight = self._kept_weight()
        if weight is not None and not weight.is_meta and self.outputs.device != weight.device:
            self.outputs, self.inputs = self.outputs.to(weight.device), self.inputs.to(weight.device)
        return self

    @classmethod
    def sharing(cls, module: Any) -> Any:
        """A layer that leaves out what is zero in `module`, whose parameters it shares.

        Args:
            module: A torch.nn.Conv2d or Linear.

        Returns:
            The layer.

        Raises:
            TypeError: For a module of another class.
        """
        check_dense(f"{cls.__name__}.sharing", module, cls)
        result = cls(**options_of(module))
        share_parameters(module, result)
        result.set_channels()
        return result

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        if prefix + "weight" in state_dict and not self.weight.is_meta:
            self.set_channels()

    def _fill_from(self, module: Any) -> Any:
        copy_parameters(module, self, module.weight.detach())
        self.set_channels()
        return self

    def extra_repr(self) -> str:
        outputs = f"{self.outputs.numel()} of {self.weight.size(0)} outputs"
        return f"{super().extra_repr()}, computes {outputs}, {self.inputs.numel()} of {self.weight.size(1)} inputs"


def _check(name: str, module: Any, accepted: type) -> None:
    if not isinstance(module, accepted):
        raise TypeError(
            f"{name}.from_dense: expected module to be a torch.nn.{accepted.__name__}, got {type(module).__name__}"
        )
    groups = getattr(module, "groups", 1)
    if groups != 1:
        raise ValueError(f"{name}.from_dense: expected module with 1 group, got {groups}")


def part_of(weight: Tensor | None, kept: Kept, guard: Guard | None, multiply_adds: float) -> Tensor:
    """What is kept of a weight, differentiable. Raises `Outside` where the rest is not zero."""
    if weight is None:
        raise Outside  # and torch says what it expects
    if guard is None and not is_recorded(weight):
        part = kept.values_of(weight)
        if int(part.count_nonzero()) != int(weight.count_nonzero()):
            raise Outside
        return part
    part = (guard or Guard()).values(kept, weight, multiply_adds)
    return part.view(kept.part) if part.dim() == 1 else part


def check_size(input: Tensor, dim: int, size: int) -> None:
    """Raise ValueError for an input of another size: whoever takes some of its channels would find them in any."""
    if input.dim() < -dim or input.size(dim) != size:
        what = "features" if dim == -1 else "channels"
        raise ValueError(f"a channel-dropped layer: expected input of {size} {what}, got {list(input.shape)}")


def _leave_to_torch(input: Tensor, weight: Tensor | None, bias: Tensor | None, kept: Kept, guard: Guard | None) -> None:
    """Raise `Outside` where torch's own product is to be asked, which broadcasts a bias, refuses devices and lists."""
    if not isinstance(input, Tensor):
        raise Outside
    others = input.layout is not torch.strided and is_for_torch(input)
    others = others or (weight is not None and input.device != weight.device)
    if guard is not None and (others or (bias is not None and bias.shape != kept.shape[:1])):
        raise Outside


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None, kept: Kept, guard: Guard | None) -> Tensor:
    _leave_to_torch(input, weight, bias, kept, guard)
    part = part_of(weight, kept, guard, input.numel() / max(kept.shape[1], 1) * kept.nnz)
    check_size(input, -1, kept.shape[1])
    drops_outputs, drops_inputs = kept.part[0] < kept.shape[0], kept.part[1] < kept.shape[1]
    read = input.index_select(-1, kept.inputs) if drops_inputs else input
    if not drops_outputs:
        return F.linear(read, part, bias)
    return spread(F.linear(read, part, at(bias, kept.outputs)), kept.outputs, kept.shape[0], bias, -1)


def linear_without_channels(
    input: Tensor, weight: Tensor, bias: Tensor | None, outputs: Tensor, inputs: Tensor
) -> Tensor:
    """A call of `ChannelDroppedLinear` as a graph of torch.fx has it."""
    try:
        return _linear(input, weight, bias, Kept(tuple(weight.shape), outputs, inputs), None)
    except Outside:
        return F.linear(input, weight, bias)


torch.fx.wrap("linear_without_channels")


class ChannelDroppedLinear(ChannelDropped, torch.nn.Linear):
    """Drop-in for `torch.nn.Linear` that computes without the rows and columns of its weight that are all zero.

        y = x W^T + b   exactly: an output whose row is zero is its bias

    `from_dense` finds them; the constructor is torch's and leaves nothing out. `weight` and `state_dict` are those of
    the dense layer, and so are shapes, dtypes and devices: the product is torch's. The weights that are left
    out get a gradient of zero. Where one of them is not zero any more, the layer computes with the whole weight and
    warns once, as `SparseLinear` does; `set_channels` takes it in. `load_state_dict` looks for zeros anew.

    Args:
        *args, **kwargs: As torch.nn.Linear's.

    Attributes:
        outputs: int64, the outputs that are computed.
        inputs: int64, the inputs that are read.
        dense_rows: For which numbers of rows calls without gradients multiply by all of `weight`, as `SparseLinear` has
            it.

    Raises:
        ValueError: In a call, for an input of another number of features.
    """

    dense_rows: tuple[int, ...] = ()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._start()

    @classmethod
    def from_dense(cls, module: torch.nn.Linear) -> ChannelDroppedLinear:
        """A layer with copies of the parameters of `module`.

        Args:
            module: The layer to take over.

        Returns:
            The layer; `module` is left as it is.

        Raises:
            TypeError: For a module that is not a torch.nn.Linear.
        """
        _check("ChannelDroppedLinear", module, torch.nn.Linear)
        return cls(module.in_features, module.out_features, module.bias is not None, "meta")._fill_from(module)

    def forward(self, input: Tensor) -> Tensor:
        if not isinstance(input, Tensor):  # torch.fx's Proxy
            return linear_without_channels(input, self.weight, self.bias, self.outputs, self.inputs)
        product = dense_or_none(self, input) if self.dense_rows else None
        if product is not None:
            return product
        if is_exported_to_onnx(input):
            return F.linear(input, self.weight, self.bias)
        weight, bias = self.weight, self.bias  # once, for where they are computed, perhaps from random numbers
        try:
            return _linear(input, weight, bias, self.places, self._guard)
        except Outside:
            return F.linear(input, self._dense_weight(input, weight), bias)


Convolution = Callable[[Tensor, Tensor, "Tensor | None"], Tensor]


def _conv2d(
    input: Tensor, weight: Tensor, bias: Tensor | None, kept: Kept, guard: Guard | None, convolution: Convolution
) -> Tensor:
    _leave_to_torch(input, weight, bias, kept, guard)
    if input.dim() == 3:  # which lies as a batch of one
        return _conv2d(input.unsqueeze(0), weight, bias, kept, guard, convolution).squeeze(0)
    part = part_of(weight, kept, guard, input.numel() / max(kept.shape[1], 1) * kept.nnz)
    check_size(input, -3, kept.shape[1])
    read = select(input, -3, kept.inputs) if kept.part[1] < kept.shape[1] else input
    if kept.part[0] == kept.shape[0]:
        return convolution(read, part, bias)
    if kept.part[0] == 0:  # torch has no convolution without filters: one stands for its size
        result = convolution(input.narrow(-3, 0, 1), weight[:1, :1], None).narrow(-3, 0, 0)
    else:
        result = convolution(read, part, at(bias, kept.outputs))
    return spread(result, kept.outputs, kept.shape[0], bias, -3, is_channels_last(input))


def conv2d_without_channels(
    input: Tensor, weight: Tensor, bias: Tensor | None, outputs: Tensor, inputs: Tensor, options: Any
) -> Tensor:
    """A call of `ChannelDroppedConv2d` as a graph of torch.fx has it."""
    stride, padding, dilation, padding_mode, padded = options

    def convolution(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if padding_mode != "zeros":
            return F.conv2d(F.pad(input, padded, mode=padding_mode), weight, bias, stride, 0, dilation)
        return F.conv2d(input, weight, bias, stride, padding, dilation)

    try:
        return _conv2d(input, weight, bias, Kept(tuple(weight.shape), outputs, inputs), None, convolution)
    except Outside:
        return convolution(input, weight, bias)


torch.fx.wrap("conv2d_without_channels")


class ChannelDroppedConv2d(ChannelDropped, torch.nn.Conv2d):
    """Drop-in for `torch.nn.Conv2d` that computes without the filters and input channels that are all zero.

    Exact, whatever the padding: a zero filter's output is its bias everywhere, and an input channel that every filter
    multiplies by zero is not read (infinities and NaN in it do not spread). Otherwise as `ChannelDroppedLinear`.

    Args:
        *args, **kwargs: As torch.nn.Conv2d's; groups has to be 1.

    Attributes:
        outputs: int64, the filters that are computed.
        inputs: int64, the input channels that are read.

    Raises:
        ValueError: For more than one group; in a call, for an input of another number of channels.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _check("ChannelDroppedConv2d", self, torch.nn.Conv2d)
        self._start()

    @classmethod
    def from_dense(cls, module: torch.nn.Conv2d) -> ChannelDroppedConv2d:
        """A layer with copies of the parameters of `module`.

        Args:
            module: The layer to take over.

        Returns:
            The layer; `module` is left as it is.

        Raises:
            TypeError: For a module that is not a torch.nn.Conv2d.
            ValueError: For more than one group.
        """
        _check("ChannelDroppedConv2d", module, torch.nn.Conv2d)
        return cls(**options_of(module))._fill_from(module)

    def forward(self, input: Tensor) -> Tensor:
        if not isinstance(input, Tensor):  # torch.fx's Proxy
            padded = tuple(self._reversed_padding_repeated_twice)
            options = self.stride, self.padding, self.dilation, self.padding_mode, padded
            return conv2d_without_channels(input, self.weight, self.bias, self.outputs, self.inputs, options)
        if is_exported_to_onnx(input):
            return self._conv_forward(input, self.weight, self.bias)
        weight, bias = self.weight, self.bias
        try:
            return _conv2d(input, weight, bias, self.places, self._guard, self._conv_forward)
        except Outside:
            return self._conv_forward(input, self._dense_weight(input, weight), bias)
