# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""How a graph is called: by keyword, with tensors in containers, with modes, through decorators."""

from __future__ import annotations

import collections
import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from conversion_checks import FINE, GRAPH, Prefer, graphs_of
from torch import Tensor, nn

import sparsekernels as sk
from sparsekernels import _library
from sparsekernels.conversion.graph.attach import NO_ANSWER
from sparsekernels.pruning import prune_

pytestmark = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")


class Block(nn.Module):
    """As those of language models: called by keyword, with much that is only passed on."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 24), nn.Linear(24, 16)

    def forward(
        self,
        hidden: Tensor,
        mask: Tensor | None = None,
        positions: tuple[Tensor, Tensor] | None = None,
        use_cache: bool = False,
        **kwargs: Any,
    ) -> Any:
        inner = torch.relu(self.first(hidden))
        if mask is not None:
            inner = inner * mask
        if positions is not None:
            inner = inner * positions[0] + positions[1]
        result = hidden + self.second(inner)
        return (result, inner) if kwargs.get("output_inner", use_cache) else result


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        positions = x.mean(-1, keepdim=True).cos(), x.mean(-1, keepdim=True).sin()
        for block in self.blocks:
            if x.sum() > 1e9:  # no graph as a whole
                break
            x = block(x, mask=None, positions=positions, use_cache=False, output_inner=None)
        return x


def converted(model: nn.Module, prefer: Prefer, *args: Any, **kwargs: Any) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(1)
    model.eval()
    prune_(model, "random", 0.7)
    dense = copy.deepcopy(model)
    prefer(FINE, GRAPH)
    sk.convert(model, args, example_kwargs=kwargs)
    return model, dense


def is_graph(model: nn.Module) -> bool:
    return [graph.module for graph in graphs_of(model)] == [model]


@torch.no_grad()
def expect_alike(model: nn.Module, dense: nn.Module, *args: Any, served: bool | None = None, **kwargs: Any) -> None:
    """served: whether the graph answers."""
    torch.testing.assert_close(model(*args, **kwargs), dense(*args, **kwargs), rtol=1e-4, atol=1e-5)
    if served is not None:
        (graph,) = graphs_of(model)
        assert (graph.answer(args, kwargs) is not NO_ANSWER) == served


def test_blocks_called_by_keyword(prefer: Prefer) -> None:
    model, dense = converted(Blocks(), prefer, torch.randn(2, 5, 16))
    assert [graph.module for graph in graphs_of(model)] == list(model.blocks)
    expect_alike(model, dense, torch.randn(3, 7, 16))
    block, other = model.blocks[0], dense.blocks[0]
    x = torch.randn(2, 5, 16)
    positions = torch.randn(2, 5, 1), torch.randn(2, 5, 1)
    given: dict[str, Any] = {"mask": None, "positions": positions, "use_cache": False, "output_inner": None}
    expect_alike(block, other, x, served=True, **given)
    expect_alike(block, other, hidden=x, served=True, **given)
    expect_alike(block, other, x, None, positions, served=True, output_inner=None)
    for more in (
        {"mask": torch.randn(2, 5, 1)},
        {"positions": None},
        {"positions": list(positions)},
        {"use_cache": True},
        {"output_inner": True},
        {"another": 1},
    ):
        expect_alike(block, other, x, served=False, **given | more)
    expect_alike(block, other, x, served=False)
    with pytest.raises(TypeError, match="hidden"):
        block(**given)


@pytest.mark.parametrize(
    "given",
    [{"use_cache": True}, {"mask": torch.ones(2, 5, 1)}, {"positions": None, "output_inner": True}],
)
def test_what_is_given_by_name(given: dict[str, Any], prefer: Prefer) -> None:
    x = torch.randn(2, 5, 16)
    model, dense = converted(Block(), prefer, x, **given)
    assert is_graph(model)
    expect_alike(model, dense, x, served=True, **given)
    expect_alike(copy.deepcopy(model), dense, x, **given)
    for other in ({}, {"use_cache": False}, {"mask": torch.randn(2, 5, 24)}, {"output_inner": False}):
        expect_alike(model, dense, x, **other)


def with_defaults(forward: Callable[..., Any]) -> Callable[..., Any]:
    """As decorators of transformers: arguments that are left out come from a configuration."""

    @functools.wraps(forward)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        doubles = kwargs.pop("doubles", self.doubles if not args else False)
        kwargs["scaled"] = kwargs.get("scaled", self.scaled)
        result = forward(self, *args, **kwargs)
        return result * 2 if doubles else result

    return wrapper


class Decorated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.scaled, self.doubles = nn.Linear(16, 16), True, True

    @with_defaults
    def forward(self, x: Tensor, scaled: bool = False) -> Tensor:
        result = torch.relu(self.layer(x))
        return result * 3 if scaled else result


def test_a_forward_behind_a_decorator(prefer: Prefer) -> None:
    x = torch.randn(4, 16)
    model, dense = converted(Decorated(), prefer, x=x)
    assert is_graph(model)
    expect_alike(model, dense, x=torch.randn(7, 16), served=True)
    expect_alike(model, dense, x, served=False)  # the decorator sees the difference
    expect_alike(model, dense, x=x, scaled=False, served=False)
    expect_alike(model, dense, x=x, doubles=False, served=False)
    for one in (model, dense):
        one.scaled = False
    for _ in range(3):
        expect_alike(model, dense, x=x)


class Variadic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, *parts: Tensor, **more: Tensor) -> Tensor:
        return torch.relu(self.layer(sum(parts) + sum(more.values())))


def test_a_variadic_forward(prefer: Prefer) -> None:
    *x, more = [torch.randn(4, 16) for _ in range(4)]
    model, dense = converted(Variadic(), prefer, *x, more=more)
    assert is_graph(model)
    expect_alike(model, dense, *x, more=more + 1, served=True)
    expect_alike(model, dense, *x[1:], more=more, served=False)
    expect_alike(model, dense, *x, other=more, served=False)
    expect_alike(model, dense, *x, served=False)


class Appending(nn.Module):
    """What it appends to the list that it is given belongs to its caller."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, x: Tensor, seen: list[Tensor]) -> Tensor:
        x = torch.relu(self.layer(x))
        seen.append(x)
        return x


