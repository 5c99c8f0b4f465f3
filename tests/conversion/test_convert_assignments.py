# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Whatever is assigned to the layers and BatchNorms of a converted model: what the modules give then, or raise."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conversion_checks import DENSE, DROPPED, FINE, GRAPH, LAYERS, Prefer, assert_agree, graphs_of
from conversion_nets import drop_channels_
from torch import Tensor, nn

import sparsekernels as sk
from sparsekernels import _library
from sparsekernels.bench.models import calibrate_
from sparsekernels.conversion.graph.attach import NO_ANSWER
from sparsekernels.pruning import prune_

pytestmark = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.limits = nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU6()
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.limits(self.bn(self.conv(x))))


def parameter(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach().clone())


def cut_in_place(net: Any) -> None:
    """Address and version stay what they are."""
    for name in ("weight", "bias"):
        one = getattr(net.last, name)
        one.data = one.data[:2]


def transpose_in_place(net: Any) -> None:
    net.conv.weight.data = net.conv.weight.data.transpose(0, 1)


def replace_in_place(net: Any) -> None:
    """The memory that the weight had is free when the new one is made, and would be given to it."""
    weight = net.conv.weight
    used, shape = weight.data != 0, weight.shape
    weight.data = torch.empty(0)
    weight.data = torch.linspace(-1, 1, used.numel()).view(shape)
    weight.data.mul_(used)


def refill_in_place(net: Any) -> None:
    """The storage is freed and filled again, and the version kept, as FSDP does. What lies between takes its place."""
    weight = net.conv.weight
    values, storage, size = 2 * weight.detach(), weight.untyped_storage(), weight.untyped_storage().nbytes()
    storage.resize_(0)
    between = [torch.empty_like(values) for _ in range(8)]
    storage.resize_(size)
    with torch.no_grad(), torch.autograd._unsafe_preserve_version_counter(weight):
        weight.copy_(values)
    del between


def conjugate_in_place(net: Any) -> None:
    """The imaginary part of the same numbers, as before, of their conjugates: all but one bit is as it was."""
    weight = net.conv.weight
    pairs = torch.complex(weight.detach(), weight.detach())
    weight.data = pairs.imag
    with torch.no_grad():
        for _ in range(3):
            net(torch.randn(3, 8, 6, 6))
    weight.data = pairs.conj().imag


