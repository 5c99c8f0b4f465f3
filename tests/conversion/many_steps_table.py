# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What users do with a model, as steps of many_steps.Session."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from many_steps import Session, on_both, step
from many_steps_nets import Net, inputs
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.optim.swa_utils import AveragedModel
from twins import Pass, Wrong

import sparsekernels as sk
from sparsekernels.testing import prefer


def layers_of(model: nn.Module) -> list[Any]:
    """In an order that is the same in both."""
    return [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]


def norms_of(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]


def some(model: nn.Module, draw: random.Random) -> list[nn.Parameter]:
    """One or all of the parameters."""
    found = list(model.parameters())
    return found if draw.random() < 0.5 else [draw.choice(found)]


def factor(draw: random.Random) -> float:
    return draw.choice([0.5, 0.75, 1.5])


# conversion


ORDERS = [
    ("fine-grained", "graph", "layers"),
    ("fine-grained", "chains", "graph", "layers"),
    ("fine-grained", "layers"),
    ("dense", "graph"),
]
"""What conversions prefer."""


@step
def convert(session: Session, draw: random.Random) -> None:
    order = draw.choice(ORDERS)
    before = [(id(one), one.detach().clone()) for one in session.model.parameters()]
    x = inputs(session.twin, draw, session.dtype)
    try:
        with prefer(*order):
            sk.convert(session.model, x)
    except RuntimeError as error:
        if "was given" not in str(error):
            raise
    expect_the_same_parameters(session, before)


@step
def revert(session: Session, draw: random.Random) -> None:
    before = [(id(one), one.detach().clone()) for one in session.model.parameters()]
    try:
        sk.revert(session.model)
    except RuntimeError as error:
        if "was given" not in str(error):
            raise
        return
    expect_the_same_parameters(session, before)
    for module in session.model.modules():
        if type(module).__module__.startswith("sparsekernels") or "forward" in vars(module):
            raise Wrong(f"after revert there is a {type(module).__name__}")


def expect_the_same_parameters(session: Session, before: list[tuple[int, Tensor]]) -> None:
    after = list(session.model.parameters())
    if [id(one) for one in after] != [name for name, _ in before]:
        raise Wrong("the parameters are other objects")
    for one, (_, values) in zip(after, before, strict=True):
        if not torch.equal(one.detach().nan_to_num(), values.nan_to_num()):
            raise Wrong("the parameters have other values")


@on_both
def training_mode(model: Net, draw: random.Random) -> None:
    model.train()


@on_both
def evaluation_mode(model: Net, draw: random.Random) -> None:
    model.eval()


@on_both
def a_norm_is_frozen(model: Net, draw: random.Random) -> None:
    for norm in norms_of(model):
        norm.eval()


# training


OPTIMIZERS: list[Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer]] = [
    lambda parameters: torch.optim.SGD(parameters, 0.05),
    lambda parameters: torch.optim.SGD(parameters, 0.02, momentum=0.9, weight_decay=1e-2),
    lambda parameters: torch.optim.Adam(parameters, 0.01, foreach=False),
]


