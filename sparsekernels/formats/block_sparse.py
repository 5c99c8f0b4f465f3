# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Block-sparse weights: blocks of one size that are stored as a whole, as compressed rows of blocks.

More than 400 lines: half of them are the docstrings of one public class.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from .._torch import may_be_kept, outside_of_transforms
from ..blocks import check_block, grid_of, sizes_of, stored, touched
from ..checks import check_dtype, check_mask, check_tensor
from ..pruning import largest_blocks
from .compressed_rows import CompressedRows, Shared, check_contents, check_indices
from .unstructured import Unstructured

if TYPE_CHECKING:
    from typing_extensions import Self


class _Shared(Shared):
    """With the pattern of the elements, and where in `values` each of its values is; and that as one."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: tuple[Unstructured, Tensor] | None = None
        self.in_block_order: Unstructured | None = None


@dataclass(frozen=True, eq=False, repr=False)
class BlockSparse(CompressedRows):
    """A weight of which only some blocks are stored, at each tap of a convolution's: compressed rows of blocks.

        weight.flatten(2)[R r + i, B c + j, tap] = values[start_k + i w + j]
            for k in crow_indices[R] .. crow_indices[R + 1] - 1, where col_indices[k] = B taps + tap

    and zero elsewhere. Blocks have r rows, output channels, and c columns, input channels of a group; there are kh * kw
    taps, tap = ky * kw + kx, or one in a linear layer. Block k has h x w elements, r x c but at the weight's ends,
    where it has what there is; start_k is the number of elements in the blocks before it. So where r divides the
    outputs and c the inputs, `values.view(-1, r, c)` are the blocks. A stored element may be zero.

    Immutable: `with_values` makes another weight with the same pattern. Make one with `from_dense`; the constructor is
    for indices from elsewhere and validates them.

    Attributes:
        shape: Of the dense weight, [out, in] or [out, in/groups, kh, kw].
        block_size: (r, c), each from 1 to 128.
        crow_indices: int32 [ceil(out / r) + 1], where each block row starts in `col_indices`.
        col_indices: int32 [blocks], strictly ascending in each block row.
        values: [nnz], block after block, each row by row; float32, bfloat16, float16 or float64; may require a
            gradient.

    Raises:
        TypeError: For a type or dtype that is not accepted.
        ValueError: For shapes, block sizes, devices and contents that are not, and for more than 2^31 - 1 elements,
            zeros included.
    """

    format: ClassVar[str] = "block"
    option_names: ClassVar[tuple[str, ...]] = ("block",)
    _sizes: ClassVar[tuple[str, ...]] = ("shape", "block_size")

    shape: tuple[int, ...]
    block_size: tuple[int, int] = field()  # without the default that `SparseFormat` has
    crow_indices: Tensor
    col_indices: Tensor
    values: Tensor
    _shared: _Shared = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", self._checked_shape(self.shape))
        object.__setattr__(self, "block_size", check_block("BlockSparse", self.block_size))
        object.__setattr__(self, "_shared", _Shared())
        self.validate()

    @classmethod
    def of_mask(  # type: ignore[override]
        cls, mask: Tensor, dtype: torch.dtype = torch.float32, *, block: tuple[int, int]
    ) -> Self:
        """The pattern of the blocks in which a mask is True somewhere. Its values are placeholders: one zero, expanded.

        Args:
            mask: bool, [out, in] or [out, in/groups, kh, kw].
            dtype: Of the values.
            block: Rows and columns of a block, each from 1 to 128.

        Returns:
            The weight, on the device of `mask`.

        Raises:
            TypeError: For a mask that is not a bool tensor, a block that is not two int, or a dtype that is not
                accepted.
            ValueError: For a shape or block sizes that are not.
        """
        check_mask("of_mask", mask)
        check_dtype("of_mask", dtype)
        block = check_block("of_mask", block)
        shape = cls._checked_shape(tuple(mask.shape))
        return cls._of_blocks(touched(mask.detach(), block), shape, block, dtype)

    @classmethod
    def full(  # type: ignore[override]
        cls, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, *, block: tuple[int, int]
    ) -> Self:
        """The pattern that stores every block, also on the meta device. Its values are those of `of_mask`.

        Args:
            shape: Of the weight: [out, in] or [out, in/groups, kh, kw].
            dtype: Of the values.
            device: Of all tensors.
            block: Rows and columns of a block, each from 1 to 128.

        Returns:
            The weight.

        Raises:
            TypeError: For a dtype that is not accepted, or a block that is not two int.
            ValueError: For a shape or block sizes that are not.
        """
        check_dtype("full", dtype)
        block, shape = check_block("full", block), cls._checked_shape(shape)
        blocks = torch.ones(grid_of(shape, block), dtype=torch.bool, device="cpu")
        return cls._of_blocks(blocks, shape, block, dtype).to(device)

    @classmethod
    def of_indices(
        cls,
        shape: tuple[int, ...],
        block: tuple[int, int],
        crow_indices: Tensor,
        col_indices: Tensor,
        dtype: torch.dtype,
    ) -> Self:
        """The pattern of indices, which are validated. Its values are those of `of_mask`.

        Args:
            shape: Of the weight.
            block: Rows and columns of a block, each from 1 to 128.
            crow_indices: int32 [ceil(out / r) + 1].
            col_indices: int32 [blocks].
            dtype: Of the values.

        Returns:
            The weight, on the device of the indices.

        Raises:
            TypeError: For a type or dtype that is not accepted.
            ValueError: For shapes, block sizes and contents that are not.
        """
        block, shape = check_block("of_indices", block), cls._checked_shape(shape)
        rows, columns, taps = grid_of(shape, block)
        check_indices("of_indices", crow_indices, col_indices, crow_indices.device, rows)
        check_contents("of_indices", crow_indices, col_indices, columns * taps)
        heights, widths = sizes_of(shape, block, crow_indices.device)
        height = torch.repeat_interleave(heights, crow_indices.diff(), output_size=col_indices.numel())
        width = widths[torch.div(col_indices, taps, rounding_mode="floor").long()]
        values = torch.zeros((), dtype=dtype, device=crow_indices.device).expand(int((height * width).sum()))
        return cls._made(
            shape=shape,
            block_size=block,
            crow_indices=crow_indices,
            col_indices=col_indices,
            values=values,
            _shared=_Shared(),
        )

    @classmethod
    def _of_blocks(cls, blocks: Tensor, shape: tuple[int, ...], block: tuple[int, int], dtype: torch.dtype) -> Self:
        """The pattern of the blocks that are stored, bool [block rows, block columns, taps]."""
        rows = blocks.flatten(1)
        crow = torch.zeros(rows.size(0) + 1, dtype=torch.int32, device=blocks.device)
        crow[1:] = rows.sum(1).cumsum(0)
        col = (rows.flatten().nonzero()[:, 0] % rows.size(1)).int()
        count = stored(blocks, shape, block)
        values = torch.zeros((), dtype=dtype, device=blocks.device).expand(count)
        return cls._made(
            shape=shape, block_size=block, crow_indices=crow, col_indices=col, values=values, _shared=_Shared()
        )

    @classmethod
    def from_dense(  # type: ignore[override]
        cls,
        weight: Tensor,
        mask: Tensor | None = None,
        *,
        block: tuple[int, int],
        sparsity: float | None = None,
    ) -> Self:
        """The blocks of a dense weight that a mask touches, those of the largest norms, or those with any nonzero.

            kept = max(1, round(blocks * (1 - sparsity)))   or 0 where sparsity = 1

        The values are a copy without autograd history. To train a dense weight through its pattern, use
        `pattern.with_values(pattern.values_of(weight))`, or `sparsekernels.nn`.

        Args:
            weight: [out, in] or [out, in/groups, kh, kw]; float32, bfloat16, float16 or float64.
            mask: bool, shape and device of `weight`. A block in which it is True somewhere is stored whole. It may be
                all True or all False.
            block: Rows and columns of a block, each from 1 to 128. They need not divide the weight's sizes.
            sparsity: The share of the weight's blocks that is left out, 0 to 1, those of the least L2 norms; instead of
                a mask. See `sparsekernels.pruning.largest_blocks`.

        Returns:
            The weight in this format.

        Raises:
            TypeError: For a type or dtype that is not accepted.
            ValueError: For a shape, block sizes or a device that are not, for a mask with a sparsity, for NaN or
                infinite elements among those that are stored, and, without a mask or a sparsity, for a weight without
                nonzeros and one without blocks of zeros.
        """
        block = check_block("from_dense", block)
        if sparsity is not None:
            if mask is not None:
                raise ValueError("from_dense: expected mask or sparsity, got both")
            check_tensor("from_dense", "weight", weight)
            cls._checked_shape(tuple(weight.shape))
            mask = largest_blocks(weight, block, sparsity)
        return super().from_dense(weight, mask, block=block)

    @classmethod
    def from_unstructured(cls, weight: Unstructured, block: tuple[int, int]) -> Self:
        """The blocks that hold the elements of a fine-grained weight. Differentiable to its values.

        Args:
            weight: The weight.
            block: Rows and columns of a block, each from 1 to 128.

        Returns:
            The weight in blocks, its other elements zero: `to_dense` of both are equal.

        Raises:
            TypeError: For a weight that is not an `Unstructured`, or a block that is not two int.
            ValueError: For block sizes that are not accepted.
        """
        if not isinstance(weight, Unstructured):
            raise TypeError(f"from_unstructured: expected weight to be an Unstructured, got {type(weight).__name__}")
        pattern = cls.of_mask(weight.mask, weight.dtype, block=check_block("from_unstructured", block))
        return pattern.with_values(pattern.values_of(weight.to_dense()))

    @classmethod
    def from_sparse_bsr(cls, weight: Tensor) -> Self:
        """A tensor of torch's layout `torch.sparse_bsr`. Differentiable to its values.

        Args:
            weight: [out, in], in blocks of sizes from 1 to 128, whose columns ascend in each block row.

        Returns:
            The weight, with the values of `weight`.

        Raises:
            TypeError: For what is not a tensor of that layout.
            ValueError: For other shapes, dimensions of a batch or within elements, and columns that do not ascend.
        """
        layout = weight.layout if isinstance(weight, Tensor) else type(weight).__name__
        if layout is not torch.sparse_bsr:
            raise TypeError(f"from_sparse_bsr: expected weight to be a tensor of layout torch.sparse_bsr, got {layout}")
        values = weight.values()
        if weight.dim() != 2 or values.dim() != 3:
            raise ValueError(
                f"from_sparse_bsr: expected weight of shape [out, in] with values of shape [blocks, rows, columns], got"
                f" {list(weight.shape)} with {list(values.shape)}"
            )
        block = check_block("from_sparse_bsr", tuple(values.shape[1:]))
        parts = []
        for name, indices in (("crow_indices", weight.crow_indices()), ("col_indices", weight.col_indices())):
            if indices.numel() and not 0 <= int(indices.max()) < 2**31:
                raise ValueError(f"from_sparse_bsr: expected {name} of 31 bits, got {int(indices.max())}")
            parts.append(indices.clamp(min=-1).int().contiguous())
        crow, col = parts
        return cls(tuple(weight.shape), block, crow, col, values.reshape(-1))

    # What it is

    @property
    def options(self) -> dict[str, Any]:
        """What `of_mask` and the like make a weight of this kind with: {"block": block_size}."""
        return {"block": self.block_size}

    @property
    def blocks(self) -> int:
        """How many blocks are stored."""
        return self.col_indices.numel()

    @property
    def is_ragged(self) -> bool:
        """Whether the block does not divide the weight, so that blocks at the ends are smaller."""
        return any(size % step for size, step in zip(self.shape, self.block_size, strict=False))

    def flat_positions(self) -> Tensor:
        """`flat_indices`, computed anew.

        Returns:
            int64 [nnz], in the order of `values`.
        """
        (r, c), (inputs, taps) = self.block_size, (self.shape[1], math.prod(self.shape[2:]))
        row, column, tap = self._places()
        start = (row * (r * inputs) + column * c) * taps + tap
        row_step, column_step = inputs * taps, taps
        if not self.is_ragged:
            within = torch.arange(r, device=self.device)[:, None] * row_step
            within = within + torch.arange(c, device=self.device) * column_step
            return (start[:, None] + within.flatten()).flatten()
        heights, widths = sizes_of(self.shape, self.block_size, self.device)
        width = widths[column]
        sizes = heights[row] * width
        block = torch.repeat_interleave(torch.arange(self.blocks, device=self.device), sizes, output_size=self.nnz)
        within = torch.arange(self.nnz, device=self.device) - (sizes.cumsum(0) - sizes)[block]
        width = width[block]
        i = torch.div(within, width, rounding_mode="floor")
        return start[block] + i * row_step + (within - i * width) * column_step

    def _places(self) -> tuple[Tensor, Tensor, Tensor]:
        """int64 [blocks] each: block row, block column and tap."""
        taps = math.prod(self.shape[2:])
        rows = torch.arange(self.crow_indices.numel() - 1, device=self.device)
        row = torch.repeat_interleave(rows, self.crow_indices.diff(), output_size=self.blocks)
        col = self.col_indices.long()
        column = torch.div(col, taps, rounding_mode="floor")
        return row, column, col - column * taps

    def by_elements(self) -> tuple[Unstructured, Tensor]:
        """The pattern of the elements of the blocks, and where in `values` each of its values is. Computed once.

        Returns:
            A pattern with placeholders for values, and int64 [nnz]: where in `values` each of its values is.
        """
        found = self._shared.elements
        if found is None:
            with outside_of_transforms():
                flat, order = torch.sort(self.flat_indices)
                columns = math.prod(self.shape[1:])
                starts = torch.arange(self.shape[0] + 1, device=self.device) * columns
                crow, col = torch.searchsorted(flat, starts, out_int32=True), (flat % columns).int()
                placeholders = torch.zeros((), dtype=self.dtype, device=self.device).expand(self.nnz)
                pattern = Unstructured.of_rows(self.shape, crow, col, placeholders, flat)
            found = pattern, order
            if may_be_kept(order):
                self._shared.elements = found
        return found

    def _in_block_order(self) -> Unstructured:
        """The pattern of the elements for calls by a plan, whose values are `values` as they are. Computed once.

        Returns:
            A pattern with placeholders for values and an `order`.
        """
        found = self._shared.in_block_order
        if found is None:
            pattern, order = self.by_elements()
            found = self._shared.in_block_order = pattern._in_order(order.int())
        return found

    def elements(self) -> Unstructured:
        """The elements of the blocks, each by itself, zeros among them as well. Differentiable to `values`.

        Returns:
            The weight; `to_dense` of both are equal.
        """
        pattern, order = self.by_elements()
        return pattern.with_values(self.values.index_select(0, order))

    def transposed(self, groups: int = 1) -> Any:
        """The pattern of the elements by input channel, as `by_elements` has it. Computed once.

        Args:
            groups: Of the convolution.

        Returns:
            The three tensors of `Unstructured.transposed`.

        Raises:
            ValueError: Where `groups` does not divide the output channels.
        """
        return self.by_elements()[0].transposed(groups)

    def cached_transposed(self, groups: int) -> tuple[Tensor, ...]:
        """`transposed`, without computing it.

        Args:
            groups: Of the convolution.

        Returns:
            The three tensors of `transposed(groups)`, or none where it was not called before.
        """
        found = self._shared.elements
        return () if found is None else found[0].cached_transposed(groups)

    def __repr__(self) -> str:
        rows, columns = self.block_size
        return (
            f"{type(self).__name__}(shape={self.shape}, block={rows}x{columns}, blocks={self.blocks}, nnz={self.nnz},"
            f" density={self.density:.4g}, dtype={self.dtype}, device='{self.device}')"
        )

    # Into and out of other formats

    def to_sparse_bsr(self) -> Tensor:
        """A tensor of torch's layout `torch.sparse_bsr`. Differentiable to `values`.

        Returns:
            [out, in], with the indices of this weight.

        Raises:
            ValueError: For the weight of a convolution, or blocks that do not divide the shape: that layout has none.
        """
        if self.is_conv or self.is_ragged:
            rows, columns = self.block_size
            raise ValueError(
                f"to_sparse_bsr: expected weight of shape [out, in] that blocks of {rows}x{columns} divide, got"
                f" {list(self.shape)}"
            )
        blocks = self.values.reshape(-1, *self.block_size)
        return torch.sparse_bsr_tensor(self.crow_indices, self.col_indices, blocks, self.shape, check_invariants=False)

    # What is accepted

    def validate(self) -> None:
        """Check that the parts are what the class promises; reads every element.

        Raises:
            TypeError: For a type or dtype that is not accepted.
            ValueError: For shapes, devices and contents that are not.
        """
        check_tensor("BlockSparse", "values", self.values)
        rows, columns, taps = grid_of(self.shape, self.block_size)
        check_indices("BlockSparse", self.crow_indices, self.col_indices, self.values.device, rows)
        if self.values.device.type == "meta":
            whole = math.prod(self.block_size) * self.blocks
            self._check_values("BlockSparse", self.values, self.values.numel() if self.is_ragged else whole)
            return
        check_contents("BlockSparse", self.crow_indices, self.col_indices, columns * taps)
        heights, widths = sizes_of(self.shape, self.block_size, self.device)
        row, column, _ = self._places()
        self._check_values("BlockSparse", self.values, int((heights[row] * widths[column]).sum()))
        if not torch.isfinite(self.values.detach()).all():
            raise ValueError("BlockSparse: expected values of finite elements, got NaN or infinite ones")
