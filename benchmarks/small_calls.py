# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What a small call of a sparse layer takes: `python benchmarks/small_calls.py [THREADS]`, microseconds, beside dense.

To compare two trees, run it in turn with PYTHONPATH set to each.
"""

from __future__ import annotations

import statistics
import sys

import torch
from torch import nn

import sparsekernels as sk
from sparsekernels.timing import Effort, samples_of

EFFORT = Effort(seconds=1.0, sample=2e-3, least=9)


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else torch.get_num_threads())
    torch.manual_seed(0)
    cases = {
        "conv 1x1, 64 channels, 8x8, batch 1": (nn.Conv2d(64, 64, 1), torch.randn(1, 64, 8, 8)),
        "linear 256x256, 8 rows": (nn.Linear(256, 256), torch.randn(8, 256)),
    }
    with torch.inference_mode():
        for name, (dense, x) in cases.items():
            dense.weight.mul_(torch.rand_like(dense.weight) < 0.1)
            layer = sk.nn.SparseConv2d if isinstance(dense, nn.Conv2d) else sk.nn.SparseLinear
            sparse = layer.from_dense(dense)  # type: ignore[arg-type]
            calls = {"dense": lambda dense=dense, x=x: dense(x), "sparse": lambda sparse=sparse, x=x: sparse(x)}
            times = {kind: 1e6 * statistics.median(seconds) for kind, seconds in samples_of(calls, EFFORT).items()}
            print(f"{name}: " + ", ".join(f"{kind} {time:.1f} us" for kind, time in times.items()))


if __name__ == "__main__":
    main()
