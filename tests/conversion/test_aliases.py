# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What torch's functions give, asked of torch: memory of their arguments or of their own."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import operator
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from sparsekernels.conversion.graph.aliases import VIEWS_BY_NAME, Gives, gives_of, makes_its_result
from sparsekernels.conversion.graph.in_place import rests_on_layout, written_by
from sparsekernels.conversion.graph.sizes import kind_of

SPACES: tuple[Any, ...] = (torch, F, Tensor)


def names() -> list[str]:
    """Of what can be called by name, in place or not."""
    found = {*dir(torch), *dir(Tensor), *dir(F)}
    return sorted(name for name in found if not name.startswith("_") and not name.endswith("_"))


def tensors() -> list[Tensor]:
    """Small tensors, also such as need no change: of no dimension, one, two, three, four; contiguous and not."""
    base = torch.ones(1, 4, 1, 2)
    kinds = [base, base.to(memory_format=torch.channels_last), base[:, :1, :, :1], base[0].mT, base[0, :, 0]]
    kinds += [base.new_ones(()), base.long()]
    return kinds


ONE = torch.ones(1)
REST: tuple[tuple[Any, ...], ...] = (
    *((), (1,), (0,), (0, 1), (1, 1), ((0, 1),), ((1, 1),), ((0, 0),), ((0, 0, 0, 0),)),
    *((ONE,), (ONE.long(),), (0, ONE.long()), (ONE.bool(), 1), (ONE, ONE)),
)


def memory_of(result: Any, *args: Any) -> list[bool]:
    """Of each tensor of a result, whether it is memory of an argument."""
    given = {one.untyped_storage().data_ptr() for one in tree_leaves(args) if isinstance(one, Tensor)}
    dense = [one for one in tree_leaves(result) if isinstance(one, Tensor) and one.layout is torch.strided]
    return [one.untyped_storage().data_ptr() in given for one in dense if one.numel()]


def results_of(name: str, firsts: Sequence[Any]) -> Iterator[list[bool]]:
    """Of the calls of all functions of a name that take some arguments of ours."""
    for function in {id(one): one for space in SPACES if callable(one := getattr(space, name, None))}.values():
        in_place = inspect.isfunction(function) and "inplace" in inspect.signature(function).parameters
        for first, rest in itertools.product(firsts, REST[: 1 if in_place else None]):
            with contextlib.suppress(Exception):
                yield memory_of(function(first, *rest), first, rest)


@pytest.mark.filterwarnings("ignore")
def test_what_makes_its_result_gives_no_argument() -> None:
    own = [name for name in names() if makes_its_result(name)]
    firsts: list[Any] = tensors()
    found = {name: list(results_of(name, [*firsts, firsts[:1], firsts[:1] * 2])) for name in own}
    assert not [name for name, results in found.items() if any(map(any, results))]
    assert sum(map(bool, found.values())) > 250


@pytest.mark.filterwarnings("ignore")
def test_views_do_not_rest_on_layout() -> None:
    one, other = torch.ones(2, 4, 2, 2), torch.ones(2, 4, 2, 2).contiguous(memory_format=torch.channels_last)
    called = 0
    for name in VIEWS_BY_NAME - {"view", "view_as_complex"}:  # these raise
        results = [list(results_of(name, [first])) for first in (one, other)]
        called += any(results)
        assert all(a == b for a, b in itertools.pairwise(results)), name
    assert called > 40


@pytest.mark.parametrize("inplace", [False, True])
def test_layers_that_make_their_results(inplace: bool) -> None:
    """Also where they need not change anything."""
    layers: list[nn.Module] = [
        nn.Conv2d(4, 4, 1),
        nn.BatchNorm2d(4),
        nn.AdaptiveAvgPool2d(2),
        nn.AvgPool2d(1),
        nn.GELU(),
    ]
    layers += [
        nn.AdaptiveAvgPool2d((None, None)),
        nn.MaxPool2d(1),
        nn.Upsample(scale_factor=1),
        nn.LocalResponseNorm(1),
    ]
    layers += [nn.Upsample(size=2, mode="bilinear"), nn.Upsample(size=2, mode="area"), nn.Softmax(1), nn.Softshrink(0)]
    layers += [nn.Threshold(0, 0), nn.Hardtanh(-2, 2), nn.GroupNorm(1, 4), nn.LayerNorm(2), nn.Linear(2, 2), nn.Tanh()]
    layers += [nn.LPPool2d(1, 1), nn.InstanceNorm2d(4), nn.PReLU(), nn.Hardshrink(0), nn.AdaptiveMaxPool2d(2), nn.GLU()]
    layers += [nn.Identity(), nn.Dropout(), nn.Flatten(3), nn.PixelShuffle(1), nn.ChannelShuffle(1), nn.ZeroPad2d(0)]
    for layer in layers:
        if inplace and not hasattr(layer, "inplace"):
            continue
        if inplace:
            layer.inplace = True  # type: ignore[assignment]
        own = gives_of(layer.eval()) is Gives.OWN
        assert own == (not inplace and layer not in layers[-6:]), layer
        for x in tensors()[:2]:
            assert not own or not any(memory_of(layer(x), x)), layer


