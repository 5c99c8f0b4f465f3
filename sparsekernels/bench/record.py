# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What a measurement leaves behind: one JSON object a line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

STATUSES = ("ok", "wrong", "error", "unavailable")

Key = tuple[str, str, str, str, str, str, int, float | None]


def parts(variant: str) -> tuple[str, str, str]:
    """Kind, pattern and mode of a variant's name, kind[:pattern][/mode]: "sparse:random-90" is of kind "sparse"."""
    name, _, mode = variant.partition("/")
    kind, _, pattern = name.partition(":")
    return kind, pattern, mode


@dataclass(frozen=True)
class Record:
    """One variant of one case. Times are milliseconds of one call.

    suite, case     where it comes from; a case is called group/name
    variant         what computed it, such as "ours", "torch", "copy"; "ours/graph" is "ours" in a CUDA graph,
                    "sparse:random-90" is "sparse" on a pattern of nonzeros
    pass_           one of `suite.PASSES`; the key in the file is "pass"
    device          "cpu" or "cuda"
    dtype           "float32", "bfloat16", ...
    threads         threads of torch on CPU
    sparsity        share of zeros in the weight; None where nothing is sparse
    p20_ms, p50_ms, p80_ms    over the samples
    speedup         time of the suite's baseline over this one: the median over the rounds of the ratio in that round
    ideal_fraction  time of the suite's ideal over this one, taken likewise. rmsnorm: of a copy that reads and writes
                    tensors of the same sizes, thus the share of the memory-bound limit. openelm: of a model whose
                    norms cost nothing, thus 1 - the share of time that the norms take. With a sparsity: of the
                    baseline's time times the density, thus speedup over 1/density
    max_error       against the reference in float64, as `sparsekernels.testing` measures it; None: not compared,
                    or not finite
    status          "ok"; "wrong": beyond the tolerance; "error": it raised; "unavailable": it cannot run here.
                    Only "ok" has times
    machine, versions, commit    what ran it; see `machine.py`
    details         what else the suite has to say of it. layers: "batch"; "count", how often the net has the layer;
                    "gflop", the work of one call, on the nonzeros only; "layout" of a dense variant's tensors;
                    "peak_gflops", the rate of multiply-adds with an operand from L1 on this machine and these threads.
                    blocks, and layers and few-rows on CUDA: "traffic_cap", time of dense over that of copy;
                    "reachable_fraction", speedup over min(1/density, that cap); see `roofline.py`.
                    On CUDA, float32: "precision", "ieee" or "tf32", as torch's own settings have it
    interruptions   how many times a second other programs preempted the process, or processes, that ran the variants of
                    this case, while it was sampled; None where that was not counted
    """

    suite: str
    case: str
    variant: str
    pass_: str
    device: str
    dtype: str
    threads: int
    sparsity: float | None
    p20_ms: float | None
    p50_ms: float | None
    p80_ms: float | None
    speedup: float | None
    ideal_fraction: float | None
    max_error: float | None
    status: str
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    commit: str
    details: Mapping[str, Any] = field(default_factory=dict)
    interruptions: float | None = None

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"expected status to be {', '.join(map(repr, STATUSES))}, got {self.status!r}")
        if (self.status == "ok") != (self.p50_ms is not None):
            raise ValueError(
                f"expected times if and only if status is 'ok', got status {self.status!r} and p50_ms {self.p50_ms}"
            )

    @property
    def group(self) -> str:
        """The first half of the case's name."""
        return self.case.partition("/")[0]

    @property
    def kind(self) -> str:
        """The variant without its pattern and its mode."""
        return parts(self.variant)[0]

    @property
    def pattern(self) -> str:
        """The pattern of nonzeros in the variant's name, or nothing."""
        return parts(self.variant)[1]

    @property
    def mode(self) -> str:
        """The mode in the variant's name, or nothing."""
        return parts(self.variant)[2]

    @property
    def key(self) -> Key:
        """What was measured: equal in two runs of the same thing."""
        where = (self.suite, self.case, self.variant, self.pass_, self.device, self.dtype)
        return (*where, self.threads, self.sparsity)

    def to_json(self) -> str:
        """This record as one line."""
        return json.dumps({_file_key(f.name): getattr(self, f.name) for f in fields(self)}, allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> Record:
        """The record of one line. Raises `ValueError` where it is none."""
        value = json.loads(line, parse_constant=_refuse_constant)
        if not isinstance(value, dict):
            raise ValueError(f"expected a record to be a JSON object, got {type(value).__name__}")
        if missing := [key for key in KEYS if key not in value and key not in LATER_KEYS]:
            raise ValueError(f"expected a record with {', '.join(missing)}, got one without")
        if unknown := [key for key in value if key not in KEYS]:
            raise ValueError(f"expected no keys but a record's, got {', '.join(unknown)}")
        for f in fields(cls):
            key = _file_key(f.name)
            accepted, accepts = _ACCEPTED[str(f.type)]
            if key in value and not accepts(value[key]):
                raise ValueError(f"expected {key} to be {accepted}, got {value[key]!r}")
        _check_times(value)
        return cls(**{f.name: value[_file_key(f.name)] for f in fields(cls) if _file_key(f.name) in value})


def _file_key(name: str) -> str:
    return name.rstrip("_")


def _refuse_constant(name: str) -> float:
    raise ValueError(f"expected numbers that are finite, got {name}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_ACCEPTED: Mapping[str, tuple[str, Callable[[object], bool]]] = {
    "str": ("text", lambda value: isinstance(value, str)),
    "int": ("a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool)),
    "float | None": ("a finite number or null", lambda value: value is None or _is_number(value)),
    "Mapping[str, Any]": ("an object", lambda value: isinstance(value, dict)),
    "Mapping[str, str]": (
        "an object of texts",
        lambda value: isinstance(value, dict) and all(isinstance(one, str) for one in value.values()),
    ),
}
"""By the annotation of a field: what its value in a file has to be, in words and as a test."""

_TIMES = ("p20_ms", "p50_ms", "p80_ms")


def _check_times(value: Mapping[str, Any]) -> None:
    """Raise ValueError for times that nothing can be compared with: some without the others, none above 0, or mixed."""
    times = [value[key] for key in _TIMES]
    got = ", ".join(f"{key} {value[key]}" for key in _TIMES)
    if times.count(None) not in (0, len(times)):
        raise ValueError(f"expected all of {', '.join(_TIMES)} or none, got {got}")
    if None not in times and not 0 < times[0] <= times[1] <= times[2]:
        raise ValueError(f"expected times above 0 that ascend, got {got}")


KEYS = tuple(_file_key(f.name) for f in fields(Record))
"""The keys of a record, in the order of the file."""

LATER_KEYS = ("details", "interruptions")
"""Keys that the first files of records do not have."""


def write(path: Path, records: Iterable[Record]) -> None:
    """Write `records` to `path`, a line each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{record.to_json()}\n" for record in records), encoding="utf-8")


def read(path: Path) -> list[Record]:
    """The records of `path`. Raises `ValueError` that names the line at fault."""
    records = []
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected text in UTF-8, got other bytes at {error.start}") from error
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                records.append(Record.from_json(line))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
    if not records:
        raise ValueError(f"{path}: expected records, got none")
    return records
