# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What convert leaves alone, what it refuses, and what it does not disturb."""

from __future__ import annotations

import copy
import itertools
import re
from typing import Any

import pytest
import torch
from conversion_checks import DENSE, DROPPED, FINE, GRAPH, LAYERS, Prefer, assert_agree, graphs_of, run
from conversion_nets import drop_channels_, make
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

import sparsekernels as sk
from sparsekernels import _library, usage
from sparsekernels.conversion.modules import GRAPH as GRAPH_OF
from sparsekernels.pruning import prune_

pytestmark = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")


# What stays as it is.


def reasons(report: sk.Report) -> dict[str, str]:
    return {row.name: row.reason for row in report.layers if row.decision == DENSE}


def test_a_model_that_is_not_pruned_is_left_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)).eval()
    modules = list(model)
    report = sk.convert(model, torch.randn(2, 3, 8, 8))
    assert list(model) == modules
    assert GRAPH_OF not in vars(model)
    assert not report.converted
    assert report.speedup is None
    assert "not pruned" in report.notes[0]
    assert "the model is unchanged" in str(report)
    assert set(reasons(report).values()) == {"it has no zeros"}


def test_layers_that_have_to_stay(prefer: Prefer) -> None:
    class Custom(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) + 1

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.plain, self.hooked, self.custom = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), Custom(4, 4, 1)
            self.pruned, self.parametrized = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
            self.tied, self.tied_too = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
            self.tied_too.weight = self.tied.weight
            self.twice = nn.ModuleList([nn.Conv2d(4, 4, 1)])
            self.twice.append(self.twice[0])
            self.scripted = torch.jit.script(nn.Conv2d(4, 4, 1))
            self.replaced = nn.Conv2d(4, 4, 1)
            self.unused, self.full = nn.Linear(4, 4), nn.Conv2d(4, 4, 1)
            self.strange = nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.pruned(self.custom(self.hooked(self.plain(x))))
            x = self.tied_too(self.tied(self.parametrized(x)))
            return self.strange(self.full(self.replaced(self.scripted(self.twice[1](self.twice[0](x))))))

    model = Net().eval()
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and name not in ("full", "pruned"):
            with torch.no_grad():
                module.weight[:, 1:] = 0
    with torch.no_grad():
        model.scripted.weight[:, 1:] = 0
        model.strange.weight[0, 0] = torch.nan
    calls: list[int] = []
    model.hooked.register_forward_hook(lambda *_: calls.append(1))
    prune.l1_unstructured(model.pruned, "weight", amount=0.7)
    parametrize.register_parametrization(model.parametrized, "weight", nn.Identity())
    own = model.replaced.forward
    model.replaced.forward = lambda x: own(x) * 2
    x = torch.randn(2, 4, 5, 5)
    expected = run(model, x)
    calls.clear()
    prefer(FINE, GRAPH)
    report = sk.convert(model, x, decisions=[FINE])
    assert [row.name for row in report.converted] == ["plain"], report
    for name, words in {
        "hooked": "hooks",
        "custom": "its class Custom",
        "pruned": "prune.remove",
        "parametrized": "remove_parametrizations",
        "tied": "shared with tied_too",
        "tied_too": "shared with tied",
        "twice.0": "several places: twice.0, twice.1",
        "replaced": "its forward was replaced",
        "unused": "did not call it",
        "full": "no zeros",
        "strange": "NaN",
    }.items():
        assert words in reasons(report)[name], (name, reasons(report)[name])
    calls.clear()
    assert_equal_with_nan(run(model, x), expected)
    assert len(calls) == 1


def assert_equal_with_nan(actual: list[Tensor], expected: list[Tensor]) -> None:
    torch.testing.assert_close(actual, expected, equal_nan=True)


