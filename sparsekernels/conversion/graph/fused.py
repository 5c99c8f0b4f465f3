# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Layers for inference: a convolution or Linear with its BatchNorm folded in, a residual added and limits kept.

    y = min(max(scale * (W x + b) + shift + residual, low), high)

with scale = gamma / sqrt(running_var + eps) and shift = beta - scale * running_mean of a BatchNorm in evaluation mode
(Ioffe & Szegedy, 2015; arXiv:1502.03167), worked out in float64 from the modules' present parameters by `fold`.

More than 400 lines: what all kinds of layers have in common, beside two of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils import fuse_conv_bn_weights

from ..._torch import convolution_into, convolution_with_limits
from ...formats import SparseFormat
from ...nn.channel_dropped import ChannelDropped, at, check_size, select, spread, used_pairs
from ...nn.replacement import Replacement, has_rows
from ...ops.convolution import LINEAR, Geometry, geometry_of
from ...ops.layer_chain.implementations import LayerChain
from ...ops.sparse_conv2d.implementations import forward as sparse_conv2d_kernel
from ...ops.sparse_conv2d.plans import may_plan, plan_of
from ...ops.sparse_conv2d.plans import run as run_plan
from ...ops.sparse_conv2d.reference import is_channels_last, memory_format
from ..facts import GraphObstacle
from ..modules import is_ordinary

Norm = torch.nn.BatchNorm1d | torch.nn.BatchNorm2d

_MISSING = object()
_REDUCED = (torch.bfloat16, torch.float16)
"""Behind layers of these dtypes, torch normalizes with float32 parameters, too."""


