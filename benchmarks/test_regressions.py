# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Regression benchmarks of rms_norm, for pytest-benchmark: the small calls whose cost is easily lost in a change.

    pytest benchmarks/test_regressions.py --benchmark-save=before
    pytest benchmarks/test_regressions.py --benchmark-compare --benchmark-compare-fail=median:15%

Cases come from the short part of the suite `rmsnorm`. For figures to publish, or beside other libraries, use
`sparsekernels bench`, which interleaves what it compares.
"""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from sparsekernels.bench import rmsnorm
from sparsekernels.bench.suite import Case, Selection

MOST_NUMBERS = 1 << 16

CASES = [
    case
    for case in rmsnorm.SUITE.cases(Selection(quick=True))
    if rmsnorm.elements(case.name) <= MOST_NUMBERS and case.parameters.get("layout") is None
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name}-{case.dtype}-{case.pass_}")
def test_rms_norm(benchmark: BenchmarkFixture, case: Case) -> None:
    benchmark.group = f"rms_norm, {case.pass_}"
    (ours,) = (one for one in rmsnorm.variants(case, Selection(quick=True)) if one.name == "ours")
    prepared = ours.prepare()
    assert prepared.check is not None
    assert prepared.check().passed
    with prepared.context():
        benchmark(prepared.call)
