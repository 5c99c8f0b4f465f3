# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Gradients of masked_attention in Triton that a narrow dtype does not hold, or holds beside much larger ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from attention_cases import Case, expected
from test_attention_triton import BF16, DEVICE, FP16, FP32, mask_of, on_device
from torch import Tensor

import sparsekernels as sk
from sparsekernels.testing import assert_verified

pytest.importorskip("triton")


@pytest.mark.parametrize("magnitude", [1e-6, 1e5])
def test_gradients_that_float16_does_not_hold(magnitude: float) -> None:
    """dS is scaled where it is multiplied: its size is that of the gradient that comes in, times that of values."""
    mask = mask_of("half", (20, 40))
    q, k, v = on_device(Case((20, 16), (40, 16), 16), FP16)
    factor = 1e-3 if magnitude > 1 else 1.0
    given = tuple((one * by).detach().requires_grad_() for one, by in ((q, factor), (k, factor), (v, 1.0)))

    def gradients(function: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, ...]]:
        def run(*tensors: Tensor) -> tuple[Tensor, ...]:
            y = function(*tensors)
            seed = torch.linspace(-1, 1, y.numel(), device=DEVICE, dtype=torch.float64).reshape(y.shape)
            found = torch.autograd.grad(y, tensors, (seed * min(magnitude, 6e4)).to(FP16).to(y.dtype))
            return tuple(one.detach() for one in found[:2])

        return run

    with sk.use_backend("triton"):
        assert_verified(
            gradients(lambda q, k, v: sk.masked_attention(q, k, v, mask)),
            gradients(lambda q, k, v: expected(q, k, v, mask)),
            given,
            gradients=False,
        )


@pytest.mark.parametrize("keys", [40, 64, 100])
@pytest.mark.parametrize("dtype", [FP32, BF16, FP16], ids=str)
def test_scores_may_be_shifted(dtype: torch.dtype, keys: int) -> None:
    """Softmax is the same; keys that are not there, in a tile that is kept whole, do not count by a score of zero."""
    torch.manual_seed(1)
    rest, of_keys = torch.randn(32, 15), torch.randn(keys, 15) / 8
    found = []
    for shift in (0.0, -30.0):
        q = torch.cat([rest, torch.ones(32, 1)], 1)
        k = torch.cat([of_keys, torch.full((keys, 1), shift * 4)], 1)  # scale is 1 / 4
        given = [one.to(DEVICE, dtype).requires_grad_() for one in (q, k, torch.eye(keys, 16) + 1)]
        with sk.use_backend("triton"):
            y = sk.masked_attention(*given, torch.ones(32, keys, dtype=torch.bool, device=DEVICE))
            seed = torch.linspace(-1, 1, y.numel(), device=DEVICE).reshape(y.shape).to(dtype)
            found.append([y, *torch.autograd.grad(y, given, seed)])
    tolerance = {FP32: 1e-4, BF16: 2e-2, FP16: 2e-3}[dtype]
    for name, before, after in zip(("y", "dq", "dk", "dv"), *found, strict=True):
        columns = slice(15) if name in ("dq", "dk") else slice(None)  # the last one has the shift
        scale = before[..., columns].abs().max().item()
        torch.testing.assert_close(
            after[..., columns], before[..., columns], rtol=0, atol=tolerance * scale, msg=lambda m, name=name: name + m
        )


@pytest.mark.parametrize("ratio", [1e3, 1e6])
def test_rows_of_other_magnitudes(ratio: float) -> None:
    """One row whose gradient is as many times that of the others takes nothing from theirs."""
    torch.manual_seed(2)
    given = [torch.randn(64, 16).to(DEVICE, FP16).requires_grad_() for _ in range(3)]
    seed = torch.randn(64, 16, device=DEVICE)
    seed[1:] /= ratio
    seed = (seed * 3000).to(FP16)
    mask = torch.ones(64, 64, dtype=torch.bool, device=DEVICE)
    wide = [one.detach().double().requires_grad_() for one in given]
    with sk.use_backend("triton"):
        (found,) = torch.autograd.grad(sk.masked_attention(*given, mask), given[:1], seed)
    (truth,) = torch.autograd.grad(expected(*wide, mask), wide[:1], seed.double())
    error = (found.double() - truth).abs().amax(1) / truth.abs().amax(1)
    assert error.max().item() < 2e-3
