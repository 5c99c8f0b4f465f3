# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The suite `rmsnorm`."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

import sparsekernels
from sparsekernels.bench import rmsnorm, worker
from sparsekernels.bench.record import Record
from sparsekernels.bench.suite import Case, Selection
from sparsekernels.timing import CpuClock, Effort

BRIEF = Effort(seconds=0, sample=1e-5, least=3, most=3)


def rmsnorm_case(pass_: str, dtype: str, shape: tuple[int, ...]) -> Case:
    parameters = {"shape": shape, **({"layout": "heads"} if len(shape) == 4 else {})}
    return Case("rmsnorm", "test/" + "x".join(map(str, shape)), pass_, dtype, "cpu", shape[0], True, parameters)


def measure_rmsnorm(case: Case) -> dict[str, Record]:
    variants = rmsnorm.variants(case, Selection(quick=True))
    session = worker.Session(CpuClock(), BRIEF, lambda event: None)
    found = worker.measure(rmsnorm.SUITE, case, variants, session)
    return {one.variant: one for one in found}


class TestRmsNorm:
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    @pytest.mark.parametrize("pass_", rmsnorm.TENSORS_MOVED)
    @pytest.mark.parametrize("shape", [(3, 64), (2, 8, 5, 64)], ids=str)
    def test_every_variant_is_right(self, pass_: str, dtype: str, shape: tuple[int, ...]) -> None:
        records = measure_rmsnorm(rmsnorm_case(pass_, dtype, shape))
        assert {"ours", "torch", "layer_norm", "copy"} <= set(records)
        assert {one.status for one in records.values()} == {"ok"}
        assert records["ours"].max_error is not None
        assert records["copy"].max_error is records["layer_norm"].max_error is None
        assert records["torch"].speedup == records["copy"].ideal_fraction == 1.0

    @pytest.mark.parametrize("pass_", ["forward", "forward+backward"])
    def test_a_small_mistake_is_found(self, monkeypatch: pytest.MonkeyPatch, pass_: str) -> None:
        right = sparsekernels.rms_norm

        def wrong(x: torch.Tensor, shape: Any, weight: torch.Tensor, eps: float) -> torch.Tensor:
            return right(x, shape, weight, eps + 1e-3)

        monkeypatch.setattr(sparsekernels, "rms_norm", wrong)
        records = measure_rmsnorm(rmsnorm_case(pass_, "float32", (8, 64)))
        assert (records["ours"].status, records["ours"].p50_ms) == ("wrong", None)
        assert records["torch"].status == "ok"

    def test_a_wrong_gradient_is_found(self, monkeypatch: pytest.MonkeyPatch) -> None:
        right = sparsekernels.rms_norm
        monkeypatch.setattr(
            sparsekernels, "rms_norm", lambda x, s, w, eps: right(x, s, w + (w.detach() - w) * 0.01, eps)
        )
        records = measure_rmsnorm(rmsnorm_case("forward+backward", "float32", (8, 64)))
        assert records["ours"].status == "wrong"

    def test_heads_are_a_strided_view(self) -> None:
        x = rmsnorm.make_input(rmsnorm_case("forward", "float32", (2, 8, 5, 64)), seed=0).x
        assert x.shape == (2, 8, 5, 64)
        assert x.stride() == (5 * 12 * 64, 64, 12 * 64, 1)

    def test_torch_compile_without_a_compiler_is_unavailable(self) -> None:
        from torch._inductor import config

        case = dataclasses.replace(rmsnorm_case("forward", "float32", (3, 64)), quick=False)
        compiled = [one for one in rmsnorm.variants(case, Selection()) if one.name == "torch.compile"]
        notes: list[dict[str, Any]] = []
        session = worker.Session(CpuClock(), BRIEF, notes.append)
        # not monkeypatch, which would not bring these settings back
        with config.patch({"force_disable_caches": True, "cpp.cxx": (None, "/nowhere/g++")}):
            (found,) = worker.measure(rmsnorm.SUITE, case, compiled, session)
        assert found.status == "unavailable"
        assert "torch.compile fails" in notes[0]["text"]

    def test_a_compiled_backward_can_run_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """torch.compile's may overwrite what its forward kept, and then refuses a second call, unless it is told."""
        from torch._functorch import config

        told = []

        def compiled(function: Any, **_: Any) -> Any:
            def call(*arguments: Any) -> Any:
                told.append(config.donated_buffer)
                return function(*arguments)

            return call

        before = config.donated_buffer
        monkeypatch.setattr(torch, "compile", compiled)
        case = rmsnorm_case("backward", "float32", (3, 64))
        case = dataclasses.replace(case, parameters={**case.parameters, "quick_compile": ["backward"]})
        assert measure_rmsnorm(case)["torch.compile"].status == "ok"
        assert told[0] is False
        assert config.donated_buffer is before

    def test_on_a_gpu_torch_compile_is_beside_ours_where_there_is_a_target(self) -> None:
        cases = rmsnorm.SUITE.cases(Selection(device="cuda", dtypes=("bfloat16",), quick=True))
        compiled = [(one.name, one.pass_) for one in cases if one.pass_ in one.parameters.get("quick_compile", ())]
        assert compiled[:6] == [
            *((f"large/{shape}", "forward") for shape in ("262144x256", "16384x4096", "1024x65536")),
            *((f"backward/{shape}", "backward") for shape in ("65536x1024", "32768x2048", "8192x4096")),
        ]
        assert ("one-row/1x4096", "forward") in compiled
