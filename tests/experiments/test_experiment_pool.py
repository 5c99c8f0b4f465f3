# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Child processes that do the runs: what is told where they die, and that none is left."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from tiny_data import record_of, run_of

from sparsekernels.experiments import pool, records
from sparsekernels.experiments.pool import Event, Failed, Finished, Started

FAKE = """
import json, os, sys
request = json.loads(sys.stdin.readline())
for line in sys.stdin:
    run = json.loads(line)["run"]
    if run["seed"] == 0:
        print("out of memory", file=sys.stderr, flush=True)
        os._exit(3)
    if run["seed"] == 1:
        print(json.dumps({"event": "failed", "text": "ValueError: no"}), flush=True)
    else:
        print(json.dumps({"event": "record", "record": os.environ["RECORD"]}), flush=True)
"""

ODD = """
import json, os, sys
sys.stdin.readline()
for line in sys.stdin:
    if json.loads(line)["run"]["seed"] == 0:
        FIRST
    print(json.dumps({"event": "record", "record": os.environ["RECORD1"]}), flush=True)
"""


class TestPool:
    def test_a_process_that_dies_costs_its_run_alone(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        runs = [run_of(seed=seed) for seed in range(3)]
        record = record_of(runs[2], [80.0])
        monkeypatch.setattr(pool, "_CHILD", FAKE)
        monkeypatch.setenv("RECORD", record.to_json())
        events = list(pool.perform(runs, tmp_path, 1, tmp_path / "checkpoints"))
        assert [type(event) for event in events] == [Started, Failed, Started, Failed, Started, Finished]
        assert [event.run.seed for event in events] == [0, 0, 1, 1, 2, 2]
        died, failed, finished = events[1], events[3], events[5]
        assert isinstance(died, Failed)
        assert died.text == "its process died (exit code 3):\nout of memory"
        assert isinstance(failed, Failed)
        assert failed.text == "ValueError: no"
        assert isinstance(finished, Finished)
        assert finished.record == record

    def test_processes_end_with_the_iteration(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pool, "_CHILD", "import time; print(end='', flush=True); time.sleep(100)")
        children: list[pool._Child] = []
        begin = pool._Child.begin

        def spy(self: pool._Child, *arguments: object) -> None:
            children.append(self)
            begin(self, *arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(pool._Child, "begin", spy)
        events = pool.perform([run_of(seed=seed) for seed in range(3)], tmp_path, 2, tmp_path)
        assert isinstance(next(events), Started)
        assert isinstance(next(events), Started)
        started = time.monotonic()
        events.close()
        assert time.monotonic() - started < 10
        assert len(children) == 2
        assert all(child.process.returncode == -signal.SIGTERM for child in children)

    def test_a_line_that_is_cut_off_costs_its_run_alone(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """As where the kernel ends a process that is out of memory while it writes."""
        cut = 'print(\'{"event": "record", "rec\', end=\'\', flush=True); os.kill(os.getpid(), 9)'
        events = self.events(tmp_path, monkeypatch, cut)
        assert [(type(event), event.run.seed) for event in events] == [
            (Started, 0), (Failed, 0), (Started, 1), (Finished, 1),
        ]  # fmt: skip
        assert isinstance(events[1], Failed)
        assert events[1].text == "its process died (signal 9):"

    @pytest.mark.parametrize("line", ["no event", "[]", '{"event": "record", "record": "{}"}', '{"event": "other"}'])
    def test_a_process_that_says_something_else_is_ended(
        self, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        events = self.events(tmp_path, monkeypatch, f"print({line!r}, flush=True); sys.stdin.readline()")
        assert [type(event) for event in events] == [Started, Failed, Started, Finished]
        assert isinstance(events[1], Failed)
        assert events[1].text.startswith("its process was ended for what it said, ")

    def test_a_run_that_was_not_begun_goes_to_another_process(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The process died of the run before, behind its record."""
        told = "print(json.dumps({'event': 'record', 'record': os.environ['RECORD0']}), flush=True); os._exit(9)"
        events = self.events(tmp_path, monkeypatch, told)
        assert [(type(event), event.run.seed) for event in events if not isinstance(event, Started)] == [
            (Finished, 0), (Finished, 1),
        ]  # fmt: skip

    def events(self, folder: Path, monkeypatch: pytest.MonkeyPatch, first: str) -> list[Event]:
        """Of two runs, one after the other; with the first something happens."""
        runs = [run_of(seed=seed) for seed in range(2)]
        for run in runs:
            monkeypatch.setenv(f"RECORD{run.seed}", record_of(run, [80.0]).to_json())
        monkeypatch.setattr(pool, "_CHILD", ODD.replace("FIRST", first))
        return list(pool.perform(runs, folder, 1, folder / "checkpoints"))

    def test_a_lock_is_held_while_a_process_lives(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Also where the experiment itself was killed, and has closed it."""
        monkeypatch.setattr(pool, "_CHILD", "import sys; sys.stdin.readline(); sys.stdin.read()")
        path = tmp_path / "records.jsonl"
        with records.File.opened(path) as file:
            events = pool.perform([run_of()], tmp_path, 1, tmp_path, file.kept_open)
            assert isinstance(next(events), Started)
        with pytest.raises(ValueError, match="expected one experiment to write to it"), records.File.opened(path):
            pass
        events.close()
        with records.File.opened(path):
            pass

    def test_checkpoints_of_other_versions_are_others(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        run = run_of()
        names = {pool.checkpoint_name(run), pool.checkpoint_name(run_of(seed=1))}
        for name, found in (("versions", {"torch": "0"}), ("commit", "0ddba11")):
            with monkeypatch.context() as patch:
                patch.setattr(pool, name, lambda found=found: found)
                names.add(pool.checkpoint_name(run))
        assert len(names) == 4
        for name in names:
            (tmp_path / name).mkdir()
        pool._discard(tmp_path, run)
        assert [path.name for path in tmp_path.iterdir()] == [pool.checkpoint_name(run_of(seed=1))]
