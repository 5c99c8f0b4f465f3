# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""replace_norms: norms as transformers and timm write them, restated here, each right or left with its reason.

More than 400 lines: all of these tests are about the norms restated here.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

import sparsekernels as sk
from sparsekernels.conversion.graph.attach import NO_ANSWER
from sparsekernels.conversion.norm_call import norm_call_of
from sparsekernels.conversion.norm_probe import recognized
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


class ClampedRMSNorm(Olmo2RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.clamp(-6e4, 6e4))


class ClampedBelowRMSNorm(Olmo2RMSNorm):
    """Tiny numbers are zero to it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.where(x.abs() < 1e-15, 0, x))


class ClampedResultRMSNorm(Olmo2RMSNorm):
    """As the feed-forward layers of T5 do."""

    def forward(self, x: Tensor) -> Tensor:
        limit = torch.finfo(x.dtype).max
        return super().forward(x).clamp(-limit, limit)


class ClampedHalfRMSNorm(Olmo2RMSNorm):
    """In float16 alone, with the numbers nearest to its limit."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.clamp(-58000, 58000) if x.dtype == torch.float16 else x)


class ScaledRMSNorm(Olmo2RMSNorm):
    """Squares never overflow; where they would, sk.rms_norm gives zeros, as torch does."""

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        largest = wide.abs().amax(-1, keepdim=True).clamp(min=1.0)
        wide = wide / largest
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon / largest**2)
        return (wide * self.weight).to(x.dtype)


class ChannelsRMSNorm(Olmo2RMSNorm):
    """Images are normalized over their channels."""

    def forward(self, x: Tensor) -> Tensor:
        is_image = x.dim() == 4
        return super().forward(x.movedim(1, -1)).movedim(-1, 1) if is_image else super().forward(x)


class ChannelsIfTheyFitRMSNorm(ChannelsRMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.shape[1:2] == self.weight.shape else Olmo2RMSNorm.forward(self, x)


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
    ClampedRMSNorm: "it computes something else",
    ClampedBelowRMSNorm: "it computes something else",
    ClampedResultRMSNorm: "it does not overflow for float32 inputs and float32 weights",
    ClampedHalfRMSNorm: "it computes something else for float16 inputs",
    ScaledRMSNorm: "it computes something else",
    ChannelsRMSNorm: "it computes something else",
    ChannelsIfTheyFitRMSNorm: "it computes something else",
    BiasRMSNorm: "it has more tensors than a weight: weight, bias",
}


def is_ours(norm: nn.Module, x: Tensor) -> bool:
    """Whether a call of `norm` runs as rms_norm."""
    call = norm_call_of(norm)
    return call is not None and call.answer((x,), {}) is not NO_ANSWER


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
    assert model[1] is original
    assert isinstance(original, kind)
    assert list(model.state_dict()) == names
    assert all(one is other for one, other in zip(model.parameters(), parameters, strict=True))
    for dtype, weight in ((torch.float32, torch.float32), (torch.bfloat16,) * 2, (torch.bfloat16, torch.float32)):
        model[1].to(weight)
        x = torch.randn(5, 6, WIDTH).to(dtype)
        assert is_ours(original, x)
        ours, theirs = original(x), reference.to(weight)(x)
        assert ours.dtype == theirs.dtype
        eps = max(torch.finfo(dtype).eps, torch.finfo(weight).eps)
        torch.testing.assert_close(ours, theirs, rtol=2 * max(eps, 1e-6), atol=1e-5)
    assert type(sk.revert(model)[1]) is kind
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


OF_ANY_WIDTH = [kind for kind in (*REPLACED, *LEFT) if kind.__init__ is Norm.__init__ and kind is not GatedRMSNorm]


@pytest.mark.parametrize("kind", OF_ANY_WIDTH)
def test_what_a_wide_one_computes(kind: type[Norm]) -> None:
    """As a narrow one does, though its inputs are others."""
    narrow, wide = recognized(kind()), recognized(kind(256))
    if isinstance(narrow, dict):
        assert wide == narrow
    elif issubclass(kind, ChannelsRMSNorm):
        words = "it cannot be called with inputs of shape", "it computes something else where the last dimension is not"
        assert str(wide).startswith(words)
    else:
        assert str(wide).partition(" for ")[0] == narrow.partition(" for ")[0]


