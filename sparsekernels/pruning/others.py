# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The masks of a model that any tool pruned, and the plain model."""

from __future__ import annotations

import importlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .nncf import MaskHook, end_empty_hooks, mask_hooks
from .tools import Held, end_hooks_of_cerebras, end_observers, held_in, states_of_modelopt, zeros_in


@dataclass
class _Found:
    """What masks a model has.

    masks: by the name of the parameter in the plain model. held: those of tools on layers, with that name. hooks:
    NNCF's, with their masks.
    """

    masks: dict[str, Tensor] = field(default_factory=dict)
    held: list[tuple[str, Held]] = field(default_factory=list)
    hooks: list[tuple[MaskHook, Tensor]] = field(default_factory=list)

    def add(self, name: str, mask: Tensor) -> None:
        """Another mask of a parameter: what both keep is kept."""
        known = self.masks.get(name)
        self.masks[name] = mask if known is None else known & mask


def masks_of(model: nn.Module) -> dict[str, Tensor]:
    """The masks of a model that any tool pruned, whether its masks are still applied or were made permanent.

        mask = the tool's mask   where it has one
        mask = weight != 0       elsewhere

    Read are the masks of torch.nn.utils.prune, torch.ao.pruning, torchao's WandaSparsifier, sparsimony, NNCF, ModelOpt,
    cerebras-pytorch, the layers of sparsekernels.nn, and what other parametrizations compute, in evaluation mode. A
    weight that a tool keeps is in its mask although it is zero, as one that has just grown is. Where no tool masks a
    weight, its nonzeros are its mask, of linear layers, convolutions, recurrent layers and attention, if it has zeros
    and is not all zero. Masks that a tool keeps in its own objects or in closures are not in the model, and cannot be
    found. docs/masks_of_others.md has what is read of each tool.

    Args:
        model: Any module. Nothing of it is changed, and no random number is drawn.

    Returns:
        Masks by the name that the parameter has in the plain model, "conv1.weight": bool, of the parameter's shape, on
        its device, True where it is kept; copies. A parameter that several layers share has one, under the first name,
        as in `named_parameters`, if all mask it alike. Of parameters that are not pruned there is none.

    Raises:
        TypeError: For a model that is not a module.
        ValueError: For a weight without data, on device meta or of a lazy module, or that is sharded, as by FSDP2: read
            the masks before; and for a parametrization that copy.deepcopy does not take.
    """
    return _found("masks_of", model).masks


def _found(op: str, model: nn.Module) -> _Found:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{op}: expected model to be a torch.nn.Module, got {type(model).__name__}")
    for name, parameter in model.named_parameters():
        if parameter.is_meta or is_lazy(parameter):
            raise ValueError(f"{op}: expected weights that have data, got {name!r} without")
        if hasattr(parameter, "full_tensor"):  # a DTensor
            raise ValueError(f"{op}: expected weights that are not sharded yet, got {name!r}, a part of one")
    found = _Found()
    modules = dict(_modules_of(model))
    try:
        for path, module in modules.items():
            for held in held_in(module):
                name = _joined(path, held.name)
                found.held.append((name, held))
                found.add(name, held.mask)
        names = _plain_names(modules, found.held)
        for hook in mask_hooks(model):
            mask = hook.mask()
            found.hooks.append((hook, mask))
            for name in names[id(hook.parameter)]:
                found.add(name, mask)
    except ValueError as error:
        raise ValueError(f"{op}: {error}") from None
    for path, module in modules.items():
        for name, parameter, mask in zeros_in(module):
            known, full = names[id(parameter)], _joined(path, name)
            if full in known and not any(one in found.masks for one in known):
                full = known[0]  # zeros are those of all that share it, whatever their kind
            if full not in found.masks:
                found.add(full, mask)
    places = {path: place for place, path in enumerate(modules)}
    in_order = sorted(found.masks, key=lambda name: places[name.rpartition(".")[0]])
    again = _again(names, in_order, found.masks)
    found.masks = {name: found.masks[name] for name in in_order if name not in again}
    return found


def _again(names: dict[int, list[str]], in_order: list[str], masks: dict[str, Tensor]) -> set[str]:
    """The other names of parameters that have their mask under the first one."""
    again = set()
    for known in names.values():
        masked = [name for name in in_order if name in known] if len(known) > 1 else []
        again |= {name for name in masked[1:] if torch.equal(masks[name], masks[masked[0]])}
    return again


