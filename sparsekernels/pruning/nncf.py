# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""NNCF's masks: modules in a submodule `__nncf_hooks` of the model, which a forward of its own applies in each call."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .tools import evaluated, masked, write

_HOOKS = "__nncf_hooks"


@dataclass(frozen=True)
class MaskHook:
    """A mask of NNCF's. name: of the parameter in the model. others: the classes of what it does to that beside."""

    name: str
    parameter: nn.Parameter
    module: nn.Module
    places: nn.Module
    others: tuple[str, ...]

    def mask(self) -> Tensor:
        """bool, of the parameter's shape; where it is learned, that of evaluation mode."""
        kept = self.module._buffers.get("binary_mask")
        if kept is None:
            kept = evaluated(self.module, torch.ones_like(self.parameter))
        return kept.bool().clone()

    def end(self, mask: Tensor) -> None:
        """Writes the zeros, and takes the hook away."""
        write(self.parameter, masked(self.parameter, mask))
        for key in [key for key, one in self.places._modules.items() if one is self.module]:
            del self.places._modules[key]


def mask_hooks(model: nn.Module) -> Iterator[MaskHook]:
    """Those of a model whose parameters are there."""
    for path, owner in model.named_modules():
        storage = _storage_of(owner)
        hooks = None if storage is None else storage._modules.get("post_hooks")
        for key, places in () if hooks is None else hooks.named_children():
            target = key.rpartition("__")[0].replace(":", ".")
            parameter = _parameter_at(owner, target)
            for hook in places.children():
                if parameter is not None and _is_mask(hook):
                    others = tuple(type(one).__name__ for one in places.children() if one is not hook)
                    yield MaskHook(f"{path}.{target}".lstrip("."), parameter, hook, places, others)


def _storage_of(owner: nn.Module) -> nn.Module | None:
    return None if isinstance(owner, torch.jit.ScriptModule) else owner._modules.get(_HOOKS)


def _is_mask(hook: nn.Module) -> bool:
    return "binary_mask" in hook._buffers or type(hook).__name__ == "RBPruningMask"


def _parameter_at(owner: nn.Module, target: str) -> nn.Parameter | None:
    path, _, name = target.rpartition(".")
    try:
        return owner.get_submodule(path)._parameters.get(name)
    except AttributeError:
        return None


def end_empty_hooks(model: nn.Module) -> None:
    """Gives the modules that NNCF has nothing left to do with their own forward back, and takes its submodule away."""
    for owner in list(model.modules()):
        storage = _storage_of(owner)
        if storage is None:
            continue
        for hooks in storage.children():
            for key in [key for key, places in hooks.named_children() if not any(places.children())]:
                del hooks._modules[key]
        if any(any(hooks.children()) for hooks in storage.children()):
            continue
        del owner._modules[_HOOKS]
        _give_back(owner, "forward", "orig_forward")
        _give_back(owner, "_replicate_for_data_parallel", "func")


def is_of_nncf(value: object) -> bool:
    """Whether its class is one of NNCF's."""
    return type(value).__module__.partition(".")[0] == "nncf"


def _give_back(owner: nn.Module, name: str, original: str) -> None:
    ours: Any = vars(owner).get(name)
    if not is_of_nncf(ours):
        return
    before = getattr(ours, original)
    delattr(owner, name)
    if getattr(before, "__func__", None) is not getattr(type(owner), name):  # the instance had one of its own
        setattr(owner, name, before)
