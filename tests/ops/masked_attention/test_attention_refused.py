# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What masked_attention and the kernels behind it refuse, and in which words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import sparsekernels as sk
from sparsekernels import _library
from sparsekernels.ops.masked_attention.implementations import MASKED_ATTENTION

built = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")
MASK = torch.ones(4, 6, dtype=torch.bool)
BLOCKS = torch.ones(2, 3, dtype=torch.bool)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (
            lambda q, k, v: (q, k, v, None),
            TypeError,
            "mask to be a torch.Tensor, a BlockMask or a PreparedMask, got No",
        ),
        (lambda q, k, v: (q, k, v, MASK[:3]), ValueError, r"mask of a shape that broadcasts to \[4, 6\], got \[3, 6\]"),
        (lambda q, k, v: (q, k, v, MASK.expand(2, 4, 6)), ValueError, r"broadcasts to \[4, 6\], got \[2, 4, 6\]"),
        (lambda q, k, v: (q, k, v, MASK.float()), TypeError, "got torch.float32; an additive mask keeps where"),
        (lambda q, k, v: (q, k, v, MASK.to("meta")), ValueError, "mask on cpu"),
        (lambda q, k, v: (q, k, v, sk.BlockMask(BLOCKS, (2, 2), (4, 5))), ValueError, r"\[4, 6\], got \[4, 5\]"),
        (lambda q, k, v: (q, k[:, :4], v, MASK), ValueError, r"k with 5 columns like q, got \[6, 4\]"),
        (lambda q, k, v: (q, k, v[:5], MASK), ValueError, r"v with 6 rows like k, got \[5, 7\]"),
        (lambda q, k, v: (q, k.double(), v, MASK), TypeError, "k of dtype torch.float32 like q, got torch.float64"),
        (lambda q, k, v: (q, k, v.half(), MASK), TypeError, "v of dtype torch.float32 like q, got torch.float16"),
        (lambda q, k, v: (q[0], k, v, MASK), ValueError, r"q of at least 2 dimensions, got \[5\]"),
        (lambda q, k, v: (q, k, v[0], MASK), ValueError, r"v of at least 2 dimensions, got \[7\]"),
        (lambda q, k, v: (q.int(), k, v, MASK), TypeError, "q of dtype"),
        (lambda q, k, v: ("q", k, v, MASK), TypeError, "q to be a torch.Tensor, got str"),
        (lambda q, k, v: (q.to_sparse(), k, v, MASK), TypeError, "q of layout torch.strided, got torch.sparse_coo"),
        (lambda q, k, v: (q, k, v.to("meta"), MASK), ValueError, "v on cpu like q, got meta"),
        (
            lambda q, k, v: (q.expand(2, 4, 5), k.expand(3, 6, 5), v, MASK),
            ValueError,
            r"k and v with batches that broadcast with that of q, \[2\], got \[3\] and \[\]",
        ),
        (
            lambda q, k, v: (q[:, :1].expand(4, 2**30), k[:, :1].expand(6, 2**30), v, MASK),
            ValueError,
            r"q of at most 2.31 elements, got \[4, 1073741824\]",
        ),
        (
            lambda q, k, v: (q[:1].expand(2**17, 5), k[:1].expand(2**17, 5), v[:1].expand(2**17, 7), MASK[:1, :1]),
            ValueError,
            "scores of at most 2.31 elements",
        ),
    ],
)
def test_refused(make: Callable[..., tuple[Any, ...]], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match="masked_attention: expected .*" + words):
        sk.masked_attention(*make(torch.randn(4, 5), torch.randn(6, 5), torch.randn(6, 7)))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"scale": "2"}, TypeError, "scale to be a number or None, got str"),
        ({"scale": True}, TypeError, "scale to be a number or None, got bool"),
        ({"scale": float("nan")}, ValueError, "scale to be finite, got nan"),
        ({"enable_gqa": 1}, TypeError, "enable_gqa to be a bool, got int"),
        ({"enable_gqa": True}, ValueError, r"q of at least 3 dimensions with enable_gqa=True, got \[4, 5\]"),
    ],
)
def test_refused_options(options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match="masked_attention: expected " + words):
        sk.masked_attention(torch.randn(4, 5), torch.randn(6, 5), torch.randn(6, 7), MASK, **options)


@pytest.mark.parametrize(("of_k", "of_v"), [(2, 2), (1, 3), (0, 0)])
def test_refused_groups(of_k: int, of_v: int) -> None:
    q, k, v = torch.randn(3, 4, 5), torch.randn(of_k, 6, 5), torch.randn(of_v, 6, 7)
    words = rf"k and v of the same number of heads, which divides the 3 of q, got {of_k} and {of_v}"
    with pytest.raises(ValueError, match="masked_attention: expected " + words):
        sk.masked_attention(q, k, v, MASK, enable_gqa=True)


