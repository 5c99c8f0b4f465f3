# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Whether a dense weight is zero outside of its pattern: a layer asks that in each call that goes by the pattern.

A parameter's version tells of most writes, but not of those through `data`, numpy or shared memory, so the weight is
read. All of it: where it is small or the call long, and where version or address are others than when all of it was
read last. Else a part, every n-th word of 64 elements, another one in each call: what writes to all of a weight shows
at once, what writes to a few elements within n calls. csrc/sparse_conv2d/outside.cpp has the sizes. On a GPU calls do
not wait for that: looks.py.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import Tensor

from ... import _library
from ..._torch import (
    are_functorch_transforms_active,
    dispatch_modes,
    is_functionalized,
    is_jit_tracing,
    peeled,
    version_of,
    without_modes,
)
from ...checks import DTYPES
from ...formats import SparseFormat
from ...formats.compressed_rows import CompressedRows
from .._operation import Operator
from .elements import PLAIN, ValuesInside, count_others, has_kernels_for, make_words
from .implementations import SPARSE_CONV2D
from .looks import Looks


class Outside(Exception):
    """A weight has nonzeros outside of its pattern, or cannot be compared with it: the whole weight is to be used.

    Also raised for an input that `is_for_torch`.
    """


def is_for_torch(input: Any) -> bool:
    """Whether an input is of a kind that torch's products take, or refuse in its words, and no kernel of ours does:
    with another layout (mkldnn's, sparse ones), or inside of torch.func.functionalize.
    """
    if not isinstance(input, Tensor) or input.is_nested or torch.compiler.is_compiling():
        return False
    return input.layout is not torch.strided or is_functionalized()


class Places(Protocol):
    """Which elements of a weight are used: a `SparseFormat`, say."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def nnz(self) -> int: ...
    @property
    def mask(self) -> Tensor: ...


class Guard:
    """What a layer keeps to ask that quickly. It is neither copied nor pickled: it is about the layer's own memory.

    found   whether the last call found nonzeros outside
    warned  whether the layer has said so
    """

    __slots__ = ("_kept", "_last", "_looks", "found", "warned")

    def __init__(self) -> None:
        self._kept: tuple[Places | None, Tensor | None] = None, None
        self._last: dict[str, Any] | None = None
        self._looks = Looks()
        self.found = self.warned = False

    def __deepcopy__(self, memo: dict[int, Any]) -> Guard:
        return Guard()

    def __reduce__(self) -> tuple[Any, ...]:
        return Guard, ()

    def words(self, places: Places) -> Tensor:
        """The places as bits, and what was read of weights; the compiled library's."""
        kept, words = self._kept
        if words is None or (kept is not places and not _are_one_pattern(kept, places)):
            words = make_words(places.mask)
            self._kept = places, words
        return words

    def forget(self) -> None:
        """The places are others: keep nothing of these."""
        self._kept, self._looks, self.found = (None, None), Looks(), False

    def ready(self, places: Places, weight: Tensor) -> tuple[Tensor, int]:
        """What the compiled call that looks for itself takes: the words, and the version of the weight.

        Raises `Outside` for a weight that it cannot look at, and where the last call found something that still holds.
        """
        if self.found or type(weight) not in PLAIN:
            self.check(places, weight)
        kept, words = self._kept
        words = words if kept is places and words is not None else self.words(places)
        version = self._version_of(weight)
        self._last = weight.__dict__
        return words, version

    def failed(self) -> None:
        """The call that was `ready` raised, perhaps before it looked."""
        self._last = None

    def outside(self, places: Places, weight: Tensor, multiply_adds: float = math.inf, waits: bool = True) -> int:
        """How many nonzeros were found outside; negative where the weight cannot be compared with its places.

        multiply_adds: of the call that this is for; a short one reads a part.
        waits: for a GPU; if not, as `Looks` says.
        """
        if type(weight) not in PLAIN or weight.shape != places.shape or weight.layout is not torch.strided:
            return -1
        kept, words = self._kept
        if are_functorch_transforms_active():
            if weight.device != places.device:
                return -1
            weight = peeled(weight)
            if type(weight) not in PLAIN or weight.shape[-len(places.shape) :] != places.shape:
                return -1
        elif kept is places and words is not None and weight.is_cpu:
            return self._counted(words, weight, multiply_adds)
        elif weight.device != places.device:
            return -1
        elif places.nnz == weight.numel() or weight.is_meta:
            return 0
        elif _library.cpu is not None and weight.is_cpu and weight.dtype in DTYPES:
            return self._counted(self.words(places), weight, multiply_adds)
        elif weight.is_cuda and not waits:
            same, self._last = self._last is weight.__dict__, weight.__dict__
            trained = torch.is_grad_enabled() and weight.requires_grad
            return self._looks.outside(places, weight, same, version_of(weight), trained)
        return int(((weight.detach() != 0) & ~places.mask).sum())

    def _version_of(self, weight: Tensor) -> int:
        """Negative for a tensor that is another than the last: it may be at the same address, in the same version.

        It is known by its dict: `torch.utils.swap_tensors` takes no tensor that has a weakref, and exchanges the dicts.
        """
        return version_of(weight) if self._last is weight.__dict__ else -1

    def _counted(self, words: Tensor, weight: Tensor, multiply_adds: float) -> int:
        count: int = count_others(weight, words, self._version_of(weight), multiply_adds)
        self._last, self.found = weight.__dict__, count != 0
        return count

    def check(self, places: Places, weight: Tensor, multiply_adds: float = math.inf) -> None:
        """Raise `Outside` where the whole weight is to be used."""
        if self.outside(places, weight, multiply_adds, waits=False):
            raise Outside

    def saw(self, weight: Tensor, count: int) -> None:
        """So many nonzeros were found outside. Raises `Outside` where there are some."""
        self._last, self.found = weight.__dict__, count != 0
        if count:
            raise Outside

    def values_inside(self, pattern: Any, weight: Tensor, multiply_adds: float) -> Tensor:
        """`values` of a plain eager call."""
        is_whole = pattern.nnz == weight.numel()
        if is_whole or pattern._order is not None or weight.shape != pattern.shape or not has_kernels_for(weight):
            self.check(pattern, weight, multiply_adds)
            return pattern.values_of(weight)  # type: ignore[no-any-return]
        words, version = self.ready(pattern, weight)
        return ValuesInside.apply(weight, self, words, version, multiply_adds, pattern)  # type: ignore[no-any-return,no-untyped-call]

    def values(self, pattern: Any, weight: Any, multiply_adds: float = math.inf) -> Any:
        """The values of a dense weight at its pattern, differentiable. Raises `Outside`.

        In code that is traced they are an operator's, which raises RuntimeError where there are nonzeros outside.
        """
        if is_recorded(weight):
            return recorded_values(pattern, weight)
        if dispatch_modes():
            if type(weight) not in PLAIN:  # without data
                return recorded_values(pattern, weight)
            with without_modes():
                self.check(pattern, weight)
            return recorded_values(pattern, weight)
        self.check(pattern, weight, multiply_adds)
        return pattern.values_of(weight)


