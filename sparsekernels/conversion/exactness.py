# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Whether tensors that rounding takes apart are about as far from a float32 run as the original model's are."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

SHORT = (torch.bfloat16, torch.float16)
"""Dtypes in which rounding alone may take results apart."""
_LARGEST_RATIO = 2.0
"""Of the errors after and before, the largest ones and root mean squares."""
_LARGEST_RATIO_OF_PARTS = 4.0
"""The same of a channel, row, column or image: of a thousand, whose numbers are off alike, one is off so far."""
_LOST = 0.25
"""A tensor that is further off, as a share of its size, has been lost to rounding: nothing can be told by it."""
_FEWEST_ELEMENTS = 16
"""Of a part of a tensor whose errors are compared with what they were: those of a few numbers are chance."""
LARGEST_GRADIENT_ERROR = 0.05
"""Between a parameter's gradients before and after, see `gradient_error`; and between their lengths along the truth."""
_LEAST_PART = 0.2
"""A part of a gradient that is shorter, beside the average one, counts as this."""
_LARGEST_ALONG_PART = 0.5
"""Of the errors of a part along the truth, more than there was before. Right ones had up to 0.4."""
_LEAST_PART_ALONG = 0.5
"""A part that is shorter, beside the average one, counts as this there."""
_LEAST_LENGTH = 0.01
"""A gradient that nearly vanishes counts as this share of all together, as in `gradient_errors`."""


def is_as_exact(actual: Tensor, expected: Tensor, exact: object, dtypes: Collection[torch.dtype] = SHORT) -> bool:
    """Whether rounding alone may be why two results differ, by what they are in float32.

    dtypes: those in which rounding may be more than that of float32, which it is under autocast as well.
    """
    if not isinstance(exact, Tensor) or exact.dtype is not torch.float32:
        return False
    if expected.dtype not in dtypes or actual.dtype is not expected.dtype:
        return False
    if not actual.shape == expected.shape == exact.shape:
        return False
    truth, theirs, mine = exact.double(), expected.double(), actual.double()
    alike = ~truth.isfinite() & ((truth == theirs) & (truth == mine) | truth.isnan() & theirs.isnan() & mine.isnan())
    truth, theirs, mine = (one.masked_fill(alike, 0.0) for one in (truth, theirs, mine))
    before, after = theirs - truth, mine - truth
    if truth.numel() == 0 or not bool(_size(before) <= _LOST * _size(truth)):
        return False
    if not bool(after.abs().max() <= _LARGEST_RATIO * before.abs().max()):
        return False
    # A lost channel, border or image is little of the whole: each is compared with itself before, and with all.
    if not bool(_size(after) <= _LARGEST_RATIO * _size(before)):
        return False
    return _are_parts_as_exact(after, before) and _point_parts_alike(after, before, truth)


def is_statistic_as_exact(actual: object, expected: object, exact: object, size: float = 0.0) -> bool:
    """The same of buffers of numbers.

    size: the root mean square of what a running mean is the mean of.
    """
    three = actual, expected, exact
    if not all(isinstance(one, Tensor) and one.layout is torch.strided and not one.is_nested for one in three):
        return False
    mine, theirs, truth = three
    assert isinstance(mine, Tensor) and isinstance(theirs, Tensor) and isinstance(truth, Tensor)  # noqa: PT018
    if truth.dtype is not torch.float32 or mine.dtype is not theirs.dtype or not theirs.is_floating_point():
        return False
    if not mine.shape == theirs.shape == truth.shape or truth.numel() == 0:
        return False
    before, after = theirs.double() - truth.double(), mine.double() - truth.double()
    if not bool(_size(before) <= _LOST * _size(truth.double()).clamp(min=size)):
        return False
    ratio = _LARGEST_RATIO if truth.numel() >= _FEWEST_ELEMENTS else _LARGEST_RATIO_OF_PARTS
    return bool(_size(after) <= ratio * _size(before)) and bool(after.abs().max() <= ratio * before.abs().max())


def are_gradients_as_exact(
    actual: Sequence[Tensor | None],
    expected: Sequence[Tensor | None],
    exact: Sequence[Tensor | None],
    weights: Sequence[Tensor],
) -> bool:
    """Whether rounding alone may be why gradients of the parameters `weights` differ, by what they are in float32.

    Each of them that differs by more than rounding as a rule does is compared with itself: as a vector, along the
    truth, and by its parts. One that is lost says nothing, so nobody knows. Zeros of a weight that have no gradient in
    the other two need none in the float32 run either: what is pruned is left out.
    """
    count = len(expected)
    if not len(actual) == len(exact) == len(weights) == count:
        return False
    four = [
        (mine, theirs, truth, weight)
        for mine, theirs, truth, weight in zip(actual, expected, exact, weights, strict=True)
        if not mine is theirs is None
    ]
    if any(one is None for some in four for one in some):
        return False
    if any(len({one.shape for one in some}) > 1 for some in four):  # type: ignore[union-attr]
        return False
    if not four:
        return True
    truths = [_where_used(*some) for some in four]  # type: ignore[arg-type]
    lengths = torch.stack([one.norm() for one in truths])
    lengths = lengths.clamp(min=_LEAST_LENGTH * lengths.norm())
    befores = [theirs.double() - truth for (_, theirs, _, _), truth in zip(four, truths, strict=True)]  # type: ignore[union-attr]
    shares = torch.stack([one.norm() for one in befores]) / lengths
    typical = float(shares.square().mean().sqrt())
    return all(
        _is_gradient_as_exact(mine, theirs, truth, length, typical)  # type: ignore[arg-type]
        for (mine, theirs, _, _), truth, length in zip(four, truths, lengths, strict=True)
    )


