# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The table of masked products, and its kernel operators (csrc/masked_matmul)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...dispatch import Call, Implementation
from .._operation import Operation
from .._triton_support import supports_call
from ..precision import COMPUTED_IN_FLOAT32
from . import reference
from .arguments import check_pack, check_pack_blocks, check_product, check_transpose_bits


def _triton() -> Any:
    from . import triton

    return triton


def _supported_by_triton(call: Call) -> str | None:
    """None, or the reason why not; masks and their bits, which are packed and transposed, are calls as well."""
    if call.dtype not in (*COMPUTED_IN_FLOAT32, torch.bool, torch.int64):
        return (
            f"it takes {', '.join(str(dtype)[6:] for dtype in COMPUTED_IN_FLOAT32)}, the input is {str(call.dtype)[6:]}"
        )
    return supports_call(call)


MASKED_MATMUL = Operation(
    "masked_matmul",
    reference,
    devices=("cpu",),
    others=(Implementation("triton", _supported_by_triton, _triton),),
    dtypes=COMPUTED_IN_FLOAT32,
)
compiled = MASKED_MATMUL.compiled


def fake_product(
    a: Tensor, b: Tensor, a_bits: Tensor | None = None, b_bits: Tensor | None = None, bits: Tensor | None = None
) -> Tensor:
    """An empty result."""
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    return a.new_empty((*batch, a.size(-2), b.size(-1)))


def _fake_pack(mask: Tensor) -> Tensor:
    return mask.new_empty((*mask.shape[:-1], reference.words_of(mask.size(-1))), dtype=torch.int64)


def _fake_pack_blocks(blocks: Tensor, rows: int, columns: int, height: int, width: int) -> Tensor:
    return blocks.new_empty((*blocks.shape[:-2], rows, reference.words_of(columns)), dtype=torch.int64)


def _fake_transpose_bits(bits: Tensor, columns: int) -> Tensor:
    return bits.new_empty((*bits.shape[:-2], columns, reference.words_of(bits.size(-2))))


product: Any = MASKED_MATMUL.kernel(
    "product",
    "_masked_product(Tensor a, Tensor b, Tensor? a_bits, Tensor? b_bits, Tensor? bits) -> Tensor",
    fake_product,
    check=check_product,
)
pack: Any = MASKED_MATMUL.kernel("pack", "_pack_mask(Tensor mask) -> Tensor", _fake_pack, check=check_pack)
pack_blocks: Any = MASKED_MATMUL.kernel(
    "pack_blocks",
    "_pack_block_mask(Tensor blocks, SymInt rows, SymInt columns, int height, int width) -> Tensor",
    _fake_pack_blocks,
    check=check_pack_blocks,
)
transpose_bits: Any = MASKED_MATMUL.kernel(
    "transpose_bits",
    "_transpose_mask_bits(Tensor bits, SymInt columns) -> Tensor",
    _fake_transpose_bits,
    check=check_transpose_bits,
)
