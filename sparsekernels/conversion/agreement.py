"""Whether a model gives what it gave before it was converted: results, and gradients in training."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves

from ..testing import gradient_error

_LARGEST_DIFFERENCE = {torch.float32: 2e-3, torch.bfloat16: 0.1, torch.float16: 2e-2}
"""Between results of the model before and after, relative to the largest: more is no rounding."""
_LARGEST_GRADIENT_ERROR = 0.05
"""Between a parameter's gradients before and after, see `gradient_error`."""


def differentiable(result: object) -> list[Tensor]:
    """The tensors of a result that have a gradient."""
    return [one for one in leaves_of(result) if isinstance(one, Tensor) and one.requires_grad]


def backward_at_random(result: object) -> None:
    """Gradients from random ones: those of a sum nearly vanish behind a BatchNorm, and rounding is what is left."""
    generator = torch.Generator("cpu").manual_seed(5)
    tensors = differentiable(result)
    seeds = [torch.randn(one.shape, generator=generator, device="cpu").to(one.device, one.dtype) for one in tensors]
    torch.autograd.backward(tensors, seeds)


def clear_gradients(parameters: Collection[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = None


def point_alike(actual: list[Tensor | None], expected: list[Tensor | None]) -> bool:
    if [one is None for one in actual] != [one is None for one in expected]:
        return False
    mine, theirs = ([one for one in some if one is not None] for some in (actual, expected))
    return not theirs or gradient_error(mine, theirs) <= _LARGEST_GRADIENT_ERROR


def leaves_of(value: object, depth: int = 4) -> Iterator[object]:
    """What containers hold, those of torch's pytrees and the attributes of other objects (a dataclass)."""
    for leaf in tree_leaves(value):
        if depth and _has_attributes(leaf):
            yield from leaves_of(vars(leaf), depth - 1)
        else:
            yield leaf


def _has_attributes(value: object) -> bool:
    return not isinstance(value, Tensor | nn.Module | type) and isinstance(getattr(value, "__dict__", None), dict)


def are_close(actual: object, expected: object) -> bool:
    """Whether two results are the same but for rounding, in the same containers.

    An integer may be another where rounding decides (the index of the larger of two): one of 16 in a tensor.
    """
    (mine, containers), (theirs, expected_containers) = tree_flatten(actual), tree_flatten(expected)
    return containers == expected_containers and all(map(_is_close, mine, theirs))


def _is_close(actual: object, expected: object) -> bool:
    if not isinstance(expected, Tensor):
        if type(actual) is not type(expected):
            return False
        if _has_attributes(expected):
            return are_close(vars(actual), vars(expected))
        return actual is expected or bool(actual == expected)
    if not isinstance(actual, Tensor) or (actual.shape, actual.dtype) != (expected.shape, expected.dtype):
        return False
    if expected.numel() == 0:
        return True
    if expected.is_complex():
        return _is_close(torch.view_as_real(actual.resolve_conj()), torch.view_as_real(expected.resolve_conj()))
    if not expected.is_floating_point():
        return 16 * int((actual != expected).sum()) <= expected.numel()
    mine, theirs = actual.double(), expected.double()
    allowed = _LARGEST_DIFFERENCE.get(expected.dtype, 1e-6) * theirs.abs().nan_to_num(0.0, 0.0).max()
    return bool((((mine - theirs).abs() <= allowed) | (mine == theirs) | (mine.isnan() & theirs.isnan())).all())