def test_a_list_that_is_appended_to(prefer: Prefer) -> None:
    x = torch.randn(4, 16)
    model, _ = converted(Appending(), prefer, x, [x])
    assert not list(graphs_of(model))
    seen = [x]
    model(x, seen)
    assert len(seen) == 2


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.layer = nn.Embedding(50, 16), nn.Linear(16, 16)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return torch.relu(self.layer(self.words(ids))) * mask[..., None]


def test_a_model_of_indices_and_a_mask(prefer: Prefer) -> None:
    ids, mask = torch.randint(50, (2, 7)), torch.rand(2, 7) > 0.5
    model, dense = converted(Words(), prefer, ids=ids, mask=mask)
    assert is_graph(model)
    expect_alike(model, dense, ids[:, :4], mask[:, :4], served=True)
    expect_alike(model, dense, ids.int(), mask.long(), served=True)
    expect_alike(model, dense, ids, mask.double(), served=False)
    for one in (model, dense):
        one.bfloat16()
    torch.testing.assert_close(model(ids, mask), dense(ids, mask))


class Scaling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(16, 16), nn.ReLU())

    def forward(self, x: Tensor, scale: float) -> Tensor:
        return self.body(x) * scale


def test_a_number_may_be_another_in_each_call(prefer: Prefer) -> None:
    x = torch.randn(4, 16)
    scaling, dense = converted(Scaling(), prefer, x, 0.5)
    assert [graph.module for graph in graphs_of(scaling)] == [scaling.body]
    expect_alike(scaling, dense, x, 2.5)


@dataclass
class Output(collections.OrderedDict):
    """A result as transformers has them: a dataclass that is a dict as well."""

    last: Tensor | None = None
    pooled: Tensor | None = None

    def __post_init__(self) -> None:
        self.update({name: value for name, value in vars(self).items() if value is not None})


class WithOutput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Output:
        if x.dtype != self.layer.weight.dtype:
            x = x.to(self.layer.weight.dtype)
        return Output(last=torch.relu(self.layer(x)))


