"""What `convert` did and why, as rows, as a table and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

DENSE, FINE_GRAINED, CHANNEL_DROPPED = "dense", "fine-grained", "channel-dropped"
"""What layers become; candidates.py has all that they may."""

_HEADER = ("layer", "weight", "input", "sparsity", "decision", "speedup", "why")


@dataclass(frozen=True)
class LayerReport:
    """One convolution or linear layer.

    name          in the model, as `named_modules` has it
    kind          "Conv2d" or "Linear", or the name of the class that was not touched
    weight_shape  of its weight
    input_shape   of what it was given; None where it was not called
    sparsity      share of the weights that are zero, 0 to 1; None where the weight could not be read
    decision      a name of candidates.py, or "dense"
    reason        for it, in words
    dense_ms, ms  time of one call as it was and as decided, milliseconds; None where it was not measured
    """

    name: str
    kind: str
    weight_shape: tuple[int, ...]
    input_shape: tuple[int, ...] | None
    sparsity: float | None
    decision: str
    reason: str
    dense_ms: float | None = None
    ms: float | None = None

    @property
    def speedup(self) -> float | None:
        """Time as it was over time as decided; None where that was not measured."""
        return None if self.dense_ms is None or self.ms is None else self.dense_ms / self.ms


@dataclass(frozen=True)
class Report:
    """What became of a model.

    layers     one row for each convolution and linear layer
    before_ms, after_ms    time of a call of the whole model (in training mode of a forward and backward pass),
               milliseconds, measured by turns; None where nothing was changed
    mode       "eval" or "train": the model's when it was converted
    threads    torch's, when it was measured
    notes      what else there is to know, a sentence each
    """

    layers: tuple[LayerReport, ...]
    before_ms: float | None
    after_ms: float | None
    mode: str
    threads: int
    notes: tuple[str, ...] = field(default=())

    @property
    def converted(self) -> tuple[LayerReport, ...]:
        """The layers that are not what they were."""
        return tuple(row for row in self.layers if row.decision != DENSE)

    @property
    def speedup(self) -> float | None:
        """Time of the whole model before over that after; None where nothing was changed."""
        return None if self.before_ms is None or self.after_ms is None else self.before_ms / self.after_ms

    def to_json(self) -> str:
        """Everything, as a JSON object; a layer's `speedup` and the model's are in it."""
        value: dict[str, Any] = asdict(self) | {"speedup": self.speedup}
        value["layers"] = [asdict(row) | {"speedup": row.speedup} for row in self.layers]
        return json.dumps(value, indent=1)

    def summary(self) -> str:
        """One sentence: how many layers changed, and the time before and after."""
        count = f"{len(self.converted)} of {len(self.layers)} layers are converted"
        if self.before_ms is None or self.after_ms is None or self.speedup is None:
            return f"{count}: the model is as it was"
        what = "a forward pass" if self.mode == "eval" else "a forward and backward pass"
        return (
            f"{count}: {what} takes {_time(self.after_ms)}, before {_time(self.before_ms)} ({self.speedup:.2f}x, on"
            f" {self.threads} thread{'s' if self.threads != 1 else ''})"
        )

    def __str__(self) -> str:
        rows = [_HEADER, *map(_texts, self.layers)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER) - 1)]
        lines = [
            "  ".join([*(text.ljust(width) for text, width in zip(row, widths, strict=False)), row[-1]]) for row in rows
        ]
        return "\n".join([*(line.rstrip() for line in lines), *self.notes, self.summary()])

    def __rich__(self) -> Table:
        """A table for rich's `print`."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, caption_justify="left")
        table.caption = Text("\n".join([*self.notes, self.summary()]))
        for name in _HEADER:
            table.add_column(name, justify="right" if name in ("sparsity", "speedup") else "left", overflow="fold")
        for row in map(_texts, self.layers):
            table.add_row(*map(Text, row))
        return table


def _texts(row: LayerReport) -> tuple[str, ...]:
    return (
        row.name,
        _shape(row.weight_shape),
        "" if row.input_shape is None else _shape(row.input_shape),
        "" if row.sparsity is None else f"{row.sparsity:.1%}",
        row.decision,
        "" if row.speedup is None else f"{row.speedup:.2f}x",
        row.reason,
    )


def _shape(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))


def _time(ms: float) -> str:
    return f"{ms:.3g} ms" if ms < 999.5 else f"{ms / 1e3:.3g} s"
