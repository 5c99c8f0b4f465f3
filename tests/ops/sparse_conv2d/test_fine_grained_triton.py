# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Fine-grained weights in Triton: every case against the oracle, each route, and what is kept beside a pattern.

On a machine without a GPU in Triton's interpreter, where a case runs in one dtype: they take turns.
"""

from __future__ import annotations

import gc
import itertools
import math
from typing import Any

import pytest
import torch
from sparse_conv2d_cases import CASES, Case, channels_last, definition, inputs, ours, random
from torch import Tensor

pytest.importorskip("triton")

import sparsekernels as sk
from sparsekernels.dispatch import BackendError, Call
from sparsekernels.formats.transposed import Transposed
from sparsekernels.ops._triton_table import trying
from sparsekernels.ops.convolution import LINEAR, geometry_of
from sparsekernels.ops.precision import COMPUTED_IN_FLOAT32
from sparsekernels.ops.sparse_conv2d import bitmap as bitmap_module
from sparsekernels.ops.sparse_conv2d import expanded, expanded_products, expanded_routes, reference
from sparsekernels.ops.sparse_conv2d.bitmap import bitmap_of
from sparsekernels.ops.sparse_conv2d.implementations import SPARSE_CONV2D
from sparsekernels.testing import EPS_FACTOR, assert_verified, compare

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.skipif(
    "triton" not in SPARSE_CONV2D.backends(torch.empty(1, device=DEVICE)), reason="no device that Triton runs on"
)
FP32, BF16, FP16 = COMPUTED_IN_FLOAT32
TURNS = list(zip(CASES, itertools.cycle(COMPUTED_IN_FLOAT32)))


@pytest.fixture(params=[True, False], ids=["decoded", "expanded"])
def route(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether products decode their weight, whatever the number of rows."""
    monkeypatch.setattr(expanded, "is_decoded", lambda *_: request.param)
    return bool(request.param)


@pytest.mark.parametrize(("case", "dtype"), TURNS, ids=lambda value: getattr(value, "name", str(value)[6:]))
def test_every_case(case: Case, dtype: torch.dtype) -> None:
    weight, tensors = inputs(case, dtype, DEVICE)
    with sk.use_backend("triton"):
        assert_verified(ours(case, weight), definition(case, weight), tensors)


PRODUCTS = (
    Case("a column", (3, 1), (5, 1), mask=random(0.5)),
    Case("a word and one", (20, 65), (70, 65), mask=random(0.4)),
    Case("more rows than a tile", (140, 40), (33, 40), mask=random(0.4)),
    Case("parts of the columns", (5, 1030), (9, 1030), mask=random(0.1)),
    Case("images", (2, 33, 3, 5), (17, 33, 1, 1), mask=random(0.4), view=channels_last),
)


@pytest.mark.parametrize("case", PRODUCTS, ids=lambda case: case.name)
def test_products_by_either_route(case: Case, route: bool) -> None:
    for dtype in COMPUTED_IN_FLOAT32:
        weight, tensors = inputs(case, dtype, DEVICE)
        with sk.use_backend("triton"):
            assert_verified(ours(case, weight), definition(case, weight), tensors)


EPILOGUES = (
    PRODUCTS[1],
    PRODUCTS[3],
    PRODUCTS[4],
    Case("3x3", (2, 6, 5, 5), (7, 6, 3, 3), padding=1, mask=random(0.4)),
    Case("3x3, channels last", (2, 6, 5, 5), (7, 6, 3, 3), padding=1, mask=random(0.4), view=channels_last),
)


