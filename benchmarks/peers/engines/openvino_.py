# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""OpenVINO's CPU plugin, made for latency: one stream on all threads. Precision is said in any case, since it would
choose bfloat16 by itself where the processor has AMX."""

from __future__ import annotations

import numpy as np
from protocol import Engine, Job, serve

PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}


def prepare(job: Job) -> Engine:
    """A compiled model and one request of it. Input and output are not copied."""
    import openvino

    asked = {
        "INFERENCE_PRECISION_HINT": PRECISIONS[job["dtype"]],
        "INFERENCE_NUM_THREADS": job["threads"],
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }
    model = openvino.Core().compile_model(job["onnx"], "CPU", asked)
    input, request = [np.load(job["input"])], model.create_infer_request()
    return Engine(
        call=lambda: request.infer(input, share_inputs=True, share_outputs=True),
        results=lambda: {"output": request.infer(input, share_inputs=True)[model.output(0)]},
        versions={"openvino": openvino.__version__.partition("-")[0]},
        details={"precision": model.get_property("INFERENCE_PRECISION_HINT").get_type_name()},
    )


if __name__ == "__main__":
    serve(prepare)
