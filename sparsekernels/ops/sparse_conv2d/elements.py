# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The elements of a dense tensor that a mask uses: taken out, put back, and the others cleared.

On the CPU each is one pass by the bits of the mask (csrc/sparse_conv2d/elements.h), where torch's index_select, zeros
and index_copy read eight bytes of index for each element: docs/decisions.md#elements-by-bits has both.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from ... import _library
from ...checks import DTYPES
from ...dispatch import is_special
from .._operation import without_gradients
from .implementations import SPARSE_CONV2D

PLAIN = (Tensor, torch.nn.Parameter)

make_words = SPARSE_CONV2D.define("_sparse_conv2d_guard(Tensor mask) -> Tensor")
count_others = SPARSE_CONV2D.define(
    _COUNT := "_nonzeros_outside(Tensor weight, Tensor guard, int version, float multiply_adds) -> int"
)
_take_inside = SPARSE_CONV2D.define(
    "_taken_inside(Tensor weight, Tensor guard, int version, float multiply_adds) -> (Tensor, int)"
)
_take = SPARSE_CONV2D.define("_taken_elements(Tensor weight, Tensor guard) -> Tensor")
_spread = SPARSE_CONV2D.define("_spread_elements(Tensor values, Tensor guard, int[] size) -> Tensor")
_spread_into = SPARSE_CONV2D.define(
    _SPREAD_INTO := "_spread_elements_(Tensor(a!) weight, Tensor values, Tensor guard) -> ()"
)
_clear = SPARSE_CONV2D.define(_CLEAR := "_clear_others_(Tensor(a!) weight, Tensor guard) -> ()")
for _schema in (_COUNT, _SPREAD_INTO, _CLEAR):
    without_gradients(_schema)


def has_kernels_for(tensor: Tensor) -> bool:
    """Whether the compiled kernels take a tensor, and nothing is traced or transformed that would have to see it."""
    return (
        _library.cpu is not None
        and type(tensor) in PLAIN
        and tensor.is_cpu
        and tensor.layout is torch.strided
        and tensor.dtype in DTYPES
        and tensor.is_contiguous()
        and not is_special()
    )


class ValuesInside(torch.autograd.Function):
    """The values of a dense weight at its pattern, and in the same pass whether it is zero elsewhere.

    forward(weight, guard, words, version, multiply_adds, pattern); the guard raises `Outside` where it is not zero.
    """

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, guard: Any, words: Tensor, version: int, multiply_adds: float, pattern: Any
    ) -> Tensor:
        values: Tensor
        values, outside = _take_inside(weight, words, version, multiply_adds)
        guard.saw(weight, outside)
        ctx.words, ctx.pattern = words, pattern
        return values

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        size = ctx.pattern.shape
        if not torch.is_grad_enabled() and has_kernels_for(gradient):
            return _spread(gradient, ctx.words, size), None, None, None, None, None
        dense = gradient.new_zeros(math.prod(size)).scatter(0, ctx.pattern.flat_indices, gradient)
        return dense.view(size), None, None, None, None, None


class Elements:
    """The used elements of tensors of one shape, outside of autograd.

    mask  bool: which are used; not to be written to
    """

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask
        self._words: Tensor | None = None
        self._places: Tensor | None = None
        self._count: int | None = None

    @property
    def count(self) -> int:
        """How many are used."""
        if self._count is None:
            self._count = int(self.mask.count_nonzero())
        return self._count

    def has_kernels_for(self, tensor: Tensor) -> bool:
        """Whether the compiled kernels take a tensor."""
        return self.mask.is_cpu and has_kernels_for(tensor)

    def _words_for(self, tensor: Tensor) -> Tensor | None:
        if not self.has_kernels_for(tensor):
            return None
        if self._words is None:
            self._words = make_words(self.mask)
        return self._words

    def _flat_places(self) -> Tensor:
        if self._places is None:
            self._places = self.mask.flatten().nonzero()[:, 0]
        return self._places

    def take(self, tensor: Tensor) -> Tensor:
        """Those of a tensor, [count], in the order in which they lie in a contiguous one."""
        tensor = tensor.detach()
        words = self._words_for(tensor)
        if words is not None:
            taken: Tensor = _take(tensor, words)
            return taken
        return tensor.reshape(-1).index_select(0, self._flat_places())

    def spread(self, values: Tensor) -> Tensor:
        """A tensor that has these values, and zeros elsewhere."""
        values = values.detach()
        words = self._words_for(values)
        if words is not None:
            spread: Tensor = _spread(values, words, self.mask.shape)
            return spread
        return values.new_zeros(self.mask.numel()).index_copy_(0, self._flat_places(), values).view(self.mask.shape)

    def spread_into(self, tensor: Tensor, values: Tensor) -> None:
        """The same into the memory of a tensor, in whatever order its dimensions lie there."""
        words = self._words_for(tensor)
        if words is not None and values.dtype == tensor.dtype:
            _spread_into(tensor, values.detach(), words)
            increment_version(tensor)
            return
        whole = tensor.detach().zero_()
        if tensor.is_contiguous():
            whole.view(-1).index_copy_(0, self._flat_places(), values)
        else:
            whole.masked_scatter_(self.mask, values)

    def clear_others(self, tensor: Tensor) -> None:
        """Set the elements that are not used to zero, in place."""
        words = self._words_for(tensor)
        if words is not None:
            _clear(tensor, words)
            increment_version(tensor)
        else:
            tensor.detach().masked_fill_(~self.mask, 0)

    def others(self, tensor: Tensor) -> int:
        """How many elements that are not used are not zero."""
        words = self._words_for(tensor)
        if words is not None:
            count: int = count_others(tensor.detach(), words, -1, math.inf)
            return count
        return int(((tensor.detach() != 0) & ~self.mask).sum())
