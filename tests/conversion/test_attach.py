# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""How a graph hangs on a module: what the program around it sees, copies of all kinds, and what keeps nothing alive."""

from __future__ import annotations

import abc
import builtins
import copy
import gc
import inspect
import io
import pickle
import threading
import types
import typing
import weakref
from typing import Any, ClassVar

import pytest
import torch
from conversion_checks import FINE, GRAPH, LAYERS, Prefer, assert_agree, graphs_of
from torch import Tensor, nn

import sparsekernels as sk
from sparsekernels.conversion.graph.attach import own_class
from sparsekernels.pruning import prune_


class Net(nn.Module):
    """A network."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, image: Tensor, scale: float = 1.0) -> Tensor:
        """What it gives."""
        return self.head(self.norm(self.conv(image)).relu().mean((2, 3))) * scale


def converted(prefer: Prefer, model: nn.Module | None = None, train: bool = False) -> tuple[Any, Any, Tensor]:
    torch.manual_seed(0)
    model = (Net() if model is None else model).train(train)
    prune_(model, "random", 0.8)
    dense, x = copy.deepcopy(model), torch.randn(2, 8, 7, 7)
    prefer(FINE, GRAPH)
    sk.convert(model, x)
    assert [graph.module for graph in graphs_of(model)] == [model]
    return model, dense, x


def calls_of_graph(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    (graph,) = graphs_of(model)
    run, calls = graph._run, []
    monkeypatch.setattr(graph, "_run", lambda *args: (calls.append(1), run(*args))[1])
    return calls


def test_what_can_be_asked_of_forward(prefer: Prefer) -> None:
    model, dense, _ = converted(prefer)
    assert inspect.signature(model.forward) == inspect.signature(dense.forward)
    assert typing.get_type_hints(model.forward) == typing.get_type_hints(dense.forward)
    assert model.forward.__doc__ == dense.forward.__doc__
    assert model.forward.__self__ is model
    assert (type(model).__name__, type(model).__qualname__, type(model).__module__) == ("Net", "Net", __name__)
    assert isinstance(model, Net)
    assert type(model).__doc__ == "A network."
    assert repr(model).splitlines()[0] == repr(dense).splitlines()[0]
    sk.revert(model)
    assert type(model) is Net
    assert set(vars(model)) == set(vars(dense))


@pytest.mark.parametrize("how", ["position", "name", "both", "default", "another value"])
def test_calls_by_name(prefer: Prefer, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    model, dense, x = converted(prefer)
    calls = calls_of_graph(model, monkeypatch)
    given: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
        "position": ((x,), {}),
        "name": ((), {"image": x}),
        "both": ((x,), {"scale": 1.0}),
        "default": ((x, 1.0), {}),
        "another value": ((x, 2.0), {}),
    }
    args, kwargs = given[how]
    with torch.no_grad():
        torch.testing.assert_close(model(*args, **kwargs), dense(*args, **kwargs), rtol=1e-4, atol=1e-5)
    assert len(calls) == (how != "another value")
    for args, kwargs in [((x,), {"image": x}), ((), {}), ((x,), {"other": 1}), ((x, 1.0, 2), {})]:
        with pytest.raises(TypeError) as mine, torch.no_grad():
            model(*args, **kwargs)
        with pytest.raises(TypeError) as theirs, torch.no_grad():
            dense(*args, **kwargs)
        assert str(mine.value) == str(theirs.value)


def test_a_wrapper_of_forward(prefer: Prefer, monkeypatch: pytest.MonkeyPatch) -> None:
    model, dense, x = converted(prefer)
    calls, function = calls_of_graph(model, monkeypatch), model.forward.__func__
    model.forward = types.MethodType(lambda self, *args, **kwargs: function(self, *args, **kwargs) + 1, model)
    with torch.no_grad():
        torch.testing.assert_close(model(x), dense(x) + 1, rtol=1e-4, atol=1e-5)
    assert calls


def shallow(module: nn.Module) -> Any:
    """As MAML's clone_module does it."""
    clone = module.__new__(type(module))
    clone.__dict__ = dict(module.__dict__)
    clone._parameters = {name: one if one is None else 2 * one for name, one in module._parameters.items()}
    clone._buffers = {name: one if one is None else one.clone() for name, one in module._buffers.items()}
    clone._modules = {name: shallow(one) for name, one in module._modules.items()}
    return clone


def replica(module: nn.Module) -> Any:
    """As DataParallel does it."""
    copies = {one: one._replicate_for_data_parallel() for one in module.modules()}
    for one, other in copies.items():
        for name, parameter in one._parameters.items():
            if parameter is not None:
                setattr(other, name, 2 * parameter)
        for name, buffer in one._buffers.items():
            other._buffers[name] = None if buffer is None else buffer.clone()
        for name, child in one._modules.items():
            other._modules[name] = copies[child]
    return copies[module]


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("copied", [shallow, replica])
def test_shallow_copies_compute_with_their_own_parameters(prefer: Prefer, copied: Any, train: bool) -> None:
    model, dense, x = converted(prefer, train=train)
    expected = copied(dense)(x)
    for _ in range(2):
        actual = copied(model)(x)
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    (mine,) = torch.autograd.grad(actual.sum(), model.head.weight)
    (theirs,) = torch.autograd.grad(expected.sum(), dense.head.weight)
    used = dense.head.weight != 0
    torch.testing.assert_close(mine[used], theirs[used], rtol=1e-4, atol=1e-4)
    with torch.set_grad_enabled(train):
        torch.testing.assert_close(model(x), dense(x), rtol=1e-4, atol=1e-4)


