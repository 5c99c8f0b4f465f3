# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What is made of measured times."""

from __future__ import annotations

import pytest

from sparsekernels.conversion.measure import Times, times_of


def test_a_slow_round_cancels() -> None:
    assert Times({"before": [2.0, 20.0, 3.0], "after": [1.0, 10.0, 1.0]}).speedup("after", "before") == 2.0


@pytest.mark.parametrize(
    ("before", "after", "expected"), [([8.0], [1.0, 2.0, 3.0], 4.0), ([1.0, 2.0, 3.0], [8.0], 0.25)]
)
def test_one_sample_is_compared_with_all_of_the_other(before: list[float], after: list[float], expected: float) -> None:
    times = Times({"before": before, "after": after})
    assert times.speedup("after", "before") == expected
    assert times.milliseconds("before") / times.speedup("after", "before") == times.milliseconds("after")


def test_times_take_turns() -> None:
    from sparsekernels.timing import Effort

    order: list[str] = []
    times = times_of({name: lambda name=name: order.append(name) for name in "ab"}, Effort(0.01, 1e-6, 3, 3))
    assert set(times.rounds) == {"a", "b"}
    assert all(len(rounds) == 3 for rounds in times.rounds.values())
    assert {"a", "b"} == set(order)
    assert Times({"a": [2.0, 4.0], "b": [1.0, 1.0]}).speedup("b", "a") == 3.0


def test_the_faster_ones_in_order() -> None:
    times = Times({"dense": [6.0, 6.0], "a": [3.0, 3.0], "b": [2.0], "c": [6.0, 6.0]})
    assert times.measured
    assert times.faster("abc", "dense", 1.03) == ["b", "a"]
    assert times.faster("abc", "dense", 0.5) == ["b", "a", "c"]
    assert times.faster("", "dense", 0.5) == []
