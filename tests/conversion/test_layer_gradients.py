# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""convert in training mode: layers with other gradients stay out, however far rounding takes the whole model's."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conversion_checks import BLOCK, DENSE, FINE, LAYERS, Prefer
from torch import Tensor, nn
from torch.nn import functional as F

import sparsekernels as sk
from sparsekernels import _library
from sparsekernels._gradient_errors import gradient_error
from sparsekernels.conversion import attempt, modes
from sparsekernels.conversion.agreement import are_close, backward_at_random
from sparsekernels.conversion.layer_gradients import wrong_gradient
from sparsekernels.conversion.progress import Progress
from sparsekernels.conversion.survey import Given
from sparsekernels.nn import SparseLinear
from sparsekernels.nn.sparse import SparseLayer
from sparsekernels.pruning import prune_blocks_

pytestmark = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")

Change = Callable[[Tensor], Tensor]


class _Backward(torch.autograd.Function):
    """The identity, with another gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, change: Change) -> Tensor:
        ctx.change = change
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.change(gradient), None


def _transposed(gradient: Tensor) -> Tensor:
    return gradient.transpose(0, 1) if gradient.dim() > 1 else gradient.flip(0)


def _without(dim: int) -> Change:
    """The largest part along a dimension is lost."""

    def change(gradient: Tensor) -> Tensor:
        largest = gradient.transpose(0, dim).flatten(1).norm(dim=1).argmax()
        return gradient.index_fill(dim, largest.reshape(1), 0.0)

    return change


WRONG: dict[str, tuple[str, Change | None]] = {
    "weight, too long": ("weight", lambda gradient: gradient * 1.1),
    "weight, too short": ("weight", lambda gradient: gradient * 0.9),
    "weight, without a channel": ("weight", _without(0)),
    "weight, without an input channel": ("weight", _without(1)),
    "weight, transposed": ("weight", _transposed),
    "weight, of another sign": ("weight", lambda gradient: -gradient),
    "weight, not a number": ("weight", lambda gradient: gradient.index_fill(0, torch.tensor([1]), torch.nan)),
    "weight, missing": ("weight", None),
    "weight, also where nothing is used": ("weight", lambda gradient: gradient + 0.3 * gradient.std()),
    "bias, too long": ("bias", lambda gradient: gradient * 1.1),
    "bias, missing": ("bias", None),
    "input, too long": ("the input", lambda gradient: gradient * 1.1),
    "input, without an input channel": ("the input", _without(1)),
    "input, missing": ("the input", None),
}


def changed(tensor: Tensor, change: Change | None) -> Tensor:
    """With another gradient."""
    return tensor.detach() if change is None else _Backward.apply(tensor, change)  # type: ignore[no-untyped-call, no-any-return]


def spoil(monkeypatch: pytest.MonkeyPatch, of: str, change: Change | None, name: str) -> None:
    """One gradient of the sparse layer `name` is another."""
    genuine = SparseLayer._parameters_of

    def parameters_of(self: Any, input: Tensor) -> tuple[Any, Any]:
        weight, bias = genuine(self, input)
        if self.path != name:
            return weight, bias
        return (changed(weight, change), bias) if of == "weight" else (weight, changed(bias, change))

    if of != "the input":
        monkeypatch.setattr(SparseLayer, "_parameters_of", parameters_of)
        return
    for kind in (sk.nn.SparseLinear, sk.nn.SparseConv2d):
        forward: Any = kind.forward

        def spoiled(self: Any, input: Tensor, forward: Any = forward) -> Tensor:
            return forward(self, changed(input, change) if self.path == name else input)  # type: ignore[no-any-return]

        monkeypatch.setattr(kind, "forward", spoiled)


def convolutions(seed: int, norms: bool = True) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(seed)
    parts: list[nn.Module] = []
    for _ in range(6):
        parts += [nn.Conv2d(32, 32, 3, padding=1), *([nn.BatchNorm2d(32)] if norms else ()), nn.ReLU()]
    head = nn.Linear(32, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 32)
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), *head), torch.randn(16, 32, 8, 8)


def pooled(seed: int) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(seed)
    parts = [
        part
        for _ in range(3)
        for part in (nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2))
    ]
    head = nn.Linear(32, 64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, 32)
    return nn.Sequential(*parts, nn.Flatten(), *head), torch.randn(32, 32, 8, 8)


def linears(seed: int) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(seed)
    parts = [part for _ in range(6) for part in (nn.Linear(64, 64), nn.LayerNorm(64), nn.ReLU(), nn.Dropout(0.1))]
    return nn.Sequential(*parts, nn.Linear(64, 64)), torch.randn(40, 64)


def chaotic(seed: int) -> tuple[nn.Module, Tensor]:
    """Little is left of gradients in bfloat16, and the last BatchNorms magnify what rounding does to their inputs."""
    torch.manual_seed(seed)
    parts: list[nn.Module] = []
    for place in range(12):
        parts += [nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU()]
        if place % 4 == 3:
            parts.append(nn.MaxPool2d(2))
    hidden = [part for _ in range(2) for part in (nn.Linear(64, 64), nn.ReLU(), nn.BatchNorm1d(64))]
    return nn.Sequential(*parts, nn.Flatten(), *hidden, nn.Linear(64, 32)), torch.randn(16, 64, 8, 8)


NETS: dict[str, Callable[[int], tuple[nn.Module, Tensor]]] = {
    "convolutions": convolutions,
    "pooled": pooled,
    "linears": linears,
    "chaotic": chaotic,
}


def made(net: str, seed: int, dtype: torch.dtype, sparsity: float = 0.5) -> tuple[nn.Module, Tensor]:
    model, x = NETS[net](seed)
    prune_blocks_(model, (16, 16), sparsity)
    return model.train().to(dtype), x.to(dtype)


HOW = {"float32": (torch.float32, False), "autocast": (torch.float32, True), "bfloat16": (torch.bfloat16, False)}


def convert(model: nn.Module, x: Tensor, autocast: bool) -> sk.Report:
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        return sk.convert(model, x)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("net", NETS)
def test_right_layers_are_taken(prefer: Prefer, net: str, how: str) -> None:
    dtype, autocast = HOW[how]
    prefer(BLOCK, FINE, LAYERS)
    for seed in range(2):
        model, x = made(net, seed, dtype)
        report = convert(model, x, autocast)
        assert all(row.decision != DENSE for row in report.layers), (seed, report.notes)


def first_layer(model: nn.Module, has_bias: bool = False) -> str:
    """But for that which is given the images, which have no gradient."""
    layers = [name for name, one in model.named_modules() if isinstance(one, nn.Conv2d | nn.Linear)]
    return next(name for name in layers[1:] if not has_bias or model.get_submodule(name).bias is not None)


@pytest.mark.parametrize(("net", "how"), [("convolutions", "autocast"), ("pooled", "bfloat16"), ("linears", "float32")])
@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_gradients_keep_a_layer_dense(
    prefer: Prefer, monkeypatch: pytest.MonkeyPatch, wrong: str, net: str, how: str
) -> None:
    of, change = WRONG[wrong]
    dtype, autocast = HOW[how]
    model, x = made(net, 0, dtype)
    name = first_layer(model, of == "bias")
    spoil(monkeypatch, of, change, name)
    prefer(BLOCK, FINE, LAYERS)
    report = convert(model, x, autocast)
    decisions = {row.name: row.decision for row in report.layers}
    assert decisions.pop(name) == DENSE
    assert DENSE not in decisions.values()
    assert any(f"the gradient of {of} differed" in note and note.startswith(name) for note in report.notes)


def test_a_layer_whose_backward_raises_stays_dense(prefer: Prefer, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Tensor) -> Tensor:
        raise ArithmeticError("no gradient")

    model, x = made("linears", 0, torch.float32)
    name = first_layer(model)
    spoil(monkeypatch, "weight", fail, name)
    prefer(BLOCK, FINE, LAYERS)
    report = convert(model, x, False)
    assert [row.name for row in report.layers if row.decision == DENSE] == [name]
    assert any("raised ArithmeticError: no gradient" in note and note.startswith(name) for note in report.notes)


def test_without_time_no_layer_is_taken_whose_gradients_were_not_compared(
    prefer: Prefer, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = made("linears", 0, torch.float32)
    layers = [name for name, one in model.named_modules() if isinstance(one, nn.Linear)]
    compared: list[str] = []
    stop, with_right_gradients = Progress.stop, attempt.Attempt._with_right_gradients

    def count(original: nn.Module, replacement: Any, given: Any) -> str | None:
        compared.append(replacement.path)
        if len(compared) == 3:
            monkeypatch.setattr(Progress, "stop", lambda *_: True)
        return wrong_gradient(original, replacement, given)

    def while_there_is_time(*args: Any) -> Any:
        right = with_right_gradients(*args)
        monkeypatch.setattr(Progress, "stop", stop)  # to compare and install what is left
        return right

    monkeypatch.setattr(attempt, "wrong_gradient", count)
    monkeypatch.setattr(attempt.Attempt, "_with_right_gradients", while_there_is_time)
    prefer(BLOCK, FINE, LAYERS)
    report = sk.convert(model, x, max_seconds=1000.0)
    assert compared == layers[:3]
    assert [row.name for row in report.converted] == compared
    assert [name for name, one in model.named_modules() if isinstance(one, SparseLayer)] == compared


def gradients(model: nn.Module, x: Tensor, autocast: bool) -> list[Tensor]:
    model = copy.deepcopy(model)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        backward_at_random(model(x))
    return [one.grad for one in model.parameters() if one.grad is not None]


def test_where_nothing_is_left_of_the_whole_models_gradients(prefer: Prefer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results and statistics are judged by a float32 run there, which one layer that is off a little does not pass."""
    runs: list[bool] = []
    genuine = modes.Training._in_float32_once

    def in_float32_once(self: Any) -> Any:
        exact = genuine(self)
        runs.append(exact is not None)
        return exact

    monkeypatch.setattr(modes.Training, "_in_float32_once", in_float32_once)
    prefer(BLOCK, FINE, LAYERS)
    for seed in range(4):
        model, x = made("chaotic", seed, torch.float32)
        lost = gradient_error(gradients(model, x, True), gradients(model, x, False))
        assert lost > 0.25
        before = copy.deepcopy(model.state_dict())
        state = torch.get_rng_state()
        report = convert(model, x, True)
        assert len(report.converted) == len(report.layers), (seed, report.notes)
        assert torch.equal(state, torch.get_rng_state())
        assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
        assert all(one.grad is None and one.dtype is torch.float32 for one in model.parameters())
    assert runs
    assert all(runs)


