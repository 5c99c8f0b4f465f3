# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The choice of an implementation of rms_norm."""

from __future__ import annotations

import contextlib

import pytest
import torch

import sparsekernels as sk
from sparsekernels.dispatch import select
from sparsekernels.ops.rms_norm.implementations import RMS_NORM

X = torch.randn(3, 8)


def test_unknown_backend() -> None:
    with (
        pytest.raises(ValueError, match="expected name to be 'cuda', 'cpu', 'triton', 'reference', got 'metal'"),
        sk.use_backend("metal"),
    ):
        pass


def test_a_backend_that_cannot_run_the_call_says_why() -> None:
    with (
        sk.use_backend("cuda"),
        pytest.raises(
            sk.BackendError, match=r"use_backend\('cuda'\): expected .*, got .* cannot: .*the input is on cpu"
        ),
    ):
        sk.rms_norm(X, (8,))


def test_use_backend_nests_and_ends_with_an_exception() -> None:
    from sparsekernels import dispatch

    with sk.use_backend("cpu"):
        with contextlib.suppress(KeyError), sk.use_backend("reference"):
            assert dispatch.forced == "reference"
            raise KeyError
        assert dispatch.forced == "cpu"
    assert dispatch.forced is None


def test_no_implementation_gives_every_reason() -> None:
    with pytest.raises(sk.BackendError, match="expected a call .*, got one that none can: cuda: .*cpu: "):
        select(RMS_NORM.implementations[:2], RMS_NORM.call_of(torch.empty(1, device="meta")))
    with pytest.raises(sk.BackendError, match="expected a backend of this operation, 'cuda', got 'cpu'"):
        select(RMS_NORM.implementations[:1], RMS_NORM.call_of(X), backend="cpu")
