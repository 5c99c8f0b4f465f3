# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What the report says of models that other tools pruned, and of zeros that no Conv2d and no Linear has."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conversion_checks import DENSE, DROPPED, FINE, GRAPH, LAYERS, Prefer, assert_agree, graphs_of
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import sparsekernels as sk
from sparsekernels import _library
from sparsekernels.conversion import decide, layouts
from sparsekernels.conversion.facts import Note, Way
from sparsekernels.conversion.measure import Times
from sparsekernels.pruning import prune_
from sparsekernels.usage import Interruptions

pytestmark = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")


def _pruned() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Sequential(nn.Linear(64, 64))).eval()
    prune_(model, "random", 0.9)
    return model


class FakeSparsity(nn.Module):
    """As in torch.ao.pruning and sparsimony."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


def _fake_sparsity(layer: nn.Linear) -> None:
    parametrize.register_parametrization(layer, "weight", FakeSparsity(layer.weight.detach() != 0))


class SparseLinear(nn.Linear):
    """As modelopt.torch.opt.dynamic has it."""


def _modelopt(layer: nn.Linear) -> None:
    layer.register_buffer("_weight_mask", layer.weight != 0)
    layer.__class__ = SparseLinear


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda layer: prune.l1_unstructured(layer, "weight", 0.9), "prune.remove(layer, 'weight')"),
        (lambda layer: prune.l1_unstructured(layer, "bias", 0.5), "prune.remove(layer, 'bias')"),
        (_fake_sparsity, "squash_mask()"),
        (lambda layer: parametrize.register_parametrization(layer, "weight", nn.Identity()), "remove_parametrizations"),
        (lambda layer: parametrize.register_parametrization(layer, "bias", nn.Identity()), "parametrizations, of bias"),
        (_modelopt, "modelopt.torch.sparsity.export"),
        (lambda layer: layer.register_buffer("weight_mask", layer.weight != 0), "pruning.finalize(model)"),
        (torch.nn.utils.spectral_norm, "remove_spectral_norm"),
        pytest.param(
            torch.nn.utils.weight_norm,
            "remove_weight_norm",
            marks=pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning"),
        ),
    ],
)
def test_the_remedy_is_the_tool_s_own(prefer: Prefer, change: Callable[[Any], object], words: str) -> None:
    model = _pruned()
    change(model[0])
    prefer(FINE, LAYERS)
    first, second = sk.convert(model, torch.randn(4, 64)).layers
    assert (first.decision, second.decision) == (DENSE, FINE)
    assert words in first.reason


def test_the_hook_that_weight_norm_leaves_is_none(prefer: Prefer) -> None:
    model = _pruned()
    parametrizations.weight_norm(model[0])
    parametrize.remove_parametrizations(model[0], "weight")
    assert model[0]._load_state_dict_pre_hooks
    prefer(FINE, LAYERS)
    dense = copy.deepcopy(model)
    assert len(sk.convert(model, torch.randn(4, 64)).converted) == 2
    model.load_state_dict(dense.state_dict())
    assert_agree(model, dense, torch.randn(4, 64))
    assert sk.revert(model)[0]._load_state_dict_pre_hooks


class _Masks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("binary_mask", (torch.rand(64, 64) < 0.1).float())


def test_masks_of_nncf() -> None:
    """It keeps them in a submodule, and masks in the calls of functions: the weights have no zeros."""
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Sequential(nn.Linear(64, 64))).eval()
    hooks = nn.Module()
    hooks.post_hooks = nn.ModuleDict({"2:0:weight__0": nn.ModuleDict({"0": _Masks()})})
    model.add_module("__nncf_hooks", hooks)
    model.forward = lambda x: model[2](model[1](model[0](x)))
    report = sk.convert(model, torch.randn(4, 64))
    assert [fact.kind for fact in report.facts] == [Note.MASKS_OF_NNCF]
    assert "strip_format=nncf.StripFormat.IN_PLACE" in report.notes[0]
    first, second = report.layers
    assert first.reason == "it has no zeros"
    assert "IN_PLACE" in second.reason


def test_masks_of_nncf_on_a_part_of_a_model() -> None:
    """Whose names are those in the part."""
    part = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    hooks = nn.Module()
    hooks.post_hooks = nn.ModuleDict({"2:weight__0": nn.ModuleDict({"0": _Masks()})})
    part._modules["__nncf_hooks"] = hooks
    part.forward = lambda x: part[2](part[1](part[0](x)))
    first, second = sk.convert(nn.Sequential(part).eval(), torch.randn(4, 64)).layers
    assert first.reason == "it has no zeros"
    assert "pruning.finalize(model)" in second.reason


def test_masks_whose_zeros_are_not_written_yet() -> None:
    """As those of cerebras-pytorch before the first call: such a model is pruned."""
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)).eval()
    model[0].register_buffer("weight_mask", torch.rand(64, 64) < 0.1)
    (note,) = sk.convert(model, torch.randn(4, 64)).notes
    assert note.startswith(
        "Masks of a pruning tool are not permanent yet, in 1 of 2 layers: call sparsekernels.pruning"
    )


class _SparseLab(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self._values = nn.Parameter(torch.randn(9))

    def forward(self, x: Tensor) -> Tensor:
        return x * self._values.sum() if x.dim() == 2 else x  # torch.fx cannot follow


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_layers_of_other_kinds_have_a_row(prefer: Prefer) -> None:
    quantized = torch.ao.nn.quantized.dynamic.Linear(64, 64)
    model = nn.Sequential(_pruned(), _SparseLab(), quantized).eval()
    prefer(FINE, GRAPH)
    report = sk.convert(model, torch.randn(4, 64))
    assert report.way is Way.GRAPH
    assert {row.name: row.decision for row in report.layers} == {"0.0": FINE, "0.2.0": FINE, "1": DENSE, "2": DENSE}
    assert "_SparseLab has no weight" in report.layers[2].reason
    assert "linear.Linear has a quantized weight" in report.layers[3].reason


class Linear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).tanh()


def test_a_class_of_the_same_name() -> None:
    model = nn.Sequential(Linear(8, 8))
    prune_(model, "random", 0.9)
    (row,) = sk.convert(model.eval(), torch.randn(4, 8)).layers
    assert row.reason == f"its class {__name__}.Linear may compute something else than torch.nn.Linear"


class Conv1D(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(64, 64) * (torch.rand(64, 64) < 0.1))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(64, 4, batch_first=True), nn.Linear(64, 10)
        with torch.no_grad():
            self.attention.in_proj_weight.mul_(torch.rand(192, 64) < 0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(x, x, x)[0])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: nn.Sequential(Conv1D(), Conv1D(), nn.Linear(64, 10)), "Conv1D.weight (0.weight and 1 more, 9"),
        (Attends, "MultiheadAttention.in_proj_weight (attention.in_proj_weight, "),
    ],
)
def test_zeros_of_other_layers_are_said_where_they_are(make: Callable[[], nn.Module], words: str) -> None:
    (note,) = sk.convert(make().eval(), torch.randn(2, 5, 64)).notes
    assert note.startswith("Zeros in weights of other kinds")
    assert words in note


@pytest.mark.parametrize("training", [False, True])
def test_what_is_not_pruned(training: bool) -> None:
    """Nor are weights that are all zero, as LoRA starts with, and biases."""
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU()).train(training)
    model.lora_b = nn.Parameter(torch.zeros(8, 2))
    nn.init.zeros_(model[0].bias)
    facts = sk.convert(model, torch.randn(4, 8)).facts
    assert Note.NOT_PRUNED in [fact.kind for fact in facts]
    assert Note.ZEROS_ELSEWHERE not in [fact.kind for fact in facts]


@pytest.mark.parametrize("bias", ["zero", "negative"])
def test_channels_of_zero_scales_are_left_out(prefer: Prefer, bias: str) -> None:
    """Whether or not another layer is sparse: what is behind BatchNorm and ReLU is zero everywhere."""
    model = nn.Sequential(
        *(nn.Conv2d(4, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
    ).eval()
    with torch.no_grad():
        for norm in (model[1], model[4]):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
        model[1].weight[5:] = 0
        model[1].bias[5:] = 0 if bias == "zero" else -1
    dense, x = copy.deepcopy(model), torch.randn(2, 4, 8, 8)
    prefer(GRAPH)
    report = sk.convert(model, x)
    assert [(row.decision, row.omitted) for row in report.layers] == [(DROPPED, (11, 0)), (DROPPED, (0, 11))]
    assert len(list(graphs_of(model))) == 1
    assert_agree(model, dense, x)
    with torch.no_grad():
        for changed in (model, dense):
            changed[1].weight[5:] = 1
    assert_agree(model, dense, x)


def test_no_channel_is_left_out_where_no_decision_is_to() -> None:
    model = nn.Sequential(nn.Conv2d(4, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3)).eval()
    nn.init.zeros_(model[1].weight)
    report = sk.convert(model, torch.randn(2, 4, 8, 8), decisions=[FINE])
    assert not report.converted
    assert [fact.kind for fact in report.facts] == [Note.ZERO_SCALES]


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if x.sum() < 1e9 else x


def test_one_note_for_all_blocks_of_a_kind(prefer: Prefer) -> None:
    model = nn.Sequential(nn.Sequential(*(_Block() for _ in range(5))), _Block()).eval()
    prune_(model, "random", 0.9)
    prefer(FINE, GRAPH, LAYERS)
    whole, body, blocks = sk.convert(model, torch.randn(2, 64)).facts
    assert (whole.kind, body.kind, blocks.kind) == (Note.NO_GRAPH, Note.NO_GRAPH_OF_PART, Note.NO_GRAPH_OF_PARTS)
    assert str(blocks).startswith("6 parts of class _Block (0.0 for one) do not run as graphs: its forward decides by")


def test_other_arguments_are_the_obstacle(prefer: Prefer) -> None:
    """And not that an embedding's input is no floating tensor."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(64, 64)

        def forward(self, x: Tensor, *, mask: list[int]) -> Tensor:
            return self.layer(x)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block, self.embedding = Block(), nn.Embedding(9, 64)

        def forward(self, ids: Tensor) -> Tensor:
            return self.block(self.embedding(ids), mask=[1]) if ids.sum() < 99 else ids

    model = Net().eval()
    prune_(model, "random", 0.9)
    prefer(FINE, GRAPH, LAYERS)
    notes = sk.convert(model, torch.randint(9, (2, 5))).notes
    assert not any("floating" in note for note in notes)
    assert any("called with a number, an object" in note for note in notes), notes


