# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""How the masks of pruning tools hang on a layer, and how they are taken off, each recognized by what is there.

None of these tools is imported: what counts is names of parameters, buffers and hooks. docs/masks_of_others.md has them
tool by tool; NNCF's hang on the model and are in nncf.py.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .._torch import ConvTransposeNd
from .._transformers import is_conv1d


@dataclass(frozen=True)
class Held:
    """A parameter that a tool masks.

    name: of the parameter in the plain layer. tensors: what the layer has instead, which an optimizer holds: one
    parameter, several where parametrizations compute it of several. mask: bool, of the parameter's shape. value:
    what the layer computes with. end: leaves the plain layer, given that value, and whether it is to be written to the
    parameter that the layer has; None where that is not for us to do. obstacle: why it cannot be ended.
    """

    name: str
    tensors: tuple[Tensor, ...]
    mask: Tensor
    value: Callable[[], Tensor] | None = None
    end: Callable[[Tensor, bool], None] | None = None
    obstacle: str | None = None


def held_in(module: nn.Module) -> Iterator[Held]:
    """The parameters of a layer that tools mask, without changing anything."""
    for tool in (_by_prune, _by_parametrizations, _by_modelopt, _by_buffer, _by_sparsekernels):
        yield from tool(module)


def masked(value: Tensor, mask: Tensor) -> Tensor:
    """`value`, and 0 where the mask is False, whatever was there."""
    return torch.where(mask, value.detach(), 0)


def write(parameter: Tensor, value: Tensor) -> None:
    """Puts `value` in a parameter, in place."""
    with torch.inference_mode(parameter.is_inference()), torch.no_grad():  # the first turns gradients on
        parameter.copy_(value)


def evaluated(module: Any, *args: Tensor) -> Tensor:
    """What a copy of a module gives in evaluation mode; neither the module nor random numbers are changed."""
    try:
        twin = copy.deepcopy(module).eval()
    except Exception as error:
        raise ValueError(f"expected {type(module).__name__} to be a module that copy.deepcopy takes: {error}") from None
    gpus = sorted({one.get_device() for one in (*module.parameters(), *module.buffers()) if one.is_cuda})
    with torch.no_grad(), torch.random.fork_rng(gpus):
        result: Tensor = twin(*args)
    return result


def _by_prune(module: nn.Module) -> Iterator[Held]:
    """torch.nn.utils.prune: a parameter `weight_orig`, a buffer `weight_mask`, and a hook that multiplies."""
    for key, original in module._parameters.items():
        name = key.removesuffix("_orig")
        mask = module._buffers.get(f"{name}_mask")
        if name != key and original is not None and mask is not None and mask.shape == original.shape:
            kept = mask.bool().clone()
            value = functools.partial(_value_of_prune, original, mask, kept)
            yield Held(name, (original,), kept, value, functools.partial(_end_prune, module, name, original))


def _value_of_prune(original: nn.Parameter, mask: Tensor, kept: Tensor) -> Tensor:
    return masked(original * mask.to(original.dtype), kept)


def _end_prune(module: nn.Module, name: str, original: nn.Parameter, value: Tensor, is_first: bool) -> None:
    """As torch.nn.utils.prune.remove, which raises where a call of a pruning method that failed took the hook away."""
    if is_first:
        write(original, value)
    for key, hook in list(module._forward_pre_hooks.items()):
        if getattr(hook, "_tensor_name", None) == name:
            del module._forward_pre_hooks[key]
    delattr(module, f"{name}_orig")
    delattr(module, f"{name}_mask")
    vars(module).pop(name, None)
    setattr(module, name, original)  # recurrent layers keep a list of their weights


def _by_parametrizations(module: nn.Module) -> Iterator[Held]:
    """torch.ao.pruning, sparsimony and torchao: a parametrization that has a `mask`; others by what they compute.

    Norms of weights are no pruning tool's, and stay.
    """
    if not parametrize.is_parametrized(module):
        return
    lists: Any = module.parametrizations
    for name, held in lists.items():
        originals = tuple(held._parameters.values())
        if not originals or (mask := _mask_of_parametrizations(held)) is None:
            continue
        are_norms = all(type(one).__module__ == "torch.nn.utils.parametrizations" for one in held)
        end = None if are_norms else functools.partial(_end_parametrizations, module, name)
        yield Held(name, originals, mask, functools.partial(_value_of_parametrizations, held, mask), end)


