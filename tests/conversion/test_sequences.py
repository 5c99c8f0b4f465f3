# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Networks of Conv1d, and of transformers' Conv1D, as convert has them: decisions, graphs, training, the way back."""

from __future__ import annotations

import copy
import io
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conv1d_of_transformers import IS_STAND_IN, Conv1D
from conversion_checks import BLOCK, DENSE, DROPPED, FINE, GRAPH, LAYERS, Prefer, assert_agree, graph_of, graphs_of
from torch import Tensor, nn

import sparsekernels as sk
from sparsekernels import _library
from sparsekernels.conversion import decide
from sparsekernels.nn import SparseConv1d, SparseTransposedLinear
from sparsekernels.pruning import prune_, prune_blocks_

pytestmark = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")


class Causal(nn.Conv1d):
    """As temporal convolutional networks have it: pads in front by itself."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, ((self.kernel_size[0] - 1) * self.dilation[0], 0)))


class Temporal(nn.Module):
    """Bai et al., 2018 (arXiv:1803.01271): two dilated convolutions around a shortcut, each with its BatchNorm."""

    def __init__(self, channels: int, outputs: int, dilation: int, kind: Any = nn.Conv1d) -> None:
        super().__init__()
        padding = 0 if kind is Causal else dilation
        self.conv1 = kind(channels, outputs, 3 if kind is nn.Conv1d else 2, dilation=dilation, padding=padding)
        self.bn1, self.bn2 = nn.BatchNorm1d(outputs), nn.BatchNorm1d(outputs)
        self.conv2 = kind(outputs, outputs, 3 if kind is nn.Conv1d else 2, dilation=dilation, padding=padding)
        self.shortcut = nn.Conv1d(channels, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class Gated(nn.Module):
    """van den Oord et al., 2016, "WaveNet" (arXiv:1609.03499): filter and gate, a residual and a skip connection."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.both = nn.Conv1d(channels, 2 * channels, 2, dilation=dilation, padding=dilation)
        self.residual, self.skip = nn.Conv1d(channels, channels, 1), nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        filters, gates = self.both(x)[..., : x.size(-1)].chunk(2, 1)
        out = torch.tanh(filters) * torch.sigmoid(gates)
        return x + self.residual(out), self.skip(out)


class WaveNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Conv1d(1, 8, 1)
        self.blocks = nn.ModuleList(Gated(8, dilation) for dilation in (1, 2, 4))
        self.back = nn.Sequential(nn.ReLU(), nn.Conv1d(8, 8, 1), nn.ReLU(), nn.Conv1d(8, 5, 1))

    def forward(self, x: Tensor) -> Tensor:
        x, skips = self.front(x), []
        for block in self.blocks:
            x, skip = block(x)
            skips.append(skip)
        return self.back(sum(skips))


