# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime, with the options that it has by itself but for the number of threads. Its threads spin while idle."""

from __future__ import annotations

import numpy as np
from protocol import Engine, Job, serve


def prepare(job: Job) -> Engine:
    """A session of the network."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = job["threads"], 1
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(job["onnx"], options, providers=["CPUExecutionProvider"])
    inputs = {session.get_inputs()[0].name: np.load(job["input"])}
    return Engine(
        call=lambda: session.run(None, inputs),
        results=lambda: {"output": session.run(None, inputs)[0]},
        versions={"onnxruntime": onnxruntime.__version__},
    )


if __name__ == "__main__":
    serve(prepare)
