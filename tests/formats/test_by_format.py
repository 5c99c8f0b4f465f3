# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What computes a format other than `Unstructured`: plain torch, or kernels of its own by a row in `CONVOLUTIONS`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_a_new_format import Coordinates
from torch import Tensor

import sparsekernels as sk
from sparsekernels.formats import FORMATS, SparseFormat
from sparsekernels.ops.sparse_conv2d import by_format


@pytest.mark.parametrize("dense_grad", [False, True])
def test_layers_without_kernels(monkeypatch: pytest.MonkeyPatch, dense_grad: bool) -> None:
    monkeypatch.setitem(FORMATS, Coordinates.format, Coordinates)
    for dense, kind, x in (
        (torch.nn.Conv2d(4, 6, 3, padding=1, groups=2), sk.nn.SparseConv2d, torch.randn(2, 4, 5, 5)),
        (torch.nn.Linear(6, 4), sk.nn.SparseLinear, torch.randn(7, 6)),
    ):
        dense.weight.data *= torch.rand_like(dense.weight) < 0.3
        sparse = kind.from_dense(dense, dense_grad=dense_grad, format=Coordinates.format)
        torch.testing.assert_close(sparse(x), dense(x))
        for one in (sparse, dense):
            one(x).pow(2).sum().backward()
        expected = dense.weight.grad * (sparse.mask | dense_grad)
        torch.testing.assert_close(sparse.weight.grad, expected, rtol=1e-4, atol=1e-5)
        with (
            sk.use_backend("cpu"),
            pytest.raises(sk.BackendError, match="format with kernels, 'unstructured', 'block', got 'coord"),
        ):
            sparse(x)


def test_kernels_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []

    def convolution(input: Tensor, pattern: SparseFormat, *arguments: Any) -> Tensor:
        called.append(pattern)
        return by_format.dense(input, pattern, *arguments)

    monkeypatch.setitem(by_format.CONVOLUTIONS, Coordinates.format, convolution)
    dense = torch.randn(4, 6) * (torch.rand(4, 6) < 0.5)
    weight, x = Coordinates.from_dense(dense), torch.randn(2, 3, 6, dtype=torch.bfloat16)
    torch.testing.assert_close(sk.sparse_linear(x.float(), weight), x.float() @ dense.T)
    assert called == [weight]
    with pytest.raises(TypeError, match=r"expected weight of dtype torch.bfloat16 like input, got torch.float32"):
        sk.sparse_linear(x, weight)
    with pytest.raises(ValueError, match=r"expected input of shape \[\*, 6\]"):
        sk.sparse_linear(x[..., 1:].float(), weight)


@pytest.mark.parametrize("groups", [1, 2])
def test_conv1d_without_kernels(groups: int) -> None:
    dense = torch.randn(6, 4 // groups, 3) * (torch.rand(6, 4 // groups, 3) < 0.4)
    weight = Coordinates.from_dense(dense)
    for x in (torch.randn(2, 4, 9), torch.randn(4, 9), torch.randn(2, 9, 4).mT):
        torch.testing.assert_close(
            sk.sparse_conv1d(x, weight, padding=1, groups=groups), F.conv1d(x, dense, padding=1, groups=groups)
        )
