# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Refill the table of launch configurations of Triton kernels (sparsekernels/ops/triton_table.json) on the GPU here.

    python benchmarks/tune_triton.py blocks --case 512x28 --variant block
    python benchmarks/tune_triton.py rmsnorm --case large --case backward --variant ours --seconds 120

Runs cases of a suite of `sparsekernels bench` by the Triton backend, in CUDA graphs. For each configuration that a case
asks for, the fields that may be changed are varied one after another: halved and doubled, counts of stages by one. A
candidate counts if its result is right and it takes at least 3% less time than what there was, interleaved with that.
What was found is written after each case. Look at the changes, run the tests, and commit the table with the records.

A suite is one of `sparsekernels bench`; `sparsekernels bench SUITE --device cuda --list` has its cases and variants. A
variant is named without "/graph": "block" for weights in blocks, "sparse-triton" for single elements (suite few-rows),
"ours" in the suites masked and rmsnorm. Others, such as "dense", ask for no configuration. On how many rows single
elements are decoded is no launch configuration: decode_routes.py makes that of the records of `few-rows`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

import sparsekernels
from sparsekernels.bench.devices import autotuned
from sparsekernels.bench.machine import commit, versions
from sparsekernels.bench.record import parts
from sparsekernels.bench.suite import SUITES, Prepared, Selection, Suite, Variant, load
from sparsekernels.ops import _triton_table as table
from sparsekernels.timing import Clock, Effort, Sampler, clock_of, interleave, median_ratio

BETTER = 0.97
"""A candidate takes at most this share of the time of what there was."""

EFFORT = Effort(seconds=0.15, least=7, most=50)

Found = dict[tuple[str, str], dict[str, int]]
"""Entries by kernel and key."""


def neighbors(field: str, value: int) -> list[int]:
    """What to try in the place of `value`."""
    tried = [value - 1, value + 1] if "stages" in field else [value // 2, value * 2]
    return [one for one in tried if one >= 1]


def prepared(variant: Variant) -> Prepared | None:
    """The variant, or None where it cannot run so, or is wrong."""
    try:
        found = variant.prepare()
        verdict = None if found.check is None else found.check()
    except Exception as reason:  # too many registers, too much shared memory: whatever it is, it is no candidate
        print(f"    no: {str(reason).splitlines()[0] if str(reason) else type(reason).__name__}")
        return None
    if verdict is not None and not verdict.passed:
        print(f"    no: wrong, the largest error is {verdict.max_error:.3g}")
        return None
    return found


def ratio(clock: Clock, one: Prepared, other: Prepared) -> float:
    """Of their times, the median over interleaved rounds."""

    def sampler(of: Prepared) -> Sampler:
        def sample(repeats: int) -> float:
            with of.context():
                return clock.seconds(of.call, repeats) / (repeats * of.calls)

        return sample

    samples = interleave({"one": sampler(one), "other": sampler(other)}, EFFORT)
    return median_ratio(samples["one"], samples["other"])


def tune(variant: Variant, clock: Clock, found: Found, asked_before: set[tuple[str, str]]) -> None:
    """Try other configurations for what `variant` asks for; `found` has what is better, and stays in use."""
    with in_use(found):
        with table.listening() as asked:
            now = prepared(variant)
        if now is None:
            return
        for one in {(each.kernel, each.key): each for each in asked}.values():
            place = one.kernel, one.key
            if place in asked_before:
                continue
            asked_before.add(place)
            entry: dict[str, int] = {}
            for field in table.TUNED[one.kernel].tunes:
                for value in neighbors(field, getattr(one.answer, field)):
                    trial = {**entry, field: value}
                    print(f"  {one.kernel} {one.key}: {trial}")
                    with table.trying(*place, trial):
                        candidate = prepared(variant)
                    share = None if candidate is None else ratio(clock, candidate, now)
                    if candidate is not None and share is not None and share <= BETTER:
                        print(f"    {share:.2f} of the time")
                        entry, now = trial, candidate
            if entry:
                found[place] = entry


@contextlib.contextmanager
def in_use(found: Mapping[tuple[str, str], Mapping[str, int]]) -> Iterator[None]:
    """Inside, what was found so far counts."""
    with contextlib.ExitStack() as stack:
        for place, entry in found.items():
            stack.enter_context(table.trying(*place, entry))
        yield


def merged(text: str, capability: tuple[int, int], measured: str, found: Found) -> str:
    """The file of the table with what was found."""
    document: dict[str, Any] = json.loads(text)
    own = document.setdefault("{}.{}".format(*capability), {"measured": measured, "kernels": {}})
    own["measured"] = measured
    for (kernel, key), entry in found.items():
        own["kernels"].setdefault(kernel, {})[key] = entry
    return json.dumps(document, indent=1, sort_keys=True) + "\n"


def work(suite: Suite, selection: Selection, file: Path, seconds: float) -> Found:
    """All that the selected variants ask for, as far as the seconds reach."""
    found: Found = {}
    asked: set[tuple[str, str]] = set()
    begin, clock = time.monotonic(), clock_of(selection.device)
    on_gpu = selection.device == "cuda"
    capability = torch.cuda.get_device_capability() if on_gpu else (0, 0)
    measured = f"{torch.cuda.get_device_name() if on_gpu else 'no GPU'}, triton {versions().get('triton')}, {commit()}"
    with autotuned(selection.device), sparsekernels.use_backend("triton"):
        for case in suite.cases(selection):
            for variant in suite.variants(case, selection):
                in_mode = parts(variant.name)[2] == ("graph" if on_gpu else "")
                if not in_mode or not selection.takes_variant(variant.name):
                    continue
                if time.monotonic() - begin > seconds:
                    return found
                print(f"{case} {variant.name}")
                tune(variant, clock, found, asked)
                if found:
                    file.write_text(merged(file.read_text(encoding="utf-8"), capability, measured, found), "utf-8")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", help=f"whose cases are run: {', '.join(SUITES)}")
    parser.add_argument("--case", action="append", default=[], help="only such cases; repeat for several")
    parser.add_argument("--variant", action="append", default=[], required=True, help="whose kernels are tuned")
    parser.add_argument("--dtype", action="append", default=[], help="only these")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin nothing after so many")
    parser.add_argument("--device", default="cuda", help="cuda; cpu is Triton's interpreter, for tests")
    parser.add_argument("--file", type=Path, default=table.FILE, help="the table to write")
    given = parser.parse_args(arguments)
    if given.suite not in SUITES:
        parser.error(f"expected suite to be {', '.join(SUITES)}, got {given.suite}")
    try:
        selection = Selection(
            device=given.device, cases=tuple(given.case), variants=tuple(given.variant), dtypes=tuple(given.dtype)
        )
    except ValueError as error:
        parser.error(str(error))
    if not load(given.suite).cases(selection):
        parser.error(f"no case of suite {given.suite} on {given.device} matches these options")
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("expected a GPU to measure on: torch finds no CUDA device here")
    if not given.file.exists():
        given.file.write_text(table.FILE.read_text(encoding="utf-8"), encoding="utf-8")
    found = work(load(given.suite), selection, given.file, given.seconds)
    for (kernel, key), entry in found.items():
        print(f"{kernel} {key}: {entry}")
    print(f"{len(found)} entries, in {given.file}" if found else "nothing is better than what there is")
    return 0


if __name__ == "__main__":
    sys.exit(main())
