# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""masked_matmul: the public function."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..._torch import is_captured
from ...dispatch import is_special
from . import gradients, implementations
from .arguments import MOST, check_operands
from .implementations import MASKED_MATMUL
from .mask import BlockMask, Mask, PreparedMask, bits_of, check_mask, indices_of, prepare_mask, rows_of_a_block

__all__ = ["BlockMask", "PreparedMask", "masked_matmul", "prepare_mask"]

OUTPUTS = ("dense", "values")
_MOST_OF_VALUES = 1 << 24
"""Elements of the dense products that values are taken from: of larger ones, some rows at a time."""


def masked_matmul(
    a: Tensor,
    b: Tensor,
    mask: Mask,
    *,
    a_mask: Mask | None = None,
    b_mask: Mask | None = None,
    output: str = "dense",
) -> Tensor:
    r"""A matrix product of which only the elements under a mask are computed.

        y[..., i, j] = sum over k of a[..., i, k] * b[..., k, j]   where mask[..., i, j], else 0

    A bool mask selects: what would stand outside of it is never computed, so that infinity or NaN there is 0. A
    floating mask multiplies, y = (a @ b) * mask, costs what the dense product does, and has a gradient, dy * (a @ b).
    With `a_mask`, a counts as zero outside of it, and so does its gradient; `b_mask` likewise. What stands outside is
    not read. Where an operand is zero by its mask and the other is infinite or NaN, their product may be 0 or NaN; in
    gradients dy is such an operand, by `mask`.

    float32, bfloat16 and float16 are summed in float32 and rounded once. Differentiable any number of times; every
    gradient is a masked product itself. The same bits for any number of threads, but where torch's dense product is
    taken, for masks that keep a lot, floating ones and few rows or columns: it may share a long K among threads.

    Args:
        a: [..., M, K]; float32, bfloat16, float16 or float64; any strides.
        b: [..., K, N], of the dtype of `a`; batch dimensions broadcast.
        mask: bool, or of the dtype of `a`, in a shape that broadcasts to [..., M, N]; a BlockMask; or what
            `prepare_mask` made of one of these.
        a_mask: bool in a shape that broadcasts to that of `a`, a BlockMask or a PreparedMask; None keeps all.
        b_mask: The same for `b`.
        output: "dense", or "values" with a mask [M, N]: the elements under the mask alone. Those of a BlockMask are in
            the order of the values of `BlockSparse`, block after block, each row-major without what stands out at the
            ends; else, and of a floating mask at its nonzeros, they are row-major, in the order of `Unstructured`.

    Returns:
        y: [..., M, N], or with output="values" [..., nnz].

    Raises:
        TypeError: For a type or dtype that is not accepted.
        ValueError: For shapes that do not fit or do not broadcast, devices that differ, and more than 2^31 elements.
        BackendError: Where a backend was asked for that cannot run the call.

    Source: the product is the "sampled dense-dense matrix multiplication" of Nisa et al., 2018, "Sampled dense matrix
    multiplication for high-performance machine learning", section 1.
    """
    if a_mask is None and b_mask is None and output == "dense" and _is_simple(a, b, mask):
        y: Tensor = implementations.product(a, b, None, None, bits_of(mask))
        return y
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        factors = mask if isinstance(mask, Tensor) and mask.is_floating_point() else None
        a, b, factors = gradients.masked_product.cast(a, b, factors)
        mask = mask if factors is None else factors
    _validate("masked_matmul", a, b, mask, a_mask, b_mask, output)
    shape = (a.size(-2), b.size(-1))
    factor = mask if isinstance(mask, Tensor) and mask.is_floating_point() else None
    is_plain = not is_special() and a.dtype in MASKED_MATMUL.dtypes
    is_differentiated = torch.is_grad_enabled() and (a.requires_grad or b.requires_grad)
    product = implementations.product if is_plain and not is_differentiated else gradients.masked_product
    a_bits = None if a_mask is None else bits_of(a_mask, tuple(a.shape))
    b_bits = None if b_mask is None else bits_of(b_mask, tuple(b.shape))
    bits = None if factor is not None else bits_of(mask, shape)

    def product_of(*some: Tensor | None) -> Tensor:
        x, x_bits, y_bits, y_factor = some
        y: Tensor = product(x, b, x_bits, b_bits, y_bits)
        return y if y_factor is None else y * y_factor.to(y.dtype)

    operands = a, a_bits, bits, factor
    if output == "dense":
        return product_of(*operands)
    indices = indices_of(mask if factor is None else factor != 0)
    step = _rows_at_a_time(a, b, mask)
    if step >= shape[0] or torch.compiler.is_compiling() or is_captured(a):
        return product_of(*operands).flatten(-2).index_select(-1, indices)
    count = math.ceil(shape[0] / step)
    split = ([None] * count if one is None else one.split(step, -2) for one in operands)
    numbers = torch.arange(1, count + 1, device=indices.device)
    ends: list[int] = torch.searchsorted(
        indices // (step * shape[1]), numbers
    ).tolist()  # the device is waited for once
    parts, done = [], 0
    for i, (some, end) in enumerate(zip(zip(*split, strict=True), ends, strict=True)):
        places = indices[done:end] - i * step * shape[1]
        parts.append(product_of(*some).flatten(-2).index_select(-1, places))
        done = end
    return torch.cat(parts, -1)


