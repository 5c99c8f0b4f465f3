# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""MLX's product under a mask in blocks, on the CPU."""

from __future__ import annotations

import importlib.metadata

import numpy as np
from protocol import Engine, Job, Unavailable, serve

BLOCKS = (32, 64)
"""The sizes that it has."""


def prepare(job: Job) -> Engine:
    """The product, its mask an argument of each call."""
    rows, columns = job["block"] or (0, 0)
    if rows != columns or rows not in BLOCKS:
        raise Unavailable("mlx has masked products for blocks of 32x32 and 64x64")
    import mlx.core as mx

    mx.set_default_device(mx.cpu)
    a, b, mask = (mx.array(np.load(job[name])) for name in ("a", "b", "blocks"))
    mx.eval(a, b, mask)

    def call() -> object:
        output = mx.block_masked_mm(a, b, rows, mask)
        mx.eval(output)
        return output

    return Engine(
        call=call,
        results=lambda: {"output": np.array(call())},
        versions={"mlx": importlib.metadata.version("mlx")},
    )


if __name__ == "__main__":
    serve(prepare)
