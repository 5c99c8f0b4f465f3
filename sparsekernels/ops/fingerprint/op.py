# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""64 bits that stand for the places and the contents of tensors: whether anything has written to them.

Not every write counts as a change to torch: not one through `.data`, numpy, dlpack or a buffer that tensors share, and
none by another process.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import reference
from .implementations import FINGERPRINT, Fingerprint

__all__ = ["fingerprint", "swaps_tensors"]


class _OfAliases:
    """One that refers to the tensors' memory alone: `torch.utils.swap_tensors` takes none with further references."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = list(tensors)
        self._content = Fingerprint([tensor.detach() for tensor in tensors])

    def value(self, content: bool) -> object:
        places = [(one.data_ptr(), one.shape, one.stride(), one.dtype, one.device) for one in self._tensors]
        return places, self._content.value(content)


def fingerprint(tensors: Sequence[Tensor]) -> Fingerprint | reference.Fingerprint | _OfAliases:
    """The fingerprint of dense tensors, of the same objects whatever they are later. Its `value` can be compared."""
    compiled = (
        tensors and all(tensor.device.type == "cpu" for tensor in tensors) and FINGERPRINT.is_compiled(tensors[0])
    )
    if not compiled:
        return reference.Fingerprint(tensors)
    return _OfAliases(tensors) if swaps_tensors() else Fingerprint(tensors)


def swaps_tensors() -> bool:
    """Whether torch may exchange what is behind a parameter, where `Module.to` or `load_state_dict` is called."""
    return torch.__future__.get_swap_module_params_on_conversion()
