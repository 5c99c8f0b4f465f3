"""Max pooling for inference: what torch's own gives, element by element."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from sparsekernels import _library
from sparsekernels.ops.max_pool2d.operators import max_pool2d

CASES = [
    ((2, 3, 8, 8), (2, 2, 2, 2, 0, 0)),
    ((2, 3, 112, 112), (3, 3, 2, 2, 1, 1)),
    ((1, 1, 1, 1), (1, 1, 1, 1, 0, 0)),
    ((3, 2, 7, 33), (3, 2, 1, 3, 1, 0)),
    ((1, 5, 33, 7), (2, 5, 3, 1, 1, 2)),
    ((2, 2, 6, 100), (6, 40, 6, 2, 3, 20)),
    ((1, 2, 5, 64), (5, 64, 1, 1, 0, 0)),
    ((70, 40, 2, 2), (2, 2, 2, 2, 0, 0)),
    ((1, 3, 9, 257), (3, 3, 4, 4, 1, 1)),
    ((0, 3, 8, 8), (2, 2, 2, 2, 0, 0)),
    ((3, 5, 4, 4), (2, 2, 2, 2, 0, 0)),  # small planes, several of them in a vector
    ((1, 37, 2, 2), (2, 2, 2, 2, 0, 0)),
    ((2, 3, 9, 10), (3, 3, 2, 2, 0, 0)),
    ((5, 3, 5, 9), (2, 2, 3, 1, 0, 0)),
    ((2, 7, 17, 17), (2, 2, 2, 2, 0, 0)),
    ((2, 7, 56, 56), (2, 2, 2, 2, 0, 0)),
    ((2, 3, 12, 70), (4, 5, 2, 2, 2, 2)),
    ((3, 5, 16, 16), (2, 2, 2, 2, 0, 0)),  # halved, two rows of results in a vector
    ((2, 3, 7, 16), (2, 2, 2, 2, 0, 0)),
    ((2, 3, 33, 64), (2, 2, 2, 2, 0, 0)),
    ((2, 3, 5, 101), (2, 2, 2, 2, 0, 0)),
    ((1, 2, 2, 33), (2, 2, 2, 2, 0, 0)),
]
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def theirs(x: torch.Tensor, window: tuple[int, ...]) -> torch.Tensor:
    return F.max_pool2d(x, window[:2], window[2:4], window[4:])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "window"), CASES)
def test_same_as_torch(shape: tuple[int, ...], window: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.randn(shape).to(dtype)
    for view in (x, x.contiguous(memory_format=torch.channels_last), x.flip(3), x - 100):
        assert torch.equal(max_pool2d(view, window), theirs(view, window))


def test_nan_and_infinities_spread_as_in_torch() -> None:
    x = torch.randn(2, 3, 20, 40)
    x.view(-1)[torch.randperm(x.numel())[:60]] = torch.tensor([math.nan, math.inf, -math.inf]).repeat(20)
    for window in ((2, 2, 2, 2, 0, 0), (3, 3, 1, 1, 1, 1), (3, 3, 2, 2, 1, 1)):
        narrow = x[:, :, :, :16].contiguous()
        torch.testing.assert_close(max_pool2d(narrow, window), theirs(narrow, window), rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(max_pool2d(x, window), theirs(x, window), rtol=0, atol=0, equal_nan=True)
    all_lowest = torch.full((1, 1, 4, 4), -math.inf)
    assert torch.equal(max_pool2d(all_lowest, (2, 2, 2, 2, 0, 0)), torch.full((1, 1, 2, 2), -math.inf))


@pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")
@pytest.mark.parametrize(
    "window",
    [
        (2, 2, 2, 2, 0),
        (0, 2, 2, 2, 0, 0),
        (2, 2, 0, 2, 0, 0),
        (2, 2, 2, 2, 2, 0),
        (2, 2, 2, 2, -1, 0),
        (9, 2, 2, 2, 0, 0),
    ],
)
def test_what_does_not_fit_is_refused(window: tuple[int, ...]) -> None:
    with pytest.raises((RuntimeError, ValueError), match="accepted"):
        torch.ops.sparsekernels._max_pool2d(torch.randn(1, 2, 8, 8), window)


def test_no_gaps_are_taken_for_granted() -> None:
    """A view of every other column is torch's business."""
    x = torch.randn(2, 3, 8, 16)[..., ::2]
    assert torch.equal(max_pool2d(x, (2, 2, 2, 2, 0, 0)), theirs(x, (2, 2, 2, 2, 0, 0)))


def test_unbatched_images_are_torchs_business() -> None:
    x = torch.randn(3, 8, 8)
    assert torch.equal(max_pool2d(x, (2, 2, 2, 2, 0, 0)), theirs(x, (2, 2, 2, 2, 0, 0)))
