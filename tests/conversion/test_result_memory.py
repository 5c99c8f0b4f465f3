# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What a result is in memory: an argument, a view of one, tensors of its own, in the layout that the modules give."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conversion_checks import FINE, GRAPH, LAYERS, Prefer, graphs_of
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import sparsekernels as sk
from sparsekernels import _library
from sparsekernels.pruning import prune_

pytestmark = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")

Act = Callable[[Any, Tensor], Any]


class Net(nn.Module):
    def __init__(self, act: Act) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.relu, self.flatten = nn.ReLU(inplace=True), nn.Flatten()
        self.identity, self.dropout = nn.Identity(), nn.Dropout()
        self.scale, self.act = nn.Parameter(torch.randn(1, 4, 1, 2)), act

    def h(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))

    def forward(self, x: Tensor) -> Any:
        return self.act(self, x)


def adds(view: Act) -> Act:
    """The sum with a view of the argument, in place."""

    def act(net: Any, x: Tensor) -> Tensor:
        y = view(net, x)
        y += net.norm(net.conv(x))
        return y  # type: ignore[no-any-return]

    return act


def writes(view: Act) -> Act:
    """What is a view or a copy of a convolution's result, while that is written to."""

    def act(net: Any, x: Tensor) -> Any:
        h = net.conv(x)
        y = view(net, h)
        h.add_(1)
        return h, y

    return act


def writes_by_name(net: Any, x: Tensor) -> Tensor:
    y, _ = torch.broadcast_tensors(torch.transpose(input=x, dim0=2, dim1=3), net.scale[:, :, :, :1])
    torch.relu_(input=y)
    return net.h(x)  # type: ignore[no-any-return]


def adds_to_an_attribute(net: Any, x: Tensor) -> Tensor:
    h, y = net.h(x), x.mT
    y += 1
    return h + x  # type: ignore[no-any-return]


def writes_part(net: Any, x: Tensor) -> Any:
    h = net.h(x)
    x[:, 0] = h[:, 0]
    return h


def writes_out(net: Any, x: Tensor) -> Any:
    h = net.h(x)
    torch.add(h, h, out=x)
    return h


ACTS: dict[str, Act] = {
    "the argument": lambda net, x: (x, net.h(x)),
    "twice": lambda net, x: {"x": x, "all": [net.h(x), x]},
    "a part": lambda net, x: (x[:, :2], net.h(x)),
    "flattened": lambda net, x: (x.flatten(1), net.h(x)),
    "permuted": lambda net, x: (x.permute(0, 2, 3, 1), net.h(x)),
    "identity": lambda net, x: (net.identity(x), net.dropout(x), net.h(x)),
    "contiguous": lambda net, x: (x.contiguous(), net.h(x)),
    "to": lambda net, x: (x.to(torch.float32), x.float(), x.detach(), net.h(x)),
    "one result twice": lambda net, x: [net.h(x)] * 2,
    "two views": lambda net, x: (lambda h: (h, h[:, :2], h.flatten(2)))(net.h(x)),
    "two copies": lambda net, x: (lambda h: (h.flatten(1), h.reshape(h.shape[0], -1)))(net.h(x)),
    "permuted result": lambda net, x: net.h(x).permute(0, 2, 3, 1),
    "contiguous result": lambda net, x: net.h(x).contiguous(),
    "transposed result": lambda net, x: net.h(x).mT,
    "five dimensions": lambda net, x: net.h(x).view(x.shape[0], 2, 2, *x.shape[2:]),
    "softmax": lambda net, x: net.h(x).softmax(1),
    "a parameter": lambda net, x: (net.scale, net.scale.expand(x.shape[0], -1, 3, -1), net.h(x)),
    "a sum": lambda net, x: x + net.h(x),
    "adds to the argument": adds(lambda net, x: x),
    "adds to what ReLU gave": adds(lambda net, x: net.relu(x)),
    "adds to what identity gave": adds(lambda net, x: net.identity(x)),
    "writes a part": writes_part,
    "writes by name": writes_by_name,
    "adds to an attribute": adds_to_an_attribute,
    "writes out": writes_out,
    "writes under flatten": writes(lambda net, h: h.flatten(1)),
    "writes under Flatten": writes(lambda net, h: net.flatten(h)),
    "writes under contiguous": writes(lambda net, h: h.contiguous()),
    "writes under reshape by name": writes(lambda net, h: torch.reshape(input=h, shape=(h.shape[0], -1))),
    "its strides": lambda net, x: net.h(x) * net.conv(x).stride(1),
    "its strides as a tuple": lambda net, x: net.h(x) * max(net.conv(x).stride()[1:]),
    "whether it is contiguous": lambda net, x: net.h(x) * net.conv(x).is_contiguous(),
    "by place": lambda net, x: torch.as_strided_copy(net.h(x), (4,), (2,)),
    "resized": lambda net, x: net.h(x).resize_(2, 2, 6, 6) + 1,
    "writes under what may be a view": writes(lambda net, h: torch.einsum("nchw->nhwc", h).reshape(h.shape[0], -1)),
}

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "expanded": lambda x: x[:1].expand_as(x),
    "transposed": lambda x: x.mT.contiguous().mT,
    "a slice": lambda x: torch.cat([x, x], 1)[:, :4],
}


