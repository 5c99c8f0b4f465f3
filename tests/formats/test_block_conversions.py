# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Weights in blocks, out of and into other formats."""

from __future__ import annotations

import pytest
import torch
from test_block_sparse import by_case, same, small

import sparsekernels as sk


@by_case
def test_of_and_into_single_elements(shape: tuple[int, ...], block: tuple[int, int]) -> None:
    fine = sk.Unstructured.from_dense(torch.randn(shape), torch.rand(shape) < 0.1)
    weight = sk.BlockSparse.from_unstructured(fine, block)
    weight.validate()
    assert torch.equal(weight.to_dense(), fine.to_dense())
    assert not (fine.mask & ~weight.mask).any()
    assert torch.equal(weight.elements().to_dense(), fine.to_dense())
    assert same(sk.BlockSparse.from_unstructured(weight.elements(), block), weight)
    values = fine.values.double().clone().requires_grad_()
    to_dense = sk.BlockSparse.from_unstructured(fine.with_values(values), block).to_dense()
    if values.numel():
        (gradient,) = torch.autograd.grad(to_dense.pow(2).sum(), values)
        assert torch.equal(gradient, 2 * values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("density", [0.0, 0.1, 1.0])
def test_sparse_bsr(dtype: torch.dtype, density: float) -> None:
    dense = torch.randn(8, 12).to(dtype)
    weight = sk.BlockSparse.from_dense(dense, torch.rand(8, 12) < density, block=(4, 2))
    bsr = weight.to_sparse_bsr()
    assert (bsr.layout, bsr.dtype) == (torch.sparse_bsr, dtype)
    assert torch.equal(bsr.to_dense(), weight.to_dense())
    assert same(sk.BlockSparse.from_sparse_bsr(bsr), weight)
    values = weight.values.clone().requires_grad_()
    back = sk.BlockSparse.from_sparse_bsr(weight.with_values(values).to_sparse_bsr())
    assert same(back, weight)
    (gradient,) = torch.autograd.grad(back.values.square().sum(), values)
    assert torch.equal(gradient, 2 * weight.values)
    theirs = torch.where(weight.mask, dense, 0).to_sparse_bsr((4, 2))  # with int64 indices
    assert same(sk.BlockSparse.from_sparse_bsr(theirs), weight)


def test_bad_sparse_bsr_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"to_sparse_bsr: expected weight of shape \[out, in\] .* 2x2 divide, got \[3,"
    ):
        small().to_sparse_bsr()
    conv = sk.BlockSparse.from_dense(torch.randn(4, 4, 1, 1), block=(2, 2), sparsity=0.5)
    with pytest.raises(ValueError, match=r"to_sparse_bsr: expected weight of shape \[out, in\] .*, got \[4, 4, 1, 1\]"):
        conv.to_sparse_bsr()
    for other in (torch.eye(4), torch.eye(4).to_sparse_csr(), [[1.0]]):
        with pytest.raises(
            TypeError, match="from_sparse_bsr: expected weight to be a tensor of layout torch.sparse_bsr"
        ):
            sk.BlockSparse.from_sparse_bsr(other)
    with pytest.raises(ValueError, match=r"from_sparse_bsr: expected weight of shape \[out, in\] .*, got \[2, 4, 4\]"):
        sk.BlockSparse.from_sparse_bsr(torch.ones(2, 4, 4).to_sparse_bsr((2, 2)))
    with pytest.raises(ValueError, match="from_sparse_bsr: expected block of sizes from 1 to 128, got 129x1"):
        sk.BlockSparse.from_sparse_bsr(torch.ones(129, 2).to_sparse_bsr((129, 1)))
    far = torch.sparse_bsr_tensor([0, 1], [1 << 32], torch.ones(1, 2, 2), (2, 2), check_invariants=False)
    with pytest.raises(ValueError, match="from_sparse_bsr: expected col_indices of 31 bits, got 4294967296"):
        sk.BlockSparse.from_sparse_bsr(far)
    unsorted = torch.sparse_bsr_tensor([0, 2], [1, 0], torch.ones(2, 2, 2), (2, 4), check_invariants=False)
    with pytest.raises(ValueError, match="expected col_indices that ascend strictly in each row, got unsorted ones"):
        sk.BlockSparse.from_sparse_bsr(unsorted)
    with pytest.raises(TypeError, match="from_unstructured: expected weight to be an Unstructured, got BlockSparse"):
        sk.BlockSparse.from_unstructured(small(), (2, 2))
