# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""An optimizer with the state of used weights alone does what it does with all of it, in a share of the memory."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from training_nets import assert_masked, batches, network, perceptron, sgd, train

from sparsekernels.testing import prefer
from sparsekernels.training import Sparsifier, load_checkpoint, save_checkpoint

OPTIMIZERS = {
    "SGD": lambda model: sgd(model),
    "SGD without foreach": lambda model: sgd(model, foreach=False),
    "Adam": lambda model: torch.optim.Adam(model.parameters(), lr=1e-3, amsgrad=True, weight_decay=1e-2),
    "AdamW": lambda model: torch.optim.AdamW(model.parameters(), lr=1e-3),
    "RMSprop": lambda model: torch.optim.RMSprop(model.parameters(), lr=1e-3, momentum=0.9, centered=True),
    "Adagrad": lambda model: torch.optim.Adagrad(model.parameters(), lr=1e-2),
}


def compact_run(optimizer: str, algorithm: str, compact: bool, **options: Any) -> dict[str, Any]:
    model = network().to(memory_format=torch.channels_last)
    of = OPTIMIZERS[optimizer](model)
    sparsifier = Sparsifier(
        model,
        of,
        0.1,
        algorithm=algorithm,
        update_every=3,
        last_update=9,
        compact_state=compact,
        **{"kernels": False, "progress": False} | options,
    )
    return {"model": model, "optimizer": of, "sparsifier": sparsifier}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("algorithm", ["SET", "RigL", "gradual magnitude", "SRigL", "static"])
def test_the_same_bits_as_with_all_of_it(optimizer: str, algorithm: str) -> None:
    runs = []
    for compact in (False, True):
        run = compact_run(optimizer, algorithm, compact)
        data = batches(run["model"])
        for _ in range(12):
            train(run["model"], run["optimizer"], 1, data)
            assert_masked(run["model"], run["sparsifier"])
        runs.append(run)
    whole, compact_one = runs
    for name, value in whole["model"].state_dict().items():
        assert torch.equal(value, compact_one["model"].state_dict()[name]), name
    for name, mask in whole["sparsifier"].masks.items():
        assert torch.equal(mask, compact_one["sparsifier"].masks[name])
        weight = dict(compact_one["model"].named_parameters())[name]
        mine = compact_one["optimizer"].state[weight]
        theirs = whole["optimizer"].state[dict(whole["model"].named_parameters())[name]]
        assert mine.keys() == theirs.keys()
        for key, state in mine.items():
            if isinstance(state, torch.Tensor) and state.dim():
                assert state.shape == (int(mask.sum()),)
                assert torch.equal(state, theirs[key].flatten()[mask.flatten()])


def test_fused_optimizers_round_by_place() -> None:
    """torch's fused Adam on a CPU multiplies and adds at once in whole vectors, and not in the rest."""
    model = perceptron()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    sparsifier = Sparsifier(model, optimizer, 0.2, algorithm="static", compact_state=True, kernels=False)
    other = perceptron()
    theirs = torch.optim.AdamW(other.parameters(), lr=1e-3, fused=True)
    Sparsifier(other, theirs, 0.2, algorithm="static", kernels=False)
    train(model, optimizer, 4, batches(model))
    train(other, theirs, 4, batches(other))
    assert_masked(model, sparsifier)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name], rtol=1e-5, atol=1e-7)


def test_a_share_of_the_memory() -> None:
    model = nn.Sequential(nn.Linear(256, 512, bias=False), nn.Linear(512, 256, bias=False))
    optimizer = torch.optim.Adam(model.parameters())
    Sparsifier(model, optimizer, 0.05, algorithm="SET", compact_state=True, kernels=False)
    model(torch.randn(4, 256)).sum().backward()
    optimizer.step()
    state = optimizer.state_dict()["state"]
    elements = sum(value.numel() for one in state.values() for value in one.values() if value.dim())
    assert elements <= 0.06 * 2 * sum(p.numel() for p in model.parameters())


def test_redistribution_by_momentum_reads_it() -> None:
    """Growth is at random: no gradient of missing weights is needed."""
    counts = []
    for compact in (False, True):
        run = compact_run("SGD", "SET", compact, redistribution="momentum")
        train(run["model"], run["optimizer"], 10, batches(run["model"]))
        counts.append(run["sparsifier"].nonzeros)
    assert counts[0] == counts[1]
    assert sum(counts[0].values()) == round(0.1 * sum(mask.numel() for mask in run["sparsifier"].masks.values()))
    assert len(set(counts[0].values())) > 1


