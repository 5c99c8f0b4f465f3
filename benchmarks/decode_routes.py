# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""On how many rows a GPU is to decode single elements, from records of the suite `few-rows` on it.

    python benchmarks/decode_routes.py gpu-report --file gpu-report/triton_table.json

The suite measures each way to multiply them: decoded by the Triton kernel and by the CUDA kernel, and expanded. Where
decoding is not slower up to other rows than sparsekernels/ops/sparse_conv2d/expanded_routes.py has in `MOST_DECODED`,
these go to the table of launch configurations, as "sparse_conv2d.decoded". Up to which density the CUDA kernel is the
faster of the two that decode is printed by rows; `MOST_BY_NONZEROS` has that in the source, where it is to be changed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import tune_triton

from sparsekernels.bench.record import parts
from sparsekernels.ops import _triton_table as table
from sparsekernels.ops.sparse_conv2d import expanded_routes

KERNEL = "sparse_conv2d.decoded"
ROUTES = ("triton", "cuda", "expanded")


class Place(NamedTuple):
    """What a route was measured on: the rows of the input, the density of the weight, the dtype."""

    rows: int
    density: float
    dtype: str


Times = Mapping[Place, Sequence[Mapping[str, float]]]
"""By place, for each weight the milliseconds of the routes that ran."""


def times_of(records: Iterable[Mapping[str, Any]]) -> Times:
    """Those of CUDA graphs: what the host takes is the same for all."""
    found: dict[Place, dict[str, dict[str, float]]] = {}
    for one in records:
        kind, pattern, mode = parts(one["variant"])
        route = kind.removeprefix("sparse-")
        if route == kind or route not in ROUTES or mode != "graph" or one["status"] != "ok":
            continue
        group, _, weight = str(one["case"]).partition("/")
        density = round(1 - float(pattern.rpartition("-")[2]) / 100, 4)
        place = Place(int(group.partition("-")[0]), density, one["dtype"])
        found.setdefault(place, {}).setdefault(weight, {})[route] = one["p50_ms"]
    return {place: list(weights.values()) for place, weights in found.items()}


def is_faster(place: Sequence[Mapping[str, float]], route: str, other: str) -> bool | None:
    """Whether a route takes no longer than another on all weights; None where none has both."""
    both = [one for one in place if route in one and other in one]
    return all(one[route] <= one[other] for one in both) if both else None


def decodes(place: Sequence[Mapping[str, float]]) -> bool | None:
    """Whether one of the kernels that decode takes no longer than the expanded weight; None where it is unknown."""
    best = [{**one, "decoded": min(one.get(of, float("inf")) for of in ("triton", "cuda"))} for one in place]
    return is_faster([one for one in best if one["decoded"] < float("inf")], "decoded", "expanded")


def most_decoded(times: Times) -> dict[tuple[float, str], int]:
    """By density and dtype, the most of the measured rows up to which all are to be decoded; 0 where none are."""
    found: dict[tuple[float, str], int] = {}
    for density, dtype in sorted({(place.density, place.dtype) for place in times}):
        own = sorted(place for place in times if (place.density, place.dtype) == (density, dtype))
        answers = [(place.rows, answer) for place in own if (answer := decodes(times[place])) is not None]
        if density not in expanded_routes.DENSITIES or not answers:
            continue
        most = 0
        for rows, answer in answers:
            if not answer:
                break
            most = rows
        found[density, dtype] = most
    return found


def entries(most: Mapping[tuple[float, str], int], major: int) -> tune_triton.Found:
    """What the table is to have: where the measured rows are others than those of the model."""
    known = max((one for one in expanded_routes.DEVICES if one <= major), default=min(expanded_routes.DEVICES))
    found: tune_triton.Found = {}
    for (density, dtype), rows in most.items():
        of_dtype: torch.dtype = getattr(torch, dtype)
        model = expanded_routes.MOST_DECODED[known, of_dtype.itemsize][expanded_routes.DENSITIES.index(density)]
        if rows != model:
            found[KERNEL, table.key_of((density, of_dtype))] = {"rows": rows}
    return found


def limits(times: Times) -> list[str]:
    """By rows, up to which density the CUDA kernel decodes no slower than the Triton one."""
    lines = []
    for rows, dtype in sorted({(place.rows, place.dtype) for place in times}):
        own = sorted(place for place in times if (place.rows, place.dtype) == (rows, dtype))
        faster, slower, known = 0.0, None, False
        for place in own:
            answer = is_faster(times[place], "cuda", "triton")
            known |= answer is not None
            if answer is False:
                slower = place.density
                break
            faster = place.density if answer else faster
        if not known:
            continue
        beyond = f"and not at {slower:g}" if slower is not None else "the most that was measured"
        now = next((limit for most, limit in expanded_routes.MOST_BY_NONZEROS.items() if rows <= most), None)
        lines.append(f"{rows} rows, {dtype}: by CUDA up to a density of {faster:g}, {beyond}; the source has {now}")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="that has records of the suite: gpu-report")
    parser.add_argument("--file", type=Path, help="the table to write; without it nothing is written")
    parser.add_argument("--capability", help='of the GPU that was measured, "9.0"; without it that of the one here')
    given = parser.parse_args(arguments)
    files = [file for part in ("decode", "rows") for file in sorted(given.folder.glob(f"gpu-*-{part}.jsonl"))]
    records = [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    times = times_of(records)
    if not times:
        parser.error(f"expected a folder with records of the suite few-rows on a GPU, got {given.folder}")
    machines = {str(one["machine"]["gpu"]) for one in records}
    if len(machines) > 1:
        parser.error(f"expected records of one GPU, got those of {', '.join(sorted(machines))}")
    if given.capability is None and not torch.cuda.is_available():
        parser.error("expected --capability where there is no GPU")
    capability = torch.cuda.get_device_capability() if given.capability is None else given.capability.split(".")
    major, minor = map(int, capability)
    most = most_decoded(times)
    for (density, dtype), rows in most.items():
        print(f"density {density:g}, {dtype}: decoded up to {rows} rows")
    print("\n".join(limits(times)))
    found = entries(most, major)
    if given.file is not None and found:
        if not given.file.exists():
            given.file.write_text(table.FILE.read_text(encoding="utf-8"), encoding="utf-8")
        measured = f"{machines.pop()}, triton {records[0]['versions'].get('triton')}, {records[0]['commit']}"
        text = tune_triton.merged(given.file.read_text(encoding="utf-8"), (major, minor), measured, found)
        given.file.write_text(text, encoding="utf-8")
    print(f"{len(found)} entries" if found else "no rows are others than those of the model")
    return 0


if __name__ == "__main__":
    sys.exit(main())