def _value_of_parametrizations(held: Any, mask: Tensor) -> Tensor:
    return masked(evaluated(held), mask)


def _mask_of_parametrizations(held: Any) -> Tensor | None:
    value = evaluated(held)
    masks = [one.mask for one in held if _is_mask(getattr(one, "mask", None), value)]
    if masks:
        mask: Tensor = functools.reduce(torch.Tensor.logical_and, masks).bool()
        left_out = value[~mask]
        if not (left_out.bool() & ~left_out.isnan()).any():  # else it is no mask of what is kept
            return mask.clone()
    nonzeros = value.bool()
    return nonzeros if _is_pruned(nonzeros) else None


def _is_mask(mask: object, weight: Tensor) -> bool:
    """Whether it is a tensor of zeros and ones, of the shape of `weight`."""
    if not isinstance(mask, Tensor) or mask.shape != weight.shape:
        return False
    return mask.dtype == torch.bool or bool(((mask == 0) | (mask == 1)).all())


def _end_parametrizations(module: Any, name: str, value: Tensor, is_first: bool) -> None:
    """As remove_parametrizations, which takes the attribute off the class, that copies of the module have as well."""
    lists, kind = module.parametrizations, type(module)
    weight, *more = lists[name]._parameters.values()
    if more or weight.shape != value.shape or weight.dtype != value.dtype:
        weight = nn.Parameter(value.clone(), any(one.requires_grad for one in (weight, *more)))
    elif is_first:
        write(weight, value)
    del lists[name]
    if len(lists) > 0:
        rest = {key: one for key, one in vars(kind).items() if key not in (name, "__dict__", "__weakref__")}
        module.__class__ = type(kind.__name__, kind.__bases__, rest)
    else:
        del module.parametrizations
        module.__class__ = kind.__bases__[0]
    setattr(module, name, weight)


def _by_modelopt(module: nn.Module) -> Iterator[Held]:
    """ModelOpt: a buffer `_weight_mask`, None where nothing is masked, of a class that computes `weight` by it."""
    weight = module._parameters.get("weight")
    if "_weight_mask" not in module._buffers or weight is None:
        return
    mask = module._buffers["_weight_mask"]
    is_active = mask is not None and bool(getattr(module, "is_sparse", True))
    mask = mask.bool() if mask is not None and is_active else torch.ones_like(weight, dtype=torch.bool)
    obstacle = None if callable(getattr(module, "export", None)) else "a class that has no export()"
    value, end = functools.partial(masked, weight, mask), functools.partial(_end_modelopt, module, weight)
    yield Held("weight", (weight,), mask.clone(), value, end, obstacle)


def _end_modelopt(module: Any, weight: nn.Parameter, value: Tensor, is_first: bool) -> None:
    """The layer's own last step, which makes a new parameter: the old one stays instead, which an optimizer holds."""
    if "_weight_mask" in module._buffers:
        module.export()
    module._parameters["weight"] = weight
    if is_first:
        write(weight, value)


def states_of_modelopt(model: nn.Module) -> list[nn.Module]:
    """The modules that have ModelOpt's record of what was done to them, which its own last step goes on with."""
    return [one for one in model.modules() if "_modelopt_state" in vars(one)]


def _by_buffer(module: nn.Module) -> Iterator[Held]:
    """A buffer `weight_mask` beside the parameter, as cerebras-pytorch has it: something else applies it."""
    for key, mask in module._buffers.items():
        name = key.removesuffix("_mask")
        weight = module._parameters.get(name)
        if name != key and weight is not None and _is_mask(mask, weight):
            assert mask is not None
            kind = type(module)
            is_known = kind.__module__.startswith(("torch.", "sparsekernels.")) or is_conv1d(module)
            kept = mask.bool().clone()
            obstacle = None if is_known else f"the class {kind.__name__}, which may read its buffer {key}"
            if is_known and not _are_hooked_by_cerebras(module, weight) and bool(weight.detach()[~kept].bool().any()):
                obstacle = f"a buffer {key} that nothing of the layer applies, for what it leaves out is not zero"
            value, end = functools.partial(masked, weight, kept), functools.partial(_end_buffer, module, key, weight)
            yield Held(name, (weight,), kept, value, end, obstacle)


