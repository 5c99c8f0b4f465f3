# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Code that writes to parameters in a call: convert's own calls leave nothing of it, and later calls go on with it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from acting_net import pruned
from conversion_checks import FINE, GRAPH, LAYERS, Prefer
from torch import Tensor, nn

import sparsekernels as sk
from sparsekernels import _library
from sparsekernels.conversion.watch.writes import Writes

pytestmark = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")


class Writing(nn.Module):
    """What is done in each call is given; it is part of the forward."""

    def __init__(self, act: Callable[[Any], object]) -> None:
        super().__init__()
        self.one, self.norm, self.two, self.act = nn.Linear(16, 32), nn.BatchNorm1d(32), nn.Linear(32, 8), act
        self.scale = nn.Parameter(torch.full((32,), 3.0))
        self.counter = nn.Parameter(torch.zeros(()), requires_grad=False)
        self.beside = [nn.Parameter(torch.ones(8))]
        self.slow = nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        self.act(self)
        h = self.norm(self.one(x)).relu() * self.scale
        result: Tensor = self.two(h) + self.slow(h) + self.counter
        return result


def without_gradients(write: Callable[[Any], object]) -> Callable[[Any], object]:
    def act(model: Any) -> None:
        with torch.no_grad():
            write(model)

    return act


def writes_and_moves_data(model: Any) -> None:
    model.one.weight.data.mul_(0.5)
    model.one.weight.data = model.one.weight.data.clone().mul_(0.9)


def momentum(model: Any) -> None:
    """torch.fx gives such code the parameters themselves. The first call changes no more than rounding might."""
    for slow, fast in zip(model.slow.parameters(), model.two.parameters(), strict=True):
        slow.data.mul_(0.999).add_(fast.data, alpha=0.001)


def loads(model: Any) -> None:
    model.load_state_dict({name: value * 0.999 for name, value in model.state_dict().items()})


WRITES: dict[str, Callable[[Any], object]] = {
    "clamp": without_gradients(lambda model: model.scale.clamp_(-1, 1)),
    "clamp of a layer": without_gradients(lambda model: model.one.weight.clamp_(-0.05, 0.05)),
    "data of a layer": lambda model: model.one.weight.data.mul_(0.9),
    "a counter": lambda model: model.counter.add_(1),
    "data, then other data": writes_and_moves_data,
    "several at once": without_gradients(lambda model: torch._foreach_mul_([model.scale, model.two.bias], 0.9)),
    "a view": without_gradients(lambda model: model.two.bias.view(-1)[:5].fill_(9.0)),
    "inference mode": lambda model: torch.inference_mode()(model.scale.data.mul_)(0.9),
    "beside": without_gradients(lambda model: model.beside[0].mul_(0.9)),
    "momentum": momentum,
    "a state": loads,
}


def parameters_of(model: Any) -> list[Tensor]:
    return [*model.parameters(), *model.beside]


IN_TRAINING = ["data, then other data", "several at once", "momentum"]


@pytest.mark.filterwarnings("ignore:.*elements of its weight")  # that momentum fills
@pytest.mark.parametrize(("how", "training"), [(how, False) for how in WRITES] + [(how, True) for how in IN_TRAINING])
def test_what_calls_write(prefer: Prefer, how: str, training: bool) -> None:
    model, x = pruned(Writing(WRITES[how]), training), torch.randn(4, 16)
    twin, parameters = copy.deepcopy(model), parameters_of(model)
    addresses = [one.data_ptr() for one in parameters]
    prefer(FINE, GRAPH, LAYERS)
    assert sk.convert(model, x).converted
    for kept, parameter, own in zip(parameters, parameters_of(model), parameters_of(twin), strict=True):
        assert parameter is kept
        assert torch.equal(parameter, own)
    assert [one.data_ptr() for one in parameters] == addresses
    with torch.set_grad_enabled(training):
        for _ in range(4):
            torch.testing.assert_close(model(x), twin(x))
    for parameter, own in zip(parameters_of(model), parameters_of(twin), strict=True):
        torch.testing.assert_close(parameter, own)


@pytest.mark.parametrize("training", [False, True])
def test_other_writes_stay_once(prefer: Prefer, training: bool) -> None:
    """Those of a single call, and the report says so."""

    def act(model: Any) -> None:
        model.scale.detach().numpy()[:] *= 0.5

    model = pruned(Writing(act), training)
    prefer(FINE, GRAPH, LAYERS)
    report = sk.convert(model, torch.randn(4, 16))
    assert any("other means than torch's operators" in note and "scale" in note for note in report.notes)
    assert model.scale.eq(1.5).all()