def test_refused_groups_have_the_shapes_that_were_given() -> None:
    q, k, v = torch.randn(4, 4, 5), torch.randn(2, 6, 5), torch.randn(2, 6, 7)
    with pytest.raises(ValueError, match=r"k with 5 columns like q, got \[2, 6, 3\]"):
        sk.masked_attention(q, k[..., :3], v, MASK, enable_gqa=True)
    with pytest.raises(ValueError, match=r"v with 6 rows like k, got \[2, 5, 7\]"):
        sk.masked_attention(q, k, v[:, :5], MASK, enable_gqa=True)


def test_other_kernels_refuse_what_a_forward_pass_does_not_give() -> None:
    """Those that the table runs, whose arguments Python checks."""
    q, k, v = torch.randn(2, 4, 5), torch.randn(2, 6, 5), torch.randn(2, 6, 7)
    bits, nothing = torch.ones(4, 1, dtype=torch.int64), q.new_empty(0)
    y, statistics = torch.randn(2, 4, 7), torch.ones(2, 4, 2)
    sound = [y, q, k, v, bits, y, statistics, nothing]
    for changed, error, words in (
        (
            {0: y[:, :2], 5: y[:, :2], 6: statistics[:, :2]},
            ValueError,
            r"gradient of shape \[2, 4, 7\], got \[2, 2, 7\]",
        ),
        ({0: y[..., :1], 5: y[..., :1]}, ValueError, r"gradient of shape \[2, 4, 7\], got \[2, 4, 1\]"),
        ({0: y.to("meta")}, ValueError, "gradient on cpu like q, got meta"),
        ({5: y[:1]}, ValueError, r"y of shape \[2, 4, 7\], got \[1, 4, 7\]"),
        ({5: y.half()}, TypeError, "y of dtype torch.float32, got torch.float16"),
        ({6: statistics[..., :1]}, ValueError, r"statistics of shape \[2, 4, 2\], got \[2, 4, 1\]"),
        ({6: statistics.half()}, TypeError, "statistics of dtype torch.float32, got torch.float16"),
        ({6: statistics.to("meta")}, ValueError, "statistics on cpu like q, got meta"),
        ({7: y[:1]}, ValueError, r"rest of shape \[2, 4, 7\], got \[1, 4, 7\]"),
    ):
        given = [changed.get(i, one) for i, one in enumerate(sound)]
        with pytest.raises(error, match="masked_attention: expected " + words):
            MASKED_ATTENTION.by_table.backward(*given, 1.0)


@built
def test_the_kernels_refuse_what_does_not_fit() -> None:
    q, k, v = torch.randn(2, 4, 5), torch.randn(2, 6, 5), torch.randn(2, 6, 7)
    bits = torch.ones(4, 1, dtype=torch.int64)
    forward, backward = torch.ops.sparsekernels._masked_attention, torch.ops.sparsekernels._masked_attention_backward
    errors = (RuntimeError, ValueError)
    for wrong in (bits.int(), bits[:3], bits.expand(4, 2), bits.expand(3, 4, 1), bits[:, 0]):
        with pytest.raises(errors, match="masked_attention: expected bits of int64"):
            forward(q, k, v, wrong, 1.0, True)
    for behind in (1 << 6, -(1 << 63)):
        with pytest.raises(errors, match="masked_attention: expected bits that are 0 behind the last key"):
            forward(q, k, v, bits.index_fill(0, torch.tensor([3]), behind), 1.0, True)
    for arguments, words in (
        ((q.double(), k.double(), v.double(), bits), "q of float32"),
        ((q, k.half(), v, bits), "k of at least 2 dimensions, of the dtype of q"),
        ((q, k[..., :4], v, bits), "k with as many columns as q"),
        ((q, k, v[:, :5], bits), "v with as many rows as k"),
        ((q, k[:1].expand(3, 6, 5), v, bits), "k with a batch that broadcasts"),
    ):
        with pytest.raises(errors, match="masked_attention: expected " + words):
            forward(*arguments, 1.0, True)
    with pytest.raises(errors, match="masked_attention: expected scale to be finite"):
        forward(q, k, v, bits, float("inf"), True)
    y, statistics, rest = forward(q, k, v, bits, 1.0, True)
    gradient = torch.ones_like(y)

    def refuse(words: str, *arguments: Tensor) -> None:
        with pytest.raises(errors, match="masked_attention: expected " + words):
            backward(*arguments, 1.0)

    refuse("gradient like", gradient[:1], q, k, v, bits, y, statistics, rest)
    refuse("y like", gradient, q, k, v, bits, y[:1], statistics, rest)
    refuse("statistics of float32", gradient, q, k, v, bits, y, statistics[:1], rest)
    refuse("rest like", gradient, q, k, v, bits, y, statistics, y[:1])
    refuse("q with the whole batch", gradient, q[0], k, v, bits, y, statistics, rest)
    refuse("v with the batch of k", gradient, q, k, v[0], bits, y, statistics, rest)
