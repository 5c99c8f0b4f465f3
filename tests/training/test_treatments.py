# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What kept and pruned weights start from."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sparsekernels.training import starting_weights
from sparsekernels.training.treatments import KEPT, PRUNED

DTYPES = [torch.float32, torch.bfloat16, torch.float64]


def given(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """initial, final, mask, fresh"""
    generator = torch.Generator().manual_seed(0)
    initial, change, fresh = torch.randn(3, 30, 20, generator=generator, dtype=torch.float64).to(dtype)
    return initial, initial + change, torch.rand(30, 20, generator=generator) < 0.4, fresh


@pytest.mark.parametrize("dtype", DTYPES)
def test_each_treatment(dtype: torch.dtype) -> None:
    initial, final, mask, fresh = given(dtype)
    smaller = final.double().abs() < initial.double().abs()
    deviation = math.sqrt(sum((one - initial.double().mean().item()) ** 2 for one in initial.flatten().tolist()) / 600)
    found = {kept: starting_weights(initial, final, mask, kept=kept, fresh=fresh, seed=1) for kept in KEPT}
    for one in found.values():
        assert (one.dtype, one.shape) == (dtype, initial.shape)
        assert not one[~mask].any()
    values = {kept: one[mask] for kept, one in found.items()}
    wi, sign = initial[mask], initial[mask].sign()
    assert torch.equal(values["rewind"], wi)
    assert torch.equal(values["reinit"], fresh[mask])
    assert torch.equal(values["signed_reinit"], fresh[mask].abs() * sign)
    assert torch.equal(values["rewind_or_zero"], torch.where(smaller[mask], 0, wi))
    for kept in ("reshuffle", "signed_reshuffle"):
        assert torch.equal(values[kept].sort().values, wi.sort().values)
        assert (values[kept] != wi).float().mean() > 0.9
    assert torch.equal(values["signed_reshuffle"].sign(), sign)
    assert not torch.equal(values["reshuffle"].sign(), sign)
    for kept in ("constant", "signed_constant"):
        assert values[kept].abs().unique().numel() == 1
        assert values[kept][0].abs().item() == pytest.approx(deviation, rel=2**-8 if dtype == torch.bfloat16 else 1e-6)
    assert torch.equal(values["signed_constant"].sign(), sign)
    assert 0.35 < (values["constant"] > 0).float().mean() < 0.65
    assert 0.35 < (values["constant"].sign() == sign).float().mean() < 0.65


def test_pruned_weights() -> None:
    initial, final, mask, _ = given()
    smaller = final.abs() < initial.abs()
    for pruned, expected in (
        ("zero", torch.zeros_like(initial)),
        ("freeze", initial),
        ("freeze_or_zero", torch.where(smaller, 0, initial)),
    ):
        found = starting_weights(initial, final, mask, pruned=pruned)
        assert torch.equal(found, torch.where(mask, initial, expected))
    assert len(PRUNED) == 3


def test_draws_depend_on_the_seed_alone() -> None:
    initial, final, mask, _ = given()
    state = torch.get_rng_state()
    for kept in ("reshuffle", "signed_reshuffle", "constant"):
        first, again, other = (starting_weights(initial, final, mask, kept=kept, seed=seed) for seed in (1, 1, 2))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("kept", KEPT)
def test_strides_do_not_matter(kept: str) -> None:
    initial, final, mask, fresh = (one.view(6, 5, 4, 5) for one in given())
    expected = starting_weights(initial, final, mask, kept=kept, pruned="freeze_or_zero", fresh=fresh)
    strided = [one.contiguous(memory_format=torch.channels_last) for one in (initial, final, mask, fresh)]
    assert not strided[0].is_contiguous()
    found = starting_weights(*strided[:3], kept=kept, pruned="freeze_or_zero", fresh=strided[3])
    assert torch.equal(found, expected)


def test_zeros_have_the_sign_of_their_bit() -> None:
    initial = torch.tensor([0.0, -0.0, 1.0, -1.0])
    everything = torch.ones(4, dtype=torch.bool)
    found = starting_weights(initial, initial, everything, kept="signed_constant", deviation=0.5)
    assert found.tolist() == [0.5, -0.5, 0.5, -0.5]


def test_bad_input_is_refused_in_words() -> None:
    initial, final, mask, fresh = given()
    with pytest.raises(ValueError, match="starting_weights: expected kept to be 'rewind', .*, got 'rewound'"):
        starting_weights(initial, final, mask, kept="rewound")
    with pytest.raises(ValueError, match="starting_weights: expected pruned to be 'zero', .*, got None"):
        starting_weights(initial, final, mask, pruned=None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected fresh, new draws of the initializer, for 'reinit', got None"):
        starting_weights(initial, final, mask, kept="signed_reinit")
    with pytest.raises(ValueError, match=r"expected mask of shape \[30, 20\], as initial, got \[29, 20\]"):
        starting_weights(initial, final, mask[1:])
    with pytest.raises(TypeError, match="expected mask to be a tensor of dtype torch.bool, got torch.float32"):
        starting_weights(initial, final, mask.float())
    with pytest.raises(ValueError, match="expected a standard deviation above 0 for constants, got 0"):
        starting_weights(torch.ones(30, 20), final, mask, kept="constant")
    with pytest.raises(TypeError, match="expected fresh of dtype"):
        starting_weights(initial, final, mask, kept="reinit", fresh=fresh.long())
