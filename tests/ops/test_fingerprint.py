# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Fingerprints: another value for each change of an element or a place, and for nothing else."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sparsekernels.ops.fingerprint import reference
from sparsekernels.ops.fingerprint.implementations import FINGERPRINT, Fingerprint
from sparsekernels.ops.fingerprint.op import fingerprint

COMPILED = pytest.mark.skipif(not FINGERPRINT.is_compiled(torch.zeros(1)), reason="no compiled kernels")
KINDS = [pytest.param(Fingerprint, marks=COMPILED), reference.Fingerprint]

VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda base: base,
    "transposed": lambda base: base.transpose(0, 2),
    "every other": lambda base: base[:, ::2],
    "a part": lambda base: base[1:3, 2:, ::3],
    "a column": lambda base: base[:, :, 3],
    "expanded": lambda base: base[:1].expand(6, 7, 8),
    "one element": lambda base: base[2, 3, 4],
    "channels last": lambda base: base[None].contiguous(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.bool])
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_element_counts(kind: type, view: str, dtype: torch.dtype) -> None:
    tensor = VIEWS[view](torch.zeros(6, 7, 8).to(dtype))
    one = kind([torch.zeros(3), tensor])
    values = {one.value(True)}
    place = one.value(False)
    indices = list(itertools.product(*map(range, tensor.shape)))
    for index in indices if view != "expanded" else [index for index in indices if index[0] == 0]:
        tensor.data[index] = 1
        assert one.value(True) == one.value(True)
        values.add(one.value(True))
    changes = 7 * 8 if view == "expanded" else tensor.numel()
    assert len(values) == changes + 1
    assert one.value(False) == place


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_beside_does_not_count(kind: type) -> None:
    base = torch.zeros(64, 64)
    one = kind([base[:, 1:33]])
    before = one.value(True)
    base[:, 0], base[:, 33:] = 1, 2
    assert one.value(True) == before


@pytest.mark.parametrize("kind", KINDS)
def test_places_count(kind: type) -> None:
    """What is assigned to `data`, though it may be at the same address and torch counts no change."""
    parameter = torch.nn.Parameter(torch.ones(8, 8))
    one = kind([parameter])
    values = {one.value(False)}
    own = parameter.data
    for data in (own.t(), own[:4], own.view(4, 16), own[:, :4], own.clone(), own.view(torch.int32)):
        if data.dtype == torch.float32:
            parameter.data = data
            values.add(one.value(False))
    parameter.data = own
    assert len(values) == 6
    assert one.value(False) in values


@COMPILED
def test_the_same_for_any_number_of_threads() -> None:
    tensors = [torch.randn(1 << 18), torch.randn(300, 700).t(), torch.randn(0), torch.randn(5)]
    one, threads, values = Fingerprint(tensors), torch.get_num_threads(), set()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            values.add(one.value(True))
    finally:
        torch.set_num_threads(threads)
    assert len(values) == 1
    tensors[0][-1] += 1
    assert one.value(True) not in values


def test_tensors_that_torch_swaps() -> None:
    """`torch.utils.swap_tensors`, which Module.to uses on demand, takes no tensor with further references."""
    parameter = torch.nn.Parameter(torch.ones(8))
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        one = fingerprint([parameter])
        before = one.value(True)
        parameter.data[3] = 2
        assert one.value(True) != before
        torch.utils.swap_tensors(parameter, torch.nn.Parameter(torch.ones(8)))
        assert one.value(True) != before
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
