# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Hooks that copy saved tensors, as offloading does: what is kept beside patterns and masks is found in backward."""

from __future__ import annotations

import collections
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

import sparsekernels as sk
from sparsekernels.ops.masked_attention import triton as attention
from sparsekernels.ops.masked_matmul import triton as masked
from sparsekernels.ops.sparse_conv2d import bitmap, block_pattern

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MADE = [(bitmap, "_made"), (block_pattern, "tiles_of")]
MADE += [(module, name) for module in (attention, masked) for name in ("tile_flags", "tile_lists")]


def calls() -> dict[str, Callable[[Tensor], Tensor]]:
    weight = torch.randn(32, 32, device=DEVICE)
    blocks = torch.eye(2, device=DEVICE).bool().repeat_interleave(16, 0).repeat_interleave(16, 1)
    fine = sk.Unstructured.from_dense(weight * (weight > 0.5))
    block = sk.BlockSparse.from_dense(weight * blocks, block=(16, 16))
    mask = sk.prepare_mask(torch.eye(4, device=DEVICE).bool().repeat_interleave(16, 0).repeat_interleave(16, 1))
    return {
        "fine-grained": lambda x: sk.sparse_linear(x, fine),
        "blocks": lambda x: sk.sparse_linear(x, block),
        "masked product": lambda x: sk.masked_matmul(x, x.mT, mask),
        "attention": lambda x: sk.masked_attention(x, x, x, mask),
    }


@pytest.mark.parametrize("name", list(calls()))
def test_nothing_is_made_anew(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: collections.Counter[str] = collections.Counter()

    def counting(function: Callable[..., object], name: str) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            made[name] += 1
            return function(*arguments, **options)

        return call

    for module, of in MADE:
        monkeypatch.setattr(module, of, counting(getattr(module, of), of))
    call, x = calls()[name], torch.randn(64, 32, device=DEVICE, requires_grad=True)
    with sk.use_backend("triton"):
        (expected,) = torch.autograd.grad(call(x).square().sum(), x)
        before = made.copy()
        assert before
        with torch.autograd.graph.saved_tensors_hooks(lambda saved: saved.detach().clone(), lambda saved: saved):
            y = call(x)
        (found,) = torch.autograd.grad(y.square().sum(), x)
    assert made == before
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("backend", ["triton", "reference"])
@pytest.mark.parametrize("name", ["fine-grained", "blocks"])
def test_transforms(name: str, backend: str) -> None:
    """Their tensors have no memory that a kernel could read: operators take them apart."""
    call, x = calls()[name], torch.randn(3, 5, 32, device=DEVICE)
    plain = torch.stack([call(one) for one in x])
    with sk.use_backend(backend):
        torch.testing.assert_close(torch.vmap(call)(x), plain)
        rows = torch.func.jacrev(call)(x[0, :2])
        torch.testing.assert_close(
            torch.func.grad(lambda x: call(x).square().sum())(x),
            torch.func.grad(lambda x: torch.stack([one @ rows[0, :, 0].mT for one in x]).square().sum())(x),
            rtol=1e-4,
            atol=1e-4,
        )
