# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Mask criteria: what each keeps, by a definition of its own, with exact counts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sparsekernels.training import CRITERIA, criterion, diff_sign, same_sign

BASES = [name for name in CRITERIA if not name.endswith("_sign")]


def weights(shape: tuple[int, ...] = (12, 7), dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    initial = torch.randn(shape, generator=generator, dtype=torch.float64)
    final = initial + torch.randn(shape, generator=generator, dtype=torch.float64)
    return initial.to(dtype), final.to(dtype)


def test_there_are_nine_each_with_two_variants() -> None:
    assert len(BASES) == 9
    assert len(set(CRITERIA)) == 27


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", CRITERIA)
def test_counts_are_exact(name: str, dtype: torch.dtype) -> None:
    initial, final = weights(dtype=dtype)
    signs = initial.sign() * final.sign()
    most = {"same": int((signs > 0).sum()), "diff": int((signs < 0).sum())}.get(name[-9:-5], initial.numel())
    assert most > 20
    for count in (0, 1, 2, 17, most - 1, most):
        mask = criterion(name)(initial, final, count)
        assert (mask.dtype, mask.shape, int(mask.sum())) == (torch.bool, initial.shape, count)
        if name.endswith("_sign"):
            assert bool((mask <= ((signs > 0) if "same" in name else (signs < 0))).all())


# Of two weights, in Python: which of them is to be kept before the other.
SCORES: dict[str, Callable[[float, float], float]] = {
    "large_final": lambda wi, wf: abs(wf),
    "small_final": lambda wi, wf: -abs(wf),
    "large_init": lambda wi, wf: abs(wi),
    "small_init": lambda wi, wf: -abs(wi),
    "magnitude_increase": lambda wi, wf: abs(wf) - abs(wi),
    "movement": lambda wi, wf: abs(wf - wi),
}


@pytest.mark.parametrize("sign", ["", "_same_sign", "_diff_sign"])
@pytest.mark.parametrize("name", SCORES)
def test_the_highest_scores_are_kept(name: str, sign: str) -> None:
    initial, final = weights(dtype=torch.float64)
    pairs = list(zip(initial.flatten().tolist(), final.flatten().tolist(), strict=True))
    allowed = {"": lambda p: True, "_same_sign": lambda p: p > 0, "_diff_sign": lambda p: p < 0}[sign]
    places = [place for place, (wi, wf) in enumerate(pairs) if allowed(wi * wf)]
    wanted = sorted(places, key=lambda place: -SCORES[name](*pairs[place]))[:15]
    mask = criterion(name + sign)(initial, final, 15)
    assert mask.flatten().nonzero()[:, 0].tolist() == sorted(wanted)


@pytest.mark.parametrize("large", [True, False])
def test_two_conditions_have_a_common_threshold(large: bool) -> None:
    """Some threshold exists for which "both conditions" is the mask, for each budget."""
    initial, final = weights()
    name = "large_init_large_final" if large else "small_init_small_final"
    for count in (1, 30, 60, 83):
        mask = criterion(name)(initial, final, count)
        inside = torch.stack([initial.abs()[mask], final.abs()[mask]])
        threshold = inside.min() if large else inside.max()
        both = [(one.abs() >= threshold) if large else (one.abs() <= threshold) for one in (initial, final)]
        assert torch.equal(mask, both[0] & both[1])


def test_random_masks_depend_on_the_seed_alone() -> None:
    initial, final = weights((40, 50))
    first, again, other = (criterion("random", seed=seed)(initial, final, 200) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert torch.equal(first, criterion("random", seed=1)(final, initial, 200))
    assert 5 < int((first & other).sum()) < 50  # 20 expected
    by_half = first[:20].sum() / 200
    assert 0.3 < by_half < 0.7


def test_fewer_weights_of_a_sign_than_wanted() -> None:
    initial = torch.tensor([1.0, 1.0, -1.0, 2.0, 3.0, 0.0])
    final = torch.tensor([2.0, -9.0, -1.0, 0.0, -8.0, 7.0])
    with pytest.raises(ValueError, match="same_sign: expected count up to 2, the weights of that sign, got 3"):
        criterion("large_final_same_sign")(initial, final, 3)
    mask = criterion("large_final_same_sign", fill=True)(initial, final, 4)
    assert mask.tolist() == [True, True, True, False, True, False]  # both of them, then -9 and -8
    mask = criterion("small_final_diff_sign", fill=True)(initial, final, 3)
    assert mask.tolist() == [False, True, False, True, True, False]  # both of them, then 0


def test_strides_do_not_matter() -> None:
    initial, final = weights((6, 4, 3, 3))
    initial[:2] = final[:2] = 0.5
    for name in CRITERIA:
        expected = criterion(name, fill=True)(initial, final, 50)
        as_images = [one.contiguous(memory_format=torch.channels_last) for one in (initial, final)]
        assert torch.equal(criterion(name, fill=True)(*as_images, 50), expected)
        transposed = [one.transpose(0, 3).contiguous().transpose(0, 3) for one in (initial, final)]
        assert not transposed[0].is_contiguous()
        assert torch.equal(criterion(name, fill=True)(*transposed, 50), expected)


def test_equals_are_taken_from_all_rows() -> None:
    """In the order of their places they would fill some rows and leave others empty."""
    ones = torch.ones(100, 20)
    mask = criterion("large_final")(ones, ones, 1000)
    assert 4 <= int(mask.sum(1).min()) <= int(mask.sum(1).max()) <= 16
    assert torch.equal(mask, criterion("small_init")(ones, ones, 1000))


def test_a_criterion_of_a_users_own_can_be_restricted() -> None:
    def large_product(initial: Tensor, final: Tensor, count: int) -> Tensor:
        kept = (initial * final).abs().topk(count).indices
        return torch.zeros(initial.shape, dtype=torch.bool).index_fill(0, kept, True)

    initial, final = weights((50,))
    for restricted, sign in ((same_sign(large_product), 1), (diff_sign(large_product), -1)):
        mask = restricted(initial, final, 5)
        product = (initial * final) * sign
        assert mask.nonzero()[:, 0].tolist() == sorted(product.topk(5).indices.tolist())


def test_wrong_masks_of_a_users_own_are_refused() -> None:
    initial, final = weights((50,))
    with pytest.raises(ValueError, match="criterion: expected it to keep 5 weights, got 50"):
        same_sign(lambda wi, wf, count: torch.ones_like(wi, dtype=torch.bool))(initial.abs(), final.abs(), 5)
    with pytest.raises(
        TypeError, match=r"criterion: expected it to return torch.bool \[50\], got torch.float64 \[50\]"
    ):
        same_sign(lambda wi, wf, count: wi)(initial.abs(), final.abs(), 5)


@pytest.mark.parametrize("name", CRITERIA)
def test_bad_input_is_refused_in_words(name: str) -> None:
    keep = criterion(name)
    initial, final = weights((5,))
    with pytest.raises(ValueError, match="expected count from 0 to 5, got 6"):
        keep(initial, final, 6)
    with pytest.raises(ValueError, match="expected count from 0 on, got -1"):
        keep(initial, final, -1)
    with pytest.raises(TypeError, match="expected count to be an int, got float"):
        keep(initial, final, 2.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected final to be a torch.Tensor, got list"):
        keep(initial, [1.0], 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"expected initial of shape \[5\] on cpu, as final, got \[4\] on cpu"):
        keep(initial[:4], final, 1)
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="expected final of finite numbers, got NaN or infinity"):
            keep(initial, final.index_fill(0, torch.tensor([3]), bad), 1)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="criterion: expected name to be 'large_final', .*, got 'large'"):
        criterion("large")
    with pytest.raises(TypeError, match="seed to be an int"):
        criterion("random", seed="1")  # type: ignore[arg-type]