FORWARD: dict[str, Change] = {
    "too large": lambda result: result * 1.1,
    "shifted": lambda result: result + 0.1 * result.std(),
    "one channel": lambda result: result.index_fill(1, torch.tensor([3]), 0.5),
    "one image": lambda result: result.index_fill(0, torch.tensor([3]), 0.0),
    "channels exchanged": lambda result: result.flip(1),
}


@pytest.mark.parametrize("wrong", FORWARD)
def test_a_layer_that_is_off_in_a_lost_model(prefer: Prefer, monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    genuine = sk.nn.SparseConv2d.forward

    def forward(self: Any, input: Tensor) -> Tensor:
        result = genuine(self, input)
        return FORWARD[wrong](result) if self.path == "13" else result

    monkeypatch.setattr(sk.nn.SparseConv2d, "forward", forward)
    monkeypatch.setattr(attempt, "wrong_gradient", lambda *_: None)  # gradients would tell as well
    prefer(BLOCK, FINE, LAYERS)
    model, x = made("chaotic", 1, torch.float32)
    assert isinstance(model.get_submodule("13"), nn.Conv2d)
    report = convert(model, x, True)
    assert not report.converted
    assert any("results differed" in note for note in report.notes)


def test_layers_alone() -> None:
    torch.manual_seed(0)
    dense = nn.Linear(32, 48)
    prune_blocks_(dense, (16, 16), 0.5)
    sparse = SparseLinear.sharing(dense)
    given = [Given((8, 32), torch.float32, torch.device("cpu"), False, requires) for requires in (True, False)]
    assert wrong_gradient(dense, sparse, given) is None
    assert wrong_gradient(dense, nn.Linear(32, 48), given) is not None
    dense.weight.requires_grad_(False)
    assert wrong_gradient(dense, sparse, given) is None
    dense.requires_grad_(False)
    assert wrong_gradient(dense, sparse, given[1:]) is None  # it has no gradients
    assert wrong_gradient(dense, nn.Sequential(sparse, nn.Identity()), given[:1]) is None


def test_the_dtype_of_results_may_be_float32() -> None:
    """A head that computes in float32 has the rounding of what it is given."""
    noise = 0.02 * torch.randn(2, 64, 32)
    exact = torch.randn(64, 32)
    before, after = exact + noise[0], exact + noise[1]
    assert not are_close(after, before)
    assert not are_close(after, before, exact)
    assert are_close(after, before, exact, modes._MAY_ROUND)
    assert not are_close(after * 1.2, before, exact, modes._MAY_ROUND)


class _Spoilt(nn.Linear):
    """A little of its gradients is wrong."""

    wrong = ""

    def forward(self, x: Tensor) -> Tensor:
        weight: Tensor = self.weight
        bias: Tensor = self.bias
        if self.wrong == "weight, missing":
            return F.linear(x, weight.detach(), bias)
        if self.wrong == "weight, without a row":
            return torch.cat([F.linear(x[:-1], weight, bias), F.linear(x[-1:], weight.detach(), bias)])
        if self.wrong == "weight, of other rows":
            others = x.detach().roll(len(x) // 2, 0)
            return F.linear(x, weight.detach(), bias) + F.linear(others, weight - weight.detach())
        if self.wrong == "weight, too long":
            weight = changed(weight, lambda gradient: gradient * 1.02)
        if self.wrong == "bias, without a channel":
            bias = changed(bias, lambda gradient: gradient.index_fill(0, gradient.abs().argsort()[512], 0.0))
        return F.linear(x, weight, bias)


def test_what_a_layer_detaches_has_no_gradient() -> None:
    dense, frozen = nn.Linear(32, 48), _Spoilt(32, 48)
    frozen.load_state_dict(dense.state_dict())
    given = [Given((64, 32), torch.float32, torch.device("cpu"), False, True)]
    frozen.wrong = "weight, missing"
    assert wrong_gradient(frozen, frozen, given) is None
    assert wrong_gradient(frozen, dense, given) == "weight"
    assert wrong_gradient(dense, frozen, given) == "weight"


@pytest.mark.parametrize(
    ("wrong", "dtype"),
    [
        ("weight, without a row", torch.float32),
        ("weight, of other rows", torch.float32),
        ("weight, of other rows", torch.bfloat16),
        ("weight, too long", torch.float32),
        ("bias, without a channel", torch.float32),
        ("bias, without a channel", torch.bfloat16),
        ("bias, without a channel", torch.float16),
    ],
)
def test_little_of_a_gradient_counts(wrong: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    dense, other = nn.Linear(128, 1024).to(dtype), _Spoilt(128, 1024).to(dtype)
    other.load_state_dict(dense.state_dict())
    given = [Given((1024, 128), dtype, torch.device("cpu"), False, True)]
    assert wrong_gradient(dense, other, given) is None
    other.wrong = wrong
    assert wrong_gradient(dense, other, given) == wrong.partition(",")[0]