def test_a_result_that_is_a_dataclass_and_a_dict(prefer: Prefer) -> None:
    x = torch.randn(4, 16)
    model, dense = converted(WithOutput(), prefer, x)
    assert is_graph(model)
    result, expected = model(x), dense(x)
    assert type(result) is Output
    assert list(result) == list(expected) == ["last"]
    torch.testing.assert_close(result["last"], expected["last"], rtol=1e-4, atol=1e-5)
    assert result.last is result["last"]
    for one in (model, dense):
        one.bfloat16()
    torch.testing.assert_close(model(x).last, dense(x).last)


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, query: Tensor, key: Tensor, /, *, scale: Tensor | None = None) -> Tensor:
        result = torch.relu(self.layer(query))
        return result * 2 if key is query else result + (key if scale is None else key * scale)


def test_one_tensor_in_two_places(prefer: Prefer) -> None:
    x, y = torch.randn(4, 16), torch.randn(4, 16)
    for example, other in ((x, y), (x, x)), ((x, x), (x, y)):
        model, dense = converted(Pair(), prefer, *example)
        assert is_graph(model)
        expect_alike(model, dense, *example, served=True)
        expect_alike(model, dense, *other, served=False)
    with pytest.raises(TypeError, match="positional-only"):
        model(query=x, key=y)
    model, dense = converted(Pair(), prefer, x, y, scale=torch.randn(16))
    expect_alike(model, dense, x, y, scale=y, served=False)
    expect_alike(model, dense, x, y, scale=x + 1, served=True)


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, x: Tensor, **parts: Tensor) -> Tensor:
        first, second = parts.values()
        return torch.relu(self.layer(x)) + first - second


def test_the_order_of_names(prefer: Prefer) -> None:
    x, first, second = torch.randn(3, 4, 16).unbind()
    model, dense = converted(Named(), prefer, x, first=first, second=second)
    assert is_graph(model)
    expect_alike(model, dense, first=first, x=x, second=second, served=True)
    expect_alike(model, dense, x, second=second, first=first, served=False)


def scaled(x: Tensor, *, by: float = 2.0, shifts: list[float] = []) -> Tensor:  # noqa: B006
    return x * by + sum(shifts)


class WithDefaults(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, x: Tensor, negates: bool = False) -> Tensor:
        result = torch.relu(self.layer(x))
        return scaled(-result if negates else result)


def test_defaults_that_change(prefer: Prefer) -> None:
    x = torch.randn(4, 16)
    model, dense = converted(WithDefaults(), prefer, x)
    assert is_graph(model)
    by_name: Any = scaled.__kwdefaults__
    before = dict(by_name)

    def negates() -> None:
        WithDefaults.forward.__defaults__ = (True,)

    def multiplies() -> None:
        by_name["by"] = 3.0

    def shifts() -> None:
        by_name["shifts"].append(1.0)

    try:
        for change in (negates, multiplies, shifts):
            change()
            for _ in range(3):
                expect_alike(model, dense, x)
    finally:
        WithDefaults.forward.__defaults__ = (False,)
        by_name.update(before)
        by_name["shifts"].clear()


def test_keys_that_are_tensors(prefer: Prefer) -> None:
    """Which compare elementwise."""
    x, y = torch.randn(2, 4, 16).unbind()
    model, dense = converted(Taking(), prefer, {"a": x, "b": y})
    expect_alike(model, dense, {"a": x, "b": y}, served=True)
    expect_alike(model, dense, {x: x, y: y}, served=False)


class Taking(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, parts: dict[Any, Tensor]) -> Tensor:
        first, second = parts.values()
        return torch.relu(self.layer(first)) - second


class OnDevice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, x: Tensor, device: Any) -> Tensor:
        return torch.relu(self.layer(x)).to(device)


def test_a_device_is_no_array(prefer: Prefer) -> None:
    x, device = torch.randn(4, 16), torch.device("cpu")
    model, dense = converted(OnDevice(), prefer, x, device)
    assert is_graph(model)
    expect_alike(model, dense, x, torch.device("cpu"), served=True)
    expect_alike(model, dense, x, torch.ones(2), served=False)
    for one in (model, dense):
        with pytest.raises(TypeError, match="to\\(\\)"):
            one(x, np.ones(2))
