# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""DeepSparse, through its public interface. Its license allows to run it for evaluation, and no look inside."""

from __future__ import annotations

import importlib.metadata

import numpy as np
from protocol import Engine, Job, serve


def prepare(job: Job) -> Engine:
    """An engine of the network, for its batch."""
    import deepsparse

    engine = deepsparse.Engine(job["onnx"], batch_size=job["batch"], num_cores=job["threads"])
    inputs = [np.load(job["input"])]
    return Engine(
        call=lambda: engine.run(inputs),
        results=lambda: {"output": engine.run(inputs)[0]},
        versions={"deepsparse": importlib.metadata.version("deepsparse")},
    )


if __name__ == "__main__":
    serve(prepare)
