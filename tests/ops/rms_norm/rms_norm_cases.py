# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The cases that every RMSNorm implementation is held to, as data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsekernels import _library
from sparsekernels.ops.rms_norm.implementations import RMS_NORM

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def rows(*shape: int) -> Callable[[torch.Generator], Tensor]:
    return lambda generator: torch.randn(shape, generator=generator)


def heads(batch: int, heads: int, tokens: int, width: int, of: int) -> Callable[[torch.Generator], Tensor]:
    """q or k as attention sees it: the first `heads` of `of` heads of one projection, transposed to [B, H, T, D]."""

    def make(generator: torch.Generator) -> Tensor:
        projected = torch.randn(batch, tokens, of * width, generator=generator)
        return projected[:, :, : heads * width].view(batch, tokens, heads, width).transpose(1, 2)

    return make


def every_other_row(*shape: int) -> Callable[[torch.Generator], Tensor]:
    return lambda generator: torch.randn(2 * shape[0], *shape[1:], generator=generator)[::2]


def strided_columns(*shape: int) -> Callable[[torch.Generator], Tensor]:
    return lambda generator: torch.randn(*shape[:-1], 2 * shape[-1], generator=generator)[..., ::2]


def transposed(*shape: int) -> Callable[[torch.Generator], Tensor]:
    return lambda generator: torch.randn(*shape, generator=generator).transpose(-1, -2)


def expanded(count: int, width: int) -> Callable[[torch.Generator], Tensor]:
    return lambda generator: torch.randn(1, width, generator=generator).expand(count, width)


def many_strides(generator: torch.Generator) -> Tensor:
    """Six leading dimensions of which no two can be merged."""
    return torch.randn(4, 4, 4, 4, 4, 4, 8, generator=generator)[::2, ::2, ::2, ::2, ::2, ::2]


def offset(*shape: int) -> Callable[[torch.Generator], Tensor]:
    """Starts one element into its storage, so that no row is aligned."""

    def make(generator: torch.Generator) -> Tensor:
        size = torch.Size(shape).numel()
        return torch.randn(size + 1, generator=generator)[1:].view(shape)

    return make


@dataclass(frozen=True)
class Case:
    name: str
    make: Callable[[torch.Generator], Tensor]
    normalized_dims: int = 1
    weight: str | None = "same"  # "same" dtype as the input, "float32", "float64", "strided", or None
    eps: float | None = 1e-6
    scale: float = 1.0


CASES = (
    Case("one row", rows(1, 2048)),
    Case("one vector", rows(64)),
    Case("one element", rows(1, 1)),
    Case("width one", rows(7, 1)),
    Case("head rows", rows(32, 64)),
    Case("head rows 128", rows(3, 5, 128)),
    Case("width 31", rows(5, 31)),
    Case("width 33", rows(18, 33)),
    Case("width 100", rows(17, 100)),
    Case("width 513", rows(3, 513)),
    Case("width 1000", rows(33, 1000)),
    Case("wide", rows(2, 5000)),
    Case("very wide", rows(2, 40000)),
    Case("many rows", rows(1200, 96)),
    Case("default eps", rows(4, 64), eps=None),
    Case("zero eps", rows(4, 64), eps=0.0),
    Case("large eps", rows(4, 64), eps=3.0),
    Case("small values", rows(4, 64), eps=None, scale=1e-4),
    Case("large values", rows(4, 64), scale=1e4),
    Case("no weight", rows(9, 80), weight=None),
    Case("no weight, wide", rows(40, 600), weight=None),
    Case("float32 weight", rows(9, 80), weight="float32"),
    Case("float32 weight, one row", rows(1, 300), weight="float32"),
    Case("float64 weight", rows(9, 80), weight="float64"),
    Case("strided weight", rows(9, 80), weight="strided"),
    Case("two normalized dimensions", rows(4, 6, 10), normalized_dims=2),
    Case("all dimensions normalized", rows(4, 6, 10), normalized_dims=3),
    Case("queries", heads(2, 3, 5, 64, of=6)),
    Case("queries of 128", heads(2, 2, 3, 128, of=5)),
    Case("queries of one token", heads(3, 4, 1, 64, of=7)),
    Case("every other row", every_other_row(6, 40)),
    Case("strided columns", strided_columns(6, 40)),
    Case("transposed", transposed(3, 40, 6)),
    Case("expanded", expanded(6, 40)),
    Case("many strides", many_strides),
    Case("unaligned", offset(6, 70)),
    Case("no rows", rows(0, 64)),
    Case("no rows, more dimensions", rows(3, 0, 64)),
    Case("no columns", rows(3, 0)),
)


def inputs(case: Case, dtype: torch.dtype, device: str, seed: int = 0) -> tuple[Tensor, tuple[int, ...], list[Tensor]]:
    """input, normalized_shape, and [weight] or []; all require gradients. Values survive a round trip through half."""
    generator = torch.Generator().manual_seed(seed)
    base = case.make(generator) * case.scale
    # empty_strided keeps what makes the case: gaps between rows, expanded dimensions, an unaligned start
    input = _like(base, dtype, device)
    normalized_shape = tuple(base.shape[base.dim() - case.normalized_dims :])
    weights: list[Tensor] = []
    if case.weight is not None:
        weight_dtype = {"float32": torch.float32, "float64": torch.float64}.get(case.weight, dtype)
        weight = (1 + torch.randn(normalized_shape, generator=generator) / 4).to(device, weight_dtype)
        if case.weight == "strided":
            weight = torch.stack([weight, weight], dim=-1)[..., 0]
        weights = [weight.detach().requires_grad_()]
    return input.requires_grad_(), normalized_shape, weights


def _like(base: Tensor, dtype: torch.dtype, device: str) -> Tensor:
    """`base` in another dtype and place, with its strides and its offset."""
    span = (
        base.storage_offset()
        + 1
        + sum((size - 1) * stride for size, stride in zip(base.shape, base.stride(), strict=True))
    )
    storage = torch.zeros(max(span, 0), dtype=dtype, device=device)
    result = storage.as_strided(base.shape, base.stride(), base.storage_offset())
    if base.numel() and 0 not in (stride for size, stride in zip(base.shape, base.stride(), strict=True) if size > 1):
        result.copy_(base)
    elif base.numel():
        result[:1].copy_(base[:1])
    return result.detach()


def runs() -> list[tuple[str, str]]:
    """(backend, device) for every implementation that can run here."""
    found = []
    for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
        probe = torch.empty(1, device=device)
        found += [(backend, device) for backend in RMS_NORM.backends(probe)]
    return found


BUILT = _library.cpu is not None
