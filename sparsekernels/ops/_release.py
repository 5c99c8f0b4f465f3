# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What the compiled library keeps under a number is freed when its owner is gone.

The garbage collector chooses the moment: also one in which operators are recorded. A recorded one would free another
owner's number whenever the recording runs.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

from .._torch import dispatch_modes, is_jit_tracing, without_function_modes

_left: deque[tuple[Callable[[int], Any], int]] = deque()


def release_with(owner: object, free: Callable[[int], Any], number: int) -> None:
    """Call `free(number)` once `owner` is gone; while operators are recorded, the next one that is gone does it."""
    weakref.finalize(owner, _release, free, number)


def _release(free: Callable[[int], Any], number: int) -> None:
    _left.append((free, number))
    if dispatch_modes() > 0 or is_jit_tracing():
        return
    with without_function_modes():  # nor is it a matter of torch function modes
        while True:
            try:
                free, number = _left.popleft()
            except IndexError:  # nothing is left, or another thread was faster
                return
            free(number)
