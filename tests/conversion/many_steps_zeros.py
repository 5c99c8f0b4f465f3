# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Steps of many_steps.Session after which there are nonzeros where there were none, or layers of other sizes."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator

import torch
from many_steps import Answer, Session, on_both, step
from many_steps_nets import Net, inputs
from many_steps_table import OPTIMIZERS, ORDERS, factor, layers_of
from torch import Tensor, nn
from twins import Pass


class Orthogonal(torch.optim.Optimizer):
    """As Muon: the polar factor of the momentum, which moves every weight."""

    def __init__(self, parameters: Iterator[nn.Parameter]) -> None:
        super().__init__(parameters, {})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                momentum.mul_(0.9).add_(parameter.grad)
                update = momentum.flatten(1) if momentum.dim() > 1 else momentum.unsqueeze(0)
                left, _, right = torch.linalg.svd(update.float(), full_matrices=False)
                parameter.add_((left @ right).view_as(parameter).to(parameter.dtype), alpha=-0.01)


@on_both
def merge(model: Net, draw: random.Random) -> None:
    """As an adapter of low rank is: nonzeros where there were none."""
    layer = draw.choice(layers_of(model))
    generator = torch.Generator().manual_seed(draw.randint(0, 1 << 30))
    shape = layer.weight.flatten(1).shape
    left, right = (torch.randn(size, 1, generator=generator) for size in shape)
    delta = (0.1 * left @ right.T).view_as(layer.weight).to(layer.weight.dtype)
    with torch.no_grad():
        how = draw.randrange(5)
        if how == 0:
            layer.weight.add_(delta)
        elif how == 1:
            layer.weight.data += delta
        elif how == 2:
            layer.weight.copy_(layer.weight + delta)
        elif how == 3:
            layer.weight.data = layer.weight.data + delta
        else:
            layer.weight = nn.Parameter(layer.weight + delta, layer.weight.requires_grad)


@on_both
def one_weight_of_a_zero(model: Net, draw: random.Random) -> None:
    weight = draw.choice(layers_of(model)).weight
    place = draw.randrange(weight.numel())
    with torch.no_grad():
        if draw.random() < 0.5:
            weight[tuple(int(one) for one in torch.unravel_index(torch.tensor(place), weight.shape))] = 0.5
        elif weight.is_contiguous():
            weight.data.view(-1)[place] = 0.5


@step
def assign_a_parameter(session: Session, draw: random.Random) -> None:
    def assign(model: Net, draw: random.Random) -> None:
        layer = draw.choice(layers_of(model))
        values = layer.weight.detach().clone().roll(draw.randrange(3), 0) * factor(draw)
        layer.weight = nn.Parameter(values)

    session.others()
    session.both(assign, draw.randint(0, 1 << 30))


@step
def functional_call(session: Session, draw: random.Random) -> None:
    """With other values, and other zeros, for parameters."""
    by = factor(draw)
    given = {name: (one.detach() * by).roll(draw.randrange(2), 0) for name, one in session.model.named_parameters()}

    class Given(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            return torch.func.functional_call(self.model, given, (x,))

    x = inputs(session.twin, draw, session.dtype)
    one = Pass(False, draw.random() < 0.5)
    with session.other_twin() as twin:
        for name, parameter in twin.named_parameters():
            parameter.data = given[name]
        session.compare(Given(session.model), one, x, "functional_call", only_outputs=True, of_twin=True)


@step
def ensemble(session: Session, draw: random.Random) -> None:
    """Two models of other zeros as one, by stack_module_state."""
    second = copy.deepcopy(session.model)
    for parameter in second.parameters():
        parameter.data = parameter.data.roll(1, 0)
    x = inputs(session.twin, draw, session.dtype)
    base = copy.deepcopy(session.model).eval()
    with torch.no_grad():
        parameters, buffers = torch.func.stack_module_state([session.model, second])
        outputs = torch.vmap(lambda *state: torch.func.functional_call(base, state, (x,)))(parameters, buffers)
    for index, output in enumerate(outputs):
        with session.other_twin() as twin:
            for parameter in twin.parameters():
                parameter.data = parameter.data.roll(index, 0)
            session.compare(Answer(output), Pass(False, False), x, "ensemble", only_outputs=True, of_twin=True)


@step
def a_new_head(session: Session, draw: random.Random) -> None:
    def exchange(model: Net, draw: random.Random) -> None:
        last = model.head[-1]
        generator = torch.Generator().manual_seed(draw.randint(0, 1 << 30))
        values = 0.3 * torch.randn(draw.choice([3, 7]), last.weight.shape[1], generator=generator)
        values = values.to(last.weight.dtype)
        if in_place:
            last.weight, last.bias = nn.Parameter(values), nn.Parameter(values[:, 0].clone())
            last.out_features = len(values)
        else:
            model.head[-1] = nn.Linear(values.shape[1], len(values), device="meta")
            model.head[-1].weight, model.head[-1].bias = nn.Parameter(values), nn.Parameter(values[:, 0].clone())

    in_place = draw.random() < 0.5
    session.others()
    session.both(exchange, draw.randint(0, 1 << 30))


OPTIMIZERS.append(Orthogonal)
ORDERS += [
    ("channel-dropped", "graph", "layers"),
    ("channel-dropped", "fine-grained", "chains", "graph", "layers"),
    ("channel-dropped", "fine-grained", "layers"),
]
