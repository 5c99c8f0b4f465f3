# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What modes that look at each operator, and change nothing, have in common."""

from __future__ import annotations

from ..._torch import TorchDispatchMode


class WatchingMode(TorchDispatchMode):
    """The base of such a mode."""

    @classmethod
    def is_infra_mode(cls) -> bool:
        """Compiled code runs as without it: torch.compile refuses to under other modes."""
        return True

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Else the first operator imports all of torch.compile, which takes a second."""
        return False
