# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Packed linear layers on a few rows beside dense ones, with weights that come from memory.

    python benchmarks/packed_linear.py [4096x4096 ...] [--rows 1,8,16] [--sparsities 50,70,80,90,95] [--json]

A shape is OUTxIN. Of each there are as many weights as fill 400 MB in bfloat16, used in turn, so that none is in a
cache. The dense layers in bfloat16 and float32 and the packed ones in both alternate; ratios are those of medians, of
the faster dense layer over the packed one in bfloat16. `bytes` is of the packed weight over the dense one in bfloat16.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import statistics
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparsekernels as sk
from sparsekernels.bench.machine import commit, machine, versions
from sparsekernels.pruning import prune_
from sparsekernels.timing import Effort, samples_of

MOST_BYTES = 400 << 20
EFFORT = Effort(seconds=0.5, sample=1e-6, least=21, most=101, slow=0.0)


def layer_of(out: int, columns: int, sparsity: float, seed: int) -> nn.Linear:
    """With zeros at random."""
    layer = nn.Linear(columns, out, bias=False).eval()
    prune_(layer, "random", sparsity, seed)
    return layer


def in_turn(layers: list[Callable[[Tensor], Tensor]], input: Tensor) -> Callable[[], Tensor]:
    """A call of the next one."""
    turns = itertools.cycle(layers)
    return lambda: next(turns)(input)


def measure(out: int, columns: int, sparsity: float, numbers: list[int]) -> list[dict[str, Any]]:
    copies = max(2, MOST_BYTES // (2 * out * columns))
    wide = [layer_of(out, columns, sparsity, seed) for seed in range(copies)]
    narrow = [one.weight.bfloat16() for one in wide]
    weights = [one.weight for one in wide]
    packed_wide = [sk.nn.PackedLinear.from_dense(one) for one in wide]
    packed = [sk.nn.PackedLinear.from_dense(one).bfloat16() for one in wide]
    records = []
    for rows in numbers:
        x = torch.randn(rows, columns)
        calls = {
            "dense bf16": in_turn([functools.partial(F.linear, weight=one) for one in narrow], x.bfloat16()),
            "packed bf16": in_turn(list(packed), x.bfloat16()),
            "dense": in_turn([functools.partial(F.linear, weight=one) for one in weights], x),
            "packed": in_turn(list(packed_wide), x),
        }
        with torch.inference_mode():
            times = {name: 1e3 * statistics.median(one) for name, one in samples_of(calls, EFFORT).items()}
        records.append(
            {
                "shape": [out, columns],
                "sparsity": sparsity,
                "rows": rows,
                "ms": {name: round(value, 4) for name, value in times.items()},
                "speedup": round(min(times["dense bf16"], times["dense"]) / times["packed bf16"], 3),
                "speedup_float32": round(times["dense"] / times["packed"], 3),
                "bytes": round(packed[0].nbytes / narrow[0].nbytes, 4),
            }
        )
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", default=["4096x4096", "11008x4096"])
    parser.add_argument("--rows", default="1,8,16")
    parser.add_argument("--sparsities", default="50,70,80,90,95")
    parser.add_argument("--json", action="store_true", help="a line for each record, with machine and versions")
    args = parser.parse_args()
    numbers = [int(one) for one in args.rows.split(",")]
    for shape, percent in itertools.product(args.shapes, args.sparsities.split(",")):
        out, columns = map(int, shape.split("x"))
        for record in measure(out, columns, int(percent) / 100, numbers):
            if args.json:
                about = {"commit": commit(), "machine": machine(), "versions": versions()}
                print(json.dumps({**record, **about}), flush=True)
                continue
            times = ", ".join(f"{name} {value:.2f} ms" for name, value in record["ms"].items())
            print(
                f"{shape}, {percent}% zeros, {record['rows']} rows: {record['speedup']:.2f}x of the faster dense layer,"
                f" {record['speedup_float32']:.2f}x in float32, {record['bytes']:.2f} of the bytes ({times})",
                flush=True,
            )


if __name__ == "__main__":
    main()
