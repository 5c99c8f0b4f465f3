# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Weights in blocks: what the format holds, how it travels, and what it refuses."""

from __future__ import annotations

import copy
import io
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import sparsekernels as sk
from sparsekernels.checks import DTYPES

CASES = (
    ((1, 1), (1, 1)),
    ((8, 12), (4, 4)),
    ((8, 12), (4, 1)),
    ((7, 11), (3, 4)),
    ((3, 5), (16, 16)),
    ((6, 4, 3, 3), (2, 2)),
    ((7, 5, 3, 2), (4, 3)),
    ((4, 1, 5, 2), (3, 128)),
)
by_case = pytest.mark.parametrize(("shape", "block"), CASES, ids=str)
PARTS = ("crow_indices", "col_indices", "values")


def int32(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int32)


def small() -> sk.BlockSparse:
    """Blocks of 2x2 over [3, 5]: [[0, 0, 1, 2, 5], [0, 0, 3, 4, 6], [7, 8, 0, 0, 9]]."""
    return sk.BlockSparse((3, 5), (2, 2), int32(0, 2, 4), int32(1, 2, 0, 2), torch.arange(1.0, 10.0))


def by_hand(dense: Tensor, mask: Tensor, block: tuple[int, int]) -> tuple[list[int], list[int], list[float]]:
    """The three parts, block by block, as the layout is written down."""
    r, c = block
    flat, kept = dense.flatten(2) if dense.dim() == 4 else dense[..., None], mask.view(*mask.shape[:2], -1)
    crow, col, values = [0], [], []
    for row in range(0, dense.size(0), r):
        for column in range(0, dense.size(1), c):
            for tap in range(flat.size(2)):
                if kept[row : row + r, column : column + c, tap].any():
                    col.append(column // c * flat.size(2) + tap)
                    values += flat[row : row + r, column : column + c, tap].flatten().tolist()
        crow.append(len(col))
    return crow, col, values


def test_the_definition() -> None:
    weight = small()
    dense = torch.tensor([[0.0, 0, 1, 2, 5], [0, 0, 3, 4, 6], [7, 8, 0, 0, 9]])
    assert torch.equal(weight.to_dense(), dense)
    assert torch.equal(weight.mask, dense != 0)
    assert weight.flat_indices.tolist() == [2, 3, 7, 8, 4, 9, 10, 11, 14]
    assert (weight.format, weight.block_size, weight.options) == ("block", (2, 2), {"block": (2, 2)})
    assert (weight.nnz, weight.blocks, weight.is_conv, weight.is_ragged) == (9, 4, False, True)
    assert weight.density == pytest.approx(9 / 15)
    assert repr(weight) == (
        "BlockSparse(shape=(3, 5), block=2x2, blocks=4, nnz=9, density=0.6, dtype=torch.float32, device='cpu')"
    )


@by_case
@pytest.mark.parametrize("dtype", DTYPES)
def test_dense_and_back(shape: tuple[int, ...], block: tuple[int, int], dtype: torch.dtype) -> None:
    mask = torch.rand(shape) < 0.1
    for chosen in (mask, torch.ones_like(mask), torch.zeros_like(mask)):
        dense = torch.randn(shape).to(dtype)
        weight = sk.BlockSparse.from_dense(dense, chosen, block=block)
        weight.validate()
        crow, col, values = by_hand(dense, chosen, block)
        assert weight.crow_indices.tolist() == crow
        assert weight.col_indices.tolist() == col
        assert weight.values.tolist() == values
        assert (weight.mask | ~chosen).all()
        assert torch.equal(weight.to_dense(), torch.where(weight.mask, dense, 0))
        assert torch.equal(weight.values_of(dense), weight.values)
        if not weight.is_ragged:
            assert weight.values.view(-1, *block).shape[0] == weight.blocks


@given(
    st.tuples(*[st.integers(1, 9)] * 2, *[st.integers(1, 3)] * 2),
    st.tuples(st.integers(1, 10), st.integers(1, 10)),
    st.integers(0, 99),
)
def test_any_shape(shape: tuple[int, ...], block: tuple[int, int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    mask, dense = torch.rand(shape, generator=generator) < 0.1, torch.randn(shape, generator=generator)
    weight = sk.BlockSparse.from_dense(dense, mask, block=block)
    weight.validate()
    assert [getattr(weight, part).tolist() for part in PARTS] == list(by_hand(dense, mask, block))
    elements = weight.elements()
    elements.validate()
    assert torch.equal(elements.to_dense(), weight.to_dense())
    assert torch.equal(elements.mask, weight.mask)


def test_without_a_mask_blocks_with_nonzeros_are_stored() -> None:
    dense = torch.zeros(8, 8)
    dense[1, 2] = dense[7, 7] = 1
    weight = sk.BlockSparse.from_dense(dense, block=(4, 4))
    assert weight.col_indices.tolist() == [0, 1]
    assert torch.equal(weight.to_dense(), dense)
    assert weight.nnz == 32
    transposed = sk.BlockSparse.from_dense(dense.T, block=(4, 4))
    assert torch.equal(transposed.to_dense(), dense.T)


@by_case
@pytest.mark.parametrize("sparsity", [0, 0.3, 0.8, 1])
def test_by_norm(shape: tuple[int, ...], block: tuple[int, int], sparsity: float) -> None:
    dense = torch.randn(shape)
    weight = sk.BlockSparse.from_dense(dense, block=block, sparsity=sparsity)
    weight.validate()
    total = math.ceil(shape[0] / block[0]) * math.ceil(shape[1] / block[1]) * math.prod(shape[2:])
    assert weight.blocks == (0 if sparsity == 1 else max(1, round(total * (1 - sparsity))))
    norms = sk.BlockSparse.from_dense(dense, torch.ones(shape, dtype=torch.bool), block=block)
    sums = dict.fromkeys(zip(*places(norms), strict=True), 0.0)
    sizes = block_sizes(norms)
    for place, values in zip(sums, norms.values.split(sizes), strict=True):
        sums[place] = values.double().square().sum().item()
    kept = set(zip(*places(weight), strict=True))
    if kept and len(kept) < len(sums):
        assert min(sums[place] for place in kept) >= max(sums[place] for place in sums.keys() - kept)


def places(weight: sk.BlockSparse) -> tuple[list[int], list[int]]:
    rows = torch.repeat_interleave(torch.arange(len(weight.crow_indices) - 1), weight.crow_indices.diff())
    return rows.tolist(), weight.col_indices.tolist()


def block_sizes(weight: sk.BlockSparse) -> list[int]:
    (r, c), taps = weight.block_size, math.prod(weight.shape[2:])
    return [
        min(r, weight.shape[0] - row * r) * min(c, weight.shape[1] - col // taps * c)
        for row, col in zip(*places(weight), strict=True)
    ]


@by_case
def test_every_block(shape: tuple[int, ...], block: tuple[int, int]) -> None:
    weight = sk.BlockSparse.full(shape, torch.bfloat16, torch.device("cpu"), block=block)
    assert (weight.nnz, weight.dtype) == (math.prod(shape), torch.bfloat16)
    assert weight.mask.all()
    meta = sk.BlockSparse.full(shape, torch.float32, torch.device("meta"), block=block)
    assert (meta.nnz, meta.blocks, meta.device.type) == (weight.nnz, weight.blocks, "meta")
    meta.validate()


def test_gradients_go_through() -> None:
    weight = sk.BlockSparse.from_dense(torch.randn(5, 4).double(), torch.rand(5, 4) < 0.2, block=(2, 3))
    values = weight.values.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: weight.with_values(v).to_dense(), values)
    assert torch.autograd.gradcheck(lambda v: weight.with_values(v).elements().values, values)
    assert torch.autograd.gradgradcheck(lambda v: weight.with_values(v).elements().values ** 3, values)
    assert torch.autograd.gradcheck(weight.values_of, torch.randn(5, 4, dtype=torch.float64, requires_grad=True))
    dense = torch.randn(5, 4, requires_grad=True)
    assert not sk.BlockSparse.from_dense(dense, block=(2, 2), sparsity=0.5).values.requires_grad


def test_other_values_share_the_pattern() -> None:
    weight = small()
    other = weight.with_values(torch.ones(9, dtype=torch.bfloat16))
    assert (other.dtype, other.block_size) == (torch.bfloat16, (2, 2))
    assert other.col_indices is weight.col_indices
    assert other.flat_indices is weight.flat_indices
    assert other.by_elements()[0] is weight.by_elements()[0]
    assert other.elements().plans is weight.elements().plans
    assert weight.cached_transposed(1) == ()
    assert weight.transposed() is copy.deepcopy(other).transposed()
    assert weight.cached_transposed(1) == tuple(weight.elements().transposed())


def test_immutable() -> None:
    for name in ("values", "block_size"):
        with pytest.raises(AttributeError):
            setattr(small(), name, None)


def test_to() -> None:
    weight = small()
    assert weight.to(torch.float32) is weight
    assert weight.to("cpu") is weight
    half = weight.to(torch.float16)
    assert (half.dtype, half.block_size) == (torch.float16, (2, 2))
    assert half.flat_indices is weight.flat_indices
    there = weight.to("meta")
    assert there.crow_indices.is_meta
    assert there.block_size == (2, 2)
    assert there.flat_indices.is_meta


# Files


def same(a: sk.BlockSparse, b: sk.BlockSparse) -> bool:
    sizes = (a.shape, a.block_size) == (b.shape, b.block_size)
    return sizes and all(torch.equal(getattr(a, part), getattr(b, part)) for part in PARTS)


@by_case
@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_save(shape: tuple[int, ...], block: tuple[int, int], dtype: torch.dtype) -> None:
    weight = sk.BlockSparse.from_dense(torch.randn(shape).to(dtype), torch.rand(shape) < 0.2, block=block)
    file = io.BytesIO()
    torch.save(weight.to_tensors(), file)
    file.seek(0)
    assert same(sk.BlockSparse.from_tensors(torch.load(file, weights_only=True)), weight)


def test_safetensors(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    for shape, block in CASES:
        weight = sk.BlockSparse.from_dense(torch.randn(shape).bfloat16(), torch.rand(shape) < 0.2, block=block)
        safetensors.save_file(weight.to_tensors(), tmp_path / "weight.safetensors")
        assert same(sk.BlockSparse.from_tensors(safetensors.load_file(tmp_path / "weight.safetensors")), weight)


def test_pickle_and_deepcopy() -> None:
    weight = small()
    for other in (pickle.loads(pickle.dumps(weight)), copy.deepcopy(weight), copy.copy(weight)):
        assert same(other, weight)
    assert copy.deepcopy(weight).values is not weight.values


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": None}, "expected tensors with shape, block_size, .*, got no shape"),
        ({"block_size": None}, "expected tensors with shape, block_size, .*, got no block_size"),
        ({"block_size": torch.tensor([2, 2, 2])}, "expected block to be two int"),
        ({"block_size": torch.tensor([2.0, 2.0])}, "expected block_size of 1 dimension and torch.int64, got 1 and"),
        ({"block_size": torch.tensor([0, 2])}, "expected block of sizes from 1 to 128, got 0x2"),
        ({"block_size": torch.tensor([3, 3])}, "expected crow_indices of 2 elements.*, got 3"),
        ({"shape": torch.tensor([3, 3])}, "expected col_indices from 0 to 1, got 0 to 2"),
        ({"col_indices": torch.tensor([1, 2, 0, 2])}, "expected col_indices of dtype torch.int32"),
        ({"values": torch.ones(8)}, r"expected values of shape \[9\] .*, got \[8\]"),
    ],
)
def test_corrupt_files_are_refused(change: dict[str, Any], message: str) -> None:
    tensors = {name: tensor for name, tensor in {**small().to_tensors(), **change}.items() if tensor is not None}
    with pytest.raises(ValueError, match=message):
        sk.BlockSparse.from_tensors(tensors)


# What is refused


@pytest.mark.parametrize(
    ("parts", "error", "message"),
    [
        ({"shape": (3,)}, ValueError, r"expected weight of shape \[out, in\] .*, got \[3\]"),
        ({"shape": (0, 3)}, ValueError, "sizes of at least 1"),
        ({"shape": (1 << 16, 1 << 15)}, ValueError, "at most 2147483647 elements with its zeros .*, got 2147483648"),
        ({"block_size": (0, 2)}, ValueError, "BlockSparse: expected block of sizes from 1 to 128, got 0x2"),
        ({"block_size": (2, -1)}, ValueError, "BlockSparse: expected block of sizes from 1 to 128, got 2x-1"),
        ({"block_size": (129, 2)}, ValueError, "BlockSparse: expected block of sizes from 1 to 128, got 129x2"),
        ({"block_size": 2}, TypeError, r"BlockSparse: expected block to be two int, \(rows, columns\), got 2"),
        ({"block_size": (2, 2.0)}, TypeError, "BlockSparse: expected block to be two int"),
        ({"block_size": (True, 2)}, TypeError, "BlockSparse: expected block to be two int"),
        ({"block_size": (1, 2)}, ValueError, "expected crow_indices of 4 elements.*, got 3"),
        ({"block_size": (2, 3)}, ValueError, "expected col_indices from 0 to 1, got 0 to 2"),
        ({"crow_indices": int32(1, 2, 4)}, ValueError, "expected crow_indices from 0 to 4, .*, got 1 to 4"),
        ({"crow_indices": int32(0, 5, 4)}, ValueError, "crow_indices that never descend, got a step of -1"),
        ({"crow_indices": [0, 2, 4]}, TypeError, "expected crow_indices to be .*, got list"),
        ({"crow_indices": int32(0, 9, 2, 9, 4)[::2]}, ValueError, "crow_indices of one contiguous dimension, got"),
        ({"col_indices": int32(1, 2, 0, 3)}, ValueError, "expected col_indices from 0 to 2, got 0 to 3"),
        ({"col_indices": int32(-1, 2, 0, 2)}, ValueError, "expected col_indices from 0 to 2, got -1"),
        ({"col_indices": int32(2, 1, 0, 2)}, ValueError, "expected col_indices that ascend .*, got unsorted"),
        ({"col_indices": int32(1, 1, 0, 2)}, ValueError, "ascend strictly .*, got a column twice in a row"),
        ({"col_indices": torch.tensor([1, 2, 0, 2])}, TypeError, "expected col_indices of dtype .*, got torch.int64"),
        ({"col_indices": int32(1, 2, 0, 2).to("meta")}, ValueError, "expected col_indices on cpu .*, got meta"),
        ({"values": torch.ones(16)}, ValueError, r"expected values of shape \[9\] .*, got \[16\]"),
        ({"values": torch.ones(3, 3)}, ValueError, r"expected values of shape \[9\] .*, got \[3, 3\]"),
        ({"values": torch.full((9,), math.nan)}, ValueError, "NaN or infinite"),
        ({"values": torch.ones(9, dtype=torch.int32)}, TypeError, "expected values of dtype .*, got torch.int32"),
        ({"values": [1.0] * 9}, TypeError, "expected values to be .*, got list"),
    ],
)
def test_bad_parts_are_refused(parts: dict[str, Any], error: type[Exception], message: str) -> None:
    weight = small()
    given = {name: getattr(weight, name) for name in ("shape", "block_size", *PARTS)} | parts
    with pytest.raises(error, match=message):
        sk.BlockSparse(**given)


EYE = torch.eye(4)


@pytest.mark.parametrize(
    ("weight", "options", "error", "message"),
    [
        (EYE * 0, {}, ValueError, "expected weight with nonzeros, got none; pass a mask"),
        (EYE + EYE.flip(0), {}, ValueError, "expected weight with blocks of 2x2 without nonzeros, got none; prune it"),
        (EYE * math.nan, {}, ValueError, "NaN or infinite"),
        (EYE * math.nan, {"sparsity": 0.5}, ValueError, "expected weight of numbers, got NaN"),
        (EYE / 0, {"mask": EYE.bool()}, ValueError, "under mask, got NaN or infinite"),
        (torch.ones(3), {}, ValueError, r"expected weight of shape \[out, in\] .*, got \[3\]"),
        (torch.ones(3), {"sparsity": 0.5}, ValueError, r"expected weight of shape \[out, in\] .*, got \[3\]"),
        (EYE.int(), {}, TypeError, "expected weight of dtype .*, got torch.int32"),
        (EYE.int(), {"sparsity": 0.5}, TypeError, "expected weight of dtype .*, got torch.int32"),
        ([[0.0, 1.0]], {}, TypeError, "expected weight to be .*, got list"),
        ([[0.0, 1.0]], {"sparsity": 0.5}, TypeError, "expected weight to be .*, got list"),
        (EYE, {"mask": torch.eye(2).bool()}, ValueError, r"expected mask of shape \[4, 4\] .*, got \[2, 2\]"),
        (EYE, {"mask": EYE}, TypeError, "expected mask .*, got torch.float32"),
        (EYE, {"mask": EYE.bool().to("meta")}, ValueError, "expected mask on cpu .*, got meta"),
        (EYE, {"mask": EYE.bool(), "sparsity": 0.5}, ValueError, "expected mask or sparsity, got both"),
        (EYE, {"sparsity": 1.5}, ValueError, "expected sparsity from 0 to 1, got 1.5"),
        (EYE, {"sparsity": "0.5"}, TypeError, "expected sparsity to be a number, got str"),
        (EYE, {"block": (0, 1)}, ValueError, "from_dense: expected block of sizes from 1 to 128, got 0x1"),
        (EYE, {"block": "22"}, TypeError, "from_dense: expected block to be two int"),
        (EYE, {"block": None}, TypeError, "from_dense: expected block to be two int"),
    ],
)
def test_bad_dense_weights_are_refused(
    weight: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        sk.BlockSparse.from_dense(weight, **{"block": (2, 2), **options})


def test_other_bad_calls() -> None:
    weight = small()
    with pytest.raises(ValueError, match=r"with_values: expected values of shape \[9\] .*, got \[3\]"):
        weight.with_values(torch.ones(3))
    with pytest.raises(TypeError, match="with_values: expected values of dtype .*, got torch.int64"):
        weight.with_values(torch.arange(9))
    with pytest.raises(ValueError, match="with_values: expected values on cpu .*, got meta"):
        weight.with_values(torch.ones(9, device="meta"))
    with pytest.raises(ValueError, match=r"values_of: expected weight of shape \[3, 5\], got \[5, 3\]"):
        weight.values_of(torch.ones(5, 3))
    with pytest.raises(ValueError, match="expected groups to divide the 3 outputs, got 2"):
        weight.transposed(2)
    with pytest.raises(TypeError, match="of_mask: expected mask to be a tensor of dtype torch.bool, got torch.float32"):
        sk.BlockSparse.of_mask(torch.ones(2, 3), block=(2, 2))
    with pytest.raises(TypeError, match="of_mask: expected dtype torch.float32, .* or torch.float64, got torch.int32"):
        sk.BlockSparse.of_mask(torch.ones(2, 3, dtype=torch.bool), torch.int32, block=(2, 2))
    with pytest.raises(ValueError, match="full: expected block of sizes from 1 to 128, got 1x0"):
        sk.BlockSparse.full((2, 3), torch.float32, torch.device("cpu"), block=(1, 0))
    with pytest.raises(TypeError, match="block"):
        sk.Unstructured.of_mask(torch.ones(2, 3, dtype=torch.bool), block=(2, 2))
