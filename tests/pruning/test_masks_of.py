# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""masks_of reads the masks of any tool, whether they are applied still or were made permanent, and changes nothing."""

from __future__ import annotations

import pytest
import torch
from conv1d_of_transformers import Conv1D
from mask_checks import WEIGHTS, assert_only_read, assert_same_masks, images, net
from stand_ins import (
    FakeSparsityDenseGradBuffer,
    UnstructuredPruningMask,
    by_nncf_regularization,
    by_prune,
    by_sparsimony,
    layer_of,
    magnitude_masks,
    wrap_as_nncf,
)
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm

import sparsekernels as sk
from sparsekernels.pruning import finalize, masks_of, prune_
from sparsekernels.training import Sparsifier


def test_zeros_that_nothing_masks() -> None:
    """Whichever tool made them. A weight that is all zero is not trained yet, and what is dense has no mask."""
    model = net()
    wanted = prune_(model, "random", 0.9, ignore=["fc2", "fc1"])
    nn.init.zeros_(model.fc2.weight)
    masks = {f"{name}.weight": mask for name, mask in wanted.items()}
    assert sorted(masks) == WEIGHTS[:2]
    assert_only_read(model, masks)


def test_which_layers_have_zeros_of_pruning() -> None:
    """Not embeddings, whose padding is a row of zeros, nor norms and biases."""
    model = nn.ModuleDict(
        {
            "embedding": nn.Embedding(8, 8, padding_idx=0),
            "norm": nn.LayerNorm((4, 4)),
            "attention": nn.MultiheadAttention(8, 2),
            "lstm": nn.LSTM(8, 8),
            "depthwise": nn.Conv2d(8, 8, 3, groups=8),
            "transposed": nn.ConvTranspose1d(8, 4, 3),
            "conv1d": Conv1D(8, 4),
        }
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter[0] = 0
    names = {"attention": ["in_proj_weight", "out_proj.weight"], "lstm": ["weight_ih_l0", "weight_hh_l0"]}
    wanted = [f"{key}.{name}" for key, several in names.items() for name in several]
    found = masks_of(model)
    assert sorted(found) == sorted([*wanted, "depthwise.weight", "transposed.weight", "conv1d.weight"])
    assert all(not mask[0].any() and mask[1:].any() for mask in found.values())


def test_a_layer_alone_and_its_bias() -> None:
    layer = nn.Linear(6, 4)
    prune.custom_from_mask(layer, "bias", torch.tensor([1, 0, 1, 1]))
    prune.custom_from_mask(layer, "weight", torch.ones(4, 6))
    assert_only_read(layer, {"weight": torch.ones(4, 6), "bias": torch.tensor([1, 0, 1, 1])})


def test_masks_fit_where_masks_are_taken() -> None:
    model = net()
    masks = by_prune(model)
    again = net()
    found = masks_of(model)
    layer = sk.nn.SparseLinear.from_dense(again.fc1, found["fc1.weight"])
    assert torch.equal(layer.mask, masks["fc1.weight"])
    conv = sk.nn.SparseConv2d.from_dense(again.body[3], found["body.3.weight"])
    conv.set_pattern(found["body.3.weight"])
    assert torch.equal(conv.mask, masks["body.3.weight"])


def test_training_goes_on_with_the_masks() -> None:
    model = net()
    masks = by_sparsimony(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    found = finalize(model)
    sparsifier = Sparsifier(model, optimizer, masks=found, algorithm="static", kernels=False)
    for _ in range(3):
        optimizer.zero_grad()
        model(images()).square().mean().backward()
        optimizer.step()
    assert sparsifier.nonzeros == {name: int(mask.sum()) for name, mask in masks.items()}
    weights = dict(model.named_parameters())
    assert all(torch.equal(weights[name].detach().bool(), mask) for name, mask in masks.items())  # the grown one, too


def test_layers_of_this_package() -> None:
    """By their patterns; what is outside of these and not zero is computed with."""
    model = net()
    masks = magnitude_masks(model, grown=False)
    model.fc1 = sk.nn.SparseLinear.from_dense(model.fc1, masks["fc1.weight"])
    model.body[3] = sk.nn.SparseConv2d.from_dense(model.body[3], masks["body.3.weight"], dense_grad=True)
    model.fc2 = sk.nn.SparseLinear(64, 16)  # which uses every weight
    wanted = {name: masks[name] for name in ("fc1.weight", "body.3.weight")}
    assert_only_read(model, wanted)
    with torch.no_grad():
        for layer in (model.fc1, model.body[3]):
            layer.weight[0] = 1
    wanted["fc1.weight"][0] = True  # with dense_grad nothing reads them
    assert_only_read(model, wanted)


class Learned(nn.Module):
    """A supermask: drawn in each call, also in evaluation mode where it is told to."""

    def __init__(self, scores: Tensor, draws: bool = False) -> None:
        super().__init__()
        self.mask = nn.Parameter(scores)
        self.draws = draws
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, weight: Tensor) -> Tensor:
        self.calls += 1
        noise = torch.randn_like(self.mask) * 0.01 if self.draws or self.training else 0
        return weight * (self.mask + noise > 0)


@pytest.mark.parametrize("draws", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_masks_that_are_computed(draws: bool, training: bool) -> None:
    """A parameter of that name that is no mask is none."""
    model = net().train(training)
    scores = torch.where(torch.rand(64, 128) < 0.2, 1.0, -1.0)
    parametrize.register_parametrization(model.fc1, "weight", Learned(scores, draws))
    assert_only_read(model, {"fc1.weight": scores > 0})


class Drops(nn.Module):
    """A mask of what is left out."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        return weight.masked_fill(self.mask, 0)


def test_a_mask_of_what_is_left_out() -> None:
    model = net()
    dropped = torch.rand(64, 128) < 0.8
    parametrize.register_parametrization(model.fc1, "weight", Drops(dropped))
    assert_only_read(model, {"fc1.weight": ~dropped})


@pytest.mark.parametrize("norm", [parametrizations.spectral_norm, parametrizations.weight_norm, spectral_norm])
def test_norms_of_pruned_weights(norm: object) -> None:
    """In training mode a spectral norm would take a step of its power iteration."""
    model = net().train()
    (mask,) = prune_(model.fc1, "random", 0.9).values()
    norm(model.fc1)  # type: ignore[operator]
    norm(model.fc2)  # type: ignore[operator]
    assert_only_read(model, {"fc1.weight": mask})


def test_several_masks_of_a_weight_keep_what_all_keep() -> None:
    model = net()
    masks = magnitude_masks(model, grown=False)
    first = torch.rand(64, 128) < 0.5
    parametrize.register_parametrization(model.fc1, "weight", FakeSparsityDenseGradBuffer(first.float()))
    parametrize.register_parametrization(model.fc1, "weight", FakeSparsityDenseGradBuffer(masks["fc1.weight"].float()))
    prune.custom_from_mask(model.fc2, "weight", masks["fc2.weight"])
    second = torch.rand(16, 64) < 0.5
    wrap_as_nncf(model, {"fc2.weight_orig": UnstructuredPruningMask(second)})
    wanted = {"fc1.weight": first & masks["fc1.weight"], "fc2.weight": second & masks["fc2.weight"]}
    assert_only_read(model, wanted)


def test_learned_masks_of_nncf_in_training_mode() -> None:
    model = net()
    masks = by_nncf_regularization(model)
    assert_only_read(model.train(), masks)


def test_shared_weights_have_their_first_name() -> None:
    """As in named_parameters, but where not all mask them alike."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    mask = torch.rand(8, 8) < 0.4
    wrap_as_nncf(outer := nn.ModuleList([model]), {"0.0.weight": UnstructuredPruningMask(mask)})
    assert_only_read(outer, {"0.0.weight": mask})
    layers = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    for layer in layers:
        layer.weight = layers[0].weight
    wanted = {}
    for index, one in ((1, mask), (2, ~mask)):
        parametrize.register_parametrization(layers[index], "weight", FakeSparsityDenseGradBuffer(one.float()))
        wanted[f"{index}.weight"] = one
    assert_only_read(layers, wanted)
    zeros = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    zeros[1].weight = zeros[0].weight
    assert_only_read(zeros, {})
    (found,) = {id(one): one for one in prune_(zeros, "random", 0.5).values()}.values()
    assert_only_read(zeros, {"0.weight": found})


@pytest.mark.filterwarnings("ignore:Sparse CSR:UserWarning")
def test_weights_in_a_sparse_layout() -> None:
    layer = nn.Linear(8, 8)
    (mask,) = prune_(layer, "random", 0.9).values()
    layer.weight = nn.Parameter(layer.weight.detach().to_sparse_csr())
    (found,) = masks_of(layer).values()
    assert torch.equal(found, mask)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_scripted_models_are_passed_by() -> None:
    model = nn.Sequential(torch.jit.script(net()), nn.Linear(8, 8))
    (mask,) = prune_(model[1], "random", 0.9).values()
    assert list(masks_of(model)) == ["1.weight"]
    assert torch.equal(masks_of(model)["1.weight"], mask)


def test_what_has_no_masks() -> None:
    assert masks_of(net()) == {}
    assert masks_of(nn.Sequential()) == {}


class Sharded(Tensor):
    """As torch.distributed's DTensor."""

    def full_tensor(self) -> Tensor:
        raise AssertionError


def test_invalid_models() -> None:
    with pytest.raises(TypeError, match=r"masks_of: expected model to be a torch.nn.Module, got OrderedDict"):
        masks_of(net().state_dict())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"masks_of: expected weights that have data, got '0.weight' without"):
        masks_of(nn.Sequential(nn.Linear(4, 4, device="meta")))
    with pytest.raises(ValueError, match=r"masks_of: expected weights that have data, got 'weight' without"):
        masks_of(nn.LazyLinear(4))
    sharded = nn.Linear(4, 4)
    sharded.weight = nn.Parameter(torch.randn(4, 4).as_subclass(Sharded))
    with pytest.raises(ValueError, match=r"expected weights that are not sharded yet, got '0.weight', a part of one"):
        masks_of(nn.Sequential(sharded))
    layer = nn.Linear(4, 4)
    parametrize.register_parametrization(layer, "weight", Learned(torch.ones(4, 4)))
    layer.parametrizations.weight[0].lock = (one for one in ())
    with pytest.raises(ValueError, match=r"masks_of: expected .* to be a module that copy.deepcopy takes"):
        masks_of(nn.Sequential(layer))


def test_names_are_those_of_the_plain_model() -> None:
    """In its order."""
    model = net()
    masks = by_prune(model)
    plain = dict(net().named_parameters())
    assert list(masks_of(model)) == WEIGHTS
    assert all(masks_of(model)[name].shape == plain[name].shape for name in WEIGHTS)
    assert all(torch.equal(layer_of(model, name).weight_mask.bool(), mask) for name, mask in masks.items())


def test_a_linear_layer_that_is_tied_to_an_embedding() -> None:
    """The name is the one in named_parameters, though embeddings alone have no masks."""
    model = nn.ModuleDict({"embedding": nn.Embedding(8, 8), "output": nn.Linear(8, 8, bias=False)})
    model["output"].weight = model["embedding"].weight
    prune_mask = torch.eye(8, dtype=torch.bool)
    with torch.no_grad():
        model["output"].weight.mul_(prune_mask)
    assert [name for name, _ in model.named_parameters()] == ["embedding.weight"]
    assert_same_masks(masks_of(model), {"embedding.weight": prune_mask})
