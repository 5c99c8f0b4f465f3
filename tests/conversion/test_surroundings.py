# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What code reads beside its model: globals, attributes of classes, states of torch, the environment, clocks."""

from __future__ import annotations

import datetime
import os
import time
import types
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest
import torch
from conversion_checks import FINE, GRAPH, LAYERS, Prefer, graphs_of
from torch import Tensor, nn

import sparsekernels as sk
from sparsekernels import _library
from sparsekernels.pruning import prune_

pytestmark = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")

SCALE = 1.0
OPTIONS = {"scale": 1.0}
ARGS = types.SimpleNamespace(scale=1.0)


class Settings:
    scale = 1.0
    options: ClassVar[dict[str, float]] = {"scale": 1.0}


class Net(nn.Module):
    scale = 1.0

    def __init__(self, read: Callable[[Any], float]) -> None:
        super().__init__()
        self.one, self.two, self.read = nn.Linear(16, 16), nn.Linear(16, 8), read

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x).relu()) * self.read(self)


def closure() -> Callable[[Any], float]:
    def read(_: Any) -> float:
        return scale if torch.is_inference_mode_enabled() else 1.0

    scale = 3.0
    return read


def set_global() -> None:
    global SCALE
    SCALE = 3.0


READS: dict[str, tuple[Callable[[Any], float], Callable[[], object]]] = {
    "a global": (lambda net: SCALE, set_global),
    "a global dict": (lambda net: OPTIONS["scale"], lambda: OPTIONS.update(scale=3.0)),
    "a global object": (lambda net: ARGS.scale, lambda: setattr(ARGS, "scale", 3.0)),
    "an attribute of a class": (lambda net: Settings.scale, lambda: setattr(Settings, "scale", 3.0)),
    "a dict of a class": (lambda net: Settings.options["scale"], lambda: Settings.options.update(scale=3.0)),
    "an attribute of the model's class": (lambda net: net.scale, lambda: setattr(Net, "scale", 3.0)),
    "by its name": (lambda net: getattr(net, "scale"), lambda: setattr(Net, "scale", 3.0)),  # noqa: B009
    "a variable of the environment": (
        lambda net: float(os.environ.get("SCALE_OF_A_TEST", "1")),
        lambda: os.environ.update(SCALE_OF_A_TEST="3"),
    ),
    "the default dtype": (
        lambda net: 1.0 if torch.get_default_dtype() is torch.float32 else 3.0,
        lambda: torch.set_default_dtype(torch.float64),
    ),
    "the directory": (lambda net: float(len(os.getcwd())), lambda: os.chdir("/")),  # noqa: PTH109
}


@pytest.fixture
def restored() -> Iterator[None]:
    global SCALE
    directory = os.getcwd()  # noqa: PTH109
    yield
    SCALE = OPTIONS["scale"] = ARGS.scale = Settings.scale = Settings.options["scale"] = Net.scale = 1.0
    os.environ.pop("SCALE_OF_A_TEST", None)
    torch.set_default_dtype(torch.float32)
    os.chdir(directory)


def converted(prefer: Prefer, read: Callable[[Any], float]) -> tuple[nn.Module, sk.Report]:
    model = Net(read).eval()
    prune_(model, "random", 0.7)
    prefer(FINE, GRAPH, LAYERS)
    return model, sk.convert(model, torch.randn(4, 16))


def dense(model: nn.Module, x: Tensor) -> Tensor:
    one, two = (nn.functional.linear, model.one), (nn.functional.linear, model.two)  # type: ignore[var-annotated]
    h = one[0](x, one[1].weight, one[1].bias).relu()
    return two[0](h, two[1].weight, two[1].bias) * model.read(model)  # type: ignore[operator, no-any-return]


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("how", READS)
def test_what_code_reads_may_change(prefer: Prefer, how: str) -> None:
    read, change = READS[how]
    model, _ = converted(prefer, read)
    (graph,) = graphs_of(model)
    x = torch.randn(4, 16)
    with torch.no_grad():
        torch.testing.assert_close(model(x), dense(model, x))
        assert graph.prepare().watch.unchanged()
        change()
        for _ in range(3):
            torch.testing.assert_close(model(x), dense(model, x))
        assert graph.prepare().watch.unchanged()  # it was traced again


@pytest.mark.parametrize("read", [lambda net: 3.0 if torch.is_inference_mode_enabled() else 1.0, closure()])
def test_inference_mode(prefer: Prefer, read: Callable[[Any], float]) -> None:
    model, _ = converted(prefer, read)
    x = torch.randn(4, 16)
    for mode in (torch.no_grad, torch.inference_mode, torch.inference_mode, torch.no_grad):
        with mode():
            torch.testing.assert_close(model(x), dense(model, x))


def test_gradients_that_nothing_needs(prefer: Prefer) -> None:
    model, _ = converted(prefer, lambda net: 3.0 if torch.is_grad_enabled() else 1.0)
    model.requires_grad_(False)
    x = torch.randn(4, 16)
    for wanted in (False, True, False):
        with torch.set_grad_enabled(wanted):
            torch.testing.assert_close(model(x), dense(model, x))


@pytest.mark.parametrize(
    "read",
    [
        lambda net: time.time(),
        lambda net: time.perf_counter_ns(),
        lambda net: datetime.datetime.now().timestamp(),
        lambda net: float(os.urandom(1)[0]),
    ],
)
def test_clocks(prefer: Prefer, read: Callable[[Any], float]) -> None:
    """And random numbers of the system's."""
    model, report = converted(prefer, read)
    assert not list(graphs_of(model))
    assert any("reads a clock" in note for note in report.notes)
