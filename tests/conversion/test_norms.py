# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""replace_norms: norms as transformers and timm write them, restated here, each right or left with its reason."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import sparsekernels as sk
from sparsekernels.conversion.norms import ReplacedRMSNorm
from sparsekernels.testing import prefer

WIDTH = 32


class Norm(nn.Module):
    """What those below have in common; the formula is `forward`."""

    start = 1.0

    def __init__(self, size: int = WIDTH, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((size,), self.start))
        self.variance_epsilon = eps

    def norm(self, x: Tensor) -> Tensor:
        x = x.float()
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)


class LlamaRMSNorm(Norm):
    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.weight * self.norm(hidden_states).to(hidden_states.dtype)


class Olmo2RMSNorm(Norm):
    def forward(self, hidden_states: Tensor) -> Tensor:
        return (self.weight * self.norm(hidden_states)).to(hidden_states.dtype)


class GemmaRMSNorm(Norm):
    start = 0.0

    def forward(self, x: Tensor) -> Tensor:
        return (self.norm(x) * (1.0 + self.weight.float())).type_as(x)


class CenteredRMSNorm(GemmaRMSNorm):
    """MuseSparkText's: 1 + weight is rounded to the dtype of the weight."""

    def forward(self, x: Tensor) -> Tensor:
        return (self.norm(x) * (1.0 + self.weight).float()).type_as(x)


class NanoChatRMSNorm(nn.Module):
    def __init__(self, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)).type_as(x)


class UnweightedRMSNorm(NanoChatRMSNorm):
    """DeepseekV4's: the factor is rounded first."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + self.eps).to(x.dtype)


class WeightlessRMSNorm(NanoChatRMSNorm):
    """FalconMamba's, which has a buffer and ignores it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(WIDTH), persistent=False)


class Anonymous(Olmo2RMSNorm):
    """No name says what it is, nor that of its parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = self.weight
        del self.weight

    def forward(self, x: Tensor) -> Tensor:
        return (self.gamma * self.norm(x)).to(x.dtype)


REPLACED: dict[type[nn.Module], tuple[str, bool, bool]] = {
    LlamaRMSNorm: ("before", False, True),
    Olmo2RMSNorm: ("after", False, True),
    GemmaRMSNorm: ("after", True, True),
    CenteredRMSNorm: ("after", True, True),
    NanoChatRMSNorm: ("after", False, False),
    UnweightedRMSNorm: ("after", False, False),
    WeightlessRMSNorm: ("after", False, False),
    Anonymous: ("after", False, True),
}


class FactorRMSNorm(NanoChatRMSNorm):
    """HYV4's."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.rsqrt(x.float().square().mean(-1, keepdim=True) + self.eps).to(x.dtype)


class GatedRMSNorm(LlamaRMSNorm):
    def forward(self, hidden_states: Tensor, gate: Tensor | None = None) -> Tensor:
        normalized = super().forward(hidden_states)
        return normalized if gate is None else normalized * nn.functional.silu(gate)


class T5RMSNorm(Norm):
    """T5's and Idefics': nothing is rounded where the weight is float32."""

    def forward(self, x: Tensor) -> Tensor:
        x = x * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * (x.to(self.weight.dtype) if self.weight.dtype in (torch.float16, torch.bfloat16) else x)


