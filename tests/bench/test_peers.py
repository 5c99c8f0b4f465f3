# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The suites of other engines: order, verdicts, selection, and the command. Nothing is installed for it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import environments
import files
import peers
import pytest
import torch
from environments import EXPORT, OURS, Peer, Variant
from fake_engine import PEERS, linux
from peer_cases import pruned_case
from typer.testing import CliRunner, Result

from sparsekernels.bench import record, suite, worker
from sparsekernels.bench.cli import app
from sparsekernels.bench.external.process import Launch
from sparsekernels.bench.machine import ALLOCATOR
from sparsekernels.bench.record import Record
from sparsekernels.bench.suite import Case, Selection, Unavailable
from sparsekernels.timing import CpuClock, Effort

pytestmark = linux


@pytest.fixture(autouse=True)
def allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the runner sets it for the process that measures."""
    for name, value in ALLOCATOR.items():
        monkeypatch.setenv(name, value)
    worker.machine.cache_clear()


def peers_of(program: Path, *variants: Variant, onnx: bool = False) -> dict[str, Peer]:
    """Peers of the fake engine, each of one variant, and the exporter."""
    found = {one.name: Peer(one.name, program, "", "", (one,), onnx=onnx) for one in variants}
    return {**found, EXPORT: Peer(EXPORT, program, "", "", ())}


def variant(name: str, **options: object) -> Variant:
    known = {key: options.pop(key) for key in ("dtype", "blocks") if key in options}
    return Variant(name, ("network",), options=options, **known)  # type: ignore[arg-type]


EVERYTHING = Selection()


class TestMeasure:
    CASE = pruned_case("network/tiny@2", 2, 90.0)
    EFFORT = Effort(seconds=0, least=3, most=3, sample=0.01)  # so that samples of the fake engine are single calls

    @pytest.fixture
    def notes(self) -> list[str]:
        return []

    @pytest.fixture
    def records(
        self, fake: Launch, notes: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> Callable[..., dict[str, Record]]:
        """Measures a case with peers, of a launcher and a selection."""
        monkeypatch.setattr(worker.torch, "get_num_threads", lambda: 1)

        def measured(
            found: Mapping[str, Peer],
            case: Case = self.CASE,
            launch: Callable[[Peer, int], Launch] = lambda peer, threads: fake,
            selection: Selection = EVERYTHING,
        ) -> dict[str, Record]:
            made = peers.made_of(found, case, selection, launch)
            session = worker.Session(CpuClock(), self.EFFORT, lambda event: notes.append(event["text"]))
            chosen = [one for one in made if selection.takes_variant(one.name)]
            return {one.kind: one for one in worker.measure(peers.SUITE, case, chosen, session)}

        return measured

    def test_statuses(self, fake: Launch, records: Callable[..., dict[str, Record]], notes: list[str]) -> None:
        found = records(
            peers_of(
                Path(fake.command[1]),
                variant("torch", seconds=0.02),
                variant("wrong", error=2e-3),
                variant("close", error=5e-4),
                variant("torch-bf16", error=0.15, dtype="bfloat16"),
                variant("bf16-wrong", error=0.25, dtype="bfloat16"),
                variant("absent", does="refuse"),
                variant("mortal", lives=3, seconds=0.02),
                variant(OURS, seconds=0.01),
            )
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
        assert found["torch-bf16"].details["dtype"] == "bfloat16"
        assert found["torch"].details["over_ours"] > 1.2
        assert ours.speedup is not None
        assert ours.speedup > 1.2
        assert Record.from_json(ours.to_json()) == ours

    def test_turns_are_taken_in_an_order_drawn_anew(
        self, fake: Launch, records: Callable[..., dict[str, Record]], tmp_path: Path
    ) -> None:
        log = tmp_path / "log"
        options = {"log": str(log), "seconds": 0.06}  # so long that each call is a sample
        records(
            peers_of(Path(fake.command[1]), *(variant(name, mark=name[0], **options) for name in ("torch", "b", OURS)))
        )
        turns = log.read_text()[3:]  # after a call of each alone
        rounds = [turns[:3], turns[3:6], turns[6:]]
        assert {"".join(sorted(one)) for one in rounds} == {"bot"}

    def test_without_an_onnx_file(
        self, fake: Launch, records: Callable[..., dict[str, Record]], notes: list[str]
    ) -> None:
        program = Path(fake.command[1])
        found = {**peers_of(program, variant("reader"), onnx=True), **peers_of(program, variant(OURS))}
        case = pruned_case("network/tiny@2", 2, 90.0, mask="clustered")
        assert {name: one.status for name, one in records(found, case).items()} == {
            "reader": "unavailable",
            "ours": "ok",
        }
        assert notes == ["network/tiny@2 float32 forward, reader:clustered-90: unavailable, there is no ONNX file: no"]

    def test_without_the_exporters_environment(
        self, fake: Launch, records: Callable[..., dict[str, Record]], notes: list[str]
    ) -> None:
        def launch(peer: Peer, threads: int) -> Launch:
            if peer.requirements:
                raise Unavailable("no index")
            return fake

        program = Path(fake.command[1])
        found = {**peers_of(program, variant("reader"), onnx=True), **peers_of(program, variant(OURS))}
        found[EXPORT] = Peer(EXPORT, Path("x"), "", "", (), requirements=("onnx",), beside_ours=True)
        measured = records(found, launch=launch)
        assert [measured["reader"].status, measured[OURS].status] == ["unavailable", "ok"]
        assert notes[0].endswith("there is no ONNX file: no index")
        notes.clear()
        assert set(records(found, launch=launch, selection=Selection(variants=(OURS,)))) == {OURS}
        assert notes == []

    def test_a_case_that_cannot_be_made(
        self, fake: Launch, records: Callable[..., dict[str, Record]], notes: list[str], tmp_path: Path
    ) -> None:
        program, tries = tmp_path / "dead.py", tmp_path / "tries"
        program.write_text(f"open({str(tries)!r}, 'a').write('x')\nraise SystemExit('no torch')", encoding="utf-8")

        def launch(peer: Peer, threads: int) -> Launch:
            return Launch((sys.executable, str(program)), fake.environment)

        found = records(peers_of(program, variant("torch"), variant(OURS)), launch=launch)
        assert {one.status for one in found.values()} == {"error"}
        assert len(notes) == 2
        assert all("the case cannot be made: " in note and note.endswith("no torch") for note in notes)
        assert tries.read_text() == "x"

    def test_no_process_and_no_file_outlives_a_case(
        self, fake: Launch, records: Callable[..., dict[str, Record]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made: list[files.Files] = []
        children: list[files.Child] = []
        begin = files.Child.__init__

        def init(child: files.Child, *arguments: object) -> None:
            begin(child, *arguments)  # type: ignore[arg-type]
            children.append(child)

        monkeypatch.setattr(files.Child, "__init__", init)
        monkeypatch.setattr(peers, "Files", lambda *a, **k: made.append(files.Files(*a, **k)) or made[-1])
        records(peers_of(Path(fake.command[1]), variant("torch"), variant("absent", does="refuse"), variant(OURS)))
        assert len(children) == 4
        assert all(child._process.poll() is not None for child in children)
        assert not made[0].folder.exists()


class TestSuites:
    def test_what_is_measured_unless_told_otherwise(self) -> None:
        networks, linear = (suite.load(str(PEERS / f"{name}.toml")) for name in ("networks", "linear"))
        assert (networks.name, linear.name) == ("peers-networks", "peers-linear")
        quick = Selection(quick=True)
        assert [str(case) for case in networks.cases(quick)] == [
            f"network/vgg16-d float32 forward random-{percent}" for percent in (80, 90, 95)
        ]
        assert [str(case) for case in linear.cases(quick)] == [
            f"linear/1024x1024 float32 {pass_} random-{percent}"
            for pass_ in ("forward", "forward+backward")
            for percent in (80, 90, 95)
        ]
        assert {case.batch for case in networks.cases(Selection())} == {16, 64}
        assert {case.batch for case in linear.cases(Selection())} == {1024}

    def test_selection(self) -> None:
        networks = suite.load(str(PEERS / "networks.toml"))
        selection = Selection(
            cases=("wrn-28-2", "vgg16-d"), batches=(1, 8), sparsities=(97.5,), masks=("clustered",), seconds=3.0
        )
        assert [str(case) for case in networks.cases(selection)] == [
            f"network/{name}@{batch} float32 forward clustered-97.5"
            for name in ("vgg16-d", "wrn-28-2")
            for batch in (1, 8)
        ]
        assert networks.effort(selection) == Effort(seconds=3.0, sample=peers.SAMPLE)

    def test_the_job_of_a_case(self) -> None:
        case = pruned_case("linear/512x256", 8, 97.5, "forward+backward", "clustered").with_batch(4)
        assert files.job_of(case, 3) == {
            "kind": "linear",
            "name": "512x256",
            "shape": (512, 256),
            "batch": 4,
            "sparsity": 0.975,
            "pruning": "clustered",
            "seed": 0,
            "pass": "forward+backward",
            "threads": 3,
        }

    def test_variants_are_those_of_the_table_that_have_such_cases(self) -> None:
        for case in (pruned_case("network/vgg16-d", 1, 90.0), pruned_case("linear/4x4", 1, 90.0)):
            kind = case.name.partition("/")[0]
            names = [f"{v.name}:random-90" for p in peers.PEERS.values() for v in p.variants if kind in v.cases]
            assert [one.name for one in peers.variants(case, Selection())] == names


def run(*arguments: str | Path) -> Result:
    return CliRunner(env={"COLUMNS": "400"}).invoke(app, ["bench", *map(str, arguments)])


SUITE = """
import dataclasses, os, sys
sys.path.insert(0, {peers!r})
import peers
from environments import EXPORT, Peer, Variant
from pathlib import Path
from sparsekernels.bench.external.process import Launch