class Fused(torch.nn.Module):
    """A layer, perhaps a BatchNorm behind it, perhaps limits; `forward` takes the input and a residual or None.

    The modules it is made of are not its children: what it computes with is what they held when it was last packed.
    layout: of a dense weight, whatever the layer's own, by which torch computes; `torch.preserve_format` leaves it.

    Neighbors may agree on channels that one does not compute and the other does not read (channels.py): `outputs` and
    `inputs` are then the places of those that there are, in order.
    """

    outputs: Tensor | None = None
    inputs: Tensor | None = None
    taken: tuple[torch.nn.Module, ...] = ()
    """All that it stands for, the ReLU too."""
    takes_residual: bool = False
    """Whether the residual is its own to write to: nobody reads it afterwards."""
    keeps_channels: bool = False
    """Whether none of its channels may be left out."""
    output_dim: ClassVar[int] = 0
    """Of the weight, which one has the outputs."""
    dense_rows: tuple[int, ...] = ()
    """For which numbers of rows it multiplies by `_dense`."""
    _dense: Tensor | None = None

    def __init__(
        self,
        layer: Any,
        norm: Norm | None = None,
        low: float | None = None,
        high: float | None = None,
        layout: torch.memory_format = torch.preserve_format,
    ) -> None:
        super().__init__()
        self.parts: tuple[Any, Norm | None] = (layer, norm)
        self.low, self.high, self.layout = low, high, layout
        self.fold()
        self.pack()

    @classmethod
    def obstacle_of(cls, layer: Any, norm: Norm | None = None) -> GraphObstacle | None:
        """Why nothing can be folded of what the modules hold: anything may have been assigned to them, or deleted."""
        weight: Any = getattr(layer, "weight", None)
        bias: Any = getattr(layer, "bias", _MISSING)
        if not is_ordinary(weight) or not weight.is_floating_point() or weight.numel() == 0:
            return GraphObstacle.PARAMETERS
        if bias is not None and not _is_for_outputs(bias, weight, weight.dtype, cls.output_dim):
            return GraphObstacle.PARAMETERS
        if norm is None:
            return None
        # where it does not count, nothing tells when torch has changed its statistics
        if any(getattr(norm, name, None) is None for name in ("running_mean", "running_var", "num_batches_tracked")):
            return GraphObstacle.NO_STATISTICS
        affine = [getattr(norm, name, _MISSING) for name in ("weight", "bias")]
        tensors = [norm.running_mean, norm.running_var, *(one for one in affine if one is not None)]
        dtypes = (weight.dtype, torch.float32) if weight.dtype in _REDUCED else (weight.dtype,)
        if not any(all(_is_for_outputs(one, weight, dtype) for one in tensors) for dtype in dtypes):
            return GraphObstacle.PARAMETERS
        if weight.dtype is torch.float16 and not _fits_float16(weight, layer.bias, norm):
            return GraphObstacle.RANGE
        return None

    def obstacle(self) -> GraphObstacle | None:
        """Why what the modules hold now cannot take the place of what was folded of them."""
        layer, norm = self.parts
        obstacle = self.obstacle_of(layer, norm)
        if obstacle is None and _kind_of(layer.weight) != _kind_of(self.weight):
            obstacle = GraphObstacle.PARAMETERS  # its neighbors were linked with it as it was
        if obstacle is None and isinstance(layer, Replacement) and layer.outside():
            obstacle = GraphObstacle.PARAMETERS  # it computes with all of its weight
        return obstacle

    def fold(self) -> None:
        """Take over the parameters and statistics that the modules have now: `weight` and `bias` of all channels.

        There is no `obstacle` to that.
        """
        layer: Any
        norm: Any
        layer, norm = self.parts
        weight, bias = self._used_weight(), layer.bias
        if norm is not None:
            scaled, bias = _folded(weight, bias, norm)
            weight = scaled.to(weight.dtype)
        elif bias is not None:
            bias = bias.detach().double()
        self.weight, self.bias = weight, bias
        self.outputs = self.inputs = None

    def _used_weight(self) -> Tensor:
        weight: Tensor = self.parts[0].weight.detach()
        return weight

    def pack(self) -> None:
        """Make what `forward` computes with, of the channels that there are."""
        weight, bias = self.weight, self.bias
        if self.outputs is not None:
            weight, bias = weight[self.outputs], None if bias is None else bias[self.outputs]
        if self.inputs is not None:
            weight = weight[:, self.inputs]
        self._take(self.parts[0], weight, None if bias is None else bias.to(weight.dtype))

    def _take(self, layer: Any, weight: Tensor, bias: Tensor | None) -> None:
        self._weight, self._bias = weight, bias

    def _begin_table(self, layer: Any, weight: Tensor) -> None:
        self.dense_rows = getattr(layer, "packed_dense_rows", ())
        self._dense = weight if self.dense_rows else None

    def constants(self) -> Tensor:
        """[out], float64: what an output is whose weights are all zero, if no residual is added."""
        constants = self.weight.new_zeros(self.weight.size(0), dtype=torch.float64) if self.bias is None else self.bias
        if self.low is None and self.high is None:
            return constants
        return constants.clamp(self.low, self.high)

    @staticmethod
    def may_chain(layer: Any) -> bool:
        """Whether a chain of sparse layers can call it, made of such a layer, dense or replaced."""
        return False

    @property
    def pads_with_zeros(self) -> bool:
        """Whether an input that is the same everywhere is not so at the borders."""
        layer = self.parts[0]
        if isinstance(layer, torch.nn.Linear) or layer.padding_mode != "zeros":
            return False
        return layer.padding != "valid" and layer.padding not in (0, (0, 0))

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        layer, norm = self.parts
        if norm is not None and input.dim() != _dims_of(layer):
            return self._end(norm(layer(input)), residual)  # other dimensions are normalized; or it is an error
        return self._end(self._product(input), residual)

    def _product(self, input: Tensor) -> Tensor:
        raise NotImplementedError

    def _end(self, result: Tensor, residual: Tensor | None) -> Tensor:
        """The residual and the limits, in place: nothing else refers to `result`."""
        if residual is not None:
            if residual.shape == result.shape and residual.dtype == result.dtype:
                result.add_(residual)
            else:
                result = result + residual
        if self.low == 0 and self.high is None:
            return result.relu_()
        if self.low is not None or self.high is not None:
            return result.clamp_(self.low, self.high)
        return result

    def extra_repr(self) -> str:
        layer, norm = self.parts
        return f"{type(layer).__name__}, norm={norm is not None}, low={self.low}, high={self.high}"


def _dims_of(layer: Any) -> int:
    """Of a batch that a BatchNorm behind the layer normalizes by its outputs."""
    kinds = {torch.nn.Linear: 2, torch.nn.Conv1d: 3, torch.nn.Conv2d: 4}
    return next(dims for kind, dims in kinds.items() if isinstance(layer, kind))


