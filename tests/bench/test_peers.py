# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The benchmark beside other engines: its protocol, its order, its verdicts. Nothing is installed for it."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sparsekernels.bench import record
from sparsekernels.bench.external import process
from sparsekernels.bench.external.process import Child, ChildError, Launch
from sparsekernels.bench.machine import ALLOCATOR
from sparsekernels.bench.suite import Unavailable
from sparsekernels.timing import Effort

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are stopped and pinned as Linux does it")

PEERS = Path(__file__).parents[2] / "benchmarks" / "peers"
sys.path[:0] = [str(PEERS), str(PEERS / "engines"), str(process.PROTOCOL.parent)]

import environments  # noqa: E402
import exporter  # noqa: E402
import measure  # noqa: E402
import protocol  # noqa: E402
import run  # noqa: E402
import sparsekernels_  # noqa: E402
import torch_dense  # noqa: E402
import torch_sparse  # noqa: E402
from environments import EXPORT, OURS, Environments, Peer, Variant  # noqa: E402
from measure import Case, Session, largest_error  # noqa: E402

FAKE = """
import os, sys, time
sys.path.insert(0, {protocol!r})
import numpy as np
from pathlib import Path
from protocol import Engine, Unavailable, serve

def prepare(job):
    print("a banner")
    does, calls = job.get("does"), []
    if does == "refuse":
        raise Unavailable("not today")
    if does == "miss":
        import no_such_engine
    if does == "raise":
        raise ValueError("bad\\njob")
    if does == "die":
        print("last words", file=sys.stderr, flush=True)
        os._exit(3)
    if does == "sleep":
        time.sleep(60)
    if "folder" in job:  # the exporter's
        folder = Path(job["folder"])
        np.save(folder / "input.npy", np.arange(6.0, dtype=np.float32))
        np.savez(folder / "reference.npz", output=2 * np.arange(6.0, dtype=np.float32))
        error = "no" if job["pruning"] == "clustered" else None
        return Engine(lambda: None, dict, details={{"bfloat16_error": 0.1, "onnx_error": error}})

    def call():
        print("noise")
        calls.append(1)
        time.sleep(job.get("seconds", 0))
        if len(calls) > job.get("lives", 1000):
            os._exit(4)
        if "log" in job:
            with open(job["log"], "a") as file:
                file.write(job["mark"])

    return Engine(
        call,
        lambda: {{"output": 2 * np.load(job["input"]) * (1 + job.get("error", 0.0))}},
        versions={{"fake": "1.2"}},
        details={{"threads": job["threads"]}},
    )

serve(prepare)
"""


