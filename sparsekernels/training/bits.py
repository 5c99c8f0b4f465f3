# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Masks as bits: an eighth of their size in a checkpoint, and 64 bits that tell whether two ranks have the same."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_POWERS = (1, 2, 4, 8, 16, 32, 64, 128)


def packed(mask: Tensor) -> Tensor:
    """A mask as bytes.

    Args:
        mask: bool.

    Returns:
        uint8 [ceil(numel / 8)], on the CPU; the first element is the lowest bit.
    """
    flat = mask.flatten()
    padded = torch.zeros(-(-flat.numel() // 8) * 8, dtype=torch.uint8, device=flat.device)
    padded[: flat.numel()] = flat
    powers = torch.tensor(_POWERS, dtype=torch.uint8, device=flat.device)
    return (padded.view(-1, 8) * powers).sum(1, dtype=torch.uint8).cpu()


def unpacked(bits: Tensor, shape: torch.Size) -> Tensor:
    """The mask that `packed` made bytes of.

    Args:
        bits: uint8 [ceil(numel / 8)].
        shape: Of the mask.

    Returns:
        bool, on the CPU.

    Raises:
        ValueError: For another number of bytes.
    """
    if bits.dtype != torch.uint8 or bits.dim() != 1 or bits.numel() != -(-shape.numel() // 8):
        raise ValueError(
            f"expected uint8 [{-(-shape.numel() // 8)}] for a mask of shape {list(shape)}, got {list(bits.shape)}"
        )
    powers = torch.tensor(_POWERS, dtype=torch.uint8)
    return (bits.cpu()[:, None] & powers).ne(0).flatten()[: shape.numel()].view(shape)


def fingerprint(masks: Mapping[str, Tensor]) -> int:
    """63 bits of the names and bits of masks.

    Args:
        masks: By name.

    Returns:
        The number.
    """
    digest = hashlib.sha256()
    for name, mask in masks.items():
        digest.update(name.encode() + b"\0" + bytes(packed(mask).untyped_storage().tolist()))
    return int.from_bytes(digest.digest()[:8], "little") >> 1


def check_agreement(masks: Mapping[str, Tensor], error: BaseException | None, group: Any, device: torch.device) -> None:
    """Raise on all ranks where one of them raised, or has other masks.

    Args:
        masks: What this rank has, or is about to have.
        error: What this rank is about to raise.
        group: The process group.
        device: On which the group communicates.

    Raises:
        RuntimeError: Where ranks differ, or another one raised.
        BaseException: `error`.
    """
    from torch import distributed

    mine = -1 if error is not None else fingerprint(masks)
    number = torch.tensor([mine], dtype=torch.int64, device=device)
    others = [torch.empty_like(number) for _ in range(distributed.get_world_size(group))]
    distributed.all_gather(others, number, group=group)
    if error is not None:
        raise error
    found = [int(one) for one in others]
    failed = [rank for rank, one in enumerate(found) if one == -1]
    if failed:
        raise RuntimeError(f"sparse training: expected an update on all ranks, got an error on rank {failed[0]}")
    if len(set(found)) > 1:
        other = next(rank for rank, one in enumerate(found) if one != found[0])
        raise RuntimeError(
            f"sparse training: expected the same masks on all ranks, got others on rank {other} than on rank 0; seeds,"
            " gradients and weights have to be the same on all of them"
        )
