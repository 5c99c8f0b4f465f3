# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""A killed experiment goes on with the same bits; files are there as a whole or not at all."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from small_networks import network, trainer

from sparsekernels.training import (
    Lottery,
    Supermask,
    Ticket,
    bits,
    load_checkpoint,
    one_shot_supermask,
    save_checkpoint,
    storage,
)

HERE = Path(__file__).parent


class Killed(BaseException):
    pass


def experiment(folder: Path, train: Any = None, **options: Any) -> list[Ticket]:
    options = {"rounds": 3, "rewind_step": 2, **options}
    lottery = Lottery(network, train or trainer(5), folder=folder, **options)
    return [*lottery, lottery.one_shot(2), lottery.control("reinit", 2), lottery.control("random mask", 3)]


def tensors_of(ticket: Ticket) -> dict[str, Any]:
    states = {"masks": ticket.masks, "start": ticket.start, "final": ticket.final}
    return {f"{kind}/{name}": one for kind, state in states.items() for name, one in state.items()}


def check_same(first: list[Ticket], second: list[Ticket]) -> None:
    for one, other in zip(first, second, strict=True):
        assert (one.name, one.round, one.result) == (other.name, other.round, other.result)
        assert tensors_of(one).keys() == tensors_of(other).keys()
        assert all(torch.equal(value, tensors_of(other)[name]) for name, value in tensors_of(one).items())


def test_a_run_that_is_killed_in_any_training_goes_on(tmp_path: Path) -> None:
    whole = experiment(tmp_path / "whole")
    in_memory = experiment(None)  # type: ignore[arg-type]
    check_same(whole, in_memory)
    for kill_at in range(7):
        trainings = 0

        def train(model: Any, masks: Any, start_step: int, kill_at: int = kill_at) -> Any:
            nonlocal trainings
            trainings += 1
            if trainings == kill_at + 1:
                trainer(4)(model, masks, start_step)
                raise Killed
            return trainer(5)(model, masks, start_step)

        folder = tmp_path / str(kill_at)
        with pytest.raises(Killed):
            experiment(folder, train)
        torch.manual_seed(kill_at)  # the state of the process that goes on is another one
        check_same(whole, experiment(folder))


def test_finished_trainings_are_not_trained_again(tmp_path: Path) -> None:
    whole = experiment(tmp_path)

    def train(*given: Any) -> None:
        raise AssertionError

    check_same(whole, experiment(tmp_path, train))
    more = experiment(tmp_path, rounds=4)
    check_same(whole[:4], more[:4])
    assert more[4].round == 4


def test_a_process_that_is_killed_while_it_writes(tmp_path: Path) -> None:
    """By a signal that nothing can catch, before the file is in its place."""
    whole = experiment(tmp_path / "whole")
    child = textwrap.dedent("""
        import os, signal, sys
        from pathlib import Path
        sys.path.insert(0, sys.argv[1])
        from test_resuming import experiment

        folder, fsync, calls = Path(sys.argv[2]), os.fsync, 0

        def killing(file):
            global calls
            calls += 1
            if calls == int(sys.argv[3]):
                os.kill(os.getpid(), signal.SIGKILL)
            fsync(file)

        os.fsync = killing
        experiment(folder)
    """)
    folder = tmp_path / "killed"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", child, str(HERE), str(folder), "7"]  # a file and its folder are two calls
    ended = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert ended.returncode == -9, ended.stderr
    assert {one.name for one in folder.glob("*.pt")} == {"experiment.pt", "rewind.pt", "round-00.pt"}
    assert list(folder.glob(".*.tmp"))  # of the write that did not end; it is never read
    check_same(whole, experiment(folder))


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "one.pt"
    storage.save_atomically({"kind": "test", "value": 1}, path)
    save = torch.save

    def half(value: Any, file: Any) -> None:
        save(value, file)
        file.truncate(50)
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="no space left"):
        storage.save_atomically({"kind": "test", "value": 2}, path)
    assert storage.load("test", path, "test")["value"] == 1
    assert [one.name for one in tmp_path.iterdir()] == ["one.pt"]


