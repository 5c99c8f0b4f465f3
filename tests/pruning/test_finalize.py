# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""finalize makes the masks of any tool permanent: a plain model that computes, trains, converts as it did."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import stand_ins as tools
import torch
from conversion_checks import FINE, GRAPH, LAYERS, assert_agree
from mask_checks import (
    Net,
    assert_becomes_plain,
    assert_only_read,
    assert_same_masks,
    assert_told,
    check,
    contents,
    images,
    net,
)
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import sparsekernels as sk
from sparsekernels import _library
from sparsekernels.conversion.facts import Way
from sparsekernels.pruning import finalize, masks_of, prune_
from sparsekernels.testing import prefer

NEEDS_KERNELS = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")


@NEEDS_KERNELS
@pytest.mark.parametrize(
    ("tool", "words"),
    [
        (tools.by_prune, "torch.nn.utils.prune.remove(layer, 'weight')"),
        (tools.by_prune_twice, "torch.nn.utils.prune.remove(layer, 'weight')"),
        (tools.by_sparsimony, "squash_mask()"),
        (tools.by_wanda, "squash_mask()"),
        (tools.by_nncf, "nncf.strip(model, ..., strip_format=nncf.StripFormat.IN_PLACE)"),
        (tools.by_nncf_regularization, "nncf.strip(model, ..., strip_format=nncf.StripFormat.IN_PLACE)"),
        (tools.by_modelopt, "modelopt.torch.sparsity.export(model)"),
        (tools.by_cerebras, "a buffer weight_mask that something else applies, as cerebras-pytorch does"),
    ],
)
def test_a_model_that_a_tool_pruned(tool: Callable[[Net], dict[str, Tensor]], words: str) -> None:
    model = net()
    check(model, tool(model), words)


@NEEDS_KERNELS
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_torch_ao_pruning() -> None:
    model = net()
    masks = tools.by_torch_ao(model)
    assert_only_read(model, masks)
    assert_told(copy.deepcopy(model), "squash_mask()", layers=2)
    assert_becomes_plain(copy.deepcopy(model), masks)
    finalize(model)
    assert_same_masks(masks_of(model), masks)


@NEEDS_KERNELS
def test_a_tool_for_each_layer() -> None:
    model, masks = net(), {}
    for index, tool in enumerate((tools.by_prune, tools.by_modelopt, tools.by_sparsimony, tools.by_nncf)):
        part = net()
        name, mask = list(tool(part).items())[index]
        masks[name] = mask
        *path, key, _ = name.split(".")
        setattr(model.get_submodule(".".join(path)), key, tools.layer_of(part, name))
    tools.wrap_as_nncf(model, {name: tools.UnstructuredPruningMask(mask)})
    check(model, masks, "sparsekernels.pruning.finalize")


@NEEDS_KERNELS
def test_after_nncf_a_model_is_a_graph_again() -> None:
    """Its own forward is back, also where nncf.strip has taken the masks away before."""
    model, x = net(), images()
    tools.by_nncf(model)
    finalize(model)
    for key in ("forward", "_replicate_for_data_parallel"):
        assert key not in vars(model)
    stripped = net()
    prune_(stripped, "random", 0.9)
    tools.wrap_as_nncf(stripped, {})
    with prefer(FINE, GRAPH):
        assert "NNCF replaced its forward; sparsekernels.pruning.finalize(model)" in " ".join(
            str(sk.convert(stripped, x)).split()
        )
        assert "forward" in vars(sk.revert(stripped))
        finalize(stripped)
        assert sk.convert(stripped, x).way is Way.GRAPH
        assert sk.convert(model, x).way is Way.GRAPH


def test_a_forward_that_an_instance_had_before_nncf() -> None:
    model = net()
    forward = model.forward
    model.forward = lambda x: forward(x) * 2  # type: ignore[method-assign]
    expected = model(images())
    tools.wrap_as_nncf(model, {})
    finalize(model)
    assert torch.equal(model(images()), expected)


def test_masks_are_given_as_they_were() -> None:
    """Afterwards a weight that had just grown is a zero like any other."""
    model = net()
    masks = tools.by_sparsimony(model)
    assert_same_masks(finalize(model), masks)
    left = masks_of(model)
    assert all(int(masks[name].sum()) - int(left[name].sum()) == 1 for name in masks)


