# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Which implementation runs a call.

Every operation has a table: one `Implementation` per backend, in order of preference. Dispatch, tests and benchmarks
walk that same table. Automatic selection takes the first implementation that supports the call; a backend asked for by
name runs or raises with its reason, and never falls back silently.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from ._torch import are_functorch_transforms_active, forward_ad, is_any_autocast_enabled

BACKENDS = ("cuda", "cpu", "triton", "reference")
"""Every backend name that `use_backend` accepts."""

# The backend that `use_backend` asks for. A plain global, as torch.backends' flags are: a hot path reads it in some
# 20 ns and torch.compile guards on it, which it does for neither a ContextVar nor a threading.local (torch 2.13).
forced: str | None = None


class BackendError(RuntimeError):
    """A backend was asked for by name and cannot run the call; the message says why."""


@dataclass(frozen=True)
class Implementation:
    """One row of an operation's table.

    name      the backend, one of `BACKENDS`
    supports  takes the input of a call; None, or the reason why the call cannot run here
    kernels   gives the module with the functions that the operation calls; imports it when first called
    """

    name: str
    supports: Callable[[Tensor], str | None]
    kernels: Callable[[], ModuleType]


def select(table: tuple[Implementation, ...], input: Tensor, backend: str | None = None) -> Implementation:
    """The implementation that runs a call on `input`: `backend` by name, else the first that supports it.

    Raises `BackendError` with the reason, or all reasons, when none can.
    """
    reasons = []
    for implementation in table:
        if backend is not None and implementation.name != backend:
            continue
        reason = implementation.supports(input)
        if reason is None:
            return implementation
        reasons.append(f"{implementation.name}: {reason}")
    if not reasons:
        reasons.append(f"this operation has no such implementation, only {', '.join(row.name for row in table)}")
    subject = "no backend can" if backend is None else f"backend {backend!r} was asked for but cannot"
    raise BackendError(f"{subject} run this call: {'; '.join(reasons)}")


def kernels_of(
    table: tuple[Implementation, ...], input: Tensor, automatic: ModuleType, reference: ModuleType
) -> ModuleType:
    """Where a call's kernels are: in the backend that was asked for by name, else `automatic`.

    Forward-mode derivatives run on the reference, whose tangents are plain torch's.
    """
    if forward_ad._current_level >= 0 and forced in (None, "reference"):
        return reference
    if forward_ad._current_level >= 0:
        raise BackendError(f"backend {forced!r} was asked for but has no forward-mode derivatives")
    if forced is None:
        return automatic
    return select(table, input, backend=forced).kernels()


def is_special() -> bool:
    """Whether a call is more than an eager one: a named backend, compiled, transformed, autocast, forward mode."""
    return (
        forced is not None
        or torch.compiler.is_compiling()
        or is_any_autocast_enabled()
        or are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    )


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