class Block(nn.Module):
    """A block of GPT-2."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.c_attn, self.c_proj = Conv1D(3 * width, width), Conv1D(width, width)
        self.c_fc, self.c_out = Conv1D(4 * width, width), Conv1D(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.c_attn(self.ln_1(x)).chunk(3, -1)
        q, k, v = (one.unflatten(-1, (2, -1)).transpose(1, 2) for one in (q, k, v))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.c_proj(attended.transpose(1, 2).flatten(2))
        return x + self.c_out(F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh"))


class Rectified(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Conv1D(24, 16), Conv1D(16, 24)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.first(x)))


NETS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "temporal": (lambda: nn.Sequential(Temporal(4, 8, 1), Temporal(8, 8, 2)), (3, 4, 20)),
    "causal": (lambda: nn.Sequential(Temporal(4, 8, 1, Causal), Temporal(8, 8, 2, Causal)), (3, 4, 20)),
    "wavenet": (WaveNet, (2, 1, 30)),
    "options": (
        lambda: nn.Sequential(
            nn.Conv1d(4, 8, 5, stride=2, padding=2, groups=2, padding_mode="circular"),
            nn.BatchNorm1d(8),
            nn.Hardtanh(),
            nn.Conv1d(8, 6, 4, padding="same", dilation=2, bias=False),
            nn.ReLU6(),
            nn.MaxPool1d(2),
            nn.Flatten(),
            nn.Linear(30, 7),
        ),
        (3, 4, 20),
    ),
    "gpt": (lambda: nn.Sequential(Block(16), Block(16)), (2, 5, 16)),
    "rectified": (Rectified, (2, 5, 16)),
}
by_net = pytest.mark.parametrize("name", NETS)
by_way = pytest.mark.parametrize("way", [GRAPH, LAYERS])


def made(name: str, training: bool = False) -> tuple[nn.Module, nn.Module, Tensor]:
    """A pruned network, the same again, and what it is called with."""
    make, shape = NETS[name]
    model = make()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    prune_(model, "random", 0.6)
    model.train(training)
    return model, copy.deepcopy(model), torch.randn(shape)


@by_way
@by_net
def test_inference(prefer: Prefer, name: str, way: str) -> None:
    model, dense, x = made(name)
    prefer(FINE, way)
    report = sk.convert(model, x)
    assert {row.decision for row in report.layers} == {FINE}
    kinds = {row.kind for row in report.layers}
    assert kinds & {"Conv1d", "Conv1D", "Causal"}
    assert bool(list(graphs_of(model))) == (way == GRAPH)
    takes_any_strides = name not in ("gpt", "rectified")  # transformers' layer views what it is given
    for one in (x, torch.randn(5, *x.shape[1:]), *([x.mT.contiguous().mT] if takes_any_strides else [])):
        for _ in range(2):  # what is called at a new size or layout first, and what serves it then
            assert_agree(model, dense, one)
    sk.revert(model)
    assert type(model) is type(dense)
    assert_bit_identical(model, dense)


def assert_bit_identical(model: nn.Module, dense: nn.Module) -> None:
    mine, theirs = model.state_dict(), dense.state_dict()
    assert list(mine) == list(theirs)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    kinds = [[type(one) for one in net.modules()] for net in (model, dense)]
    assert kinds[0] == kinds[1]


@by_net
def test_training(prefer: Prefer, name: str) -> None:
    model, dense, x = made(name, training=True)
    prefer(FINE, LAYERS)
    report = sk.convert(model, x)
    assert FINE in {row.decision for row in report.layers}
    optimizers = [torch.optim.SGD(one.parameters(), 0.01) for one in (model, dense)]
    masks = {name: one != 0 for name, one in dense.named_parameters() if name.endswith("weight") and one.dim() > 1}
    for _ in range(3):
        for net, optimizer in zip((model, dense), optimizers, strict=True):
            optimizer.zero_grad()
            net(x).square().mean().backward()
            if net is dense:
                for key, parameter in dense.named_parameters():
                    if parameter.grad is not None:  # the last block's sum goes nowhere
                        parameter.grad *= masks.get(key, 1)
            optimizer.step()
    torch.testing.assert_close(model.state_dict(), dense.state_dict(), rtol=1e-3, atol=1e-4)


def test_what_is_fused(prefer: Prefer) -> None:
    """Two BatchNorms, two ReLUs and a sum: nothing is left of them beside the fused layers."""
    model, _, x = made("temporal")
    prefer(FINE, GRAPH)
    sk.convert(model, x)
    assert graph_of(model) == [f"call_module:sparsekernels_fused_{number}" for number in (0, 2, 1, 3, 5, 4)]
    model, _, x = made("rectified")
    sk.convert(model, x)
    assert graph_of(model) == ["call_module:sparsekernels_fused_0", "call_module:sparsekernels_fused_1"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["temporal", "rectified", "options"])
def test_short_dtypes(prefer: Prefer, name: str, dtype: torch.dtype) -> None:
    model, dense, x = made(name)
    model, dense, x = model.to(dtype), dense.to(dtype), x.to(dtype)
    prefer(FINE, GRAPH)
    sk.convert(model, x)
    with torch.no_grad():
        torch.testing.assert_close(model(x), dense(x), rtol=5e-2, atol=5e-2)


@pytest.mark.usefixtures("block_kernels")
@by_way
@by_net
def test_blocks(prefer: Prefer, name: str, way: str) -> None:
    """Of outputs and inputs, also where the weight is [in, out]."""
    model, _, x = made(name)
    prune_(model, "random", 0)  # nothing
    for module in model.modules():
        if hasattr(module, "weight") and module.weight.dim() > 1:
            nn.init.normal_(module.weight)
    prune_blocks_(model, (4, 4), 0.6)
    dense = copy.deepcopy(model)
    prefer(BLOCK, way)
    report = sk.convert(model, x)
    rows = [row for row in report.layers if row.decision == BLOCK]
    assert (4, 4) in {row.block for row in rows}  # of the smallest layers all is one block of another size
    assert {row.kind for row in rows} & {"Conv1d", "Conv1D", "Causal"}
    for _ in range(2):
        assert_agree(model, dense, x)
    sk.revert(model)
    assert_bit_identical(model, dense)


def test_channels_are_dropped_of_no_sequences(prefer: Prefer) -> None:
    for name, kind in (("temporal", "Conv1d"), ("rectified", "Conv1D")):
        model, _, x = made(name)
        prefer(DROPPED, LAYERS)
        report = sk.convert(model, x)
        assert {row.decision for row in report.layers} == {DENSE}
        assert f"there is no {kind} without its empty channels" in str(report.layers[0].ruled_out[DROPPED])


@pytest.mark.parametrize("name", ["temporal", "rectified"])
def test_nonzeros_written_afterwards_count(prefer: Prefer, name: str) -> None:
    """Through data, which no version tells of."""
    model, dense, x = made(name)
    prefer(FINE, LAYERS)
    sk.convert(model, x)
    layers = [one for one in model.modules() if isinstance(one, SparseConv1d | SparseTransposedLinear)]
    assert len(layers) == sum(isinstance(one, nn.Conv1d | Conv1D) for one in dense.modules())
    for net in (model, dense):
        for key, parameter in net.named_parameters():
            if key.endswith("weight") and parameter.dim() > 1:
                parameter.data += 0.01
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.no_grad():
            torch.testing.assert_close(model(x), dense(x), rtol=1e-4, atol=1e-4)
    assert all(layer.outside() > 0 for layer in layers)
    sk.revert(model)
    assert_bit_identical(model, dense)


@pytest.mark.parametrize("name", ["temporal", "gpt"])
@by_way
def test_checkpoints_and_copies(prefer: Prefer, name: str, way: str) -> None:
    model, dense, x = made(name)
    prefer(FINE, way)
    sk.convert(model, x)
    other, again, _ = made(name)
    model.load_state_dict(other.state_dict())
    for _ in range(3):
        assert_agree(model, again, x)
    copies = [copy.deepcopy(model)]
    if name != "gpt" or not IS_STAND_IN:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        copies.append(torch.load(file, weights_only=False))
    for one in copies:
        assert_agree(one, again, x)
        sk.revert(one)
        assert_bit_identical(one, again)
    dense.load_state_dict(model.state_dict())
    assert_agree(model, dense, x)


def test_parameters_are_the_models_own(prefer: Prefer) -> None:
    model, _, x = made("rectified")
    before = dict(model.named_parameters())
    prefer(FINE, LAYERS)
    sk.convert(model, x)
    after = dict(model.named_parameters())
    assert before.keys() == after.keys()
    assert all(after[name] is before[name] for name in before)
    assert model.first.weight.shape == (16, 24)


def test_rows_decide_for_transposed_weights(clock: Prefer, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for Linear: it is dense for a few rows, if that was measured to be faster."""
    model, dense, x = made("rectified")
    clock(FINE, LAYERS)
    gain_at_8_rows = {1: 0.5, 8: 2.0}
    monkeypatch.setattr(decide, "gains_of", lambda dense, ways, *_: dict.fromkeys(ways, gain_at_8_rows))
    sk.convert(model, x)
    assert isinstance(model.first, SparseTransposedLinear)
    assert model.first.dense_rows == (1, 8)
    with torch.no_grad():
        for rows in (1, 7, 8):
            torch.testing.assert_close(model.first(x.view(-1, 16)[:rows]), dense.first(x.view(-1, 16)[:rows]))
            torch.testing.assert_close(model(x[:1, :rows]), dense(x[:1, :rows]))