def test_transformer_layers(prefer: Prefer) -> None:
    """torch's fast path multiplies by weights itself; without it, the layers are called."""
    model = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    prune_(model, "random", 0.8)
    with torch.no_grad():
        model.self_attn.out_proj.weight[:, ::2] = 0
    x = torch.randn(2, 5, 16)
    prefer(FINE, GRAPH, LAYERS)
    report = sk.convert(model, x)
    assert not report.converted
    assert "set_fastpath_enabled(False)" in reasons(report)["linear1"]
    assert "MultiheadAttention" in reasons(report)["self_attn.out_proj"]
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        expected = run(model, x)
        assert [row.name for row in sk.convert(model, x).converted] == ["linear1", "linear2"]
        torch.testing.assert_close(run(model, x), expected)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def test_results_that_differ_are_not_used(prefer: Prefer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code that does something else in every call is found out; what was fused wrongly would be as well."""
    calls = itertools.count(1)

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) * next(calls)

    model = Counting().eval()
    prune_(model, "random", 0.7)
    prefer(FINE, GRAPH, LAYERS)
    report = sk.convert(model, torch.randn(4, 8))
    assert not list(graphs_of(model))
    assert any("results differed" in note for note in report.notes)


@pytest.mark.parametrize(
    ("model", "input", "error", "words"),
    [
        (3, torch.ones(2), TypeError, "expected model to be a torch.nn.Module, got int"),
        (
            nn.Linear(3, 2),
            torch.ones(2, 4),
            ValueError,
            r"got \(a tensor of shape \[2, 4\], torch.float32 on cpu\)",
        ),
        (nn.Linear(3, 2), "text", ValueError, "a str"),
        (nn.Linear(3, 2), (), ValueError, r"got \(\)"),
        (torch.jit.script(nn.Linear(3, 2)), torch.ones(2, 3), TypeError, "ScriptModule"),
    ],
)
def test_bad_input(model: Any, input: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        sk.convert(model, input)


@pytest.mark.parametrize(
    ("input", "got"),
    [
        (torch.ones(2, 8, dtype=torch.int64), "(a tensor of shape [2, 8], torch.int64 on cpu): RuntimeError: "),
        (torch.ones(2, 8, device="meta"), "(a tensor of shape [2, 8], torch.float32 on meta): RuntimeError: "),
        ((torch.ones(2, 8), None), "(a tensor of shape [2, 8], torch.float32 on cpu, None): TypeError: "),
    ],
)
def test_dtypes_and_devices_of_what_does_not_fit(input: Any, got: str) -> None:
    model = nn.Sequential(nn.Linear(8, 4)).eval()
    expected = f"convert: expected example_input that model (of torch.float32 on cpu) can be called with, got {got}"
    with pytest.raises(ValueError, match=re.escape(expected)):
        sk.convert(model, input)
    with pytest.raises(ValueError, match=re.escape("that model can be called with, got (a tensor of shape [2, 8]")):
        sk.convert(nn.Sequential(nn.Flatten(5)), torch.ones(2, 8))


@pytest.mark.parametrize(("amount", "decision"), [(0.3, FINE), (0.29, DENSE)])
def test_the_least_share_of_zeros_may_be_an_element_less(prefer: Prefer, amount: float, decision: str) -> None:
    """torch prunes 518 of 1728 weights for 0.3, which reports call 30.0%."""
    model = nn.Sequential(nn.Linear(48, 36)).eval()
    prune.l1_unstructured(model[0], "weight", amount)
    prune.remove(model[0], "weight")
    prefer(FINE, LAYERS)
    (row,) = sk.convert(model, torch.randn(4, 48)).layers
    assert row.sparsity is not None
    assert row.sparsity < 0.3
    assert row.decision == decision


def test_frozen_is_a_bool() -> None:
    with pytest.raises(TypeError, match="expected frozen to be True or False, got str"):
        sk.convert(nn.Sequential(nn.Linear(8, 4)), torch.ones(2, 8), frozen="no")  # type: ignore[arg-type]


def test_an_argument_of_another_layout(prefer: Prefer) -> None:
    """Such as the adjacency of a graph network."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
            return torch.sparse.mm(adjacency, self.layer(x))

    model, x = Net().eval(), torch.randn(4, 8)
    prune_(model, "random", 0.7)
    adjacency = torch.eye(4).to_sparse()
    expected = model(x, adjacency)
    prefer(FINE, LAYERS)
    assert sk.convert(model, (x, adjacency)).converted
    torch.testing.assert_close(model(x, adjacency), expected)


def test_an_error_leaves_the_model_as_it_was(prefer: Prefer) -> None:
    model, x = make("residual")
    prefer(FINE, GRAPH)
    sk.convert(model, x)
    modules = dict(model.named_modules())
    with pytest.raises(ValueError, match=r"expected example_input that model \(of torch.float32 on cpu\) can"):
        sk.convert(model, x[:, :3])
    assert dict(model.named_modules()) == modules
    assert len(list(graphs_of(model))) == 1


@pytest.mark.parametrize("training", [True, False])
def test_converting_leaves_no_trace(prefer: Prefer, training: bool) -> None:
    """Not in running statistics, gradients or the random numbers."""
    model, x = make("pre-activation")
    model.train(training)
    model[0].conv1.weight.grad = torch.ones_like(model[0].conv1.weight)
    state = copy.deepcopy(model.state_dict())
    random = torch.random.get_rng_state()
    prefer(FINE, GRAPH)
    sk.convert(model, x)
    assert torch.equal(random, torch.random.get_rng_state())
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())
    assert torch.equal(model[0].conv1.weight.grad, torch.ones_like(model[0].conv1.weight))
    assert [parameter.grad is not None for parameter in model.parameters()].count(True) == 1
    assert all(module.training == training for module in model.modules())
    assert not x.requires_grad


