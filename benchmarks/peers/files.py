# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The files of a case: written by torch in a process of its own, read by all engines, and compared with their results.

A case is one pruned network, or one pruned linear layer and a pass.
"""

from __future__ import annotations

import functools
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from environments import Variant

from sparsekernels.bench.external.process import Child, ChildError, Launch
from sparsekernels.bench.suite import Case, Unavailable, Verdict

TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}
"""The largest error accepted, relative to the largest of the reference: dense torch in float32 on the same weights.

The error of bfloat16 depends on the network more than on the engine: up to twice what torch itself has in bfloat16 is
accepted as well, and random networks need that.
"""


def job_of(case: Case, threads: int) -> dict[str, Any]:
    """What every program is told of the case. A linear layer is named by the shape of its weight, outputs by inputs."""
    kind, _, name = case.name.partition("/")
    return {
        "kind": kind,
        "name": name.partition("@")[0],
        "shape": case.parameters.get("shape", ()),
        "batch": case.batch,
        "sparsity": round(case.parameters["sparsity"] / 100, 7),
        "pruning": case.parameters["mask"],
        "seed": case.parameters.get("seed", 0),
        "pass": case.pass_,
        "threads": threads,
    }


@dataclass(frozen=True)
class Made:
    """What torch's own bfloat16 error is, and why there is no ONNX file, if there is none."""

    bfloat16_error: float
    onnx_error: str | None


@dataclass
class Files:
    """The files of the case that `job` describes. They are made when they are first asked for.

    export      how the exporter is started, with the packages that an ONNX file needs or without; raises `Unavailable`
    onnx        whether any engine wants an ONNX file
    blocks      sizes of the square blocks of zeros that variants want
    """

    job: Mapping[str, Any]
    export: Callable[[bool], Launch]
    processors: Sequence[int]
    onnx: bool
    blocks: frozenset[int] = frozenset()
    _folder: tempfile.TemporaryDirectory[str] | None = field(default=None, init=False)
    _failure: ChildError | None = field(default=None, init=False)

    @property
    def folder(self) -> Path:
        """Where they are."""
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="peers-")
        return Path(self._folder.name)

    def close(self) -> None:
        """Remove them."""
        if self._folder is not None:
            self._folder.cleanup()

    @functools.cached_property
    def made(self) -> Made:
        """What is to be known of the files once they are there. Raises ChildError where they cannot be made."""
        if self._failure is None:
            try:
                return self._make()
            except ChildError as error:
                self._failure = ChildError(f"the case cannot be made: {error}")
        raise self._failure

    def _make(self) -> Made:
        """Run the exporter; without its own packages, where they cannot be had: there is no ONNX file then."""
        onnx, reason = self.onnx, None
        try:
            launch = self.export(onnx)
        except Unavailable as error:
            onnx, reason = False, str(error)
            launch = self.export(False)
        fitting = [size for size in self.blocks if all(length % size == 0 for length in self.job["shape"])]
        asked = {"folder": str(self.folder), "blocks": max(fitting, default=None), "onnx": onnx}
        with Child(launch, self.processors) as child:
            _, details = child.start({**self.job, **asked})
        return Made(details["bfloat16_error"], reason or details["onnx_error"])

    def job_for(self, variant: Variant, onnx: bool) -> dict[str, Any]:
        """What the variant's program is told, which may read ONNX. Raises `Unavailable` where it has no file."""
        made, linear = self.made, self.job["kind"] == "linear"
        if onnx and made.onnx_error is not None:
            raise Unavailable(f"there is no ONNX file: {made.onnx_error}")
        names = {"input": "input.npy"}
        if linear:
            names |= {"weight": _weight(variant), "grad_output": "grad_output.npy"}
        else:
            names["onnx"] = "model.onnx"
        if linear and not (self.folder / names["weight"]).exists():
            raise Unavailable(f"{self.job['name']} is not whole blocks of {variant.blocks}x{variant.blocks}")
        paths = {key: str(self.folder / name) for key, name in names.items()}
        blocks = {} if variant.blocks is None else {"blocks": variant.blocks}
        return {**self.job, **paths, "dtype": variant.dtype, **blocks, **variant.options}

    def judge(self, variant: Variant, path: Path) -> Verdict:
        """The verdict on the variant's results, which are in the file `path`."""
        error, accepted = self.error(variant, path), TOLERANCE[variant.dtype]
        if variant.dtype == "bfloat16":
            accepted = max(accepted, 2 * self.made.bfloat16_error)
        return Verdict(error, error <= accepted, f" of the largest value, expected {accepted:.3g}")

    def error(self, variant: Variant, path: Path) -> float:
        """The largest error of the results in the file `path`, infinite where they are not comparable."""
        kept = None
        if self.job["kind"] == "linear":
            kept = np.load(self.folder / _weight(variant)) != 0
        with np.load(path) as results, np.load(self.folder / f"reference{_suffix(variant)}.npz") as reference:
            return largest_error(results, reference, kept)


def _suffix(variant: Variant) -> str:
    return "" if variant.blocks is None else "-blocks"


def _weight(variant: Variant) -> str:
    return f"weight{_suffix(variant)}.npy"


def largest_error(
    results: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray], kept: np.ndarray | None = None
) -> float:
    """The largest difference over the largest of the reference, of the result where that is most.

    A weight gradient counts where `kept` is true. Infinite where a result is missing, of another shape or no number.
    """
    worst = 0.0
    for name, truth in reference.items():
        if name not in results or results[name].shape != truth.shape:
            return math.inf
        difference = np.abs(results[name].astype(np.float64) - truth)
        if name == "weight gradient" and kept is not None:
            difference = difference[kept]
        error = float(difference.max(initial=0.0) / np.abs(truth).max())
        worst = max(worst, error if math.isfinite(error) else math.inf)
    return worst
