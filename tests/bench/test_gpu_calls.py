# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What engines on a GPU share, in this process and on the CPU: passes, the fastest of several ways, CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_cuda
import gpu_calls
import numpy as np
import pytest
import torch
from gpu_calls import Operation, engine_of
from protocol import Unavailable
from torch import Tensor

Function = Callable[[Tensor, Tensor], Tensor]


@pytest.fixture
def job(tmp_path: Path) -> dict[str, Any]:
    """A product of an input of two rows with a weight of three outputs."""
    arrays = {"x": np.arange(8.0).reshape(2, 4), "weight": np.ones((3, 4)), "grad_output": np.ones((2, 3))}
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array.astype(np.float32))
    files = {name: str(tmp_path / f"{name}.npy") for name in arrays}
    return {"pass": "all", "dtype": "float32", "device": "cpu", "graph": False, **files}


def linear(x: Tensor, weight: Tensor) -> Tensor:
    return torch.nn.functional.linear(x, weight)


def refusing(x: Tensor, weight: Tensor) -> Tensor:
    raise RuntimeError("not this one\nat all")


def ways(**functions: Function) -> gpu_calls.Make:
    return lambda weight: {name: Operation(function, weight.clone()) for name, function in functions.items()}


@pytest.mark.parametrize(("pass_", "timed"), [("forward", 1), ("backward", 2), ("forward+backward", 3), ("all", 3)])
def test_what_a_pass_computes_and_what_is_judged(job: dict[str, Any], pass_: str, timed: int) -> None:
    engine = engine_of({**job, "pass": pass_}, ways(linear=linear), "numpy")
    with engine.context():
        assert len(engine.call()) == timed  # type: ignore[arg-type]
        results = engine.results()
    x = np.load(job["x"])
    expected = {
        "output": x.sum(1, keepdims=True).repeat(3, 1),
        "input gradient": np.full((2, 4), 3.0),
        "weight gradient": x.sum(0, keepdims=True).repeat(3, 0),
    }
    assert list(results) == (["output"] if pass_ == "forward" else list(expected))
    for name, found in results.items():
        np.testing.assert_array_equal(found, expected[name])
    assert engine.versions == {"numpy": np.__version__, "torch": torch.__version__}
    assert engine.seconds is None


def test_the_fastest_way_is_taken_and_named(job: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 5.0, 5.0, 8.0])
    monkeypatch.setattr(gpu_calls.time, "perf_counter", lambda: next(clock))
    engine = engine_of(job, ways(slow=linear, broken=refusing, fast=linear), "numpy")
    assert engine.details == {"way": "fast"}


def test_where_no_way_works_all_reasons_are_told(job: dict[str, Any]) -> None:
    with pytest.raises(Unavailable, match=r"^a: not this one; b: not this one$"):
        engine_of(job, ways(a=refusing, b=refusing), "numpy")


def test_a_single_way_that_fails_is_an_error(job: dict[str, Any]) -> None:
    engine = engine_of(job, ways(only=refusing), "numpy")
    with pytest.raises(RuntimeError, match="not this one"):
        engine.call()


def test_a_gradient_is_judged_in_the_form_of_the_weight(job: dict[str, Any]) -> None:
    def make(weight: Tensor) -> dict[str, Operation]:
        return {"": Operation(lambda x, own: x @ own, weight.t().contiguous(), torch.t)}

    found = engine_of(job, make, "numpy").results()["weight gradient"]
    np.testing.assert_array_equal(found, np.load(job["x"]).sum(0, keepdims=True).repeat(3, 0))


def test_a_graph_holds_many_calls(job: dict[str, Any], graphs: type[fake_cuda.Graph]) -> None:
    calls = []

    def counted(x: Tensor, weight: Tensor) -> Tensor:
        calls.append(1)
        return linear(x, weight)

    before = graphs.captured
    engine = engine_of({**job, "graph": True}, ways(only=counted), "numpy")
    assert graphs.captured == before + 1
    assert len(calls) == gpu_calls.GRAPH_CALLS + 3  # three warm it up
    engine.call()
    assert len(calls) == gpu_calls.GRAPH_CALLS + 3


def test_what_no_graph_can_have_is_unavailable(job: dict[str, Any], graphs: type[fake_cuda.Graph]) -> None:
    calls = []

    def waiting(x: Tensor, weight: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) > 3:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        return linear(x, weight)

    with pytest.raises(Unavailable, match=r"^a CUDA graph cannot have it: operation not permitted .* capturing$"):
        engine_of({**job, "graph": True}, ways(only=waiting), "numpy")
