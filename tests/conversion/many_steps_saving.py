# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Steps of many_steps.Session that save and load."""

from __future__ import annotations

import copy
import io
import pickle
import random
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import torch
from many_steps import Answer, Session, on_both, step
from many_steps_nets import Net, inputs
from many_steps_table import layers_of
from torch import Tensor
from twins import Pass, Wrong


@step
def state_dict(session: Session, draw: random.Random) -> None:
    """Kept for later; saving changes nothing."""
    mine, theirs = session.model.state_dict(), session.twin.state_dict()
    if list(mine) != list(theirs):
        raise Wrong(f"the state dict has {list(mine)}, expected {list(theirs)}")
    for name, values in mine.items():
        if values.dtype != theirs[name].dtype or not torch.equal(values.nan_to_num(), theirs[name].nan_to_num()):
            raise Wrong(f"{name} of the state dict is another")
    session.saved.append({name: values.clone() for name, values in mine.items()})


@step
def load_state_dict(session: Session, draw: random.Random) -> None:
    if not session.saved:
        return
    saved, assign = draw.choice(session.saved), draw.random() < 0.3
    fits = {name: (values.shape, values.dtype) for name, values in session.twin.state_dict().items()}
    if fits != {
        name: (values.shape, values.dtype if assign else fits.get(name, (0, 0))[1]) for name, values in saved.items()
    }:
        return
    for model in (session.model, session.twin):
        model.load_state_dict(copy.deepcopy(saved), assign=assign)
    if assign:
        session.others()


@on_both
def load_other_zeros(model: Net, draw: random.Random) -> None:
    state = {name: values.clone() for name, values in model.state_dict().items()}
    for layer, name in ((module, name) for name, module in model.named_modules() if module in layers_of(model)):
        if name + ".weight" in state:
            generator = torch.Generator().manual_seed(draw.randint(0, 1 << 30))
            values = torch.randn(layer.weight.shape, generator=generator)
            kept = torch.rand(layer.weight.shape, generator=generator) < 0.2
            state[name + ".weight"] = (0.5 * values * kept).to(layer.weight.dtype)
    model.load_state_dict(state)


@step
def save_and_load(session: Session, draw: random.Random) -> None:
    """The whole model, which goes on as what was loaded."""
    file = io.BytesIO()
    if draw.random() < 0.5:
        torch.save(session.model, file)
        session.model = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    else:
        session.model = pickle.loads(pickle.dumps(session.model))
    session.others()


@step
def load_into_a_fresh_one(session: Session, draw: random.Random) -> None:
    """The state of the model, in a dense model of its own."""
    fresh = copy.deepcopy(session.twin)
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.zero_()
    file = io.BytesIO()
    torch.save(session.model.state_dict(), file)
    fresh.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    session.compare(fresh, Pass(False, False), inputs(session.twin, draw, session.dtype), "a fresh model")


_others: list[ProcessPoolExecutor] = []


def in_another_process(model: bytes, x: Tensor) -> list[Any]:
    """The results of two calls there; of arrays, which need no shared memory."""
    torch.set_num_threads(1)
    loaded = pickle.loads(model).eval()
    with torch.no_grad():
        return [loaded(x.clone()).double().numpy() for _ in range(2)]


def stop_the_other_process() -> None:
    while _others:
        _others.pop().shutdown()


@step
def another_process(session: Session, draw: random.Random) -> None:
    if draw.random() < 0.8:
        return
    if not _others:
        _others.append(ProcessPoolExecutor(1, get_context("spawn")))
    x = inputs(session.twin, draw, session.dtype)
    found = _others[0].submit(in_another_process, pickle.dumps(session.model), x).result()
    answer = Answer(torch.from_numpy(found[1]).to(session.dtype))
    session.compare(answer, Pass(False, False), x, "in another process", only_outputs=True)