def _rows_at_a_time(a: Tensor, b: Tensor, mask: Mask) -> int:
    """Whole rows of blocks whose dense product has up to `_MOST_OF_VALUES` elements: values need no more memory."""
    row = b.size(-1) * math.prod(torch.broadcast_shapes(a.shape[:-2], b.shape[:-2]))
    of_block = rows_of_a_block(mask)
    return max(1, _MOST_OF_VALUES // max(1, row) // of_block) * of_block


def _is_simple(a: Tensor, b: Tensor, mask: Mask) -> bool:
    """Whether it is a plain call on two matrices with a mask of theirs that selects. All that is to be checked of it is
    here, in 2 us; `_validate` takes longer than products of small matrices do.
    """
    if type(mask) is PreparedMask:
        bits = mask.bits
    elif type(mask) is Tensor:
        bits = mask
        if bits.dtype is not torch.bool or bits.layout is not torch.strided:
            return False
    elif type(mask) is BlockMask:
        bits = mask.blocks
    else:
        return False
    return (
        type(a) is Tensor
        and type(b) is Tensor
        and a.dtype is b.dtype
        and a.dtype in MASKED_MATMUL.dtypes
        and a.dim() == b.dim() == 2
        and a.size(1) == b.size(0)
        and mask.shape == (a.size(0), b.size(1))
        and max(a.numel(), b.numel(), a.size(0) * b.size(1)) <= MOST
        and ((a.is_cpu and b.is_cpu and bits.is_cpu) or (a.is_cuda and a.device == b.device == bits.device))
        and a.layout is b.layout is torch.strided
        and not a.is_nested
        and not b.is_nested
        and not ((a.requires_grad or b.requires_grad) and torch.is_grad_enabled())
        and not is_special()
    )


def _validate(
    where: str, a: Tensor, b: Tensor, mask: Mask, a_mask: Mask | None, b_mask: Mask | None, output: str
) -> None:
    """Raise TypeError or ValueError, in words, for arguments of the public function that do not fit."""
    if output not in OUTPUTS:
        raise ValueError(f"{where}: expected output to be {' or '.join(map(repr, OUTPUTS))}, got {output!r}")
    shape = check_operands(where, a, b)
    check_mask(where, "mask", mask, shape, a, floats=True)
    if a_mask is not None:
        check_mask(where, "a_mask", a_mask, a.shape, a)
    if b_mask is not None:
        check_mask(where, "b_mask", b_mask, b.shape, a)
    if output == "values" and len(mask.shape) != 2:
        raise ValueError(f"{where}: expected mask of 2 dimensions for output='values', got {list(mask.shape)}")
    if output == "values" and isinstance(mask, Tensor) and tuple(mask.shape) != tuple(shape[-2:]):
        raise ValueError(
            f"{where}: expected mask of shape {list(shape[-2:])} for output='values', got {list(mask.shape)}"
        )