@pytest.mark.parametrize("case", EPILOGUES, ids=lambda case: case.name)
def test_epilogue(case: Case, route: bool) -> None:
    """A residual, of any strides, and limits, against the reference in float64."""
    weight, tensors = inputs(case, BF16, DEVICE)
    input, values, bias = (tensor.detach() for tensor in tensors)
    images = case.images(input)
    pattern = weight.crow_indices, weight.col_indices, list(case.geometry)
    plain = expanded.forward(images, values, bias, *pattern)
    residual = torch.randn_like(plain)
    apart = torch.cat([residual, residual], dim=1)[:, : residual.size(1)]
    for other, low, high in ((residual, 0.0, None), (apart, -0.25, 0.5), (None, None, 0.0), (apart, None, None)):
        y = expanded.forward(images, values, bias, *pattern, other, low, high)
        wide = [None if t is None else t.double() for t in (images, values, bias, other)]
        truth = reference.forward(*wide[:3], *pattern, wide[3], low, high)
        sums = reference.forward(*wide[:3], *pattern, wide[3])
        error = reference.forward(images, values, bias, *pattern, other).double() - sums
        comparison = compare("output", y, truth, truth + error)
        assert comparison.passed, (comparison, other is None, low, high)
        assert y.stride() == plain.stride()


@pytest.fixture
def as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch multiplies short dtypes as such, and there is a CUDA kernel, which cannot be called here."""
    for module in (expanded, expanded_products):
        monkeypatch.setattr(module, "product_dtype", lambda like: like.dtype)
    monkeypatch.setattr(expanded, "has_compiled_linear", lambda _: True)
    monkeypatch.setattr(expanded, "goes_by_nonzeros", lambda *_: True)


@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
@pytest.mark.parametrize("case", EPILOGUES, ids=lambda case: case.name)
def test_a_residual_that_cancels(case: Case, dtype: torch.dtype, route: bool, as_on_cuda: None) -> None:
    """What is left is what a rounded sum has lost."""
    weight, tensors = inputs(case, dtype, DEVICE)
    input, values, bias = (tensor.detach() for tensor in tensors)
    images = case.images(input)
    pattern = weight.crow_indices, weight.col_indices, list(case.geometry)
    residual = -reference.forward(images, values, bias, *pattern)
    wide = [None if t is None else t.double() for t in (images, values, bias, residual)]
    for low, high in ((None, None), (-0.001, None)):
        y = expanded.forward(images, values, bias, *pattern, residual, low, high)
        truth = reference.forward(*wide[:3], *pattern, wide[3], low, high)
        comparison = compare("output", y, truth, reference.forward(images, values, bias, *pattern, residual, low, high))
        # of the sums that cancel, of whose size float32's errors are, whatever is left
        sums = EPS_FACTOR * torch.finfo(torch.float32).eps * residual.abs().max().item()
        assert comparison.error <= comparison.allowed + sums, comparison


def test_limits_of_short_dtypes(as_on_cuda: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a rounded sum are those of the sum, representable or not."""
    monkeypatch.setattr(expanded, "is_decoded", lambda *_: False)
    weight, tensors = inputs(PRODUCTS[2], BF16, DEVICE)
    images = PRODUCTS[2].images(tensors[0].detach())
    pattern = weight.crow_indices, weight.col_indices, LINEAR
    y = expanded.forward(images, weight.values, None, *pattern)
    limited = expanded.forward(images, weight.values, None, *pattern, None, -0.123456, 0.654321)
    assert torch.equal(limited, y.float().clamp(-0.123456, 0.654321).to(BF16))


def test_limits_keep_nan(route: bool) -> None:
    weight = sk.Unstructured.from_dense(torch.randn(8, 5, device=DEVICE), torch.ones(8, 5, device=DEVICE) > 0)
    x = torch.ones(3, 5, 1, 1, device=DEVICE)
    x[1] = math.nan
    y = expanded.forward(x, weight.values, None, weight.crow_indices, weight.col_indices, LINEAR, None, 0.0, 1.0)
    assert y.isnan().flatten(1).all(1).tolist() == [False, True, False]
    assert y[0].max() <= 1
    assert y[0].min() >= 0


def test_no_value_but_those_of_the_pattern_is_read(route: bool) -> None:
    """Beyond the values lies NaN, as beyond the rows of the input."""
    mask = torch.rand(70, 130) < 0.3
    weight = sk.Unstructured.from_dense(torch.randn(70, 130), mask).to(DEVICE)
    around = torch.full((weight.nnz + 2,), math.nan, device=DEVICE)
    around[1:-1] = weight.values
    rows = torch.full((7, 140), math.nan, device=DEVICE)
    rows[1:6, :130] = 1.0
    with sk.use_backend("triton"):
        y = sk.sparse_linear(rows[1:6, :130], weight.with_values(around[1:-1]))
        z = sk.sparse_linear(torch.ones(5, 130, device=DEVICE), weight)
    assert torch.equal(y, z)
    assert y.isfinite().all()


