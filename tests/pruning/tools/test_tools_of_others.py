# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Masks of models that other tools pruned, by the tools themselves: a leg of tests/legs.sh for each of them."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import pytest
import torch
from mask_checks import (
    WEIGHTS,
    Net,
    assert_becomes_plain,
    assert_only_read,
    assert_same_masks,
    assert_told,
    check,
    images,
    net,
)
from torch import Tensor, nn

from sparsekernels import _library
from sparsekernels.pruning import finalize, masks_of

TOOL = os.environ.get("PRUNING_TOOL", "")


def of(tool: str) -> Callable[[Any], Any]:
    return pytest.mark.skipif(tool != TOOL, reason=f"tests/legs.sh pruned-by-{tool} sets PRUNING_TOOL")


pytestmark = [
    pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]


def assert_finished(model: nn.Module, x: Tensor, expected: Tensor, masks: dict[str, Tensor]) -> None:
    """After the tool's last step: the nonzeros are the mask, or those of its weights that are not zero."""
    with torch.no_grad():
        assert torch.equal(model(x), expected)
    weights = dict(model.named_parameters())
    assert_only_read(model, {name: mask.bool() & weights[name].detach().bool() for name, mask in masks.items()})


@of("nncf")
@pytest.mark.parametrize("mode", ["UNSTRUCTURED_MAGNITUDE_LOCAL", "UNSTRUCTURED_MAGNITUDE_GLOBAL"])
def test_nncf(mode: str) -> None:
    import nncf

    assert version("nncf") == "3.4.0"
    model, x = net(), images()
    ratio = 0.7 if mode.endswith("GLOBAL") else 0.9
    model = nncf.prune(model, mode=nncf.PruneMode[mode], ratio=ratio, examples_inputs=x)
    hooks = dict(model.named_buffers())
    masks = {
        name: hooks[f"__nncf_hooks.post_hooks.{name.replace('.', ':')}__0.0.binary_mask"].clone() for name in WEIGHTS
    }
    assert all(0 < mask.float().mean() < 1 for mask in masks.values())
    check(model, masks, "nncf.strip(model, ..., strip_format=nncf.StripFormat.IN_PLACE)")
    with torch.no_grad():
        expected = model(x)
    model = nncf.strip(model, do_copy=False, strip_format=nncf.StripFormat.IN_PLACE)
    assert_finished(model, x, expected, masks)
    assert not any(model.get_parameter(name).requires_grad for name in WEIGHTS)  # which finalize leaves as it was
    finalize(model)  # whose forward NNCF still has
    assert "forward" not in vars(model)
    assert [type(one) for one in model.modules()] == [type(one) for one in net().modules()]


@of("nncf")
def test_nncf_regularization_based() -> None:
    """Its masks are learned: those of evaluation mode count, in training mode it draws them."""
    import nncf

    model, x = net(), images()
    mode = nncf.PruneMode.UNSTRUCTURED_REGULARIZATION_BASED
    model = nncf.prune(model, mode=mode, examples_inputs=x)
    masks = {}
    for name in WEIGHTS:
        learned = model.get_parameter(f"__nncf_hooks.post_hooks.{name.replace('.', ':')}__0.0.mask")
        nn.init.normal_(learned, -1)
        masks[name] = learned.detach() > 0
    model.train()
    assert_only_read(model, masks)
    check(model.eval(), masks, "IN_PLACE")


class Outer(nn.Module):
    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x) * 2


@of("nncf")
def test_nncf_on_a_part_of_a_model() -> None:
    import nncf

    x = images()
    part = nncf.prune(net(), mode=nncf.PruneMode.UNSTRUCTURED_MAGNITUDE_LOCAL, ratio=0.9, examples_inputs=x)
    model = Outer(part)
    expected = model(x)
    masks = masks_of(model)
    assert sorted(masks) == [f"part.{name}" for name in WEIGHTS]
    assert_same_masks(finalize(model), masks)
    assert torch.equal(model(x), expected)


@of("nncf")
def test_nncf_that_quantizes_as_well() -> None:
    """The quantizer stays NNCF's: it may not map zero to zero."""
    import nncf
    from nncf.torch.function_hook.wrapper import register_post_function_hook

    x = images()
    model = nncf.prune(net(), mode=nncf.PruneMode.UNSTRUCTURED_MAGNITUDE_LOCAL, ratio=0.9, examples_inputs=x)
    register_post_function_hook(model, "fc1.weight", 0, nn.Identity())
    expected = model(x)
    with pytest.raises(ValueError, match=r"prunes alone, got Identity for 'fc1.weight'"):
        finalize(model)
    assert torch.equal(model(x), expected)


