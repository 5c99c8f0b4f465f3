# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Subclasses of Conv2d and Linear that only pad and cast before they multiply become sparse; others stay."""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conversion_checks import DENSE, DROPPED, FINE, GRAPH, LAYERS, Prefer, assert_agree, graphs_of
from torch import Tensor, nn

import sparsekernels as sk
from sparsekernels import _library
from sparsekernels.conversion.subclasses import Instead
from sparsekernels.pruning import prune_

pytestmark = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")


class Same(nn.Conv2d):
    """As timm's Conv2dSame: what it pads depends on the size of its input."""

    def forward(self, x: Tensor) -> Tensor:
        pads = []
        for size, kernel, stride in zip(x.size()[:1:-1], self.weight.shape[:1:-1], self.stride[::-1], strict=True):
            total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        x = F.pad(x, pads) if any(pads) else x
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Static(nn.Conv2d):
    """As the EfficientNet-Lite package's Conv2dStaticSamePadding."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.static_padding = nn.ZeroPad2d((0, 1, 0, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.static_padding(x)
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)

    def describe(self) -> str:
        return f"pads {self.static_padding.padding}"


class Casts(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)


def _net() -> nn.Sequential:
    model = nn.Sequential(
        *(Same(8, 32, 3, stride=2, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
        *(Static(32, 32, 3, stride=2), nn.BatchNorm2d(32), nn.ReLU6(), nn.Conv2d(32, 8, 1)),
    ).eval()
    prune_(model, "random", 0.9)
    with torch.no_grad():
        for norm in (model[1], model[4]):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
        model[0].weight[16:] = 0
        model[3].weight[:, :7] = 0
    return model


@pytest.mark.parametrize("decision", [FINE, DROPPED])
@pytest.mark.parametrize("way", [GRAPH, LAYERS])
def test_convolutions_that_pad_by_themselves(prefer: Prefer, decision: str, way: str) -> None:
    """At sizes that they were not recorded at, too: a first call runs their own code, the second ours."""
    model = _net()
    dense, padding = copy.deepcopy(model), model[3].static_padding
    prefer(decision, way)
    report = sk.convert(model, torch.randn(2, 8, 17, 18))
    assert [row.decision for row in report.layers] == [decision] * 3
    assert bool(list(graphs_of(model))) is (way == GRAPH)
    for size in ((2, 8, 17, 18), (2, 8, 16, 16), (2, 8, 16, 16), (1, 8, 9, 30), (1, 8, 9, 30)):
        assert_agree(model, dense, torch.randn(size))
    copied = copy.deepcopy(model)
    for _ in range(2):
        assert_agree(copied, dense, torch.randn(2, 8, 17, 18))
    assert model[3].static_padding is padding
    assert model[3].describe() == "pads (0, 1, 0, 1)"
    assert list(model.state_dict()) == list(dense.state_dict())
    saved = io.BytesIO()
    torch.save(model, saved)
    saved.seek(0)
    assert_agree(torch.load(saved, weights_only=False), dense, torch.randn(2, 8, 17, 18))
    reverted = sk.revert(model)
    assert [type(reverted[place]) for place in (0, 3)] == [Same, Static]
    assert_agree(reverted, dense, torch.randn(2, 8, 17, 18))


def test_gradients_of_convolutions_that_pad_by_themselves(prefer: Prefer) -> None:
    model = _net().train()
    dense, x = copy.deepcopy(model), torch.randn(2, 8, 17, 18)
    prefer(FINE, LAYERS)
    assert len(sk.convert(model, x).converted) == 3
    for one in (model, dense):
        one(x).square().sum().backward()
    for mine, theirs in zip(model.parameters(), dense.parameters(), strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        used = mine != 0 if mine.dim() == 4 else slice(None)
        torch.testing.assert_close(mine.grad[used], theirs.grad[used], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_linear_layers_that_cast(prefer: Prefer, dtype: torch.dtype) -> None:
    model = nn.Sequential(Casts(64, 64), nn.ReLU(), Casts(64, 64)).eval()
    prune_(model, "random", 0.9)
    dense, x = copy.deepcopy(model), torch.randn(4, 64).to(dtype)
    prefer(FINE, GRAPH, LAYERS)
    assert len(sk.convert(model, x).converted) == 2
    with torch.no_grad():
        for rows in (x, x[:1], x[:3].float()):
            result = model(rows)
            assert result.dtype is rows.dtype
            torch.testing.assert_close(result, dense(rows))


def test_what_changes_afterwards(prefer: Prefer) -> None:
    """Attributes that the code reads, parameters, the code itself: what the subclass does then is what counts."""

    class Switched(nn.Linear):
        scale = 1.0
        options: dict[str, bool]

        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return y.tanh() if self.options["tanh"] else y

    model = nn.Sequential(Switched(64, 64)).eval()
    model[0].options = {"tanh": False}
    prune_(model, "random", 0.9)
    dense, x = copy.deepcopy(model), torch.randn(4, 64)
    prefer(FINE, LAYERS)
    assert len(sk.convert(model, x).converted) == 1

    def check() -> None:
        for _ in range(2):
            assert_agree(model, dense, x)

    check()
    for one in (model, dense):
        one[0].options["tanh"] = True
    check()
    for one in (model, dense):
        one[0].options["tanh"] = False
    check()
    for one in (model, dense):
        with torch.no_grad():
            one[0].weight.mul_(2)
        one[0].bias = None
    check()
    for one in (model, dense):
        one.double()
    x = x.double()
    check()
    Switched.forward = lambda self, x: F.linear(x, self.weight).relu()  # type: ignore[method-assign]
    check()
    assert type(sk.revert(model)[0]) is Switched


class _Gated(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class _Standardized(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight - self.weight.mean(), self.bias)


class _Counting(nn.Linear):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


class _Deciding(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.abs().max() < 9 else x / 2)


class _Transposed(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.T, self.bias)


class _Saved(nn.Linear):
    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return {name: value.half() for name, value in super().state_dict(*args, **kwargs).items()}


class _Reflects(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (1, 1, 1, 1), mode="reflect"))


class _PadsOnes(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (1, 1, 1, 1), value=1.0))


class _OtherStride(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, 2)


@pytest.mark.parametrize(
    "kind",
    [_Gated, _Standardized, _Counting, _Deciding, _Transposed, _Saved, _Reflects, _PadsOnes, _OtherStride],
)
def test_subclasses_that_do_more_stay(prefer: Prefer, kind: type) -> None:
    convolves = issubclass(kind, nn.Conv2d)
    layer = kind(16, 16, 3) if convolves else kind(16, 16)
    model = nn.Sequential(layer).eval()
    prune_(model, "random", 0.9)
    prefer(FINE, GRAPH, LAYERS)
    (row,) = sk.convert(model, torch.randn(2, 16, 8, 8) if convolves else torch.randn(2, 16)).layers
    assert row.decision == DENSE
    assert row.reason.startswith(f"its class {kind.__name__} may compute something else than torch.nn.")


def test_sizes_are_kept_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsekernels.conversion.subclasses._MOST_KEPT", 3)
    layer = Same(4, 4, 3, stride=2)
    instead = Instead(layer)
    for size in range(3, 11):
        for _ in range(2):
            x = torch.randn(1, 4, size, size)
            torch.testing.assert_close(instead.run(layer, x), layer(x))
            steps = instead.steps_for(layer, x)
            assert steps is not None
            torch.testing.assert_close(F.conv2d(steps.before(x), layer.weight, layer.bias, 2), layer(x))
    assert len(instead._steps) <= 3


class Skips(nn.Linear):
    """Gives its argument where there is one row."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.shape[0] == 1 else super().forward(x)


def test_what_the_code_of_a_subclass_gives_is_not_written_to(prefer: Prefer) -> None:
    model = nn.Sequential(Skips(16, 16), nn.ReLU(), nn.Linear(16, 16)).eval()
    prune_(model, "random", 0.8)
    dense = copy.deepcopy(model)
    prefer(FINE, GRAPH)
    assert len(sk.convert(model, torch.randn(4, 16)).converted) == 2
    assert list(graphs_of(model))
    for rows in (1, 1, 4):
        x = torch.randn(rows, 16)
        kept = x.clone()
        with torch.no_grad():
            torch.testing.assert_close(model(x), dense(kept), rtol=1e-4, atol=1e-5)
        assert torch.equal(x, kept)
