# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What launchers of Triton kernels share."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import torch
from torch import Tensor


def device_of(tensor: Tensor) -> contextlib.AbstractContextManager[None]:
    """Makes the tensor's GPU the current one, which Triton launches on."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Of the GPU; of the interpreter as many as a small one has, on which programs still take several tiles each."""
    if device.type != "cuda":
        return 8
    return torch.cuda.get_device_properties(device).multi_processor_count


def float32_precision(convolution: bool) -> str:
    """How tensor cores multiply float32: "tf32" where torch allows it in products of matrices, or in convolutions."""
    cudnn: Any = torch.backends.cudnn
    backend: Any = cudnn.conv if convolution else torch.backends.cuda.matmul
    return "tf32" if backend.fp32_precision == "tf32" else "ieee"
