# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""SuiteSparse:GraphBLAS: the product of two full matrices under a structural mask."""

from __future__ import annotations

import importlib.metadata

import numpy as np
from protocol import Engine, Job, serve


def prepare(job: Job) -> Engine:
    """The product; b by columns, as dot products read it."""
    import graphblas as gb

    gb.ss.config["nthreads"] = job["threads"]
    a, b = (gb.Matrix.from_dense(np.load(job[name])) for name in ("a", "b"))
    b.ss.config["format"] = "by_col"
    kept = np.load(job["mask"])
    mask = gb.Matrix.from_coo(*kept.nonzero(), True, nrows=kept.shape[0], ncols=kept.shape[1])
    plus_times = gb.semiring.plus_times

    def call() -> gb.Matrix:
        return a.mxm(b, plus_times).new(mask=mask.S)

    return Engine(
        call=call,
        results=lambda: {"output": call().to_dense(fill_value=0, dtype="FP32")},
        versions={name: importlib.metadata.version(name) for name in ("python-graphblas", "suitesparse-graphblas")},
    )


if __name__ == "__main__":
    serve(prepare)
