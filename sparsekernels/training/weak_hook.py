# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Hooks that refer to a sparse training without keeping it alive, and of which copies and pickles do nothing."""

from __future__ import annotations

import weakref
from typing import Any


class WeakHook:
    """Calls a method of what it refers to, as long as that is there.

    Args:
        of: Has the method.
        method: Its name.
        extra: The first argument.
    """

    def __init__(self, of: Any = None, method: str = "", extra: Any = None) -> None:
        self._of = None if of is None else weakref.ref(of)
        self._method, self._extra = method, extra

    def __call__(self, *args: Any) -> Any:
        """What the method returns; None where nobody is there.

        Args:
            *args: What the hook is called with.
        """
        of = None if self._of is None else self._of()
        return None if of is None else getattr(of, self._method)(self._extra, *args)

    def __reduce__(self) -> tuple[Any, ...]:
        return WeakHook, ()

    def __deepcopy__(self, memo: Any) -> WeakHook:
        return WeakHook()
