# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What `convert` did and why: the facts, as rows, as a table, as JSON and in sentences."""

from __future__ import annotations

import enum
import itertools
import json
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from ..timing import ENOUGH
from .facts import Fact, LayerObstacle, Note, Way, plain
from .table import as_rich, as_text

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType

DENSE = "dense"
"""The decision that leaves a layer as it is; candidates.py has what it may become."""


BLOCK = "block"
"""The decision that stores whole blocks, of whose sizes a row has one."""

PACKED = "packed"
"""The decision that keeps nonzeros alone, and no dense weight."""


class Ground(enum.Enum):
    """What a layer's decision rests on."""

    ALONE = "its own time"
    CHAIN = "its chain"
    MODEL = "the whole model"
    PREFERENCE = "a preference"
    GRAPH = "the graph"
    LIMIT = "the time limit"
    UNDECIDED = "undecided"
    PLAIN = "times that were disturbed"


@dataclass(frozen=True)
class LayerReport:
    """One convolution or linear layer.

    Attributes:
        name: In the model, as `named_modules` has it.
        kind: "Conv2d" or "Linear", or the name of the class that was not touched.
        weight_shape: Of its weight.
        input_shape: Of its input; None where it was not called.
        sparsity: Share of the weights that are zero, 0 to 1; None where the weight could not be read.
        decision: "dense", "fine-grained", "block", "channel-dropped" or "packed".
        dense_ms, ms: Time of one call before and as decided, milliseconds; None where it was not measured.
        gains: The measured speedup over dense of each candidate by itself.
        measured_on: The identical layer that was measured in its place, or the similar one where there was no time for
            more; None where it was measured itself.
        obstacle: Why it was not measured, which `str` puts in words; None where it was.
        ground: What the decision rests on.
        omitted: How many outputs and inputs the graph leaves out.
        ruled_out: Why it cannot become each of the candidates that were not measured.
        slowest: Where it was measured in several examples, for each candidate the place of the one in which it gained
            the least, and its speedup there; `gains` are geometric means then.
        dense_rows: For which numbers of rows it computes with its dense weight, as `SparseLinear` has it; empty in
            training, where it does so in calls without gradients alone.
        also: Its other names, where what contains it has several.
        block: Rows and columns of the blocks that hold its nonzeros, where it may be kept in blocks; else None.
    """

    name: str
    kind: str
    weight_shape: tuple[int, ...]
    input_shape: tuple[int, ...] | None
    sparsity: float | None
    decision: str
    dense_ms: float | None = None
    ms: float | None = None
    gains: Mapping[str, float] = field(default_factory=dict)
    measured_on: str | None = None
    obstacle: Fact | None = None
    ground: Ground = Ground.ALONE
    omitted: tuple[int, int] = (0, 0)
    ruled_out: Mapping[str, Fact] = field(default_factory=dict)
    slowest: Mapping[str, tuple[int, float]] = field(default_factory=dict)
    dense_rows: tuple[int, ...] = ()
    also: tuple[str, ...] = ()
    block: tuple[int, int] | None = None

    @property
    def verdict(self) -> str:
        """The decision, of blocks with their size; "undecided" where it could not be measured, "as before" where it was
        converted already.
        """
        if self.obstacle is not None and self.obstacle.kind is LayerObstacle.CONVERTED:
            return "as before"
        if self.ground is Ground.UNDECIDED:
            return Ground.UNDECIDED.value
        return self._in_words(self.decision)

    def _in_words(self, decision: str) -> str:
        return "{} {}x{}".format(decision, *self.block) if decision == BLOCK and self.block else decision

    @property
    def reason(self) -> str:
        """For the decision, in words."""
        reason = self._reason_of_decision()
        if any(self.omitted):
            both = zip(self.omitted, ("outputs", "inputs"), strict=True)
            parts = " and ".join(f"{count} of its {what}" for count, what in both if count)
            reason += f"; the graph leaves out {parts}"
        if self.dense_rows:
            reason += f"; {DENSE} for {_ranges(self.dense_rows)}"
        if self.also:
            reason += f"; it is {' and '.join(self.also)} as well"
        return reason

    def _reason_of_decision(self) -> str:
        if self.ground is Ground.GRAPH:
            found = self._found()
            return f"{DENSE} by itself" + (f" ({found})" if found else "")
        if self.obstacle is not None:
            return self._found()
        if self.ground is Ground.PREFERENCE:
            found = self._found() if self.decision == DENSE else ""
            return "; ".join(["not measured: sparsekernels.testing.prefer decides", *filter(None, [found])])
        if self.ground is Ground.LIMIT:
            similar = f"; as {self.measured_on}, the measured layer most like it" if self.measured_on else ""
            return f"not measured within max_seconds{similar}"
        if self.ground is Ground.UNDECIDED:
            return "it stays dense, since other programs disturbed the measurement"
        if self.ground is Ground.PLAIN:
            what = "slower otherwise" if self.decision == DENSE else "faster"
            return f"plainly {what}; by how much, other programs kept from being measured"
        if self.ground is Ground.MODEL and not self.gains:
            return "alone, it would be faster otherwise; see the notes on the whole model"
        if self.ground is Ground.CHAIN:
            alone = f"; alone, {self._found()}" if self.gains else ""
            return f"for the sake of its chain{alone}"
        if not self.gains:
            return "; ".join(["there is nothing that it may become", *filter(None, [self._found()])])
        if self.ground is Ground.MODEL:
            best = max(self.gains, key=lambda name: self.gains[name])
            return f"alone, {self._in_words(best)} would be {self.gains[best]:.2f}x; see the notes on the whole model"
        return self._found(chosen=self.decision)

    def _found(self, chosen: str = "") -> str:
        """What was found of the layer by itself. chosen: the candidate that it became for that."""
        if self.obstacle is not None:
            return str(self.obstacle)
        if not self.gains:
            same: dict[str, list[str]] = {}
            for name, fact in self.ruled_out.items():
                same.setdefault(str(fact), []).append(name)
            return "; ".join(f"not {' or '.join(names)}: {fact}" for fact, names in same.items())
        best_first = sorted(self.gains, key=lambda name: self.gains[name], reverse=True)
        each = [
            f"{self._in_words(name)} would be {self.gains[name]:.2f}x{self._of_slowest(name)}" for name in best_first
        ]
        if chosen in self.gains:
            del each[best_first.index(chosen)]
            each.insert(0, "faster" if self.measured_on else "measured to be faster")
        alike = f", measured on {self.measured_on}, which is alike" if self.measured_on else ""
        return ", ".join(each) + alike

    def _of_slowest(self, name: str) -> str:
        index, gain = self.slowest.get(name, (0, 1.0))
        return f" (but {gain:.2f}x with example_inputs[{index}])" if gain < 1 else ""

    @property
    def speedup(self) -> float | None:
        """Time as it was over time as decided; None where that was not measured."""
        return None if self.dense_ms is None or self.ms is None else self.dense_ms / self.ms


