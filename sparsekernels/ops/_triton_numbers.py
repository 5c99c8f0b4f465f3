# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Conversions of numbers that all Triton kernels share, right on a GPU and in Triton's interpreter."""

from __future__ import annotations

import triton
import triton.language as tl

# A constant of the compiler's: nothing that it guards is in compiled code.
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def widen(x, ACC: tl.constexpr):
    """`x` in ACC, by way of float32, from which alone the interpreter can convert bfloat16."""
    return x.to(tl.float32).to(ACC) if x.dtype == tl.bfloat16 else x.to(ACC)


@triton.jit
def narrow(x, dtype: tl.constexpr):
    """`x` in a dtype no wider than its own, rounded to the nearest."""
    if dtype == tl.bfloat16:
        x = x.to(tl.float32)
        if INTERPRETED:  # it cuts off where the hardware rounds to the nearest
            bits = x.to(tl.uint32, bitcast=True)
            nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
            x = tl.where(x == x, nearest, bits).to(tl.float32, bitcast=True)
    return x.to(dtype)


@triton.jit
def multiply_add(a, b, sums, PRECISION: tl.constexpr):
    """sums + a @ b, in float32. PRECISION of float32 operands: "ieee" or "tf32"."""
    if INTERPRETED:  # it multiplies the bits of bfloat16 as integers
        sums = tl.dot(a.to(tl.float32), b.to(tl.float32), sums)
    else:
        sums = tl.dot(a, b, sums, input_precision=PRECISION)
    return sums
