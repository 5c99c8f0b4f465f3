# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Packed weights: the dense product to the last digits of float32, every element back, nothing read beyond values."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import sparsekernels as sk
from sparsekernels import _library
from sparsekernels.ops.packed_linear import implementations, reference
from sparsekernels.ops.packed_linear import weight as packing
from sparsekernels.ops.packed_linear.weight import PackedWeight
from sparsekernels.testing import assert_verified

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = ((1, 1), (3, 5), (17, 64), (33, 127), (40, 128), (16, 129), (100, 300), (257, 1000), (5, 4096))
DENSITIES = (0.0, 0.02, 0.3, 1.0)
compiled = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels were not built")


def weight_of(shape: tuple[int, int], density: float, dtype: torch.dtype, seed: int = 0) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    kept = torch.rand(shape, generator=draws) < density
    return (torch.randn(shape, generator=draws) * kept).to(dtype)


def product(x: Tensor, weight: Tensor, *bias: Tensor) -> Tensor:
    return PackedWeight.of(weight).linear(x, *(bias or (None,)))


def dense(x: Tensor, weight: Tensor, *bias: Tensor) -> Tensor:
    return F.linear(x, weight, *bias)


def assert_is_the_product(x: Tensor, weight: Tensor, *bias: Tensor) -> None:
    assert_verified(product, dense, (x, weight, *bias), gradients=False)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_dense_product(shape: tuple[int, int], dtype: torch.dtype) -> None:
    out, columns = shape
    for density, rows in itertools.product(DENSITIES, (1, 2, 3, 4, 5, 6, 7, 8, 11, 15, 16, 17, 33)):
        weight = weight_of(shape, density, dtype)
        x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows)).to(dtype)
        assert_is_the_product(x, weight)
        assert_is_the_product(x, weight, torch.linspace(-1, 1, out).to(dtype))


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_element_is_back(shape: tuple[int, int], dtype: torch.dtype) -> None:
    for density in DENSITIES:
        weight = weight_of(shape, density, dtype)
        packed = PackedWeight.of(weight)
        packed.check()
        assert packed.nonzeros == int(weight.count_nonzero())
        assert torch.equal(packed.dense(), weight)
        assert torch.equal(reference.rows(*packed, 0, shape[0]), weight)
        first, last = shape[0] // 3, shape[0] - shape[0] // 4
        assert torch.equal(packed.rows(first, last), weight[first:last])


def test_special_values_are_stored() -> None:
    tiny = torch.finfo(torch.bfloat16).smallest_normal / 4
    values = [math.nan, math.inf, -math.inf, tiny, -tiny, 3.0e38, 0.0, -0.0]
    for dtype in DTYPES:
        weight = torch.tensor([values] * 3).to(dtype)
        back = PackedWeight.of(weight).dense()
        assert torch.equal(back.nan_to_num(7.0), weight.nan_to_num(7.0))
        assert bool(back[:, 0].isnan().all())


def test_zeros_of_a_mask_by_multiplication_are_no_nonzeros() -> None:
    """Half of them are -0."""
    weight = torch.tensor([[-1.0, 2.0, -3.0, 4.0]]) * torch.tensor([0.0, 0.0, 1.0, 1.0])
    assert weight[0, 0].signbit()
    assert PackedWeight.of(weight).nonzeros == 2


@pytest.mark.parametrize("rows", [1, 5, 20])
def test_numbers_that_are_not_finite_reach_the_results_that_they_concern(rows: int) -> None:
    for dtype in DTYPES:
        weight = torch.eye(8, 16).to(dtype)
        weight[2, 5] = math.inf
        x = torch.ones(rows, 16, dtype=dtype)
        y = PackedWeight.of(weight).linear(x, None)
        assert bool(y[:, 2].isinf().all())
        assert bool((y[:, [0, 1, 3, 4, 5, 6, 7]] == 1).all())
        x[0, 3] = math.nan
        y = PackedWeight.of(weight).linear(x, None)
        assert bool(y[0, 3].isnan())
        assert bool((y[1:, [0, 1, 3]] == 1).all())