def test_inside_of_inference_mode(prefer: Prefer) -> None:
    """What convert makes is no inference tensor, whatever mode it is called in; the graph goes on after a change."""
    model, x = make("sequential")
    drop_channels_(model)
    prefer(DROPPED, GRAPH)
    with torch.inference_mode():
        sk.convert(model, x)
    dense = copy.deepcopy(sk.revert(copy.deepcopy(model)))
    for module in (model, dense):
        with torch.no_grad():
            module[0].weight.mul_(2)
    assert_agree(model, dense, x)
    model(x).sum().backward()
    with torch.inference_mode():
        for module in (model, dense):
            module[0].weight = nn.Parameter(module[0].weight * 2)
    assert_agree(model, dense, x)


# What else one may try.


def test_a_compiled_model_is_refused() -> None:
    model, x = make("sequential")
    compiled = torch.compile(model)
    with pytest.raises(TypeError, match="expected model before torch.compile, got a compiled one"):
        sk.convert(compiled, x)
    model.compile()
    with pytest.raises(TypeError, match="got a compiled one"):
        sk.convert(model, x)


def test_an_empty_batch_is_refused() -> None:
    model, x = make("sequential")
    with pytest.raises(
        ValueError, match="expected example_input of tensors with elements, got a tensor of shape .0, 8, "
    ):
        sk.convert(model, x[:0])


class ByName(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3)

    def forward(self, *, images: Tensor, factor: float = 1.0) -> Tensor:
        return self.conv(images) * factor


def test_keyword_arguments(prefer: Prefer) -> None:
    model = ByName().eval()
    prune_(model, "random", 0.8)
    dense, x = copy.deepcopy(model), torch.randn(2, 8, 9, 9)
    prefer(FINE, LAYERS)
    report = sk.convert(model, example_kwargs={"images": x, "factor": 2.0})
    assert [row.decision for row in report.layers] == [FINE]
    assert report.layers[0].input_shape == (2, 8, 9, 9)
    with torch.inference_mode():
        torch.testing.assert_close(model(images=x), dense(images=x), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"got \(images=a tensor of shape \[3\], torch.float32 on cpu\): "):
        sk.convert(model, example_kwargs={"images": torch.ones(3)})


def test_a_list_is_one_argument() -> None:
    model, x = make("sequential")
    with pytest.raises(ValueError, match="a list is one argument, a tuple is several"):
        sk.convert(model, [x, x])


def test_notes(clock: Prefer, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 8, 3), nn.Conv3d(9, 9, 1)).eval()
    model[3].forward = lambda x: x
    prune_(model, "random", 0.8)
    x = torch.randn(2, 8, 9, 9)
    clock(FINE, LAYERS, GRAPH)
    monkeypatch.setattr(usage.Interruptions, "_now", staticmethod(lambda: 0))
    notes = sk.convert(model, x).notes
    assert "Layers of other kinds stay as they are: 1 ConvTranspose2d, 1 Conv3d." in notes
    assert "As a graph, the model was no faster: its layers run one by one." in notes
    assert not any("training" in note or "noisy" in note for note in notes)
    counts = itertools.count(step=10**6)
    monkeypatch.setattr(usage.Interruptions, "_now", staticmethod(lambda: next(counts)))
    notes = sk.convert(model.train(), x).notes
    assert "Converted in training mode: for inference, call model.eval() and convert again." in notes
    assert any("other programs preempted the process" in note for note in notes)


def test_arguments_of_other_types_are_refused() -> None:
    model, x = nn.Linear(4, 4), torch.ones(1, 4)
    bad: Any = 3
    with pytest.raises(TypeError, match="convert: expected decisions to be a collection of names, got int"):
        sk.convert(model, x, decisions=bad)
    bad = [x]
    with pytest.raises(TypeError, match="convert: expected example_kwargs to be a mapping, got list"):
        sk.convert(model, example_kwargs=bad)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_inputs_are_refused(layout: torch.layout) -> None:
    nested = torch.nested.nested_tensor([torch.randn(3, 8), torch.randn(5, 8)], layout=layout)
    net = nn.Sequential(nn.Linear(8, 4)).eval()
    with pytest.raises(TypeError, match="convert: expected example_input of tensors of one shape, got a nested tensor"):
        sk.convert(net, nested)
    with pytest.raises(TypeError, match="got a nested tensor"):
        sk.convert(net, (torch.randn(2, 8), [nested]))
