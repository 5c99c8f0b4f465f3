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

from ...dispatch import is_transformed
from . import implementations, reference
from .implementations import MOST_ROWS, PACKED_LINEAR

_AT_ONCE = 1 << 24
"""Elements that are packed or unpacked at a time: more bytes than this are page-faulted in anew by each call."""

_MOST_CALLS = 2
"""Of the kernel for MOST_ROWS rows, before unpacking for torch's product is faster."""


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
            ValueError: For 2^31 nonzeros and more.
        """
        weight = weight.detach()
        rows, columns = weight.shape
        words, values, counts = [], [], []
        for part in weight.split(max(1, _AT_ONCE // columns)):
            mask = part != 0
            words.append(reference.words_of(mask))
            values.append(part[mask])
            counts.append(mask.sum(1))
        crow_indices = torch.zeros(rows + 1, dtype=torch.int64, device=weight.device)
        if rows:
            torch.cumsum(torch.cat(counts), 0, out=crow_indices[1:])
        if int(crow_indices[-1]) >= 2**31 - reference.SLACK:
            raise ValueError(f"expected a weight of fewer than 2^31 nonzeros, got {int(crow_indices[-1])}")
        values.append(weight.new_zeros(reference.SLACK))
        width = reference.words_of_row(columns)
        all_words = torch.cat(words) if words else torch.zeros((0, width), dtype=torch.int64, device=weight.device)
        return cls(all_words, crow_indices.int(), torch.cat(values), columns)

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
        flat = input.reshape(-1, self.columns)
        count = flat.size(0)
        kernels = PACKED_LINEAR.kernels_of(self.values)
        is_compiled = kernels is not reference and PACKED_LINEAR.is_compiled(flat)
        if count <= MOST_ROWS * _MOST_CALLS and is_compiled and not is_transformed():
            parts = [kernels.forward(part, *self[:3], bias) for part in flat.split(MOST_ROWS)]
            result = parts[0] if len(parts) == 1 else torch.cat(parts)
        else:
            step = max(1, _AT_ONCE // self.columns)
            outputs = self.words.size(0)
            parts = []
            for begin in range(0, outputs, step):
                end = min(begin + step, outputs)
                parts.append(F.linear(flat, self.rows(begin, end), None if bias is None else bias[begin:end]))
            result = parts[0] if len(parts) == 1 else torch.cat(parts, 1) if parts else flat.new_empty((count, 0))
        return result.view(*input.shape[:-1], self.words.size(0))

    def check(self) -> None:
        """Raise ValueError where bits, counts and values do not fit each other."""
        implementations.check(self.words, self.crow_indices, self.values, self.columns)
        counts = torch.cat([reference.stored(part, part.size(1) * 64).sum(1) for part in self.words.split(1 << 12)])
        behind = reference.stored(self.words[:, -2:], 128)[:, (self.columns - 1) % 128 + 1 :]
        if int(self.crow_indices[0]) != 0 or not torch.equal(self.crow_indices.diff().long(), counts):
            raise ValueError("expected a packed weight whose rows have as many values as bits, got one that differs")
        if int(self.crow_indices[-1]) != self.nonzeros or bool(behind.any()):
            raise ValueError("expected a packed weight of its sizes, got values or bits beyond them")

    def digest(self) -> str:
        """BLAKE2b of everything: of a copy on disk it tells whether that is still the same."""
        found = hashlib.blake2b(digest_size=16)
        found.update(f"{self.columns} {self.values.dtype}".encode())
        for tensor in self[:3]:
            for part in tensor.detach().cpu().contiguous().view(-1).split(_AT_ONCE):
                found.update(ctypes.string_at(part.data_ptr(), part.nbytes) if part.nbytes else b"")
        return found.hexdigest()
