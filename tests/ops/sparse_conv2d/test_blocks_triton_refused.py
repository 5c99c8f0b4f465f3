# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What the Triton kernels for weights in blocks refuse: they read where their arguments say."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("triton")

import sparsekernels as sk
from sparsekernels.ops.convolution import geometry_of
from sparsekernels.ops.sparse_conv2d import block_triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # where kernels are interpreted
BF16 = torch.bfloat16


@pytest.mark.skipif(DEVICE == "cuda", reason="the interpreter is for the CPU")
def test_the_interpreter_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    pattern = sk.BlockSparse.from_dense(torch.randn(32, 32), block=(16, 16), sparsity=0.5)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with sk.use_backend("triton"), pytest.raises(sk.BackendError, match="triton"):
        sk.sparse_linear(torch.randn(3, 32), pattern)


def test_float64_is_the_references() -> None:
    x = torch.randn(3, 32, device=DEVICE, dtype=torch.float64)
    pattern = sk.BlockSparse.from_dense(torch.randn(32, 32).double().to(DEVICE), block=(16, 16), sparsity=0.5)
    with sk.use_backend("triton"), pytest.raises(sk.BackendError, match=r"float64|triton"):
        sk.sparse_linear(x, pattern)


def test_bad_indices_raise_before_a_kernel_sees_them() -> None:
    crow = torch.tensor([0, 1], dtype=torch.int32, device=DEVICE)
    col = torch.tensor([7], dtype=torch.int32, device=DEVICE)
    x, values = torch.zeros(3, 32, 1, 1, device=DEVICE), torch.zeros(256, device=DEVICE)
    with pytest.raises(ValueError, match="col_indices"):
        block_triton.forward(x, values, None, crow, col, [16, 16], 16, geometry_of((16, 32, 1, 1), 1, 0, 1, 1))


def test_too_many_pixels_are_refused_before_they_are_counted_in_32_bits() -> None:
    pattern = sk.BlockSparse.full((32, 32), BF16, torch.device(DEVICE), block=(16, 16))
    x = torch.zeros((), dtype=BF16, device=DEVICE).expand(2**31, 32, 1, 1)
    call = pattern.crow_indices, pattern.col_indices, (16, 16), geometry_of((32, 32, 1, 1), 1, 0, 1, 1)
    with pytest.raises(ValueError, match="at most 2147482624 pixels"):
        block_triton.weight_gradient(x, x, *call, 1024)


def test_public_functions_refuse_what_the_reference_refuses() -> None:
    """In its words: the kernels read where their arguments say."""
    linear = sk.BlockSparse.from_dense(torch.randn(32, 64).to(DEVICE), block=(16, 16), sparsity=0.5)
    image = sk.BlockSparse.from_dense(torch.randn(32, 16, 3, 3).to(DEVICE), block=(16, 16), sparsity=0.5)
    x, y = torch.randn(2, 64, device=DEVICE), torch.randn(1, 16, 4, 4, device=DEVICE)
    calls = [
        lambda: sk.sparse_linear(x, linear, torch.ones(3, device=DEVICE)),
        lambda: sk.sparse_linear(x, linear, torch.ones(32, 1, device=DEVICE)),
        lambda: sk.sparse_linear(x, linear, torch.ones(32, device=DEVICE).double()),
        lambda: sk.sparse_linear(x, linear, torch.ones(32, device="meta")),
        lambda: sk.sparse_linear(x[:, :63], linear),
        lambda: sk.sparse_linear(x.bfloat16(), linear),
        lambda: sk.sparse_conv2d(y[:, :, :2, :2], image),
        lambda: sk.sparse_conv2d(y[:, :15], image),
        lambda: sk.sparse_conv2d(y, image, groups=3),
    ]
    for call in calls:
        words = []
        for backend in ("reference", "triton"):
            with sk.use_backend(backend), pytest.raises((ValueError, TypeError)) as refused:
                call()
            words.append(str(refused.value))
        assert words[0] == words[1]


@pytest.mark.parametrize("name", ["bias", "weight", "residual", "grad_output", "count", "dtype", "geometry", "limits"])
def test_kernels_refuse_what_does_not_fit(name: str) -> None:
    geometry = geometry_of((32, 16, 3, 3), 1, 1, 1, 1)
    weight, mask = torch.randn(32, 16, 3, 3, device=DEVICE), torch.rand(32, 16, 3, 3, device=DEVICE) < 0.005
    pattern = sk.BlockSparse.from_dense(weight, mask, block=(16, 16))
    x, values, bias = torch.randn(2, 16, 9, 7, device=DEVICE), pattern.values, torch.randn(32, device=DEVICE)
    call: list[Any] = [pattern.crow_indices, pattern.col_indices, [16, 16], 32, geometry]
    image = (16, 9, 7, False)
    y = block_triton.forward(x, values, bias, *call)
    wrong: dict[str, list[Any]] = {
        "bias": [lambda: block_triton.forward(x, values, bias[:3], *call)],
        "weight": [
            lambda: block_triton.forward(x, values[1:], None, *call),
            lambda: block_triton.forward(x, torch.ones(32, 16, 3, 2, device=DEVICE), None, *call),
            lambda: block_triton.input_gradient(y, values[1:], *call[:3], geometry, *image),
        ],
        "residual": [lambda: block_triton.forward(x, values, None, *call, y[:, :, 1:], None, None)],
        "grad_output": [
            lambda: block_triton.input_gradient(y[:, :, 1:], values, *call[:3], geometry, *image),
            lambda: block_triton.weight_gradient(y[:1], x, *call[:3], geometry, values.numel()),
            lambda: block_triton.weight_gradient(y.half(), x, *call[:3], geometry, values.numel()),
        ],
        "count": [lambda: block_triton.weight_gradient(y, x, *call[:3], geometry, values.numel() + 1)],
        "dtype": [lambda: block_triton.forward(x.double(), values.double(), None, *call)],
        "geometry": [lambda: block_triton.forward(x, values, None, *call[:4], [0] * 11)],
        "limits": [lambda: block_triton.forward(x, values, None, *call, None, 1.0, -1.0)],
    }
    for run in wrong[name]:
        with pytest.raises(ValueError, match="sparse_conv2d: expected"):
            run()
