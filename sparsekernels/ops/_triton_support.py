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
    if call.device.type == "cuda" or (call.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"):
        return None
    return f"it runs on cuda, or on cpu in Triton's interpreter (TRITON_INTERPRET=1); the input is on {call.device}"


def supports_product(call: Call) -> str | None:
    """None, or the reason why no kernel on tensor cores can run a call: those for bfloat16 came with 8.0."""
    reason = supports_call(call)
    if reason is None and call.capability is not None and call.capability < (8, 0):
        major, minor = call.capability
        return f"it needs a GPU of compute capability 8.0 or later, this one has {major}.{minor}"
    return reason
