# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""A matrix as bits and nonzeros."""

from __future__ import annotations

import ctypes
import hashlib
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import dispatch
from ..._torch import has_products_of
from ...dispatch import is_transformed
from .._bits import WORD, stored, words_of
from . import implementations, reference
from .implementations import MOST_ROWS, PACKED_LINEAR

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}

_ROWS = 1 << 12
"""Whose bits are counted at a time."""

_AT_ONCE = 1 << 24
"""Elements that are packed or unpacked at a time: more bytes than this are page-faulted in anew by each call."""

_MOST_CALLS = 2
"""Of the kernel for MOST_ROWS rows, before unpacking for torch's product is faster."""

_IN_CACHE, _FEWEST = 1 << 21, 512
"""Elements that are unpacked at a time for a product in float32, 8 MB, and the least number of rows of the weight that
are: for fewer torch's product is slower."""

_SLOW = tuple(dtype for dtype in (torch.bfloat16, torch.float16) if not has_products_of(dtype))
"""Dtypes that torch multiplies more slowly here than what they are as float32."""


def _magnitude(dtype: torch.dtype) -> int:
    """The bits of a number but for its sign. By `!= 0` subnormal ones are zeros where a thread flushes these."""
    return (1 << (8 * dtype.itemsize - 1)) - 1


class PackedWeight(NamedTuple):
    """A matrix [out, in] of which only what is not zero is stored: bits / 8 + nonzeros * itemsize bytes.

    words, crow_indices and values are those of reference.py; columns is `in`. Zeros have no sign: a weight multiplied
    by a mask has -0 in half of the places that this leaves out.
    """

    words: Tensor
    crow_indices: Tensor
    values: Tensor
    columns: int

    @classmethod
    def of(cls, weight: Tensor) -> PackedWeight:
        """Those of a dense matrix.

        Args:
            weight: [out, in], of a floating-point dtype, with at least one column.

        Raises:
            ValueError: For a matrix without elements, and one of 2^31 nonzeros or more.
        """
        weight = weight.detach()
        if weight.dim() != 2 or weight.numel() == 0:
            raise ValueError(f"expected a weight [out, in] with elements, got {list(weight.shape)}")
        rows, columns = weight.shape
        words, values, counts = [], [], []
        for part in weight.split(max(1, _AT_ONCE // columns)):
            mask = part.contiguous().view(_INTEGERS[weight.dtype.itemsize]) & _magnitude(weight.dtype) != 0
            words.append(words_of(mask))
            values.append(part[mask])
            counts.append(mask.sum(1))
        crow_indices = torch.zeros(rows + 1, dtype=torch.int64, device=weight.device)
        torch.cumsum(torch.cat(counts), 0, out=crow_indices[1:])
        if int(crow_indices[-1]) >= 2**31 - reference.SLACK:
            raise ValueError(f"expected a weight of fewer than 2^31 nonzeros, got {int(crow_indices[-1])}")
        values.append(weight.new_zeros(reference.SLACK))
        return cls(torch.cat(words), crow_indices.int(), torch.cat(values), columns)

    @property
    def shape(self) -> torch.Size:
        """[out, in]."""
        return torch.Size((self.words.size(0), self.columns))

    @property
    def nonzeros(self) -> int:
        """How many elements are stored."""
        return self.values.numel() - reference.SLACK

    @property
    def nbytes(self) -> int:
        """Of its three tensors."""
        return self.words.nbytes + self.crow_indices.nbytes + self.values.nbytes

    def rows(self, begin: int, end: int) -> Tensor:
        """Rows [begin, end) with their zeros."""
        result: Tensor = PACKED_LINEAR.kernels_of(self.values).rows(
            self.words, self.crow_indices, self.values, self.columns, begin, end
        )
        return result

    def dense(self) -> Tensor:
        """All of it."""
        return self.rows(0, self.words.size(0))

    def linear(self, input: Tensor, bias: Tensor | None) -> Tensor:
        """y = x W^T + b of [*, in], without a gradient. Up to 32 rows by the nonzeros, more by torch, some of the rows
        of the weight with their zeros at a time."""
        if bias is not None and bias.shape != self.words.shape[:1]:
            raise ValueError(f"packed_linear: expected bias [{self.words.size(0)}], got {list(bias.shape)}")
        flat = input.reshape(-1, self.columns)
        count = flat.size(0)
        kernels = PACKED_LINEAR.kernels_of(self.values)
        is_ours = kernels is not reference and PACKED_LINEAR.is_compiled(flat) and not is_transformed()
        if is_ours and (count <= MOST_ROWS * _MOST_CALLS or dispatch.forced == "cpu"):
            parts = [kernels.forward(part, *self[:3], bias) for part in flat.split(MOST_ROWS)]
            result = parts[0] if len(parts) == 1 else torch.cat(parts)
        elif is_ours and (flat.dtype is torch.float32 or flat.dtype in _SLOW):
            result = self._wide_product(flat, bias)
        else:
            step = max(1, _AT_ONCE // self.columns)
            outputs = self.words.size(0)
            parts = []
            for begin in range(0, outputs, step):
                end = min(begin + step, outputs)
                parts.append(F.linear(flat, self.rows(begin, end), None if bias is None else bias[begin:end]))
            result = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        return result.view(*input.shape[:-1], self.words.size(0))

    def _wide_product(self, input: Tensor, bias: Tensor | None) -> Tensor:
        """y = x W^T + b in float32, some of the rows of the weight at a time, rounded once.

        As y^T = W x^T: BLAS shares out, and packs, the rows of its left operand, which the weight has more of.
        """
        outputs, columns = self.shape
        result = input.new_empty((input.size(0), outputs))
        transposed = input.t().float()
        step = max(_FEWEST, _IN_CACHE // columns)
        for begin in range(0, outputs, step):
            end = min(begin + step, outputs)
            part = torch.mm(self.rows(begin, end).float(), transposed).t()
            if bias is not None:
                part = part + bias[begin:end].float()
            result[:, begin:end].copy_(part)
        return result

    def check(self) -> None:
        """Raise ValueError where bits, counts and values do not fit each other."""
        implementations.check(self.words, self.crow_indices, self.values, self.columns)
        if self.values.is_meta:
            return
        counts = [stored(part, part.size(1) * WORD).sum(1) for part in self.words.split(_ROWS)]
        behind = stored(self.words[:, -2:], 2 * WORD)[:, (self.columns - 1) % 128 + 1 :]
        if int(self.crow_indices[0]) != 0 or not torch.equal(self.crow_indices.diff().long(), torch.cat(counts)):
            raise ValueError("expected a packed weight whose rows have as many values as bits, got one that differs")
        if int(self.crow_indices[-1]) != self.nonzeros or bool(behind.any()):
            raise ValueError("expected a packed weight of its sizes, got values or bits beyond them")


def digest_of(words: str, *tensors: Tensor) -> str:
    """BLAKE2b of all of it: of a copy on disk it tells whether that is still the same."""
    found = hashlib.blake2b(words.encode(), digest_size=16)
    for tensor in tensors:
        found.update(f"{tensor.dtype} {list(tensor.shape)}".encode())
        for part in tensor.detach().cpu().contiguous().view(-1).split(_AT_ONCE):
            found.update(ctypes.string_at(part.data_ptr(), part.nbytes) if part.nbytes else b"")
    return found.hexdigest()
