# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Linear layers that are dense for some numbers of rows."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from conversion_checks import DENSE, FINE, GRAPH, LAYERS, Prefer, assert_agree
from torch import Tensor, nn
from torch.nn import functional as F

import sparsekernels as sk
from sparsekernels import _library
from sparsekernels.conversion import rows as rows_module
from sparsekernels.conversion.measure import Times
from sparsekernels.conversion.rows import ROWS, tables_of
from sparsekernels.conversion.survey import Given
from sparsekernels.pruning import prune_

pytestmark = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")

GIVEN = Given((4, 32), torch.float32, torch.device("cpu"), False, False)


def _pruned(*layers: nn.Module) -> nn.Sequential:
    model = nn.Sequential(*layers)
    prune_(model, "random", 0.8)
    return model


def _gains(monkeypatch: pytest.MonkeyPatch, gain: Callable[[int], float]) -> list[int]:
    """In the place of the clock: the gain over dense of everything else, by the number of rows; those asked for."""
    asked: list[int] = []

    def times_of(calls: Mapping[str, Any], *_: object) -> Times:
        rows = len(calls[DENSE]())
        asked.append(rows)
        return Times({name: [1.0 if name == DENSE else 1.0 / gain(rows)] for name in calls})

    monkeypatch.setattr(rows_module, "times_of", times_of)
    return asked


def _products(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of rows that torch's product is called with from now on, of 32 columns."""
    products: list[int] = []
    product = F.linear

    def linear(x: Tensor, *rest: Any) -> Tensor:
        products.append(x.numel() // 32)
        return product(x, *rest)

    monkeypatch.setattr(F, "linear", linear)
    return products


@pytest.mark.parametrize(
    ("gain", "powers", "asked"),
    [
        (lambda rows: 2.0, [], ROWS[:2]),
        (lambda rows: 1.0, range(10), ROWS),
        (lambda rows: 0.5 if rows == 1 else 2.0, [0], ROWS[:3]),
        (lambda rows: 2.0 if rows in (1, 4) else 0.9, [1, *range(3, 10)], ROWS),
        (lambda rows: 0.5 if rows <= 16 else 3.0, [*range(5)], ROWS),  # at 32 the square root of 1.5
        (lambda rows: 0.1 if rows <= 16 else 3.0, [*range(6)], ROWS),
    ],
)
def test_what_is_measured_and_what_lies_between(
    monkeypatch: pytest.MonkeyPatch, gain: Callable[[int], float], powers: list[int], asked: tuple[int, ...]
) -> None:
    measured = _gains(monkeypatch, gain)
    dense = nn.Linear(32, 8)
    table = tables_of(dense, {"other": dense}, GIVEN, 1 << 10)["other"]
    assert [power for power, faster in enumerate(table) if faster] == list(powers)
    assert measured == list(asked)


def test_the_clock() -> None:
    """What takes a hundred times as long is dense for all rows, what takes none for no number of them."""
    dense = nn.Linear(32, 32)
    others = {"slow": lambda x: [dense(x) for _ in range(100)], "fast": lambda x: x}
    tables = tables_of(dense, others, GIVEN, 1 << 10)  # type: ignore[arg-type]
    assert tables == {"slow": (True,) * 10, "fast": ()}


def test_layer_takes_the_dense_product_for_its_rows_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without gradients, in plain calls; with the errors of other calls."""
    layer = sk.nn.SparseLinear.from_dense(_pruned(nn.Linear(32, 16))[0])
    layer.dense_rows = (True, False, True)
    product, products = F.linear, _products(monkeypatch)
    inputs = [torch.randn(shape) for shape in ((1, 32), (32,), (3, 32), (2, 2, 32), (7, 32), (8, 32), (0, 32))]
    for copied in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        products.clear()
        with torch.no_grad():
            for x in inputs:
                torch.testing.assert_close(copied(x), product(x, layer.weight, layer.bias))
        assert products == [1, 1, 4, 7]
    products.clear()
    x = inputs[0].requires_grad_()
    layer(x).sum().backward()
    assert not (layer.weight.grad[~layer.mask]).any()
    layer.requires_grad_(False)
    layer(x)
    with torch.no_grad():
        torch.func.vmap(layer)(torch.randn(2, 4, 32))
        torch.compile(layer, fullgraph=True, backend="eager")(torch.randn(4, 32))
        with torch.autocast("cpu"):
            layer(inputs[0])
        with sk.use_backend("reference"):
            layer(inputs[0])
        with pytest.raises(ValueError, match="sparse_linear: expected input of shape"):
            layer(torch.randn(1, 31))
        with pytest.raises(TypeError, match="sparse_linear"):
            layer(torch.randn(1, 32, dtype=torch.bfloat16))
        layer.dense_grad = True
        with torch.no_grad():
            layer.weight.add_(~layer.mask)  # what an optimizer moved is not read
        torch.testing.assert_close(layer(inputs[3]), product(inputs[3], layer.weight * layer.mask, layer.bias))
    assert products == []


def test_convert_gives_tables(clock: Prefer, monkeypatch: pytest.MonkeyPatch) -> None:
    """To layers that are alike from one measurement; the report has them, and a graph has its own."""
    model = _pruned(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU()).eval()
    dense = copy.deepcopy(model)
    for ways, graph in (((FINE, LAYERS), False), ((FINE, GRAPH), True)):
        clock(*ways)
        asked = _gains(monkeypatch, lambda rows: 0.5 if rows in (2, 4) else 2.0)
        report = sk.convert(model, torch.randn(6, 32))
        assert asked == [1, 2, 4, 8, 16]
        assert [row.reason.endswith("; dense for 2 to 7 rows") for row in report.layers] == [True, True]
        for index in (0, 2):
            assert vars(model[index])["packed_dense_rows"] == model[index].dense_rows == (False, True, True)
        for rows in (1, 2, 5, 8):
            assert_agree(model, dense, torch.randn(rows, 32))
        if graph:
            products = _products(monkeypatch)
            with torch.inference_mode():
                for rows in (1, 2, 5, 8):
                    model(torch.randn(rows, 32))
            assert products == [2, 2, 5, 5]
        sk.revert(model)
    assert "dense_rows" not in vars(model[0])


def test_nonzeros_outside_of_the_pattern_count_for_all_rows() -> None:
    """What is merged into a zero is computed with, by the dense product and by the other one."""
    dense = _pruned(nn.Linear(32, 32))[0]
    layer = sk.nn.SparseLinear.from_dense(dense)
    layer.dense_rows = (True,)
    with torch.no_grad():
        for one in (dense, layer):
            one.weight += 1.0
        assert_agree(layer, dense, torch.randn(1, 32))
        x = torch.randn(5, 32)
        with pytest.warns(UserWarning, match="elements of its weight"):
            layer(x)
        assert_agree(layer, dense, x)
