# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What is no training graph, and what is refused or not used."""

from __future__ import annotations

import copy
import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
import torch.nn.functional as F
from conversion_checks import FINE, GRAPH, LAYERS, Prefer, graphs_of
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from training_graph_checks import trained

import sparsekernels as sk
from sparsekernels import _library
from sparsekernels.conversion.agreement import point_alike
from sparsekernels.conversion.graph import batch_norm as norm_module
from sparsekernels.conversion.graph.batch_norm import FusedNorm
from sparsekernels.conversion.graph.training import TrainingGraph
from sparsekernels.conversion.graph.untraceable import Untraceable
from sparsekernels.pruning import prune_

pytestmark = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")


DRAWS: dict[str, Callable[[Any], float]] = {
    "torch": lambda net: float(torch.rand(())),
    "python": lambda net: random.random(),
    "numpy": lambda net: float(numpy.random.rand()),
    "a Generator of torch": lambda net: float(torch.rand((), generator=net.torch)),
    "a Random": lambda net: net.python.random(),
    "a Generator of numpy": lambda net: float(net.numpy.random()),
    "a RandomState": lambda net: float(net.numpy_state.rand()),
}


class Awkward(nn.Module):
    """What a graph would record once, or not at all."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.conv, self.norm, self.again = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)
        self.how = how
        self.python, self.numpy, self.torch = random.Random(1), numpy.random.default_rng(1), torch.Generator()
        self.numpy_state = numpy.random.RandomState(1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.how == "no_grad":
            with torch.no_grad():
                x = self.norm(x)
            return self.again(x)
        if self.how == "checkpoint":
            return self.again(checkpoint(self.norm, x, use_reentrant=False))
        if self.how == "reentrant checkpoint":
            return self.again(checkpoint(self.norm, x, use_reentrant=True))
        if self.how == "autocast":
            with torch.autocast("cpu", torch.bfloat16):
                return self.again(F.relu(self.norm(x)))
        x = F.relu(self.norm(x))
        return x if DRAWS[self.how](self) < 0.5 else self.again(x)

    def states(self) -> list[Any]:
        own = self.torch.get_state().tolist(), self.python.getstate(), self.numpy.bit_generator.state
        everyones = torch.get_rng_state().tolist(), random.getstate(), numpy.random.get_state()[1].tolist()
        return [*own, *everyones, self.numpy_state.get_state()[1].tolist()]


@pytest.mark.parametrize("how", ["no_grad", "checkpoint", "reentrant checkpoint", "autocast", *DRAWS])
def test_what_a_graph_would_lose_is_not_traced(prefer: Prefer, how: str) -> None:
    model = Awkward(how).train()
    prune_(model, "random", 0.8)
    before = [str(state) for state in model.states()]
    with pytest.raises(Untraceable):
        TrainingGraph(model, torch.float32, torch.device("cpu")).prepare()
    assert [str(state) for state in model.states()] == before  # what was drawn was given back
    prefer(FINE, GRAPH)
    sk.convert(model, torch.randn(4, 8, 6, 6))
    assert not list(graphs_of(model))


def test_a_part_that_can_be_traced(prefer: Prefer) -> None:
    """Where the whole cannot."""

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            x = self.inner(x)
            return x if x.sum() > 0 else -x

    model = Outer().train()
    prune_(model, "random", 0.8)
    prefer(FINE, GRAPH)
    sk.convert(model, torch.randn(4, 8, 6, 6))
    (graph,) = graphs_of(model)
    assert graph.module is model.inner


def test_a_graph_that_is_wrong_is_not_used(prefer: Prefer, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = trained()
    prefer(FINE, GRAPH, LAYERS)
    genuine = FusedNorm.forward
    wrongs: list[Callable[[Tensor], Tensor]] = [lambda y: 1.01 * y, Tensor.detach, lambda y: y + 0 * y.mean()]
    used = []
    for wrong in wrongs:
        monkeypatch.setattr(FusedNorm, "forward", lambda self, x, wrong=wrong: wrong(genuine(self, x)))
        report = sk.convert(model, x)
        used.append(bool(list(graphs_of(model))))
        assert any("results differed" in note for note in report.notes) is not used[-1]
    assert used == [False, False, True]


def test_slower_graphs_are_not_used(prefer: Prefer) -> None:
    model, x = trained()
    prefer(FINE, LAYERS, GRAPH)
    sk.convert(model, x)
    assert not list(graphs_of(model))
    assert isinstance(model.convs[1], sk.nn.SparseConv2d)


def test_code_that_looks_whether_gradients_are_wanted(prefer: Prefer) -> None:
    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)

        def forward(self, x: Tensor) -> Tensor:
            x = self.bn(self.conv(x))
            return x if torch.is_grad_enabled() else -x

    model = Looks().train()
    prune_(model, "random", 0.8)
    dense, x = copy.deepcopy(model), torch.randn(4, 8, 9, 9)
    prefer(FINE, GRAPH)
    sk.convert(model, x)
    assert list(graphs_of(model))
    torch.testing.assert_close(model(x), dense(x), rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(model(x), dense(x), rtol=1e-3, atol=1e-4)


def test_what_torch_refuses_is_refused(prefer: Prefer) -> None:
    model, x = trained()
    prefer(FINE, GRAPH)
    sk.convert(model, x)
    model.norms[0].eps = 0.0
    with pytest.raises(ValueError, match="eps"):
        model(x)
    model.norms[0].eps = 1e-5
    model.norms[0].running_mean = torch.zeros(9)
    with pytest.raises(RuntimeError, match="running_mean"):
        model(x)


def test_statistics_count_in_the_check(prefer: Prefer, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = trained()
    prefer(FINE, GRAPH, LAYERS)
    monkeypatch.setattr(norm_module, "_track", lambda *_: None)
    report = sk.convert(model, x)
    assert not list(graphs_of(model))
    assert any("results differed" in note for note in report.notes)


def test_the_package_does_without_numpy() -> None:
    """As torch does: it is no requirement. In evaluation mode `convert` imports no sympy either: a second or two."""
    program = "import sys; sys.modules['numpy'] = None; import sparsekernels as sk, torch; from torch import nn\n"
    program += "net = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()\n"
    program += "with torch.no_grad(): net[0].weight[:, :6] = 0\n"
    program += "print(sk.convert(net, torch.randn(2, 8, 9, 9)))\n"
    program += "assert {'sympy', 'torch._dynamo', 'torch._inductor'}.isdisjoint(sys.modules)\n"
    program += "print(sk.convert(net.train(), torch.randn(2, 8, 9, 9)))"
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def test_an_import_is_not_broken_off() -> None:
    """What a forward imports first reads clocks; a package of which a part was imported would stay broken."""
    program = "import torch; from torch import nn; from torch.utils.checkpoint import checkpoint\n"
    program += "from sparsekernels.conversion.graph.training import TrainingGraph\n"
    program += "class Net(nn.Sequential):\n"
    program += "    def forward(self, x): return checkpoint(super().forward, x, use_reentrant=False)\n"
    program += "net = Net(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)).train()\n"
    program += "try: TrainingGraph(net, torch.float32, torch.device('cpu')).prepare()\n"
    program += "except Exception as error: print(error)\n"
    program += "import torch._dynamo\n"
    program += "assert torch._dynamo.utils\n"
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def test_check_of_gradients() -> None:
    """Directions and lengths count, not the last digit."""
    one = [torch.randn(100), None, torch.randn(3, 3)]
    near = [None if tensor is None else tensor * 1.01 for tensor in one]
    far = [one[0], None, torch.randn(3, 3)]  # one parameter among others
    assert point_alike(near, one)
    assert not point_alike(far, one)
    assert not point_alike([one[0], torch.ones(1), one[2]], one)
    assert not point_alike([one[0] * float("nan"), None, one[2]], one)