def _are_hooked_by_cerebras(module: nn.Module, weight: Tensor) -> bool:
    return any(_origin_of(hook).startswith("cerebras.") for hooks in _hooks_of(module, weight) for hook in hooks)


def _hooks_of(module: nn.Module, *parameters: Tensor | None) -> Iterator[list[Any]]:
    yield list(module._forward_pre_hooks.values())
    yield list(module._load_state_dict_pre_hooks.values())
    for one in parameters:
        yield list(((one is not None and one._backward_hooks) or {}).values())


def _end_buffer(module: nn.Module, key: str, weight: Tensor, value: Tensor, is_first: bool) -> None:
    if is_first:
        write(weight, value)
    delattr(module, key)
    vars(module).pop("is_sparse", None)


def _by_sparsekernels(module: nn.Module) -> Iterator[Held]:
    """A pattern of sparsekernels.nn's; nonzeros outside of it count where the layer computes with them."""
    layer: Any = module
    if not any(kind.__module__.startswith("sparsekernels.nn.") for kind in type(module).__mro__):
        return
    pattern, weight = getattr(layer, "pattern", None), module._parameters.get("weight")
    if pattern is None or pattern.nnz == layer.mask.numel():
        return
    mask = layer.mask
    if weight is not None and weight.shape == mask.shape and not layer.dense_grad:
        mask = mask | weight.detach().bool()
    yield Held("weight", () if weight is None else (weight,), mask.clone())


_KINDS: tuple[tuple[Any, Callable[[str], bool]], ...] = (
    ((nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, ConvTransposeNd, nn.Bilinear), lambda name: name == "weight"),
    (nn.MultiheadAttention, lambda name: name.endswith("proj_weight")),
    ((nn.RNNBase, nn.RNNCellBase), lambda name: name.startswith("weight")),
)
"""Layers whose zeros are those of pruning, and the names of their weights. Embeddings have rows of padding."""


def zeros_in(module: nn.Module) -> Iterator[tuple[str, nn.Parameter, Tensor]]:
    """The names of a layer's weights that have both zeros and others, the weights, and the masks of the others.

    A weight that is all zero is not pruned: it was not trained yet.
    """
    is_weight = next((test for kinds, test in _KINDS if isinstance(module, kinds)), None)
    if is_conv1d(module):
        is_weight = _KINDS[0][1]
    for key, parameter in module._parameters.items() if is_weight is not None else ():
        name = key.removesuffix("_orig").removesuffix("_v")  # of spectral and weight norms by hooks
        if type(parameter) is not nn.Parameter or parameter.is_quantized or not is_weight(name):  # type: ignore[misc]
            continue
        stored = parameter.detach()
        nonzeros = (stored if stored.layout == torch.strided else stored.to_dense()).bool()
        if _is_pruned(nonzeros):
            yield name, parameter, nonzeros


def _is_pruned(nonzeros: Tensor) -> bool:
    return 0 < int(nonzeros.sum()) < nonzeros.numel()


def end_observers(module: nn.Module) -> None:
    """Takes off what torchao's WandaSparsifier observes the inputs of a layer with."""
    observer = module._modules.get("activation_post_process")
    if type(observer).__name__ != "PerChannelNormObserver":
        return
    del module._modules["activation_post_process"]
    vars(module).pop("qconfig", None)
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for key, hook in list(hooks.items()):
            if getattr(hook, "__name__", "") in ("_observer_forward_pre_hook", "_observer_forward_hook"):
                del hooks[key]


def end_hooks_of_cerebras(module: nn.Module) -> None:
    """Takes off the hooks by which cerebras-pytorch applies the masks that it keeps in buffers, and asks for them."""
    tables: list[Any] = [module._forward_pre_hooks, module._load_state_dict_pre_hooks]
    tables += [one._backward_hooks for one in module._parameters.values() if one is not None and one._backward_hooks]
    for hooks in tables:
        for key, hook in list(hooks.items()):
            if _origin_of(hook).startswith("cerebras."):
                del hooks[key]


def _origin_of(hook: Any) -> str:
    """The name of the Python module that a hook's function is from."""
    while True:
        inner = getattr(hook, "func", None) or getattr(hook, "hook", None) or getattr(hook, "__func__", None)
        if inner is None:
            return getattr(hook, "__module__", None) or ""
        hook = inner