def test_a_model_without_masks_stays_as_it_is() -> None:
    model = net()
    before = contents(model)
    assert finalize(model) == {}
    wanted = prune_(model, "random", 0.9)
    state = contents(model)
    assert_same_masks(finalize(model), {f"{name}.weight": mask for name, mask in wanted.items()})
    assert all(torch.equal(tensor, state[name]) for name, tensor in contents(model).items())
    assert before.keys() == state.keys()


@pytest.mark.parametrize("tool", [tools.by_prune, tools.by_sparsimony, tools.by_nncf, tools.by_modelopt])
def test_the_optimizer_goes_on(tool: Callable[[Net], dict[str, Tensor]]) -> None:
    """With the parameters that it holds, and their momentum."""
    model, x = net(), images()
    tool(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(x).square().mean().backward()
    optimizer.step()
    known = set(optimizer.state)
    finalize(model)
    assert set(model.parameters()) == known
    before = contents(model)
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()
    assert not any(torch.equal(before[name], one) for name, one in model.named_parameters())


def test_hooks_of_cerebras_are_gone() -> None:
    """They ask for the mask, when the model is called or loaded and in each backward pass."""
    model, x = net(), images()
    tools.by_cerebras(model)
    model(x).sum().backward()
    finalize(model)
    model.load_state_dict(model.state_dict())
    model.zero_grad()
    model(x).sum().backward()
    layers = [model.fc1, model.body[0]]
    assert not any(one._load_state_dict_pre_hooks or one.weight._backward_hooks for one in layers)
    assert not model._forward_pre_hooks
    assert all(one.weight.grad.bool().float().mean() > 0.5 for one in layers)


def test_other_hooks_stay() -> None:
    model, called = net(), []
    tools.by_prune(model)
    tools.by_wanda(other := net())
    for one in (model, other):
        one.fc1.register_forward_pre_hook(lambda *args: called.append("before"))
        one.fc1.register_forward_hook(lambda *args: called.append("after"))
        one.fc2.bias.register_hook(lambda gradient: called.append("gradient"))
        finalize(one)
        one(images()).sum().backward()
        assert called == ["before", "after", "gradient"]
        called.clear()


def test_copies_of_a_model_keep_their_masks() -> None:
    """A copy has the same class, which torch's remove_parametrizations takes the weight away from."""
    model, x = net(), images()
    tools.by_sparsimony(model)
    expected = model(x)
    twin = copy.deepcopy(model)
    finalize(twin)
    assert torch.equal(twin(x), expected)
    assert torch.equal(model(x), expected)
    finalize(model)
    assert torch.equal(model(x), expected)


class Doubles(nn.Module):
    def forward(self, tensor: Tensor) -> Tensor:
        return tensor * 2


def test_parametrizations_that_are_no_masks_stay() -> None:
    model, x = net(), images()
    masks = tools.by_sparsimony(model)
    parametrize.register_parametrization(model.fc1, "bias", Doubles())
    parametrizations.spectral_norm(model.fc2)
    expected = model(x)
    twin = copy.deepcopy(model)
    finalize(model)
    assert torch.equal(model(x), expected)
    assert list(model.fc1.parametrizations) == ["bias"]
    assert type(model.fc1).__name__ == "ParametrizedLinear"
    assert type(model.fc2) is nn.Linear  # of what the mask is part of, all is made permanent
    assert not model.fc1.weight[~masks["fc1.weight"]].any()
    assert torch.equal(twin(x), expected)
    norms = net()
    prune_(norms.fc1, "random", 0.9)
    parametrizations.weight_norm(norms.fc1)
    assert sorted(finalize(norms)) == ["fc1.weight"]
    assert parametrize.is_parametrized(norms.fc1)


def test_a_weight_that_is_computed_of_several_parameters_becomes_another() -> None:
    model, x = net(), images()
    parametrizations.weight_norm(model.fc1)
    mask = torch.rand(64, 128) < 0.3
    parametrize.register_parametrization(model.fc1, "weight", tools.FakeSparsityDenseGradBuffer(mask.float()))
    expected = model(x)
    assert_same_masks(finalize(model), {"fc1.weight": mask})
    assert torch.allclose(model(x), expected)
    assert model.fc1.weight.requires_grad
    assert type(model.fc1) is nn.Linear


def test_what_is_masked_is_zero_whatever_it_was() -> None:
    """A product with zero would be NaN."""
    layer = nn.Linear(4, 4)
    mask = torch.eye(4)
    with torch.no_grad():
        layer.weight[0, 1:] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    twin = copy.deepcopy(layer)
    prune.custom_from_mask(layer, "weight", mask)
    parametrize.register_parametrization(twin, "weight", tools.FakeSparsityDenseGradBuffer(mask))
    for one in (layer, twin):
        finalize(one)
        assert torch.equal(one.weight.detach().bool(), mask.bool())


def test_recurrent_layers_and_attention() -> None:
    """Recurrent layers keep a list of their weights, which they multiply by."""
    lstm, attention = nn.LSTM(8, 8), nn.MultiheadAttention(8, 2)
    prune.l1_unstructured(lstm, "weight_hh_l0", 0.5)
    prune.l1_unstructured(attention, "in_proj_weight", 0.5)
    x = torch.randn(3, 2, 8)
    expected = lstm(x)[0], attention(x, x, x)[0]
    kept = lstm.weight_hh_l0_orig
    assert list(finalize(lstm)) == ["weight_hh_l0"]
    assert list(finalize(attention)) == ["in_proj_weight"]
    assert torch.equal(lstm(x)[0], expected[0])
    assert torch.equal(attention(x, x, x)[0], expected[1])
    assert lstm.weight_hh_l0 is kept
    with torch.no_grad():
        kept.zero_()
    assert not torch.equal(lstm(x)[0], expected[0])


def test_a_mask_that_scales() -> None:
    layer, x = nn.Linear(4, 4), torch.randn(3, 4)
    prune.custom_from_mask(layer, "weight", torch.eye(4) * 0.5)
    expected = layer(x)
    assert_same_masks(finalize(layer), {"weight": torch.eye(4)})
    assert torch.equal(layer(x), expected)


def test_a_pruning_call_that_failed() -> None:
    """It has taken the hook away, so that prune.remove raises; the mask is there."""
    layer = nn.Linear(8, 8)
    prune.l1_unstructured(layer, "weight", amount=60)
    mask = layer.weight_mask.clone()
    with pytest.raises(ValueError, match="amount"):
        prune.l1_unstructured(layer, "weight", amount=65)
    with pytest.raises(ValueError, match="has to be pruned"):
        prune.remove(layer, "weight")
    kept = layer.weight_orig
    assert_same_masks(finalize(layer), {"weight": mask})
    assert layer.weight is kept
    assert torch.equal(kept.detach().bool(), mask.bool())
    assert sorted(layer.state_dict()) == ["bias", "weight"]


@pytest.mark.parametrize("inference", [False, True])
def test_frozen_weights_stay_frozen(inference: bool) -> None:
    with torch.inference_mode(inference):
        layer = nn.Linear(8, 8).requires_grad_(False)
        prune.l1_unstructured(layer, "weight", amount=0.5)
    mask = layer.weight_mask.bool()
    assert_same_masks(finalize(layer), {"weight": mask})
    assert not layer.weight.requires_grad
    assert torch.equal(layer.weight.bool(), mask)
    assert torch.is_grad_enabled()


def test_layers_of_this_package_stay() -> None:
    model = net()
    masks = tools.magnitude_masks(model, grown=False)
    model.fc1 = layer = sk.nn.SparseLinear.from_dense(model.fc1, masks["fc1.weight"])
    assert_same_masks(finalize(model), {"fc1.weight": masks["fc1.weight"]})
    assert model.fc1 is layer


@NEEDS_KERNELS
@pytest.mark.parametrize("tool", [tools.by_prune, tools.by_sparsimony])
def test_converted_layers_that_a_tool_pruned_further(tool: Callable[[Net], dict[str, Tensor]]) -> None:
    """Which convert and revert refuse before."""
    model, x = net(), images()
    first = prune_(model, "random", 0.5)
    with prefer(FINE, LAYERS):
        assert len(sk.convert(model, x).converted) == 4
    masks = {name: mask & first[name.removesuffix(".weight")] for name, mask in tool(model).items()}
    with torch.no_grad():
        expected = model(x)
    with pytest.raises(RuntimeError, match="was given"):
        sk.revert(model)
    found = finalize(model)
    assert_same_masks(found, masks)
    with torch.no_grad():
        assert torch.equal(model(x), expected)
    dense = copy.deepcopy(sk.revert(model))
    assert [type(one) for one in dense.modules()] == [type(one) for one in net().modules()]
    assert_agree(model, dense, x)