@step
def train(session: Session, draw: random.Random) -> None:
    """Steps of an optimizer. The twin's is given the gradients of the model, which are compared by themselves."""
    model, twin = session.model, session.twin
    kind = draw.randrange(len(OPTIMIZERS))
    if session.optimizers is None or draw.random() < 0.3:
        session.optimizers = OPTIMIZERS[kind](model.parameters()), OPTIMIZERS[kind](twin.parameters())
    for _ in range(draw.randint(1, 2)):
        session.check(Pass(True, True), draw)
        if session.finished:
            return
        model.train()
        twin.train()
        x = inputs(twin, draw, session.dtype)
        model.zero_grad()
        output = model(x)
        if not output.requires_grad:
            return
        F.mse_loss(output.float(), torch.ones_like(output, dtype=torch.float32)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        session.adopt()
        if not all(one.grad is None or one.grad.isfinite().all() for one in model.parameters()):
            session.finished = True
            return
        for optimizer in session.optimizers:
            optimizer.step()
        session.changed()


@on_both
def masked_after_the_step(model: Net, draw: random.Random) -> None:
    """By the masks of magnitude, in place."""
    with torch.no_grad():
        for layer in layers_of(model):
            kept = layer.weight.abs() > layer.weight.abs().float().quantile(0.8)
            layer.weight.mul_(kept)


@on_both
def prune_again(model: Net, draw: random.Random) -> None:
    layer = draw.choice(layers_of(model))
    with torch.no_grad():
        if draw.random() < 0.3:
            layer.weight[draw.randrange(len(layer.weight))] = 0
        else:
            layer.weight.masked_fill_(layer.weight.abs() < layer.weight.abs().float().mean(), 0)


@step
def prune_by_torch(session: Session, draw: random.Random) -> None:
    """With torch's own, of the model's layers or of those that took their places."""
    if draw.random() < 0.5:
        for model in (session.model, session.twin):
            remove_hooks(model)
        sk.revert(session.model)

    def pruned(model: Net, draw: random.Random) -> None:
        layer = draw.choice(layers_of(model))
        if layer.weight.is_contiguous():
            prune.l1_unstructured(layer, "weight", amount=0.3)
            prune.remove(layer, "weight")

    session.both(pruned, draw.randint(0, 1 << 30))


@on_both
def freeze(model: Net, draw: random.Random) -> None:
    for parameter in some(model, draw):
        parameter.requires_grad_(draw.random() < 0.5)


# averages


@on_both
def average_in_place(model: Net, draw: random.Random) -> None:
    with torch.no_grad():
        for parameter in some(model, draw):
            parameter.mul_(0.75).add_(parameter.abs(), alpha=0.25)


@step
def averaged_model(session: Session, draw: random.Random) -> None:
    """The average is what goes on."""
    seed, buffers = draw.randint(0, 1 << 30), draw.random() < 0.5
    session.others()

    def average(model: Net, draw: random.Random) -> nn.Module:
        averaged = AveragedModel(
            model, use_buffers=buffers, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5)
        )
        averaged.update_parameters(model)
        with torch.no_grad():
            for parameter in some(model, draw):
                parameter.mul_(factor(draw))
        averaged.update_parameters(model)
        return averaged.module

    session.both(average, seed)


# writes


# dtypes and layouts


@step
def cast(session: Session, draw: random.Random) -> None:
    name = draw.choice(["half", "bfloat16", "double", "float", "float"])
    session.others()
    session.both(lambda model, _: getattr(model, name)() and None, 0)


@on_both
def memory_format(model: Net, draw: random.Random) -> None:
    model.to(memory_format=draw.choice([torch.channels_last, torch.contiguous_format]))


# copies


@step
def deepcopy(session: Session, draw: random.Random) -> None:
    """The copy goes on."""
    session.model = copy.deepcopy(session.model)
    session.others()


# hooks and modules


def twice(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return 2 * output


def halved(module: nn.Module, args: Any) -> Any:
    return tuple(0.5 * one for one in args)


def looked_at(module: nn.Module, args: Any, output: Tensor) -> None:
    output.sum()


@step
def hook(session: Session, draw: random.Random) -> None:
    name = draw.choice([name for name, _ in session.twin.named_modules()])
    hook = draw.choice([twice, halved, looked_at])
    for model in (session.model, session.twin):
        module = model.get_submodule(name)
        if hook is halved:
            module.register_forward_pre_hook(hook)
        else:
            module.register_forward_hook(hook)


@on_both
def hooks_off(model: Net, draw: random.Random) -> None:
    remove_hooks(model)


def remove_hooks(model: nn.Module) -> None:
    for module in model.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key in [key for key, one in hooks.items() if one in (twice, halved, looked_at)]:
                del hooks[key]


@on_both
def another_activation(model: Net, draw: random.Random) -> None:
    places = [
        (parent, name)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.ReLU | nn.ReLU6 | nn.GELU | nn.SiLU | nn.Hardtanh)
    ]
    if places:
        parent, name = draw.choice(places)
        setattr(parent, name, draw.choice([nn.ReLU(), nn.ReLU6(), nn.GELU(), nn.Identity()]))


@on_both
def another_epsilon(model: Net, draw: random.Random) -> None:
    for norm in norms_of(model):
        norm.eps = draw.choice([1e-5, 1e-2])


@on_both
def no_statistics(model: Net, draw: random.Random) -> None:
    for norm in norms_of(model):
        norm.running_mean = norm.running_var = None
