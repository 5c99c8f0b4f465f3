# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The way back: revert."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from conversion_checks import DENSE, FINE, GRAPH, LAYERS, Prefer, assert_agree, graphs_of, run
from conversion_nets import NETS, Doubled, make
from torch import nn
from torch.nn.utils import parametrize, prune

import sparsekernels as sk
from sparsekernels import _library
from sparsekernels.pruning import prune_

pytestmark = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")


@pytest.mark.parametrize("how", [GRAPH, LAYERS])
@pytest.mark.parametrize("name", NETS)
def test_revert(prefer: Prefer, name: str, how: str) -> None:
    model, x = make(name)
    modules, state = dict(model.named_modules()), copy.deepcopy(model.state_dict())
    attributes = {key: set(vars(module)) for key, module in modules.items()}
    before = run(model, x)
    prefer(FINE, how)
    for _ in range(2):
        assert sk.convert(model, x).converted
        assert list(model.state_dict()) == list(state)
        assert all(torch.equal(model.state_dict()[key], state[key]) for key in state)
        assert sk.revert(model) is model
        assert sk.revert(model) is model
        assert dict(model.named_modules()) == modules
        assert {key: set(vars(module)) for key, module in modules.items()} == attributes
        assert all(torch.equal(one, other) for one, other in zip(run(model, x), before, strict=True))


def test_converting_twice(prefer: Prefer) -> None:
    model, x = make("residual")
    dense = copy.deepcopy(model)
    prefer(FINE, GRAPH)
    assert sk.convert(model, x).converted == sk.convert(model, x).converted
    assert_agree(model, dense, x)
    prefer(DENSE)
    assert not sk.convert(model, x).converted
    assert not list(graphs_of(model))
    assert type(model[0].conv1) is nn.Conv2d


def test_revert_of_what_was_never_converted() -> None:
    layer = nn.Linear(2, 2)
    assert sk.revert(layer) is layer
    with pytest.raises(TypeError, match=r"expected model to be a torch\.nn\.Module, got int"):
        sk.revert(3)  # type: ignore[arg-type]


def test_revert_hands_back_what_was_trained(prefer: Prefer) -> None:
    model, x = make("sequential")
    prefer(FINE, LAYERS)
    sk.convert(model.train(), x)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(x).square().mean().backward()
    optimizer.step()
    model.load_state_dict({key: value * 1.5 for key, value in model.state_dict().items()}, assign=True)
    expected = copy.deepcopy(model.state_dict())
    y = run(model.eval(), x)
    sk.revert(model)
    assert type(model[0]) is nn.Conv2d
    assert not model[0].training
    assert all(torch.equal(model.state_dict()[key], value) for key, value in expected.items())
    torch.testing.assert_close(run(model, x), y)


def test_what_was_done_to_a_converted_layer_is_not_lost(prefer: Prefer) -> None:
    model, x = make("sequential")
    prefer(FINE, GRAPH)
    sk.convert(model, x)
    modules = dict(model.named_modules())
    handle = model[0].register_forward_hook(lambda *_: None)
    for undo in (sk.revert, lambda one: sk.convert(one, x)):
        with pytest.raises(RuntimeError, match="'0' was given hooks"):
            undo(model)
        assert dict(model.named_modules()) == modules
    handle.remove()
    sk.revert(model)
    assert type(model[0]) is nn.Conv2d


@pytest.mark.parametrize("function", ["convert", "revert"])
def test_what_keeps_from_reverting_is_named(prefer: Prefer, function: str) -> None:
    model = nn.Sequential(nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU())).eval()
    prune_(model, "random", 0.8)
    x = torch.randn(2, 8, 9, 9)
    prefer(FINE, LAYERS)
    sk.convert(model, x)
    call = functools.partial(sk.convert, model, x) if function == "convert" else functools.partial(sk.revert, model)
    handle = model[0][0].register_forward_hook(lambda *_: None)
    with pytest.raises(RuntimeError, match=f"{function}: the converted layer '0.0' was given hooks since"):
        call()
    handle.remove()
    prune.l1_unstructured(model[0][0], "weight", 0.5)
    with pytest.raises(RuntimeError, match=f"{function}: the converted layer '0.0' was given a mask since"):
        call()
    prune.remove(model[0][0], "weight")
    parametrize.register_parametrization(model[0][0], "weight", Doubled(model))
    with pytest.raises(RuntimeError, match=f"{function}: the converted layer '0.0' was given a parametrization since"):
        call()


