# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What docs/convert.md promises, where reviewers found that it did not hold."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import threading
import types
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conversion_checks import FINE, GRAPH, LAYERS, Prefer, graphs_of
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import sparsekernels as sk
from sparsekernels.conversion.graph import attach
from sparsekernels.pruning import prune_


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU()
        self.head = nn.Linear(8, 4)
        self.act.gain = 1.0
        self.scale = torch.ones(())
        self.register_buffer("shift", torch.zeros(4), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        gain = self.act.gain * getattr(self.head, "lora_scale", 1.0) * float(self.scale)
        return self.head(self.act(self.norm(self.conv(x))).mean((2, 3))) * gain + self.shift


def converted(prefer: Prefer, model: Any = None) -> tuple[Any, Any, Tensor]:
    torch.manual_seed(0)
    model = (Net() if model is None else model).eval()
    prune_(model, "random", 0.8)
    dense, x = copy.deepcopy(model), torch.randn(2, 8, 7, 7)
    prefer(FINE, GRAPH)
    sk.convert(model, x)
    assert len(list(graphs_of(model))) == 1
    return model, dense, x


def assert_same(model: nn.Module, dense: nn.Module, x: Tensor) -> None:
    for _ in range(3):
        with torch.no_grad():
            torch.testing.assert_close(model(x), dense(x), rtol=1e-4, atol=1e-5)


def exchange(module: nn.Module, name: str) -> None:
    """The whole dict, with other tensors."""
    tensors = getattr(module, name)
    vars(module)[name] = {
        key: one if one is None or not one.is_floating_point() else nn.Parameter(2 * one.detach(), False)
        for key, one in tensors.items()
    }


def add_hook_to_another_dict(module: nn.Module) -> None:
    other = nn.Identity()
    other.register_forward_hook(lambda _module, _args, result: 2 * result)
    vars(module)["_forward_hooks"] = other._forward_hooks


CHANGES: dict[str, Callable[[Any], object]] = {
    "parameters": lambda model: exchange(model.conv, "_parameters"),
    "statistics": lambda model: exchange(model.norm, "_buffers"),
    "hooks": lambda model: add_hook_to_another_dict(model.act),
    "modules": lambda model: vars(model).update(_modules={**model._modules, "act": nn.Tanh()}, gain=1),
    "an attribute of a layer": lambda model: setattr(model.act, "gain", 3.0),
    "a new attribute of a layer": lambda model: setattr(model.head, "lora_scale", 3.0),
    "a tensor among attributes": lambda model: model.scale.data.fill_(3),
    "the same by numpy": lambda model: model.scale.numpy().fill(3),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_that_were_not_seen(prefer: Prefer, change: str) -> None:
    model, dense, x = converted(prefer)
    for one in (model, dense):
        CHANGES[change](one)
        one.act.gain = getattr(one.act, "gain", 1.0)
    assert_same(model, dense, x)


class _Doubles(TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        return 2 * result if function in (torch.relu, torch.nn.functional.relu) else result


class _Counts(TorchDispatchMode):
    calls = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += "relu" in str(function)
        return function(*args, **(kwargs or {}))


def test_modes_see_the_operations(prefer: Prefer) -> None:
    model, dense, x = converted(prefer)
    with _Doubles():
        assert_same(model, dense, x)
    with _Counts() as counts, torch.no_grad():
        model(x)
    assert counts.calls == 1
    with torch.device("cpu"):  # a mode as well
        assert_same(model, dense, x)


def test_buffers_stay_out_of_the_state(prefer: Prefer) -> None:
    class Outer(Net):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.BatchNorm1d(4)
            self.block.register_buffer("factor", torch.ones(4), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.block(super().forward(x)) * self.block.factor

    model, dense, x = converted(prefer, Outer())
    assert_same(model, dense, x)
    assert list(model.state_dict()) == list(dense.state_dict())
    assert list(sk.revert(model).state_dict()) == list(dense.state_dict())


@pytest.mark.parametrize("converts", [False, True])
def test_memory_that_was_taken_away(prefer: Prefer, converts: bool) -> None:
    """An error, as torch's own layers raise."""
    if converts:
        model, _, x = converted(prefer)
        weight = model.conv.weight
    else:
        model, x = nn.Linear(512, 512), torch.randn(1, 512)
        prune_(model, "random", 0.9)
        model = sk.nn.SparseLinear.from_dense(model)
        weight = model.weight
    weight.untyped_storage().resize_(0)
    for _ in range(2):
        with pytest.raises((RuntimeError, ValueError)), torch.no_grad():
            model(x)


def test_weights_of_one_address_are_looked_at_each_time() -> None:
    """Fresh tensors of one version, which the allocator puts to the same place."""
    layer = nn.Linear(512, 512)
    prune_(layer, "random", 0.9)
    sparse, x = sk.nn.SparseLinear.from_dense(layer), torch.randn(1, 512)
    zeros = (layer.weight == 0).nonzero()
    for index in range(24):
        weight = layer.weight.detach().clone()
        if index % 2:
            weight[tuple(zeros[1000 * index])] = 10
        with torch.no_grad():
            actual = torch.func.functional_call(sparse, {"weight": weight}, (x,))
        torch.testing.assert_close(actual, nn.functional.linear(x, weight, layer.bias), rtol=1e-4, atol=1e-4)
        del weight


def test_parameters_of_one_call_are_let_go(prefer: Prefer) -> None:
    model, _, x = converted(prefer)
    other = {name: 2 * one for name, one in model.named_parameters()}
    with torch.no_grad():
        torch.func.functional_call(model, other, (x,))
        model(x)
    alive = [weakref.ref(one) for one in other.values()]
    del other
    assert not any(one() is not None for one in alive)


class ByClass(Net):
    def __reduce__(self) -> Any:
        return type(self), (), vars(self)


class Super(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super(self.__class__, self).forward(x)


@pytest.mark.parametrize("kind", [Net, ByClass, Super])
def test_pickles_of_any_protocol(prefer: Prefer, kind: type[Net]) -> None:
    model, dense, x = converted(prefer, kind())
    assert model.__class__ is kind
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        other = pickle.loads(pickle.dumps(model, protocol))
        assert other.__class__ is kind
        assert_same(other, dense, x)
    torch.testing.assert_close(model(x), dense(x), rtol=1e-4, atol=1e-5)  # with gradients: the modules


def test_a_shallow_copy_of_a_deep_one(prefer: Prefer) -> None:
    model, dense, x = converted(prefer)
    deep = copy.deepcopy(model)
    shallow = copy.copy(deep)
    assert_same(shallow, dense, x)
    assert not list(graphs_of(shallow))
    assert len(list(graphs_of(deep))) == 1


class Unique(type):
    known: set[str] = set()  # noqa: RUF012

    def __init__(cls, name: str, *args: Any) -> None:
        if name in Unique.known:
            raise ValueError(f"there is a {name} already")
        Unique.known.add(name)


def test_a_metaclass_of_the_authors(prefer: Prefer) -> None:
    """Another class of that name is none of its business: then there is no graph."""
    kind = Unique("Unique", (Net,), {"__module__": __name__})
    model = kind().eval()
    prune_(model, "random", 0.8)
    dense, x = copy.deepcopy(model), torch.randn(2, 8, 7, 7)
    prefer(FINE, GRAPH, LAYERS)
    assert sk.convert(model, x).converted
    assert type(model) is kind
    assert_same(model, dense, x)


def test_a_parametrization_of_the_model_itself(prefer: Prefer) -> None:
    class Scaled(Net):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.factor

    model, dense, x = converted(prefer, Scaled())
    for one in (model, dense):
        parametrize.register_parametrization(one, "factor", nn.Tanh(), unsafe=True)
    assert_same(model, dense, x)
    for one in (model, dense):
        parametrize.remove_parametrizations(one, "factor")
    assert_same(model, dense, x)
    sk.revert(model)
    assert type(model) is Scaled


class Padded(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        pad = self.settings.pad
        return super().forward(nn.functional.pad(x, (pad, pad, pad, pad)))


def test_attributes_of_a_subclass_in_depth(prefer: Prefer) -> None:
    model = nn.Sequential(Padded(8, 8, 3), nn.ReLU()).eval()
    model[0].settings = types.SimpleNamespace(pad=1)
    prune_(model, "random", 0.8)
    dense, x = copy.deepcopy(model), torch.randn(2, 8, 7, 7)
    prefer(FINE, LAYERS)
    assert sk.convert(model, x).converted
    assert_same(model, dense, x)
    for one in (model, dense):
        one[0].settings.pad = 3
    assert_same(model, dense, x)


def test_a_fork_while_another_thread_traces() -> None:
    stop, held = threading.Event(), threading.Event()

    def trace() -> None:
        while not stop.is_set():
            with attach.ONE_AT_A_TIME, attach._LOCK:
                held.set()
                stop.wait(0.002)

    def child() -> None:
        got = [lock.acquire(timeout=20) for lock in (attach.ONE_AT_A_TIME, attach._LOCK)]
        raise SystemExit(0 if all(got) else 1)

    thread = threading.Thread(target=trace)
    thread.start()
    held.wait()
    try:
        for _ in range(3):
            process = multiprocessing.get_context("fork").Process(target=child)
            process.start()
            process.join(60)
            assert process.exitcode == 0
    finally:
        stop.set()
        thread.join()


def test_threads_that_serve_while_another_writes(prefer: Prefer) -> None:
    """No call computes with constants half of which are new."""
    model, dense, x = converted(prefer)
    values = []
    with torch.no_grad():
        for factor in (1, 2):
            dense.conv.weight.mul_(factor)
            dense.head.weight.mul_(factor)
            values.append(dense(x))
    before = [model.conv.weight.detach().clone(), model.head.weight.detach().clone()]
    errors: list[BaseException] = []
    stop = threading.Event()

    def serve() -> None:
        try:
            with torch.no_grad():
                while not stop.is_set():
                    model(x)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=serve) for _ in range(3)]
    for thread in threads:
        thread.start()
    for index in range(60):
        with torch.no_grad():
            for parameter, value in zip((model.conv.weight, model.head.weight), before, strict=True):
                parameter.copy_(value * (1 + index % 2))
    stop.set()
    for thread in threads:
        thread.join()
    assert not errors
    assert_same(model, dense, x)  # the last were the larger ones


def test_a_norm_of_the_channels_of_images_stays() -> None:
    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.eps = nn.Parameter(torch.randn(8)), 1e-6

        def forward(self, x: Tensor) -> Tensor:
            if x.dim() != 4:
                return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
            scale = torch.rsqrt(x.pow(2).mean(1, keepdim=True) + self.eps)
            return self.weight[:, None, None] * x * scale

    model, x = nn.Sequential(Norm()), torch.randn(2, 8, 8, 8)
    expected = model(x)
    sk.replace_norms(model)
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["_eps", "eps"])
def test_each_norm_has_its_own_epsilon(name: str) -> None:
    class Norm(nn.Module):
        def __init__(self, eps: float) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(16))
            setattr(self, name, eps)

        def forward(self, x: Tensor) -> Tensor:
            return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + getattr(self, name))

    model = nn.Sequential(Norm(1e-6), Norm(0.5))
    dense, x = copy.deepcopy(model), torch.randn(4, 16)
    sk.replace_norms(model)
    torch.testing.assert_close(model(x), dense(x), rtol=1e-5, atol=1e-6)