class InputScaledRMSNorm(GemmaRMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm((x.float() * (1.0 + self.weight)).type_as(x)).type_as(x)


class EpsOutsideRMSNorm(Norm):
    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return (wide / (wide.pow(2).mean(-1, keepdim=True).sqrt() + self.variance_epsilon) * self.weight).to(x.dtype)


class TwiceRMSNorm(Norm):
    def forward(self, x: Tensor) -> Tensor:
        return (2 * self.weight * self.norm(x)).to(x.dtype)


class LayerNorm(Norm):
    def forward(self, x: Tensor) -> Tensor:
        return (self.norm(x - x.mean(-1, keepdim=True)) * self.weight).to(x.dtype)


class InHalfRMSNorm(Norm):
    """timm's RmsNorm2d and others: squares are summed in the dtype of the input."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon) * self.weight.to(x.dtype)


class GroupedRMSNorm(Norm):
    def forward(self, x: Tensor) -> Tensor:
        return (self.norm(x.unflatten(-1, (4, -1))).flatten(-2) * self.weight).to(x.dtype)


class DetachedRMSNorm(Norm):
    def forward(self, x: Tensor) -> Tensor:
        return (self.norm(x).detach() * self.weight).to(x.dtype)


class TrainingRMSNorm(Norm):
    def forward(self, x: Tensor) -> Tensor:
        return (self.norm(x) * (2 if self.training else 1) * self.weight).to(x.dtype)


class BiasRMSNorm(Olmo2RMSNorm):
    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(WIDTH))


LEFT: dict[type[nn.Module], str] = {
    FactorRMSNorm: r"its result has the shape \[7, 1\]",
    GatedRMSNorm: "its forward takes more than the input: gate",
    T5RMSNorm: "it gives bfloat16 for float32 inputs and bfloat16 weights, where an RMSNorm gives float32",
    InputScaledRMSNorm: "it computes something else",
    EpsOutsideRMSNorm: "it computes something else",
    TwiceRMSNorm: "it computes something else",
    LayerNorm: "it computes something else",
    InHalfRMSNorm: "it computes something else",
    GroupedRMSNorm: "it computes something else",
    DetachedRMSNorm: "its gradients are others",
    TrainingRMSNorm: "it computes something else",
    BiasRMSNorm: "it has more tensors than a weight: weight, bias",
}


def randomized(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model


@pytest.mark.parametrize("kind", REPLACED)
def test_replaced_by_what_it_computes(kind: type[nn.Module]) -> None:
    model = randomized(nn.Sequential(nn.Linear(WIDTH, WIDTH), kind(), nn.ReLU()))
    original, names = model[1], list(model.state_dict())
    reference = copy.deepcopy(model[1])
    parameters = list(model.parameters())
    report = sk.replace_norms(model)
    cast, unit_offset, affine = REPLACED[kind]
    [row] = report.norms
    assert (row.name, row.kind, row.replaced, row.reason) == ("1", kind.__name__, True, "")
    options = {"eps": 1e-6, "elementwise_affine": affine, "cast": cast, "unit_offset": unit_offset}
    assert row.options == options
    assert isinstance(model[1], sk.nn.RMSNorm)
    assert list(model.state_dict()) == names
    assert all(one is other for one, other in zip(model.parameters(), parameters, strict=True))
    for dtype, weight in ((torch.float32, torch.float32), (torch.bfloat16,) * 2, (torch.bfloat16, torch.float32)):
        model[1].to(weight)
        x = torch.randn(5, 6, WIDTH).to(dtype)
        ours, theirs = model[1](x), reference.to(weight)(x)
        assert ours.dtype == theirs.dtype
        eps = max(torch.finfo(dtype).eps, torch.finfo(weight).eps)
        torch.testing.assert_close(ours, theirs, rtol=2 * max(eps, 1e-6), atol=1e-5)
    assert sk.revert(model)[1] is original
    assert all(one is other for one, other in zip(model.parameters(), parameters, strict=True))


@pytest.mark.parametrize("kind", LEFT)
def test_left_with_a_reason(kind: type[nn.Module]) -> None:
    model = nn.Sequential(kind())
    original = model[0]
    report = sk.replace_norms(model)
    assert model[0] is original
    assert report.replaced == 0
    assert str(report.norms[0].reason)
    with pytest.raises(AssertionError, match=LEFT[kind]):
        raise AssertionError(report.norms[0].reason)


def test_torchs_own_and_ours() -> None:
    model = nn.Sequential(
        nn.RMSNorm((4, 8)), nn.RMSNorm(8, elementwise_affine=False), sk.nn.RMSNorm(8), nn.LayerNorm(8)
    )
    x = torch.randn(3, 4, 8)
    expected = model(x)
    report = sk.replace_norms(model)
    assert [norm.name for norm in report.norms] == ["0", "1"]
    assert report.replaced == 2
    torch.testing.assert_close(model(x), expected)
    assert sk.replace_norms(model).norms == ()
    assert type(sk.revert(model)[0]) is nn.RMSNorm


class Block(nn.Module):
    """Calls its norms by keyword and reads an attribute of one, as models do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = LlamaRMSNorm(), Olmo2RMSNorm()
        self.again = self.first

    def forward(self, x: Tensor) -> Tensor:
        y = self.again(self.first(hidden_states=x))
        return self.last(y.to(self.last.weight.dtype)) * self.first.variance_epsilon


def test_a_model_around_its_norms() -> None:
    block = Block()
    x = torch.randn(3, WIDTH)
    expected = block(x)
    report = sk.replace_norms(block)
    assert report.replaced == 2
    assert block.again is block.first
    assert str(report).splitlines()[0] == "2 of 2 norms run as sparsekernels.nn.RMSNorm"
    assert "1 x LlamaRMSNorm (first): eps=1e-06, elementwise_affine=True, cast='before'" in str(report)
    for model in (block, copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
        torch.testing.assert_close(model(x), expected)
    assert repr(block.last) == (
        "ReplacedRMSNorm((32,), eps=1e-06, elementwise_affine=True, cast='after', unit_offset=False)"
    )
    with pytest.raises(TypeError, match=r"expected one input, hidden_states, got \['x'\]"):
        block.first(x=x)
    y, total = block.last.add_forward(x, x)
    torch.testing.assert_close(y, block.last(x + x))
    assert torch.equal(total, x + x)
    traced = torch.compile(block, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(traced(x), expected)
    # what training makes of the parameters is handed back, and the mode
    other = copy.deepcopy(block)
    optimizer = torch.optim.SGD(other.parameters(), 0.1)
    other(x).sum().backward()
    optimizer.step()
    trained = other.eval()(x)
    reverted = sk.revert(other)
    assert type(reverted.first) is LlamaRMSNorm
    assert not reverted.first.training
    torch.testing.assert_close(reverted(x), trained)
    assert not any(isinstance(module, ReplacedRMSNorm) for module in reverted.modules())


def test_left_alone_for_what_was_done_to_it() -> None:
    def with_hook(norm: nn.Module) -> None:
        norm.register_forward_hook(lambda *_: None)

    def parametrized(norm: nn.Module) -> None:
        parametrize.register_parametrization(norm, "weight", nn.Identity())

    def forward_replaced(norm: nn.Module) -> None:
        norm.forward = norm.forward  # type: ignore[method-assign]

    def on_meta(norm: nn.Module) -> None:
        norm.to("meta")

    def of_one(norm: nn.Module) -> None:
        norm.weight = nn.Parameter(torch.ones(1))

    def without_epsilon(norm: Any) -> None:
        del norm.variance_epsilon

    changes: dict[Callable[[Any], None], str] = {
        with_hook: "it has hooks",
        parametrized: "its weight is parametrized",
        forward_replaced: "its forward was replaced",
        on_meta: "its weight is of torch.float32 on meta",
        of_one: "its weight of 1 elements fits inputs of any width",
        without_epsilon: "no attribute of it says its epsilon",
    }
    for change, reason in changes.items():
        model = nn.Sequential(LlamaRMSNorm())
        change(model[0])
        [row] = sk.replace_norms(model).norms
        assert not row.replaced
        assert row.reason == reason
    [row] = sk.replace_norms(LlamaRMSNorm()).norms
    assert row.reason == "it is the whole model, which is not replaced in place"
    with pytest.raises(TypeError, match="replace_norms: expected model to be a torch.nn.Module, got list"):
        sk.replace_norms([])  # type: ignore[arg-type]


def test_revert_loses_no_hooks() -> None:
    model = nn.Sequential(LlamaRMSNorm())
    sk.replace_norms(model)
    handle = model[0].register_forward_hook(lambda *_: None)
    with pytest.raises(RuntimeError, match="revert: the replaced norm '0' was given hooks"):
        sk.revert(model)
    assert isinstance(model[0], ReplacedRMSNorm)
    handle.remove()
    assert type(sk.revert(model)[0]) is LlamaRMSNorm


def test_converted_around_them() -> None:
    model = randomized(nn.Sequential(nn.Linear(64, 64), LlamaRMSNorm(64), nn.Linear(64, 64))).eval()
    for layer in (model[0], model[2]):
        layer.weight.data.mul_(torch.rand_like(layer.weight) < 0.1)
    x = torch.randn(16, 64)
    expected, norm = model(x), model[1]
    sk.replace_norms(model)
    with prefer("fine-grained", "graph", "layers"):
        report = sk.convert(model, x)
    assert report.converted
    assert isinstance(model[1], ReplacedRMSNorm)
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)
    sk.revert(model)
    assert model[1] is norm
    assert type(model[0]) is nn.Linear
    assert torch.equal(model(x), expected)


def test_nothing_is_drawn_and_nothing_moves() -> None:
    model = nn.Sequential(*(LlamaRMSNorm() for _ in range(3)))
    before = torch.get_rng_state()
    report = sk.replace_norms(model)
    assert torch.equal(torch.get_rng_state(), before)
    assert report.replaced == 3
    assert "3 x LlamaRMSNorm (0, ...)" in str(report)
    assert all(torch.equal(norm.weight, torch.ones(WIDTH)) for norm in model)
