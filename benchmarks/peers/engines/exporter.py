# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Makes a case: the input, the weight, what dense torch in float32 computes of them, and the network as an ONNX file.

It is served like an engine, and its `ready` is all that is wanted of it. The job has a folder, "blocks" (a size of
blocks or None) and "onnx" (whether a file is wanted). Beside input.npy it writes, for a network, model.onnx and
reference.npz; for a linear layer grad_output.npy, weight.npy, reference.npz, and with blocks weight-blocks.npy and
reference-blocks.npz. Details: "bfloat16_error", how far from the reference torch is in bfloat16; "onnx_error", why
there is no ONNX file, or None.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from networks import differentiated, is_block, named, network
from protocol import Engine, Job, serve
from torch import Tensor, nn
from torch.nn import functional as F

from sparsekernels.bench.models import MODELS
from sparsekernels.bench.suite_keys import block_of
from sparsekernels.pruning import largest_blocks, prune_

OPSET = 13
"""Every engine reads it, and it has all that the networks need."""


def prepare(job: Job) -> Engine:
    """Write the files."""
    torch.set_num_threads(job["threads"])
    folder = Path(job["folder"])
    details = _network(job, folder) if job["kind"] == "network" else _linear(job, folder)
    return Engine(call=lambda: None, results=dict, details=details)


def _network(job: Job, folder: Path) -> dict[str, object]:
    model = network(job)
    images = MODELS[job["name"]].images(job["batch"], seed=3 * job["seed"] + 7)
    np.save(folder / "input.npy", images.numpy())
    with torch.inference_mode():
        reference: dict[str, Any] = named("forward", (model(images),))
        np.savez(folder / "reference.npz", **reference)
        onnx_error = _export(model, images, folder / "model.onnx") if job["onnx"] else None
        rounded = named("forward", (model.bfloat16()(images.bfloat16()),))
    return {"bfloat16_error": _error(rounded, reference), "onnx_error": onnx_error}


def _export(model: nn.Module, images: Tensor, path: Path) -> str | None:
    """With torch's older exporter: it needs the package onnx and nothing else, and folds BatchNorms."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            torch.onnx.export(
                model,
                (images,),
                str(path),
                dynamo=False,
                opset_version=OPSET,
                input_names=["input"],
                output_names=["output"],
            )
        except Exception as error:  # peers that read no ONNX are measured all the same
            return f"{type(error).__name__}: {error}"
    return None


def _linear(job: Job, folder: Path) -> dict[str, object]:
    generator = torch.Generator().manual_seed(job["seed"])
    rows, columns = job["shape"]

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    weight, input, grad_output = normal(rows, columns), normal(job["batch"], columns), normal(job["batch"], rows)
    np.save(folder / "input.npy", input.numpy())
    np.save(folder / "grad_output.npy", grad_output.numpy())
    references: dict[str, dict[str, Any]] = {}
    for suffix, blocks in (("", 1), ("-blocks", job["blocks"])):
        if blocks is not None:
            pruned = _pruned(weight, blocks, job)
            np.save(folder / f"weight{suffix}.npy", pruned.numpy())
            references[suffix] = _dense(job, input, pruned, grad_output)
            np.savez(folder / f"reference{suffix}.npz", **references[suffix])
    rounded = _dense(job, *(tensor.bfloat16() for tensor in (input, _pruned(weight, 1, job), grad_output)))
    return {"bfloat16_error": _error(rounded, references[""]), "onnx_error": None}


def _pruned(weight: Tensor, blocks: int, job: Job) -> Tensor:
    """`weight` with the share `sparsity` of its square blocks zero, chosen as `prune_` does by their means.

    Where the job itself has a block, those of that size.
    """
    if is_block(job):
        return weight * largest_blocks(weight, block_of(job["pruning"]), job["sparsity"])
    rows, columns = (length // blocks for length in weight.shape)
    tiles = weight.view(rows, blocks, columns, blocks)
    chooser = nn.Linear(columns, rows, bias=False)
    chooser.weight.data = tiles.abs().mean((1, 3))
    (kept,) = prune_(chooser, job["pruning"], job["sparsity"], job["seed"]).values()
    return (tiles * kept[:, None, :, None]).view(weight.shape)


def _dense(job: Job, input: Tensor, weight: Tensor, grad_output: Tensor) -> dict[str, np.ndarray]:
    results = differentiated(F.linear, input, weight, grad_output)()
    return named(job["pass"], results if job["pass"] != "forward" else results[:1])


def _error(results: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> float:
    return max(float(abs(results[name] - reference[name]).max() / abs(reference[name]).max()) for name in reference)


if __name__ == "__main__":
    serve(prepare)
