# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What there is to know of a module before it may be exchanged or passed by."""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


GRAPH = "_sparsekernels_graph"
"""The attribute in which a module keeps how it runs as a graph."""


def has_hooks(module: nn.Module) -> bool:
    """Whether something is to be done when `module` is called, saved or loaded."""
    hooks = (hook for name in _HOOKS for hook in (getattr(module, name, None) or {}).values())
    return not all(map(_is_left_by_weight_norm, hooks))


def _is_left_by_weight_norm(hook: Any) -> bool:
    """Whether it renames the parameters of a weight norm in old checkpoints: torch leaves it behind where it ends one.

    A layer without that norm has no parameters of these names, whatever they are called.
    """
    function = getattr(hook, "hook", hook)
    names = getattr(function, "__module__", ""), getattr(function, "__name__", "")
    return names == ("torch.nn.utils.parametrizations", "_weight_norm_compat_hook")


def is_plain(module: nn.Module) -> bool:
    """Whether a call of `module` does what its class does, and nothing else."""
    own = vars(module)
    return (
        not has_hooks(module) and not parametrize.is_parametrized(module) and "forward" not in own and GRAPH not in own
    )


def is_ordinary(tensor: Any) -> TypeGuard[Tensor]:
    """Whether it is a dense tensor or parameter, and of no subclass, which may mean something else."""
    return type(tensor) in (Tensor, torch.nn.Parameter) and tensor.layout is torch.strided
