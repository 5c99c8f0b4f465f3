# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What the peers call of blksprs, as its documentation has it, in torch's operations and on any device.

A layout is a bool tensor [batch, rows, columns] of blocks; a compressed tensor has its blocks in the order of
`layout.nonzero()`. A cache serves one operation with one set of layouts, which is asserted here.
"""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

Cache = dict[str, Any] | None


def _keep(cache: Cache, name: str, *layouts: Tensor) -> None:
    assert all(layout.dtype is torch.bool and layout.dim() == 3 for layout in layouts)
    if cache is not None:
        kept = cache.setdefault("kept", (name, *layouts))
        assert len(kept) == 1 + len(layouts)
        assert kept[0] == name
        assert all(one is other for one, other in zip(kept[1:], layouts, strict=True))


def _to_sparse(x: Tensor, layout: Tensor, size: int) -> Tensor:
    assert x.shape == (1, layout.size(1) * size, layout.size(2) * size)
    return x.view(1, layout.size(1), size, layout.size(2), size).transpose(2, 3)[layout]


def _to_dense(x: Tensor, layout: Tensor, size: int) -> Tensor:
    assert x.shape == (int(layout.sum()), size, size)
    blocks = x.new_zeros(*layout.shape, size, size).index_put(tuple(layout.nonzero().t()), x)
    return blocks.transpose(2, 3).reshape(1, layout.size(1) * size, layout.size(2) * size)


def to_sparse(x: Tensor, layout: Tensor, size: int, layout_cache: Cache = None) -> Tensor:
    _keep(layout_cache, "to_sparse", layout)
    return _to_sparse(x, layout, size)


def to_dense(x: Tensor, layout: Tensor, size: int, fill_value: float = 0, layout_cache: Cache = None) -> Tensor:
    _keep(layout_cache, "to_dense", layout)
    return _to_dense(x, layout, size)


def to_sparse_row_striped(x: Tensor, layout: Tensor, size: int, layout_cache: Cache = None) -> Tensor:
    _keep(layout_cache, "to_sparse_row_striped", layout)
    assert layout.all()
    return _to_sparse(x, layout, size)


def to_dense_row_striped(
    x: Tensor, layout: Tensor, size: int, fill_value: float = 0, layout_cache: Cache = None
) -> Tensor:
    _keep(layout_cache, "to_dense_row_striped", layout)
    assert layout.all()
    return _to_dense(x, layout, size)


def matmul(
    x: Tensor, layout_x: Tensor, y: Tensor, layout_y: Tensor, layout_o: Tensor, size: int, layout_cache: Cache = None
) -> Tensor:
    _keep(layout_cache, "matmul", layout_x, layout_y, layout_o)
    return _to_sparse(_to_dense(x, layout_x, size) @ _to_dense(y, layout_y, size), layout_o, size)


def module() -> ModuleType:
    """It under its own name."""
    found: Any = ModuleType("blksprs")
    functions = (to_sparse, to_dense, to_sparse_row_striped, to_dense_row_striped, matmul)
    found.ops = SimpleNamespace(**{function.__name__: function for function in functions})
    found.utils = SimpleNamespace(disable_validation=lambda: None)
    return found