@of("modelopt")
def test_modelopt() -> None:
    import modelopt.torch.opt as mto
    import modelopt.torch.sparsity as mts

    assert version("nvidia-modelopt") == "0.47.0"
    model, x = net(), images()
    model = mts.sparsify(model, mode="sparse_magnitude")
    masks = {name: model.get_submodule(name.rpartition(".")[0])._weight_mask.clone() for name in WEIGHTS}
    assert [round(float(mask.float().mean()), 2) for mask in masks.values()] == [0.5, 0.5, 0.5, 0.5]
    check(copy.deepcopy(model), masks, "modelopt.torch.sparsity.export(model)")
    again = copy.deepcopy(model)
    finalize(again)
    assert mto.modelopt_state(again)["modelopt_state_dict"][-1][0] == "export_sparse"  # as its own last step leaves it
    with torch.no_grad():
        expected = model(x)
    model = mts.export(model)
    assert_finished(model, x, expected, masks)


@of("modelopt")
def test_modelopt_of_sizes_that_do_not_divide() -> None:
    """Such layers get its class and a mask of all weights without a word."""
    import modelopt.torch.sparsity as mts

    model = nn.Sequential(nn.Linear(30, 10), nn.ReLU(), nn.Linear(10, 16))
    mts.sparsify(model, mode="sparse_magnitude")
    assert all(mask.all() for mask in masks_of(model).values())
    kept = list(model.parameters())
    finalize(model)
    assert [type(one) for one in model] == [nn.Linear, nn.ReLU, nn.Linear]
    assert all(one is other for one, other in zip(model.parameters(), kept, strict=True))


def sparsimony(kind: str, sparsity: float, steps: int) -> tuple[Net, Any, torch.optim.Optimizer, dict[str, Tensor]]:
    from sparsimony.distributions.base import UniformDistribution
    from sparsimony.dst.rigl import RigL
    from sparsimony.dst.set import SET
    from sparsimony.schedulers.base import CosineDecayScheduler

    assert version("sparsimony") == "0.1.0"
    model, x = net(), images()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = CosineDecayScheduler(0.3, 100, 2)
    sparsifier = {"RigL": RigL, "SET": SET}[kind](scheduler, UniformDistribution(), optimizer, sparsity=sparsity)
    sparsifier.prepare(model, [{"tensor_fqn": name} for name in WEIGHTS])
    for _ in range(steps):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        sparsifier.step()
    masks = {}
    for name in WEIGHTS:
        layer: Any = model.get_submodule(name.rpartition(".")[0])
        masks[name] = layer.parametrizations.weight[0].mask.clone()
    return model, sparsifier, optimizer, masks


@of("sparsimony")
@pytest.mark.parametrize(("kind", "sparsity"), [("RigL", 0.9), ("SET", 0.5)])
def test_sparsimony(kind: str, sparsity: float) -> None:
    model, sparsifier, _, masks = sparsimony(kind, sparsity, steps=4)
    assert all(0 < mask.mean() < 1 for mask in masks.values())
    check(model, masks, "squash_mask()")
    with torch.no_grad():
        expected = model(images())
    sparsifier.squash_mask()
    assert_finished(model, images(), expected, masks)


@of("sparsimony")
def test_what_sparsimony_grows_is_in_the_mask() -> None:
    """At zero, where its last step loses it: the nonzeros are fewer than the mask."""
    model, sparsifier, _, masks = sparsimony("RigL", 0.9, steps=2)
    assert_only_read(model, masks)
    kept = {name: int(mask.sum()) for name, mask in masks.items()}
    sparsifier.squash_mask()
    left = {name: int(mask.sum()) for name, mask in masks_of(model).items()}
    assert all(left[name] <= kept[name] for name in WEIGHTS)
    assert sum(left.values()) < sum(kept.values())


@of("torchao")
def test_torchao_wanda() -> None:
    from torchao.sparsity import WandaSparsifier

    assert version("torchao").startswith("0.18.0")
    model, x = net(), images()
    # its observers take rows, so that of the layers here it can have the linear ones
    body = {name: model.get_parameter(name) for name in WEIGHTS[:2]}
    with torch.no_grad():
        for weight in body.values():
            weight[weight.abs() < weight.abs().median()] = 0
    sparsifier = WandaSparsifier(sparsity_level=0.9)
    sparsifier.prepare(model, [{"tensor_fqn": name} for name in WEIGHTS[2:]])
    model(x)
    sparsifier.step()
    masks = {name: weight.detach() != 0 for name, weight in body.items()}
    for name in WEIGHTS[2:]:
        layer: Any = model.get_submodule(name.rpartition(".")[0])
        masks[name] = layer.parametrizations.weight[0].mask.clone()
    assert all(0 < mask.float().mean() < 1 for mask in masks.values())
    assert_only_read(model, masks)
    assert_told(copy.deepcopy(model), "squash_mask()", layers=2)
    assert_becomes_plain(copy.deepcopy(model), masks)
    with torch.no_grad():
        expected = model(x)
    sparsifier.squash_mask()
    assert_finished(model, x, expected, masks)