def _where_used(mine: Tensor, theirs: Tensor, truth: Tensor, weight: Tensor) -> Tensor:
    """The truth, in float64, where the parameter is used."""
    unused = (weight == 0) & (theirs == 0) & (mine == 0)
    return truth.double().masked_fill(unused, 0.0)


def _is_gradient_as_exact(actual: Tensor, expected: Tensor, truth: Tensor, length: Tensor, typical: float) -> bool:
    """length: of the truth, or what one that nearly vanishes counts as. typical: the error of the model's gradients.

    What a kink does to one layer's gradient is chance: where the original's is off by less than typical, by luck, the
    other may be off by as much as that.
    """
    if actual.dtype is not expected.dtype or not bool(truth.isfinite().all()):
        return False
    if is_gradient_alike(actual, expected, length):
        return True
    mine, theirs = actual.double(), expected.double()
    if not bool(mine.isfinite().all()) or not bool(theirs.isfinite().all()):
        return False
    before, after = theirs - truth, mine - truth
    if not bool(before.norm() <= _LOST * length):
        return False
    error = max(float(before.norm() / length), min(typical, _LOST))
    if not bool(after.norm() <= _LARGEST_RATIO * error * length):
        return False
    # Errors of rounding point anywhere; a gradient that is too long or short by a little is off along the truth.
    along = [float((errors * truth).sum().abs() / length.square()) for errors in (after, before)]
    if along[0] > LARGEST_GRADIENT_ERROR + max(_LARGEST_RATIO * along[1], error / 2):
        return False
    least = error * length / max(1, truth.numel()) ** 0.5
    return _are_parts_as_exact(after, before, least) and _point_parts_alike(after, before, truth)


def is_gradient_alike(
    actual: Tensor,
    expected: Tensor,
    least: Tensor | float = 0.0,
    largest: float = LARGEST_GRADIENT_ERROR,
    one_by_one: bool = False,
) -> bool:
    """Whether two gradients are the same but for a little, as a whole and in each row, column or channel.

    least: the length of one that nearly vanishes. largest: the share that is a little. one_by_one: whether each number
    of a vector, which is a channel's, is such a part. A part may be off by as much as it could be if it were a fifth of
    the average of its kind.
    """
    if (actual.shape, actual.dtype) != (expected.shape, expected.dtype):
        return False
    errors, theirs = actual - expected, expected
    if not bool(errors.isfinite().all()):
        errors = errors.masked_fill((actual == expected) | (actual.isnan() & expected.isnan()), 0.0)
        theirs = theirs.masked_fill(~theirs.isfinite(), 0.0)
    whole = torch.linalg.vector_norm(theirs, dtype=torch.float64).clamp(min=least)
    if not bool(torch.linalg.vector_norm(errors, dtype=torch.float64) <= largest * whole):
        return False
    parts = _parts_of(theirs)
    if one_by_one and theirs.dim() == 1:
        errors, theirs, parts = errors[:, None], theirs[:, None], {0: [1]}
    for dim, rest in parts.items():
        lengths, off = (torch.linalg.vector_norm(one, dim=rest, dtype=torch.float64) for one in (theirs, errors))
        floor = _LEAST_PART * whole / theirs.size(dim) ** 0.5
        if not bool((off <= largest * lengths.clamp(min=floor)).all()):
            return False
    return True


def _are_parts_as_exact(after: Tensor, before: Tensor, least: Tensor | float = 0.0) -> bool:
    """By their errors. least: the root mean square of those of any part."""
    least = _size(before).clamp(min=least)
    return all(
        bool((_size(after, rest) <= _LARGEST_RATIO_OF_PARTS * _size(before, rest).clamp(min=least)).all())
        for rest in _parts_of(before).values()
    )


def _point_parts_alike(after: Tensor, before: Tensor, truth: Tensor) -> bool:
    """By their errors along the truth: a part that is lost, or of another sign, is off by all of its length or twice.

    Where errors may be a quarter of the whole, four times that, as of the largest part of many, is all of a part.
    """
    for rest in _parts_of(truth).values():
        lengths = truth.square().sum(rest)
        lengths = lengths.clamp(min=_LEAST_PART_ALONG**2 * float(lengths.mean()))
        along = [(errors * truth).sum(rest).abs() for errors in (after, before)]
        if bool((along[0] > _LARGEST_ALONG_PART * lengths + along[1]).any()):
            return False
    return True


def _parts_of(tensor: Tensor) -> dict[int, list[int]]:
    """The dimensions along which there are parts that are large enough to be looked at, and the others of each."""
    dims = range(tensor.dim())
    large = [dim for dim in dims if tensor.numel() >= _FEWEST_ELEMENTS * tensor.size(dim) > 0]
    return {dim: [other for other in dims if other != dim] for dim in large}


def _size(errors: Tensor, dims: list[int] | None = None) -> Tensor:
    """The root mean square, over `dims` or all."""
    return errors.square().mean(dims).sqrt()