def memory_of(model: nn.Module, x: Tensor) -> tuple[Any, ...]:
    """What is one tensor, what shares memory, and layouts; copies of what there is then, the argument included."""
    result = model(x)
    tensors = [x, *tree_leaves(result), *model.parameters()]
    memory = [one.untyped_storage().data_ptr() for one in tensors]
    facts = (
        type(result),
        [[one is other for other in tensors] for one in tensors],
        [[one == other for other in memory] for one in memory],
        [one.is_contiguous() for one in tensors],
        [one.is_contiguous(memory_format=torch.channels_last) for one in tensors if one.dim() == 4],
    )
    return facts, [one.detach().clone() for one in tensors]


@pytest.mark.parametrize("act", ACTS)
def test_results_are_in_memory_what_they_were(prefer: Prefer, act: str) -> None:
    torch.manual_seed(1)
    model = Net(ACTS[act]).eval()
    prune_(model, "random", 0.7)
    dense = copy.deepcopy(model)
    prefer(FINE, GRAPH, LAYERS)
    assert sk.convert(model, torch.randn(2, 4, 6, 6)).converted
    for layout, lay in LAYOUTS.items():
        for call in range(3):
            x = torch.randn(2, 4, 6, 6)
            with torch.no_grad():
                try:
                    expected, values = memory_of(dense, lay(x.clone()))
                except RuntimeError:  # an expanded tensor cannot be written to
                    with pytest.raises(RuntimeError):
                        model(lay(x.clone()))
                    continue
                facts, actual = memory_of(model, lay(x.clone()))
            assert facts == expected, (layout, call)
            torch.testing.assert_close(actual, values, rtol=1e-4, atol=1e-5, msg=f"{layout}, {call}")


def test_images_in_channels_last_run_as_a_graph(prefer: Prefer) -> None:
    """In every call but the first of a layout, of whatever size."""
    model = Net(lambda net, x: {"h": net.h(x), "size": x.shape[0]}).eval()
    prune_(model, "random", 0.7)
    prefer(FINE, GRAPH)
    sk.convert(model, torch.randn(2, 4, 6, 6))
    (graph,) = graphs_of(model)
    with torch.no_grad():
        for size in (6, 6, 8, 5):
            model(torch.randn(2, 4, size, size).contiguous(memory_format=torch.channels_last))
    plan: Any = graph.prepare()
    assert list(plan.orders.values()) == [[(0, 2, 3, 1)]]


