# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Whether a converted model agrees with the original: results, and gradients in training."""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .._gradient_errors import gradient_error
from .exactness import LARGEST_GRADIENT_ERROR, SHORT, is_as_exact
from .watch.state import attributes_or_none

_LARGEST_DIFFERENCE = {torch.float32: 2e-3, torch.bfloat16: 0.1, torch.float16: 2e-2}
"""Between results of the model before and after, relative to the largest: more is no rounding."""
_LARGEST_DIFFERENCE_OF_MEANS = 1e-4
"""Between running means, relative to the size of what they are means of: where that is centered, they are rounding."""


def differentiable(result: object) -> list[Tensor]:
    """The tensors of a result that have a gradient."""
    return [one for one in leaves_of(result) if isinstance(one, Tensor) and one.requires_grad]


def backward_seeds(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Random gradients of `tensors`, the same in all dtypes: numbers of bfloat16."""
    generator = torch.Generator("cpu").manual_seed(5)
    seeds = [torch.randn(one.shape, generator=generator, device="cpu").bfloat16() for one in tensors]
    return [seed.to(one.device, one.dtype) for seed, one in zip(seeds, tensors, strict=True)]


def backward_at_random(result: object) -> None:
    """Gradients from random ones: those of a sum nearly vanish behind a BatchNorm, and rounding is what is left."""
    tensors = differentiable(result)
    torch.autograd.backward(tensors, backward_seeds(tensors))


def point_alike(actual: list[Tensor | None], expected: list[Tensor | None]) -> bool:
    if [one is None for one in actual] != [one is None for one in expected]:
        return False
    mine, theirs = ([one for one in some if one is not None] for some in (actual, expected))
    return not theirs or gradient_error(mine, theirs) <= LARGEST_GRADIENT_ERROR


@dataclass(frozen=True, eq=False)
class _Kept:
    """A container or an object as it was: its class, and what it held by its places."""

    kind: type
    parts: list[tuple[object, object]] = field(default_factory=list)


def kept(result: object) -> object:
    """What a result is now, to be compared later: a model may write the next one to the same tensors and containers.

    Of what raises when it is looked at nothing is kept, and no result is close to that.
    """
    kept_by_id: dict[int, tuple[object, _Kept]] = {}  # with what has the id, which is nobody else's as long as it lives

    def keep(value: object) -> object:
        parts = _parts_of(value)
        if parts is None:
            return _copy_of(value)
        if id(value) not in kept_by_id:
            kept_by_id[id(value)] = value, _Kept(type(value))
            kept_by_id[id(value)][1].parts.extend((place, keep(part)) for place, part in parts)
        return kept_by_id[id(value)][1]

    try:
        return keep(result)
    except Exception as error:  # by the attributes of a class that is not ours
        if is_out_of_memory(error):
            raise
        return object()


def _copy_of(leaf: object) -> object:
    if isinstance(leaf, Tensor):
        copy = leaf.detach().clone()
        return copy.requires_grad_() if leaf.requires_grad else copy
    numpy = sys.modules.get("numpy")
    return leaf.copy() if numpy is not None and isinstance(leaf, numpy.ndarray) else leaf


def leaves_of(value: object) -> Iterator[object]:
    """Whatever containers and objects hold, at any depth (a dict of a class of its own, a dataclass)."""
    seen: set[int] = set()
    left = [value]
    while left:
        one = left.pop()
        parts = _parts_of(one)
        if parts is None:
            yield one
        elif id(one) not in seen:
            seen.add(id(one))
            left.extend(reversed([part for _, part in parts]))


def _parts_of(value: object) -> list[tuple[object, object]] | None:
    """What a container holds and what attributes it has, by their places; None for what is looked at as a whole."""
    if isinstance(value, _Kept):
        return value.parts
    if isinstance(value, Tensor | nn.Module | str | bytes):
        return None
    attributes: list[tuple[object, object]] = [*(attributes_or_none(value) or {}).items()]
    if isinstance(value, Mapping):
        return [*value.items(), *attributes]
    if isinstance(value, Sequence | deque):
        return [*enumerate(value), *attributes]
    return attributes or None


def are_close(actual: object, expected: object, exact: object = None, dtypes: Collection[torch.dtype] = SHORT) -> bool:
    """Whether two results are the same but for rounding, in the same containers. False for what cannot be compared.

    exact: the same with tensors of float32 in the places of those of shorter dtypes. Tensors that differ by more than
    rounding as a rule does are the same, too, where `actual` is about as far from these as `expected` is. dtypes: of
    tensors that may differ so.

    An integer may be another where rounding decides (the index of the larger of two): one of 16 in a tensor.
    Raises what says that there is no memory to compare them.
    """
    try:
        return _is_close(actual, expected, set(), exact, dtypes)
    except Exception as error:  # by the `==` of a class that is not ours, or its attributes
        if is_out_of_memory(error):
            raise
        return False


def are_statistics_close(actual: Tensor, expected: Tensor, size: float = 0.0) -> bool:
    """Whether two buffers are the same; floating ones but for rounding.

    size: the root mean square of what a running mean is the mean of.
    """
    if not expected.is_floating_point():
        return torch.equal(actual, expected)
    return _are_numbers_close(actual, expected, _LARGEST_DIFFERENCE_OF_MEANS * size)


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory was refused, which says nothing of a result: torch raises a plain RuntimeError for it on a CPU."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _is_close(
    actual: object,
    expected: object,
    seen: set[tuple[int, int]],
    exact: object = None,
    dtypes: Collection[torch.dtype] = SHORT,
) -> bool:
    if isinstance(expected, Tensor):
        if not isinstance(actual, Tensor):
            return False
        return _are_numbers_close(actual, expected) or is_as_exact(actual, expected, exact, dtypes)
    if _kind_of(actual) is not _kind_of(expected):
        return False
    mine, theirs = _parts_of(actual), _parts_of(expected)
    if mine is None or theirs is None:
        return mine is theirs and _is_leaf_close(actual, expected)
    if (id(actual), id(expected)) in seen:
        return True
    seen.add((id(actual), id(expected)))
    if [place for place, _ in mine] != [place for place, _ in theirs]:
        return False
    wide = _parts_of(exact) or []
    if [place for place, _ in wide] != [place for place, _ in theirs]:
        wide = [(place, None) for place, _ in theirs]
    three = zip(mine, theirs, wide, strict=True)
    return all(_is_close(one, other, seen, truth, dtypes) for (_, one), (_, other), (_, truth) in three)


def _kind_of(value: object) -> type:
    return value.kind if isinstance(value, _Kept) else type(value)


def _is_leaf_close(actual: Any, expected: Any) -> bool:
    if actual is expected:
        return True
    if isinstance(expected, float):
        both_nan = math.isnan(actual) and math.isnan(expected)
        return both_nan or math.isclose(actual, expected, rel_tol=_LARGEST_DIFFERENCE[torch.float32])
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(expected, numpy.ndarray):
        return _are_numbers_close(torch.from_numpy(actual), torch.from_numpy(expected))
    return bool(actual == expected)


def _are_numbers_close(actual: Tensor, expected: Tensor, least: float = 0.0) -> bool:
    """least: the difference that is allowed, however small the numbers are."""
    if (actual.shape, actual.dtype) != (expected.shape, expected.dtype):
        return False
    if expected.numel() == 0:
        return True
    if expected.is_complex():
        mine, theirs = (torch.view_as_real(one.resolve_conj()) for one in (actual, expected))
        return _are_numbers_close(mine, theirs, least)
    if not expected.is_floating_point():
        return 16 * int((actual != expected).sum()) <= expected.numel()
    mine, theirs = actual.double(), expected.double()
    allowed = _LARGEST_DIFFERENCE.get(expected.dtype, 1e-6) * theirs.abs().nan_to_num(0.0, 0.0).max()
    allowed = allowed.clamp(min=least)
    return bool((((mine - theirs).abs() <= allowed) | (mine == theirs) | (mine.isnan() & theirs.isnan())).all())


def difference(actual: object, expected: object) -> str:
    """By how much two results that are not close differ most, as a sentence goes on; nothing where that has no number.

    Of the elements of floating tensors: relative to the largest element of the tensor, as they are compared.
    """
    worst, words = 0.0, ""
    try:
        for place, mine, theirs in _pairs(actual, expected):
            if mine.shape != theirs.shape or mine.dtype != theirs.dtype:
                return f": {place} is {_kind(mine)}, not {_kind(theirs)}"
            if not theirs.is_floating_point() or theirs.numel() == 0 or _are_numbers_close(mine, theirs):
                continue
            ours, original = mine.detach().double(), theirs.detach().double()
            off = float((ours - original).abs().nan_to_num(math.inf).max())
            largest = float(original.abs().nan_to_num(0.0, 0.0).max())
            share = off / largest if largest else math.inf
            if share > worst:
                allowed = _LARGEST_DIFFERENCE.get(theirs.dtype, 1e-6)
                rounding = f"rounding is up to {allowed:g} of it"
                worst, words = share, f": {place} by {off:.2g}, {share:.2g} of its largest element; {rounding}"
    except Exception:  # by a class that is not ours
        return ""
    return words


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _pairs(actual: object, expected: object) -> Iterator[tuple[str, Tensor, Tensor]]:
    """The tensors at the same places of two results, each with its place."""
    seen: set[int] = set()
    left = [("the result", actual, expected)]
    while left:
        place, mine, theirs = left.pop()
        if isinstance(mine, Tensor) and isinstance(theirs, Tensor):
            yield place, mine, theirs
            continue
        ours, others = _parts_of(mine), _parts_of(theirs)
        if ours is not None and others is not None and id(theirs) not in seen:
            seen.add(id(theirs))
            both = reversed(list(zip(ours, others, strict=False)))
            left.extend((f"{place}[{key!r}]", one, other) for (key, one), (_, other) in both)
