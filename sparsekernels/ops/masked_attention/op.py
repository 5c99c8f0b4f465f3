# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""masked_attention: the public function."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...dispatch import is_special, is_transformed
from ..masked_matmul.mask import Mask, bits_of, check_mask
from . import gradients, implementations
from .arguments import check_operands, check_scale, check_sizes
from .implementations import MASKED_ATTENTION

__all__ = ["masked_attention"]


def masked_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Mask, *, scale: float | None = None, enable_gqa: bool = False
) -> Tensor:
    r"""Attention whose scores exist only where a mask is, forward and backward.

        s[..., i, j] = scale * sum over e of q[..., i, e] * k[..., j, e]
        y[..., i, :] = sum over j of p[..., i, j] * v[..., j, :],   p = softmax of s over those j where mask[..., i, j]

    A row of the mask that keeps no key gives 0, and no gradient, as torch's `scaled_dot_product_attention` does since
    2.5. What the mask leaves out is not read: infinity or NaN in a key, a value or a query counts only where the mask
    keeps it (torch's gives NaN there). Between forward and backward two numbers a row are kept, not the scores; of
    bfloat16 and float16 also what rounding took from the result.

    float32, bfloat16 and float16 are summed in float32; results are rounded once. bfloat16 on AMX reads subnormal
    numbers as zero. Differentiable any number of times; the second derivatives are computed through dense scores. The
    same bits for any number of threads. Up to 16 queries that nobody differentiates are summed in another order than
    with gradients, which reads keys and values where they lie, once for all heads that share them.

    To come from torch's `scaled_dot_product_attention(q, k, v, attn_mask=mask)`: a bool `attn_mask` is `mask`; for
    is_causal=True pass `torch.ones(M, N, dtype=torch.bool).tril()`, best prepared; an additive mask of zeros and minus
    infinity is `mask == 0`; there is no dropout.

    Args:
        q: The queries, [..., M, E]; float32, bfloat16, float16 or float64; any strides.
        k: The keys, [..., N, E], of the dtype of `q`; batch dimensions broadcast.
        v: The values, [..., N, D], the same.
        mask: True where a query sees a key: bool in a shape that broadcasts to [..., M, N], a BlockMask, or what
            `prepare_mask` made of one of these.
        scale: Of the scores; None is 1 / sqrt(E).
        enable_gqa: Grouped queries, as torch's argument of that name: q [..., Hq, M, E] with k [..., H, N, E] and
            v [..., H, N, D], where H divides Hq; each head of `k` and `v` serves Hq / H consecutive ones of `q`.

    Returns:
        y: [..., M, D].

    Raises:
        TypeError: For a type or dtype that is not accepted.
        ValueError: For shapes that do not fit or do not broadcast, devices that differ, and more than 2^31 elements.
        BackendError: Where a backend was asked for that cannot run the call.

    Source: Vaswani et al., 2017, "Attention is all you need", equation 1; the backward pass is that of Dao et al.,
    2022, "FlashAttention: fast and memory-efficient exact attention with IO-awareness", appendix B.
    """
    where = "masked_attention"
    if not isinstance(enable_gqa, bool):
        raise TypeError(f"{where}: expected enable_gqa to be a bool, got {type(enable_gqa).__name__}")
    if all(isinstance(one, Tensor) for one in (q, k, v)):
        q, k, v = gradients.masked_attention.cast(q, k, v)
    heads = _groups(where, q, k, v) if enable_gqa else None
    if heads is not None:
        q, k, v = q.unflatten(-3, (heads, -1)), k.unsqueeze(-3), v.unsqueeze(-3)
        shape = check_operands(where, q, k, v)
        check_mask(where, "mask", mask, (*shape[:-4], shape[-4] * shape[-3], *shape[-2:]), q)
        bits = bits_of(mask, tuple(shape[-2:]))
        if bits.dim() > 2:
            bits = bits.unflatten(-3, (heads, -1) if bits.size(-3) > 1 else (1, 1))
    else:
        shape = check_operands(where, q, k, v)
        check_mask(where, "mask", mask, shape, q)
        bits = bits_of(mask, tuple(shape[-2:]))
    if scale is None:
        scale = 1 / math.sqrt(max(1, q.size(-1)))
    else:
        check_scale(where, scale)
    is_differentiated = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    is_plain = not is_special() and q.dtype in MASKED_ATTENTION.dtypes
    if is_plain and not is_differentiated:
        y = implementations.forward(q, k, v, bits, float(scale), False)[0]
    else:
        # in a transform a tensor does not tell whether a level further out differentiates it
        training = is_differentiated or (torch.is_grad_enabled() and is_transformed())
        y = gradients.masked_attention(q, k, v, bits, float(scale), training)[0]
    result: Tensor = y if heads is None else y.flatten(-4, -3)
    return result


def _groups(where: str, q: Tensor, k: Tensor, v: Tensor) -> int:
    """The heads of the keys; raise ValueError where those of the queries are no multiple of them."""
    for name, one in (("q", q), ("k", k), ("v", v)):
        if not isinstance(one, Tensor):
            raise TypeError(f"{where}: expected {name} to be a torch.Tensor, got {type(one).__name__}")
        if one.dim() < 3:
            raise ValueError(
                f"{where}: expected {name} of at least 3 dimensions with enable_gqa=True, got {list(one.shape)}"
            )
    heads = k.size(-3)
    if heads == 0 or v.size(-3) != heads or q.size(-3) % heads != 0 or q.size(-3) == 0:
        raise ValueError(
            f"{where}: expected k and v of the same number of heads, which divides the {q.size(-3)} of q, got"
            f" {heads} and {v.size(-3)}"
        )
    check_sizes(where, q, k, v)  # of the tensors that were given, not of those that are made of them
    return heads
