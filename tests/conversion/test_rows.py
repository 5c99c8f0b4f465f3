# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Linear layers that are dense for some numbers of rows."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from conversion_checks import DENSE, FINE, GRAPH, LAYERS, Prefer, assert_agree, attempt_module
from torch import Tensor, nn
from torch.nn import functional as F

import sparsekernels as sk
from sparsekernels import _library
from sparsekernels.conversion import decide as decide_module
from sparsekernels.conversion import rows as rows_module
from sparsekernels.conversion.decide import Decision, like
from sparsekernels.conversion.facts import Note, Way
from sparsekernels.conversion.graph.fused import FusedDense
from sparsekernels.conversion.measure import Times, stopped_by
from sparsekernels.conversion.report import Ground, LayerReport, _ranges
from sparsekernels.conversion.rows import ROWS, gains_of, table_of
from sparsekernels.conversion.survey import Given
from sparsekernels.nn.replacement import has_rows
from sparsekernels.pruning import prune_
from sparsekernels.usage import Disturbed

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


MANY = ROWS[-1]


@pytest.mark.parametrize(
    ("gain", "table", "asked"),
    [
        (lambda rows: 2.0, (), (MANY, 1, 2)),
        (lambda rows: 1.0, (1,), (MANY, *ROWS[:-1])),
        (lambda rows: 0.5 if rows == 1 else 2.0, (1, 2), (MANY, 1, 2, 4)),
        (lambda rows: 2.0 if rows < MANY else 0.9, (305,), (MANY, *ROWS[:-1], 181, 304)),
        (lambda rows: 2.0 if rows in (1, 4) else 0.9, (2, 4, 5), (MANY, *ROWS[:-1])),
        (lambda rows: 0.5 if rows <= 40 else 3.0, (1, 64), (MANY, *ROWS[:-1], 32)),
        (lambda rows: 0.5 if rows <= 20 else 3.0, (1, 32), (MANY, *ROWS[:-1], 32)),
    ],
)
def test_what_is_measured_and_what_lies_between(
    monkeypatch: pytest.MonkeyPatch, gain: Callable[[int], float], table: tuple[int, ...], asked: tuple[int, ...]
) -> None:
    """Between two numbers of rows one of which is faster dense, all are dense; a gap where it changes is halved."""
    measured = _gains(monkeypatch, gain)
    dense = nn.Linear(32, 8)
    assert table_of(gains_of(dense, {"other": dense}, GIVEN, 1 << 10)["other"]) == table
    assert measured == list(asked)


def test_a_small_gain_is_measured_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lesser of the two counts."""
    found = {rows: iter([1.05, 0.99]) for rows in ROWS}
    _gains(monkeypatch, lambda rows: next(found[rows]))
    dense = nn.Linear(32, 8)
    assert gains_of(dense, {"other": dense}, GIVEN, 1 << 10)["other"] == pytest.approx(dict.fromkeys(ROWS, 0.99))


def test_the_numbers_of_rows_that_it_is_called_with_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """What there is no time for stays dense, if more rows gain at all."""
    measured = _gains(monkeypatch, lambda rows: 2.0)
    dense = nn.Linear(32, 8)
    with stopped_by(lambda: len(measured) >= 2):
        gains = gains_of(dense, {"other": dense}, GIVEN, 1 << 10, also=(100, 7))["other"]
    assert measured == [7, 100]
    assert table_of(gains) == (1, 7)


def test_an_interrupt_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> bool:
        raise KeyboardInterrupt

    dense = nn.Linear(32, 8)
    with stopped_by(interrupted), pytest.raises(KeyboardInterrupt):
        gains_of(dense, {"other": dense}, GIVEN, 1 << 10)


def test_the_clock() -> None:
    """What takes a hundred times as long is dense for all rows, what takes none for no number of them."""
    dense = nn.Linear(32, 32)
    others = {"slow": lambda x: [dense(x) for _ in range(100)], "fast": lambda x: x}
    gains = gains_of(dense, others, GIVEN, 1 << 10)  # type: ignore[arg-type]
    assert {name: table_of(found) for name, found in gains.items()} == {"slow": (1,), "fast": ()}


@pytest.mark.parametrize("table", [(), (1,), (3,), (1, 2, 5, 9), (2, 3), (1, 2)])
def test_tables_and_their_words(table: tuple[int, ...]) -> None:
    rows = [number for number in range(20) if has_rows(table, number)]
    starts = {
        number
        for first, until in itertools.zip_longest(table[::2], table[1::2], fillvalue=20)
        for number in range(first, until)
    }
    assert rows == sorted(starts)
    words = {
        (): "",
        (1,): "any number of rows",
        (3,): "3 or more rows",
        (1, 2, 5, 9): "1, 5 to 8 rows",
        (2, 3): "2 rows",
        (1, 2): "1 row",
    }
    assert _ranges(table) == words[table]


def test_layer_takes_the_dense_product_for_its_rows_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without gradients, in plain calls; with the errors of other calls."""
    layer = sk.nn.SparseLinear.from_dense(_pruned(nn.Linear(32, 16))[0])
    layer.dense_rows = (1, 2, 4, 8)
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
        layer.dense_grad = True
        with torch.no_grad():
            layer.weight.add_(~layer.mask)  # what an optimizer moved is not read
        torch.testing.assert_close(layer(inputs[3]), product(inputs[3], layer.weight * layer.mask, layer.bias))
    assert products == []


