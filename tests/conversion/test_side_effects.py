# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What convert's own calls of a model leave behind: nothing, whatever the model holds, does or raises."""

from __future__ import annotations

import contextvars
import cProfile
import functools
import itertools
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.distributed
from acting_net import Net, pruned
from conversion_checks import FINE, GRAPH, LAYERS, Prefer
from torch import Tensor, nn
from torch.nn import functional as F

import sparsekernels as sk
from sparsekernels import _library

pytestmark = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")


# What a model may hold.

TENSORS: dict[str, Callable[[], Tensor]] = {
    "coo": lambda: torch.eye(4).to_sparse(),
    "csr": lambda: torch.eye(4).to_sparse_csr(),
    "csc": lambda: torch.eye(4).to_sparse_csc(),
    "meta": lambda: torch.empty(3, device="meta"),
    "uninitialized": nn.UninitializedBuffer,
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    "mkldnn": lambda: torch.ones(3).to_mkldnn(),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", TENSORS)
def test_tensors_of_any_kind(prefer: Prefer, kind: str, training: bool) -> None:
    """Beside them everything is put back."""
    calls: list[int] = []
    model = pruned(Net(), training)
    model.act = lambda _: model.calls.append(1)
    model.calls, model.odd = calls, TENSORS[kind]()
    model.register_buffer("buffer", TENSORS[kind]())
    prefer(FINE, LAYERS)
    assert sk.convert(model, torch.randn(4, 16)).converted
    assert not calls
    assert not model.norm.running_mean.any()


def test_what_is_written_to_a_sparse_buffer_is_put_back(prefer: Prefer) -> None:
    model = pruned(Net())
    model.register_buffer("adjacency", torch.eye(4).to_sparse())
    model.act = lambda _: model.adjacency.mul_(2)
    prefer(FINE, LAYERS)
    assert sk.convert(model, torch.randn(4, 16)).converted
    assert torch.equal(model.adjacency.to_dense(), torch.eye(4))


@pytest.mark.parametrize("training", [False, True])
def test_lazy_modules(training: bool) -> None:
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(3)).train(training)
    sk.convert(model, torch.randn(2, 3, 6, 6))
    assert not model[1].running_mean.any()
    assert all(module.training is training for module in model.modules())
    assert type(model[3]) is nn.Linear


# What a model may do in a call.


class Interrupted(BaseException):
    pass


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("error", [ValueError, Interrupted])
def test_what_is_raised_in_any_call_leaves_nothing(prefer: Prefer, error: type[BaseException], training: bool) -> None:
    prefer(FINE, GRAPH, LAYERS)
    for last in range(1, 8):
        calls, kept = itertools.count(1), []

        def act(_: Tensor, last: int = last, calls: Any = calls, kept: list[int] = kept) -> None:
            kept.append(1)
            if next(calls) == last:
                raise error

        model = pruned(Net(act), training)
        model.one.weight.grad = gradient = torch.ones_like(model.one.weight)
        modules = dict(model.named_modules())
        try:
            sk.convert(model, torch.randn(4, 16))
        except (ValueError, Interrupted):
            assert dict(model.named_modules()) == modules
        else:
            assert error is not Interrupted or next(calls) <= last
        assert not kept
        assert not model.norm.running_mean.any()
        assert model.one.weight.grad is gradient
        assert gradient.eq(1).all()


def test_a_forward_that_differentiates(prefer: Prefer) -> None:
    class Energy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(16, 32), nn.Linear(32, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                energy = self.two(F.silu(self.one(x))).sum()
                (force,) = torch.autograd.grad(energy, x)
            return energy.detach(), force

    model, x = pruned(Energy()), torch.randn(4, 16)
    with torch.no_grad():
        expected = model(x)
    prefer(FINE, GRAPH, LAYERS)
    assert sk.convert(model, x).converted
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected)


def test_what_a_model_keeps_is_no_inference_tensor(prefer: Prefer) -> None:
    @functools.lru_cache
    def table(size: int) -> Tensor:
        return torch.ones(size)

    model, x = pruned(Net(lambda h: model.tables.setdefault("here", table(h.shape[1])))), torch.randn(4, 16)
    model.tables = {}
    prefer(FINE, GRAPH, LAYERS)
    with torch.inference_mode():
        sk.convert(model, x)
    assert not table(32).is_inference()
    assert not model.tables


# What a forward leaves beside the model.

KEPT: list[Any] = []
NAMED: dict[str, Any] = {}
COUNT = 0
LOCAL = threading.local()
VARIABLE: contextvars.ContextVar[Any] = contextvars.ContextVar("variable", default=None)


class Recorder:
    losses: ClassVar[list[Any]] = []

    def __init__(self) -> None:
        self.items: list[Any] = []

    def add(self, h: Tensor) -> None:
        self.items.append(h)


RECORDER = Recorder()


def by_default(h: Tensor, into: list[Any] = KEPT) -> None:
    into.append(h)


def counts(h: Tensor) -> None:
    global COUNT
    COUNT += 1


def remembers(h: Tensor) -> None:
    remembers.last = h  # type: ignore[attr-defined]


def looks_at_the_type(h: Tensor) -> None:
    if type(h) is Tensor:  # which torch.fx does not give it
        KEPT.append(h)


@functools.lru_cache
def listed() -> list[Any]:
    return []


def closure() -> Callable[[Tensor], object]:
    held, count = KEPT, 0

    def add(h: Tensor) -> None:
        nonlocal count
        count += 1
        held.append(h)

    return add


