# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What code reads beside its model: globals, attributes of classes, states of torch, the environment, clocks."""

from __future__ import annotations

import contextvars
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


LARGE = list(range(1000))
OUTER, INNER = types.ModuleType("outer_of_a_test"), types.ModuleType("outer_of_a_test.inner")
OUTER.inner, INNER.scale = INNER, 1.0  # type: ignore[attr-defined]
VARIABLE = contextvars.ContextVar("VARIABLE", default=1.0)


def helper(net: nn.Module) -> float:
    return 1.0


HELPER = helper


class Settings:
    scale = 1.0
    options: ClassVar[dict[str, float]] = {"scale": 1.0}


class Base(nn.Module):
    def inherited(self) -> float:
        return 1.0


class Net(Base):
    scale = 1.0

    def __init__(self, read: Callable[[Any], float]) -> None:
        super().__init__()
        self.one, self.two, self.read = nn.Linear(16, 16), nn.Linear(16, 8), read

    def method(self) -> float:
        return 1.0

    @property
    def property(self) -> float:
        return 1.0

    @staticmethod
    def static() -> float:
        return 1.0

    @classmethod
    def of_class(cls) -> float:
        return 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x).relu()) * self.read(self)


def closure() -> Callable[[Any], float]:
    def read(_: Any) -> float:
        return scale if torch.is_inference_mode_enabled() else 1.0

    scale = 3.0
    return read


def variable_of_a_closure() -> tuple[Callable[[Any], float], Callable[[], None]]:
    scale = 1.0

    def change() -> None:
        nonlocal scale
        scale = 3.0

    return lambda net: scale, change


def function_of_a_closure() -> tuple[Callable[[Any], float], Callable[[], None]]:
    def scale() -> float:
        return 1.0

    def change() -> None:
        nonlocal scale
        scale = lambda: 3.0  # noqa: E731

    return lambda net: scale(), change


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
    "another global dict": (lambda net: OPTIONS["scale"], lambda: globals().update(OPTIONS={"scale": 3.0})),
    "another global object": (lambda net: ARGS.scale, lambda: globals().update(ARGS=types.SimpleNamespace(scale=3.0))),
    "another dict of a class": (
        lambda net: Settings.options["scale"],
        lambda: setattr(Settings, "options", {"scale": 3.0}),
    ),
    "a dict beside a large one": (
        lambda net: OPTIONS["scale"] + 0 * len(LARGE),
        lambda: OPTIONS.update(scale=3.0),
    ),
    "a variable of the environment": (
        lambda net: float(os.environ.get("SCALE_OF_A_TEST", "1")),
        lambda: os.environ.update(SCALE_OF_A_TEST="3"),
    ),
    "the default dtype": (
        lambda net: 1.0 if torch.get_default_dtype() is torch.float32 else 3.0,
        lambda: torch.set_default_dtype(torch.float64),
    ),
    "a global function": (lambda net: HELPER(net), lambda: globals().update(HELPER=lambda net: 3.0)),
    "a method": (lambda net: net.method(), lambda: setattr(Net, "method", lambda self: 3.0)),
    "a method that a subclass gets": (lambda net: net.inherited(), lambda: setattr(Net, "inherited", lambda self: 3.0)),
    "a property": (lambda net: net.property, lambda: setattr(Net, "property", 3.0)),
    "a static method": (lambda net: net.static(), lambda: setattr(Net, "static", staticmethod(lambda: 3.0))),
    "a class method": (lambda net: net.of_class(), lambda: setattr(Net, "of_class", classmethod(lambda cls: 3.0))),
    "a variable of a closure": variable_of_a_closure(),
    "a function of a closure": function_of_a_closure(),
    "a context variable": (lambda net: VARIABLE.get(), lambda: VARIABLE.set(3.0)),
    "a module within a module": (lambda net: OUTER.inner.scale, lambda: setattr(INNER, "scale", 3.0)),
    "the directory": (lambda net: float(len(os.getcwd())), lambda: os.chdir("/")),  # noqa: PTH109
}


@pytest.fixture
def restored() -> Iterator[None]:
    global SCALE, OPTIONS, ARGS, HELPER
    directory, kept = os.getcwd(), (OPTIONS, ARGS, Settings.options)  # noqa: PTH109
    methods = dict(vars(Net))
    yield
    for name in ("method", "property", "static", "of_class"):
        setattr(Net, name, methods[name])
    if "inherited" in vars(Net):
        del Net.inherited
    HELPER, INNER.scale = helper, 1.0  # type: ignore[attr-defined]
    VARIABLE.set(1.0)
    OPTIONS, ARGS, Settings.options = kept
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


class Held:
    scale = 1.0


def test_classes_of_what_a_module_holds(prefer: Prefer, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Net(lambda net: net.held.scale).eval()
    model.held = Held()  # type: ignore[assignment]
    prune_(model, "random", 0.7)
    prefer(FINE, GRAPH, LAYERS)
    x = torch.randn(4, 16)
    sk.convert(model, x)
    monkeypatch.setattr(Held, "scale", 3.0)
    with torch.no_grad():
        for _ in range(3):
            torch.testing.assert_close(model(x), dense(model, x))


class Raising:
    def __get__(self, owner: object, kind: type) -> float:
        if owner is None:
            raise TypeError("of an object alone")
        return 1.0


class WithDescriptor(Net):
    described = Raising()


def test_code_that_cannot_be_asked_for(prefer: Prefer) -> None:
    def empty_cell() -> Callable[[Any], float]:
        try:
            raise ImportError
        except ImportError:

            def read(net: Any) -> float:
                if net is None:
                    raise RuntimeError from error  # noqa: F821
                return float(net.described)

            return read

    model = WithDescriptor(empty_cell()).eval()
    prune_(model, "random", 0.7)
    prefer(FINE, GRAPH, LAYERS)
    x = torch.randn(4, 16)
    assert sk.convert(model, x).converted
    with torch.no_grad():
        torch.testing.assert_close(model(x), dense(model, x))


def test_a_variable_without_a_value_stays_so(prefer: Prefer) -> None:
    variable: contextvars.ContextVar[float] = contextvars.ContextVar("variable")

    class Sets(nn.RMSNorm):
        def forward(self, x: Tensor) -> Tensor:
            variable.set(1.0)
            return super().forward(x)

    sk.replace_norms(nn.Sequential(Sets(16)))
    assert variable.get(None) is None
