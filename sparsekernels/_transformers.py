# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""transformers' `Conv1D`, the one class of it that there is a replacement of, known without importing it."""

from __future__ import annotations

CONV1D = ("transformers.pytorch_utils", "Conv1D")
"""Module and name of a linear layer whose weight is [in, out]."""


def is_conv1d(module: object) -> bool:
    """Whether it is an instance of that class."""
    return any((kind.__module__, kind.__name__) == CONV1D for kind in type(module).__mro__)


class _KnownByName(type):
    """Whose `isinstance` asks for the name."""

    def __instancecheck__(cls, instance: object) -> bool:
        return is_conv1d(instance)


class Conv1D(metaclass=_KnownByName):
    """Stands for that class among classes of torch, for `isinstance`."""