@compiled
@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_do_not_depend_on_threads(dtype: torch.dtype) -> None:
    weight = weight_of((1003, 2100), 0.2, dtype)
    packed = PackedWeight.of(weight)
    threads = torch.get_num_threads()
    try:
        for rows in (1, 2, 4, 6, 16):
            x = torch.randn(rows, 2100, generator=torch.Generator().manual_seed(1)).to(dtype)
            found = []
            for count in (1, 2, 3, 7):
                torch.set_num_threads(count)
                found.append(packed.linear(x, None))
            assert all(torch.equal(one, found[0]) for one in found)
            assert_is_the_product(x, weight)
    finally:
        torch.set_num_threads(threads)


def test_inputs_of_any_strides_and_dimensions() -> None:
    weight = weight_of((30, 70), 0.3, torch.float32)
    packed = PackedWeight.of(weight)
    for x in (
        torch.randn(70),
        torch.randn(2, 3, 70),
        torch.randn(70, 4).t(),
        torch.randn(0, 70),
        torch.randn(3, 0, 70),
    ):
        y = packed.linear(x, None)
        assert y.shape == (*x.shape[:-1], 30)
        torch.testing.assert_close(y, F.linear(x, weight))


@compiled
@pytest.mark.parametrize("count", [2, 3, 7])
def test_rows_of_very_different_lengths_are_shared_out(count: int) -> None:
    threads = torch.get_num_threads()
    for dtype in DTYPES:
        weight = torch.zeros(300, 4000, dtype=dtype)
        weight[[0, 150, 299]] = weight_of((3, 4000), 1.0, dtype)
        try:
            torch.set_num_threads(count)
            for rows in (1, 4):
                assert_is_the_product(weight_of((rows, 4000), 1.0, dtype, 1), weight)
        finally:
            torch.set_num_threads(threads)


def test_large_weights_are_packed_and_unpacked_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_AT_ONCE", 1000)
    for dtype in DTYPES:
        weight = weight_of((57, 130), 0.3, dtype)
        assert torch.equal(PackedWeight.of(weight).dense(), weight)
        assert_is_the_product(weight_of((40, 130), 1.0, dtype, 1), weight, weight_of((1, 57), 1.0, dtype, 2)[0])


