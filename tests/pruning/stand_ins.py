# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What pruning tools leave in a model, made by hand as they make it: names, buffers, hooks and classes.

tests/pruning/tools runs the tools themselves. Each function here prunes a `Net` and gives its masks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from mask_checks import WEIGHTS, Net, images
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrize, prune

Masks = dict[str, Tensor]


def layer_of(model: nn.Module, name: str) -> Any:
    return model.get_submodule(name.rpartition(".")[0])


def magnitude_masks(model: nn.Module, density: float = 0.3, grown: bool = True) -> Masks:
    """By magnitude; grown: one weight of each that is kept is zero, as one that has just grown."""
    masks = {}
    for name in WEIGHTS:
        weight = model.get_parameter(name).detach()
        masks[name] = weight.abs() >= weight.abs().flatten().quantile(1 - density)
        if grown:
            place = (~masks[name]).flatten().nonzero()[0]
            masks[name].view(-1)[place] = True
            weight.view(-1)[place] = 0
    return masks


def by_prune(model: Net) -> Masks:
    masks = magnitude_masks(model)
    for name, mask in masks.items():
        prune.custom_from_mask(layer_of(model, name), "weight", mask)
    return without_history(model, masks)


def without_history(model: Net, masks: Masks) -> Masks:
    """Products with masks that have autograd's history cannot be copied."""
    with torch.no_grad():
        model(images())
    return masks


def by_prune_twice(model: Net) -> Masks:
    """A PruningContainer, whose buffer has what both keep."""
    masks = magnitude_masks(model, density=0.5)
    for name, mask in masks.items():
        prune.custom_from_mask(layer_of(model, name), "weight", mask)
        prune.random_unstructured(layer_of(model, name), "weight", amount=0.4)
    masks = {name: layer_of(model, name).weight_mask.bool().clone() for name in masks}
    return without_history(model, masks)


def by_torch_ao(model: Net) -> Masks:
    """Linear layers: it takes no weights of convolutions; these have plain zeros."""
    masks = {name: mask & model.get_parameter(name).bool() for name, mask in magnitude_masks(model).items()}
    for name in WEIGHTS[:2]:
        model.get_parameter(name).data.masked_fill_(~masks[name], 0)
    sparsifier = torch.ao.pruning.WeightNormSparsifier(sparsity_level=0.8, sparse_block_shape=(1, 1), zeros_per_block=1)
    sparsifier.prepare(model, [{"tensor_fqn": name} for name in WEIGHTS[2:]])
    sparsifier.step()
    found = {name: layer_of(model, name).parametrizations.weight[0].mask.bool().clone() for name in WEIGHTS[2:]}
    assert all(0 < mask.float().mean() < 0.5 for mask in found.values())
    return {**masks, **found}


class FakeSparsityDenseGradBuffer(nn.Module):
    """As sparsimony's."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)
        self.register_buffer("dense_grad", torch.zeros_like(mask))

    def forward(self, x: Tensor) -> Tensor:
        return self.mask * x


def by_sparsimony(model: Net) -> Masks:
    masks = magnitude_masks(model)
    for name, mask in masks.items():
        parametrize.register_parametrization(layer_of(model, name), "weight", FakeSparsityDenseGradBuffer(mask.float()))
    return masks


class PerChannelNormObserver(nn.Module):
    """As torchao's."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("norm", torch.zeros(0))

    def forward(self, x: Tensor) -> Tensor:
        self.norm = x.detach().norm(dim=0)
        return x


def _observer_forward_pre_hook(module: Any, args: Any) -> Any:
    return module.activation_post_process(*args)


def by_wanda(model: Net) -> Masks:
    masks = by_sparsimony(model)
    for name in WEIGHTS[2:]:
        layer = layer_of(model, name)
        layer.qconfig = object()
        layer.add_module("activation_post_process", PerChannelNormObserver())
        layer.register_forward_pre_hook(_observer_forward_pre_hook)
    return masks


class UnstructuredPruningMask(nn.Module):
    """As NNCF's."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("binary_mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.binary_mask


class RBPruningMask(nn.Module):
    """As NNCF's, whose masks are learned, and drawn in training mode."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.mask = nn.Parameter(torch.where(mask, 2.0, -1.0))

    def forward(self, x: Tensor) -> Tensor:
        noise = torch.randn_like(self.mask) * 9 if self.training else 0
        return x * (torch.sigmoid(self.mask + noise) > 0.5)