PROGRAM = Path({program!r})

def peer(name, **options):
    return Peer(name, PROGRAM, "", "", (Variant(name, ("network",), options=options),))

PEERS = {{
    "torch": peer("torch", seconds=0.02),
    "wrong": peer("wrong", error=1.0),
    "ours": peer("ours", seconds=0.01),
    EXPORT: Peer(EXPORT, PROGRAM, "", "", ()),
}}

def launch(peer, threads):
    return Launch((sys.executable, str(PROGRAM)), dict(os.environ))

def variants(case, selection):
    return peers.made_of(PEERS, case, selection, launch)

SUITE = dataclasses.replace(peers.SUITE, variants=variants, layout=peers.layout(PEERS))
"""


class TestCommand:
    @pytest.mark.parametrize(
        ("file", "line", "texts"),
        [
            ("networks", "--network vgg99", ("expected network to be 'vgg16-d', ", ", got 'vgg99'")),
            (
                "linear",
                "--network vgg16-d",
                ("expected a suite of networks with --network, such as 'networks', got ", "linear.toml'"),
            ),
            ("networks", "--sparsity 80 --sparsity 100", ("expected sparsity from 0 to below 100 percent, got 100",)),
            ("networks", "--batch 0", ("Invalid value for '--batch'",)),
            ("networks", "--threads 4096", ("expected threads from 1 to ", ", got 4096")),
            ("networks", "--seconds -1", ("expected seconds above 0 and finite, got -1",)),
            ("networks", "--mask lucky", ("expected mask to be 'random', ", ", got 'lucky'")),
            ("linear", "--case 1024", ("no case of suite ", "it has linear/1024x1024, ")),
            (
                "networks",
                "--device cuda",
                ("no case of suite " if torch.cuda.is_available() else "torch finds no CUDA device here",),
            ),
        ],
    )
    def test_mistakes(self, file: str, line: str, texts: tuple[str, ...]) -> None:
        result = run(PEERS / f"{file}.toml", *line.split())
        assert result.exit_code == 2
        said = " ".join(result.output.split())
        assert all(text in said for text in texts)

    def test_list(self) -> None:
        result = run(PEERS / "networks.toml", PEERS / "linear.toml", "--list")
        assert result.exit_code == 0
        lines = result.output.splitlines()
        assert "peers-networks: other engines beside ours" in lines
        assert "  forward+backward: linear/1024x1024, " in result.output
        for kind, place in (("network", 0), ("linear", 1)):
            names = [v.name for p in environments.read_peers().values() for v in p.variants if kind in v.cases]
            listed = [line for line in lines if line.startswith("    variants: ")]
            assert listed[place] == f"    variants: {', '.join(names)}"

    @pytest.fixture
    def file(self, tmp_path: Path, fake: Launch) -> Path:
        """A suite of the fake engine, which the runner runs in a process of its own as any other."""
        text = SUITE.format(peers=str(PEERS), program=fake.command[1])
        module = f"suite_{tmp_path.name}.py"  # a name that no other test has imported
        (tmp_path / module).write_text(text, encoding="utf-8")
        path = tmp_path / "fake.toml"
        path.write_text((PEERS / "networks.toml").read_text().replace("peers.py", module))
        return path

    def test_from_end_to_end(self, file: Path, tmp_path: Path) -> None:
        line = "--network vgg16-d --batch 8 --sparsity 80 --sparsity 90 --seconds 0.001 --threads 1"
        result = run(file, *line.split(), "--json", tmp_path / "r" / "r.jsonl", "--markdown", tmp_path / "m" / "r.md")
        assert result.exit_code == 1
        assert "network/vgg16-d@8 float32 forward random-80: torch" in result.stderr
        assert "peers-networks, forward (cpu, 1 thread)" in result.output
        assert "network/vgg16-d@8 float32 forward, wrong:random-90: wrong, the largest error is 1 " in result.output
        records = record.read(tmp_path / "r" / "r.jsonl")
        assert [one.variant for one in records[:3]] == ["torch:random-80", "wrong:random-80", "ours:random-80"]
        assert json.loads(records[0].to_json())["suite"] == "peers-networks"
        assert {one.threads for one in records} == {1}
        lines = (tmp_path / "m" / "r.md").read_text().splitlines()
        header = lines.index("| case | dtype | torch | wrong | ours |")
        rows = [line.strip("| ").split(" | ") for line in lines[header + 2 : header + 4]]
        assert [row[0] for row in rows] == [f"network/vgg16-d@8 (random-{percent})" for percent in (80, 90)]
        for (_, _, dense, wrong, ours), one in zip(rows, records[::3], strict=True):
            assert one.details["over_ours"] > 1.2
            assert dense.endswith(f" ms ({one.details['over_ours']:.2f})")
            assert wrong == "wrong"
            assert ours.endswith(" ms")
        compared = CliRunner().invoke(app, ["compare", *[str(tmp_path / "r" / "r.jsonl")] * 2, "--strict"])
        assert compared.exit_code == 0
        assert "4 same, 2 wrong" in compared.output

    def test_only_the_chosen_peers(self, file: Path, tmp_path: Path) -> None:
        line = "--network vgg16-d --sparsity 90 --seconds 0.001 --threads 1 --variant t* --variant ours --variant tvm"
        result = run(file, *line.split(), "--json", tmp_path / "r.jsonl")
        assert result.exit_code == 0
        assert [one.kind for one in record.read(tmp_path / "r.jsonl")] == ["torch", "ours"]
        assert "peers-networks: no case has a variant 'tvm'" in result.output
