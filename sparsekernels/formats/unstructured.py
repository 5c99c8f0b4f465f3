# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Fine-grained sparse weights: any pattern of zeros, stored as compressed rows."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from .._torch import may_be_kept, outside_of_transforms
from ..checks import check_dtype, check_mask, check_tensor
from .compressed_rows import CompressedRows, Shared, check_contents, check_indices
from .transposed import Transposed, transpose

if TYPE_CHECKING:
    from typing_extensions import Self


class _Shared(Shared):
    """With the transposed pattern, by groups."""

    def __init__(self) -> None:
        super().__init__()
        self.transposed: dict[int, Transposed] = {}
        self.ordered: tuple[Unstructured, Tensor] | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Unstructured(CompressedRows):
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
        return cls._made(shape=shape, crow_indices=crow_indices, col_indices=col_indices, values=values, _shared=shared)

    @classmethod
    def of_rows(
        cls, shape: tuple[int, ...], crow_indices: Tensor, col_indices: Tensor, values: Tensor, flat_indices: Tensor
    ) -> Self:
        """Of parts that are known to fit, which nobody validates.

        Args:
            shape: As the constructor's, and so are the next three.
            crow_indices: int32 [out + 1].
            col_indices: int32 [nnz].
            values: [nnz].
            flat_indices: int64 [nnz], where in `weight.flatten()` each value is.

        Returns:
            The weight.
        """
        shared = _Shared()
        if not torch.compiler.is_compiling():
            shared.flat_indices = flat_indices
        return cls._of(shape, crow_indices, col_indices, values, shared)

    @classmethod
    def of_mask(  # type: ignore[override]
        cls, mask: Tensor, dtype: torch.dtype = torch.float32
    ) -> Self:
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
        check_mask("of_mask", mask)
        check_dtype("of_mask", dtype)
        shape = cls._checked_shape(tuple(mask.shape))
        flat = mask.detach().flatten().nonzero()[:, 0]
        columns = math.prod(shape[1:])
        starts = torch.arange(0, math.prod(shape) + 1, columns, device=mask.device)
        crow = torch.searchsorted(flat, starts, out_int32=True)
        values = torch.zeros((), dtype=dtype, device=mask.device).expand(flat.numel())
        return cls.of_rows(shape, crow, (flat % columns).int(), values, flat)

    @classmethod
    def full(  # type: ignore[override]
        cls, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
    ) -> Self:
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
            with outside_of_transforms():
                found = transpose(self.crow_indices, self.col_indices, self.shape[1] * groups, taps, groups)
            if may_be_kept(found.permutation):
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

    @property
    def _order(self) -> Tensor | None:
        """int32 [nnz], or None: where each element is in the values of a call, if they are not in the pattern's order.

        Only a pattern has one that the elements of another format are: see `BlockSparse._in_block_order`.
        """
        ordered = self._shared.ordered
        return None if ordered is None else ordered[1]

    @property
    def _unordered(self) -> Unstructured:
        """The pattern whose values are in its own order; itself where it has no `order`."""
        ordered = self._shared.ordered
        return self if ordered is None else ordered[0]

    def _in_order(self, order: Tensor) -> Unstructured:
        """The same pattern with an `order`, and plans of its own."""
        shared = _Shared()
        shared.flat_indices, shared.transposed = self._shared.flat_indices, self._shared.transposed
        shared.ordered = self, order
        return Unstructured._of(self.shape, self.crow_indices, self.col_indices, self.values, shared)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(shape={self.shape}, nnz={self.nnz}, density={self.density:.4g}, dtype={self.dtype},"
            f" device='{self.device}')"
        )

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
        if tuple(weight.shape) == self.shape and self.nnz == weight.numel():
            return weight.reshape(-1).clone()
        return super().values_of(weight)

    def by_elements(self) -> tuple[Unstructured, None]:
        """This pattern, as the one whose kernels run formats that derive from it.

        Returns:
            The pattern, and None: the order of the values is the same.
        """
        return as_unstructured(self), None

    # What is accepted

    def validate(self) -> None:
        """Check that the parts are what the class promises; reads every element.

        Raises:
            TypeError: For a type or dtype that is not accepted.
            ValueError: For shapes, devices and contents that are not.
        """
        check_tensor("Unstructured", "values", self.values)
        out, columns = self.shape[0], math.prod(self.shape[1:])
        check_indices("Unstructured", self.crow_indices, self.col_indices, self.values.device, out)
        self._check_values("Unstructured", self.values, self.nnz)
        if self.values.device.type != "meta":
            check_contents("Unstructured", self.crow_indices, self.col_indices, columns)
            if not torch.isfinite(self.values.detach()).all():
                raise ValueError("Unstructured: expected values of finite elements, got NaN or infinite ones")


def as_unstructured(weight: Unstructured) -> Unstructured:
    """A weight of a format that derives from `Unstructured`, as one of that: with the same tensors and plans."""
    return Unstructured._of(weight.shape, weight.crow_indices, weight.col_indices, weight.values, weight._shared)