def test_second_derivatives() -> None:
    """The backward is made of the same three functions: compared with those of the reference."""
    case = Case("", (2, 6, 5, 5), (8, 3, 3, 3), padding=1, groups=2, stride=2, mask=random(0.4))
    weight, tensors = inputs(case, FP32, DEVICE)

    def second(x: Tensor, v: Tensor, b: Tensor) -> list[Tensor]:
        y = ours(case, weight)(x, v, b)
        first = torch.autograd.grad((y**3).sum(), (x, v), create_graph=True)
        return list(torch.autograd.grad(sum((one**2).sum() for one in first), (x, v)))

    with sk.use_backend("triton"):
        found = second(*tensors)
    with sk.use_backend("reference"):
        expected = second(*tensors)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-2)


def test_same_input_same_bits() -> None:
    weight, tensors = inputs(PRODUCTS[3], BF16, DEVICE)
    with sk.use_backend("triton"):
        first, second = (ours(PRODUCTS[3], weight)(*tensors) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("shape", [(6, 130), (6, 4, 3, 3)], ids=["linear", "3x3"])
def test_compiled_code(shape: tuple[int, ...]) -> None:
    """As one graph, under a backend asked for by name: its operators are opaque, and have gradients."""
    weight = sk.Unstructured.from_dense(torch.randn(shape), torch.rand(shape) < 0.4).to(DEVICE)
    x = torch.randn(3, *shape[1:2], *(7, 7)[: len(shape) - 2], device=DEVICE, requires_grad=True)
    values = weight.values.clone().requires_grad_()

    def call(x: Tensor, v: Tensor) -> Tensor:
        pattern = weight.with_values(v)
        return sk.sparse_linear(x, pattern) if len(shape) == 2 else sk.sparse_conv2d(x, pattern, padding=1)

    compiled = torch.compile(call, backend="aot_eager", fullgraph=True, dynamic=False)
    with sk.use_backend("triton"):
        y, z = call(x, values), compiled(x, values)
        assert torch.equal(y, z)
        for one, other in zip(*(torch.autograd.grad(out.sum(), (x, values)) for out in (y, z)), strict=True):
            assert torch.equal(one, other)
        torch.library.opcheck(
            torch.ops.sparsekernels.triton_sparse_conv2d,
            (
                x.detach() if len(shape) == 4 else x.detach()[:, :, None, None],
                weight.values,
                None,
                weight.crow_indices,
                weight.col_indices,
                list(geometry_of(weight.shape, 1, 1, 1, 1) if len(shape) == 4 else LINEAR),
            ),
        )


def test_what_it_does_not_run() -> None:
    row = next(row for row in SPARSE_CONV2D.implementations if row.name == "triton")
    device = torch.device(DEVICE)
    assert "float64" in str(row.supports(Call(device, torch.float64, "unstructured")))
    assert "single elements" in str(row.supports(Call(device, FP32, "block", (4, 4))))
    weight, (x, values, bias) = inputs(PRODUCTS[1], torch.float64, DEVICE)
    with sk.use_backend("triton"), pytest.raises(BackendError, match="float64"):
        ours(PRODUCTS[1], weight)(x, values, bias)


# The bitmap


def stored(weight: sk.Unstructured) -> tuple[Tensor, Tensor]:
    """The bits and starts of a pattern, one for each element and word."""
    columns = math.prod(weight.shape[1:])
    found = bitmap_of(weight.crow_indices, weight.col_indices, columns)
    assert found is not None
    bits = (found.words[:, :, None] >> torch.arange(64, device=DEVICE)) & 1
    return bits.flatten(1)[:, :columns].bool(), found.starts


@pytest.mark.parametrize("shape", [(1, 1), (5, 64), (5, 65), (7, 128), (3, 129), (4, 3, 5, 5)], ids=str)
@pytest.mark.parametrize("at_once", [1, 300, 1 << 24])
def test_bitmap(shape: tuple[int, ...], at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bitmap_module, "_MOST_AT_ONCE", at_once)
    for density in (0.0, 0.3, 1.0):
        mask = torch.rand(shape, device=DEVICE) < density
        bits, starts = stored(sk.Unstructured.of_mask(mask))
        rows = mask.flatten(1)
        assert torch.equal(bits, rows)
        before = rows.flatten().cumsum(0) - rows.flatten().int()
        used = -(-rows.size(1) // 64)
        assert torch.equal(starts[:, :used].long(), before.view(rows.shape)[:, ::64])


def test_a_bitmap_is_kept_as_long_as_the_indices(monkeypatch: pytest.MonkeyPatch) -> None:
    gc.collect()
    kept, made = len(bitmap_module._kept._of), 0
    original = bitmap_module._made

    def counted(*arguments: Any) -> Any:
        nonlocal made
        made += 1
        return original(*arguments)

    monkeypatch.setattr(bitmap_module, "_made", counted)
    weight = sk.Unstructured.from_dense(torch.randn(9, 70), torch.rand(9, 70) < 0.3).to(DEVICE)
    x = torch.randn(4, 70, device=DEVICE)
    with sk.use_backend("triton"):
        for values in (weight.values, weight.values * 2, weight.values + 1):
            sk.sparse_linear(x, weight.with_values(values))
    assert made == 1
    assert len(bitmap_module._kept._of) == kept + 1
    v = weight.values.clone().requires_grad_()
    with sk.use_backend("triton"):
        for _ in range(3):
            sk.sparse_linear(x.requires_grad_(), weight.with_values(v)).sum().backward()
    assert made == 2  # and that of the transposed pattern
    del weight, values
    gc.collect()
    assert len(bitmap_module._kept._of) == kept


def test_indices_that_were_written_to_have_another_bitmap() -> None:
    weight = sk.Unstructured.of_mask(torch.tensor([[True, False, False]], device=DEVICE))
    assert stored(weight)[0].tolist() == [[True, False, False]]
    weight.col_indices.add_(1)
    assert stored(weight)[0].tolist() == [[False, True, False]]
    weight.col_indices.add_(5)
    with pytest.raises(ValueError, match="col_indices from 0 to 2"):
        stored(weight)


def test_indices_that_make_no_sense_are_refused() -> None:
    """Before a kernel reads them: an exception, and no read of what is not there."""
    weight = sk.Unstructured.from_dense(torch.randn(6, 8), torch.rand(6, 8) < 0.5).to(DEVICE)
    crow, col, values = weight.crow_indices, weight.col_indices, weight.values
    x, g = torch.randn(3, 8, 1, 1, device=DEVICE), torch.randn(3, 6, 1, 1, device=DEVICE)
    far = col.clone()
    far[-1] = 1000
    with pytest.raises(ValueError, match="col_indices from 0 to 7"):
        expanded.forward(x, values, None, crow, far, LINEAR)
    with pytest.raises(ValueError, match="crow_indices"):
        expanded.weight_gradient(g, x, crow + 1, col, LINEAR)
    by_input: Transposed = weight.transposed(1)
    wrong = by_input.permutation.clone()
    wrong[0] = weight.nnz
    with pytest.raises(ValueError, match="permutation"):
        expanded.input_gradient(g, values, *by_input[:2], wrong, LINEAR, 1, 1, False)


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks as if a CUDA graph were captured."""
    monkeypatch.setattr(bitmap_module, "is_captured", lambda tensor: True)


@pytest.mark.parametrize("case", [PRODUCTS[1], PRODUCTS[4], EPILOGUES[3], EPILOGUES[4]], ids=lambda case: case.name)
def test_a_captured_call_makes_no_table(case: Case, captured: None) -> None:
    """It goes by torch's own steps, which wait for nothing, where the pattern has no bitmap."""
    weight, tensors = inputs(case, FP32, DEVICE)
    assert bitmap_of(weight.crow_indices, weight.col_indices, math.prod(case.weight[1:])) is None
    with sk.use_backend("triton"):
        assert_verified(ours(case, weight), definition(case, weight), tensors)


def test_a_captured_call_uses_the_table_that_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, _ = inputs(PRODUCTS[1], FP32, DEVICE)
    before = bitmap_of(weight.crow_indices, weight.col_indices, 65)
    monkeypatch.setattr(bitmap_module, "is_captured", lambda tensor: True)
    assert bitmap_of(weight.crow_indices, weight.col_indices, 65) is before


# Routes


def test_the_table_is_that_of_the_model() -> None:
    """Until rows of a device are in it."""
    assert dict(expanded_routes.MOST_DECODED) == expanded_routes.table_of_model()


@pytest.mark.parametrize("major", expanded_routes.DEVICES)
@pytest.mark.parametrize("itemsize", [2, 4])
def test_no_route_is_slower_than_the_other_by_the_model(major: int, itemsize: int) -> None:
    device, elements = expanded_routes.DEVICES[major], 4096 * 4096
    rows = expanded_routes.MOST_DECODED[major, itemsize]
    assert len(rows) == len(expanded_routes.DENSITIES)
    for density, most in zip(expanded_routes.DENSITIES, rows, strict=True):
        for count in (1, 16, most):
            decoded = expanded_routes.decoded_seconds(device, count, elements, density, itemsize)
            assert decoded <= expanded_routes.expanded_seconds(device, count, elements, density, itemsize)


def test_routes_by_density(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expanded_routes, "MOST_DECODED", {(9, 2): (10, 20, 30, 40, 50, 60), (9, 4): (1,) * 6})
    monkeypatch.setattr(expanded_routes, "_major", lambda: 9)
    for nnz, most in ((0, 10), (5, 10), (6, 20), (10, 20), (11, 30), (50, 50), (51, 60), (100, 60)):
        assert expanded_routes.is_decoded(most, 10, 10, nnz, BF16)
        assert not expanded_routes.is_decoded(most + 1, 10, 10, nnz, BF16)
    assert not expanded_routes.is_decoded(2, 10, 10, 50, FP32)
    with trying("sparse_conv2d.decoded", "0.5,float32", {"rows": 7}):  # as a device may have measured
        assert expanded_routes.is_decoded(7, 10, 10, 50, FP32)
        assert not expanded_routes.is_decoded(8, 10, 10, 50, FP32)


def test_routes_are_those_of_the_current_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two, of which the first is an A100 and the second a B200."""
    current = [0]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[0])
    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda device=None: ((8, 0), (10, 0))[device or current[0]]
    )
    expanded_routes._major_of.cache_clear()
    try:
        assert expanded_routes._major() == 8
        current[0] = 1
        assert expanded_routes._major() == 10
    finally:
        expanded_routes._major_of.cache_clear()


@pytest.mark.parametrize("words", [1, 2, 7, 8, 16, 33, 64, 129])
def test_tiles_cover_all_columns(words: int) -> None:
    for rows, outputs, dtype in itertools.product((1, 16, 17, 100, 1000), (1, 64, 4096), (BF16, FP32)):
        tiling = expanded_routes.product_tiling(expanded_routes.covering(rows), outputs, words, dtype, 132)
        of_part = -(-words // tiling.parts)
        assert (tiling.parts - 1) * of_part < words <= tiling.parts * of_part
        assert tiling.parts == 1 or of_part >= 4
        assert 16 <= tiling.rows <= expanded_routes.TILE_ROWS[dtype.itemsize]


def test_the_cuda_kernel_is_for_few_rows_of_few_nonzeros() -> None:
    for rows, most in ((1, 55), (2, 45), (3, 36), (8, 26), (9, 11), (16, 11)):
        assert expanded_routes.goes_by_nonzeros(rows, 10, 10, most)
        assert not expanded_routes.goes_by_nonzeros(rows, 10, 10, most + 1)
    assert not expanded_routes.goes_by_nonzeros(17, 10, 10, 0)
    assert max(expanded_routes.MOST_BY_NONZEROS) == 16  # what the kernel takes
