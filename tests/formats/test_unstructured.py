# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The weight format: what it holds, how it travels, and what it refuses."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sparsekernels as sk
from sparsekernels.checks import DTYPES

SHAPES = ((1, 1), (3, 5), (17, 130), (1, 1, 1, 1), (6, 4, 3, 3), (16, 1, 5, 2), (8, 3, 1, 7), (8, 3, 7), (1, 1, 1))
by_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def pruned(shape: tuple[int, ...], density: float = 0.3, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (torch.randn(shape) * (torch.rand(shape) < density)).to(dtype)


def small() -> sk.Unstructured:
    """[[0, 1, 2], [0, 0, 0], [3, 0, 4]]"""
    crow, col = torch.tensor([0, 2, 2, 4], dtype=torch.int32), torch.tensor([1, 2, 0, 2], dtype=torch.int32)
    return sk.Unstructured((3, 3), crow, col, torch.tensor([1.0, 2.0, 3.0, 4.0]))


def test_the_definition() -> None:
    weight = small()
    dense = torch.tensor([[0.0, 1.0, 2.0], [0.0, 0.0, 0.0], [3.0, 0.0, 4.0]])
    assert torch.equal(weight.to_dense(), dense)
    assert torch.equal(weight.mask, dense != 0)
    assert weight.flat_indices.tolist() == [1, 2, 6, 8]
    assert (weight.nnz, weight.shape, weight.is_conv, weight.dtype) == (4, (3, 3), False, torch.float32)
    assert weight.density == pytest.approx(4 / 9)
    assert weight.sparsity == pytest.approx(5 / 9)
    assert repr(weight) == "Unstructured(shape=(3, 3), nnz=4, density=0.4444, dtype=torch.float32, device='cpu')"


@by_shape
@pytest.mark.parametrize("dtype", DTYPES)
def test_dense_and_back(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    mask = torch.rand(shape) < 0.4
    for chosen in (mask, torch.ones_like(mask), torch.zeros_like(mask)):
        dense = torch.randn(shape).to(dtype)
        weight = sk.Unstructured.from_dense(dense, chosen)
        weight.validate()
        assert torch.equal(weight.to_dense(), torch.where(chosen, dense, 0))
        assert torch.equal(weight.mask, chosen)
        assert weight.nnz == chosen.sum()
        assert weight.is_conv == (len(shape) > 2)
        rows = dense.flatten(1)
        assert torch.equal(weight.crow_indices, torch.cat([torch.zeros(1), chosen.flatten(1).sum(1).cumsum(0)]).int())
        row = torch.repeat_interleave(torch.arange(shape[0]), weight.crow_indices.diff())
        assert torch.equal(rows[row, weight.col_indices.long()], weight.values)


def test_without_a_mask_the_nonzeros_are_stored() -> None:
    dense = pruned((6, 4, 3, 3))
    weight = sk.Unstructured.from_dense(dense)
    assert torch.equal(weight.to_dense(), dense)
    assert weight.nnz == dense.count_nonzero()
    strided = sk.Unstructured.from_dense(dense.transpose(2, 3))
    assert torch.equal(strided.to_dense(), dense.transpose(2, 3))


def test_stored_zeros_stay() -> None:
    dense, mask = torch.zeros(3, 4), torch.zeros(3, 4, dtype=torch.bool)
    mask[1, 2] = True
    weight = sk.Unstructured.from_dense(dense, mask)
    assert weight.nnz == 1
    assert weight.flat_indices.tolist() == [6]


def test_gradients_go_through() -> None:
    weight = sk.Unstructured.from_dense(pruned((5, 4)).double())
    values = weight.values.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: weight.with_values(v).to_dense(), values)
    assert torch.autograd.gradcheck(weight.values_of, torch.randn(5, 4, dtype=torch.float64, requires_grad=True))
    assert not sk.Unstructured.from_dense(pruned((5, 4)).requires_grad_()).values.requires_grad


def test_other_values_share_the_pattern() -> None:
    weight = small()
    other = weight.with_values(torch.ones(4, dtype=torch.bfloat16))
    assert other.dtype == torch.bfloat16
    assert other.col_indices is weight.col_indices
    assert other.flat_indices is weight.flat_indices
    assert weight.transposed(1) is other.transposed(1)
    assert copy.deepcopy(weight).transposed(1) is weight.transposed(1)


def test_immutable() -> None:
    with pytest.raises(AttributeError):
        small().values = torch.zeros(4)


def check_transposed(shape: tuple[int, ...], groups: int, density: float) -> None:
    weight = sk.Unstructured.from_dense(torch.randn(shape), torch.rand(shape) < density)
    crow, col, permutation = weight.transposed(groups)
    assert crow.dtype == col.dtype == permutation.dtype == torch.int32

    def by_input(dense: torch.Tensor) -> torch.Tensor:
        grouped = dense.reshape(groups, shape[0] // groups, shape[1], -1)
        return grouped.transpose(1, 2).reshape(groups * shape[1], -1)

    stored = by_input(weight.mask)
    expected = stored.nonzero()
    assert torch.equal(torch.repeat_interleave(torch.arange(len(crow) - 1), crow.diff()), expected[:, 0])
    assert torch.equal(col.long(), expected[:, 1])
    assert torch.equal(weight.values[permutation.long()], by_input(weight.to_dense())[stored])


@pytest.mark.parametrize(
    ("shape", "groups"), [((3, 5), 1), ((6, 4, 3, 3), 1), ((6, 4, 3, 2), 3), ((8, 1, 1, 5), 8), ((6, 4, 3), 2)]
)
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_transposed(shape: tuple[int, ...], groups: int, density: float) -> None:
    check_transposed(shape, groups, density)


@given(st.tuples(*[st.integers(1, 9)] * 2, *[st.integers(1, 3)] * 2), st.integers(1, 3), st.integers(0, 99))
def test_transposed_of_any_shape(shape: tuple[int, int, int, int], groups: int, seed: int) -> None:
    torch.manual_seed(seed)
    check_transposed((shape[0] * groups, *shape[1:]), groups, 0.3)


def test_to() -> None:
    weight = small()
    assert weight.to(torch.float32) is weight
    assert weight.to("cpu") is weight
    half = weight.to(torch.float16)
    assert half.dtype == torch.float16
    assert half.flat_indices is weight.flat_indices
    assert weight.to("cpu", torch.float64).dtype == torch.float64
    there = weight.to("meta")
    assert there.crow_indices.is_meta
    assert there.device.type == "meta"


# Files


def same(a: sk.Unstructured, b: sk.Unstructured) -> bool:
    parts = ("crow_indices", "col_indices", "values")
    return a.shape == b.shape and all(torch.equal(getattr(a, part), getattr(b, part)) for part in parts)


@by_shape
@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_save(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    weight = sk.Unstructured.from_dense(torch.randn(shape).to(dtype), torch.rand(shape) < 0.5)
    file = io.BytesIO()
    torch.save(weight.to_tensors(), file)
    file.seek(0)
    assert same(sk.Unstructured.from_tensors(torch.load(file, weights_only=True)), weight)


def test_safetensors(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    for shape in SHAPES:
        weight = sk.Unstructured.from_dense(torch.randn(shape).bfloat16(), torch.rand(shape) < 0.5)
        safetensors.save_file(weight.to_tensors(), tmp_path / "weight.safetensors")
        assert same(sk.Unstructured.from_tensors(safetensors.load_file(tmp_path / "weight.safetensors")), weight)


def test_pickle_and_deepcopy() -> None:
    weight = sk.Unstructured.from_dense(pruned((6, 4, 3, 3)))
    for other in (pickle.loads(pickle.dumps(weight)), copy.deepcopy(weight), copy.copy(weight)):
        assert same(other, weight)
    assert copy.deepcopy(weight).values is not weight.values


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": None}, "expected tensors with shape, .*, got no shape"),
        ({"values": None, "col_indices": None}, "got no col_indices, values"),
        ({"shape": torch.tensor([3.0, 3.0])}, "expected shape of 1 dimension and torch.int64, got 1 and torch.float32"),
        ({"shape": torch.tensor([3, 2])}, "expected col_indices from 0 to 1, got 0 to 2"),
        ({"shape": torch.tensor([3, -3])}, "sizes of at least 1"),
        ({"shape": torch.tensor([3] * 5)}, r"expected weight of shape .*, got \[3, 3, 3, 3, 3\]"),
        ({"shape": torch.tensor([2, 3])}, "expected crow_indices of 3 elements.*, got 4"),
        ({"crow_indices": torch.tensor([0, 2, 2, 4])}, "expected crow_indices of dtype .*, got torch.int64"),
        ({"values": torch.arange(4)}, "expected values of dtype .*, got torch.int64"),
        ({"values": torch.ones(5)}, r"expected values of shape \[4\] .*, got \[5\]"),
        (
            {"col_indices": torch.tensor([1, 2, 0, 3], dtype=torch.int32)},
            "expected col_indices from 0 to 2, got 0 to 3",
        ),
    ],
)
def test_corrupt_files_are_refused(change: dict[str, Any], message: str) -> None:
    tensors = {name: tensor for name, tensor in {**small().to_tensors(), **change}.items() if tensor is not None}
    with pytest.raises(ValueError, match=message):
        sk.Unstructured.from_tensors(tensors)


# What is refused


def int32(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.int32)


@pytest.mark.parametrize(
    ("parts", "error", "message"),
    [
        ({"shape": (3,)}, ValueError, r"expected weight of shape \[out, in\] .*, got \[3\]"),
        ({"shape": (0, 3)}, ValueError, "sizes of at least 1"),
        ({"shape": (1 << 16, 1 << 15)}, ValueError, "at most 2147483647 elements with its zeros .*, got 2147483648"),
        ({"crow_indices": int32(1, 2, 2, 4)}, ValueError, "expected crow_indices from 0 to 4, .*, got 1 to 4"),
        ({"crow_indices": int32(0, 2, 2, 3)}, ValueError, "expected crow_indices from 0 to 4, .*, got 0 to 3"),
        ({"crow_indices": int32(0, 5, 2, 4)}, ValueError, "crow_indices that never descend, got a step of -3"),
        ({"crow_indices": int32(0, -1, 2, 4)}, ValueError, "crow_indices that never descend, got a step of -1"),
        ({"crow_indices": int32(0, 4)}, ValueError, "expected crow_indices of 4 elements.*, got 2"),
        ({"crow_indices": int32(0, 2, 2, 4).view(2, 2)}, ValueError, "crow_indices of one contiguous dimension, got"),
        ({"crow_indices": [0, 2, 2, 4]}, TypeError, "expected crow_indices to be .*, got list"),
        ({"col_indices": int32(1, 2, 0, 3)}, ValueError, "expected col_indices from 0 to 2, got 0 to 3"),
        ({"col_indices": int32(-1, 2, 0, 2)}, ValueError, "expected col_indices from 0 to 2, got -1"),
        ({"col_indices": int32(2, 1, 0, 2)}, ValueError, "expected col_indices that ascend .*, got unsorted"),
        (
            {"col_indices": int32(1, 1, 0, 2)},
            ValueError,
            "expected col_indices that ascend .*, got a column twice in a row",
        ),
        ({"col_indices": int32(1, 2, 0)}, ValueError, r"expected values of shape \[3\] .*, got \[4\]"),
        ({"col_indices": torch.tensor([1, 2, 0, 2])}, TypeError, "expected col_indices of dtype .*, got torch.int64"),
        ({"col_indices": int32(1, 2, 0, 2).to("meta")}, ValueError, "expected col_indices on cpu .*, got meta"),
        (
            {"col_indices": int32(1, 0, 2, 0, 0, 0, 2, 0)[::2]},
            ValueError,
            "col_indices of one contiguous dimension, got",
        ),
        ({"values": torch.ones(2, 2)}, ValueError, r"expected values of shape \[4\] .*, got \[2, 2\]"),
        ({"values": torch.tensor([1.0, float("nan"), 1.0, 1.0])}, ValueError, "NaN or infinite"),
        ({"values": torch.tensor([1.0, float("inf"), 1.0, 1.0])}, ValueError, "NaN or infinite"),
        ({"values": torch.ones(4, dtype=torch.int32)}, TypeError, "expected values of dtype .*, got torch.int32"),
        (
            {"values": torch.ones(4, dtype=torch.complex64)},
            TypeError,
            "expected values of dtype .*, got torch.complex64",
        ),
        ({"values": [1.0] * 4}, TypeError, "expected values to be .*, got list"),
    ],
)
def test_bad_parts_are_refused(parts: dict[str, Any], error: type[Exception], message: str) -> None:
    weight = small()
    given = {name: getattr(weight, name) for name in ("shape", "crow_indices", "col_indices", "values")} | parts
    with pytest.raises(error, match=message):
        sk.Unstructured(**given)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.zeros(3, 3),), ValueError, "expected weight with nonzeros, got none; pass a mask"),
        ((torch.ones(3, 3),), ValueError, "expected weight with zeros, got none.*prune it first.*or pass a mask"),
        ((torch.tensor([[0.0, float("nan")]]),), ValueError, "NaN or infinite"),
        ((torch.tensor([[0.0, float("inf")]]),), ValueError, "NaN or infinite"),
        ((torch.tensor([[0.0, float("inf")]]), torch.tensor([[True, True]])), ValueError, "mask, got NaN or infinite"),
        ((torch.ones(3),), ValueError, r"expected weight of shape \[out, in\] .*, got \[3\]"),
        ((torch.ones(2, 2, 2, 2, 2),), ValueError, r"expected weight of shape .*, got \[2, 2, 2, 2, 2\]"),
        ((torch.ones(3, 0),), ValueError, "sizes of at least 1"),
        ((torch.ones(3, 3).int(),), TypeError, "expected weight of dtype .*, got torch.int32"),
        ((torch.eye(3).to_sparse(),), TypeError, "expected weight of layout .*, got torch.sparse_coo"),
        (([[0.0, 1.0]],), TypeError, "expected weight to be .*, got list"),
        ((torch.eye(3), torch.eye(2).bool()), ValueError, r"expected mask of shape \[3, 3\] .*, got \[2, 2\]"),
        ((torch.eye(3), torch.eye(3)), TypeError, "expected mask .*, got torch.float32"),
        ((torch.eye(3), [[True]]), TypeError, "expected mask .*, got list"),
        ((torch.eye(3), torch.eye(3).bool().to("meta")), ValueError, "expected mask on cpu .*, got meta"),
        ((torch.ones(1).expand(1 << 16, 1 << 15),), ValueError, "indices are of 32 bits"),
    ],
)
def test_bad_dense_weights_are_refused(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        sk.Unstructured.from_dense(*arguments)


def test_other_bad_calls() -> None:
    weight = small()
    with pytest.raises(ValueError, match=r"with_values: expected values of shape \[4\] .*, got \[3\]"):
        weight.with_values(torch.ones(3))
    with pytest.raises(TypeError, match="with_values: expected values of dtype .*, got torch.int64"):
        weight.with_values(torch.arange(4))
    with pytest.raises(ValueError, match="with_values: expected values on cpu .*, got meta"):
        weight.with_values(torch.ones(4, device="meta"))
    with pytest.raises(ValueError, match=r"values_of: expected weight of shape \[3, 3\], got \[2, 3\]"):
        weight.values_of(torch.ones(2, 3))
    for groups in (0, 2, -1):
        with pytest.raises(ValueError, match=f"expected groups to divide the 3 outputs, got {groups}"):
            weight.transposed(groups)


@pytest.mark.parametrize("mask", [torch.ones(2, 3), torch.full((2, 3), 2), [[True]], None], ids=str)
def test_a_pattern_is_of_a_bool_mask(mask: Any) -> None:
    with pytest.raises(TypeError, match="of_mask: expected mask to be a tensor of dtype torch.bool, got "):
        sk.Unstructured.of_mask(mask)


@pytest.mark.parametrize("dtype", [torch.int32, torch.complex64, torch.bool, "float32"], ids=str)
def test_a_pattern_is_of_a_floating_dtype(dtype: Any) -> None:
    with pytest.raises(TypeError, match="of_mask: expected dtype torch.float32, .* or torch.float64, got "):
        sk.Unstructured.of_mask(torch.ones(2, 3, dtype=torch.bool), dtype)
    with pytest.raises(TypeError, match="full: expected dtype torch.float32, .* or torch.float64, got "):
        sk.Unstructured.full((2, 3), dtype, torch.device("cpu"))