def test_copies_that_share_everything(prefer: Prefer) -> None:
    model, dense, x = converted(prefer)
    other = copy.copy(model)
    assert_agree(other, dense, x)
    other.norm = nn.BatchNorm2d(8).eval()
    dense.norm = copy.deepcopy(other.norm)
    assert_agree(other, dense, x)


def pickled(model: nn.Module) -> Any:
    return pickle.loads(pickle.dumps(model))


def saved(model: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled, saved])
def test_deep_copies_have_a_graph_of_their_own(prefer: Prefer, monkeypatch: pytest.MonkeyPatch, copied: Any) -> None:
    model, dense, x = converted(prefer)
    other = copied(model)
    calls = calls_of_graph(other, monkeypatch)
    with torch.no_grad():
        for one in (other, dense):
            one.conv.bias.add_(1)
    for _ in range(2):
        assert_agree(other, dense, x)
    assert calls
    del model
    sk.revert(other)
    assert type(other) is Net
    assert type(other.conv) is nn.Conv2d
    assert_agree(other, dense, x)


def test_nothing_keeps_a_model_alive(prefer: Prefer) -> None:
    """Neither it nor its parameters, without the garbage collector."""
    enabled = gc.isenabled()
    for then in ("converted", "called", "traced anew", "reverted", "copied"):
        gc.collect()
        gc.disable()
        try:
            model, dense, x = converted(prefer)
            if then == "called":
                assert_agree(model, dense, x)
            if then == "traced anew":
                model.norm.eps = 0.1
                for _ in range(3):
                    with torch.no_grad():
                        model(x)
            if then == "reverted":
                sk.revert(model)
            if then == "copied":
                model = copy.deepcopy(model)
                assert_agree(model, dense, x)
            alive = [weakref.ref(one) for one in (model, model.conv.weight, model.conv)]
            del model
            assert [one() for one in alive] == [None] * 3, then
        finally:
            if enabled:
                gc.enable()


class Registered(Net):
    known: ClassVar[list[str]] = []

    def __init_subclass__(cls, *, name: str) -> None:
        Registered.known.append(name)


class Abstract(abc.ABC, nn.Module):
    @abc.abstractmethod
    def scale(self) -> float: ...


class Concrete(Abstract, Net):
    def scale(self) -> float:
        return 2.0


@pytest.mark.parametrize("kind", [Registered, Concrete])
def test_classes_with_ideas_of_their_own(prefer: Prefer, kind: type[Net]) -> None:
    model, dense, x = converted(prefer, kind())
    assert_agree(model, dense, x)
    assert isinstance(model, kind)
    assert not Registered.known
    assert isinstance(pickled(model), kind)


def test_a_class_that_somebody_derives_since(prefer: Prefer) -> None:
    """As fully_shard does it."""
    model, dense, x = converted(prefer)
    model.__class__ = type("Sharded", (type(model),), {})
    assert_agree(model, dense, x)
    sk.revert(model)
    assert type(model).__name__ == "Sharded"
    assert_agree(model, dense, x)
    assert own_class(model).__name__ == "Sharded"


def test_a_forward_that_the_class_gets_later(prefer: Prefer, monkeypatch: pytest.MonkeyPatch) -> None:
    model, dense, x = converted(prefer)
    before = Net.forward
    monkeypatch.setattr(Net, "forward", lambda self, image, scale=1.0: before(self, image, scale) + 1)
    for _ in range(3):
        with torch.no_grad():
            torch.testing.assert_close(model(x), dense(x), rtol=1e-4, atol=1e-5)


def test_objects_that_the_class_makes(prefer: Prefer) -> None:
    model, _, x = converted(prefer)
    other = type(model)().eval()
    plain = Net().eval()
    plain.load_state_dict(other.state_dict())
    assert_agree(other, plain, x)
    assert not list(graphs_of(other))
    assert type(copy.deepcopy(other)).__name__ == "Net"


def test_torch_fx_traces_through(prefer: Prefer) -> None:
    model, dense, x = converted(prefer)
    traced = torch.fx.symbolic_trace(model)
    with torch.no_grad():
        torch.testing.assert_close(traced(x), dense(x), rtol=1e-4, atol=1e-5)


def test_traces_in_two_threads_leave_nothing_patched(prefer: Prefer) -> None:
    def made() -> nn.Module:
        blocks = [nn.Sequential(nn.Linear(16, 16), nn.ReLU()) for _ in range(12)]
        model = nn.Sequential(*blocks).eval()
        prune_(model, "random", 0.7)
        return model

    before = builtins.isinstance, torch.finfo, torch.zeros, nn.Module.__call__
    prefer(FINE, GRAPH, LAYERS)
    model, x, stop = made(), torch.randn(2, 16), threading.Event()
    sk.convert(model, x)
    failed: list[BaseException] = []

    def serve() -> None:
        try:
            while not stop.is_set():
                with torch.no_grad():
                    copy.deepcopy(model)(x)  # which traces
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        for _ in range(6):
            assert sk.convert(made(), x).converted
    finally:
        stop.set()
        thread.join()
    assert not failed
    assert (builtins.isinstance, torch.finfo, torch.zeros, nn.Module.__call__) == before
