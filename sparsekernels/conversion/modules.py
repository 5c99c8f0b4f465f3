# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What there is to know of a module before it may be exchanged or passed by."""

from __future__ import annotations

from torch import nn
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
    return any(getattr(module, name, None) for name in _HOOKS)


def is_plain(module: nn.Module) -> bool:
    """Whether a call of `module` does what its class does, and nothing else."""
    own = vars(module)
    return (
        not has_hooks(module) and not parametrize.is_parametrized(module) and "forward" not in own and GRAPH not in own
    )
