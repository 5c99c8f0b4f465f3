# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Which implementation runs a call.

Every operation has a table: one `Implementation` per backend, in order of preference. Dispatch, tests and benchmarks
walk that same table. Automatic selection takes the first implementation that supports the call; a backend asked for by
name runs or raises with its reason, and never falls back silently.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ._torch import (
    are_functorch_transforms_active,
    constant_when_compiled,
    forward_ad,
    is_any_autocast_enabled,
)

if TYPE_CHECKING:
    from .formats import SparseFormat

BACKENDS = ("cuda", "cpu", "triton", "reference")
"""Every backend name that `use_backend` accepts."""

# The backend that `use_backend` asks for. A plain global, as torch.backends' flags are: a hot path reads it in some
# 20 ns and torch.compile guards on it, which it does for neither a ContextVar nor a threading.local (torch 2.13).
forced: str | None = None


class BackendError(RuntimeError):
    """No implementation, or not the backend set by `use_backend`, can run the call; the message says why."""


OLDEST_GPU = (8, 0)
"""The least compute capability of a GPU that the CUDA kernels are compiled for, and that Triton supports."""


@constant_when_compiled
def capability_of(device: torch.device) -> tuple[int, int]:
    """Compute capability of a GPU, (9, 0) say."""
    return torch.cuda.get_device_capability(device)


class Call(NamedTuple):
    """What decides which implementations can run a call.

    device      of the input
    dtype       of the input
    format      name of the weight's format; None for operations on dense tensors
    block_size  of the weight's blocks; None where the format has none
    """

    device: torch.device
    dtype: torch.dtype
    format: str | None = None
    block_size: tuple[int, int] | None = None

    @classmethod
    def of(cls, input: Tensor, weight: SparseFormat | None = None) -> Call:
        """The call of an operation on `input`, and on a sparse weight where it has one."""
        if weight is None:
            return cls(input.device, input.dtype)
        return cls(input.device, input.dtype, weight.format, weight.block_size)

    @property
    def capability(self) -> tuple[int, int] | None:
        """Compute capability of the call's GPU, (9, 0) say; None on other devices."""
        return capability_of(self.device) if self.device.type == "cuda" else None

    @property
    def unsupported_gpu(self) -> str | None:
        """Why no kernel of ours runs on the call's GPU, compiled or in Triton; None where they do, and elsewhere."""
        if self.device.type == "cuda" and torch.version.hip is not None:  # whose devices are called cuda as well
            return "it is written for GPUs of NVIDIA, this is one of AMD"
        capability = self.capability
        if capability is None or capability >= OLDEST_GPU:
            return None
        oldest, ours = (".".join(map(str, one)) for one in (OLDEST_GPU, capability))
        return f"it needs a GPU of compute capability {oldest} or later, this one has {ours}"


@dataclass(frozen=True)
class Implementation:
    """One row of an operation's table.

    name      the backend, one of `BACKENDS`
    supports  takes a call; None, or the reason why it cannot run here
    kernels   gives what has the operation's functions, a module for example; imports it when first called
    """

    name: str
    supports: Callable[[Call], str | None]
    kernels: Callable[[], Any]


def select(table: Sequence[Implementation], call: Call, backend: str | None = None) -> Implementation:
    """The implementation that runs a call: `backend` by name, else the first that supports it.

    Raises `BackendError` with the reason, or all reasons, when none can.
    """
    reasons = []
    for implementation in table:
        if backend is not None and implementation.name != backend:
            continue
        reason = implementation.supports(call)
        if reason is None:
            return implementation
        reasons.append(f"{implementation.name}: {reason}" if backend is None else reason)
    why = "; ".join(reasons)
    if backend is None:
        raise BackendError(f"dispatch: expected a call that a backend can run, got one that none can: {why}")
    if reasons:
        raise BackendError(f"use_backend({backend!r}): expected a call that it can run, got one that it cannot: {why}")
    names = ", ".join(repr(row.name) for row in table)
    raise BackendError(f"use_backend({backend!r}): expected a backend of this operation, {names}, got {backend!r}")


def is_transformed() -> bool:
    """Whether a call is inside of a transform of torch.func, whose tensors show no `requires_grad`, or forward mode."""
    return forward_ad._current_level >= 0 or are_functorch_transforms_active()


def is_special() -> bool:
    """Whether a call is more than an eager one: a named backend, compiled, transformed, autocast, forward mode."""
    return forced is not None or torch.compiler.is_compiling() or is_any_autocast_enabled() or is_transformed()


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run every operation inside the `with` block on one backend. Without `with` it does nothing.

    A call that this backend cannot run raises `BackendError` with the reason; nothing falls back silently. The backward
    of a call runs on the backend of its forward. The setting is process-wide, like torch.backends' flags, and nests.

    Args:
        name: "cuda", "triton", "cpu" or "reference".

    Returns:
        A context manager.

    Raises:
        ValueError: For an unknown name.
    """
    global forced
    if name not in BACKENDS:
        raise ValueError(f"use_backend: expected name to be {', '.join(map(repr, BACKENDS))}, got {name!r}")
    previous, forced = forced, name
    try:
        yield
    finally:
        forced = previous
