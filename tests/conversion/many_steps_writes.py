# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Steps of many_steps.Session that write past parameters, and copies that share or own them."""

from __future__ import annotations

import copy
import random

import torch
from many_steps import Session, on_both, step
from many_steps_nets import Net, inputs
from many_steps_table import OPTIMIZERS, factor, layers_of, some
from torch import Tensor, nn
from twins import Pass


def one_buffer(model: nn.Module, draw: random.Random) -> Tensor | None:
    found = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    return draw.choice(found) if found else None


@on_both
def average_by_data(model: Net, draw: random.Random) -> None:
    for parameter in some(model, draw):
        parameter.data.copy_(factor(draw) * parameter.data)


@on_both
def write_by_data(model: Net, draw: random.Random) -> None:
    for parameter in some(model, draw):
        parameter.data.mul_(factor(draw))


@on_both
def assign_data_twice(model: Net, draw: random.Random) -> None:
    for parameter in some(model, draw):
        first = parameter.data
        parameter.data = torch.zeros_like(parameter.data)
        parameter.data = first.mul_(factor(draw))


@on_both
def assign_data(model: Net, draw: random.Random) -> None:
    for parameter in some(model, draw):
        parameter.data = parameter.data * factor(draw)


@on_both
def write_by_numpy(model: Net, draw: random.Random) -> None:
    for parameter in some(model, draw):
        if parameter.dtype is not torch.bfloat16:
            parameter.detach().numpy()[...] *= factor(draw)


@on_both
def write_by_dlpack(model: Net, draw: random.Random) -> None:
    for parameter in some(model, draw):
        torch.from_dlpack(parameter.detach()).mul_(factor(draw))


@on_both
def write_a_buffer(model: Net, draw: random.Random) -> None:
    buffer = one_buffer(model, draw)
    if buffer is not None:
        how = draw.choice(["in place", "data", "numpy"])
        if how == "numpy" and buffer.dtype is not torch.bfloat16:
            buffer.numpy()[...] += 0.25
        elif how == "data":
            buffer.data.add_(0.25)
        else:
            buffer.add_(0.25)


@step
def write_by_a_flat_buffer(session: Session, draw: random.Random) -> None:
    """Parameters become views of one memory, or are already; then that is written to."""
    by = factor(draw)
    parameters = list(session.model.parameters())
    if session.flat is None or any(
        one.untyped_storage().data_ptr() != session.flat.untyped_storage().data_ptr() for one in parameters
    ):
        session.flat = torch.cat([one.detach().flatten() for one in parameters])
        for one, part in zip(parameters, session.flat.split([one.numel() for one in parameters]), strict=True):
            one.data = part.view_as(one)
        session.check(Pass(False, False), draw)
    session.flat.mul_(by)
    for one in session.twin.parameters():
        one.data.mul_(by)


@on_both
def write_by_shared_memory(model: Net, draw: random.Random) -> None:
    model.share_memory()
    for parameter in some(model, draw):
        if parameter.dtype is not torch.bfloat16:
            parameter.detach().numpy()[...] *= factor(draw)


@on_both
def unmerge(model: Net, draw: random.Random) -> None:
    """What is small goes again."""
    for layer in layers_of(model):
        layer.weight.data.masked_fill_(layer.weight.data.abs() < 0.1, 0)


@step
def deepcopy_and_write(session: Session, draw: random.Random) -> None:
    """The copy goes on, and a change of it is none of the first."""
    first = session.model
    session.model = copy.deepcopy(first)
    session.others()
    session.check(Pass(False, False), draw)
    with session.other_twin():
        for parameter in session.model.parameters():
            parameter.data.mul_(1.5)
        x = inputs(session.twin, draw, session.dtype)
        session.compare(first, Pass(False, draw.random() < 0.5), x, "the first of two copies", of_twin=True)
    for parameter in session.twin.parameters():
        parameter.data.mul_(1.5)


@step
def shallow_copy(session: Session, draw: random.Random) -> None:
    session.model = copy.copy(session.model)


def cloned(module: nn.Module, by: float) -> nn.Module:
    """As learn2learn's clone_module and DataParallel's replicas: parameters that are computed."""
    result = module.__new__(type(module))
    result.__dict__ = dict(module.__dict__)
    result._parameters = {name: one if one is None else one * by for name, one in module._parameters.items()}
    result._buffers = {name: one if one is None else one.clone() for name, one in module._buffers.items()}
    result._modules = {name: one if one is None else cloned(one, by) for name, one in module._modules.items()}
    return result


@step
def clone(session: Session, draw: random.Random) -> None:
    """It computes with its own parameters, and the model with its own afterwards."""
    by, one = factor(draw), Pass(draw.random() < 0.5, draw.random() < 0.5)
    x = inputs(session.twin, draw, session.dtype)
    with session.other_twin() as twin:
        for parameter in twin.parameters():
            parameter.data.mul_(by)
        session.compare(cloned(session.model, by), one, x, "a clone", only_outputs=True, of_twin=True)


OPTIMIZERS.append(lambda parameters: torch.optim.AdamW(parameters, 0.01, fused=True))  # counts no version