CHANGES: dict[str, Callable[[Any], Any]] = {
    "no statistics": lambda net: [setattr(net.bn, name, None) for name in ("running_mean", "running_var")],
    "no mean": lambda net: setattr(net.bn, "running_mean", None),
    "no variance": lambda net: setattr(net.bn, "running_var", None),
    "no scale": lambda net: setattr(net.bn, "weight", None),
    "no shift": lambda net: setattr(net.bn, "bias", None),
    "no bias": lambda net: setattr(net.conv, "bias", None),
    "no weight": lambda net: setattr(net.conv, "weight", None),
    "no count": lambda net: setattr(net.bn, "num_batches_tracked", None),
    "no norm": lambda net: setattr(net, "bn", None),
    "affine off": lambda net: setattr(net.bn, "affine", False),
    "tracking off": lambda net: setattr(net.bn, "track_running_stats", False),
    "a limit of none": lambda net: setattr(net.limits, "min_val", None),
    "an identity": lambda net: setattr(net, "bn", nn.Identity()),
    "a norm without statistics": lambda net: setattr(net, "bn", nn.BatchNorm2d(8, track_running_stats=False).eval()),
    "a deleted bias": lambda net: delattr(net.conv, "bias"),
    "a deleted weight": lambda net: delattr(net.conv, "weight"),
    "a deleted scale": lambda net: delattr(net.bn, "weight"),
    "a deleted mean": lambda net: delattr(net.bn, "running_mean"),
    "a mean of one number": lambda net: setattr(net.bn, "running_mean", torch.ones(1)),
    "a mean of a row": lambda net: setattr(net.bn, "running_mean", torch.ones(1, 8)),
    "a scale of one number": lambda net: setattr(net.bn, "weight", nn.Parameter(torch.ones(1))),
    "a bias of one number": lambda net: setattr(net.conv, "bias", nn.Parameter(torch.ones(1))),
    "a weight of one output": lambda net: setattr(net.conv, "weight", parameter(net.conv.weight[:1])),
    "a weight with fewer outputs": lambda net: setattr(net.conv, "weight", parameter(net.conv.weight[:6])),
    "a weight with fewer inputs": lambda net: setattr(net.last, "weight", parameter(net.last.weight[:, :6])),
    "a layer with fewer outputs": lambda net: [
        setattr(net.last, name, parameter(getattr(net.last, name)[:2])) for name in ("weight", "bias")
    ],
    "fewer outputs in place": cut_in_place,
    "a transposed weight in place": transpose_in_place,
    "another weight in place": replace_in_place,
    "a storage freed and filled again": refill_in_place,
    "a conjugate in place": conjugate_in_place,
    "integers in place": lambda net: setattr(net.bn.running_var, "data", net.bn.running_var.data.view(torch.int32)),
    "float64 statistics": lambda net: setattr(net.bn, "running_mean", net.bn.running_mean.double()),
    "a float64 norm": lambda net: net.bn.double(),
    "a float64 bias": lambda net: setattr(net.conv, "bias", parameter(net.conv.bias.double())),
    "a float64 weight": lambda net: setattr(net.conv, "weight", parameter(net.conv.weight.double())),
    "a float64 layer": lambda net: net.conv.double(),
    "a float64 network": lambda net: net.double(),
    "a complex weight": lambda net: setattr(net.conv, "weight", parameter(net.conv.weight.to(torch.complex64))),
    "a sparse weight": lambda net: setattr(net.last, "weight", parameter(net.last.weight.to_sparse())),
    "a pattern of none": lambda net: isinstance(net.conv, sk.nn.SparseConv2d) and setattr(net.conv, "pattern", None),
    "another shape of pattern": lambda net: (
        isinstance(net.conv, sk.nn.SparseConv2d) and setattr(net.conv, "pattern", net.last.pattern)
    ),
    "no outputs": lambda net: hasattr(net.conv, "outputs") and setattr(net.conv, "outputs", None),
}


OTHER_ZEROS = {"a weight with fewer inputs", "a transposed weight in place"}
"""Converted layers go on without the weights that were zero; `set_pattern` and `set_channels` tell them."""


def converted(prefer: Prefer, decision: str) -> tuple[nn.Module, nn.Module, Tensor]:
    """A network that runs as a graph, and what it was made of."""
    model, x = Net().eval(), torch.randn(3, 8, 6, 6)
    calibrate_(model, x)
    prune_(model, "random", 0.7)
    drop_channels_(model)
    dense = copy.deepcopy(model)
    prefer(decision, GRAPH)
    sk.convert(model, x)
    assert len(list(graphs_of(model))) == 1
    assert_agree(model, dense, x)
    return model, dense, x


def outcome(call: Callable[[Tensor], Tensor], x: Tensor) -> Tensor | tuple[type, str]:
    try:
        with torch.no_grad():
            return call(x)
    except Exception as error:
        return type(error), str(error)


@pytest.mark.parametrize("decision", [FINE, DROPPED, DENSE])
@pytest.mark.parametrize("change", CHANGES)
def test_the_modules_run(prefer: Prefer, change: str, decision: str) -> None:
    """Some calls on, too, when the graph has been traced anew."""
    model, dense, x = converted(prefer, decision)
    for one in (model, dense):
        CHANGES[change](one)
    for _ in range(3):
        actual, modules = outcome(model, x), outcome(lambda x: Net.forward(model, x), x)
        if not isinstance(modules, Tensor):
            assert actual == modules
            continue
        torch.testing.assert_close(actual, modules, rtol=1e-4, atol=1e-5)
        if decision == DENSE or change not in OTHER_ZEROS:
            torch.testing.assert_close(modules, outcome(dense, x), rtol=1e-4, atol=1e-5)


