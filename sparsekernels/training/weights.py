# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The weights that are trained sparse: their masks, their elements or blocks, on one device or sharded over many."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._transformers import is_conv1d
from ..blocks import grid_of, spread, squared_norms, touched
from ..ops.sparse_conv2d.elements import Elements
from ..pruning import prunable
from .bitwise import bits_of, mask_, masked
from .selection import least
from .signals import random_like


def is_sharded(tensor: object) -> bool:
    """Whether it is a DTensor, as the parameters of FSDP2 and tensor parallelism are.

    Args:
        tensor: Anything.

    Returns:
        Whether it is one; torch.distributed.tensor is not imported for it.
    """
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def whole(tensor: Any) -> Tensor:
    """All of a tensor, without autograd history: gathered from all ranks where it is sharded.

    Args:
        tensor: An ordinary one or a DTensor.

    Returns:
        An ordinary tensor.
    """
    return tensor.detach().full_tensor() if is_sharded(tensor) else tensor.detach()  # type: ignore[no-any-return]


def _shard_of(mask: Tensor, like: Any) -> Tensor:
    """The part of a mask for the shard that this rank has."""
    from torch.distributed.tensor import DTensor, Replicate

    replicated = DTensor.from_local(mask, like.device_mesh, [Replicate()] * like.device_mesh.ndim, run_check=False)
    return replicated.redistribute(placements=like.placements).to_local()


@dataclass
class MaskedWeight:
    """A parameter of which only some elements are used.

    Attributes:
        name: Of the parameter in the model.
        parameter: The parameter that the optimizer has.
        mask: bool, its shape, all of it on every rank: True where a weight is used.
        block: Rows and columns of a block, where it is kept in such; else None.
        transposed: The weight is [in, out].
        wanted: How many units, elements or blocks, are used.
    """

    name: str
    parameter: nn.Parameter
    mask: Tensor
    block: tuple[int, int] | None = None
    transposed: bool = False
    wanted: int = 0
    _local: tuple[Tensor, Tensor] | None = None
    _bits: tuple[Tensor, Tensor] | None = None
    _elements: Elements | None = None

    @property
    def shape(self) -> torch.Size:
        """Of the weight, outputs first."""
        return self._upright(self.mask).shape

    @property
    def count(self) -> int:
        """How many units there are, used or not."""
        if self.block is None:
            return self.mask.numel()
        rows, columns, taps = grid_of(self.shape, self.block)
        return rows * columns * taps

    def _upright(self, tensor: Tensor) -> Tensor:
        return tensor.t() if self.transposed else tensor

    def units(self, tensor: Tensor) -> Tensor:
        """What functions see of a weight or a signal: it, or, in blocks, the L2 norm of each.

        Args:
            tensor: The shape of the weight.

        Returns:
            Outputs first.
        """
        upright = self._upright(tensor)
        return upright if self.block is None else squared_norms(upright, self.block).sqrt()

    def units_of_mask(self, mask: Tensor) -> Tensor:
        """Which units a mask uses.

        Args:
            mask: bool, the shape of the weight.

        Returns:
            bool, outputs first; in blocks those that the mask touches.
        """
        upright = self._upright(mask)
        return upright if self.block is None else touched(upright, self.block)

    def mask_of_units(self, units: Tensor) -> Tensor:
        """The mask of some units.

        Args:
            units: bool, as of `units_of_mask`.

        Returns:
            bool, the shape of the weight.
        """
        upright = units if self.block is None else spread(units, self.shape, self.block)
        return self._upright(upright).contiguous()

    def apply(self) -> None:
        """Set what the mask does not use to zero, in place."""
        self.mask_(self.local(self.parameter))

    def mask_(self, tensor: Tensor) -> None:
        """Set what the mask does not use to zero, in place.

        Args:
            tensor: What this rank has of the weight, of its gradient or of a state.
        """
        with torch.no_grad():
            if self.elements.has_kernels_for(tensor):
                self.elements.clear_others(tensor)
            else:
                mask_(tensor, self._bits_for(tensor))

    def is_within(self) -> bool:
        """Whether the weight is zero outside of the mask.

        Returns:
            Of what this rank has.
        """
        return self.elements.others(self.local(self.parameter)) == 0

    def masked(self, tensor: Tensor) -> Tensor:
        """A copy in which what the mask does not use is zero.

        Args:
            tensor: As of `mask_`.

        Returns:
            It, without autograd history.
        """
        elements = self.elements
        if elements.has_kernels_for(tensor):
            return elements.spread(elements.take(tensor))
        return masked(tensor, self._bits_for(tensor))

    @property
    def elements(self) -> Elements:
        """The elements that this rank has, by the mask as it is now."""
        if self._elements is None or self._elements.mask is not self.local_mask:
            self._elements = Elements(self.local_mask)
        return self._elements

    def _bits_for(self, tensor: Tensor) -> Tensor:
        mask = self.local_mask
        if self._bits is None or self._bits[0] is not mask or self._bits[1].dtype.itemsize != tensor.dtype.itemsize:
            self._bits = mask, bits_of(mask, tensor.dtype)
        return self._bits[1]

    def local(self, tensor: Any) -> Tensor:
        """What of a parameter, a gradient or a state this rank has; it shares memory with it.

        Args:
            tensor: An ordinary one or a DTensor.

        Returns:
            An ordinary tensor.
        """
        return tensor.detach().to_local() if is_sharded(tensor) else tensor.detach()  # type: ignore[no-any-return]

    @property
    def local_mask(self) -> Tensor:
        """The mask of what this rank has, where that is."""
        device = self.local(self.parameter).device
        if self.mask.device != device:
            self.mask = self.mask.to(device)
        if not is_sharded(self.parameter):
            return self.mask
        if self._local is None or self._local[0] is not self.mask:
            self._local = self.mask, _shard_of(self.mask, self.parameter)
        return self._local[1]

    def random_mask(self, count: int, generator: torch.Generator, fan_in: bool) -> Tensor:
        """A mask of `count` units at random places.

        Args:
            count: How many.
            generator: On the CPU.
            fan_in: Whether each output has the same number, the nearest to `count` in all, at least 1.

        Returns:
            bool, the shape of the weight.
        """
        draws = random_like(self.units_of_mask(self.mask), generator)
        if not fan_in:
            chosen = torch.zeros(draws.numel(), dtype=torch.bool, device=draws.device)
            chosen[least(draws.flatten(), count)] = True
            return self.mask_of_units(chosen.view(draws.shape))
        rows = draws.reshape(draws.size(0), -1)
        inputs = min(max(1, round(count / rows.size(0))), rows.size(1))
        chosen = torch.zeros_like(rows, dtype=torch.bool).scatter_(1, rows.topk(inputs, 1).indices, True)
        return self.mask_of_units(chosen.view(draws.shape))


