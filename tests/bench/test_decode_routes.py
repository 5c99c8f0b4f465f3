# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""benchmarks/decode_routes.py: up to how many rows a weight is decoded, of records whose times say it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

import pytest
import torch
from test_bench_reports import MACHINE, make_record

from sparsekernels.bench import record
from sparsekernels.bench.modules import import_file
from sparsekernels.ops import _triton_table as table
from sparsekernels.ops.sparse_conv2d import expanded_routes

ROWS = (1, 16, 32, 64, 128, 256)
Milliseconds = Callable[[int], Mapping[str, float]]


@pytest.fixture
def routes() -> ModuleType:
    return import_file(Path(__file__).parents[2] / "benchmarks" / "decode_routes.py")


def write(folder: Path, of: Mapping[int, Milliseconds], weight: str = "4096x4096", name: str = "decode") -> None:
    """Records by the percent of zeros and the rows: the milliseconds of each route."""
    own = {"suite": "few-rows", "device": "cuda", "dtype": "bfloat16", "machine": {**MACHINE, "gpu": "NVIDIA H200"}}
    found = [make_record("dense", case=f"1-row/{weight}", **own)]
    for percent, times in of.items():
        for rows in ROWS:
            case = f"{'1-row' if rows == 1 else f'{rows}-rows'}/{weight}"
            for route, ms in times(rows).items():
                for mode, factor in (("", 100.0), ("/graph", 1.0)):  # eager times, which say nothing here, differ
                    variant = f"sparse-{route}:random-{percent}{mode}"
                    found.append(make_record(variant, (ms * factor,) * 3, case=case, sparsity=percent / 100, **own))
    record.write(folder / f"gpu-h200-{name}.jsonl", found)


def times_in(routes: ModuleType, folder: Path) -> object:
    lines = [line for file in folder.glob("*.jsonl") for line in file.read_text().splitlines()]
    return routes.times_of(map(json.loads, lines))


def up_to(most: int) -> Milliseconds:
    return lambda rows: {"triton": 1.0 if rows <= most else 3.0, "expanded": 2.0}


def test_the_most_rows(routes: ModuleType, tmp_path: Path) -> None:
    of = {90: up_to(64), 80: up_to(256), 50: up_to(0), 75: up_to(64)}  # the table of densities has no 0.25
    write(tmp_path, of)
    found = routes.most_decoded(times_in(routes, tmp_path))
    assert found == {(0.1, "bfloat16"): 64, (0.2, "bfloat16"): 256, (0.5, "bfloat16"): 0}


def test_all_weights_and_all_rows_below_have_to_agree(routes: ModuleType, tmp_path: Path) -> None:
    write(tmp_path, {90: up_to(64)})
    write(tmp_path, {90: up_to(16)}, "8192x8192", "rows")
    assert routes.most_decoded(times_in(routes, tmp_path)) == {(0.1, "bfloat16"): 16}
    write(tmp_path, {90: lambda rows: {"triton": 9.0 if rows == 32 else 1.0, "expanded": 2.0}}, "8192x8192", "rows")
    assert routes.most_decoded(times_in(routes, tmp_path)) == {(0.1, "bfloat16"): 16}


def test_either_kernel_may_decode(routes: ModuleType, tmp_path: Path) -> None:
    write(tmp_path, {90: lambda rows: {"triton": 3.0, "cuda": 1.0, "expanded": 2.0}})
    assert routes.most_decoded(times_in(routes, tmp_path)) == {(0.1, "bfloat16"): 256}


def test_what_is_unknown_is_left(routes: ModuleType, tmp_path: Path) -> None:
    write(tmp_path, {90: lambda rows: {"triton": 1.0}, 80: lambda rows: {"expanded": 1.0}})
    assert routes.most_decoded(times_in(routes, tmp_path)) == {}


def test_which_of_the_kernels(routes: ModuleType, tmp_path: Path) -> None:
    faster = {"triton": 2.0, "cuda": 1.0}
    slower = {"triton": 1.0, "cuda": 2.0}
    write(tmp_path, {95: lambda _: faster, 90: lambda rows: faster if rows == 1 else slower, 50: lambda _: slower})
    lines = routes.limits(times_in(routes, tmp_path))
    now = expanded_routes.MOST_BY_NONZEROS
    assert lines[0] == f"1 rows, bfloat16: by CUDA up to a density of 0.1, and not at 0.5; the source has {now[1]}"
    assert lines[1] == f"16 rows, bfloat16: by CUDA up to a density of 0.05, and not at 0.1; the source has {now[16]}"
    assert lines[2].endswith("; the source has None")


def test_only_what_differs_from_the_model_is_an_entry(routes: ModuleType) -> None:
    model = expanded_routes.MOST_DECODED[9, 2][expanded_routes.DENSITIES.index(0.1)]
    assert routes.entries({(0.1, "bfloat16"): model}, 9) == {}
    assert routes.entries({(0.1, "bfloat16"): 64}, 9) == {("sparse_conv2d.decoded", "0.1,bfloat16"): {"rows": 64}}


def test_the_table_is_what_a_call_reads(
    routes: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Written by the program, and read by the function that decides."""
    write(tmp_path, {90: up_to(64)})
    file = tmp_path / "table.json"
    assert routes.main([str(tmp_path), "--file", str(file), "--capability", "9.0"]) == 0
    assert "density 0.1, bfloat16: decoded up to 64 rows" in capsys.readouterr().out
    document = json.loads(file.read_text())
    assert document["9.0"]["measured"].startswith("NVIDIA H200, triton ")
    monkeypatch.setattr(table._tables, "measured", table.read(file.read_text(), "it"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    nnz = 4096 * 4096 // 10
    decided = [expanded_routes.is_decoded(rows, 4096, 4096, nnz, torch.bfloat16) for rows in (64, 65)]
    assert decided == [True, False]


def test_what_it_cannot_do(routes: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        routes.main([str(tmp_path)])
    assert f"expected a folder with records of the suite few-rows on a GPU, got {tmp_path}" in capsys.readouterr().err


def test_the_file_is_left_where_the_model_is_right(routes: ModuleType, tmp_path: Path) -> None:
    model = expanded_routes.MOST_DECODED[9, 2][expanded_routes.DENSITIES.index(0.1)]
    write(tmp_path, {90: up_to(model)})
    assert model in ROWS
    assert routes.main([str(tmp_path), "--file", str(tmp_path / "table.json"), "--capability", "9.0"]) == 0
    assert not (tmp_path / "table.json").exists()