def _are_one_pattern(kept: Any, places: Any) -> bool:
    """Whether two formats share their indices: one is the other as another class, or its elements."""
    return _columns_of(kept) is _columns_of(places)


def _columns_of(places: Any) -> Any:
    """The column indices of the elements of a format that has such; else the places themselves."""
    places = getattr(places, "own", places)  # transposed_linear.py's
    elements = places.by_elements() if isinstance(places, SparseFormat) else None
    return places if elements is None else elements[0].col_indices


def is_recorded(weight: Any) -> bool:
    """Whether a call becomes part of a graph, whose code may not depend on what a weight holds."""
    return torch.compiler.is_compiling() or is_jit_tracing() or not isinstance(weight, Tensor)


def recorded_values(pattern: Any, weight: Any) -> Any:
    """The values as an operator that can be part of a graph, and raises there where there are nonzeros outside."""
    if isinstance(weight, Tensor) and _may_depend_on_size(pattern) and pattern.nnz == weight.numel():
        return pattern.values_of(weight)
    return values_at(weight, pattern.flat_indices)


def _may_depend_on_size(pattern: Any) -> bool:
    """Whether a graph may be for all elements: not compiled code, which goes on when the layer's pattern changes; there
    alone where a layer has not been given one."""
    if not torch.compiler.is_compiling():
        return True
    return isinstance(pattern, CompressedRows) and pattern._shared.flat_indices is None


def values_at(weight: Any, flat_indices: Tensor) -> Any:
    """The elements at these places of a weight that has to be zero elsewhere."""
    return _values.overload(weight, flat_indices)


class _SparseValues(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(weight: Tensor, flat_indices: Tensor, kernels: Any) -> Tensor:
        values: Tensor = SPARSE_CONV2D.compiled.values(weight, flat_indices)
        return values

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        weight, flat_indices, _ = inputs
        ctx.save_for_backward(flat_indices)
        ctx.shape = weight.shape

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (flat_indices,) = ctx.saved_tensors
        whole = gradient.new_zeros(ctx.shape.numel()).scatter(0, flat_indices, gradient)
        return whole.view(ctx.shape), None, None


_values = Operator(
    SPARSE_CONV2D,
    "sparse_values(Tensor weight, Tensor flat_indices) -> Tensor",
    _SparseValues,
    lambda weight, flat_indices: weight.new_empty(flat_indices.shape),
)
