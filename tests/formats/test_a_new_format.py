# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""A format of somebody else, which shares nothing with `Unstructured`: a class and a row in each of two tables."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from conversion_checks import Prefer
from torch import Tensor

import sparsekernels as sk
from sparsekernels.conversion import candidates
from sparsekernels.conversion.graph.fused import FusedByFormat
from sparsekernels.formats import FORMATS, SparseFormat
from sparsekernels.ops.sparse_conv2d import by_format


class Coordinates(SparseFormat):
    """Stores the place of each element."""

    format = "coordinates"

    def __init__(self, shape: tuple[int, ...], places: Tensor, values: Tensor) -> None:
        vars(self).update(shape=shape, places=places, values=values)

    flat_indices = property(lambda self: self.places)

    @classmethod
    def of_mask(cls, mask: Tensor, dtype: torch.dtype = torch.float32) -> Coordinates:
        places = mask.flatten().nonzero()[:, 0]
        return cls(tuple(mask.shape), places, torch.zeros(len(places), dtype=dtype, device=mask.device))

    @classmethod
    def full(cls, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Coordinates:
        size = math.prod(shape)
        return cls(shape, torch.arange(size, device=device), torch.zeros(size, dtype=dtype, device=device))

    def with_values(self, values: Tensor) -> Coordinates:
        return Coordinates(self.shape, self.places, values)


@pytest.mark.parametrize("dense_grad", [False, True])
def test_a_new_format(prefer: Prefer, monkeypatch: pytest.MonkeyPatch, dense_grad: bool) -> None:
    name, conv, linear = Coordinates.format, torch.nn.Conv2d(4, 6, 3, padding=1, groups=2), torch.nn.Linear(6, 4)
    build, serves = (functools.partial(one, format=name) for one in (candidates.sparse_layer, candidates.is_sparse))
    row = candidates.Candidate(name, candidates.fine_grained_applies, build, FusedByFormat, serves)
    monkeypatch.setattr(candidates, "CANDIDATES", [*candidates.CANDIDATES, row])
    monkeypatch.setitem(FORMATS, name, Coordinates)
    for dense, kind, x in (
        (conv, sk.nn.SparseConv2d, torch.randn(2, 4, 5, 5)),
        (linear, sk.nn.SparseLinear, torch.randn(7, 6)),
    ):
        dense.weight.data *= torch.rand_like(dense.weight) < 0.3
        sparse = kind.from_dense(dense, dense_grad=dense_grad, format=name)
        torch.testing.assert_close(sparse(x), dense(x))
        for one in (sparse, dense):
            one(x).pow(2).sum().backward()
        expected = dense.weight.grad * (sparse.mask | dense_grad)
        torch.testing.assert_close(sparse.weight.grad, expected, rtol=1e-4, atol=1e-5)
        with sk.use_backend("cpu"), pytest.raises(sk.BackendError, match="with kernels, 'unstructured', got 'coordi"):
            sparse(x)
    model = torch.nn.Sequential(conv, torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), linear).eval()
    expected = model(images := torch.randn(2, 4, 5, 5))
    prefer(name, "graph", "layers")
    report = sk.convert(model, images, decisions=[name])
    assert [row.decision for row in report.layers] == [name] * 2
    torch.testing.assert_close(model(images), expected)


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