def test_the_graph_serves_again(prefer: Prefer) -> None:
    """Once a BatchNorm has its statistics back."""
    model, dense, x = converted(prefer, FINE)
    (graph,) = graphs_of(model)
    kept = model.bn.running_mean, model.bn.running_var
    for statistics in ((None, None), (kept[0] + 1, kept[1])):
        for one in (model, dense):
            one.bn.running_mean, one.bn.running_var = statistics
        for _ in range(2):  # the second call with what it finds folds it
            with torch.no_grad():
                torch.testing.assert_close(model(x), dense(x), rtol=1e-4, atol=1e-5)
        assert graph.prepare().source.changed() is (statistics[0] is None)


def test_a_weight_that_became_one_of_another_device(prefer: Prefer) -> None:
    """It stays the same object."""
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        model, _, x = converted(prefer, DENSE)
        torch.utils.swap_tensors(model.conv.weight, nn.Parameter(torch.empty_like(model.conv.weight, device="meta")))
        (graph,) = graphs_of(model)
        assert graph.prepare().source.changed()
        with torch.no_grad():
            assert graph.answer((x,), {}) is NO_ANSWER
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def test_copies_hold_nothing_of_the_graph(prefer: Prefer) -> None:
    """It has aliases of all parameters, and constants made of them."""
    model, dense, x = converted(prefer, DENSE)
    (graph,) = graphs_of(model)
    assert graph._plan is not None
    saved = io.BytesIO()
    torch.save(model, saved)
    graph._plan = None
    without = io.BytesIO()
    torch.save(model, without)
    assert saved.tell() == without.tell()
    (of_copy,) = graphs_of(copy.deepcopy(model))
    assert of_copy._plan is None
    assert_agree(model, dense, x)


def test_statistics_that_are_not_counted(prefer: Prefer) -> None:
    model, dense, x = converted(prefer, FINE)
    for one in (model, dense):
        one.bn.num_batches_tracked = None
    for _ in range(2):
        for one in (model, dense):
            one.train()(3 * x)
            one.eval()
        assert_agree(model, dense, x)


@pytest.mark.parametrize("sizes", [(8, 0), (0, 8)])
@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_a_layer_without_elements(prefer: Prefer, sizes: tuple[int, int]) -> None:
    """It stays, and the others run as a graph."""

    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.empty, self.last = nn.Linear(8, 8), nn.Linear(*sizes), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = self.first(x).relu()
            return self.last(x), self.empty(x[:, : sizes[0]]).relu()

    model, x = Beside().eval(), torch.randn(4, 8)
    prune_(model, "random", 0.7)
    dense = copy.deepcopy(model)
    prefer(FINE, GRAPH)
    report = sk.convert(model, x)
    assert [row.decision for row in report.layers] == [FINE, DENSE, FINE]
    assert report.layers[1].reason == "its weight has no elements"
    assert len(list(graphs_of(model))) == 1
    with torch.no_grad():
        torch.testing.assert_close(model(x), dense(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("afterwards", [True, False])
@pytest.mark.parametrize("decision", [FINE, DENSE])
@pytest.mark.parametrize(("variance", "scale"), [(1.0, 1.0), (1e10, 1.0), (1.0, 4e4)])
def test_a_fold_that_leaves_the_range_of_float16(
    prefer: Prefer, decision: str, variance: float, scale: float, afterwards: bool
) -> None:
    """Scaled by BatchNorm, weights would lose their digits or overflow: the modules run."""
    model: Any = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()).eval()
    prune_(model, "random", 0.8)
    model[0].half()  # as torch allows it: the statistics stay float32
    model[0].weight.data *= 200 if scale > 1 else 1
    x = torch.randn(4, 32, 10, 10).half() * (1e-4 if scale > 1 else 1000)
    dense = copy.deepcopy(model)
    prefer(decision, GRAPH, LAYERS)

    def set_norm(one: Any) -> None:
        with torch.no_grad():
            one[1].running_var.fill_(variance)
            one[1].weight.fill_(scale)

    set_norm(dense)
    if not afterwards:
        set_norm(model)
    sk.convert(model, x)
    if afterwards:
        set_norm(model)
    with torch.no_grad():
        truth = copy.deepcopy(dense).double()(x.double())
        assert torch.isfinite(truth.half()).all()
        errors = [float((one(x).double() - truth).abs().max() / truth.max()) for one in (model, dense)]
    assert errors[0] <= 2 * errors[1] + 1e-4
