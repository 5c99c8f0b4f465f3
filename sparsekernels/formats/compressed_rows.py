# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What the formats of compressed rows have in common, be their entries elements or blocks."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from .._torch import may_be_kept, outside_of_transforms
from ..checks import check_tensor
from .sparse_format import SparseFormat

if TYPE_CHECKING:
    from typing_extensions import Self


class Plans(dict[Any, int]):
    """The numbers of an operation's plans of one pattern, by what they depend on beside it. They go when this goes."""


class Shared:
    """What follows from a pattern, worked out once and shared by every weight that has this pattern."""

    def __init__(self) -> None:
        self.flat_indices: Tensor | None = None
        self.mask: Tensor | None = None
        self.plans = Plans()


class CompressedRows(SparseFormat):
    """A format whose pattern is `crow_indices` and `col_indices`, the compressed rows of what it stores.

    A class of this kind is a frozen dataclass of `shape`, what `_sizes` names, `crow_indices`, `col_indices`, `values`
    and `_shared`.
    """

    _sizes: ClassVar[tuple[str, ...]] = ("shape",)
    """The attributes that are sizes, in the order of the constructor's arguments."""

    crow_indices: Tensor
    col_indices: Tensor
    _shared: Shared

    @classmethod
    def _made(cls, **parts: Any) -> Self:
        """Without validation, of parts that are known to fit."""
        weight = object.__new__(cls)
        for name, part in parts.items():  # the dynamo of torch 2.10 does not trace `__dict__.update`
            object.__setattr__(weight, name, part)
        return weight

    def _alike(self, crow_indices: Tensor, col_indices: Tensor, values: Tensor, shared: Any) -> Self:
        """Of the same sizes, without validation."""
        sizes = {name: getattr(self, name) for name in self._sizes}
        return self._made(**sizes, crow_indices=crow_indices, col_indices=col_indices, values=values, _shared=shared)

    # What it is

    @property
    def flat_indices(self) -> Tensor:
        """int64 [nnz]: where in `weight.flatten()` each value is."""
        flat = self._shared.flat_indices
        if flat is None:
            with outside_of_transforms():
                flat = self.flat_positions()
            if may_be_kept(flat):
                self._shared.flat_indices = flat
        return flat

    def flat_positions(self) -> Tensor:
        """`flat_indices`, computed anew.

        Returns:
            int64 [nnz].
        """
        raise NotImplementedError

    @property
    def plans(self) -> Plans:
        """Kept for the operations, which know what these are."""
        return self._shared.plans

    # Into and out of dense tensors

    def values_of(self, weight: Tensor) -> Tensor:
        """The elements of a dense weight at this pattern, weight.flatten()[flat_indices]. Differentiable to `weight`.

        Args:
            weight: Dense, of the shape of this weight.

        Returns:
            [nnz], a copy.

        Raises:
            ValueError: For another shape.
        """
        if tuple(weight.shape) != self.shape:
            raise ValueError(f"values_of: expected weight of shape {list(self.shape)}, got {list(weight.shape)}")
        return weight.flatten().index_select(0, self.flat_indices)

    def with_values(self, values: Tensor) -> Self:
        """The same pattern with other values. What was derived from the pattern is shared.

        Args:
            values: [nnz]; float32, bfloat16, float16 or float64; may require a gradient.

        Returns:
            The new weight.

        Raises:
            TypeError: For a type or dtype that is not accepted.
            ValueError: For another shape or device.
        """
        self._check_values("with_values", values, self.nnz)
        return self._alike(self.crow_indices, self.col_indices, values, self._shared)

    def to(
        self, device: torch.device | str | int | torch.dtype | None = None, dtype: torch.dtype | None = None
    ) -> Self:
        """The weight on another device, in another dtype, or both.

        Args:
            device: The device, or a dtype as in torch.Tensor.to.
            dtype: Of the values.

        Returns:
            The new weight; itself where nothing changes.
        """
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        values = self.values.to(device=device, dtype=dtype)
        if values.device == self.device:
            return self if values is self.values else self.with_values(values)
        crow, col = (indices.to(values.device) for indices in (self.crow_indices, self.col_indices))
        return self._alike(crow, col, values, type(self._shared)())

    # Into and out of files

    def to_tensors(self) -> dict[str, Tensor]:
        """The weight as plain tensors, for torch.save, safetensors and the like.

        Returns:
            The tensors by name: those of the constructor's arguments, `shape` and the like as int64.
        """
        return {name: torch.tensor(getattr(self, name), dtype=torch.int64) for name in self._sizes} | {
            "crow_indices": self.crow_indices.detach(),  # without what torch.compile is told about a layer's
            "col_indices": self.col_indices.detach(),
            "values": self.values.detach(),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """The weight that `to_tensors` took apart. Nothing is trusted.

        Args:
            tensors: What `to_tensors` returned.

        Returns:
            The weight.

        Raises:
            ValueError: For what is missing or corrupt.
            TypeError: For what is not a tensor.
        """
        names = (*cls._sizes, "crow_indices", "col_indices", "values")
        missing = [name for name in names if name not in tensors]
        if missing:
            raise ValueError(f"from_tensors: expected tensors with {', '.join(names)}, got no {', '.join(missing)}")
        for name in names:
            if not isinstance(tensors[name], Tensor):
                raise TypeError(
                    f"from_tensors: expected {name} to be a torch.Tensor, got {type(tensors[name]).__name__}"
                )
        for name in cls._sizes:
            sizes = tensors[name]
            if sizes.dtype != torch.int64 or sizes.dim() != 1:
                raise ValueError(
                    f"from_tensors: expected {name} of 1 dimension and torch.int64, got {sizes.dim()} and {sizes.dtype}"
                )
        parts = [tuple(tensors[name].tolist()) if name in cls._sizes else tensors[name] for name in names]
        try:
            return cls(*parts)
        except TypeError as error:  # a file's fault, not the caller's
            raise ValueError(str(error)) from None

    def __reduce__(self) -> tuple[Any, ...]:
        sizes = (getattr(self, name) for name in self._sizes)
        return type(self), (*sizes, self.crow_indices.detach(), self.col_indices.detach(), self.values)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copies the values and shares the pattern, which is immutable."""
        return self._alike(self.crow_indices, self.col_indices, copy.deepcopy(self.values, memo), self._shared)

    # What is accepted

    def _check_values(self, where: str, values: Tensor, count: int) -> None:
        check_tensor(where, "values", values)
        if tuple(values.shape) != (count,):
            raise ValueError(f"{where}: expected values of shape [{count}] for the pattern, got {list(values.shape)}")
        if values.device != self.col_indices.device:
            raise ValueError(
                f"{where}: expected values on {self.col_indices.device} like col_indices, got {values.device}"
            )


def check_indices(where: str, crow_indices: object, col_indices: object, device: torch.device, rows: int) -> None:
    """Raise TypeError or ValueError unless these may be the compressed rows of a matrix of `rows` rows; reads none."""
    for name, indices in (("crow_indices", crow_indices), ("col_indices", col_indices)):
        if not isinstance(indices, Tensor):
            raise TypeError(f"{where}: expected {name} to be a torch.Tensor, got {type(indices).__name__}")
        if indices.dtype != torch.int32 or indices.layout != torch.strided:
            raise TypeError(
                f"{where}: expected {name} of dtype torch.int32 and layout torch.strided, got {indices.dtype} and"
                f" {indices.layout}"
            )
        if indices.dim() != 1 or not indices.is_contiguous():
            raise ValueError(
                f"{where}: expected {name} of one contiguous dimension, got shape {list(indices.shape)} with strides"
                f" {list(indices.stride())}"
            )
        if indices.device != device:
            raise ValueError(f"{where}: expected {name} on {device} like values, got {indices.device}")
        if name == "crow_indices" and indices.numel() != rows + 1:
            raise ValueError(
                f"{where}: expected crow_indices of {rows + 1} elements, one more than rows, got {indices.numel()}"
            )


def check_contents(where: str, crow: Tensor, col: Tensor, columns: int) -> None:
    """Raise ValueError unless these are the compressed rows of a matrix of `columns` columns, each row ascending."""
    nnz = col.numel()
    first, last = int(crow[0]), int(crow[-1])
    if (first, last) != (0, nnz):
        raise ValueError(
            f"{where}: expected crow_indices from 0 to {nnz}, the size of col_indices, got {first} to {last}"
        )
    if (crow[1:] < crow[:-1]).any():
        raise ValueError(f"{where}: expected crow_indices that never descend, got a step of {int(crow.diff().min())}")
    if nnz == 0:
        return
    low, high = int(col.min()), int(col.max())
    if low < 0 or high >= columns:
        raise ValueError(f"{where}: expected col_indices from 0 to {columns - 1}, got {low} to {high}")
    row_starts = torch.zeros(nnz + 1, dtype=torch.bool, device=col.device)
    row_starts[crow.long()] = True
    if ((col[1:] <= col[:-1]) & ~row_starts[1:nnz]).any():
        repeated = bool(((col[1:] == col[:-1]) & ~row_starts[1:nnz]).any())
        raise ValueError(
            f"{where}: expected col_indices that ascend strictly in each row, got"
            f" {'a column twice in a row' if repeated else 'unsorted ones'}"
        )
