"""Layers for inference: a convolution or Linear with its BatchNorm folded in, a residual added and limits kept.

    y = min(max(scale * (W x + b) + shift + residual, low), high)

with scale = gamma / sqrt(running_var + eps) and shift = beta - scale * running_mean of a BatchNorm in evaluation mode
(Ioffe & Szegedy, 2015; arXiv:1502.03167), worked out in float64 from the modules' present parameters by `freeze`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..nn import ChannelDroppedConv2d, ChannelDroppedLinear, SparseConv2d, SparseLinear
from ..ops.sparse_conv2d import compiled
from ..ops.sparse_conv2d.geometry import LINEAR, Geometry, geometry_of
from ..ops.sparse_conv2d.reference import is_channels_last, memory_format

Norm = torch.nn.BatchNorm1d | torch.nn.BatchNorm2d


class Fused(torch.nn.Module):
    """A layer, perhaps a BatchNorm behind it, perhaps limits; `forward` takes the input and a residual or None.

    The modules it is made of are not its children: what it computes with is what they held at the last `freeze`.
    contiguous: a dense weight is laid out so, whatever the layer's own; else torch might compute in channels_last.
    """

    def __init__(
        self,
        layer: Any,
        norm: Norm | None = None,
        low: float | None = None,
        high: float | None = None,
        contiguous: bool = False,
    ) -> None:
        super().__init__()
        self.parts: tuple[Any, Norm | None] = (layer, norm)
        self.low, self.high, self.contiguous = low, high, contiguous
        self.freeze()

    def freeze(self) -> None:
        """Take over the parameters and statistics that the modules have now."""
        layer, norm = self.parts
        scale: Tensor | None = None
        bias = None if layer.bias is None else layer.bias.detach().double()
        if norm is not None:
            assert norm.running_mean is not None
            assert norm.running_var is not None
            scale = (norm.running_var.double() + norm.eps).rsqrt()
            if norm.weight is not None:
                scale = scale * norm.weight.detach().double()
            bias = (0 if bias is None else bias) - norm.running_mean.double()
            bias = bias * scale
            if norm.bias is not None:
                bias = bias + norm.bias.detach().double()
        weight = layer.weight.detach()
        if scale is not None:
            weight = (weight.double() * scale.view(-1, *[1] * (weight.dim() - 1))).to(weight.dtype)
        self._take(layer, weight, None if bias is None else bias.to(weight.dtype))

    def _take(self, layer: Any, weight: Tensor, bias: Tensor | None) -> None:
        self._weight, self._bias = weight, bias

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        layer, norm = self.parts
        if norm is not None and input.dim() != (2 if isinstance(norm, torch.nn.BatchNorm1d) else 4):
            return self._end(norm(layer(input)), residual)  # other dimensions are normalised; or it is an error
        return self._end(self._product(input), residual)

    def _product(self, input: Tensor) -> Tensor:
        raise NotImplementedError

    def _end(self, result: Tensor, residual: Tensor | None) -> Tensor:
        """The residual and the limits, in place: `result` is nobody else's."""
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


class FusedDense(Fused):
    """torch.nn's Conv2d and Linear, and those without their zero channels."""

    def _take(self, layer: Any, weight: Tensor, bias: Tensor | None) -> None:
        dropped = isinstance(layer, ChannelDroppedConv2d | ChannelDroppedLinear)
        weight = layer.kept_weight(weight) if dropped else weight
        if isinstance(layer, torch.nn.Linear):
            self._call = layer.product if dropped else F.linear
        else:
            last = is_channels_last(layer.weight) and not self.contiguous
            weight = weight.contiguous(memory_format=memory_format(last))
            self._call = layer.product if dropped else layer._conv_forward
        super()._take(layer, weight, bias)

    def _product(self, input: Tensor) -> Tensor:
        call: Any = self._call
        result: Tensor = call(input, self._weight, self._bias)
        return result


class FusedSparse(Fused):
    """sparsekernels.nn's SparseConv2d and SparseLinear: one call of the kernel does it all."""

    def _take(self, layer: Any, weight: Tensor, bias: Tensor | None) -> None:
        pattern = layer._pattern
        self.pattern = pattern
        self._linear = isinstance(layer, torch.nn.Linear)
        self._geometry: Geometry = LINEAR
        self._pad: tuple[int, ...] | None = None
        if not self._linear:
            padding = layer.padding
            if layer.padding_mode != "zeros":
                self._pad, padding = tuple(layer._reversed_padding_repeated_twice), 0
            self._geometry = geometry_of(pattern.shape, layer.stride, padding, layer.dilation, layer.groups)
        super()._take(layer, pattern.values_of(weight), bias)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        layer, norm = self.parts
        if self._linear:
            if norm is not None and input.dim() != 2:
                return self._end(norm(layer(input)), residual)
            outputs, inputs = self.pattern.shape
            if input.shape[-1] != inputs or (residual is not None and residual.shape[:-1] != input.shape[:-1]):
                return self._end(layer(input), residual) if norm is None else self._end(norm(layer(input)), residual)
            rows = input.reshape(-1, inputs, 1, 1)
            other = None if residual is None else residual.reshape(-1, outputs, 1, 1)
            return self._run(rows, other).view(*input.shape[:-1], outputs)
        if input.dim() != 4 or input.size(1) != self.pattern.shape[1] * self._geometry.groups:
            result = layer(input)
            return self._end(result if norm is None else norm(result), residual)
        if self._pad is not None:
            input = F.pad(input, self._pad, mode=layer.padding_mode)
        if residual is not None:
            size = self._geometry.output_size(input.size(2), input.size(3))
            if residual.shape != (input.size(0), self.pattern.shape[0], *size) or residual.dtype != input.dtype:
                return self._end(self._run(input, None, limits=False), residual)
            residual = residual.contiguous(memory_format=memory_format(is_channels_last(input)))
        return self._run(input, residual)

    def _run(self, input: Tensor, residual: Tensor | None, limits: bool = True) -> Tensor:
        pattern = self.pattern
        result: Tensor = compiled.forward(
            input,
            self._weight,
            self._bias,
            pattern.crow_indices,
            pattern.col_indices,
            self._geometry,
            residual,
            self.low if limits else None,
            self.high if limits else None,
        )
        return result


FUSED: Mapping[type, type[Fused]] = {
    torch.nn.Conv2d: FusedDense,
    torch.nn.Linear: FusedDense,
    ChannelDroppedConv2d: FusedDense,
    ChannelDroppedLinear: FusedDense,
    SparseConv2d: FusedSparse,
    SparseLinear: FusedSparse,
}
"""By the class of a layer, what serves it in inference."""