def _modules_of(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules that may have masked parameters, each by its first name."""
    for path, module in model.named_modules():
        if "__nncf_hooks" not in path.split(".") and not isinstance(module, torch.jit.ScriptModule):
            yield path, module


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _plain_names(modules: dict[str, nn.Module], held: list[tuple[str, Held]]) -> dict[int, list[str]]:
    """The names of parameters in the plain model, by their ids."""
    names: dict[int, list[str]] = defaultdict(list)
    for name, one in held:
        for tensor in one.tensors:
            names[id(tensor)].append(name)
    for path, module in modules.items():
        for key, parameter in module._parameters.items():
            if parameter is not None and _joined(path, key) not in names[id(parameter)]:
                known = names[id(parameter)]
                if not any(_stands_for(name, _joined(path, key)) for name in known):
                    known.append(_joined(path, key))
    return names


def _stands_for(name: str, key: str) -> bool:
    """Whether `key` is what a tool calls the parameter `name` of its layer."""
    path, _, last = name.rpartition(".")
    return key == f"{name}_orig" or key.startswith(_joined(path, f"parametrizations.{last}."))


@torch.no_grad()
def finalize(model: nn.Module) -> dict[str, Tensor]:
    """Make the masks of a model that any tool pruned permanent, and the model a plain one, in place.

        weight = weight * mask

    Masks, hooks, parametrizations, observers, classes and buffers of the tools that `masks_of` knows are gone
    afterwards, and an NNCF model has its own forward again, so that `sparsekernels.convert` and training take the
    model. It computes what it did in evaluation mode. It is the last step of every such tool, without the object that
    made the masks: prune.remove, squash_mask, export, strip.

    Parameters stay the same objects, so that an optimizer goes on with them, but for one that a parametrization
    computed of several. They keep `requires_grad`, and their places among the parameters, as masked. An optimizer that
    the tool itself has hooked still asks for what is gone: make it anew after sparsimony and cerebras-pytorch.
    Layers of sparsekernels.nn stay as they are: `sparsekernels.revert` is for those that `convert` made.
    Nothing masks the weights from here on: in training, zeros move.

    Args:
        model: Any module, also one without any mask.

    Returns:
        The masks, as `masks_of` gave them before: afterwards it would give the nonzeros alone.

    Raises:
        TypeError: For a model that is not a module.
        ValueError: For what `masks_of` refuses; for a parameter that layers share of which not all mask it, or by
            different masks, or compute something else of it; for one that NNCF also does something else to, as
            quantizing; for an expanded one; and for a buffer `weight_mask` of a class that may read it, or that no
            hook applies. Then nothing has changed.
    """
    found = _found("finalize", model)
    values = _check("finalize", model, found)
    modules = [module for _, module in _modules_of(model)]
    for owner in states_of_modelopt(model) if any("_weight_mask" in one._buffers for one in modules) else ():
        importlib.import_module("modelopt.torch.sparsity").export(owner)
    written: set[int] = set()
    for name, held in found.held:
        if held.end is not None and held.value is not None:
            value = values[name] if name in values else held.value()
            held.end(value, written.isdisjoint(map(id, held.tensors)))
            written.update(map(id, held.tensors))
    for hook, mask in found.hooks:
        hook.end(mask)
    end_empty_hooks(model)
    for module in modules:
        end_observers(module)
        end_hooks_of_cerebras(module)
    return found.masks


def _check(op: str, model: nn.Module, found: _Found) -> dict[str, Tensor]:
    """That all masks can be ended, before one is. Returns what layers compute with that share a parameter, by name."""
    for name, held in found.held:
        if held.obstacle is not None:
            raise ValueError(f"{op}: expected a mask that can be ended, got {held.obstacle}, of {name!r}")
    for hook, _ in found.hooks:
        if hook.others:
            raise ValueError(
                f"{op}: expected parameters that NNCF prunes alone, got {', '.join(hook.others)} for {hook.name!r} as"
                " well; nncf.strip ends these"
            )
    ended = [(name, tensor) for name, held in found.held if held.end is not None for tensor in held.tensors]
    for name, tensor in [*ended, *((hook.name, hook.parameter) for hook, _ in found.hooks)]:
        if any(stride == 0 and size > 1 for stride, size in zip(_strides(tensor), tensor.shape, strict=False)):
            raise ValueError(f"{op}: expected weights that can be written, got {name!r} expanded: clone it")
    return _check_shared(op, model, found)


def _strides(tensor: Tensor) -> tuple[int, ...]:
    return tensor.stride() if tensor.layout == torch.strided else ()


def _check_shared(op: str, model: nn.Module, found: _Found) -> dict[str, Tensor]:
    """That whoever has a parameter computes the same of it: it is written for all of them, once. Returns that."""
    places: dict[int, list[str]] = defaultdict(list)
    for path, module in _modules_of(model):
        for key, parameter in module._parameters.items():
            if parameter is not None:
                places[id(parameter)].append(_joined(path, key))
    holders: dict[int, list[tuple[str, Held]]] = defaultdict(list)
    for name, held in found.held:
        for one in held.tensors if held.end is not None else ():
            holders[id(one)].append((name, held))
    values: dict[str, Tensor] = {}
    for tensor, some in holders.items():
        (name, first), there = some[0], places[tensor]
        for other, held in some if len(some) > 1 else ():
            if other not in values and held.value is not None:
                values[other] = held.value()
        are_alike = all(
            torch.equal(first.mask, held.mask) and _are_equal(values[name], values[other]) for other, held in some[1:]
        )
        if len(there) > len(some) or not are_alike:
            how = "" if are_alike else ", with other zeros or factors"
            raise ValueError(
                f"{op}: expected a parameter that one layer has, or that all mask alike, got that of {name!r}, which is"
                f" {', '.join(there)}{how}: give each layer its own"
            )
    return values


def _are_equal(one: Tensor, other: Tensor) -> bool:
    alike = one.shape == other.shape and one.dtype == other.dtype and one.device == other.device
    return alike and bool(((one == other) | (one.isnan() & other.isnan())).all())