@pytest.mark.parametrize("make", [lambda: nn.Linear(6, 6), lambda: nn.Conv1d(6, 6, 1), lambda: Conv1D(6, 6)])
def test_attributes_that_were_set_go_along(prefer: Prefer, make: Any) -> None:
    """Also under the names that the sizes of transformers' layer have."""
    model = nn.Sequential(make(), nn.ReLU())
    prune_(model, "random", 0.5)
    for name in ("tag", "nf"):
        if name not in vars(model[0]):
            setattr(model[0], name, f"my {name}")
    before = {name: getattr(model[0], name, None) for name in ("tag", "nf", "nx")}
    prefer(FINE, LAYERS)
    sk.convert(model, torch.randn(2, 6, 6))
    assert isinstance(model[0], sk.nn.SparseLinear | SparseConv1d | SparseTransposedLinear)
    assert before == {name: getattr(model[0], name, None) for name in before}
    sk.revert(model)
    assert before == {name: getattr(model[0], name, None) for name in before}


class Scaled(Conv1D):  # type: ignore[misc, valid-type]
    """Does more than transformers' class."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_subclasses_of_transformers_class_stay(prefer: Prefer) -> None:
    model = nn.Sequential(Scaled(8, 6), Conv1D(5, 8))
    prune_(model, "random", 0.5)
    dense, x = copy.deepcopy(model), torch.randn(3, 6)
    prefer(FINE, LAYERS)
    report = sk.convert(model, x)
    assert [row.decision for row in report.layers] == [DENSE, FINE]
    assert "Scaled" in str(report.layers[0].obstacle)
    torch.testing.assert_close(model(x), dense(x))


def test_gpt2_of_transformers(prefer: Prefer) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=2, n_head=2)
    model = transformers.GPT2LMHeadModel(config).eval()
    prune_(model, "magnitude", 0.7)
    dense, tokens = copy.deepcopy(model), torch.randint(50, (2, 9))
    prefer(FINE, LAYERS)
    report = sk.convert(model, tokens)
    conv1d = [row for row in report.layers if row.kind == "Conv1D"]
    assert len(conv1d) == 8
    assert {row.decision for row in conv1d} == {FINE}
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, dense(tokens).logits, rtol=1e-4, atol=1e-4)
        generated = [net.generate(tokens, max_new_tokens=4, do_sample=False) for net in (model, dense)]
    assert torch.equal(*generated)
    model.load_state_dict(dense.state_dict())
    sk.revert(model)
    assert_bit_identical(model, dense)