LEAVES: dict[str, tuple[Callable[[Tensor], object], Callable[[], object]]] = {
    "a global list": (lambda h: KEPT.append(h.mean()), lambda: len(KEPT)),
    "a global dict": (lambda h: NAMED.update(last=h), lambda: len(NAMED)),
    "a global": (counts, lambda: COUNT),
    "a default": (by_default, lambda: len(KEPT)),
    "a closure": (closure(), lambda: len(KEPT)),
    "an attribute of a function": (remembers, lambda: hasattr(remembers, "last")),
    "a list of a class": (lambda h: Recorder.losses.append(h), lambda: len(Recorder.losses)),
    "an attribute of a class": (lambda h: setattr(Recorder, "last", h), lambda: hasattr(Recorder, "last")),
    "an object": (lambda h: RECORDER.add(h), lambda: len(RECORDER.items)),
    "a local of the thread": (lambda h: setattr(LOCAL, "last", h), lambda: hasattr(LOCAL, "last")),
    "a variable of the context": (lambda h: VARIABLE.set(h), lambda: VARIABLE.get() is not None),
    "by the type of a tensor": (looks_at_the_type, lambda: len(KEPT)),
}


@pytest.fixture
def emptied() -> Iterator[None]:
    global COUNT
    yield
    KEPT.clear()
    NAMED.clear()
    COUNT = 0
    Recorder.losses.clear()
    RECORDER.items.clear()
    VARIABLE.set(None)
    for place in (Recorder, LOCAL, remembers):
        if hasattr(place, "last"):
            del place.last


@pytest.mark.usefixtures("emptied")
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("how", LEAVES)
def test_code_goes_on_leaving_what_it_leaves_elsewhere(prefer: Prefer, how: str, training: bool) -> None:
    """And nothing of convert's own calls stays there, no proxy of torch.fx above all."""
    act, left = LEAVES[how]
    model, x, before = pruned(Net(act), training), torch.randn(4, 16), left()
    prefer(FINE, GRAPH, LAYERS)
    assert sk.convert(model, x).converted
    assert left() == before
    with torch.set_grad_enabled(training):
        model(x)
    assert left() != before
    assert all(type(one) is Tensor for one in (*KEPT, *NAMED.values(), *RECORDER.items, *Recorder.losses))


@pytest.mark.usefixtures("emptied")
def test_proxies_are_found_where_nothing_else_looks(prefer: Prefer) -> None:
    model, x = pruned(Net(lambda h: listed().append(h))), torch.randn(4, 16)
    prefer(FINE, GRAPH, LAYERS)
    report = sk.convert(model, x)
    assert any("changes attributes or globals" in note for note in report.notes)
    assert {type(one) for one in listed()} == {Tensor}


def test_what_code_says_it_goes_on_saying(prefer: Prefer, capsys: pytest.CaptureFixture[str]) -> None:
    """With no word of proxies."""
    logger = logging.getLogger("test_side_effects")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler := logging.StreamHandler(sys.stdout))
    try:
        for act in (lambda h: print("said", h), lambda h: logger.info("said %s", h)):
            model, x = pruned(Net(act)), torch.randn(4, 16)
            prefer(FINE, GRAPH, LAYERS)
            assert any("prints, logs or writes" in note for note in sk.convert(model, x).notes)
            assert "Proxy" not in capsys.readouterr().out
            with torch.no_grad():
                model(x)
            assert "said" in capsys.readouterr().out
    finally:
        logger.removeHandler(handler)


def test_hooks_find_their_state_as_it_was(prefer: Prefer) -> None:
    counted: list[int] = []
    model = nn.Sequential(pruned(Net()))
    model[0].register_forward_hook(lambda *_: counted.append(1))
    prefer(FINE, GRAPH, LAYERS)
    assert sk.convert(model.eval(), torch.randn(4, 16)).converted
    assert not counted
    model(torch.randn(4, 16))
    assert len(counted) == 1


@pytest.mark.parametrize("profiler", [None, cProfile.Profile()])
def test_other_threads_run_models_while_one_is_traced(prefer: Prefer, profiler: cProfile.Profile | None) -> None:
    """And a profiler goes on."""
    other, y = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU(), nn.Linear(4, 4))), torch.randn(2, 4)
    expected, errors = other(y), []

    def runs() -> None:
        try:
            torch.testing.assert_close(other(y), expected)
        except Exception as error:
            errors.append(error)

    def act(_: Tensor) -> None:
        thread = threading.Thread(target=runs)
        thread.start()
        thread.join()

    model, x = pruned(Net(act)), torch.randn(4, 16)
    prefer(FINE, GRAPH, LAYERS)
    if profiler is not None:
        profiler.enable()
    try:
        sk.convert(model, x)
        active = sys.getprofile()
    finally:
        if profiler is not None:
            profiler.disable()
    assert not errors
    if sys.version_info < (3, 12):  # later ones are not seen here
        assert active is profiler


def test_a_package_that_is_imported_in_the_first_call(
    prefer: Prefer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own code runs while it is being imported, and looks for names that come later."""
    package = tmp_path / "imported_late"
    package.mkdir()
    (package / "__init__.py").write_text("from . import core\ncore.start()\nKind = core.Kind\nSTARTED = True\n")
    (package / "core.py").write_text(
        "import sys\nimport imported_late\nclass Kind: pass\n"
        "def start():\n    imported_late.LOG = [getattr(imported_late, 'Kind', None), imported_late.STARTED]"
        " if hasattr(imported_late, 'STARTED') else []\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    class Lazy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            import imported_late  # type: ignore[import-not-found]

            result: Tensor = self.layer(x) * len(imported_late.__name__)
            return result

    model, x = Lazy().eval(), torch.randn(2, 8)
    pruned(model)
    prefer(FINE, LAYERS)
    sk.convert(model, x)
    late = sys.modules.pop("imported_late")
    sys.modules.pop("imported_late.core")
    assert late.Kind is late.core.Kind
    assert late.STARTED
    assert late.LOG == []
