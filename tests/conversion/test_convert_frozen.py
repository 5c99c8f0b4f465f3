# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""A frozen model: linear layers that keep no dense weight, and how these come back."""

from __future__ import annotations

import copy
import gc
import io
import weakref
from typing import Any

import pytest
import torch
from conversion_checks import assert_agree
from torch import Tensor, nn
from torch.nn.utils import prune

import sparsekernels as sk
from sparsekernels.nn import PackedLinear
from sparsekernels.testing import prefer


class Block(nn.Module):
    """It looks at what a tensor holds, so no graph serves it."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(96, 160), nn.Linear(160, 96, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if bool(torch.isnan(x).any()):
            return x
        return x + self.down(torch.relu(self.up(x)))


def model_of(dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(Block(), Block(), nn.Linear(96, 10)).to(dtype).eval()
    sk.pruning.prune_(model, "magnitude", 0.8)
    return model


def frozen(model: nn.Module, input: Tensor | None = None, **options: Any) -> Any:
    input = torch.randn(2, 96, dtype=next(model.parameters()).dtype) if input is None else input
    with prefer("packed", "layers"):
        return sk.convert(model, input, frozen=True, **options)


def packed_by_hand(model: nn.Module) -> nn.Module:
    """A copy with the same layers, which are tested by themselves."""
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, PackedLinear.from_dense(child))
    return model


def packed_in(model: nn.Module) -> list[str]:
    return [name for name, part in model.named_modules() if isinstance(part, PackedLinear)]


LAYERS = ["0.up", "0.down", "1.up", "1.down", "2"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 5, 40])
def test_results_and_state_are_those_of_the_model(dtype: torch.dtype, rows: int) -> None:
    model = model_of(dtype)
    before, keys = copy.deepcopy(model), list(model.state_dict())
    report = frozen(model)
    assert packed_in(model) == LAYERS
    assert [row.decision for row in report.layers] == ["packed"] * 5
    input = torch.randn(rows, 96, dtype=dtype)
    with torch.no_grad():
        assert torch.equal(model(input), packed_by_hand(before)(input))
    state = model.state_dict()
    assert list(state) == keys
    for name, tensor in before.state_dict().items():
        assert torch.equal(state[name], tensor)
        assert state[name].dtype is dtype


def test_dense_weights_are_free_and_come_back() -> None:
    model = model_of()
    before = copy.deepcopy(model)
    was_trained = {name: True for name, _ in model.named_parameters()}
    model.get_submodule("1.up").weight.requires_grad_(False)
    was_trained["1.up.weight"] = False
    order, bias = list(was_trained), model.get_submodule("0.up").bias
    weights = [weakref.ref(model.get_submodule(name).weight) for name in LAYERS]
    report = frozen(model)
    gc.collect()
    assert [one() for one in weights] == [None] * 5
    dense = 4 * (4 * 96 * 160 + 96 * 10)
    assert sum(model.get_submodule(name).nbytes for name in LAYERS) < 0.3 * dense  # type: ignore[misc, operator]
    assert any("keep no dense weight" in note for note in report.notes)
    sk.revert(model)
    assert not packed_in(model)
    assert [name for name, _ in model.named_parameters()] == order
    assert model.get_submodule("0.up").bias is bias
    assert {name: one.requires_grad for name, one in model.named_parameters()} == was_trained
    for name, tensor in before.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)
    model.train()(torch.randn(3, 96)).sum().backward()
    assert model.get_submodule("0.down").weight.grad is not None


def test_a_parameter_that_somebody_holds_is_handed_back_unless_it_was_written_to() -> None:
    model = model_of()
    held: dict[str, Any] = {name: model.get_submodule(name).weight for name in ("0.up", "0.down", "1.up")}
    frozen(model)
    with torch.no_grad():
        held["0.down"].add_(1)
    expected = model.state_dict()["0.down.weight"]
    layer: Any = model.get_submodule("1.up")
    layer.double().float()  # what it holds went through another dtype
    sk.revert(model)
    assert model.get_submodule("0.up").weight is held["0.up"]
    assert model.get_submodule("0.down").weight is not held["0.down"]
    assert torch.equal(model.state_dict()["0.down.weight"], expected)
    assert model.get_submodule("1.up").weight is not held["1.up"]


def test_copies_and_pickles_are_reverted_by_themselves() -> None:
    model = model_of()
    before = copy.deepcopy(model)
    held = model.get_submodule("0.up").weight
    frozen(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    copies = [copy.deepcopy(model), torch.load(file, weights_only=False)]
    for one in copies:
        assert packed_in(one) == LAYERS
        sk.revert(one)
        assert not packed_in(one)
        assert one.get_submodule("0.up").weight is not held
        for name, tensor in before.state_dict().items():
            assert torch.equal(one.state_dict()[name], tensor)
    assert packed_in(model) == LAYERS
    layer, input = model.get_submodule("0.up"), torch.randn(1, 96)
    with torch.no_grad():
        before_revert = layer(input)
        assert sk.revert(model).get_submodule("0.up").weight is held
        assert torch.equal(layer(input), before_revert)  # for whoever kept it


def test_it_refuses_training_loading_and_writes() -> None:
    model = model_of()
    state = copy.deepcopy(model.state_dict())
    frozen(model)
    with pytest.raises(RuntimeError, match="expected no training of a frozen layer"):
        model.train()
    model.eval()
    with pytest.raises(RuntimeError, match="expected no state_dict for a frozen layer"):
        model.load_state_dict(state)
    layer: Any = model.get_submodule("0.up")
    with pytest.raises(RuntimeError, match="expected no write to the weight of a frozen layer"):
        layer.weight.data.mul_(2)
    with pytest.raises(RuntimeError, match="expected no other weight for a frozen layer"):
        layer.weight = nn.Parameter(torch.zeros(160, 96))
    with pytest.raises(RuntimeError, match="expected no other weight for a frozen layer"):
        prune.l1_unstructured(layer, "weight", 0.5)  # type: ignore[no-untyped-call]
    with pytest.raises(RuntimeError, match="expected a call without gradients"):
        model(torch.randn(1, 96, requires_grad=True))
    with torch.no_grad(), pytest.raises(RuntimeError, match="got another weight"):
        torch.func.functional_call(model, {"0.up.weight": torch.zeros(160, 96)}, (torch.randn(1, 96),))
    with torch.no_grad():
        model(torch.randn(1, 96))
        layer.bias.add_(1)
        with pytest.raises(RuntimeError, match="expected no writes to a frozen layer"):
            model(torch.randn(1, 96))


def test_converting_again_starts_from_dense_layers() -> None:
    model = model_of()
    before = copy.deepcopy(model.state_dict())
    frozen(model)
    again = frozen(model)
    assert packed_in(model) == LAYERS
    assert len(again.converted) == 5
    with prefer("dense"):
        sk.convert(model, torch.randn(2, 96))
    assert not packed_in(model)
    assert all(torch.equal(model.state_dict()[name], one) for name, one in before.items())


def test_a_conversion_that_fails_leaves_it_frozen_and_without_dense_weights() -> None:
    model = model_of()
    frozen(model)
    with pytest.raises(ValueError, match="can be called with"):
        sk.convert(model, torch.randn(2, 95))
    gc.collect()
    assert packed_in(model) == LAYERS
    for name in LAYERS:
        layer: Any = model.get_submodule(name)
        assert layer._parameters["weight"] is None
        assert layer.origin.layer_of(layer)._parameters["weight"] is None
    sk.revert(model)
    assert not packed_in(model)


def test_a_frozen_graph_calls_packed_layers() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 64), nn.ReLU(),
        nn.Linear(64, 10),
    ).eval()  # fmt: skip
    sk.pruning.prune_(model, "magnitude", 0.8)
    before, images = copy.deepcopy(model), torch.randn(2, 3, 8, 8)
    with prefer("packed", "graph"):
        report = sk.convert(model, images, frozen=True)
    assert packed_in(model) == ["4", "6"]
    assert report.way.value == "graph"
    assert_agree(model, before, images)
    sk.revert(model)
    for name, tensor in before.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)


def test_a_tied_weight_stays() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.body = nn.Embedding(50, 96), Block()
            self.head = nn.Linear(96, 50, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, tokens: Tensor) -> Tensor:
            logits: Tensor = self.head(self.body(self.embedding(tokens)))
            return logits

    torch.manual_seed(0)
    model = Tied().eval()
    sk.pruning.prune_(model, "magnitude", 0.8)
    report = frozen(model, torch.arange(3))
    assert packed_in(model) == ["body.up", "body.down"]
    assert model.head.weight is model.embedding.weight
    assert "shared" in next(row.reason for row in report.layers if row.name == "head")


def test_it_is_asked_for_by_frozen_alone() -> None:
    model = model_of()
    with prefer("packed", "fine-grained", "layers"):
        report = sk.convert(model, torch.randn(2, 96))
    assert {row.decision for row in report.layers} == {"fine-grained"}
    with pytest.raises(ValueError, match="'packed', got it without frozen=True"):
        sk.convert(model, torch.randn(2, 96), decisions=("packed",))
    with pytest.raises(ValueError, match="'packed', got it in training mode"):
        sk.convert(model.train(), torch.randn(2, 96), decisions=("packed",), frozen=True)


def test_layers_that_cannot_be_packed_say_why() -> None:
    class Doubled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input)

    torch.manual_seed(0)
    model = nn.Sequential(Doubled(32, 32), nn.Linear(32, 32), nn.Linear(32, 32)).eval()
    sk.pruning.prune_(model[0], "magnitude", 0.8)
    sk.pruning.prune_(model[1], "magnitude", 0.8)
    report = frozen(model, torch.randn(2, 32))
    assert packed_in(model) == ["1"]
    assert report.layers[2].decision == "dense"
    assert report.layers[2].obstacle is not None


def test_times_decide_for_it() -> None:
    """Ninety-five of a hundred bytes less to read: no machine reads them as fast."""
    torch.manual_seed(0)
    layers = [nn.Linear(2048, 2048, bias=False) for _ in range(4)]
    model = nn.Sequential(*layers).eval()
    sk.pruning.prune_(model, "magnitude", 0.95)
    report = sk.convert(model, torch.randn(1, 2048), frozen=True, decisions=("packed",))
    assert all("packed" in row.gains for row in report.layers)
    assert len(packed_in(model)) == len(report.converted)
