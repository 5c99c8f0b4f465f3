"""Times of layers and models that take turns, by the benchmarks' timer."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from ..timing import Effort, median_ratio, samples_of
from .agreement import differentiable

LAYER = Effort(seconds=0.06, sample=5e-4, least=3, most=30)
MODEL = Effort(seconds=0.8, sample=1e-3, least=3, most=50)
CLOSE = Effort(seconds=2.5, sample=1e-3, least=7, most=50)
"""How long the ways to compute a layer, and the whole model, are measured; and the model where it is a close thing."""


@dataclass(frozen=True)
class Times:
    """Seconds of a call of each of some ways to compute the same, one number a round."""

    rounds: Mapping[str, list[float]]

    def milliseconds(self, name: str) -> float:
        """The median."""
        return 1e3 * statistics.median(self.rounds[name])

    def speedup(self, name: str, over: str) -> float:
        """Median over the rounds of the time of `over` over that of `name`."""
        return median_ratio(self.rounds[over], self.rounds[name])

    def share_faster(self, name: str, over: str) -> float:
        """In what share of the rounds `name` took less time than `over`: half of them where both take the same."""
        return statistics.mean(mine < other for mine, other in zip(self.rounds[name], self.rounds[over], strict=True))


def times_of(calls: Mapping[str, Callable[[], object]], effort: Effort) -> Times:
    """Measure `calls` by turns, on the CPU."""
    return Times(samples_of(calls, effort))


def step(call: Callable[[], object], training: bool) -> object:
    """A forward pass, and in training a backward pass from the sum of all results."""
    if not training:
        with torch.inference_mode():
            return call()
    result = call()
    torch.autograd.backward([one.sum() for one in differentiable(result)])
    return result
