# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Random sequences of what users do with a model: after each step a converted one computes what a dense one does.

`MANY_STEPS` is the number of sequences of each of ten parts, which can run in processes of their own: 10^4 in all in
the leg many-steps of tests/legs.sh. A failure is shrunk to a few steps, which `Session` and its `do` repeat.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import many_steps_writes  # noqa: F401, its steps
import many_steps_zeros  # noqa: F401, its steps
import pytest
import torch
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from many_steps import STEPS, Session
from many_steps_saving import stop_the_other_process

from sparsekernels import _library

pytestmark = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")

SEQUENCES = int(os.environ.get("MANY_STEPS", "25"))
PARTS = 10
LENGTH = 5
DTYPES = [torch.float32, torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16]
NUMBERS = st.integers(0, 1 << 20)


class ManySteps(RuleBasedStateMachine):
    """A session, and its steps as rules."""

    session: Session

    @initialize(number=NUMBERS, dtype=st.sampled_from(DTYPES), mode=st.sampled_from(["evaluation", "training"]))
    def start(self, number: int, dtype: torch.dtype, mode: str) -> None:
        self.session = Session(number, dtype)
        self.session.do(f"{mode} mode", 0)

    @initialize(number=NUMBERS)
    def convert(self, number: int) -> None:
        if hasattr(self, "session"):
            self.session.do("convert", number)

    @rule(name=st.sampled_from([*sorted(STEPS), "convert", "convert", "train"]), number=NUMBERS)
    def step(self, name: str, number: int) -> None:
        self.session.do(name, number)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The networks are small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    stop_the_other_process()


@pytest.mark.parametrize("part", range(PARTS if "MANY_STEPS" in os.environ else 1))
def test_many_steps(part: int) -> None:
    run_state_machine_as_test(
        seed(part)(ManySteps),
        settings=settings(
            max_examples=SEQUENCES,
            stateful_step_count=LENGTH,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