@pytest.mark.parametrize("training", [False, True])
def test_by_how_much_results_differ(prefer: Prefer, training: bool) -> None:
    class Differs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(64, 64)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            y = self.layer(x)
            return {"loss": y.sum() * 0, "logits": y if not hasattr(self.layer, "pattern") else y * 1.5}

    model = Differs().train(training)
    prune_(model, "random", 0.9)
    prefer(FINE, LAYERS)
    (fact,) = (fact for fact in sk.convert(model, torch.randn(4, 64)).facts if fact.kind is Note.OTHER_RESULTS)
    assert ": the result['logits'] by " in str(fact)
    assert str(fact).endswith(", 0.5 of its largest element; rounding is up to 0.002 of it.")


@pytest.mark.parametrize(("gain", "said"), [(2.05, True), (1.1, False)])
def test_channels_last_of_short_convolutions(monkeypatch: pytest.MonkeyPatch, gain: float, said: bool) -> None:
    """It is measured: what it is worth depends on the machine."""
    measured: list[str] = []

    def times_of(calls: Any, effort: object) -> Times:
        for name, call in calls.items():
            measured.append(name)
            call()
        return Times({"as it is": [gain], "channels_last": [1.0]})

    monkeypatch.setattr(layouts, "times_of", times_of)
    for training in (False, True):
        model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 8, 3)).bfloat16().train(training)
        notes = sk.convert(model, torch.randn(1, 4, 8, 8, dtype=torch.bfloat16)).notes
        assert any("torch is 2.05 times as fast at layer 1 in channels_last" in note for note in notes) is said
        assert len(measured) == 2
        measured.clear()
    for other in (model.to(memory_format=torch.channels_last), nn.Conv2d(4, 4, 3), nn.Linear(8, 8).bfloat16()):
        x = torch.randn(1, 4, 8, 8, dtype=next(other.parameters()).dtype)
        sk.convert(nn.Sequential(other), x.contiguous(memory_format=torch.channels_last) if other is model else x)
    assert not measured


def test_times_that_are_disturbed_are_called_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where nothing was faster by them."""
    monkeypatch.setattr(Interruptions, "per_second", Interruptions.DISTURBING + 1)
    monkeypatch.setattr(decide, "times_of", lambda *_: Times({DENSE: [1.0], FINE: [2.0]}))
    kinds = [fact.kind for fact in sk.convert(_pruned(), torch.randn(4, 64), decisions=[FINE]).facts]
    assert kinds == [Note.NOTHING_FASTER, Note.DISTURBED]
    monkeypatch.undo()
    monkeypatch.setattr(Interruptions, "per_second", Interruptions.DISTURBING + 1)
    model = nn.Sequential(nn.Linear(8, 8)).eval()
    assert [fact.kind for fact in sk.convert(model, torch.randn(4, 8)).facts] == [Note.NOT_PRUNED]
