# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
r"""Masked attention in plain torch, with its gradients.

    S = scale * Q K^T    P = softmax of S over the keys that the mask keeps, 0 elsewhere    Y = P V
    dV = P^T dY          dS = P * (dY V^T - rowsum(dY * Y))    dQ = scale * dS K            dK = scale * dS^T Q

The mask is given as bits, as those of masked products are. A row that keeps no key is zero. What the mask leaves out is
not read: infinity and NaN there change nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..masked_matmul.reference import unpack
from ..precision import wide


def times(weights: Tensor, mask: Tensor, values: Tensor) -> Tensor:
    """weights @ values over the pairs that the mask keeps; elsewhere weights are zero, and values are not read."""
    total = weights @ torch.where(values.isfinite(), values, 0)
    special = (float("inf"), float("-inf"), float("nan"))
    found = torch.cat([values == special[0], values == special[1], values.isnan()], -1)
    touched = (mask.to(values.dtype) @ found.to(values.dtype)) > 0
    for special_value, where in zip(special, touched.chunk(3, -1), strict=True):
        total = torch.where(where, total + special_value, total)
    return total


def weights_of(q: Tensor, k: Tensor, mask: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """P; and of each row its largest score s and the sum of exp(S - s), [..., M, 2]: -infinity and 0 without a key."""
    scores = torch.where(mask, (q @ k.mT) * scale, float("-inf"))
    fixed = scores.detach()
    most = fixed.amax(-1, keepdim=True) if k.size(-2) > 0 else fixed.new_full((*fixed.shape[:-1], 1), float("-inf"))
    total = torch.where(mask, (fixed - torch.where(most == float("-inf"), 0, most)).exp(), 0).sum(-1, keepdim=True)
    return torch.where(mask, scores.softmax(-1), 0), torch.cat([most, total], -1)


def forward(q: Tensor, k: Tensor, v: Tensor, bits: Tensor, scale: float, training: bool) -> tuple[Tensor, ...]:
    """Y; what `weights_of` gives beside P; and in half types, for training, what rounding took from Y."""
    mask = unpack(bits, k.size(-2))
    weights, statistics = weights_of(wide(q), wide(k), mask, scale)
    exact = times(weights, mask, wide(v))
    y = exact.to(q.dtype)
    batch = torch.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2])
    y, statistics = (one.expand(*batch, *one.shape[-2:]) for one in (y, statistics))
    if training and y.dtype != exact.dtype:
        return y, statistics, (exact - wide(y)).to(q.dtype).expand(y.shape)
    return y, statistics, q.new_empty(0)


def gradients(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, bits: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """dQ, dK and dV, summed over the batch dimensions that each has not; half types are rounded once."""
    mask = unpack(bits, k.size(-2))
    dy, wide_q, wide_k, wide_v = wide(gradient), wide(q), wide(k), wide(v)
    weights, _ = weights_of(wide_q, wide_k, mask, scale)
    of_weights = torch.where(mask, dy @ wide_v.mT, 0)
    weighted = weights * of_weights
    of_scores = torch.where(mask, weighted - weights * weighted.sum(-1, keepdim=True), 0)
    found = (
        times(of_scores, mask, wide_k) * scale,
        times(of_scores.mT, mask.mT, wide_q) * scale,
        times(weights.mT, mask.mT, dy),
    )
    dq, dk, dv = (one.sum_to_size(like.shape).to(like.dtype) for one, like in zip(found, (q, k, v), strict=True))
    return dq, dk, dv


def second_gradients(
    seeds: tuple[Tensor, Tensor, Tensor],
    gradient: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bits: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients to dY, Q, K and V of the sum of `seeds` times `gradients`, in plain torch.

    With A = dY V^T and r = rowsum(P * A), dS = P * (A - r). Of the seeds X to dQ, Y to dK and Z to dV:

        U = scale * (X K^T + Q Y^T), the gradient to dS    u = rowsum(P * U)
        B = P * (U - u), that to A                         W = dY Z^T + U * (A - r) - A * u, that to P
        C = P * (W - rowsum(P * W)), that to S
        to dY: P Z + B V    to Q: scale * (dS Y + C K)    to K: scale * (dS^T X + C^T Q)    to V: B^T dY
    """
    mask = unpack(bits, k.size(-2))
    dy, wide_q, wide_k, wide_v = wide(gradient), wide(q), wide(k), wide(v)
    of_q, of_k, of_v = (wide(seed) for seed in seeds)
    weights, _ = weights_of(wide_q, wide_k, mask, scale)

    def kept(scores: Tensor) -> Tensor:
        return torch.where(mask, scores, 0)

    def centered(scores: Tensor) -> Tensor:
        return kept(weights * (scores - (weights * scores).sum(-1, keepdim=True)))

    of_weights = kept(dy @ wide_v.mT)
    of_scores = centered(of_weights)
    to_scores = kept(of_q @ wide_k.mT + wide_q @ of_k.mT) * scale
    mean = (weights * of_weights).sum(-1, keepdim=True)
    to_mean = (weights * to_scores).sum(-1, keepdim=True)
    to_products = centered(to_scores)
    second = centered(kept(dy @ of_v.mT) + kept(to_scores * (of_weights - mean) - of_weights * to_mean))
    turned = mask.mT
    found = (
        times(weights, mask, of_v) + times(to_products, mask, wide_v),
        (times(of_scores, mask, of_k) + times(second, mask, wide_k)) * scale,
        (times(of_scores.mT, turned, of_q) + times(second.mT, turned, wide_q)) * scale,
        times(to_products.mT, turned, dy),
    )
    of_dy, of_queries, of_keys, of_values = (
        one.sum_to_size(like.shape).to(like.dtype) for one, like in zip(found, (gradient, q, k, v), strict=True)
    )
    return of_dy, of_queries, of_keys, of_values


def backward(
    gradient: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bits: Tensor,
    y: Tensor,
    statistics: Tensor,
    rest: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients from what forward gave; here they need only its arguments."""
    return gradients(gradient, q, k, v, bits, scale)