@compiled
@pytest.mark.parametrize("dtype", DTYPES)
def test_many_rows_are_multiplied_in_float32_where_that_is_faster(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever this processor has: some rows of the weight at a time, the last of which are fewer."""
    monkeypatch.setattr(packing, "_SLOW", DTYPES[1:])
    monkeypatch.setattr(packing, "_IN_CACHE", 2000)
    monkeypatch.setattr(packing, "_FEWEST", 10)
    products = []
    mm = torch.mm
    monkeypatch.setattr(packing.torch, "mm", lambda a, b: products.append((a.dtype, len(a))) or mm(a, b))
    weight, bias = weight_of((57, 130), 0.3, dtype), weight_of((1, 57), 1.0, dtype, 2)[0]
    for rows in (33, 100):
        x = weight_of((rows, 130), 1.0, dtype, 1)
        assert_is_the_product(x, weight)
        assert_is_the_product(x, weight, bias)
        assert product(x.view(1, rows, 130), weight).is_contiguous()
    assert set(products) == {(torch.float32, 15), (torch.float32, 12)}
    x = weight_of((40, 130), 1.0, dtype, 1)
    x[3, 7] = math.nan
    assert product(x, weight).isnan().all(1).nonzero().tolist() == [[3]]


def test_subnormal_numbers_are_stored_where_threads_flush_them() -> None:
    weight = torch.tensor([[1e-40, 0.0, -1e-40, 1.0]])
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor does not flush")
    try:
        packed = PackedWeight.of(weight)
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(packed.dense(), weight)


@compiled
def test_a_backend_by_name_multiplies_any_number_of_rows() -> None:
    weight = weight_of((30, 70), 0.3, torch.float32)
    x = torch.randn(100, 70)
    with sk.use_backend("cpu"):
        torch.testing.assert_close(product(x, weight), dense(x, weight))


@compiled
@pytest.mark.parametrize("left_out", ["SPARSEKERNELS_CPU_AMX", "SPARSEKERNELS_CPU_VBMI2"])
def test_without_tiles_and_without_expansion_of_16_bits(left_out: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__]
    result = subprocess.run(
        [*command, "-k", "dense_product or every_element or special or threads or beyond"],
        env=os.environ | {left_out: "0"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-3000:]


def test_empty_weights_are_refused() -> None:
    for shape in ((0, 5), (3, 0), (3,)):
        with pytest.raises(ValueError, match="with elements"):
            PackedWeight.of(torch.zeros(shape))
    assert PackedWeight.of(torch.ones(3, 5)).rows(2, 2).shape == (0, 5)


@compiled
def test_what_does_not_fit_is_refused() -> None:
    packed = PackedWeight.of(weight_of((30, 70), 0.3, torch.float32))
    words, crow_indices, values, _ = packed
    x, kernel = torch.randn(2, 70), implementations.forward
    for given, said in (
        ((torch.randn(2, 200), words, crow_indices, values, None), "expected contiguous words"),
        ((torch.randn(17, 70), words, crow_indices, values, None), "at most 16 rows"),
        ((torch.randn(2, 0), words, crow_indices, values, None), "at least one column"),
        ((torch.tensor(1.0), words, crow_indices, values, None), "at least one dimension"),
        ((x.double(), words, crow_indices, values.double(), None), "float32, bfloat16 or float16"),
        ((x.bfloat16(), words, crow_indices, values, None), "of the dtype of the weight"),
        ((x, words.int(), crow_indices, values, None), "expected contiguous words"),
        ((x, words.t().contiguous().t(), crow_indices, values, None), "expected contiguous words"),
        ((x, words, crow_indices.long(), values, None), "expected contiguous crow_indices"),
        ((x, words, crow_indices[:-1], values, None), "expected contiguous crow_indices"),
        ((x, words, crow_indices, values[:63], None), "64 more behind"),
        ((x, words, crow_indices, values[::2], None), "64 more behind"),
        ((x, words, crow_indices, values, torch.zeros(29)), "expected bias"),
        ((x, words, crow_indices, values, torch.zeros(30).double()), "expected bias"),
    ):
        with pytest.raises((RuntimeError, ValueError), match=said):
            kernel(*given)
    for begin, end in ((-1, 3), (3, 2), (0, 31)):
        with pytest.raises((RuntimeError, ValueError), match="range of rows"):
            implementations.rows(words, crow_indices, values, 70, begin, end)


@compiled
@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_and_indices_that_disagree_read_nothing_beyond_the_values(dtype: torch.dtype) -> None:
    """What comes out means nothing; under the sanitizers of `make sanitize` a read outside is an error."""
    packed = PackedWeight.of(weight_of((37, 300), 0.1, dtype))
    full = torch.full_like(packed.words, -1)
    bad = packed.crow_indices.clone()
    bad[::2], bad[1::2] = 2**31 - 1, -(2**31)
    for words, crow_indices in ((full, packed.crow_indices), (packed.words, bad), (full, bad)):
        for rows in (1, 4, 7, 16):
            y = implementations.forward(torch.ones(rows, 300, dtype=dtype), words, crow_indices, packed.values, None)
            assert y.shape == (rows, 37)
        assert implementations.rows(words, crow_indices, packed.values, 300, 0, 37).shape == (37, 300)
        with pytest.raises(ValueError, match="expected a packed weight"):
            packed._replace(words=words, crow_indices=crow_indices).check()


def test_the_reference_is_the_same() -> None:
    weight, x = weight_of((20, 130), 0.3, torch.float32), torch.randn(3, 130)
    with sk.use_backend("reference"):
        torch.testing.assert_close(
            PackedWeight.of(weight).linear(x, torch.ones(20)), F.linear(x, weight, torch.ones(20))
        )


def test_float64_is_the_references() -> None:
    weight, x = weight_of((20, 130), 0.3, torch.float64), torch.randn(3, 130, dtype=torch.float64)
    torch.testing.assert_close(PackedWeight.of(weight).linear(x, None), F.linear(x, weight), rtol=1e-12, atol=1e-12)


def test_bytes_are_a_bit_a_weight_and_the_nonzeros() -> None:
    for density, most in ((0.5, 0.58), (0.3, 0.38), (0.2, 0.28), (0.1, 0.18)):
        weight = weight_of((1024, 2048), density, torch.bfloat16)
        assert PackedWeight.of(weight).nbytes < most * weight.nbytes