def node_of(function: Any, *args: Any, **kwargs: Any) -> tuple[torch.fx.Graph, torch.fx.Node]:
    """A graph that calls `function` or a method on a sum, and whatever is named so as another sum."""
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    named = {name: graph.call_function(torch.add, (x, x)) for name in ("a", "b")}
    place = torch.fx.node.map_aggregate((args, kwargs), lambda one: named.get(str(one), one))
    given: Any = place
    return graph, graph.create_node("call_method" if isinstance(function, str) else "call_function", function, *given)


def foreign(*args: Any) -> None:
    """Nothing is known of it."""


WRITES: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any], str]] = {
    "by name": (torch.relu_, (), {"input": "a"}, "a"),
    "by position": (F.relu, ("a", True), {}, "a"),
    "by position, far": (F.hardtanh, ("a", 0.0, 6.0, True), {}, "a"),
    "not": (F.hardtanh, ("a", 0.0, 6.0, False), {}, ""),
    "out": (torch.max, ("a", 1), {"out": ("b", "b")}, "b"),
    "a list": (torch._foreach_add_, (["a", "b"], 1), {}, "ab"),
    "a method": ("add_", ("a", "b"), {}, "a"),
    "no tensor's method": ("update", ("a", "b"), {}, "ab"),
    "an operator": (operator.irshift, ("a", 1), {}, "a"),
    "an item": (operator.setitem, ("a", 0, "b"), {}, "a"),
    "an item by method": ("__setitem__", ("a", 0, "b"), {}, "a"),
    "an overload": (torch.ops.aten.add_.Tensor, ("a", "b"), {}, "a"),
    "init": (nn.init.constant_, (), {"tensor": "a", "val": 1.0}, "a"),
    "foreign": (foreign, ("b", "a"), {}, "ab"),
    "an embedding": (F.embedding, ("a", "b"), {"max_norm": 1.0}, "ab"),
    "statistics": (F.batch_norm, ("a", "b", "b"), {"training": True}, "ab"),
    "no statistics": (F.batch_norm, ("a", "b", "b"), {}, ""),
}


@pytest.mark.parametrize("name", WRITES)
def test_what_is_written(name: str) -> None:
    function, args, kwargs, expected = WRITES[name]
    _, node = node_of(function, *args, **kwargs)
    nodes = [one for one in node.graph.nodes if one.target is torch.add]
    assert {"ab"[nodes.index(one)] for one in written_by(node, {})} == set(expected)


RESTS: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any], bool]] = {
    "reshape": (torch.reshape, ("a", (-1,)), {}, True),
    "reshape by name": (torch.reshape, (), {"input": "a", "shape": (-1,)}, True),
    "transpose by name": (torch.transpose, (), {"input": "a", "dim0": 0, "dim1": 1}, False),
    "several": (torch.broadcast_tensors, ("b", "a"), {}, False),
    "a list": (torch.atleast_2d, (["b", "a"],), {}, False),
    "a product": (torch.mul, ("a", "b"), {}, False),
    "einsum": (torch.einsum, ("ij->ji", "a"), {}, True),
    "foreign": (foreign, ("b", "a"), {}, True),
    "somebody's method": ("update", ("b", "a"), {}, True),
    "a class": (dict, (), {"a": "a"}, False),
}


@pytest.mark.parametrize("name", RESTS)
def test_what_rests_on_layout(name: str) -> None:
    """Where its argument `a` is written to, or what it gives; and where that is of an argument of the graph."""
    function, args, kwargs, expected = RESTS[name]
    graph, node = node_of(function, *args, **kwargs)
    x, a = itertools.islice(graph.nodes, 2)
    graph.call_method("relu_", (a,))
    assert rests_on_layout(graph, {}) == expected
    graph.call_method("relu_", (node,))
    assert rests_on_layout(graph, {}) == expected
    a.replace_all_uses_with(x, lambda user: user is node)
    assert rests_on_layout(graph, {}) == (function is not torch.mul)


@pytest.mark.parametrize("of_sizes", [False, True])
def test_long_chains_of_sums(of_sizes: bool) -> None:
    """Where each sum reads the one before twice, there are as many paths as two to the power of their number."""
    graph = torch.fx.Graph()
    start = y = graph.placeholder("x")
    if of_sizes:
        y = graph.call_method("size", (y, 0))
    for _ in range(2000):
        y = graph.call_function(operator.add, (y, graph.call_function(operator.mul, (y, 2))))
    graph.call_method("add_", (graph.call_method("abs", (start,)), y))
    before = time.perf_counter()
    assert not rests_on_layout(graph, {})
    assert kind_of(y) is (int if of_sizes else None)
    assert time.perf_counter() - before < 1
