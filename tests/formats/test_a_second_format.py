# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""A third-party format, from the operations to `convert`: a class and a row in each of two tables."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conversion_checks import Prefer
from torch import Tensor

import sparsekernels as sk
from sparsekernels import _library
from sparsekernels.conversion import candidates
from sparsekernels.conversion.graph.fused import FusedSparse
from sparsekernels.formats import FORMATS, SparseFormat
from sparsekernels.ops.convolution import Geometry
from sparsekernels.ops.sparse_conv2d import by_format


class WholeRows(sk.Unstructured):
    """Stores a row of the weight as a whole, or not at all."""

    format = "whole-rows"

    @classmethod
    def of_mask(cls, mask: Tensor, dtype: torch.dtype = torch.float32) -> WholeRows:
        return super().of_mask(mask.flatten(1).any(1).view(-1, *[1] * (mask.dim() - 1)).expand_as(mask), dtype)


def test_a_second_format(prefer: Prefer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMATS, WholeRows.format, WholeRows)
    build = functools.partial(candidates.sparse_layer, format=WholeRows.format)
    serves = functools.partial(candidates.is_sparse, format=WholeRows.format)
    row = candidates.Candidate(WholeRows.format, candidates.fine_grained_obstacle, build, FusedSparse, serves)
    monkeypatch.setattr(candidates, "CANDIDATES", [*candidates.CANDIDATES, row])
    conv, linear = torch.nn.Conv2d(3, 6, 3, padding=1), torch.nn.Linear(6, 4)
    for dense in (conv, linear):
        dense.weight.data[1::2] = 0
        dense.weight.data[0, 0] = 0
    images, rows = torch.randn(2, 3, 5, 5), torch.randn(7, 6)
    with sk.use_backend("reference"):
        weight = WholeRows.from_dense(conv.weight)
        torch.testing.assert_close(sk.sparse_conv2d(images, weight, conv.bias, padding=1), conv(images))
        weight = WholeRows.from_dense(linear.weight)
        torch.testing.assert_close(sk.sparse_linear(rows, weight, linear.bias), linear(rows))
    layer = sk.nn.SparseLinear.from_dense(linear, format="whole-rows")
    other = sk.nn.SparseLinear(6, 4, format="whole-rows")
    other.load_state_dict(layer.state_dict())
    for one in (layer, other):
        assert (one.format, one.pattern.nnz) == ("whole-rows", 12)
        torch.testing.assert_close(one(rows), linear(rows))
    model = torch.nn.Sequential(conv, torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), linear).eval()
    expected = model(images)
    prefer("whole-rows", "graph", "layers")
    report = sk.convert(model, images, decisions=["whole-rows"])
    assert [row.decision for row in report.layers] == ["whole-rows"] * 2
    torch.testing.assert_close(model(images), expected)


def _mask(*shape: int) -> Tensor:
    return (torch.arange(shape[0]) % 2 == 0).view(-1, *[1] * (len(shape) - 1)).expand(shape)


CALLS = [
    pytest.param(lambda x, w: sk.sparse_conv2d(x, w, padding=1), (2, 3, 5, 5), (6, 3, 3, 3), id="conv2d"),
    pytest.param(lambda x, w: sk.sparse_conv2d(x, w, padding=1), (3, 5, 5), (6, 3, 3, 3), id="one image"),
    pytest.param(sk.sparse_linear, (7, 6), (4, 6), id="linear"),
]
Run = Callable[[Tensor, SparseFormat], Tensor]


@pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")
@pytest.mark.parametrize("blocks", [None, (1, 6)])
@pytest.mark.parametrize(("run", "sizes", "shape"), CALLS)
def test_without_kernels_of_its_own_it_runs_on_those_of_unstructured(
    monkeypatch: pytest.MonkeyPatch, run: Run, sizes: tuple[int, ...], shape: tuple[int, ...], blocks: Any
) -> None:
    """In plain calls and by name, with all gradients: by a plan, with the same bits."""
    monkeypatch.setattr(WholeRows, "block_size", blocks)
    dense, x = torch.randn(shape), torch.randn(sizes)
    found = []
    for kind, backend in ((sk.Unstructured, None), (WholeRows, None), (WholeRows, "cpu")):
        weight, leaf = kind.from_dense(dense, _mask(*shape)), x.clone().requires_grad_()
        values = weight.values.clone().requires_grad_()
        with contextlib.nullcontext() if backend is None else sk.use_backend(backend):
            plain, output = run(x, weight), run(leaf, weight.with_values(values))
        assert len(weight.plans) == 1
        found.append([plain, output, *torch.autograd.grad(output.square().sum(), [leaf, values])])
    for expected, *others in zip(*found, strict=True):
        assert all(torch.equal(expected, other) for other in others)


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize(("run", "sizes", "shape"), CALLS)
def test_with_kernels_of_its_own_it_runs_on_these(
    monkeypatch: pytest.MonkeyPatch, run: Run, sizes: tuple[int, ...], shape: tuple[int, ...], backend: str | None
) -> None:
    """In calls with and without gradients, by name, and recorded by torch.fx. `Unstructured` keeps its own."""
    called = []

    def convolution(input: Tensor, pattern: SparseFormat, weight: Tensor, bias: None, geometry: Geometry) -> Tensor:
        called.append(pattern)
        kernel = geometry.kernel_h, geometry.kernel_w
        return F.conv2d(input, pattern.to_dense().view(*pattern.shape[:2], *kernel), padding=geometry.pad_top)

    monkeypatch.setitem(by_format.CONVOLUTIONS, WholeRows.format, convolution)
    dense, x = torch.randn(shape), torch.randn(sizes)
    weight, other = (kind.from_dense(dense, _mask(*shape)) for kind in (WholeRows, sk.Unstructured))
    with contextlib.nullcontext() if backend is None else sk.use_backend(backend):
        expected = run(x, other)
        assert called == []
        torch.testing.assert_close(run(x, weight), expected)
        torch.testing.assert_close(run(x.clone().requires_grad_(), weight), expected)
        assert called == [weight] * 2
    if len(sizes) != 3:  # a traced input is taken for a batch of images
        torch.testing.assert_close(torch.fx.symbolic_trace(lambda x: run(x, weight))(x), expected)
        assert called == [weight] * 3