def test_arguments_in_a_dict_and_by_name(prefer: Prefer) -> None:
    """Whether a conversion of indices gives these or a copy depends on what they are."""

    class Keyed(Net):
        def forward(self, images: dict[str, Tensor], *, mask: Tensor) -> Any:  # type: ignore[override]
            return self.h(images["x"]), mask.long()

    model = Keyed(lambda net, x: x).eval()
    prune_(model, "random", 0.7)
    dense = copy.deepcopy(model)
    prefer(FINE, GRAPH)
    mask = torch.ones(2, 4, 6, 6, dtype=torch.int32)
    sk.convert(model, ({"x": torch.randn(2, 4, 6, 6)},), example_kwargs={"mask": mask})
    assert [graph.module for graph in graphs_of(model)] == [model]
    lay = LAYOUTS["channels_last"]
    for dtype in (torch.int32, torch.int64, torch.int32):
        for _ in range(2):
            x, mask = lay(torch.randn(2, 4, 6, 6)), lay(torch.ones(2, 4, 6, 6)).to(dtype)
            with torch.no_grad():
                h, indices = model({"x": x}, mask=mask)
                expected, _ = dense({"x": x}, mask=mask)
            assert (indices is mask) == (dtype is torch.int64)
            assert h.is_contiguous(memory_format=torch.channels_last)
            torch.testing.assert_close(h, expected, rtol=1e-4, atol=1e-5)
    (graph,) = graphs_of(model)
    plan: Any = graph.prepare()
    assert [orders is None for orders in plan.orders.values()] == [False, True]


@pytest.mark.parametrize("lay", ["gaps", "permuted"])
def test_views_by_the_sizes_of_the_argument(prefer: Prefer, lay: str) -> None:
    """Where rows of 8 are asked for, those of an argument may be them; other rows are copied to make some."""

    def of(width: int) -> Tensor:
        return torch.randn(2, 4, 6, 16)[..., :width] if lay == "gaps" else torch.randn(6, 4, 2, width).transpose(0, 2)

    model = Net(lambda net, x: (x.reshape(*(() if lay == "gaps" else (2, 4)), -1, 8), net.h(x))).eval()
    prune_(model, "random", 0.7)
    prefer(FINE, GRAPH)
    sk.convert(model, torch.randn(2, 4, 6, 8))
    for width in (4, 8, 4, 8):
        for _ in range(2):
            x = of(width)
            with torch.no_grad():
                part, h = model(x)
            assert (part.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()) == (width == 8)
            assert h.shape == x.shape
    plan: Any = next(iter(graphs_of(model))).prepare()
    assert [orders is None for orders in plan.orders.values()] == [False, True]


def test_other_sizes_lie_alike_where_no_argument_is_copied(prefer: Prefer) -> None:
    model = Net(lambda net, x: (net.h(x).flatten(1), x.permute(0, 2, 3, 1) + 1)).eval()
    prune_(model, "random", 0.7)
    prefer(FINE, GRAPH)
    sk.convert(model, torch.randn(2, 4, 6, 6))
    with torch.no_grad():
        for size in (6, 7, 8):
            model(torch.randn(2, 4, size, size).contiguous(memory_format=torch.channels_last))
    plan: Any = next(iter(graphs_of(model))).prepare()
    assert len(plan.orders) == 1


