# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""A resumed run has the same bits, a killed one finds its last checkpoint, and another architecture's is refused."""

from __future__ import annotations

import copy
import os
import random
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from training_nets import ALGORITHMS, batches, network, perceptron, sgd, train

from sparsekernels.testing import prefer
from sparsekernels.training import CosineDecay, Masking, Sparsifier, load_checkpoint, save_checkpoint
from sparsekernels.training.bits import packed, unpacked
from sparsekernels.training.storage import save_atomically


def parts(algorithm: str, kernels: bool = False, **options: Any) -> dict[str, Any]:
    model = network()
    optimizer = sgd(model)
    sparsifier = Sparsifier(
        model,
        optimizer,
        0.2,
        algorithm=algorithm,
        prune_rate=CosineDecay(0.5, 20),
        update_every=3,
        last_update=15,
        kernels=kernels,
        progress=False,
        **options,
    )
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    return {"model": model, "optimizer": optimizer, "sparsifier": sparsifier, "scheduler": scheduler}


def steps(of: dict[str, Any], data: Any, count: int) -> None:
    for _ in range(count):
        inputs, labels = next(data)
        inputs = F.dropout(inputs, 0.1)  # torch's generator counts as well
        of["optimizer"].zero_grad()
        F.cross_entropy(of["model"](inputs), labels).backward()
        of["optimizer"].step()
        of["scheduler"].step()


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    for name, value in one["model"].state_dict().items():
        assert torch.equal(value, other["model"].state_dict()[name]), name
    masks = other["sparsifier"].masks
    assert all(torch.equal(mask, masks[name]) for name, mask in one["sparsifier"].masks.items())
    first, second = one["optimizer"].state_dict()["state"], other["optimizer"].state_dict()["state"]
    for key, state in first.items():
        assert all(torch.equal(value, second[key][name]) for name, value in state.items() if value is not None)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("order", [0, 1])
def test_a_resumed_run_has_the_same_bits(algorithm: str, order: int, tmp_path: Path) -> None:
    torch.manual_seed(3)
    whole, data = parts(algorithm), batches(network())
    steps(whole, data, 7)
    save_checkpoint(tmp_path / "run.pt", **whole, step=7)
    steps(whole, data, 7)
    torch.manual_seed(99)
    resumed, again = parts(algorithm, seed=8), batches(network())
    for _ in range(7):
        next(again)
    named = dict(reversed(resumed.items())) if order else resumed
    assert load_checkpoint(tmp_path / "run.pt", **named) == {"step": 7}
    steps(resumed, again, 7)
    assert_same(whole, resumed)
    assert resumed["sparsifier"].steps == 14


@pytest.mark.parametrize("algorithm", ["sparse momentum", "RigL"])
def test_so_has_one_on_sparse_kernels(algorithm: str, tmp_path: Path) -> None:
    """Which round in their own way: the resumed run is to have the same ones, without a measurement."""
    torch.manual_seed(3)
    whole, data = parts(algorithm, kernels=True), batches(network())
    with prefer("fine-grained", "graph", "layers"):
        steps(whole, data, 7)
    assert "sparse kernels" in whole["sparsifier"].line
    save_checkpoint(tmp_path / "run.pt", **whole)
    steps(whole, data, 7)
    resumed, again = parts(algorithm, kernels=True), batches(network())
    for _ in range(7):
        next(again)
    load_checkpoint(tmp_path / "run.pt", **resumed)
    steps(resumed, again, 7)
    assert [type(one) for one in whole["model"]] == [type(one) for one in resumed["model"]]
    assert_same(whole, resumed)


def test_masking_resumes_too(tmp_path: Path) -> None:
    runs = []
    for stop in (False, True):
        model = perceptron()
        optimizer = sgd(model)
        mask = Masking(optimizer, CosineDecay(0.5, 20), growth_mode="random", prune_every_k_steps=2, kernels=False)
        mask.add_module(model, 0.2)
        data = batches(model)
        train(model, optimizer, 5, data)
        if stop:
            save_checkpoint(tmp_path / "run.pt", model=model, optimizer=optimizer, mask=mask)
            model = perceptron(seed=4)
            optimizer = sgd(model)
            mask = Masking(optimizer, CosineDecay(0.5, 20), growth_mode="random", prune_every_k_steps=2, kernels=False)
            mask.add_module(model, 0.2)
            load_checkpoint(tmp_path / "run.pt", model=model, optimizer=optimizer, mask=mask)
        train(model, optimizer, 5, data)
        runs.append(model.state_dict())
    assert all(torch.equal(value, runs[1][name]) for name, value in runs[0].items())


def test_random_numbers_go_on(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "run.pt", epoch=1)
    expected = torch.rand(2), random.random(), numpy.random.rand()
    load_checkpoint(tmp_path / "run.pt")
    assert (random.random(), numpy.random.rand()) == expected[1:]
    assert torch.equal(torch.rand(2), expected[0])