@pytest.mark.parametrize("in_graph", [False, True])
def test_channel_dropped_layer_takes_the_whole_weight_for_its_rows(
    monkeypatch: pytest.MonkeyPatch, in_graph: bool
) -> None:
    """Selecting its part takes longer there than it saves."""
    dense = nn.Linear(32, 16)
    with torch.no_grad():
        dense.weight[::2] = 0
        dense.weight[:, 8:] = 0
    layer = sk.nn.ChannelDroppedLinear.sharing(dense)
    layer.dense_rows = layer.packed_dense_rows = (1, 4)
    called = FusedDense(layer, layout=torch.contiguous_format) if in_graph else layer
    product, shapes = F.linear, []

    def linear(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
        shapes.append(tuple(weight.shape))
        return product(x, weight, *rest)

    monkeypatch.setattr(F, "linear", linear)
    with torch.no_grad():
        for rows in (1, 3, 4):
            x = torch.randn(rows, 32)
            torch.testing.assert_close(called(x), product(x, dense.weight, dense.bias))
    assert shapes == [(16, 32), (16, 32), (8, 8)]
    if not in_graph:
        layer(torch.randn(1, 32)).sum().backward()
        assert shapes[3:] == [(8, 8)]


def test_what_was_not_measured_has_the_tables_of_its_like() -> None:
    first, second = (sk.nn.SparseLinear.sharing(_pruned(nn.Linear(32, 16))[0]) for _ in range(2))
    first.dense_rows, first.packed_dense_rows = (1, 2), ()
    row = LayerReport("first", "Linear", (16, 32), (1, 32), 0.8, FINE, gains={FINE: 2.0})
    untimed = Decision(LayerReport("second", "Linear", (16, 32), (1, 32), 0.8, DENSE), untimed={FINE: second})
    decision = like(untimed, Decision(row, first))
    assert (decision.replacement, decision.row.decision, decision.row.measured_on) == (second, FINE, "first")
    assert (vars(second)["dense_rows"], vars(second)["packed_dense_rows"]) == ((1, 2), ())
    assert like(untimed, Decision(LayerReport("third", "Linear", (16, 32), (1, 32), 0.8, DENSE))) is untimed


def test_errors_are_those_of_other_calls() -> None:
    layer = sk.nn.SparseLinear.from_dense(_pruned(nn.Linear(32, 16))[0])
    layer.dense_rows = (1,)
    with torch.no_grad():
        with pytest.raises(ValueError, match="sparse_linear: expected input of shape"):
            layer(torch.randn(1, 31))
        with pytest.raises(TypeError, match="sparse_linear"):
            layer(torch.randn(1, 32, dtype=torch.bfloat16))


def test_convert_gives_tables(clock: Prefer, monkeypatch: pytest.MonkeyPatch) -> None:
    """To layers that are alike from one measurement; the report has them, and a graph has its own."""
    model = _pruned(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU()).eval()
    dense = copy.deepcopy(model)
    for ways, graph in (((FINE, LAYERS), False), ((FINE, GRAPH), True)):
        clock(*ways)
        asked = _gains(monkeypatch, lambda rows: 0.5 if rows in (2, 4) else 2.0)
        report = sk.convert(model, torch.randn(6, 32))
        assert asked == [6, MANY, 1, 2, 4, 8]
        assert [row.reason.endswith("; dense for 2 to 5 rows") for row in report.layers] == [True, True]
        for index in (0, 2):
            assert vars(model[index])["packed_dense_rows"] == model[index].dense_rows == (2, 6)
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


@pytest.mark.parametrize("rows", [2, 9, 4 * MANY])
def test_a_layer_that_would_be_dense_for_its_rows_is_dense(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """By the clock it would be compared with itself, and be faster by chance."""
    monkeypatch.setattr(decide_module, "_measure", lambda *_: Times({DENSE: [1.0] * 3, FINE: [0.9] * 3}))
    _gains(monkeypatch, lambda rows: 2.0 if rows == 16 else 0.8)
    report = sk.convert(_pruned(nn.Linear(32, 32)).eval(), torch.randn(rows, 32), decisions=[FINE])
    (row,) = report.layers
    assert (row.decision, row.reason, row.speedup) == (DENSE, "fine-grained would be 0.80x", 1.0)
    assert [fact.kind for fact in report.facts if fact.kind is not Note.DISTURBED] == [Note.NOTHING_FASTER]


def test_what_gains_in_a_graph_alone_is_dense_without(clock: Prefer, monkeypatch: pytest.MonkeyPatch) -> None:
    clock(FINE, LAYERS)
    gains = {"dense_rows": 0.5, "packed_dense_rows": 2.0}
    first = [True]

    def times_of(calls: Mapping[str, Any], *_: object) -> Times:
        other = dict.fromkeys(gains, 2.0) if first[0] else gains
        return Times({name: [1.0 if name == DENSE else 1.0 / other[name]] for name in calls})

    monkeypatch.setattr(rows_module, "times_of", times_of)
    genuine = decide_module.decide

    def decide(layer: Any, *rest: Any, **more: Any) -> Decision:
        first[0] = layer.name == "0"
        return genuine(layer, *rest, **more)

    monkeypatch.setattr(attempt_module, "decide", decide)
    model = _pruned(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU()).eval()
    dense = model[2]
    report = sk.convert(model, torch.randn(6, 32), decisions=[FINE])
    assert report.way is Way.LAYERS
    assert [row.decision for row in report.layers] == [FINE, DENSE]
    assert model[2] is dense
    assert "see the notes on the whole model" in report.layers[1].reason
    assert Note.GRAPH_NOT_FASTER in {fact.kind for fact in report.facts}


def test_where_its_rows_could_not_be_measured_it_is_undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {DENSE: [1.0] * 3, FINE: [0.9] * 3}
    monkeypatch.setattr(decide_module, "_measure", lambda *_: Times(times))
    disturbed = Times(
        {DENSE: [1.0] * 3} | {way: list(map(Disturbed, (0.9, 0.9, 0.9))) for way in ("dense_rows", "packed_dense_rows")}
    )
    monkeypatch.setattr(rows_module, "times_of", lambda *_: disturbed)
    (row,) = sk.convert(_pruned(nn.Linear(32, 32)).eval(), torch.randn(2, 32), decisions=[FINE]).layers
    assert (row.decision, row.ground) == (DENSE, Ground.UNDECIDED)


def test_nonzeros_outside_of_the_pattern_count_for_all_rows() -> None:
    """What is merged into a zero is computed with, by the dense product and by the other one."""
    dense = _pruned(nn.Linear(32, 32))[0]
    layer = sk.nn.SparseLinear.from_dense(dense)
    layer.dense_rows = (1, 2)
    with torch.no_grad():
        for one in (dense, layer):
            one.weight += 1.0
        assert_agree(layer, dense, torch.randn(1, 32))
        x = torch.randn(5, 32)
        with pytest.warns(UserWarning, match="elements of its weight"):
            layer(x)
        assert_agree(layer, dense, x)