@pytest.mark.parametrize("lay", ["contiguous", "channels_last"])
def test_weights_that_are_moved_to_channels_last(prefer: Prefer, lay: str) -> None:
    """torch's convolutions follow them; ones that are not folded as well."""

    class Two(Net):
        def __init__(self, act: Act) -> None:
            super().__init__(act)
            self.dense, self.transposed = nn.Conv2d(4, 4, 3, padding=1), nn.ConvTranspose2d(4, 4, 1)

    for act in (lambda net, x: net.dense(net.h(x)), lambda net, x: net.transposed(net.h(x))):
        model = Two(act).eval()
        prune_(model.conv, "random", 0.7)
        layers = copy.deepcopy(model)
        for way, one in ((GRAPH, model), (LAYERS, layers)):
            prefer(FINE, way)
            sk.convert(one, torch.randn(2, 4, 6, 6))
        for memory_format in (torch.contiguous_format, torch.channels_last, torch.contiguous_format):
            for one in (model, layers):
                one.to(memory_format=memory_format)  # type: ignore[call-overload]
            for _ in range(4):
                x = LAYOUTS[lay](torch.randn(2, 4, 6, 6))
                with torch.no_grad():
                    actual, expected = model(x), layers(x)
                assert actual.stride() == expected.stride(), memory_format
                torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_strides_after_a_permutation(prefer: Prefer) -> None:
    """A sum lies as its first addend does."""
    model = Net(lambda net, x: x.mT + net.norm(net.conv(x))).eval()
    prune_(model, "random", 0.7)
    dense, x = copy.deepcopy(model), torch.randn(2, 4, 6, 6)
    prefer(FINE, GRAPH)
    sk.convert(model, x)
    with torch.no_grad():
        assert [model(x).stride() for _ in range(3)] == [dense(x).stride()] * 3


def test_a_graph_in_the_layout_of_its_input(prefer: Prefer) -> None:
    """What torch gives in another layout, softmax say, decides on how a sum with it lies."""
    model = Net(lambda net, x: x.softmax(1) + net.norm(net.conv(x))).eval()
    prune_(model, "random", 0.7)
    dense, x = copy.deepcopy(model), torch.randn(2, 4, 6, 6).contiguous(memory_format=torch.channels_last)
    prefer(FINE, "graph in the input's layout")
    sk.convert(model, x)
    assert next(iter(graphs_of(model))).layout is torch.preserve_format  # type: ignore[attr-defined]
    with torch.no_grad():
        assert [model(x).stride() for _ in range(3)] == [dense(x).stride()] * 3


class ByName(Net):
    def forward(self, *, factor: Any = None, images: Tensor) -> Any:  # type: ignore[override]
        return self.h(images) if factor is None else factor(self.h(images))


def test_a_call_by_name_that_raises(prefer: Prefer) -> None:
    model = ByName(lambda net, x: x).eval()
    prune_(model, "random", 0.7)
    dense = copy.deepcopy(model)
    prefer(FINE, GRAPH)
    sk.convert(model, example_kwargs={"images": torch.randn(2, 4, 6, 6)})
    (graph,) = graphs_of(model)
    lay = LAYOUTS["channels_last"]
    with torch.no_grad():
        with pytest.raises(ValueError, match="expected input of 4 channels"):
            model(images=lay(torch.randn(2, 5, 6, 6)))
        x = lay(torch.randn(2, 4, 6, 6))
        torch.testing.assert_close(model(images=x), dense(images=x), rtol=1e-4, atol=1e-5)
        plan: Any = graph.prepare()
        assert len(plan.orders) == 1
        plan.made = replace(plan.made, run=lambda *args: 1 / 0)  # what goes wrong on our side is no error of theirs
        torch.testing.assert_close(model(images=x), dense(images=x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lay", ["contiguous", "channels_last"])
def test_random_numbers_are_drawn_once(prefer: Prefer, lay: str) -> None:
    model = Net(lambda net, x: F.dropout(net.h(x), 0.5, True)).eval()
    prune_(model, "random", 0.7)
    dense = copy.deepcopy(model)
    prefer(FINE, GRAPH)
    sk.convert(model, torch.randn(2, 4, 6, 6))
    x, states = LAYOUTS[lay](torch.randn(2, 4, 6, 6)), []
    for one in (model, dense):
        torch.manual_seed(1)
        with torch.no_grad():
            results = [one(x) for _ in range(3)]
        states.append((results, torch.get_rng_state()))
    torch.testing.assert_close(*states, rtol=1e-4, atol=1e-5)