class ForwardWithHooks:
    """As NNCF's: what it gives the model as its forward. It masks parameters as they are used."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.orig_forward = model, model.forward

    def __call__(self, *args: Any) -> Any:
        hooks = getattr(self.model, "__nncf_hooks").post_hooks
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        for key, places in hooks.items():
            name = key.rpartition("__")[0].replace(":", ".")
            for hook in places.values():
                parameters[name] = hook(parameters[name])
        model = self.model
        replaced = vars(model).pop("forward")
        try:
            return functional_call(model, parameters, args)
        finally:
            model.forward = replaced

    def __deepcopy__(self, memo: Any) -> ForwardWithHooks:
        result = object.__new__(ForwardWithHooks)
        memo[id(self)] = result
        model = memo[id(self.model)]
        result.model, result.orig_forward = model, type(model).forward.__get__(model)
        return result


class ReplicateForDataParallel(ForwardWithHooks):
    def __init__(self, model: nn.Module) -> None:
        self.model, self.func = model, model._replicate_for_data_parallel

    def __deepcopy__(self, memo: Any) -> ReplicateForDataParallel:
        result = object.__new__(ReplicateForDataParallel)
        result.model = memo[id(self.model)]
        result.func = nn.Module._replicate_for_data_parallel.__get__(result.model)
        return result


for one in (ForwardWithHooks, ReplicateForDataParallel):
    one.__module__ = "nncf.torch.function_hook.wrapper"


def wrap_as_nncf(model: nn.Module, masks: dict[str, nn.Module]) -> None:
    """masks: by the names of parameters."""
    hooks = nn.Module()
    hooks.pre_hooks, hooks.post_hooks = nn.ModuleDict(), nn.ModuleDict()
    for name, mask in masks.items():
        hooks.post_hooks[f"{name.replace('.', ':')}__0"] = nn.ModuleDict({"0": mask})
    forward, replicate = ForwardWithHooks(model), ReplicateForDataParallel(model)
    model.forward, model._replicate_for_data_parallel = forward, replicate
    model.add_module("__nncf_hooks", hooks)


def by_nncf(model: Net) -> Masks:
    masks = magnitude_masks(model)
    wrap_as_nncf(model, {name: UnstructuredPruningMask(mask.clone()) for name, mask in masks.items()})
    return masks


def by_nncf_regularization(model: Net) -> Masks:
    masks = magnitude_masks(model)
    wrap_as_nncf(model, {name: RBPruningMask(mask) for name, mask in masks.items()})
    return masks


class DynamicModule(nn.Module):
    """As ModelOpt's: `weight` is the product with the mask, while `_parameters` and state_dict have it without."""

    def __getattr__(self, name: str) -> Any:
        value = super().__getattr__(name)
        mask = self._buffers["_weight_mask"]
        return value * mask if name == "weight" and self.is_sparse and mask is not None else value

    def export(self) -> nn.Module:
        masked = self.weight.detach().clone()
        delattr(self, "_weight_mask")
        self.__class__ = type(self).__bases__[1]
        self.weight = nn.Parameter(masked)  # a new one, as there
        return self


class SparseLinear(DynamicModule, nn.Linear):
    pass


class SparseConv2d(DynamicModule, nn.Conv2d):
    pass


def by_modelopt(model: Net) -> Masks:
    masks = magnitude_masks(model)
    for name, mask in masks.items():
        layer = layer_of(model, name)
        layer.register_buffer("_weight_mask", mask.clone())
        layer.is_sparse = -1
        layer.__class__ = SparseLinear if isinstance(layer, nn.Linear) else SparseConv2d
    return masks


class Cerebras:
    """As cerebras-pytorch's: a hook of the model zeroes weights before each call, others their gradients."""

    def __init__(self, layers: list[nn.Linear | nn.Conv2d]) -> None:
        self.layers = layers

    def before(self, module: nn.Module, args: Any) -> None:
        with torch.no_grad():
            for layer in self.layers:
                layer.weight.mul_(layer.weight_mask)

    def gradient_of(self, layer: Any) -> Callable[[Tensor], Tensor]:
        def masked(gradient: Tensor) -> Tensor:
            return torch.where(layer.weight_mask, gradient, 0)

        masked.__module__ = Cerebras.__module__
        return masked

    def before_loading(self, *args: Any) -> None:
        assert all(hasattr(layer, "weight_mask") for layer in self.layers)


Cerebras.__module__ = Cerebras.before.__module__ = Cerebras.before_loading.__module__ = "cerebras.pytorch.sparse.base"


def by_cerebras(model: Net) -> Masks:
    """Before the first call: the weights are dense."""
    masks = magnitude_masks(model)
    tool = Cerebras([layer_of(model, name) for name in masks])
    for name, mask in masks.items():
        layer = layer_of(model, name)
        layer.register_buffer("weight_mask", mask.clone())
        layer.is_sparse = True
        layer.register_load_state_dict_pre_hook(tool.before_loading)
        layer.weight.register_hook(tool.gradient_of(layer))
    model.register_forward_pre_hook(tool.before)
    return masks
