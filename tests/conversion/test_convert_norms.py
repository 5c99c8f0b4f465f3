# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""convert exchanges the RMSNorms of a pruned model where rms_norm gives the same, faster.

More than 400 lines: all of these tests are about the norms and the model here.
"""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

import pytest
import torch
from conversion_checks import DENSE, FINE, GRAPH, LAYERS, Prefer, convert_module, graph_of, graphs_of
from torch import Tensor, nn

import sparsekernels as sk
from sparsekernels import _library
from sparsekernels.conversion import measure
from sparsekernels.conversion.facts import Note, Way
from sparsekernels.conversion.graph.attach import has_graph
from sparsekernels.conversion.norm_call import norm_call_of
from sparsekernels.pruning import prune_

pytestmark = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")

NORMS, WIDTH = "norms", 16


class LlamaRMSNorm(nn.Module):
    def __init__(self, size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(size))
        self.variance_epsilon = eps

    def norm(self, x: Tensor) -> Tensor:
        x = x.float()
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.weight * self.norm(hidden_states).to(hidden_states.dtype)


class GemmaRMSNorm(LlamaRMSNorm):
    def forward(self, hidden_states: Tensor) -> Tensor:
        return (self.norm(hidden_states) * (1.0 + self.weight.float())).type_as(hidden_states)


class GatedRMSNorm(LlamaRMSNorm):
    def forward(self, hidden_states: Tensor, gate: Tensor | None = None) -> Tensor:
        return super().forward(hidden_states if gate is None else hidden_states * gate)


FACTOR = 1.0


class FactorRMSNorm(LlamaRMSNorm):
    def forward(self, hidden_states: Tensor) -> Tensor:
        return super().forward(hidden_states) * FACTOR


AUXILIARY: list[Tensor] = []


class AuxiliaryRMSNorm(LlamaRMSNorm):
    def forward(self, hidden_states: Tensor) -> Tensor:
        AUXILIARY.append(hidden_states.detach().sum())
        return super().forward(hidden_states)


class CountingRMSNorm(LlamaRMSNorm):
    calls = 0

    def forward(self, hidden_states: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(hidden_states)


class Block(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


def net(*norms: nn.Module, training: bool = False) -> nn.Sequential:
    """Blocks with these norms."""
    torch.manual_seed(0)
    model = nn.Sequential(*map(Block, norms)).train(training)
    prune_(model, "random", 0.8)
    return model


def several() -> tuple[nn.Module, ...]:
    hooked = LlamaRMSNorm(WIDTH)
    hooked.register_forward_hook(lambda _module, _args, result: 2 * result)
    return LlamaRMSNorm(WIDTH), GemmaRMSNorm(WIDTH), nn.RMSNorm(WIDTH), GatedRMSNorm(WIDTH), hooked


X = torch.randn(2, 3, WIDTH, generator=torch.Generator().manual_seed(1))


def exchanged(model: nn.Module) -> list[str]:
    """The names of the norms that run as rms_norm."""
    return [name for name, module in model.named_modules() if norm_call_of(module) is not None]


def results_of(model: nn.Module, x: Tensor = X) -> list[Tensor]:
    """Results and, in training mode, gradients."""
    if not model.training:
        with torch.no_grad():
            return [model(x)]
    model.zero_grad()
    x = x.clone().requires_grad_()
    result: Tensor = model(x)
    result.square().sum().backward()
    norms = [module.weight for name, module in model.named_modules() if name.endswith("norm")]
    return [result.detach(), x.grad, *(weight.grad for weight in norms)]  # type: ignore[list-item]


def assert_same(model: nn.Module, dense: nn.Module) -> None:
    for mine, theirs in zip(results_of(model), results_of(dense), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("way", [GRAPH, LAYERS])
def test_exchanged_with_the_layers(way: str, training: bool, prefer: Prefer) -> None:
    model = net(*several(), training=training)
    dense, kept, before = copy.deepcopy(model), list(model.modules()), results_of(model)
    parameters, names = list(map(id, model.parameters())), list(model.state_dict())
    prefer(FINE, NORMS, way, LAYERS)
    report = sk.convert(model, X)
    assert {row.decision for row in report.layers} == {FINE}
    assert exchanged(model) == ["0.norm", "1.norm", "2.norm", "4.norm"]
    assert list(model.state_dict()) == names
    assert list(map(id, model.parameters())) == parameters
    assert_same(model, dense)
    notes = [str(note) for note in report.notes if "RMSNorms" in note]
    assert notes == [
        "RMSNorms stay as they are (1 GatedRMSNorm): its forward takes more than the input: gate: 'Tensor | None' ="
        " None.",
        "RMSNorms run as sparsekernels.rms_norm, as sparsekernels.testing.prefer decides: 2 LlamaRMSNorm,"
        " 1 GemmaRMSNorm, 1 RMSNorm.",
    ]
    facts = {fact["kind"]: fact["operands"] for fact in json.loads(report.to_json())["facts"]}
    assert facts["NORMS_PREFERRED"] == {"kinds": [[2, "LlamaRMSNorm"], [1, "GemmaRMSNorm"], [1, "RMSNorm"]]}
    if way == GRAPH and not training:
        assert "call_module:0.norm" in graph_of(model)  # which runs as rms_norm there
    sk.revert(model)
    assert exchanged(model) == []
    assert list(model.modules()) == kept
    assert not any(map(has_graph, kept))
    assert all(map(torch.equal, results_of(model), before))


@pytest.mark.parametrize("names", [(FINE, LAYERS), (FINE, DENSE, NORMS, GRAPH)])
def test_stay_where_the_preference_does_not_name_them_first(names: tuple[str, ...], prefer: Prefer) -> None:
    model = net(*several())
    prefer(*names)
    assert sk.convert(model, X).converted
    assert exchanged(model) == []


def test_alone(prefer: Prefer) -> None:
    """Of a model that is pruned, though no layer becomes another."""
    model = net(*several())
    dense = copy.deepcopy(model)
    prefer(NORMS, GRAPH, LAYERS)
    report = sk.convert(model, X, decisions=[FINE])
    assert (report.converted, report.way) == ((), Way.LAYERS)
    assert len(exchanged(model)) == 4
    assert not list(graphs_of(model))
    assert_same(model, dense)


@pytest.mark.parametrize("make", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_converted(make: Callable[[nn.Module], nn.Module], prefer: Prefer) -> None:
    model = net(LlamaRMSNorm(WIDTH), GemmaRMSNorm(WIDTH))
    dense = copy.deepcopy(model)
    prefer(FINE, NORMS, GRAPH)
    sk.convert(model, X)
    copied = make(model)
    assert exchanged(copied) == ["0.norm", "1.norm"]
    assert_same(copied, dense)
    with torch.no_grad():
        for each in (copied, dense):
            each[0].norm.weight += 1  # type: ignore[index, union-attr, operator]
    assert_same(copied, dense)
    prefer(FINE, LAYERS)
    sk.convert(copied, X)  # what this conversion does not exchange is the copy's own again
    assert exchanged(copied) == []
    assert exchanged(model) == ["0.norm", "1.norm"]
    assert_same(copied, dense)


def test_converting_again_and_what_the_user_exchanged(prefer: Prefer) -> None:
    model = net(LlamaRMSNorm(WIDTH), GemmaRMSNorm(WIDTH))
    sk.replace_norms(model[0])
    prefer(FINE, NORMS, GRAPH)
    first = sk.convert(model, X)
    assert [fact.operands["kinds"] for fact in first.facts if fact.kind is Note.NORMS_PREFERRED] == [
        ((1, "GemmaRMSNorm"),)
    ]
    assert "call_module:0.norm" in graph_of(model)
    second = sk.convert(model, X)
    assert second.notes == first.notes
    assert exchanged(model) == ["0.norm", "1.norm"]
    prefer(FINE, LAYERS)
    sk.convert(model, X)
    assert exchanged(model) == ["0.norm"]
    sk.revert(model)
    assert exchanged(model) == []


@pytest.mark.parametrize("training", [False, True])
def test_frozen(training: bool, prefer: Prefer) -> None:
    model = net(*several(), training=training)
    dense = copy.deepcopy(model)
    prefer(FINE, NORMS, GRAPH, LAYERS)
    sk.convert(model, X, frozen=True)
    assert len(exchanged(model)) == 4
    assert_same(model, dense)


def test_another_epsilon_afterwards(prefer: Prefer) -> None:
    model = net(LlamaRMSNorm(WIDTH))
    dense = copy.deepcopy(model)
    prefer(FINE, NORMS, GRAPH)
    sk.convert(model, X)
    model[0].norm.variance_epsilon = dense[0].norm.variance_epsilon = 1.0
    for _ in range(3):
        assert_same(model, dense)


@pytest.mark.parametrize(
    ("norm", "why"),
    [
        (FactorRMSNorm, "its code reads globals or states of the process"),
        (AuxiliaryRMSNorm, "its code changes something beside its result"),
        (CountingRMSNorm, ""),
    ],
)
def test_code_that_does_more_stays(norm: type[LlamaRMSNorm], why: str, prefer: Prefer) -> None:
    model = net(norm(WIDTH))
    prefer(FINE, NORMS, LAYERS)
    report = sk.convert(model, X)
    assert exchanged(model) == []
    assert any(f"RMSNorms stay as they are (1 {norm.__name__}): {why}" in note for note in report.notes)
    assert not AUXILIARY
    assert not getattr(model[0].norm, "calls", 0)
    rows = sk.replace_norms(model).norms
    assert [row.replaced for row in rows] == [False] * len(rows)
    assert why in rows[0].reason
    assert not AUXILIARY
    assert not getattr(model[0].norm, "calls", 0)


def test_classes_told_apart_by_identity(prefer: Prefer) -> None:
    class Asks(Block):
        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = super().forward(x)
            return result if type(self.norm) is LlamaRMSNorm else 2 * result

    model = nn.Sequential(Asks(LlamaRMSNorm(WIDTH))).eval()
    prune_(model, "random", 0.8)
    dense = copy.deepcopy(model)
    prefer(FINE, NORMS, LAYERS)
    report = sk.convert(model, X)
    assert exchanged(model) == []
    assert any("tells classes apart by identity, and what runs so" in note for note in report.notes)
    assert_same(model, dense)


def test_other_results_of_the_model(prefer: Prefer) -> None:
    """Layers are exchanged without them."""

    class Asks(Block):
        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = super().forward(x)
            return result if "GRAPH" in str(vars(self.norm)).upper() else 2 * result

    model = nn.Sequential(Asks(LlamaRMSNorm(WIDTH))).eval()
    prune_(model, "random", 0.8)
    dense = copy.deepcopy(model)
    prefer(FINE, NORMS, LAYERS)
    report = sk.convert(model, X)
    assert exchanged(model) == []
    assert any("(1 LlamaRMSNorm): as sparsekernels.rms_norm, the model's results differed" in n for n in report.notes)
    assert {row.decision for row in report.layers} == {FINE}
    assert_same(model, dense)


def test_not_called(prefer: Prefer) -> None:
    model = net(LlamaRMSNorm(WIDTH))
    model[0].extra = LlamaRMSNorm(WIDTH)
    prefer(FINE, NORMS, GRAPH)
    report = sk.convert(model, X)
    assert exchanged(model) == ["0.norm"]
    assert any("the model did not call them" in note for note in report.notes)


@pytest.mark.parametrize("training", [False, True])
def test_under_autocast_and_without_gradients(training: bool, prefer: Prefer) -> None:
    model = net(*several(), training=training)
    dense = copy.deepcopy(model)
    prefer(FINE, NORMS, GRAPH, LAYERS)
    sk.convert(model, X)
    for context in (torch.no_grad(), torch.autocast("cpu", torch.bfloat16)):
        with context:
            torch.testing.assert_close(model(X), dense(X), rtol=2e-2, atol=2e-2)


def _clock(monkeypatch: pytest.MonkeyPatch, speeds: Mapping[str, list[float]]) -> None:
    """The speeds of ways, as they are asked for; the last one from then on, 1 of what is not named."""

    def samples(
        calls: Mapping[str, Callable[[], object]],
        _effort: object,
        contexts: Mapping[str, Callable[[], AbstractContextManager[object]]] | None = None,
        *_: object,
    ) -> dict[str, list[float]]:
        rounds = {}
        for name, call in calls.items():
            if contexts is not None and name in contexts:
                with contexts[name]():
                    call()
            left = speeds.get(name, [1.0])
            rounds[name] = [1 / (left.pop(0) if len(left) > 1 else left[0])] * 3
        return rounds

    monkeypatch.setattr(measure, "samples_of", samples)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("gains", "names", "note"),
    [
        ([2.0], ["0.norm", "1.norm"], "run as sparsekernels.rms_norm, 2.00x as fast: 1 LlamaRMSNorm, 1 GemmaRMSNorm."),
        ([0.5], [], "as sparsekernels.rms_norm they would be 0.50x: 1 LlamaRMSNorm."),
        ([2.0, 1.0], ["0.norm"], "run as sparsekernels.rms_norm, 2.00x as fast: 1 LlamaRMSNorm."),
    ],
)
def test_by_the_clock(
    gains: list[float], names: list[str], note: str, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = net(LlamaRMSNorm(WIDTH), GemmaRMSNorm(WIDTH), training=training)
    dense = copy.deepcopy(model)
    _clock(monkeypatch, {NORMS: [*gains], FINE: [2.0], LAYERS: [2.0], GRAPH: [2.0]})
    report = sk.convert(model, X)
    assert exchanged(model) == names
    assert any(note in one for one in report.notes), report.notes
    assert_same(model, dense)


def test_in_no_example_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    model = net(LlamaRMSNorm(WIDTH))
    fast = {name: [2.0] for name in (FINE, LAYERS, "dense_rows", "packed_dense_rows")}
    _clock(monkeypatch, {NORMS: [9.0, 0.9], **fast})
    report = sk.convert(model, example_inputs=[((X,), {}), ((X[:1],), {})])
    assert report.converted
    assert exchanged(model) == []
    assert any("would be 0.90x with example_inputs[1] (a tensor of" in note for note in report.notes), report.notes


def test_a_slower_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    model = net(LlamaRMSNorm(WIDTH))
    _clock(monkeypatch, {NORMS: [2.0], FINE: [2.0], LAYERS: [0.9], GRAPH: [0.9], "chains": [0.9]})
    report = sk.convert(model, X)
    assert report.way is Way.BEFORE
    assert not any(map(has_graph, model.modules()))
    [note] = [note for note in report.notes if "RMSNorms" in note]
    assert note == (
        "RMSNorms stay as they are with the whole model; alone, as sparsekernels.rms_norm they would be 2.00x:"
        " 1 LlamaRMSNorm."
    )


@pytest.mark.parametrize("where", ["measuring norms", "checking results with other norms", "timing the whole model"])
def test_interrupted(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = net(*several())
    before = results_of(model)
    _clock(monkeypatch, {NORMS: [2.0], FINE: [2.0], LAYERS: [2.0], GRAPH: [2.0]})
    progress = convert_module.Progress
    at = progress.at

    def interrupt(self: object, what: str, *of: int) -> None:
        at(self, what, *of)
        if what == where:
            raise KeyboardInterrupt

    monkeypatch.setattr(progress, "at", interrupt)
    with pytest.raises(KeyboardInterrupt):
        sk.convert(model, X)
    assert not any(map(has_graph, model.modules()))
    assert all(map(torch.equal, results_of(model), before))


@pytest.mark.parametrize("seconds", [1e-6, 0.2])
def test_time_limit(seconds: float) -> None:
    model = net(*several())
    dense = copy.deepcopy(model)
    report = sk.convert(model, X, max_seconds=seconds)
    if seconds < 1e-3:
        assert exchanged(model) == []
        [limit] = [fact for fact in report.facts if fact.kind is Note.LIMIT]
        assert "4 norms" in str(limit)
    assert_same(model, dense)


def test_not_pruned() -> None:
    model = nn.Sequential(*map(Block, several())).eval()
    notes = sk.convert(model, X).notes
    assert exchanged(model) == []
    assert notes[0].startswith("The model is not pruned")
    assert notes[1:] == (
        "sparsekernels.replace_norms(model) lets RMSNorms run as sparsekernels.rms_norm: 2 LlamaRMSNorm,"
        " 1 GemmaRMSNorm, 1 RMSNorm.",
    )