def test_revert_goes_into_parts(prefer: Prefer) -> None:
    inner, x = make("sequential")
    prefer(FINE, GRAPH)
    own = list(inner)
    sk.convert(inner, x)
    outer = nn.Sequential(nn.Identity(), inner)
    report = sk.convert(copy.deepcopy(outer), x)
    assert any("SparseConv2d already" in row.reason for row in report.layers)
    sk.revert(outer)
    assert list(inner) == own
    assert not list(graphs_of(outer))


@pytest.mark.filterwarnings("ignore:.*computes? with the whole weight")
@pytest.mark.parametrize("how", [GRAPH, LAYERS])
def test_a_new_head_stays(prefer: Prefer, how: str) -> None:
    """A weight of another size in a converted layer: what the dense model gives, and revert keeps it."""
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 10)).eval()
    prune_(model, "random", 0.9)
    x = torch.randn(8, 32)
    prefer(FINE, how)
    assert sk.convert(model, x).converted
    run(model, x)
    head = model[2]
    head.weight, head.bias = nn.Parameter(torch.randn(20, 64)), nn.Parameter(torch.zeros(20))
    head.out_features = 20
    dense = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 20)).eval()
    dense.load_state_dict(model.state_dict())
    for _ in range(3):
        assert_agree(model, dense, x)
    sk.revert(model)
    assert type(model[2]) is nn.Linear
    assert repr(model) == repr(dense)
    assert_agree(model, dense, x)


def test_revert_is_all_or_nothing(prefer: Prefer) -> None:
    """What keeps one layer from its place keeps all, and a later revert goes on from there."""
    model, x = make("sequential")
    prefer(FINE, GRAPH)
    sk.convert(model, x)
    modules = dict(model.named_modules())
    layers = [module for module in model.modules() if isinstance(module, sk.nn.SparseConv2d)]
    expected = run(model, x)
    layers[-1].adapter = nn.Linear(2, 2)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="was given parameters, buffers or modules beside its own"):
            sk.revert(model)
        assert {name: module for name, module in model.named_modules() if name in modules} == modules
    del layers[-1].adapter
    sk.revert(model)
    assert not any(isinstance(module, sk.nn.SparseConv2d) for module in model.modules())
    torch.testing.assert_close(run(model, x), expected)


def test_a_layer_that_was_exchanged_since_is_left_alone(prefer: Prefer) -> None:
    model, x = make("sequential")
    prefer(FINE, LAYERS)
    sk.convert(model, x)
    mine = nn.Identity()
    model[0] = mine
    sk.revert(model)
    assert model[0] is mine
    assert not any(isinstance(module, sk.nn.SparseConv2d) for module in model.modules())


@pytest.mark.filterwarnings("ignore:.*computes? with the whole weight")
@pytest.mark.parametrize("how", [GRAPH, LAYERS])
def test_an_adapter_merged_into_a_converted_model(prefer: Prefer, how: str) -> None:
    """Through `data`, as PEFT does: computed with, saved and handed back."""
    model, x = make("sequential")
    dense = copy.deepcopy(model)
    prefer(FINE, how)
    sk.convert(model, x)
    run(model, x)
    for one in (model, dense):
        one[0].weight.data += torch.randn(one[0].weight.shape, generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        assert_agree(model, dense, x)
    with pytest.warns(UserWarning, match="SparseConv2d '0': "):
        copy.deepcopy(model)[0](x)  # the name that it has in the model
    assert all(torch.equal(model.state_dict()[name], value) for name, value in dense.state_dict().items())
    sk.revert(model)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in dense.state_dict().items())
