# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Masks that hold while someone else trains: whatever the optimizer, pruned weights are what they were after its step.

    the weights that are pruned have no gradient, and get their values back behind every step

The first is what differentiating f(x; mask * weight) gives. The second is needed as well: momentum, weight decay and
Muon, which orthogonalizes whole matrices, move weights that have no gradient.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterator, Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from ..checks import DTYPES, check_mask
from .bitwise import bits_of, mask_, masked
from .weights import layers_of


def weights_of(op: str, model: nn.Module, ignore: Collection[str] = ()) -> dict[str, nn.Parameter]:
    """The weights of the `prunable` layers, by the first name of each: one that several layers share is there once.

    One that an ignored module has as well is left out.

    Raises:
        ValueError: For a model without any, a weight that is computed from others, or one of an integer dtype.
    """
    found = {name: weight for name, weight, _ in layers_of(op, model, ignore)}
    modules = dict(model.named_modules(remove_duplicate=False))
    stay = {id(one) for name in ignore for one in modules[name].parameters()}
    found = {name: weight for name, weight in found.items() if id(weight) not in stay}
    for name, weight in found.items():
        if weight.dtype not in DTYPES:
            raise ValueError(f"{op}: expected weights of a floating dtype, got {weight.dtype} in {name!r}")
    if not found:
        raise ValueError(f"{op}: expected a model with a Linear, Conv1d or Conv2d layer to prune, got none")
    return found


class HeldMasks(Mapping[str, Tensor]):
    """The masks of a model's weights by parameter name, bool, True where a weight is kept.

    Inside of `with`, the pruned weights keep the values that they have at its beginning, exactly: every
    torch.optim.Optimizer that moves a weight of the model is followed, none has to be told. Where a layer was replaced
    before the optimizer was made (by a sparse one, say), its new weight is held, and so is one that is frozen at first.
    A `with` in another one changes nothing; a later one holds what the values are then.

    Args:
        model: The module that is trained.
        masks: bool, by the names of its parameters, each of the parameter's shape.
        after_step: Is called with the number of steps, behind a step of the optimizer that made most.

    Attributes:
        steps: How many steps the optimizer made that made most.

    Raises:
        AttributeError: For a name that no parameter has.
        ValueError: For a mask of another shape.
        TypeError: For one that is not bool.
    """

    def __init__(
        self, model: nn.Module, masks: Mapping[str, Tensor], after_step: Callable[[int], None] | None = None
    ) -> None:
        for name, mask in masks.items():
            check_mask("HeldMasks", mask)
            if mask.shape != model.get_parameter(name).shape:
                wanted = list(model.get_parameter(name).shape)
                raise ValueError(f"HeldMasks: expected a mask of shape {wanted} for {name!r}, got {list(mask.shape)}")
        self._model, self._after_step = model, after_step
        self._masks = {name: mask.to(model.get_parameter(name).device, copy=True) for name, mask in masks.items()}
        self._bits: dict[str, Tensor] = {}
        self._values: dict[str, Tensor | None] = {}  # of pruned weights; None: all are zero
        self._held: dict[str, nn.Parameter] = {}
        self._handles: list[Any] = []
        self._depth = 0  # of nested `with`
        self._steps: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self._theirs: weakref.WeakKeyDictionary[Any, tuple[int, tuple[str, ...]]] = weakref.WeakKeyDictionary()
        self.steps = 0

    def __getitem__(self, name: str) -> Tensor:
        return self._masks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    def __enter__(self) -> HeldMasks:
        if self._depth == 0:
            self._begin()
        self._depth += 1
        return self

    def _begin(self) -> None:
        for name in self._masks:
            weight = self._model.get_parameter(name)
            pruned = masked(weight, ~self._bits_of(name, weight))
            self._values[name] = pruned if bool(pruned.any()) else None
        try:
            self._hook_gradients()
            self._handles.append(register_optimizer_step_post_hook(self._behind_step))
        except BaseException:
            self._end()
            raise

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._end()

    def _end(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._held.clear()
        self._theirs.clear()

    def _bits_of(self, name: str, like: Tensor) -> Tensor:
        """Of the mask, for tensors as this one; made anew where the model was moved or converted."""
        bits = self._bits.get(name)
        if bits is None or bits.device != like.device or bits.dtype.itemsize != like.dtype.itemsize:
            bits = self._bits[name] = bits_of(self._masks[name].to(like.device), like.dtype)
        return bits

    def _hook_gradients(self) -> bool:
        """Whether a weight is another one than before."""
        changed = False
        for name in self._masks:
            weight = self._model.get_parameter(name)
            if self._held.get(name) is weight:
                continue
            changed, self._held[name] = True, weight
            trained = weight.requires_grad
            weight.requires_grad_()  # torch wants it for a hook, which stays: who is frozen now may be trained later
            self._handles.append(weight.register_hook(self._without_pruned(name)))
            weight.requires_grad_(trained)
        return changed

    def _without_pruned(self, name: str) -> Callable[[Tensor], Tensor]:
        def without(gradient: Tensor) -> Tensor:
            if gradient.requires_grad:  # create_graph=True
                return gradient.masked_fill(~self._masks[name].to(gradient.device), 0)
            return masked(gradient, self._bits_of(name, gradient))

        return without

    def _behind_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        size = sum(len(group["params"]) for group in optimizer.param_groups)
        known = self._theirs.get(optimizer)
        if known is None or known[0] != size:
            if self._hook_gradients():
                self._restore()
            theirs = {id(one) for group in optimizer.param_groups for one in group["params"]}
            known = size, tuple(name for name, weight in self._held.items() if id(weight) in theirs)
            self._theirs[optimizer] = known
        if not known[1]:
            return
        self._restore(known[1])
        self._steps[optimizer] = self._steps.get(optimizer, 0) + 1
        if self._steps[optimizer] >= self.steps:  # of several, each that is not behind
            self.steps = self._steps[optimizer]
            if self._after_step is not None:
                self._after_step(self.steps)

    @torch.no_grad()
    def _restore(self, names: Collection[str] | None = None) -> None:
        """Give the pruned weights of these parameters, or of all, their values."""
        for name in self._masks if names is None else names:
            weight = self._held[name]
            values = self._values[name]
            mask_(weight, self._bits_of(name, weight), None if values is None else values.to(weight))

    def moved(self) -> list[str]:
        """Which weights have a pruned element that is not what it was at the beginning.

        Returns:
            Their names.
        """
        found = []
        for name, values in self._values.items():
            weight = self._model.get_parameter(name).detach()
            pruned = masked(weight, ~self._bits_of(name, weight))
            wanted = torch.zeros_like(pruned) if values is None else values.to(pruned.device, pruned.dtype)
            if not torch.equal(pruned, wanted):
                found.append(name)
        return found