def test_whoever_is_killed_finds_a_whole_checkpoint(tmp_path: Path) -> None:
    """A process that writes one after the other is killed at many moments."""
    program = textwrap.dedent(
        """
        import sys, torch
        from sparsekernels.training import save_checkpoint
        count = 0
        while True:
            count += 1
            save_checkpoint(sys.argv[1], values=torch.full((200_000,), float(count)), count=count)
            print(count, flush=True)
        """
    )
    path = tmp_path / "run.pt"
    process = subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        for _ in range(20):
            process.stdout.readline()
            os.kill(process.pid, signal.SIGSTOP)
            found = load_checkpoint(path)
            assert found["values"].eq(found["count"]).all()
            os.kill(process.pid, signal.SIGCONT)
    finally:
        process.kill()
        process.wait()
    found = load_checkpoint(path)
    assert found["values"].eq(found["count"]).all()


def test_a_failed_write_leaves_the_last_one(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    save_checkpoint(path, count=1)
    with pytest.raises(TypeError, match="expected 'other' of tensors and plain values, got object in it"):
        save_checkpoint(path, count=2, other=[object()])
    assert load_checkpoint(path) == {"count": 1}
    with pytest.raises(FileNotFoundError):
        save_checkpoint(tmp_path / "no folder" / "run.pt", count=1)
    assert [one.name for one in tmp_path.iterdir()] == ["run.pt"]


class TestRefused:
    def test_files_that_are_no_checkpoint(self, tmp_path: Path) -> None:
        path = tmp_path / "run.pt"
        with pytest.raises(FileNotFoundError):
            load_checkpoint(path)
        path.write_bytes(b"not a checkpoint")
        with pytest.raises(ValueError, match="load_checkpoint: expected .*run.pt to be a file of ours"):
            load_checkpoint(path)
        torch.save({"weights": 1}, path)
        with pytest.raises(ValueError, match="run.pt to be a file of ours, .*: it has no check sum at its end"):
            load_checkpoint(path)
        save_atomically({"weights": 1}, path)
        with pytest.raises(ValueError, match="load_checkpoint: expected what save_checkpoint wrote"):
            load_checkpoint(path)
        save_checkpoint(path, values=torch.arange(1000))
        path.write_bytes(path.read_bytes()[:-900])
        with pytest.raises(ValueError, match="load_checkpoint: expected .*run.pt to be a file of ours"):
            load_checkpoint(path)

    def test_other_architectures(self, tmp_path: Path) -> None:
        """And nothing has changed, whatever part it is that does not fit."""
        of = parts("SET")
        save_checkpoint(tmp_path / "run.pt", **of)
        others: list[tuple[dict[str, Any], str]] = [
            ({**of, "model": perceptron()}, "'model' of the same architecture"),
            ({**of, "optimizer": torch.optim.SGD(perceptron().parameters())}, "'optimizer' of groups of"),
            ({**of, "extra": nn.Linear(1, 1)}, "expected a checkpoint with 'extra', got one with 'model'"),
            (
                {**of, "sparsifier": parts("RigL")["sparsifier"]},
                "expected a state of algorithm 'RigL', got one of 'SET'",
            ),
            ({**of, "sparsifier": 3}, "expected 'sparsifier' to have load_state_dict"),
        ]
        small = perceptron()
        others.append(
            (
                {**of, "sparsifier": Sparsifier(small, sgd(small), 0.2, algorithm="SET", kernels=False)},
                "one with no '2.weight'",
            )
        )
        for changed, message in others:
            before = copy.deepcopy(of["model"].state_dict()), torch.get_rng_state()
            with pytest.raises(ValueError, match=message):
                load_checkpoint(tmp_path / "run.pt", **changed)
            assert all(torch.equal(value, of["model"].state_dict()[name]) for name, value in before[0].items())
            assert torch.equal(torch.get_rng_state(), before[1])

    @pytest.mark.parametrize(
        "break_it",
        [
            lambda state: state.pop("masks", state.pop("weights")),
            lambda state: state.update(version=2),
            lambda state: state.update(steps=-1),
            lambda state: state.update(updates="3"),
            lambda state: state.update(generator=torch.zeros(3)),
            lambda state: state["weights"]["0.weight"].update(shape=[1, 2]),
            lambda state: state["weights"]["0.weight"].update(block=[2, 2]),
            lambda state: state["weights"]["0.weight"].update(wanted=10**6),
            lambda state: state["weights"]["0.weight"].update(mask=torch.zeros(3, dtype=torch.uint8)),
            lambda state: state["weights"]["0.weight"].update(mask=None),
            lambda state: state.update(kernels=[{"decided": {"layers": {}}}]),
            lambda state: state.update(kernels=3),
        ],
    )
    def test_states_that_are_corrupt(self, break_it: Any) -> None:
        model = perceptron()
        sparsifier = Sparsifier(model, sgd(model), 0.2, algorithm="SET")
        state = copy.deepcopy(sparsifier.state_dict())
        break_it(state)
        masks = sparsifier.masks
        with pytest.raises(ValueError, match="Sparsifier: expected"):
            sparsifier.load_state_dict(state)
        assert all(torch.equal(mask, sparsifier.masks[name]) for name, mask in masks.items())


@pytest.mark.parametrize("shape", [(0,), (1,), (7,), (8,), (3, 5), (2, 3, 3, 3)])
def test_masks_as_bits(shape: tuple[int, ...]) -> None:
    mask = torch.rand(shape) < 0.5
    bits = packed(mask)
    assert bits.numel() == -(-mask.numel() // 8)
    assert torch.equal(unpacked(bits, mask.shape), mask)
    assert bits.tolist() == numpy.packbits(mask.flatten().numpy(), bitorder="little").tolist()
