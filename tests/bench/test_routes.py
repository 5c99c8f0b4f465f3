# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Single elements by a given route: which kernel runs, that each is right, and that nothing stays changed."""

from __future__ import annotations

from typing import Any

import fake_cuda
import pytest
import torch
from fake_cuda import measure

from sparsekernels import dispatch
from sparsekernels.bench import few_rows, routes
from sparsekernels.bench.suite import Case, Selection, Unavailable
from sparsekernels.ops import _triton_table as table
from sparsekernels.ops.sparse_conv2d import expanded

KEYS = {"weight": [32, 64], "masks": ["random"], "sparsities": [90], "routes": list(routes.ROUTES)}
CASE = Case("few-rows", "1-row/32x64", "forward", "bfloat16", "cuda", 1, True, KEYS, True)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was called to multiply."""
    found: list[str] = []

    def spied(name: str, label: str) -> None:
        function = getattr(expanded, name)

        def spy(*arguments: Any, **named: Any) -> Any:
            found.append(label)
            return function(*arguments, **named)

        monkeypatch.setattr(expanded, name, spy)

    spied("_product", "decoded")
    spied("_expanded", "expanded")
    return found


@pytest.mark.parametrize(("route", "kernel"), [("triton", "decoded"), ("expanded", "expanded")])
def test_each_runs_its_kernel(graphs: type[fake_cuda.Graph], calls: list[str], route: str, kernel: str) -> None:
    records, notes = measure(CASE, few_rows.SUITE, Selection(device="cuda", variants=("dense", f"sparse-{route}")))
    names = [f"sparse-{route}:random-90", f"sparse-{route}:random-90/graph"]
    assert {name: records[name].status for name in names} == dict.fromkeys(names, "ok"), notes
    assert records[names[0]].max_error is not None
    assert set(calls) == {kernel}


def test_its_launch_configurations_can_be_tuned(graphs: type[fake_cuda.Graph]) -> None:
    """The Triton kernel asks the table for them, and nobody asks on how many rows it is to decode."""
    with table.listening() as asked:
        measure(CASE, few_rows.SUITE, Selection(device="cuda", variants=("sparse-triton",)))
    assert {one.kernel for one in asked} == {"sparse_conv2d.product"}


def test_without_a_library_the_compiled_kernel_is_unavailable(graphs: type[fake_cuda.Graph]) -> None:
    records, notes = measure(CASE, few_rows.SUITE, Selection(device="cuda", variants=("dense", "sparse-cuda")))
    assert records["sparse-cuda:random-90/graph"].status == "unavailable"
    assert any(note.endswith("unavailable, the library has no CUDA kernels here") for note in notes)


def test_the_compiled_kernel_takes_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "has_compiled_linear", lambda _: True)
    routes.check("cuda", torch.zeros(16, 8))
    with pytest.raises(Unavailable, match="the CUDA kernel takes up to 16 rows, and these are 17"):
        routes.check("cuda", torch.zeros(17, 8))


def test_a_route_that_is_none() -> None:
    with pytest.raises(ValueError, match="expected route to be 'triton', 'cuda', 'expanded', got 'dense'"):
        routes.check("dense", torch.zeros(1, 8))


@pytest.mark.parametrize(
    ("route", "decided", "forced"),
    [("triton", (True, False), "triton"), ("cuda", (True, True), None), ("expanded", (False, False), "triton")],
)
def test_what_is_decided_and_after(route: str, decided: tuple[bool, bool], forced: str | None) -> None:
    def decisions() -> tuple[bool, bool]:
        dense = (4096, 64, 64, 4096, torch.bfloat16)  # by itself on so many rows it is expanded
        return expanded.is_decoded(*dense), expanded.goes_by_nonzeros(*dense[:4])

    with routes.taking(route):
        assert decisions() == decided
        assert dispatch.forced == forced
    assert decisions() == (False, False)
    assert dispatch.forced is None
    with pytest.raises(RuntimeError, match="inside"), routes.taking(route):
        raise RuntimeError("inside")
    assert decisions() == (False, False)


def test_every_decision_of_the_kernel_has_the_arguments_that_a_route_takes() -> None:
    """What is put in the place of the two functions is called as they are, by name in that module."""
    for name in ("is_decoded", "goes_by_nonzeros"):
        assert callable(getattr(expanded, name))
        assert name in expanded._of_compressed.__code__.co_names
