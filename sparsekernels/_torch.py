# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""All that this package uses of torch and is not public there: an upgrade of torch is this file's business.

Checked with torch 2.13; with 2.10.0 and 2.14.1 all but `dispatch_modes` and `is_jit_tracing`, which are newer here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import forward_ad as forward_ad
from torch.nn.modules import module as _module

# `forward_ad._current_level` is at least 0 inside of forward-mode differentiation. The hot paths read the attribute:
# a call around it costs 50 ns.

DispatchKey = torch._C.DispatchKey
DispatchKeySet = torch._C.DispatchKeySet

excluded: Callable[[torch._C.DispatchKeySet], Any] = torch._C._ExcludeDispatchKeyGuard
"""Context in which torch's dispatcher passes over these keys: an autocast rule calls its own operator below itself."""

is_any_autocast_enabled: Callable[[], bool] = torch._C._is_any_autocast_enabled
"""Whether autocast is on for any device, in one call."""

are_functorch_transforms_active: Callable[[], bool] = torch._C._are_functorch_transforms_active
"""Whether a call is inside of vmap, jvp, grad or another transform of torch.func."""

dispatch_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack
"""How many dispatch modes are active: fake tensors, make_fx and the like see the operators of a call."""

has_any_global_hook: Callable[[], bool] = _module._has_any_global_hook
"""Whether a hook is registered for every module."""


def is_jit_tracing() -> bool:
    """Whether torch.jit.trace records."""
    return torch._C._get_tracing_state() is not None


def saved_tensors_hooks() -> Any:
    """The innermost hooks on tensors that autograd saves, None without."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True)


def has_kernel(operator: str, key: str) -> bool:
    """Whether a kernel of "namespace::name" is registered for a dispatch key."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(operator, key)


def apply_of(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """The apply below `Function.apply`, for eager calls outside of torch.func, of functions without defaults.

    The public one binds default arguments through `inspect`, 15 of the 21 us that a small forward takes (torch 2.13),
    and unwraps dead functorch tensors.
    """
    return super(torch.autograd.Function, function).apply  # type: ignore[misc, no-any-return]
