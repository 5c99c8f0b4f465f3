# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Whether Triton can run a call; asks without importing it."""

from __future__ import annotations

import importlib.util
import os

from ..dispatch import Call

INSTALLED = importlib.util.find_spec("triton") is not None


def supports_call(call: Call) -> str | None:
    """None, or the reason why no Triton kernel can run a call on this device."""
    if not INSTALLED:
        return "the package triton is not installed"
    if call.device.type == "cuda":
        return call.unsupported_gpu
    if call.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1":
        return None
    return f"it runs on cuda, or on cpu in Triton's interpreter (TRITON_INTERPRET=1); the input is on {call.device}"
