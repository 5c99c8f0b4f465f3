# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The devices that matrices of tests run on: the CPU, and CUDA where torch has it."""

from __future__ import annotations

import pytest
import torch

from sparsekernels.ops._operation import Operation

DEVICES = ("cpu", *(["cuda"] if torch.cuda.is_available() else []))

by_device = pytest.mark.parametrize("device", DEVICES)


def runs(operation: Operation, dtype: torch.dtype = torch.float32) -> list[tuple[str, str]]:
    """(backend, device) for every implementation that can run a call of `dtype` here."""
    return [
        (backend, device)
        for device in DEVICES
        for backend in operation.backends(torch.empty(1, device=device, dtype=dtype))
    ]