class CountedRMSNorm(Olmo2RMSNorm):
    counted: ClassVar[list[int]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.counted.append(x.numel())
        return super().forward(x)


def test_inputs_of_a_wide_one_are_few() -> None:
    counts = []
    for width in (256, 1024):
        CountedRMSNorm.counted.clear()
        assert isinstance(recognized(CountedRMSNorm(width)), dict)
        counts.append(sum(CountedRMSNorm.counted))
    assert counts[1] == 4 * counts[0]


def test_torchs_own_and_ours() -> None:
    model = nn.Sequential(
        nn.RMSNorm((4, 8)), nn.RMSNorm(8, elementwise_affine=False), sk.nn.RMSNorm(8), nn.LayerNorm(8)
    )
    x = torch.randn(3, 4, 8)
    expected = model(x)
    report = sk.replace_norms(model)
    assert [norm.name for norm in report.norms] == ["0", "1"]
    assert report.replaced == 2
    assert is_ours(model[0], x)
    assert is_ours(model[1], x)
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
    expected, representation = block(x), repr(block)
    report = sk.replace_norms(block)
    assert report.replaced == 2
    assert block.again is block.first
    assert str(report).splitlines()[0] == "2 of 2 norms run as sparsekernels.rms_norm"
    assert "1 x LlamaRMSNorm (first): eps=1e-06, elementwise_affine=True, cast='before'" in str(report)
    assert repr(block) == representation
    for model in (block, copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
        torch.testing.assert_close(model(x), expected)
        assert is_ours(model.first, x)
        assert is_ours(model.last, x)
    with pytest.raises(TypeError, match="forward"):  # their own code says what is wrong
        block.first(x=x)
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
    assert type(reverted.last) is Olmo2RMSNorm


def test_left_alone_for_what_was_done_to_it() -> None:
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

    def of_an_object(norm: Any) -> None:
        norm.config = {"scale": 1.0}

    changes: dict[Callable[[Any], None], str] = {
        of_an_object: "its attribute config, a dict, may change unseen",
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
    with pytest.raises(TypeError, match="replace_norms: expected model to be a torch.nn.Module, got list"):
        sk.replace_norms([])  # type: ignore[arg-type]


def test_a_wide_one() -> None:
    """Among many float16 results some are subnormal, and rounded as such."""
    assert sk.replace_norms(nn.Sequential(LlamaRMSNorm(512))).replaced == 1


def test_hooks_stay() -> None:
    norm, seen = LlamaRMSNorm(), []
    norm.register_forward_hook(lambda module, args, result: seen.append(module))
    assert sk.replace_norms(norm).replaced == 1
    assert seen == []
    norm.register_forward_pre_hook(lambda module, args: (2 * args[0],))
    x = torch.randn(3, WIDTH)
    assert is_ours(norm, x)
    torch.testing.assert_close(norm(x), LlamaRMSNorm()(2 * x))
    assert seen == [norm]
    assert type(sk.revert(norm)) is LlamaRMSNorm
    assert len(norm._forward_hooks) == 1


def epsilon(norm: Any) -> None:
    norm.variance_epsilon = 0.5


def new_attribute(norm: Any) -> None:
    norm.norm = lambda x: 2 * x  # a method of the class


def epsilon_of_torchs(norm: Any) -> None:
    norm.eps = 0.5


def normalized_shape(norm: Any) -> None:
    norm.normalized_shape = (2, WIDTH // 2)
    norm.weight = nn.Parameter(norm.weight.detach().view(2, -1))


def parameter(norm: Any) -> None:
    norm.weight = nn.Parameter(torch.randn(WIDTH))


def width(norm: Any) -> None:
    norm.weight = nn.Parameter(torch.full((1,), 3.0))


def bias(norm: Any) -> None:
    norm.register_parameter("bias", nn.Parameter(torch.randn(WIDTH)))


def data(norm: Any) -> None:
    norm.weight.data = torch.randn(WIDTH)


def plain_weight(norm: Any) -> None:
    weight = norm.weight.detach() * 2
    del norm.weight
    norm.weight = weight


def pruned(norm: Any) -> None:
    prune.l1_unstructured(norm, "weight", 0.5)


def doubled(norm: Any) -> None:
    parametrize.register_parametrization(norm, "weight", Doubled())


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


CHANGES: list[tuple[Callable[..., nn.Module], Callable[[Any], None], bool]] = [
    (LlamaRMSNorm, epsilon, False),
    (GemmaRMSNorm, epsilon, False),
    (Olmo2RMSNorm, new_attribute, False),
    (lambda: nn.RMSNorm(WIDTH), epsilon_of_torchs, False),
    (lambda: nn.RMSNorm(WIDTH, elementwise_affine=False), parameter, False),
    (LlamaRMSNorm, parameter, True),
    (GemmaRMSNorm, data, True),
    (LlamaRMSNorm, width, False),
    (Olmo2RMSNorm, bias, False),
    (Olmo2RMSNorm, plain_weight, False),
    (LlamaRMSNorm, pruned, False),
    (LlamaRMSNorm, doubled, False),
]


@pytest.mark.parametrize(("make", "change", "stays"), CHANGES)
def test_what_is_changed_afterwards_counts(make: Any, change: Callable[[Any], None], stays: bool) -> None:
    model, dense = nn.Sequential(make()), nn.Sequential(make())
    x = torch.randn(4, WIDTH)
    assert sk.replace_norms(model).replaced == 1
    for one in (model, dense):
        torch.manual_seed(3)
        change(one[0])
    assert is_ours(model[0], x) is stays
    torch.testing.assert_close(model(x), dense(x))
    again = dense if change is pruned else copy.deepcopy(model)  # torch copies no pruned module
    sk.replace_norms(model)
    torch.testing.assert_close(model(x), dense(x))
    torch.testing.assert_close(again(x), dense(x))
    sk.revert(model)
    torch.testing.assert_close(model(x), dense(x), rtol=0, atol=0)


def test_another_epsilon_is_exchanged_again() -> None:
    model = nn.Sequential(LlamaRMSNorm(), nn.RMSNorm(WIDTH))
    sk.replace_norms(model)
    model[0].variance_epsilon = 0.5
    normalized_shape(model[1])
    [first, second] = sk.replace_norms(model).norms
    assert (first.options["eps"], second.replaced) == (0.5, True)
    x = torch.randn(3, 2, WIDTH // 2)
    assert is_ours(model[0], torch.randn(4, WIDTH))
    assert is_ours(model[1], x)
    torch.testing.assert_close(model[1](x), nn.functional.rms_norm(x, (2, WIDTH // 2), model[1].weight))


def test_a_method_that_is_patched() -> None:
    class Patched(LlamaRMSNorm):
        pass

    model, x = nn.Sequential(Patched()), torch.randn(4, WIDTH)
    sk.replace_norms(model)
    assert is_ours(model[0], x)
    for place in (LlamaRMSNorm, Norm):
        name = "forward" if place is LlamaRMSNorm else "norm"
        original = getattr(place, name)
        setattr(place, name, lambda self, x: 2 * x)
        try:
            assert not is_ours(model[0], x)
            torch.testing.assert_close(model(x), 2 * x)
        finally:
            setattr(place, name, original)
    assert is_ours(model[0], x)


def test_code_that_asks_for_the_class() -> None:
    """As `_init_weights` of transformers does: a weight that starts at 0 is not filled with ones."""
    model = nn.Sequential(GemmaRMSNorm(), nn.Linear(WIDTH, WIDTH))
    sk.replace_norms(model)
    assert model[0].__class__ is GemmaRMSNorm
    assert isinstance(model[0], GemmaRMSNorm)
    assert not isinstance(model[0], nn.RMSNorm)
    assert type(model[0]).__name__ == "GemmaRMSNorm"
    assert (model[0].variance_epsilon, model[0].start) == (1e-6, 0.0)


def test_calls_of_other_kinds_run_their_own_code() -> None:
    norm, dense = LlamaRMSNorm(), LlamaRMSNorm()
    sk.replace_norms(norm)
    x = torch.randn(4, 6, WIDTH)

    def both(x: Any) -> None:
        ours, theirs = norm(x), dense(x)
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs)

    both(x.double())  # of no pair that was compared
    with torch.autocast("cpu", torch.bfloat16):
        both(x)
    dense_of = torch.func.vmap(dense)(x)
    torch.testing.assert_close(torch.func.vmap(norm)(x), dense_of)
    torch.testing.assert_close(torch.jit.trace(norm, x)(2 * x), dense(2 * x))
    other = {"weight": torch.randn(WIDTH)}
    torch.testing.assert_close(
        torch.func.functional_call(norm, other, (x,)), torch.func.functional_call(dense, other, (x,))
    )
    clone = copy.copy(norm)
    clone._parameters = {"weight": torch.randn(WIDTH)}
    torch.testing.assert_close(clone(x), torch.func.functional_call(dense, dict(clone._parameters), (x,)))
    with pytest.raises(RuntimeError, match="must match"):
        norm(torch.randn(4, 5))
    torch.testing.assert_close(norm(torch.randn(4, 1).expand(4, 1)).shape, (4, WIDTH))
    with sk.use_backend("reference"):
        both(x)


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
    assert norm_call_of(model[1]) is not None
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)
    sk.revert(model)
    assert model[1] is norm
    assert type(norm) is LlamaRMSNorm
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


def test_a_forward_that_is_patched_in_the_class() -> None:
    """Of a subclass that inherits it, of torch's own, and of a copy: the class's present code runs."""

    class Inherits(LlamaRMSNorm):
        pass

    def patched(self: Any, x: Tensor) -> Tensor:
        return 3 * x

    x = torch.randn(2, 16)
    for norm in (Inherits(16), nn.RMSNorm(16)):
        model = nn.Sequential(norm)
        assert sk.replace_norms(model).replaced == 1
        kind: Any = type(norm).__mro__[2]
        own = vars(kind).get("forward")
        kind.forward = patched
        try:
            torch.testing.assert_close(model(x), 3 * x)
            torch.testing.assert_close(copy.deepcopy(model)(x), 3 * x)
        finally:
            if own is None:
                del kind.forward
            else:
                kind.forward = own
        torch.testing.assert_close(model(x), F.rms_norm(x, (16,), eps=getattr(norm, "variance_epsilon", None)))
