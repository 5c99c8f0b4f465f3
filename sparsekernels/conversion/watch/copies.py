# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Copies of tensors of any kind (sparse, quantized, nested, without data), which never raise; and back again."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor
from torch.nn import UninitializedBuffer, UninitializedParameter


def is_lazy(tensor: Tensor) -> bool:
    """Whether it has no elements before the first call of its module."""
    return isinstance(tensor, UninitializedBuffer | UninitializedParameter)


def copy_of(tensor: Tensor) -> Tensor | None:
    """None of one that has no elements to copy: it is uninitialized, or of a class that does not know how."""
    try:
        return tensor.detach().clone()
    except Exception:
        return None


def are_equal(tensor: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one kind hold the same, whatever they are: sparse, without data, of other classes."""
    try:
        if (tensor.dtype, tensor.layout) != (other.dtype, other.layout):
            return False
        if tensor.is_nested:
            mine, theirs = tensor.unbind(), other.unbind()
            return len(mine) == len(theirs) and all(map(are_equal, mine, theirs))
        if tensor.is_meta:
            return tensor.shape == other.shape
        if tensor.layout == torch.strided:
            return torch.equal(tensor, other)
        if tensor.is_mkldnn:
            return torch.equal(tensor.to_dense(), other.to_dense())
        mine, theirs = _components_of(tensor), _components_of(other)  # type: ignore[assignment]
        return tensor.shape == other.shape and all(map(torch.equal, mine, theirs))
    except Exception:
        return False


def _components_of(tensor: Tensor) -> list[Tensor]:
    """The tensors that a sparse one consists of."""
    tensor = tensor.detach()
    if tensor.layout == torch.sparse_coo:
        tensor = tensor.coalesce()
        return [tensor.indices(), tensor.values()]
    rows = tensor.layout in (torch.sparse_csr, torch.sparse_bsr)
    compressed = (
        [tensor.crow_indices(), tensor.col_indices()] if rows else [tensor.ccol_indices(), tensor.row_indices()]
    )
    return [*compressed, tensor.values()]


def write_back(tensor: Tensor, kept: Tensor | None) -> None:
    """Make a tensor hold what was copied of it, if it holds something else."""
    if kept is None or are_equal(tensor, kept):
        return
    with contextlib.suppress(Exception), torch.inference_mode(tensor.is_inference()), torch.no_grad():
        if tensor.layout == torch.strided and not tensor.is_nested and tensor.shape != kept.shape:
            tensor.resize_(kept.shape)
        tensor.copy_(kept)