def _kind_of(tensor: Tensor) -> tuple[object, ...]:
    return tensor.shape, tensor.dtype, tensor.device


def _folded(weight: Tensor, bias: Tensor | None, norm: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias, in float64, of a layer with the BatchNorm behind it."""
    mean: Any
    variance: Any
    tensors = bias, norm.running_mean, norm.running_var, norm.weight, norm.bias
    bias, mean, variance, gamma, beta = (None if one is None else one.detach().double() for one in tensors)
    scaled, shift = fuse_conv_bn_weights(weight.detach().double(), bias, mean, variance, norm.eps, gamma, beta)
    return scaled.detach(), shift.detach()


def _fits_float16(weight: Tensor, bias: Tensor | None, norm: Any) -> bool:
    """Whether no folded weight or bias overflows, and the largest weight of each output keeps all of its digits."""
    scaled, shift = _folded(weight, bias, norm)
    limits = torch.finfo(torch.float16)
    largest = scaled.flatten(1).abs().amax(1)
    kept = (largest >= limits.smallest_normal) | (largest == 0)
    return bool((kept & (largest <= limits.max) & (shift.abs() <= limits.max)).all())


def _is_for_outputs(tensor: Any, weight: Tensor, dtype: torch.dtype, dim: int = 0) -> bool:
    """Whether it has a number for each output of a layer with `weight`, whose dimension `dim` they are."""
    return is_ordinary(tensor) and _kind_of(tensor) == (weight.shape[dim : dim + 1], dtype, weight.device)


class FusedDense(Fused):
    """torch.nn's convolutions and Linear, and those without their zero channels."""

    @classmethod
    def obstacle_of(cls, layer: Any, norm: Norm | None = None) -> GraphObstacle | None:
        names = ("outputs", "inputs") if isinstance(layer, ChannelDropped) else ()
        places: list[Any] = [getattr(layer, name, None) for name in names]
        if any(not is_ordinary(one) or one.dtype is not torch.int64 or one.dim() != 1 for one in places):
            return GraphObstacle.PARAMETERS
        return super().obstacle_of(layer, norm)

    def _used_weight(self) -> Tensor:
        """The weight; of a layer that drops channels, with the channels chosen when it was made."""
        layer = self.parts[0]
        weight: Tensor = layer.weight.detach()
        if not isinstance(layer, ChannelDropped):
            return weight
        kept = torch.zeros_like(weight)
        kept[layer.outputs[:, None], layer.inputs] = weight[layer.outputs[:, None], layer.inputs]
        return kept

    def _take(self, layer: Any, weight: Tensor, bias: Tensor | None) -> None:
        self._kept: tuple[Tensor | None, Tensor | None] = (None, None)
        self._size, self._inputs = weight.size(0), weight.size(1)
        if isinstance(layer, ChannelDropped):
            used = used_pairs(weight)
            outputs, inputs = (None if some.all() else some.nonzero()[:, 0] for some in (used.any(1), used.any(0)))
            if isinstance(layer, torch.nn.Linear):
                self._begin_table(layer, weight)
            if outputs is None or outputs.numel() > 0:  # nothing at all is computed as it is
                self._kept = outputs, inputs
                weight = weight if outputs is None else weight[outputs]
                weight = weight if inputs is None else weight[:, inputs]
        if not isinstance(layer, torch.nn.Linear):
            kept = self.layout is torch.preserve_format or weight.dim() != 4
            layout = memory_format(is_channels_last(layer.weight)) if kept else self.layout
            weight = weight.contiguous(memory_format=layout)
        super()._take(layer, weight, bias)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        result = self._at_once(input, residual) if self.layout is torch.channels_last else None
        return super().forward(input, residual) if result is None else result

    def _at_once(self, input: Tensor, residual: Tensor | None) -> Tensor | None:
        """In bfloat16 and channels_last: what oneDNN gives, rounded once. None for what it does not do so."""
        layer: Any = self.parts[0]
        operation = convolution_with_limits()
        if operation is None or type(layer) is not torch.nn.Conv2d or layer.padding_mode != "zeros":
            return None
        if input.dtype is not torch.bfloat16 or not input.is_cpu or not is_channels_last(input):
            return None
        padding = (0, 0) if layer.padding == "valid" else layer.padding
        if isinstance(padding, str) or input.size(1) != self._weight.size(1) * layer.groups:
            return None
        if (self.low, self.high) not in ((None, None), (0, None)):
            return None
        limits = "none" if self.low is None else "relu"
        convolution = self._weight, self._bias, padding, layer.stride, layer.dilation, layer.groups
        if residual is None:
            return operation(input, *convolution, limits, [], None)
        if layer.groups != 1:  # it rounds the product before it adds
            return None
        geometry = geometry_of(self._weight.shape, layer.stride, padding, layer.dilation, layer.groups)
        size = input.size(0), self._weight.size(0), *geometry.output_size(input.size(2), input.size(3))
        if residual.shape != size or residual.dtype is not input.dtype or not is_channels_last(residual):
            return None
        end: tuple[Any, ...] = "add", 1.0, None if self.low is None else "relu", [], None
        if self.takes_residual:
            return convolution_into()(residual, input, *convolution, *end)
        return operation.binary(input, residual, *convolution, *end)  # type: ignore[attr-defined, no-any-return]

    def _product(self, input: Tensor) -> Tensor:
        layer = self.parts[0]
        linear = isinstance(layer, torch.nn.Linear)
        product: Callable[..., Tensor] = F.linear if linear else layer._conv_forward
        outputs, inputs = self._kept
        channel = -1 if linear else 1 - layer.weight.dim()
        if self._dense is not None and has_rows(self.dense_rows, input.numel() // (self._inputs or 1)):
            return F.linear(input, self._dense, self._bias)
        if inputs is not None:
            check_size(input, channel, self._inputs)
            read = select(input, channel, inputs)
        else:
            read = input
        if outputs is None:
            return product(read, self._weight, self._bias)
        result = product(read, self._weight, at(self._bias, outputs))
        last = not linear and is_channels_last(input)
        return spread(result, outputs, self._size, self._bias, channel, last)


class FusedSparse(Fused):
    """sparsekernels.nn's SparseConv2d, SparseConv1d and SparseLinear: one call of the kernel does it all."""

    @classmethod
    def obstacle_of(cls, layer: Any, norm: Norm | None = None) -> GraphObstacle | None:
        obstacle, pattern = super().obstacle_of(layer, norm), layer.pattern
        if obstacle is None and not (isinstance(pattern, SparseFormat) and pattern.shape == layer.weight.shape):
            obstacle = GraphObstacle.PARAMETERS
        return obstacle

    def obstacle(self) -> GraphObstacle | None:
        obstacle = super().obstacle()
        if obstacle is None and type(self._pattern_of(self.parts[0])) is not type(self.pattern):
            obstacle = GraphObstacle.PARAMETERS  # another format has other kernels
        return obstacle

    def _pattern_of(self, layer: Any) -> Any:
        """What it computes with, of a layer's."""
        return layer.pattern

    def _take(self, layer: Any, weight: Tensor, bias: Tensor | None) -> None:
        pattern = self._pattern_of(layer)
        if self.outputs is not None or self.inputs is not None:
            mask = pattern.mask if self.outputs is None else pattern.mask[self.outputs]
            mask = mask if self.inputs is None else mask[:, self.inputs]
            pattern = type(pattern).of_mask(mask, weight.dtype, **pattern.options)
        self.pattern = pattern
        self._linear = isinstance(layer, torch.nn.Linear)
        self._geometry: Geometry = LINEAR
        self._pad: tuple[int, ...] | None = None
        if not self._linear:
            padding = layer.padding
            if layer.padding_mode != "zeros":
                self._pad, padding = tuple(layer._reversed_padding_repeated_twice), 0
            self._geometry = geometry_of(pattern.shape, layer.stride, padding, layer.dilation, layer.groups)
        self._begin_table(layer, weight)
        super()._take(layer, pattern.values_of(weight), bias)

    def _used_weight(self) -> Tensor:
        layer = self.parts[0]
        weight: Tensor = layer.weight.detach()
        return torch.where(layer.pattern.mask, weight, 0)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        layer, norm = self.parts
        outputs, inputs = self.pattern.shape[:2]
        if self._linear:
            if input.shape[-1] != inputs or (norm is not None and input.dim() != 2):
                return super().forward(input, residual)
            if self._dense is not None and has_rows(self.dense_rows, input.numel() // (inputs or 1)):
                return self._end(F.linear(input, self._dense, self._bias), residual)
            rows, shape = input.reshape(-1, inputs, 1, 1), (*input.shape[:-1], outputs)
            if residual is None:
                return self._run(rows, None).view(shape)
            if residual.shape != shape or residual.dtype != input.dtype:
                return self._end(self._run(rows, None, limits=False).view(shape), residual)
            return self._run(rows, residual.reshape(-1, outputs, 1, 1).contiguous()).view(shape)
        if input.dim() != len(self.pattern.shape) or input.size(1) != inputs * self._geometry.groups:
            return super().forward(input, residual)
        if self._pad is not None:
            input = F.pad(input, self._pad, mode=layer.padding_mode)
        if input.dim() == 3:
            return self._sequences(input, residual)
        if residual is not None:
            size = self._geometry.output_size(input.size(2), input.size(3))
            if residual.shape != (input.size(0), self.pattern.shape[0], *size) or residual.dtype != input.dtype:
                return self._end(self._run(input, None, limits=False), residual)
            if residual.numel() == 0:  # contiguous whatever its strides are: it stays as it is
                return self._run(input, None)
            residual = residual.contiguous(memory_format=memory_format(is_channels_last(input)))
        return self._run(input, residual)

    def _sequences(self, input: Tensor, residual: Tensor | None) -> Tensor:
        """As images one pixel high, contiguous as torch has them."""
        images = input.contiguous().unsqueeze(2)
        if residual is None:
            return self._run(images, None).squeeze(2)
        length = self._geometry.output_size(1, input.size(2))[1]
        if residual.shape != (input.size(0), self.pattern.shape[0], length) or residual.dtype != input.dtype:
            return self._end(self._run(images, None, limits=False).squeeze(2), residual)
        if residual.numel() == 0:
            return self._run(images, None).squeeze(2)
        return self._run(images, residual.contiguous().unsqueeze(2)).squeeze(2)

    @staticmethod
    def may_chain(layer: Any) -> bool:
        """A convolution of images that pads with zeros, if at all."""
        return isinstance(layer, torch.nn.Conv2d) and bool(layer.padding_mode == "zeros")

    def add_to(self, chain: LayerChain, source: int, residual: int | None) -> int:
        """As `forward`, of tensors of a chain."""
        pattern, geometry = self.pattern, self._geometry
        indices = pattern.crow_indices, pattern.col_indices
        channels = pattern.shape[1] * geometry.groups
        limits = self.low, self.high
        return chain.add_sparse_conv2d(
            source, self._weight, self._bias, *indices, geometry, channels, residual, *limits
        )

    def _product(self, input: Tensor) -> Tensor:
        """For an input that the kernel does not support, which the layer itself computes or rejects."""
        layer = self.parts[0]
        is_one = not self._linear and input.dim() == len(self.pattern.shape) - 1
        if is_one and input.size(0) == self.pattern.shape[1] * self._geometry.groups:
            images = input[None] if self._pad is None else F.pad(input[None], self._pad, layer.padding_mode)
            if images.dim() == 3:
                return self._run(images.contiguous().unsqueeze(2), None, limits=False)[0, :, 0]
            return self._run(images, None, limits=False)[0]
        product: Tensor = layer(input)
        return product

    def _run(self, input: Tensor, residual: Tensor | None, limits: bool = True) -> Tensor:
        low, high = (self.low, self.high) if limits else (None, None)
        return self._run_on(self.pattern, self._weight, input, residual, low, high)

    def _run_on(
        self,
        pattern: Any,
        values: Tensor,
        input: Tensor,
        residual: Tensor | None,
        low: float | None,
        high: float | None,
    ) -> Tensor:
        """By the kernels of `Unstructured`. values: of `pattern`."""
        result: Tensor
        if input.dtype is not torch.float64 and may_plan(pattern):
            plan = plan_of(pattern, self._geometry)
            result = run_plan(input, values, self._bias, plan, residual, low, high)
        else:
            indices = pattern.crow_indices, pattern.col_indices
            result = sparse_conv2d_kernel(input, values, self._bias, *indices, self._geometry, residual, low, high)
        return result
