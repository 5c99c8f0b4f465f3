# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Linear layers and convolutions without their filters and input channels that are all zero."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .replacement import Replacement, check_dense, clear, copy_parameters, options_of, share_parameters


def used_pairs(weight: Tensor) -> Tensor:
    """bool [out, in]: True where a filter has a nonzero for an input channel."""
    used = weight.detach() != 0
    return used.flatten(2).any(2) if used.dim() > 2 else used


def spread(result: Tensor, outputs: Tensor, size: int, bias: Tensor | None, channel: int) -> Tensor:
    """`result` at the places `outputs` of `size` along a dimension; elsewhere the bias [size], or zeros without.

    channel: the dimension, counted from the last, which is -1.
    """
    sizes = [*result.shape]
    sizes[channel] = size
    base = result.new_zeros(size) if bias is None else bias.to(result.dtype)
    return base.view(-1, *[1] * (-channel - 1)).expand(sizes).index_copy(channel, outputs, result)


def at(bias: Tensor | None, outputs: Tensor) -> Tensor | None:
    """The bias of some outputs."""
    return None if bias is None else bias.index_select(0, outputs)


class ChannelDropped(Replacement):
    """What the two modules below have in common: which filters and input channels take part."""

    outputs: Tensor
    inputs: Tensor

    def _start(self) -> None:
        device = "cpu" if self.weight.is_meta else self.weight.device  # of all, the places are known there too
        self._keep(torch.ones(self.weight.shape[:2], dtype=torch.bool, device=device))

    def _keep(self, pairs: Tensor) -> None:
        """pairs [out, in]: True where a filter has a nonzero for an input channel."""
        for name, used in (("outputs", pairs.any(1)), ("inputs", pairs.any(0))):
            self.register_buffer(name, used.nonzero()[:, 0], persistent=False)

    def set_channels(self) -> None:
        """Leave out the filters and input channels that are all zero in `weight` now, and no others."""
        self._keep(used_pairs(self.weight))

    @property
    def drops_outputs(self) -> bool:
        return self.outputs.numel() < self.weight.size(0)

    @property
    def drops_inputs(self) -> bool:
        return self.inputs.numel() < self.weight.size(1)

    def kept_weight(self, weight: Tensor) -> Tensor:
        """The part of a weight that is used: weight[outputs][:, inputs]. Differentiable.

        Args:
            weight: Of the shape of this layer's weight.

        Returns:
            [kept outputs, kept inputs, ...].
        """
        weight = weight.index_select(0, self.outputs) if self.drops_outputs else weight
        return weight.index_select(1, self.inputs) if self.drops_inputs else weight

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

    def clear_unused(self) -> None:
        """Sets the weights of what is left out to zero, in place: an optimizer may have moved them."""
        weight = self.weight
        if type(weight) is not torch.nn.Parameter or weight.is_meta or not (self.drops_outputs or self.drops_inputs):
            return
        used = torch.zeros(weight.shape[:2], dtype=torch.bool, device=weight.device)
        used[self.outputs[:, None], self.inputs] = True
        clear(weight, ~used.view(*used.shape, *[1] * (weight.dim() - 2)))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        if prefix + "weight" in state_dict and not self.weight.is_meta:
            self.set_channels()

    def _fill_from(self, module: Any) -> Any:
        copy_parameters(module, self, module.weight.detach())
        self.set_channels()
        return self

    def extra_repr(self) -> str:
        kept = (
            f"{self.outputs.numel()} of {self.weight.size(0)} outputs, {self.inputs.numel()} of {self.weight.size(1)}"
        )
        return f"{super().extra_repr()}, computes {kept} inputs"


def _check(name: str, module: Any, accepted: type) -> None:
    if not isinstance(module, accepted):
        raise TypeError(
            f"{name}.from_dense: expected module to be a torch.nn.{accepted.__name__}, got {type(module).__name__}"
        )
    groups = getattr(module, "groups", 1)
    if groups != 1:
        raise ValueError(f"{name}.from_dense: expected module with 1 group, got {groups}")


def check_size(input: Tensor, dim: int, size: int) -> None:
    """Raise ValueError for an input of another size: whoever takes some of its channels would find them in any."""
    if input.dim() < -dim or input.size(dim) != size:
        what = "features" if dim == -1 else "channels"
        raise ValueError(f"a channel-dropped layer: expected input of {size} {what}, got {list(input.shape)}")


class ChannelDroppedLinear(ChannelDropped, torch.nn.Linear):
    """Drop-in for `torch.nn.Linear` that computes without the rows and columns of its weight that are all zero.

        y = x W^T + b   exactly: an output whose row is zero is its bias

    `from_dense` finds them; the constructor is torch's and leaves nothing out. `weight` and `state_dict` are those of
    the dense layer, and so are shapes, dtypes and devices: the product is torch's. The weights that are left
    out get a gradient of zero, and `state_dict` makes them zero, in place, before it returns them. `load_state_dict`
    looks for zeros anew; after another change of the weight, `set_channels` does.

    Args:
        *args, **kwargs: As torch.nn.Linear's.

    Attributes:
        outputs: int64, the outputs that are computed.
        inputs: int64, the inputs that are read.

    Raises:
        ValueError: In a call, for an input of another number of features.
    """

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
        check_size(input, -1, self.in_features)
        kept = input.index_select(-1, self.inputs) if self.drops_inputs else input
        weight = self.kept_weight(self.weight)
        if not self.drops_outputs:
            return F.linear(kept, weight, self.bias)
        return spread(
            F.linear(kept, weight, at(self.bias, self.outputs)), self.outputs, self.out_features, self.bias, -1
        )


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
        check_size(input, -3, self.in_channels)
        kept = input.index_select(-3, self.inputs) if self.drops_inputs else input
        weight = self.kept_weight(self.weight)
        if not self.drops_outputs:
            return self._conv_forward(kept, weight, self.bias)
        if self.outputs.numel() == 0:  # torch has no convolution without filters: one stands for its size
            result = self._conv_forward(input.narrow(-3, 0, 1), self.weight[:1, :1], None).narrow(-3, 0, 0)
        else:
            result = self._conv_forward(kept, weight, at(self.bias, self.outputs))
        return spread(result, self.outputs, self.out_channels, self.bias, -3)
