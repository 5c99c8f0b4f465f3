# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Lottery tickets on a GPU, where there is one: the same masks, starts and draws as on a CPU, and masks that hold."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_networks import INPUTS, LABELS, Convolutions, network
from torch import nn

from sparsekernels.training import CRITERIA, LearnedSupermask, Lottery, criterion, starting_weights
from sparsekernels.training.treatments import KEPT

by_device = pytest.mark.parametrize("device", ["cuda" if torch.cuda.is_available() else "cpu"])


@by_device
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_masks_and_starts_are_those_of_a_cpu(dtype: torch.dtype, device: str) -> None:
    initial, change, fresh = torch.randn(3, 60, 50, generator=torch.Generator().manual_seed(0)).to(dtype)
    final = initial + change
    for name in CRITERIA:
        mask = criterion(name, fill=True, seed=3)(initial, final, 700)
        there = criterion(name, fill=True, seed=3)(initial.to(device), final.to(device), 700)
        assert there.device.type == device
        assert torch.equal(there.cpu(), mask)
    for kept in KEPT:
        options: dict[str, Any] = {"kept": kept, "pruned": "freeze_or_zero", "seed": 5}
        start = starting_weights(initial, final, mask, fresh=fresh, **options)
        given = (one.to(device) for one in (initial, final, mask))
        assert torch.equal(starting_weights(*given, fresh=fresh.to(device), **options).cpu(), start)


@by_device
def test_masks_hold_there(device: str) -> None:
    """Also where `train` moves the model itself, and makes it half as wide."""
    inputs, labels = INPUTS.to(device), LABELS.to(device)

    def train(model: nn.Module, masks: Any, start_step: int) -> None:
        model.to(device).to(torch.bfloat16)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(4):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs.bfloat16()).float(), labels).backward()
            optimizer.step()
            for name, mask in masks.items():
                assert not model.get_parameter(name)[~mask.to(device)].any()

    first, second = (list(Lottery(Convolutions, train, rounds=2, device=at)) for at in (device, "cpu"))
    for one, other in zip(first, second, strict=True):
        assert one.counts == other.counts
        for name, start in one.start.items():
            assert start.device.type == "cpu"
            assert start.dtype == other.start[name].dtype
    assert all(torch.equal(start, second[0].start[name]) for name, start in first[0].start.items())


@by_device
def test_learned_masks_draw_the_same(device: str) -> None:
    here, there = LearnedSupermask(network), LearnedSupermask(network).to(device)
    for one, other in zip(here._draw(), there._draw(), strict=True):
        assert torch.equal(one, other.cpu())
    there(INPUTS.to(device)).square().sum().backward()
    assert all(bool(one.grad.isfinite().all()) for one in there.scores)
    assert there.supermask(draw=1).masks.keys() == here.supermask(draw=1).masks.keys()
    made = there.supermask(draw=1).network(network)
    assert all(
        torch.equal(value, here.supermask(draw=1).network(network).state_dict()[name])
        for name, value in made.state_dict().items()
    )
