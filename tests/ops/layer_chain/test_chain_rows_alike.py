# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Chains of layers whose weights are blocks of rows, whose kernels are loops: the graphs of test_layer_chain.py."""

from __future__ import annotations

import pytest
import test_layer_chain as chains
import torch
from torch import Tensor

pytestmark = chains.pytestmark


@pytest.mark.parametrize("rows", [4, 16])
def test_rows_that_are_alike(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    def blocks(generator: torch.Generator, out: int, inputs: int, kernel: tuple[int, int], density: float) -> Tensor:
        mask = torch.rand(-(-out // rows), inputs, *kernel, generator=generator) < density
        weight = torch.randn(out, inputs, *kernel, generator=generator) * mask.repeat_interleave(rows, 0)[:out]
        return weight / (inputs * kernel[0] * kernel[1] * density) ** 0.5

    monkeypatch.setattr(chains, "_weight", blocks)
    for seed in range(100, 130):
        chains.test_random_graphs(seed)
    for batch, size in ((1, (56, 56)), (3, (14, 14)), (16, (7, 7)), (8, (15, 9))):
        chains.test_residual_networks(batch, size)
    for batch, window, size in ((16, (2, 2, 2, 2, 0, 0), (8, 8)), (70, (3, 3, 2, 2, 1, 1), (9, 10))):
        chains.test_small_images(batch, window, size)
