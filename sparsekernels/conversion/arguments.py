# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The arguments of a model while it is converted: each call gets copies of its own, since models write to theirs."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .._torch import tree_leaves, tree_map_only
from .watch.reach import Reach
from .watch.state import held_by

Given = tuple[tuple[Any, ...], dict[str, Any]]
"""Arguments by position and by name."""


class Arguments:
    """What a model is called with.

    Objects that keep state (a key-value cache) are copied with all that they hold, but for modules, which stay what
    they are. What Python cannot copy is given to each call as it is, with copies of the tensors beside it.
    """

    def __init__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self._given: Given = args, dict(kwargs)
        leaves = tree_leaves(self._given)
        self._tensors = [value for value in leaves if isinstance(value, Tensor)]
        self._modules = [value for value in leaves if isinstance(value, nn.Module)]
        self._are_copied = True
        try:
            held = [one.value for one in held_by(self._given, ())]
            self._tensors += [value for value in held if isinstance(value, Tensor)]
            self._modules += [value for value in held if isinstance(value, nn.Module)]
            self._copied()
        except Exception:  # whatever the class of an argument raises, or there is too much
            self._are_copied = False
        self._reach = Reach((), () if self._are_copied else self._given)

    def of_a_call(self) -> Given:
        """Copies. A tensor that is in two places is one tensor in these, too."""
        if self._are_copied:
            return self._copied()
        self.put_back()
        args, kwargs = self._given
        return tree_map_only(Tensor, _copy_of, args), tree_map_only(Tensor, _copy_of, kwargs)

    def put_back(self) -> None:
        """Make what calls were given as it is what it was."""
        self._reach.put_back()

    def _copied(self) -> Given:
        copies: dict[int, Any] = {id(module): module for module in self._modules}
        copies.update((id(tensor), _copy_of(tensor)) for tensor in self._tensors)
        return copy.deepcopy(self._given, copies)


def _copy_of(tensor: Tensor) -> Tensor:
    preserved = {"memory_format": torch.preserve_format} if tensor.layout is torch.strided else {}
    return tensor.detach().clone(**preserved).requires_grad_(tensor.requires_grad)
