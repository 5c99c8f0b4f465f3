# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Variants in processes of their own: the process, its protocol, and the variant that the runner sees."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_engine import linux

from sparsekernels.bench.external import process
from sparsekernels.bench.external.process import Child, ChildError, Launch
from sparsekernels.bench.external.variant import External
from sparsekernels.bench.suite import Unavailable, Verdict

pytestmark = linux


@pytest.fixture
def started(fake: Launch) -> Iterator[Callable[..., Child]]:
    """Makes children, with or without a job; ends them."""
    made: list[Child] = []

    def start(patience: float = 30.0, **job: Any) -> Child:
        made.append(Child(fake, sorted(os.sched_getaffinity(0))[:1], patience))
        made[-1].start({"threads": 1, **job})
        return made[-1]

    yield start
    for child in made:
        child.close()


def state(child: Child) -> str:
    """Of the process, as the kernel says: R, S, T where it is stopped."""
    return Path(f"/proc/{child._process.pid}/stat").read_text().rpartition(")")[2].split()[0]


class TestChild:
    def test_runs_and_writes_results(self, fake: Launch, tmp_path: Path) -> None:
        np.save(tmp_path / "input.npy", np.array([1.0, 2.0], dtype=np.float32))
        with Child(fake, [min(os.sched_getaffinity(0))]) as child:
            assert child.start({"threads": 3, "input": str(tmp_path / "input.npy"), "seconds": 2e-3}) == (
                {"fake": "1.2"},
                {"threads": 3},
            )
            assert 2e-3 <= child.run(4) < 1
            assert child.seconds >= 8e-3
            child.output(tmp_path / "results.npz")
        with np.load(tmp_path / "results.npz") as results:
            assert results["output"].tolist() == [2, 4]

    def test_is_stopped_whenever_it_is_not_asked(self, started: Callable[..., Child]) -> None:
        child = started()
        assert state(child) == "T"
        child.run(1)
        assert state(child) == "T"

    def test_runs_on_its_processors(self, started: Callable[..., Child]) -> None:
        assert os.sched_getaffinity(started()._process.pid) == {min(os.sched_getaffinity(0))}

    @pytest.mark.parametrize(
        ("does", "error", "text"),
        [
            ("refuse", Unavailable, "^not today$"),
            ("miss", Unavailable, "No module named 'no_such_engine'"),
            ("raise", ChildError, "^ValueError: bad$"),
            ("die", ChildError, r"died \(exit status 3\): .*last words"),
        ],
    )
    def test_what_it_cannot_do(
        self, started: Callable[..., Child], does: str, error: type[Exception], text: str
    ) -> None:
        with pytest.raises(error, match=text):
            started(does=does)

    def test_death_between_samples(self, started: Callable[..., Child]) -> None:
        child = started(lives=2)
        child.run(2)
        with pytest.raises(ChildError, match="exit status 4"):
            child.run(1)
        with pytest.raises(ChildError, match="exit status 4"):
            child.run(1)

    def test_killed_from_outside(self, started: Callable[..., Child]) -> None:
        child = started()
        child._process.kill()
        with pytest.raises(ChildError, match="signal SIGKILL"):
            child.run(1)

    def test_patience_ends(self, started: Callable[..., Child]) -> None:
        with pytest.raises(ChildError, match=r"no answer within 0\.5 seconds"):
            started(patience=0.5, does="sleep")

    def test_a_bad_command_is_an_error(self, started: Callable[..., Child]) -> None:
        child = started()
        with pytest.raises(ChildError, match="expected command to be 'run', 'output', got 'dance'"):
            child._ask("dance 3")
        with pytest.raises(ChildError, match="ValueError"):
            child._ask("run many")
        assert child.run(1) >= 0

    def test_processors_that_share_no_core_come_first(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(process, "_core", lambda number: str(number // 2))
        assert process.processors([0, 1, 2, 3, 5]) == [0, 2, 5, 1, 3]

    def test_cores(self) -> None:
        assert 1 <= process.cores() <= len(process.processors()) == len(os.sched_getaffinity(0))


class TestExternal:
    @pytest.fixture
    def children(self, monkeypatch: pytest.MonkeyPatch) -> list[Child]:
        """All that are started."""
        found: list[Child] = []
        begin = Child.__init__

        def init(child: Child, *arguments: Any) -> None:
            begin(child, *arguments)
            found.append(child)

        monkeypatch.setattr(Child, "__init__", init)
        return found

    def external(self, fake: Launch, job: Mapping[str, Any], verdict: Verdict) -> External:
        return External(lambda: {"threads": 1, **job}, lambda: fake, lambda path: verdict, process.processors()[:1])

    def test_prepared(self, fake: Launch, tmp_path: Path, children: list[Child]) -> None:
        np.save(tmp_path / "input.npy", np.ones(2, dtype=np.float32))
        judged: list[list[float]] = []

        def judge(path: Path) -> Verdict:
            judged.append(np.load(path)["output"].tolist())
            return Verdict(0.0, True)

        job = {"threads": 1, "input": str(tmp_path / "input.npy"), "seconds": 2e-3}
        variant = External(lambda: job, lambda: fake, judge, process.processors()[:1]).variant("a:random-90", 0.9)
        assert (variant.name, variant.sparsity) == ("a:random-90", 0.9)
        prepared = variant.prepare()
        assert (prepared.versions, prepared.details) == ({"fake": "1.2"}, {"threads": 1})
        assert prepared.check is not None
        assert prepared.check() == Verdict(0.0, True)
        assert judged == [[2, 2]]
        assert prepared.sampler is not None
        assert 2e-3 <= prepared.sampler(3) < 1
        children[0].interruptions = 7
        assert prepared.interruptions() == 7
        variant.close()
        assert [child._process.poll() for child in children] == [-9]

    def test_what_has_nothing_to_do_starts_nothing(self, children: list[Child]) -> None:
        def job() -> dict[str, Any]:
            raise Unavailable("no such file")

        external = External(job, lambda: pytest.fail("launched"), lambda path: Verdict(0.0, True), [0])
        with pytest.raises(Unavailable, match="no such file"):
            external.prepare()
        external.close()
        assert children == []

    @pytest.mark.parametrize(("does", "error"), [("refuse", Unavailable), ("raise", ChildError)])
    def test_what_fails_at_once_has_ended(
        self, fake: Launch, children: list[Child], does: str, error: type[Exception]
    ) -> None:
        with pytest.raises(error):
            self.external(fake, {"does": does}, Verdict(0.0, True)).prepare()
        assert [child._process.poll() is not None for child in children] == [True]

    def test_what_is_wrong_has_ended(self, fake: Launch, tmp_path: Path, children: list[Child]) -> None:
        np.save(tmp_path / "input.npy", np.ones(2, dtype=np.float32))
        prepared = self.external(fake, {"input": str(tmp_path / "input.npy")}, Verdict(1.0, False)).prepare()
        assert prepared.check is not None
        assert not prepared.check().passed
        assert [child._process.poll() is not None for child in children] == [True]