def unwrapped(model: nn.Module) -> nn.Module:
    """What DistributedDataParallel and torch.compile were given, by whose names weights are called.

    Args:
        model: Any module.

    Returns:
        It, or what it wraps.
    """
    while True:
        inner = getattr(model, "_orig_mod", None)  # of torch.compile
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(inner, nn.Module):
            model = inner
        else:
            return model


def local_device(tensor: Any) -> torch.device:
    """Where a parameter is, or the part of it that this rank has.

    Args:
        tensor: An ordinary one or a DTensor.

    Returns:
        The device.
    """
    return tensor.to_local().device if is_sharded(tensor) else tensor.device  # type: ignore[no-any-return]


def layers_of(where: str, model: nn.Module, ignore: Collection[str]) -> Iterator[tuple[str, nn.Parameter, bool]]:
    """The weights of the `prunable` layers: name, parameter and whether it is [in, out]; of a shared one the first.

    Args:
        where: Who asks, for the error.
        model: Any module.
        ignore: As of `prunable`.

    Yields:
        Those that are parameters.

    Raises:
        ValueError: For a weight that is computed from others, as a pruning mask or a parametrization does.
    """
    seen: set[int] = set()
    for name, module in prunable(model, ignore=ignore):
        weight = module._parameters.get("weight")
        if weight is None:
            raise ValueError(
                f"{where}: expected weights that are parameters, got one that is computed in {name!r}: make it"
                " permanent first, with sparsekernels.pruning.finalize or"
                " torch.nn.utils.parametrize.remove_parametrizations"
            )
        if id(weight) not in seen:
            seen.add(id(weight))
            yield f"{name}.weight" if name else "weight", weight, is_conv1d(module)