@pytest.mark.skipif(os.name != "posix", reason="files have other permissions there")
def test_files_can_be_read_by_whom_the_umask_lets(tmp_path: Path) -> None:
    (tmp_path / "ordinary").touch()
    storage.save_atomically({}, tmp_path / "ours")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_another_experiment_needs_another_folder(tmp_path: Path) -> None:
    experiment(tmp_path, rounds=2 + 1)
    for options, match in (
        ({"rate": 0.3}, r"expected rates \{'0.weight': '0.2', .*, got \{'0.weight': '0.3'"),
        ({"seed": 1}, "expected seed 0, as in .*, got 1; another experiment needs another folder"),
        ({"criterion": "movement"}, "expected criterion 'large_final', as in .*, got 'movement'"),
        ({"rewind_step": 0}, "expected rewind_step 2, as in .*, got 0"),
        ({"pruned": "freeze"}, "expected pruned 'zero'"),
        ({"scope": "global"}, "expected rates"),
        ({"ignore": ["2"]}, "expected rates"),
    ):
        with pytest.raises(ValueError, match=match):
            experiment(tmp_path, **options)

    def wider() -> torch.nn.Module:
        return torch.nn.Sequential(network(), torch.nn.Linear(4, 4, bias=False))[0]

    def other() -> torch.nn.Module:
        torch.rand(1)
        return network()

    Lottery(wider, trainer(), folder=tmp_path, rounds=3, rewind_step=2)
    with pytest.raises(ValueError, match=r"expected initial weights \(SHA-256\)"):
        Lottery(other, trainer(), folder=tmp_path, rounds=3, rewind_step=2)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    experiment(tmp_path)
    path = tmp_path / "round-02.pt"
    content = path.read_bytes()
    for damaged in (b"", content[: len(content) // 2], b"x" * 100):
        path.write_bytes(damaged)
        with pytest.raises(
            ValueError, match=r"expected .*round-02.pt to be a file of ours, got one that cannot be read"
        ):
            Lottery(network, trainer(5), folder=tmp_path, rounds=3, rewind_step=2).round(2)
    storage.save_atomically({"kind": "state"}, path)
    with pytest.raises(ValueError, match=r"expected .*round-02.pt to hold a ticket, got something else"):
        Lottery(network, trainer(5), folder=tmp_path, rounds=3, rewind_step=2).round(2)
    path.unlink()
    whole = experiment(tmp_path / "whole")
    check_same(whole, experiment(tmp_path))  # what is missing is trained again
    (tmp_path / "rewind.pt").unlink()
    path.unlink()
    with pytest.raises(ValueError, match="expected rewind.pt in the folder"):
        experiment(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="expected folder to be a folder, got the file"):
        experiment(tmp_path / "file")


@pytest.mark.parametrize("kind", ["round-01", "rewind", "experiment", "supermask", "checkpoint"])
def test_any_flipped_bit_is_found(kind: str, tmp_path: Path) -> None:
    """Wherever it is: in weights, masks, names, or in the check sum itself."""

    def train(model: Any, masks: Any, start_step: int) -> None:
        trainer(2)(model, masks, start_step)

    def experiment() -> Ticket:
        ticket = Lottery(network, train, rounds=1, rewind_step=1, folder=tmp_path).round(1)
        if kind == "rewind":
            Lottery(network, train, rounds=1, rewind_step=1, folder=tmp_path).control("random mask", 1)
        return ticket

    ticket, path = experiment(), tmp_path / f"{kind}.pt"
    if kind == "supermask":
        one_shot_supermask(network, ticket.final, 0.3, criterion="large_final").save(path)
    if kind == "checkpoint":
        save_checkpoint(path, weights=ticket.final)
    reads: Any = {"supermask": Supermask.load, "checkpoint": load_checkpoint}.get(kind, lambda path: experiment())
    reads(path)
    whole, draws = path.read_bytes(), random.Random(0)
    for place in [*(draws.randrange(len(whole)) for _ in range(40)), *(len(whole) - back for back in (1, 80, 90))]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << draws.randrange(8)
        path.write_bytes(damaged)
        (tmp_path / "random-mask-01-0.pt").unlink(missing_ok=True)
        with pytest.raises(ValueError, match=f"expected .*{kind}.pt to be a file of ours, got one that cannot be read"):
            reads(path)


def test_torch_and_zip_read_our_files(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "run.pt", weights=torch.arange(10))
    assert torch.load(tmp_path / "run.pt", weights_only=True)["parts"]["weights"].tolist() == list(range(10))
    assert zipfile.ZipFile(tmp_path / "run.pt").comment.startswith(b"sparsekernels SHA-256 ")


def test_files_are_those_of_the_experiment_and_of_their_names(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    whole = experiment(one, rounds=3)
    experiment(other, rounds=3, seed=1)
    options: dict[str, Any] = {"rounds": 3, "rewind_step": 2, "folder": one}
    (one / "round-01.pt").write_bytes((one / "round-02.pt").read_bytes())
    with pytest.raises(ValueError, match="round-01.pt to be of this experiment, got name 'round-02' for 'round-01'"):
        Lottery(network, trainer(5), **options).round(1)
    asked: dict[str, Any] = {
        "round-00": lambda lottery: lottery.round(0),
        "rewind": lambda lottery: lottery.round(1),
        "reinit-02-0": lambda lottery: lottery.control("reinit", 2),
        "one-shot-02-large_final-rewind-zero": lambda lottery: lottery.one_shot(2),
    }
    for name, ask in asked.items():
        mine = (one / f"{name}.pt").read_bytes()
        (one / f"{name}.pt").write_bytes((other / f"{name}.pt").read_bytes())
        (one / "round-01.pt").unlink(missing_ok=True)
        with pytest.raises(ValueError, match=f"{name}.pt to be of this experiment, got settings '.*' for '.*'"):
            ask(Lottery(network, trainer(5), **options))
        (one / f"{name}.pt").write_bytes(mine)
    content = storage.read("test", one / "round-03.pt")
    for change, match in (
        ({"round": 2}, r"expected round-03 of round 3 with \{'0.weight': "),
        (
            {"masks": {name: bits.packed(~mask) for name, mask in whole[3].masks.items()}},
            "expected round-03 of round 3",
        ),
    ):
        storage.save_atomically({**content, **change}, one / "round-03.pt")
        with pytest.raises(ValueError, match=match):
            Lottery(network, trainer(5), **options).round(3)
    del content["start"]
    storage.save_atomically(content, one / "round-03.pt")
    with pytest.raises(ValueError, match=r"round-03.pt to hold a ticket with 'start', got one without"):
        Lottery(network, trainer(5), **options).round(3)
    for name in ("round-03", "one-shot-02-large_final-rewind-zero", "reinit-02-0"):
        folder = tmp_path / f"only {name}"
        folder.mkdir()
        (folder / f"{name}.pt").write_bytes((one / f"{name}.pt").read_bytes())
        with pytest.raises(ValueError, match=f"expected experiment.pt in .*, got none and {name}.pt of another one"):
            Lottery(network, trainer(5), **{**options, "folder": folder, "seed": 1})
        assert [one.name for one in folder.iterdir()] == [f"{name}.pt"]
        Lottery(network, trainer(5), **{**options, "folder": folder})  # its own
        assert {one.name for one in folder.iterdir()} == {f"{name}.pt", "experiment.pt"}


def test_what_is_done_to_a_ticket_stays_with_it() -> None:
    """Also where trainings are in memory, and a model takes over the tensors themselves."""
    lottery, other = (Lottery(network, trainer(3), rounds=2) for _ in range(2))
    for found in (lottery.round(0), lottery.round(0), lottery.round(1)):
        model = network()
        model.load_state_dict(found.final, assign=True)
        with torch.no_grad():
            for one in (*model.parameters(), *found.masks.values(), *found.start.values()):
                one.zero_()
        found.result["accuracy"] = 2.0
    check_same([lottery.round(0), lottery.round(1), lottery.round(2)], list(other))


def test_results_are_saved_as_plain_values(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    given = {"loss": numpy.float32(0.5), "steps": numpy.int64(3), "curve": [(1, torch.ones(2))], "note": "x", 3: None}
    given |= {"good": numpy.bool_(True), "errors": numpy.arange(6, dtype=">f4").reshape(2, 3)[:, ::-1]}

    def train(model: Any, masks: Any, start_step: int) -> Any:
        trainer(1)(model, masks, start_step)
        return given

    Lottery(network, train, folder=tmp_path).round(0)
    result = Lottery(network, train, folder=tmp_path).round(0).result
    assert torch.equal(result["curve"][0][1], torch.ones(2))
    assert result.pop("errors").tolist() == [[2, 1, 0], [5, 4, 3]]
    assert {**result, "curve": None} == {"loss": 0.5, "steps": 3, "curve": None, "note": "x", 3: None, "good": True}
    assert result["good"] is True
    assert type(result["loss"]) is float


@pytest.mark.parametrize("shape", [(), (0,), (1,), (8,), (3, 3), (5, 7, 2, 3)])
def test_masks_as_bits(shape: tuple[int, ...]) -> None:
    for seed in range(5):
        mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5
        packed = bits.packed(mask)
        assert packed.numel() == -(-mask.numel() // 8)
        assert torch.equal(storage.unpack("test", packed, shape), mask)
    with pytest.raises(ValueError, match="test: expected .* bytes for a mask"):
        storage.unpack("test", torch.zeros(mask.numel() // 8 + 2, dtype=torch.uint8), shape)
    if mask.numel() % 8:
        with pytest.raises(ValueError, match="test: expected no bits behind a mask"):
            storage.unpack("test", packed | 128, shape)
