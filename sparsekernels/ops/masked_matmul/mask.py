# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Masks as data: of blocks, and prepared to be used many times."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from . import implementations, reference
from .arguments import MOST, broadcasts


class BlockMask:
    """A mask that is True in whole blocks: element (i, j) is kept where blocks[..., i // r, j // c] is True.

    Attributes:
        blocks: bool [..., ceil(M / r), ceil(N / c)]; batch dimensions broadcast.
        block: (r, c), the rows and columns of a block.
        shape: [..., M, N], the batch of `blocks` included.

    Raises:
        TypeError: For blocks that are not a bool tensor.
        ValueError: For block sizes that are not positive and shapes that do not fit.
    """

    def __repr__(self) -> str:
        return f"{type(self).__name__}(shape={list(self.shape)}, block={self.block}, device='{self.device}')"

    def __init__(self, blocks: Tensor, block: tuple[int, int], shape: tuple[int, int]) -> None:
        """Keep the blocks where `blocks` is True.

        Args:
            blocks: bool [..., ceil(M / r), ceil(N / c)].
            block: (r, c).
            shape: (M, N). Blocks at the ends may stand out.
        """
        if not isinstance(blocks, Tensor) or blocks.dtype != torch.bool:
            given = blocks.dtype if isinstance(blocks, Tensor) else type(blocks).__name__
            raise TypeError(f"BlockMask: expected blocks to be a tensor of dtype torch.bool, got {given}")
        if blocks.layout != torch.strided:
            raise TypeError(f"BlockMask: expected blocks of layout torch.strided, got {blocks.layout}")
        if not isinstance(block, Sequence) or len(block) != 2 or not all(isinstance(size, int) for size in block):
            raise TypeError(f"BlockMask: expected block to be two int, (rows, columns), got {block!r}")
        if min(block) < 1:
            raise ValueError(f"BlockMask: expected block to be two sizes of at least 1, got {list(block)}")
        if not isinstance(shape, Sequence) or len(shape) != 2 or not all(isinstance(size, int) for size in shape):
            raise TypeError(f"BlockMask: expected shape to be two int, (M, N), got {shape!r}")
        if min(shape) < 0:
            raise ValueError(f"BlockMask: expected shape to be two sizes of at least 0, got {list(shape)}")
        if shape[0] * shape[1] > MOST:
            raise ValueError(f"BlockMask: expected shape of at most 2^31 elements, got {list(shape)}")
        counts = [-(-size // step) for size, step in zip(shape, block, strict=True)]
        if blocks.dim() < 2 or list(blocks.shape[-2:]) != counts:
            raise ValueError(
                f"BlockMask: expected blocks of shape [..., {counts[0]}, {counts[1]}] for {list(shape)} in blocks of"
                f" {block[0]}x{block[1]}, got {list(blocks.shape)}"
            )
        self.blocks = blocks
        self.block = (int(block[0]), int(block[1]))
        self.shape = (*blocks.shape[:-2], int(shape[0]), int(shape[1]))

    @property
    def device(self) -> torch.device:
        """Of the blocks."""
        return self.blocks.device

    @property
    def steps(self) -> tuple[int, int]:
        """The block without what stands out of the matrix on all sides: no larger than that."""
        (r, c), (m, n) = self.block, self.shape[-2:]
        return min(r, max(1, m)), min(c, max(1, n))

    def to_dense(self) -> Tensor:
        """The mask of elements.

        Returns:
            bool [..., M, N].
        """
        (r, c), (m, n) = self.steps, self.shape[-2:]
        return self.blocks.repeat_interleave(r, -2)[..., :m, :].repeat_interleave(c, -1)[..., :n]


class PreparedMask:
    """A mask that is prepared once and used many times, by `prepare_mask`: packed to a bit an element.

    Attributes:
        shape: [..., M, N].
        bits: int64 [..., M, ceil(N / 64)].
        mask: What it is made of, an argument alone.
    """

    def __repr__(self) -> str:
        return f"{type(self).__name__}(shape={list(self.shape)}, device='{self.device}')"

    def __init__(self, mask: Tensor | BlockMask) -> None:
        """Prepare it; `prepare_mask` is the public way.

        Args:
            mask: What `prepare_mask` takes. It is kept as it is for the order of `indices`.
        """
        self.shape = tuple(mask.shape)
        with _outside_of_inference_mode():
            self.bits = bits_of(mask)
            # a copy of what is small: what is written to the mask later has no effect
            self._blocks = _copy_of(mask) if isinstance(mask, BlockMask) else None

    @property
    def device(self) -> torch.device:
        """Of the bits."""
        return self.bits.device

    def to_dense(self) -> Tensor:
        """The mask of elements.

        Returns:
            bool [..., M, N].
        """
        return reference.unpack(self.bits, self.shape[-1])

    @cached_property
    def indices(self) -> Tensor:
        """int64 [nnz]: where in the flattened matrix each value of output="values" is; of a mask [M, N] alone.

        Computed at first use, which torch.compile cannot trace: read it before.
        """
        with _outside_of_inference_mode():
            return indices_of(self.to_dense() if self._blocks is None else self._blocks)


Mask = Tensor | BlockMask | PreparedMask


def _outside_of_inference_mode() -> contextlib.AbstractContextManager[None]:
    """What is kept in a mask is saved for backward passes later, and tables are kept beside it, by its version."""
    inside = torch.is_inference_mode_enabled() and not torch.compiler.is_compiling()
    return torch.inference_mode(False) if inside else contextlib.nullcontext()


def _copy_of(mask: BlockMask) -> BlockMask:
    rows, columns = mask.shape[-2:]
    return BlockMask(mask.blocks.clone(), mask.block, (rows, columns))


def bits_of(mask: Mask, shape: tuple[int, ...] | None = None) -> Tensor:
    """The bits of a mask; of a tensor that broadcasts, those of its last two dimensions as `shape` has them."""
    if isinstance(mask, PreparedMask):
        return mask.bits
    if isinstance(mask, BlockMask):
        bits: Tensor = implementations.pack_blocks(mask.blocks, *mask.shape[-2:], *mask.steps)
        return bits
    if shape is not None and mask.shape[-2:] != shape[-2:]:
        mask = mask.expand(*mask.shape[:-2], *shape[-2:])
    packed: Tensor = implementations.pack(mask)
    return packed


def indices_of(mask: Mask) -> Tensor:
    """int64 [nnz]: the places of the elements of a mask [M, N] in the flattened matrix.

    Row-major, as `Unstructured` has its values; of blocks block after block, in rows of blocks, each row-major without
    what stands out at the ends, as `BlockSparse` has its values.
    """
    if isinstance(mask, PreparedMask):
        return mask.indices
    if isinstance(mask, Tensor):
        return mask.flatten().nonzero()[:, 0]
    (r, c), (m, n) = mask.steps, mask.shape[-2:]
    block_rows, block_columns = mask.blocks.nonzero(as_tuple=True)
    rows = (block_rows[:, None] * r + torch.arange(r, device=mask.device))[:, :, None]
    columns = (block_columns[:, None] * c + torch.arange(c, device=mask.device))[:, None, :]
    return (rows * n + columns)[(rows < m) & (columns < n)]


def rows_of_a_block(mask: Mask) -> int:
    """1 where a mask has elements."""
    blocks = mask._blocks if isinstance(mask, PreparedMask) else mask
    return blocks.steps[0] if isinstance(blocks, BlockMask) else 1


def check_mask(where: str, name: str, mask: object, shape: Sequence[int], like: Tensor, floats: bool = False) -> None:
    """Raise TypeError or ValueError unless it is a mask of a matrix of `shape`."""
    if isinstance(mask, Tensor):
        accepted = "torch.bool" + (f" or {like.dtype} like a" if floats else "")
        if mask.dtype != torch.bool and not (floats and mask.dtype == like.dtype):
            hint = ""
            if mask.is_floating_point() and not floats:  # an operand's are factors, those of attention are added
                hint = "; an additive mask keeps where it is 0: pass mask == 0" if name == "mask" else "; pass it != 0"
            raise TypeError(f"{where}: expected {name} of dtype {accepted}, got {mask.dtype}{hint}")
        if mask.layout != torch.strided:
            raise TypeError(f"{where}: expected {name} of layout torch.strided, got {mask.layout}")
        fits = broadcasts(mask.shape, shape)
    elif isinstance(mask, BlockMask | PreparedMask):
        fits = mask.shape[-2:] == tuple(shape[-2:]) and broadcasts(mask.shape, shape)
    else:
        raise TypeError(
            f"{where}: expected {name} to be a torch.Tensor, a BlockMask or a PreparedMask, got {type(mask).__name__}"
        )
    if not fits:
        hint = ""
        if not isinstance(mask, Tensor) and broadcasts(mask.shape, shape):
            hint = f"; its last two sizes are to be {list(shape[-2:])}: expand it before it is prepared"
        raise ValueError(
            f"{where}: expected {name} of a shape that broadcasts to {list(shape)}, got {list(mask.shape)}{hint}"
        )
    if mask.device != like.device:
        raise ValueError(f"{where}: expected {name} on {like.device} like a, got {mask.device}")


def prepare_mask(mask: Mask) -> PreparedMask:
    """Pack a mask to bits, once for many calls of `masked_matmul`. Later changes of `mask` have no effect.

    Args:
        mask: bool [..., M, N], or a BlockMask; what is prepared is returned as it is.

    Returns:
        What `masked_matmul` and `masked_attention` take in the place of the mask.

    Raises:
        TypeError: For another type or dtype.
        ValueError: For a mask of fewer than two dimensions.
    """
    if isinstance(mask, PreparedMask):
        return mask
    if not isinstance(mask, BlockMask):
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            given = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise TypeError(f"prepare_mask: expected mask to be a bool tensor or a BlockMask, got {given}")
        if mask.layout != torch.strided:
            raise TypeError(f"prepare_mask: expected mask of layout torch.strided, got {mask.layout}")
        if mask.dim() < 2:
            raise ValueError(f"prepare_mask: expected mask of at least 2 dimensions, got {list(mask.shape)}")
    return PreparedMask(mask)
