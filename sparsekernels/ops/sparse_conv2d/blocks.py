# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
r"""Convolution by a weight in blocks on kernels of its own: in bfloat16 on the CPU, in Triton on a GPU.

    F:  dx  = I(dy, v),   dv = W(dy, x),  dbias = sum of dy over images and pixels
    I:  ddy = F(u, v),    dv = W(dy, u)         for the gradient u of dx
    W:  ddy = F(x, w),    dx = I(dy, w)         for the gradient w of dv

as in gradients.py, so derivatives of every order run on the same three kernels. The weight of F and I is the values of
the blocks [nnz], or the dense weight [O, C/G, kh, kw], whose gradient is then dense as well. Other devices, dtypes and
blocks go by the single elements of the blocks (by_format.py). Indices are attributes of `ctx`, not saved tensors: hooks
of those may copy, and tiles are found by the tensors themselves.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ... import _library, dispatch
from ..._torch import (
    are_functorch_transforms_active,
    constant_when_compiled,
    dispatch_modes,
    is_jit_tracing,
)
from ...dispatch import Call, Implementation
from ...formats import BlockSparse, SparseFormat
from .._operation import Operation, Operator
from .._triton_support import supports_call
from ..convolution import Geometry
from ..precision import COMPUTED_IN_FLOAT32
from . import block_reference, reference
from .gradients import bias_gradient, dense_weight_gradient
from .implementations import empty_input_gradient, empty_output
from .outside import Guard, is_recorded, recorded_values


def _triton_supports(call: Call) -> str | None:
    if call.dtype not in COMPUTED_IN_FLOAT32:
        names = ", ".join(str(dtype)[6:] for dtype in COMPUTED_IN_FLOAT32)
        return f"it takes {names}, the input is {str(call.dtype)[6:]}"
    return supports_call(call)


def _triton() -> Any:
    from . import block_triton

    return block_triton


BLOCKS = Operation(
    "sparse_conv2d, sparse_linear (blocks)",
    block_reference,
    devices=("cpu",),
    others=(Implementation("triton", _triton_supports, _triton),),
    dtypes=(torch.bfloat16,),
    cuda_dtypes=COMPUTED_IN_FLOAT32,
    format=BlockSparse.format,
)
compiled = BLOCKS.compiled

_PATTERN = "Tensor crow_indices, Tensor col_indices, int[] block"
_IMAGE = "SymInt channels, SymInt height, SymInt width, bool channels_last"
_FORWARD = f"Tensor input, Tensor weight, Tensor? bias, {_PATTERN}, int rows, int[] geometry"
_INPUT_GRADIENT = f"Tensor grad_output, Tensor weight, {_PATTERN}, int[] geometry, {_IMAGE}"
_WEIGHT_GRADIENT = f"Tensor grad_output, Tensor input, {_PATTERN}, int[] geometry, SymInt count"

_FEWEST_ROWS = 8
"""Of a block on the CPU. Tiles of fewer rows are nearly empty: single elements are faster."""

SMALLEST_ON_GPU = 8
"""Of a block on a GPU, each way. Smaller ones fill tiles with zeros: the dense product is faster."""

_FAST = ("amx", "avx512_bf16")


@constant_when_compiled
def _has_fast_kernels() -> bool:
    return _library.block_kernels() in _FAST


def has_block_kernel(device: torch.device, dtype: torch.dtype, block: tuple[int, int]) -> bool:
    """Whether blocks of this size run on kernels of their own, which are faster than those of single elements."""
    if device.type == "cuda":
        return _has_triton_kernel(device, dtype, block)
    return device.type == "cpu" and _has_kernel(dtype, block)


def _has_kernel(dtype: torch.dtype, block: tuple[int, int]) -> bool:
    return dtype is torch.bfloat16 and block[0] >= _FEWEST_ROWS and _has_fast_kernels()


def _has_triton_kernel(device: torch.device, dtype: torch.dtype, block: tuple[int, int]) -> bool:
    if device.type == "cuda" and not torch.cuda.is_available():  # of a tensor without data
        return False
    supports = _supported_on_gpu if device.type == "cuda" else _is_supported
    return min(block) >= SMALLEST_ON_GPU and supports(device, dtype)


@constant_when_compiled
def _supported_on_gpu(device: torch.device, dtype: torch.dtype) -> bool:
    return _known_of_gpu(device, dtype)


def _is_supported(device: torch.device, dtype: torch.dtype) -> bool:
    return _triton_supports(Call(device, dtype, BlockSparse.format)) is None


_known_of_gpu = functools.cache(_is_supported)  # what a device can do stays as it is


def serves(pattern: SparseFormat, input: Any, groups: Any) -> bool:
    """Whether a call runs here."""
    if type(pattern) is not BlockSparse or not isinstance(input, Tensor):
        return False
    device = input.device
    by_triton = device.type == "cuda" or dispatch.forced == "triton"
    if device.type not in ("cpu", "cuda") or dispatch.forced not in (None, "triton" if by_triton else "cpu"):
        return False
    if torch.compiler.is_compiling():
        if are_functorch_transforms_active():
            return False
    elif dispatch.is_transformed() or is_jit_tracing() or dispatch_modes() > 0:
        return False
    dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else input.dtype
    if not (
        _has_triton_kernel(device, dtype, pattern.block_size) if by_triton else _has_kernel(dtype, pattern.block_size)
    ):
        return False
    if groups == 1:
        return True
    if not isinstance(groups, int) or groups < 1 or pattern.shape[0] % groups:
        return False
    return by_triton or pattern.shape[0] // groups % pattern.block_size[0] == 0


def _arguments_of(pattern: BlockSparse) -> tuple[Tensor, Tensor, list[int], int]:
    return pattern.crow_indices, pattern.col_indices, list(pattern.block_size), pattern.shape[0]


def conv2d(
    input: Tensor,
    pattern: SparseFormat,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    guard: Guard | None = None,
) -> Tensor:
    """y of input [N, C, H, W], whose channels fit. The weight is as in op.py; raises `Outside` as the guard does."""
    assert isinstance(pattern, BlockSparse)
    tracked = torch.is_grad_enabled() and weight.requires_grad
    if guard is not None:
        if is_recorded(weight):
            weight = recorded_values(pattern, weight)
        else:
            positions = input.numel() // max(input.size(1), 1) // (geometry.stride_h * geometry.stride_w)
            guard.check(pattern, weight, float(positions * pattern.nnz))
            if tracked or weight.dtype is not (
                torch.bfloat16 if input.is_cpu else input.dtype
            ):  # few are cast, not all
                weight = pattern.values_of(weight)
    if weight.dim() in (2, 3):
        weight = weight[:, :, None, None] if weight.dim() == 2 else weight.unsqueeze(2)
    result: Tensor = block_conv2d(input, weight, bias, *_arguments_of(pattern), geometry)
    return result


def fused_forward(
    input: Tensor,
    pattern: BlockSparse,
    values: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    residual: Tensor | None,
    low: float | None,
    high: float | None,
    takes_residual: bool = False,
) -> Tensor | None:
    """y of input [N, C, H, W] plus residual, no less than low nor more than high; None where no kernel serves that.

    values: [nnz], in the order of blocks. takes_residual: the result may be the residual, written over. Without
    gradients.
    """
    if not serves(pattern, input, geometry.groups) or dispatch.forced == "triton":
        return None
    if input.is_cpu and input.dtype is not torch.bfloat16:
        return None
    if takes_residual and residual is not None and _may_be_written_over(residual, input):
        _forward_in_place(input, values, bias, *_arguments_of(pattern), geometry, residual, low, high)
        return residual
    result: Tensor = compiled.forward(input, values, bias, *_arguments_of(pattern), geometry, residual, low, high)
    return result


def _may_be_written_over(residual: Tensor, input: Tensor) -> bool:
    if not input.is_cpu or residual.dtype is not input.dtype or residual.numel() == 0:
        return False
    return all(
        reference.is_channels_last(one) and one.is_contiguous(memory_format=torch.channels_last)
        for one in (input, residual)
    )


class BlockConv2d(torch.autograd.Function):
    @staticmethod
    def forward(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        crow_indices: Tensor,
        col_indices: Tensor,
        block: Sequence[int],
        rows: int,
        geometry: Sequence[int],
        kernels: Any,
    ) -> Tensor:
        result: Tensor = kernels.forward(input, weight, bias, crow_indices, col_indices, block, rows, geometry)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, weight, _, crow_indices, col_indices, ctx.block, _, ctx.geometry, ctx.kernels = inputs
        need_input, need_weight, *_ = ctx.needs_input_grad
        saved = input if need_weight else None, weight if need_input else None
        ctx.save_for_backward(*saved)
        ctx.indices = crow_indices, col_indices
        ctx.count = weight.numel() if weight.dim() == 1 else None
        ctx.image = _image_of(input)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (input, weight), indices = ctx.saved_tensors, ctx.indices
        need_input, need_weight, need_bias, *_ = ctx.needs_input_grad
        kernels, pattern = ctx.kernels, (*indices, ctx.block)
        return (
            block_input_gradient.on(kernels, grad_output, weight, *pattern, ctx.geometry, *ctx.image)
            if need_input
            else None,
            _weight_gradient(ctx, grad_output, input, pattern) if need_weight else None,
            bias_gradient(grad_output) if need_bias else None,
            *(None,) * 6,
        )


class BlockInputGradient(torch.autograd.Function):
    @staticmethod
    def forward(grad_output: Tensor, *given: Any) -> Tensor:
        *arguments, kernels = given
        result: Tensor = kernels.input_gradient(grad_output, *arguments)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        grad_output, weight, crow_indices, col_indices, ctx.block, ctx.geometry, *_, ctx.kernels = inputs
        need_output, need_weight, *_ = ctx.needs_input_grad
        saved = grad_output if need_weight else None, weight if need_output else None
        ctx.save_for_backward(*saved)
        ctx.indices = crow_indices, col_indices
        ctx.count, ctx.rows = weight.numel() if weight.dim() == 1 else None, grad_output.size(1)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
        (grad_output, weight), indices = ctx.saved_tensors, ctx.indices
        need_output, need_weight, *_ = ctx.needs_input_grad
        pattern = (*indices, ctx.block)
        return (
            block_conv2d.on(ctx.kernels, u, weight, None, *pattern, ctx.rows, ctx.geometry) if need_output else None,
            _weight_gradient(ctx, grad_output, u, pattern) if need_weight else None,
            *(None,) * 9,
        )


class BlockWeightGradient(torch.autograd.Function):
    @staticmethod
    def forward(grad_output: Tensor, input: Tensor, *given: Any) -> Tensor:
        *arguments, kernels = given
        result: Tensor = kernels.weight_gradient(grad_output, input, *arguments)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        grad_output, input, crow_indices, col_indices, ctx.block, ctx.geometry, _, ctx.kernels = inputs
        need_output, need_input, *_ = ctx.needs_input_grad
        saved = grad_output if need_input else None, input if need_output else None
        ctx.save_for_backward(*saved)
        ctx.indices = crow_indices, col_indices
        ctx.image, ctx.rows = _image_of(input), grad_output.size(1)

    @staticmethod
    def backward(ctx: Any, w: Tensor) -> tuple[Tensor | None, ...]:
        (grad_output, input), indices = ctx.saved_tensors, ctx.indices
        need_output, need_input, *_ = ctx.needs_input_grad
        kernels, pattern = ctx.kernels, (*indices, ctx.block)
        return (
            block_conv2d.on(kernels, input, w, None, *pattern, ctx.rows, ctx.geometry) if need_output else None,
            block_input_gradient.on(kernels, grad_output, w, *pattern, ctx.geometry, *ctx.image)
            if need_input
            else None,
            *(None,) * 6,
        )


def _image_of(input: Tensor) -> tuple[int, int, int, bool]:
    return input.size(1), input.size(2), input.size(3), reference.is_channels_last(input)


def _weight_gradient(ctx: Any, grad_output: Tensor, input: Tensor, pattern: tuple[Any, ...]) -> Tensor:
    if ctx.count is None:
        return dense_weight_gradient(grad_output, input, Geometry(*ctx.geometry))
    gradient: Tensor = block_weight_gradient.on(ctx.kernels, grad_output, input, *pattern, ctx.geometry, ctx.count)
    return gradient


# Results without data.


def _fake_forward(input: Tensor, *arguments: Any) -> Tensor:
    _, _, _, _, _, rows, geometry, *_ = arguments
    return empty_output(input, rows, geometry)


def _fake_input_gradient(grad_output: Tensor, *arguments: Any) -> Tensor:
    return empty_input_gradient(grad_output, *arguments[-4:])


def _fake_weight_gradient(grad_output: Tensor, input: Tensor, *arguments: Any) -> Tensor:
    return input.new_empty(arguments[-1])


BLOCKS.kernel(
    "forward",
    f"_block_conv2d({_FORWARD}, Tensor? residual=None, float? low=None, float? high=None) -> Tensor",
    _fake_forward,
)
_forward_in_place = BLOCKS.define(
    f"_block_conv2d_({_FORWARD}, Tensor(a!) residual, float? low=None, float? high=None) -> ()"
)
BLOCKS.kernel("input_gradient", f"_block_conv2d_input_gradient({_INPUT_GRADIENT}) -> Tensor", _fake_input_gradient)
BLOCKS.kernel("weight_gradient", f"_block_conv2d_weight_gradient({_WEIGHT_GRADIENT}) -> Tensor", _fake_weight_gradient)

block_conv2d = Operator(
    BLOCKS,
    f"block_conv2d({_FORWARD}) -> Tensor",
    BlockConv2d,
    _fake_forward,
    autocast={"cpu": None, "cuda": None},
    differentiates_reference=True,
)
block_input_gradient = Operator(
    BLOCKS,
    f"block_conv2d_input_gradient({_INPUT_GRADIENT}) -> Tensor",
    BlockInputGradient,
    _fake_input_gradient,
    differentiates_reference=True,
)
block_weight_gradient = Operator(
    BLOCKS,
    f"block_conv2d_weight_gradient({_WEIGHT_GRADIENT}) -> Tensor",
    BlockWeightGradient,
    _fake_weight_gradient,
    differentiates_reference=True,
)