@dataclass(frozen=True)
class ExampleReport:
    """One of several calls that a model was measured in.

    Attributes:
        name: Which one, with its arguments in words.
        before_ms, after_ms: Time of the whole model, milliseconds, interleaved.
    """

    name: str
    before_ms: float
    after_ms: float

    @property
    def speedup(self) -> float:
        """Time before over time after."""
        return self.before_ms / self.after_ms

    def __str__(self) -> str:
        return self.words()

    def words(self, rough: bool = False) -> str:
        """Its times in words.

        Args:
            rough: Whether no more than two digits of them are known.

        Returns:
            A sentence.
        """
        after, before = (_time(ms, rough) for ms in (self.after_ms, self.before_ms))
        return f"{self.name}: {after}, before {before} ({_gain(self.speedup, rough)})"


@dataclass(frozen=True)
class Report:
    """What became of a model. `print` shows it as a table, in which more than three layers that are alike share a row.

    Attributes:
        layers: A `LayerReport` for each convolution and linear layer.
        before_ms, after_ms: Time of a call of the whole model (in training mode of a forward and backward pass, where
            a result has a gradient), milliseconds, interleaved; None where nothing was changed, or nothing measured.
            Of several examples, of one call of each.
        mode: "eval" or "train": the model's when it was converted.
        threads: torch's, when it was measured.
        facts: What else there is to know.
        way: How the model runs now; `Way.BEFORE` where nothing was changed.
        examples: An `ExampleReport` for each of several examples; empty where there was one, or no time.
        runs: How many samples there are of these times, the least of before and after; None where nothing was measured.
        disturbed: Whether other programs disturbed these times.
    """

    layers: tuple[LayerReport, ...]
    before_ms: float | None
    after_ms: float | None
    mode: str
    threads: int
    facts: tuple[Fact, ...] = ()
    way: Way = Way.BEFORE
    examples: tuple[ExampleReport, ...] = ()
    runs: int | None = None
    disturbed: bool = False

    @property
    def notes(self) -> tuple[str, ...]:
        """The facts, a sentence each, and the times of several examples."""
        return (*map(str, self.facts), *(one.words(self._is_rough) for one in self.examples))

    @property
    def converted(self) -> tuple[LayerReport, ...]:
        """The layers that are not what they were."""
        return tuple(row for row in self.layers if row.decision != DENSE)

    @property
    def speedup(self) -> float | None:
        """Time of the whole model before over that after; None where nothing was changed, or nothing measured.

        Of several examples, the geometric mean.
        """
        if self.examples:
            return statistics.geometric_mean(one.speedup for one in self.examples)
        return None if self.before_ms is None or self.after_ms is None else self.before_ms / self.after_ms

    def to_json(self) -> str:
        """All facts as JSON.

        Returns:
            An object with the attributes and the speedups of the model and of each layer. Facts and obstacles are
            {"kind": ..., "operands": {...}}; `notes` has a sentence for each fact, `reason` for each layer.
        """
        value: dict[str, Any] = asdict(self) | {
            "facts": [plain(fact) for fact in self.facts],
            "notes": self.notes,
            "way": self.way.value,
            "speedup": self.speedup,
        }
        value["layers"] = [
            asdict(row)
            | {
                "obstacle": plain(row.obstacle),
                "ground": row.ground.value,
                "ruled_out": {name: plain(fact) for name, fact in row.ruled_out.items()},
                "reason": row.reason,
                "speedup": row.speedup,
            }
            for row in self.layers
        ]
        return json.dumps(value, indent=1)

    def summary(self) -> str:
        """How many layers changed, and the time before and after.

        Returns:
            One sentence.
        """
        count = f"{len(self.converted)} of {len(self.layers)} layers are converted"
        if self.way is Way.BEFORE:
            return f"{count}: the model is unchanged"
        how = [f"on {self.threads} thread{'s' if self.threads != 1 else ''}"]
        if self.runs is not None and self.runs < ENOUGH:
            how.insert(0, f"by {'one run' if self.runs == 1 else f'{self.runs} runs'}")
        if self.disturbed:
            how.insert(0, "disturbed")
        if self.examples and self.speedup is not None:
            gain = f"{_gain(self.speedup, self._is_rough)} by the geometric mean over {len(self.examples)} examples"
            return f"{count}: {', '.join([gain, *how])}"
        forward_only = self.mode == "eval" or any(fact.kind is Note.NO_GRADIENT for fact in self.facts)
        what = "a forward pass" if forward_only else "a forward and backward pass"
        if self.before_ms is None or self.after_ms is None or self.speedup is None:
            return f"{count}: the model runs as {self.way.words}, and {what} was not measured"
        after, before = (_time(ms, self._is_rough) for ms in (self.after_ms, self.before_ms))
        gain = ", ".join([_gain(self.speedup, self._is_rough), *how])
        return f"{count}: {what} takes {after}, before {before} ({gain})"

    @property
    def _is_rough(self) -> bool:
        """Whether no more than two digits of the times are known."""
        return self.disturbed or (self.runs is not None and self.runs < ENOUGH)

    def __str__(self) -> str:
        return as_text(self)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """A table, and the notes beneath, for rich's `print`."""
        yield from as_rich(self, options.max_width)


def _ranges(table: tuple[int, ...]) -> str:
    """The numbers of rows that a table such as `SparseLinear.dense_rows` has."""
    if table == (1,):
        return "any number of rows"
    found = []
    for first, until in itertools.zip_longest(table[::2], table[1::2]):
        if until is None:
            found.append(f"{first} or more")
        else:
            found.append(f"{first} to {until - 1}" if first < until - 1 else str(first))
    return ", ".join(found) + ("" if not found else " row" if found == ["1"] else " rows")


def _time(ms: float, rough: bool) -> str:
    value, unit = (ms, "ms") if ms < 999.5 else (ms / 1e3, "s")
    return f"about {_two_digits(value)} {unit}" if rough else f"{value:.3g} {unit}"


def _gain(speedup: float, rough: bool) -> str:
    return f"about {_two_digits(speedup)}x" if rough else f"{speedup:.2f}x"


def _two_digits(value: float) -> str:
    return f"{float(f'{value:.2g}'):g}"