def test_a_state_from_before_is_taken_over_and_given_back() -> None:
    model = perceptron()
    optimizer = sgd(model)
    data = batches(model)
    train(model, optimizer, 3, data)
    momentum = optimizer.state[model[0].weight]["momentum_buffer"].clone()
    sparsifier = Sparsifier(model, optimizer, 0.2, algorithm="static", compact_state=True, kernels=False)
    mask = sparsifier.masks["0.weight"]
    assert torch.equal(optimizer.state[model[0].weight]["momentum_buffer"], momentum[mask])
    sparsifier.remove()
    assert torch.equal(optimizer.state[model[0].weight]["momentum_buffer"], momentum * mask)
    train(model, optimizer, 1, data)


@pytest.mark.parametrize("kernels", [False, True])
def test_checkpoints(kernels: bool, tmp_path: Path) -> None:
    whole = compact_run("Adam", "SET", True, kernels=kernels)
    data = batches(whole["model"])
    with prefer("fine-grained", "graph", "layers"):
        train(whole["model"], whole["optimizer"], 4, data)
    save_checkpoint(tmp_path / "run.pt", **whole)
    resumed = compact_run("Adam", "SET", True, kernels=kernels)
    load_checkpoint(tmp_path / "run.pt", **resumed)
    again = batches(whole["model"])
    for _ in range(4):
        next(again)
    train(whole["model"], whole["optimizer"], 5, data)
    train(resumed["model"], resumed["optimizer"], 5, again)
    for name, value in whole["model"].state_dict().items():
        assert torch.equal(value, resumed["model"].state_dict()[name]), name


def test_what_happens_to_gradients_in_between() -> None:
    """They are clipped and scaled as ever."""
    results = []
    for compact in (False, True):
        run = compact_run("SGD", "static", compact)
        scaler, data = torch.amp.GradScaler("cpu", init_scale=8.0), batches(run["model"])
        for _ in range(3):
            inputs, labels = next(data)
            run["optimizer"].zero_grad()
            scaler.scale(F.cross_entropy(run["model"](inputs), labels)).backward()
            scaler.unscale_(run["optimizer"])
            nn.utils.clip_grad_norm_(run["model"].parameters(), 0.1)
            scaler.step(run["optimizer"])
            scaler.update()
        results.append(run["model"].state_dict())
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())


def test_a_step_that_raises_leaves_the_weights_in_the_optimizer() -> None:
    run = compact_run("SGD", "SET", True)
    model, optimizer = run["model"], run["optimizer"]
    data = batches(model)
    train(model, optimizer, 2, data)
    before = copy.deepcopy(model.state_dict())
    optimizer.param_groups[0]["lr"] = "fast"
    with pytest.raises(TypeError):
        train(model, optimizer, 1, data)
    optimizer.param_groups[0]["lr"] = 0.05
    train(model, optimizer, 1, data)
    own = {id(p) for p in model.parameters()}
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == own
    assert not all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())


def test_what_cannot_be_compact() -> None:
    model = perceptron()
    with pytest.raises(ValueError, match="expected no compact_state with growth by momentum"):
        Sparsifier(model, sgd(model), 0.2, compact_state=True)
    matrices = [one.weight for one in (model[0], model[2])]
    with pytest.raises(ValueError, match="treats each element by itself for compact_state.* got Muon"):
        Sparsifier(model, torch.optim.Muon(matrices), 0.2, algorithm="SET", compact_state=True)


def test_states_that_were_saved_otherwise() -> None:
    """All of it becomes that of used weights; the other way is refused, since torch might broadcast."""
    whole, compact = compact_run("Adam", "SET", False), compact_run("Adam", "SET", True)
    for run in (whole, compact):
        train(run["model"], run["optimizer"], 2, batches(run["model"]))
    state = copy.deepcopy(compact["optimizer"].state_dict())
    compact["optimizer"].load_state_dict(whole["optimizer"].state_dict())
    train(compact["model"], compact["optimizer"], 1, batches(compact["model"]))
    whole["optimizer"].load_state_dict(state)
    before = copy.deepcopy(whole["model"].state_dict())
    with pytest.raises(RuntimeError, match="it was saved with compact_state=True"):
        train(whole["model"], whole["optimizer"], 1, batches(whole["model"]))
    parameters = dict(whole["model"].named_parameters())
    assert all(torch.equal(before[name], value) for name, value in parameters.items())
    for one in state["state"].values():
        one["exp_avg"] = torch.zeros(3)
    compact["optimizer"].load_state_dict(state)
    with pytest.raises(RuntimeError, match="compact_state: expected exp_avg of the .* used elements of '0.weight'"):
        train(compact["model"], compact["optimizer"], 1, batches(compact["model"]))
