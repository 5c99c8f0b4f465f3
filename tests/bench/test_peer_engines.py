# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The engines that run on torch, in this process, and how their results are judged."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import exporter
import files
import numpy as np
import protocol
import pytest
import sparsekernels_
import torch
import torch_dense
import torch_sparse
from environments import Variant
from fake_engine import linux
from files import Files, Made, job_of, largest_error
from peer_cases import pruned_case
from torch import Tensor

from sparsekernels.bench.suite import Case, Verdict

pytestmark = linux


class TestErrors:
    @pytest.mark.parametrize(
        ("results", "error"),
        [
            ({"output": [1.0, 2.0, 4.0], "weight gradient": [9.0, 2.0]}, 0.0),
            ({"output": [1.0, 3.0, 4.0], "weight gradient": [0.0, 2.0]}, 0.25),
            ({"output": [1.0, 2.0, 4.0], "weight gradient": [0.0, 1.0]}, 0.5),
            ({"output": [1.0, 2.0, math.nan], "weight gradient": [0.0, 2.0]}, math.inf),
            ({"output": [1.0, 2.0], "weight gradient": [0.0, 2.0]}, math.inf),
            ({"output": [1.0, 2.0, 4.0]}, math.inf),
        ],
    )
    def test_largest_error(self, results: dict[str, list[float]], error: float) -> None:
        reference = {"output": np.array([1.0, 2.0, 4.0]), "weight gradient": np.array([1.0, 2.0])}
        arrays = {name: np.array(values, dtype=np.float32) for name, values in results.items()}
        assert largest_error(arrays, reference, np.array([False, True])) == error


@pytest.mark.filterwarnings("ignore:Sparse .* (support is in beta|checks are implicitly):UserWarning")
class TestEngines:
    """Those that run on torch, in this process."""

    @pytest.fixture(autouse=True)
    def threads(self) -> Iterator[int]:
        before = torch.get_num_threads()
        yield before
        torch.set_num_threads(before)

    def verdict(self, case: Case, folder: Path, engine: Any, one: Variant) -> tuple[Verdict, Files]:
        """On the engine's results, by those of the exporter, which runs in this process as well."""
        job = job_of(case, 1)
        files = Files(job, lambda onnx: pytest.fail("launched"), [], onnx=False)
        made = exporter.prepare({**job, "folder": str(files.folder), "blocks": 16, "onnx": False})
        files.made = Made(**made.details)
        prepared = engine.prepare(files.job_for(one, onnx=False))
        with prepared.context():
            prepared.call()
            np.savez(folder / "results.npz", **prepared.results())
        return files.judge(one, folder / "results.npz"), files

    @pytest.mark.parametrize("pass_", ["forward", "forward+backward"])
    @pytest.mark.parametrize(
        ("engine", "one"),
        [
            (torch_dense, Variant("torch", ("linear",))),
            (torch_dense, Variant("torch-bf16", ("linear",), "bfloat16")),
            (torch_sparse, Variant("torch-csr", ("linear",), options={"layout": "csr"})),
            (torch_sparse, Variant("torch-bsr", ("linear",), blocks=16, options={"layout": "bsr"})),
            (sparsekernels_, Variant("ours", ("linear",))),
        ],
        ids=lambda value: value.name if isinstance(value, Variant) else "",
    )
    def test_linear(self, tmp_path: Path, engine: Any, one: Variant, pass_: str) -> None:
        case = pruned_case("linear/64x96", 32, 75.0, pass_)
        if one.blocks is not None and pass_ != "forward":
            pytest.skip("torch has no such derivative")
        verdict, _ = self.verdict(case, tmp_path, engine, one)
        assert verdict.max_error <= files.TOLERANCE[one.dtype]

    def test_what_torch_has_not(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def missing(input: Tensor, weight: Tensor) -> Tensor:
            raise NotImplementedError("no kernel\nand more")

        monkeypatch.setattr(torch_sparse, "WAYS", {"some": missing, "other": missing})
        one = Variant("torch-bsr", ("linear",), blocks=16, options={"layout": "bsr"})
        with pytest.raises(protocol.Unavailable, match=r"no forward of a linear layer in bsr: no kernel$"):
            self.verdict(pruned_case("linear/32x32", 8, 50.0), tmp_path, torch_sparse, one)

    def test_zeros(self, tmp_path: Path) -> None:
        job = job_of(pruned_case("linear/64x96", 2, 75.0), 1)
        exporter.prepare({**job, "folder": str(tmp_path), "blocks": 16, "onnx": False})
        weight, blocks = np.load(tmp_path / "weight.npy"), np.load(tmp_path / "weight-blocks.npy")
        assert np.count_nonzero(weight) == np.count_nonzero(blocks) == 64 * 96 / 4
        assert {
            np.count_nonzero(blocks[r : r + 16, c : c + 16]) for r in range(0, 64, 16) for c in range(0, 96, 16)
        } == {
            0,
            256,
        }

    @pytest.mark.parametrize(
        ("engine", "one"),
        [
            (torch_dense, Variant("torch", ("network",))),
            (torch_dense, Variant("torch-bf16", ("network",), "bfloat16")),
            (sparsekernels_, Variant("ours", ("network",))),
        ],
        ids=lambda value: value.name if isinstance(value, Variant) else "",
    )
    def test_network(self, tmp_path: Path, engine: Any, one: Variant) -> None:
        verdict, made = self.verdict(pruned_case("network/lenet-300-100", 3, 90.0), tmp_path, engine, one)
        assert verdict.passed
        accepted = 1e-3 if one.dtype == "float32" else max(5e-2, 2 * made.made.bfloat16_error)
        assert verdict.max_error <= accepted

    def test_logits_of_a_pruned_network_depend_on_the_image(self, tmp_path: Path) -> None:
        """Else a wrong result could not be told from a right one."""
        job = job_of(pruned_case("network/alexnet-s", 4, 95.0), 1)
        exporter.prepare({**job, "folder": str(tmp_path), "blocks": None, "onnx": False})
        with np.load(tmp_path / "reference.npz") as reference:
            logits = reference["output"]
        assert (logits - logits.mean(0)).std() > 0.1 * logits.std()