@pytest.fixture(autouse=True)
def short_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that samples of the fake engine are single calls."""
    monkeypatch.setattr(measure, "SAMPLE", 0.01)


@pytest.fixture
def fake(tmp_path: Path) -> Launch:
    """The program of an engine that does as its job says."""
    program = tmp_path / "fake.py"
    program.write_text(FAKE.format(protocol=str(process.PROTOCOL.parent)), encoding="utf-8")
    return Launch((sys.executable, str(program)), dict(os.environ))


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


def peers_of(fake: Launch, *variants: Variant, onnx: bool = False) -> dict[str, Peer]:
    """Peers of the fake engine, each of one variant, and the exporter."""
    program = Path(fake.command[1])
    found = {one.name: Peer(one.name, program, "", "", (one,), onnx=onnx) for one in variants}
    return {**found, EXPORT: Peer(EXPORT, program, "", "", ())}


def variant(name: str, **options: Any) -> Variant:
    known = {key: options.pop(key) for key in ("dtype", "blocks") if key in options}
    return Variant(name, ("network",), options=options, **known)


class TestMeasure:
    @pytest.fixture
    def notes(self) -> list[str]:
        return []

    @pytest.fixture
    def session(self, fake: Launch, notes: list[str]) -> Session:
        effort = Effort(seconds=0, least=3, most=3)
        return Session(lambda peer: fake, 1, [min(os.sched_getaffinity(0))], effort, lambda text: None, notes.append)

    CASE = Case("network", "tiny", 2, 90.0)

    def records(self, peers: Mapping[str, Peer], session: Session, case: Case = CASE) -> dict[str, record.Record]:
        return {one.kind: one for one in measure.measure(case, peers, session)}

    def test_statuses(self, fake: Launch, session: Session, notes: list[str]) -> None:
        found = self.records(
            peers_of(
                fake,
                variant("torch", seconds=0.02),
                variant("wrong", error=2e-3),
                variant("close", error=5e-4),
                variant("torch-bf16", error=0.15, dtype="bfloat16"),
                variant("bf16-wrong", error=0.25, dtype="bfloat16"),
                variant("absent", does="refuse"),
                variant("mortal", lives=3, seconds=0.02),
                variant(OURS, seconds=0.01),
            ),
            session,
        )
        assert {name: one.status for name, one in found.items()} == {
            "torch": "ok",
            "wrong": "wrong",
            "close": "ok",
            "torch-bf16": "ok",
            "bf16-wrong": "wrong",
            "absent": "unavailable",
            "mortal": "error",
            "ours": "ok",
        }
        assert found["wrong"].max_error == pytest.approx(2e-3, rel=1e-3)
        assert found["wrong"].p50_ms is found["mortal"].p50_ms is found["mortal"].speedup is None
        text = "\n".join(notes)
        assert "network/tiny@2 float32 forward, wrong:random-90: wrong, the largest error is 0.002" in text
        assert "bf16-wrong:random-90: wrong, the largest error is 0.25 of the largest value, expected 0.2" in text
        assert "absent:random-90: unavailable, not today" in text
        assert "mortal:random-90: ChildError: its process died (exit status 4)" in text
        ours = found[OURS]
        assert (ours.suite, ours.case, ours.variant) == ("peers", "network/tiny@2", "ours:random-90")
        assert (ours.sparsity, ours.threads, ours.machine["allocator"]) == (0.9, 1, ALLOCATOR)
        assert ours.versions["fake"] == "1.2"
        assert ours.details == {"batch": 2, "dtype": "float32", "threads": 1, "over_ours": 1.0}
        assert found["torch"].details["over_ours"] > 1.2
        assert ours.speedup is not None
        assert ours.speedup > 1.2
        assert record.Record.from_json(ours.to_json()) == ours

    def test_turns_are_taken_in_an_order_drawn_anew(self, fake: Launch, session: Session, tmp_path: Path) -> None:
        log = tmp_path / "log"
        options = {"log": str(log), "seconds": 0.06}  # so long that each call is a sample
        peers = peers_of(fake, *(variant(name, mark=name[0], **options) for name in ("torch", "b", OURS)))
        self.records(peers, session)
        turns = log.read_text()[3:]  # after a call of each alone
        rounds = [turns[:3], turns[3:6], turns[6:]]
        assert {"".join(sorted(one)) for one in rounds} == {"bot"}

    def test_without_an_onnx_file(self, fake: Launch, session: Session, notes: list[str]) -> None:
        peers = {**peers_of(fake, variant("reader"), onnx=True), **peers_of(fake, variant(OURS))}
        case = Case("network", "tiny", 2, 90.0, pruning="clustered")
        assert {name: one.status for name, one in self.records(peers, session, case).items()} == {
            "reader": "unavailable",
            "ours": "ok",
        }
        assert notes == ["network/tiny@2 float32 forward, reader:clustered-90: unavailable, there is no ONNX file: no"]

    def test_without_the_exporters_environment(self, fake: Launch, session: Session, notes: list[str]) -> None:
        def launch(peer: Peer) -> Launch:
            if peer.requirements:
                raise Unavailable("no index")
            return fake

        peers = {**peers_of(fake, variant("reader"), onnx=True), **peers_of(fake, variant(OURS))}
        peers[EXPORT] = Peer(EXPORT, Path("x"), "", "", (), requirements=("onnx",), beside_ours=True)
        session = Session(launch, 1, session.processors, session.effort, session.say, session.note)
        found = self.records(peers, session)
        assert [found["reader"].status, found[OURS].status] == ["unavailable", "ok"]
        assert notes[0].endswith("there is no ONNX file: no index")

    def test_a_case_that_cannot_be_made(self, fake: Launch, session: Session, tmp_path: Path) -> None:
        program = tmp_path / "dead.py"
        program.write_text("raise SystemExit('no torch')", encoding="utf-8")
        dead = Session(
            lambda peer: Launch((sys.executable, str(program)), fake.environment),
            *(1, session.processors, session.effort, session.say, session.note),
        )
        with pytest.raises(Unavailable, match=r"it cannot be made: .*no torch"):
            self.records(peers_of(fake, variant(OURS)), dead)

    @pytest.mark.parametrize(
        ("results", "error"),
        [
            ({"output": [1.0, 2.0, 4.0], "weight gradient": [9.0, 2.0]}, 0.0),
            ({"output": [1.0, 3.0, 4.0], "weight gradient": [0.0, 2.0]}, 0.25),
            ({"output": [1.0, 2.0, 4.0], "weight gradient": [0.0, 1.0]}, 0.5),
            ({"output": [1.0, 2.0, math.nan], "weight gradient": [0.0, 2.0]}, math.inf),
            ({"output": [1.0, 2.0], "weight gradient": [0.0, 2.0]}, math.inf),
            ({"output": [1.0, 2.0, 4.0]}, math.inf),
        ],
    )
    def test_largest_error(self, results: dict[str, list[float]], error: float) -> None:
        reference = {"output": np.array([1.0, 2.0, 4.0]), "weight gradient": np.array([1.0, 2.0])}
        arrays = {name: np.array(values, dtype=np.float32) for name, values in results.items()}
        assert largest_error(arrays, reference, np.array([False, True])) == error


@pytest.mark.filterwarnings("ignore:Sparse .* (support is in beta|checks are implicitly):UserWarning")
class TestEngines:
    """Those that run on torch, in this process."""

    @pytest.fixture(autouse=True)
    def threads(self) -> Iterator[int]:
        before = torch.get_num_threads()
        yield before
        torch.set_num_threads(before)

    def verdict(self, case: Case, folder: Path, engine: Any, one: Variant) -> tuple[float, measure.Made]:
        """The error of the engine's results against the exporter's."""
        job = case.job(1)
        made = exporter.prepare({**job, "folder": str(folder), "blocks": 16, "onnx": False})
        blocks = {} if one.blocks is None else {"blocks": one.blocks}
        files = measure.Made(folder, **made.details)
        prepared = engine.prepare({**job, **files.inputs(case, one), "dtype": one.dtype, **blocks, **one.options})
        with prepared.context():
            prepared.call()
            np.savez(folder / "results.npz", **prepared.results())
        return files.error(folder / "results.npz", case, one), files

    @pytest.mark.parametrize("pass_", ["forward", "forward+backward"])
    @pytest.mark.parametrize(
        ("engine", "one"),
        [
            (torch_dense, Variant("torch", ("linear",))),
            (torch_dense, Variant("torch-bf16", ("linear",), "bfloat16")),
            (torch_sparse, Variant("torch-csr", ("linear",), options={"layout": "csr"})),
            (torch_sparse, Variant("torch-bsr", ("linear",), blocks=16, options={"layout": "bsr"})),
            (sparsekernels_, Variant("ours", ("linear",))),
        ],
        ids=lambda value: value.name if isinstance(value, Variant) else "",
    )
    def test_linear(self, tmp_path: Path, engine: Any, one: Variant, pass_: str) -> None:
        case = Case("linear", "64x96", 32, 75.0, pass_)
        if one.blocks is not None and pass_ != "forward":
            pytest.skip("torch has no such derivative")
        error, _ = self.verdict(case, tmp_path, engine, one)
        assert error <= measure.TOLERANCE[one.dtype]

    def test_what_torch_has_not(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def missing(input: Tensor, weight: Tensor) -> Tensor:
            raise NotImplementedError("no kernel\nand more")

        monkeypatch.setattr(torch_sparse, "WAYS", {"some": missing, "other": missing})
        one = Variant("torch-bsr", ("linear",), blocks=16, options={"layout": "bsr"})
        with pytest.raises(protocol.Unavailable, match=r"no forward of a linear layer in bsr: no kernel$"):
            self.verdict(Case("linear", "32x32", 8, 50.0), tmp_path, torch_sparse, one)

    def test_zeros(self, tmp_path: Path) -> None:
        job = Case("linear", "64x96", 2, 75.0).job(1)
        exporter.prepare({**job, "folder": str(tmp_path), "blocks": 16, "onnx": False})
        weight, blocks = np.load(tmp_path / "weight.npy"), np.load(tmp_path / "weight-blocks.npy")
        assert np.count_nonzero(weight) == np.count_nonzero(blocks) == 64 * 96 / 4
        assert {
            np.count_nonzero(blocks[r : r + 16, c : c + 16]) for r in range(0, 64, 16) for c in range(0, 96, 16)
        } == {
            0,
            256,
        }

    @pytest.mark.parametrize(
        ("engine", "one"),
        [
            (torch_dense, Variant("torch", ("network",))),
            (torch_dense, Variant("torch-bf16", ("network",), "bfloat16")),
            (sparsekernels_, Variant("ours", ("network",))),
        ],
        ids=lambda value: value.name if isinstance(value, Variant) else "",
    )
    def test_network(self, tmp_path: Path, engine: Any, one: Variant) -> None:
        error, files = self.verdict(Case("network", "lenet-300-100", 3, 90.0), tmp_path, engine, one)
        assert error <= (1e-3 if one.dtype == "float32" else max(5e-2, 2 * files.bfloat16_error))

    def test_logits_of_a_pruned_network_depend_on_the_image(self, tmp_path: Path) -> None:
        """Else a wrong result could not be told from a right one."""
        job = Case("network", "alexnet-s", 4, 95.0).job(1)
        exporter.prepare({**job, "folder": str(tmp_path), "blocks": None, "onnx": False})
        with np.load(tmp_path / "reference.npz") as reference:
            logits = reference["output"]
        assert (logits - logits.mean(0)).std() > 0.1 * logits.std()


class TestTable:
    def test_every_peer_has_an_engine_and_every_engine_a_peer(self) -> None:
        peers = environments.read_peers()
        helpers = {"networks.py"}
        assert {peer.engine.name for peer in peers.values()} == {
            path.name for path in (PEERS / "engines").glob("*.py")
        } - helpers
        for peer in peers.values():
            assert peer.about
            assert peer.license
            assert all("==" in requirement for requirement in peer.requirements)
        names = [one.name for peer in peers.values() for one in peer.variants]
        assert len(set(names)) == len(names)
        assert {OURS, measure.BASELINE} <= set(names)
        assert peers["deepsparse"].environment == {"NM_DISABLE_ANALYTICS": "1"}
        assert "evaluation" in peers["deepsparse"].license

    @pytest.mark.parametrize(
        ("row", "text"),
        [
            ('engine = "e.py"', "p: 'variants'"),
            ('engine = "e.py"\nlicense = ""\nvariants = []', "about"),
            ('engine = "e.py"\nabout = ""\nlicense = ""\nvariants = []\ncolor = 3', "color"),
            ('engine = "e.py"\nabout = ""\nlicense = ""\nvariants = []\nrequirements = ["a==1"]', "need python"),
            (
                'engine = "e.py"\nvariants = [{name = "a", cases = ["song"]}]',
                "expected cases to be 'network', 'linear', got 'song'",
            ),
            (
                'engine = "e.py"\nvariants = [{name = "a", cases = [], dtype = "int3"}]',
                "expected dtype to be .*, got 'int3'",
            ),
        ],
    )
    def test_a_bad_table_is_named(self, tmp_path: Path, row: str, text: str) -> None:
        path = tmp_path / "peers.toml"
        path.write_text(f'[export]\nabout = ""\nlicense = ""\n[peers.p]\n{row}', encoding="utf-8")
        with pytest.raises(ValueError, match=text):
            environments.read_peers(path)


class TestEnvironments:
    OWN = Peer("engine", Path("e.py"), "", "free", (), ("a==1", "b==2"), (environments._OURS,), environment={"X": "y"})
    BESIDE = Peer("beside", Path("e.py"), "", "", (), ("a==1",), beside_ours=True)

    @pytest.fixture
    def commands(self, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
        """What would have been run to make environments."""
        found: list[list[str]] = []

        def execute(command: list[Any]) -> None:
            found.append([str(word) for word in command])
            if "venv" in command:
                (Path(command[-1]) / "lib" / "python3" / "site-packages").mkdir(parents=True)

        monkeypatch.setattr(environments, "_execute", execute)
        return found

    def test_ours_needs_none(self, tmp_path: Path, commands: list[list[str]]) -> None:
        launch = Environments(tmp_path, print).launch(Peer("ours", Path("e.py"), "", "", ()), 3)
        assert launch.command[0] == sys.executable
        assert launch.command[-1] == "e.py"
        paths = launch.environment["PYTHONPATH"].split(os.pathsep)
        assert paths == [*filter(None, sys.path), str(process.PROTOCOL.parent)]
        assert ALLOCATOR.items() <= launch.environment.items()
        assert launch.environment["OMP_NUM_THREADS"] == "3"
        assert not commands

    def test_made_once_and_found_again(
        self, tmp_path: Path, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PYTHONPATH", "/somewhere")
        said: list[str] = []
        for _ in range(2):
            launch = Environments(tmp_path, said.append).launch(self.OWN, 1)
        python = str(tmp_path / "engine" / "bin" / "python")
        assert [words[1:] for words in commands] == [
            ["-m", "venv", "--clear", str(tmp_path / "engine")],
            ["-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check", "a==1", "b==2"],
        ]
        assert commands[1][0] == launch.command[0] == python
        assert launch.environment["X"] == "y"
        assert launch.environment["PYTHONPATH"] == str(process.PROTOCOL.parent)
        assert said == [
            f"installing a==1, b==2 for Python {environments._OURS} in {tmp_path / 'engine'}",
            "  license: free",
        ]

    def test_made_again_for_other_pins(self, tmp_path: Path, commands: list[list[str]]) -> None:
        Environments(tmp_path, print).launch(self.BESIDE, 1)
        assert "--no-deps" in commands[1]
        stamp = tmp_path / "beside" / "installed.json"
        stamp.write_text(stamp.read_text().replace("a==1", "a==0"))
        (tmp_path / "beside" / "lib" / "python3" / "site-packages").rmdir()
        (tmp_path / "beside" / "lib" / "python3").rmdir()
        (tmp_path / "beside" / "lib").rmdir()
        launch = Environments(tmp_path, print).launch(self.BESIDE, 1)
        assert len(commands) == 4
        assert launch.command[0] == sys.executable
        assert launch.environment["PYTHONPATH"].split(os.pathsep)[-2] == str(
            tmp_path / "beside" / "lib" / "python3" / "site-packages"
        )

    def test_what_failed_is_not_tried_again(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(environments, "find_python", lambda versions: ("/no/such/python", "3.9"))
        made = Environments(tmp_path, lambda text: None)
        for _ in range(2):
            with pytest.raises(Unavailable, match="its environment cannot be made: .*No such file"):
                made.launch(self.OWN, 1)
            monkeypatch.setattr(environments, "find_python", lambda versions: pytest.fail("tried again"))

    def test_a_failing_installer_is_quoted(self) -> None:
        with pytest.raises(Unavailable, match="cannot be made: no such pin"):
            environments._execute([sys.executable, "-c", "raise SystemExit('no such pin')"])

    def test_find_python(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert environments.find_python(("3.1", environments._OURS)) == (sys.executable, environments._OURS)
        shim = tmp_path / "python3.1"
        shim.write_text("#!/bin/sh\nexit 127\n", encoding="utf-8")
        shim.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(Unavailable, match=r"it needs Python 3\.1 or 3\.2, and no such python is on the path"):
            environments.find_python(("3.1", "3.2"))

    def test_the_folder(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("SPARSEKERNELS_PEERS", raising=False)
        assert environments.default_folder() == PEERS / ".envs"
        monkeypatch.setenv("SPARSEKERNELS_PEERS", "/elsewhere")
        assert environments.default_folder() == Path("/elsewhere")


class TestCommand:
    @pytest.mark.parametrize(
        ("line", "texts"),
        [
            ("--network vgg99", ("expected network to be 'lenet-300-100', ", ", got 'vgg99'")),
            ("--peers tvm", ("expected peers to be 'torch', 'onnxruntime', ", ", got 'tvm'")),
            ("--peers ours", ("expected peers to be 'torch', 'onnxruntime', ", ", got 'ours'")),
            ("--linear 1024", ("expected linear to be two sizes as in '1024x1024', got '1024'",)),
            ("--linear 0x4", ("expected linear to be two sizes as in '1024x1024', got '0x4'",)),
            ("--sparsity 80 100", ("expected sparsity from 0 to below 100 percent, got 100",)),
            ("--batch 0", ("invalid positive whole number value: '0'",)),
            ("--threads 4096", ("expected threads from 1 to ", ", got 4096")),
            ("--seconds -1", ("expected seconds of at least 0, got -1",)),
            ("--pruning lucky", ("invalid choice: 'lucky'",)),
        ],
    )
    def test_mistakes(self, capsys: pytest.CaptureFixture[str], line: str, texts: tuple[str, ...]) -> None:
        with pytest.raises(SystemExit) as exit:
            run.main(line.split())
        assert exit.value.code == 2
        said = capsys.readouterr().err
        assert all(text in said for text in texts)

    def test_cases(self) -> None:
        default = run.cases(run.arguments([], ("torch",)))
        assert [str(case) for case in default[:4]] == [
            "network/vgg16-d@64 random-80 forward",
            "network/vgg16-d@64 random-90 forward",
            "network/vgg16-d@64 random-95 forward",
            "network/resnet-50@64 random-80 forward",
        ]
        assert [str(case) for case in default[6:]] == [
            f"linear/1024x1024@1024 random-{percent} {pass_}"
            for pass_ in ("forward", "forward+backward")
            for percent in (80, 90, 95)
        ]
        line = "--network wrn-28-2 --network vgg16-d --batch 1 8 --sparsity 97.5 --pruning clustered"
        assert [str(case) for case in run.cases(run.arguments(line.split(), ()))] == [
            f"network/{name}@{batch} clustered-97.5 forward" for name in ("wrn-28-2", "vgg16-d") for batch in (1, 8)
        ]

    def test_from_end_to_end(
        self, fake: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        variants = (variant("torch", seconds=0.02), variant("wrong", error=1.0), variant(OURS, seconds=0.01))
        monkeypatch.setattr(run, "read_peers", lambda: peers_of(fake, *variants))
        line = f"--network vgg16-d --batch 8 --sparsity 80 90 --seconds 0 --threads 1 --json {tmp_path}/r/r.jsonl"
        assert run.main([*line.split(), "--markdown", f"{tmp_path}/m/r.md"]) == 1
        output = capsys.readouterr()
        assert "network/vgg16-d@8 random-80 forward: torch" in output.err
        assert "peers, network, forward (cpu, 1 thread)" in output.out
        assert "network/vgg16-d@8 float32 forward, wrong:random-90: wrong, the largest error is 1 " in output.out
        records = record.read(tmp_path / "r" / "r.jsonl")
        assert [one.variant for one in records[:3]] == ["torch:random-80", "wrong:random-80", "ours:random-80"]
        assert json.loads(records[0].to_json())["suite"] == "peers"
        lines = (tmp_path / "m" / "r.md").read_text().splitlines()
        header = lines.index("| case | torch | wrong | ours |")
        rows = [line.strip("| ").split(" | ") for line in lines[header + 2 : header + 4]]
        assert [row[0] for row in rows] == [f"network/vgg16-d@8 (random-{percent})" for percent in (80, 90)]
        for (_, dense, wrong, ours), one in zip(rows, records[::3], strict=True):
            assert one.details["over_ours"] > 1.2
            assert dense.endswith(f" ms ({one.details['over_ours']:.2f})")
            assert wrong == "wrong"
            assert ours.endswith(" ms")

    def test_only_the_chosen_peers(self, fake: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[list[str]] = []

        def measured(case: Case, peers: Mapping[str, Peer], session: Session) -> list[record.Record]:
            asked.append(list(peers))
            raise Unavailable("no torch")

        monkeypatch.setattr(run, "measure", measured)
        with pytest.raises(SystemExit) as exit:
            run.main(["--peers", "openvino", "--network", "vgg16-d", "--sparsity", "90"])
        assert exit.value.code == 2
        assert asked == [["openvino", OURS, EXPORT]]
