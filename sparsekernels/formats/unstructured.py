# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Fine-grained sparse weights: any pattern of zeros, stored as compressed rows."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ..checks import check_dtype, check_tensor
from .sparse_format import SparseFormat
from .transposed import Transposed, transpose

if TYPE_CHECKING:
    from typing_extensions import Self


class Plans(dict[Any, int]):
    """The numbers of an operation's plans of one pattern, by what they depend on beside it. They go when this goes."""


class _Shared:
    """What follows from a pattern, worked out once and shared by every weight that has this pattern."""

    def __init__(self) -> None:
        self.flat_indices: Tensor | None = None
        self.transposed: dict[int, Transposed] = {}
        self.plans = Plans()


@dataclass(frozen=True, eq=False, repr=False)
class Unstructured(SparseFormat):
    """A weight of which only some elements are stored: the compressed rows of `weight.flatten(1)`.

        weight.flatten(1)[o, col_indices[k]] = values[k]   for k in crow_indices[o] .. crow_indices[o + 1] - 1

    and zero elsewhere. The weight is [out, in] of a linear layer or [out, in/groups, kh, kw] of a convolution, whose
    columns are (i * kh + ky) * kw + kx; [out, in/groups, k] is the case kh = 1. A stored element may be zero.

    Immutable: `with_values` makes another weight with the same pattern. Make one with `from_dense`; the constructor is
    for indices from elsewhere and validates them.

    Attributes:
        shape: Of the dense weight.
        crow_indices: int32 [out + 1], where each row starts in the other two.
        col_indices: int32 [nnz], strictly ascending in each row.
        values: [nnz]; float32, bfloat16, float16 or float64; may require a gradient.

    Raises:
        TypeError: For a type or dtype that is not accepted.
        ValueError: For shapes, devices and contents that are not, and for more than 2^31 - 1 elements, zeros included.
    """

    format: ClassVar[str] = "unstructured"

    shape: tuple[int, ...]
    crow_indices: Tensor
    col_indices: Tensor
    values: Tensor
    _shared: _Shared = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", self._checked_shape(self.shape))
        object.__setattr__(self, "_shared", _Shared())
        self.validate()

    @classmethod
    def _of(
        cls, shape: tuple[int, ...], crow_indices: Tensor, col_indices: Tensor, values: Tensor, shared: _Shared
    ) -> Self:
        """Without validation, for parts that are known to fit."""
        weight = object.__new__(cls)
        # One by one: the dynamo of torch 2.10 does not trace `__dict__.update`.
        object.__setattr__(weight, "shape", shape)
        object.__setattr__(weight, "crow_indices", crow_indices)
        object.__setattr__(weight, "col_indices", col_indices)
        object.__setattr__(weight, "values", values)
        object.__setattr__(weight, "_shared", shared)
        return weight

    @classmethod
    def of_mask(cls, mask: Tensor, dtype: torch.dtype = torch.float32) -> Self:
        """The pattern of a mask. Its values are placeholders: one zero, expanded.

        Args:
            mask: bool, [out, in], [out, in/groups, k] or [out, in/groups, kh, kw]: which elements are stored.
            dtype: Of the values.

        Returns:
            The weight, on the device of `mask`.

        Raises:
            TypeError: For a mask that is not a bool tensor, or a dtype that is not accepted.
            ValueError: For a shape that is not.
        """
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            given = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise TypeError(f"of_mask: expected mask to be a tensor of dtype torch.bool, got {given}")
        check_dtype("of_mask", dtype)
        shape = cls._checked_shape(tuple(mask.shape))
        rows = mask.detach().reshape(shape[0], -1)
        flat = rows.flatten().nonzero()[:, 0]
        crow = torch.zeros(shape[0] + 1, dtype=torch.int32, device=mask.device)
        crow[1:] = rows.sum(1).cumsum(0)
        shared = _Shared()
        shared.flat_indices = flat
        values = torch.zeros((), dtype=dtype, device=mask.device).expand(flat.numel())
        return cls._of(shape, crow, (flat % rows.size(1)).int(), values, shared)

    @classmethod
    def full(cls, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Self:
        """The pattern that stores every element, also on meta (where arange imports sympy). Values as of `of_mask`.

        Args:
            shape: Of the weight: [out, in], [out, in/groups, k] or [out, in/groups, kh, kw].
            dtype: Of the values.
            device: Of all tensors.

        Returns:
            The weight.

        Raises:
            TypeError: For a dtype that is not accepted.
            ValueError: For a shape that is not.
        """
        check_dtype("full", dtype)
        shape = cls._checked_shape(shape)
        columns = math.prod(shape[1:])
        crow = torch.arange(0, math.prod(shape) + 1, columns, dtype=torch.int32, device="cpu").to(device)
        col = torch.arange(columns, dtype=torch.int32, device="cpu").to(device).expand(shape[0], columns).flatten()
        values = torch.zeros((), dtype=dtype, device=device).expand(col.numel())
        return cls._of(shape, crow, col, values, _Shared())

    # What it is

    @property
    def nnz(self) -> int:
        """How many elements are stored."""
        return self.col_indices.numel()

    @property
    def flat_indices(self) -> Tensor:
        """int64 [nnz]: where in `weight.flatten()` each value is. Ascending."""
        flat = self._shared.flat_indices
        if flat is None:
            flat = self.flat_positions()
            if not torch.compiler.is_compiling():  # a traced tensor must not outlive its graph
                self._shared.flat_indices = flat
        return flat

    def flat_positions(self) -> Tensor:
        """`flat_indices`, computed anew.

        Returns:
            int64 [nnz], ascending.
        """
        rows = torch.arange(self.shape[0], device=self.device) * math.prod(self.shape[1:])
        starts = torch.repeat_interleave(rows, self.crow_indices.diff(), output_size=self.nnz)
        return starts + self.col_indices

    def transposed(self, groups: int = 1) -> Transposed:
        """The pattern by input channel, for the gradient to the input. Computed once per pattern and `groups`.

        Args:
            groups: Of the convolution.

        Returns:
            The compressed rows of the transposed weight, and where its values are in `values`.

        Raises:
            ValueError: Where `groups` does not divide the output channels.
        """
        found = self._shared.transposed.get(groups)
        if found is None:
            if groups < 1 or self.shape[0] % groups:
                raise ValueError(f"transposed: expected groups to divide the {self.shape[0]} outputs, got {groups}")
            taps = math.prod(self.shape[2:])
            found = transpose(self.crow_indices, self.col_indices, self.shape[1] * groups, taps, groups)
            self._shared.transposed[groups] = found
        return found

    def cached_transposed(self, groups: int) -> tuple[Tensor, ...]:
        """`transposed`, without computing it.

        Args:
            groups: Of the convolution.

        Returns:
            The three tensors of `transposed(groups)`, or none where it was not called before.
        """
        return tuple(self._shared.transposed.get(groups, ()))

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(shape={self.shape}, nnz={self.nnz}, density={self.density:.4g}, dtype={self.dtype},"
            f" device='{self.device}')"
        )

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
        if self.nnz == weight.numel():
            return weight.reshape(-1).clone()
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
        self._check_values("with_values", values)
        return self._of(self.shape, self.crow_indices, self.col_indices, values, self._shared)

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
        return self._of(self.shape, crow, col, values, _Shared())

    # Into and out of files

    def to_tensors(self) -> dict[str, Tensor]:
        """The weight as plain tensors, for torch.save, safetensors and the like.

        Returns:
            The tensors by name: shape (int64), crow_indices, col_indices and values.
        """
        return {
            "shape": torch.tensor(self.shape, dtype=torch.int64),
            "crow_indices": self.crow_indices,
            "col_indices": self.col_indices,
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
        names = ("shape", "crow_indices", "col_indices", "values")
        missing = [name for name in names if name not in tensors]
        if missing:
            raise ValueError(f"from_tensors: expected tensors with {', '.join(names)}, got no {', '.join(missing)}")
        for name in names:
            if not isinstance(tensors[name], Tensor):
                raise TypeError(
                    f"from_tensors: expected {name} to be a torch.Tensor, got {type(tensors[name]).__name__}"
                )
        shape = tensors["shape"]
        if shape.dtype != torch.int64 or shape.dim() != 1:
            raise ValueError(
                f"from_tensors: expected shape of 1 dimension and torch.int64, got {shape.dim()} and {shape.dtype}"
            )
        try:
            return cls(tuple(shape.tolist()), *(tensors[name] for name in names[1:]))
        except TypeError as error:  # a file's fault, not the caller's
            raise ValueError(str(error)) from None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.shape, self.crow_indices, self.col_indices, self.values)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copies the values and shares the pattern, which is immutable."""
        return self._of(self.shape, self.crow_indices, self.col_indices, copy.deepcopy(self.values, memo), self._shared)

    # What is accepted

    def validate(self) -> None:
        """Check that the parts are what the class promises; reads every element.

        Raises:
            TypeError: For a type or dtype that is not accepted.
            ValueError: For shapes, devices and contents that are not.
        """
        check_tensor("Unstructured", "values", self.values)
        out, columns = self.shape[0], math.prod(self.shape[1:])
        for name, indices in (("crow_indices", self.crow_indices), ("col_indices", self.col_indices)):
            if not isinstance(indices, Tensor):
                raise TypeError(f"Unstructured: expected {name} to be a torch.Tensor, got {type(indices).__name__}")
            if indices.dtype != torch.int32 or indices.layout != torch.strided:
                raise TypeError(
                    f"Unstructured: expected {name} of dtype torch.int32 and layout torch.strided, got"
                    f" {indices.dtype} and {indices.layout}"
                )
            if indices.dim() != 1 or not indices.is_contiguous():
                raise ValueError(
                    f"Unstructured: expected {name} of one contiguous dimension, got shape {list(indices.shape)} with"
                    f" strides {list(indices.stride())}"
                )
            if indices.device != self.values.device:
                raise ValueError(
                    f"Unstructured: expected {name} on {self.values.device} like values, got {indices.device}"
                )
        if self.crow_indices.numel() != out + 1:
            raise ValueError(
                f"Unstructured: expected crow_indices of {out + 1} elements, one more than rows, got"
                f" {self.crow_indices.numel()}"
            )
        self._check_values("Unstructured", self.values)
        if self.values.device.type != "meta":
            check_contents("Unstructured", self.crow_indices, self.col_indices, columns)
            if not torch.isfinite(self.values.detach()).all():
                raise ValueError("Unstructured: expected values of finite elements, got NaN or infinite ones")

    def _check_values(self, where: str, values: Tensor) -> None:
        check_tensor(where, "values", values)
        if values.shape != self.col_indices.shape:
            raise ValueError(
                f"{where}: expected values of shape {list(self.col_indices.shape)} like col_indices, got"
                f" {list(values.shape)}"
            )
        if values.device != self.col_indices.device:
            raise ValueError(
                f"{where}: expected values on {self.col_indices.device} like col_indices, got {values.device}"
            )


def as_unstructured(weight: Unstructured) -> Unstructured:
    """A weight of a format that derives from `Unstructured`, as one of that: with the same tensors and plans."""
    return Unstructured._of(weight.shape, weight.crow_indices, weight.col_indices, weight.values, weight._shared)


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