def test_what_hooks_write_in_a_backward_pass_stays_once(prefer: Prefer) -> None:
    model = pruned(Writing(lambda _: None), True)
    model.norm.register_full_backward_hook(lambda module, *_: module.weight.data.mul_(0.5))
    prefer(FINE, GRAPH, LAYERS)
    report = sk.convert(model, torch.randn(4, 16))
    assert any("in its backward pass" in note and "norm.weight" in note for note in report.notes)
    assert model.norm.weight.eq(0.5).all()


def test_what_calls_write_while_they_are_timed() -> None:
    model = pruned(Writing(lambda model: model.counter.add_(1)))
    sk.convert(model, torch.randn(4, 16))
    assert model.counter == 0


def test_what_a_call_writes_before_it_raises() -> None:
    def act(model: Any) -> None:
        model.scale.data.zero_()
        raise ValueError("no")

    model = pruned(Writing(act))
    with pytest.raises(ValueError, match="no"):
        sk.convert(model, torch.randn(4, 16))
    assert model.scale.eq(3).all()


def test_a_parameter_of_a_class_of_its_own(prefer: Prefer) -> None:
    class Own(nn.Parameter):
        pass

    def act(model: Any) -> None:
        model.own.data.add_(1)

    model = pruned(Writing(act))
    model.own = Own(torch.zeros(3))
    model.elsewhere = nn.Parameter(torch.empty(2, device="meta"))
    prefer(FINE, GRAPH, LAYERS)
    assert sk.convert(model, torch.randn(4, 16)).converted
    assert not model.own.any()


def test_only_what_is_written_to_is_copied() -> None:
    model, x = Writing(WRITES["a counter"]).eval(), torch.randn(4, 16)
    flat = torch.zeros(3, 4)
    model.first, model.second = nn.Parameter(flat[0]), nn.Parameter(flat[1])
    model.act = lambda one: one.first.data.add_(1)
    writes = Writes(model)
    with writes.watched(), torch.no_grad():
        model(x)
        assert model.first.eq(1).all()
    assert not flat.any()
    assert {id(one) for one, _ in writes._kept.values()} == {id(model.first), id(model.second)}


ATTRIBUTES: dict[str, Callable[[Any], object]] = {
    "of a parameter": lambda model: setattr(model.one.weight, "calls", getattr(model.one.weight, "calls", 0) + 1),
    "of a buffer": lambda model: setattr(model.norm.running_mean, "calls", 3),
    "a list of a parameter": lambda model: model.one.weight.history.append(1),
    "a gradient": lambda model: setattr(model.scale, "grad", torch.ones(32)),
    "a gradient of a buffer": lambda model: setattr(model.norm.running_mean, "grad", torch.ones(32)),
}


@pytest.mark.parametrize("how", ATTRIBUTES)
def test_attributes_of_tensors(prefer: Prefer, how: str) -> None:
    def left(model: Any) -> list[Any]:
        tensors = (model.one.weight, model.scale, model.norm.running_mean)
        return [(repr(vars(one)), one.grad is None) for one in tensors]

    model = pruned(Writing(ATTRIBUTES[how]))
    model.one.weight.history = []
    before = left(model)
    prefer(FINE, GRAPH, LAYERS)
    assert sk.convert(model, torch.randn(4, 16)).converted
    assert left(model) == before
    with torch.no_grad():
        model(torch.randn(4, 16))
    assert left(model) != before


def test_norms_that_write() -> None:
    class Bounded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.full((16,), 3.0))

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                self.weight.clamp_(-1, 1)
            return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)

    model = nn.Sequential(Bounded())
    sk.replace_norms(model)
    assert model[0].weight.eq(3).all()


def test_compiled_code_runs_compiled() -> None:
    """Under most dispatch modes torch.compile refuses to compile a whole function."""
    compiled = torch.compile(lambda h: h * 2, backend="eager", fullgraph=True)
    model = pruned(Writing(lambda model: compiled(model.scale)))
    assert math.isfinite(sk.convert(model, torch.randn(4, 16), max_seconds=5).before_ms or 0.0)
