# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Calls of a new pattern where the cache of kernels is full of small ones, milliseconds, on one thread:
`SPARSEKERNELS_CPU_JIT=256 python benchmarks/kernel_cache.py [PATTERNS [CHANNELS [DENSITY]]]`.

Default 63000 patterns of 32 nonzeros, then new ones of 256 channels at 0.1; SPARSEKERNELS_CPU_JIT is the size in MB.
"""

from __future__ import annotations

import sys
import time

import torch

import sparsekernels as sk


def milliseconds(x: torch.Tensor, weight: sk.Unstructured) -> float:
    start = time.perf_counter()
    sk.sparse_conv2d(x, weight, padding=1)
    return (time.perf_counter() - start) * 1e3


def main() -> None:
    patterns, channels, density = [*sys.argv[1:], *("63000", "256", "0.1")[len(sys.argv) - 1 :]]
    size = int(channels)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x = torch.randn(1, 32, 4, 4)
    for _ in range(int(patterns)):
        weight = torch.zeros(32, 32 * 9)
        weight[torch.arange(32), torch.randint(0, 32 * 9, (32,))] = 1
        milliseconds(x, sk.Unstructured.from_dense(weight.view(32, 32, 3, 3)))
    for _ in range(3):
        dense = torch.randn(size, size, 3, 3) * (torch.rand(size, size, 3, 3) < float(density))
        new, images = sk.Unstructured.from_dense(dense), torch.randn(1, size, 14, 14)
        first, second = milliseconds(images, new), milliseconds(images, new)
        print(f"{new.nnz} nonzeros: first call {first:.1f} ms, second {second:.1f} ms")


if __name__ == "__main__":
    main()
