# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels for weights in blocks: every pass by the oracle, on a GPU or in Triton's interpreter."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

import sparsekernels as sk
from sparsekernels.ops.convolution import Geometry, geometry_of
from sparsekernels.ops.sparse_conv2d import block_pattern, block_reference, block_triton, blocks, reference
from sparsekernels.testing import assert_verified, poisoned

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # where kernels are interpreted
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


@dataclass(frozen=True)
class Case:
    """input: its shape. weight: the shape of the dense weight. density: of the mask that chooses blocks."""

    name: str
    input: tuple[int, ...]
    weight: tuple[int, ...]
    block: tuple[int, int]
    density: float = 0.05
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def geometry(self) -> Geometry:
        return geometry_of(self.weight, **{"stride": 1, "padding": 0, "dilation": 1, "groups": 1, **dict(self.options)})


CASES = (
    Case("linear", (70, 64, 1, 1), (64, 64, 1, 1), (32, 32), 0.001),
    Case("linear, one row", (1, 160, 1, 1), (32, 160, 1, 1), (16, 16), 0.02),
    Case("linear, 16x2", (20, 64, 1, 1), (48, 64, 1, 1), (16, 2), 0.01),
    Case("linear, ragged", (9, 45, 1, 1), (70, 45, 1, 1), (32, 16), 0.005),
    Case("linear, one element", (1, 1, 1, 1), (1, 1, 1, 1), (128, 128), 1.0),
    Case("linear, full", (33, 48, 1, 1), (40, 48, 1, 1), (8, 16), 1.0),
    Case("linear, empty", (4, 16, 1, 1), (8, 16, 1, 1), (4, 4), 0.0),
    Case("linear, no rows", (0, 16, 1, 1), (8, 16, 1, 1), (4, 4)),
    Case("3x3", (2, 16, 9, 7), (32, 16, 3, 3), (16, 16), 0.005, (("padding", 1),)),
    Case("3x3, stride 2, ragged", (3, 11, 6, 7), (21, 11, 3, 3), (8, 4), 0.02, (("padding", 1), ("stride", 2))),
    Case("1x1, stride 2", (2, 20, 5, 6), (16, 20, 1, 1), (16, 20), 1.0, (("stride", 2),)),
    Case("1x1, stride 3, padding", (2, 8, 3, 3), (16, 8, 1, 1), (8, 8), 0.05, (("stride", 3), ("padding", 2))),
    Case("24x40", (1, 50, 4, 4), (30, 50, 1, 1), (24, 40), 0.001),
    Case("groups", (2, 12, 5, 5), (18, 4, 3, 2), (4, 3), 0.05, (("groups", 3), ("padding", (1, 0)))),
    Case("groups of whole tiles", (1, 64, 4, 4), (64, 32, 1, 1), (32, 16), 0.01, (("groups", 2),)),
    Case("depthwise", (2, 6, 5, 5), (6, 1, 3, 3), (4, 2), 0.1, (("groups", 6), ("padding", "same"))),
    Case("dilation", (2, 8, 9, 9), (8, 8, 2, 3), (4, 1), 0.1, (("dilation", (2, 1)), ("stride", (3, 2)))),
)
by_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def tensors_of(case: Case, dtype: torch.dtype) -> tuple[sk.BlockSparse, list[Tensor]]:
    """A pattern, and input, values and bias that require gradients."""
    weight, mask = torch.randn(case.weight).to(DEVICE, dtype), torch.rand(case.weight) < case.density
    pattern = sk.BlockSparse.from_dense(weight, mask.to(DEVICE), block=case.block)
    x, bias = torch.randn(case.input).to(DEVICE, dtype), torch.randn(case.weight[0]).to(DEVICE, dtype)
    return pattern, [one.clone().requires_grad_() for one in (x, pattern.values, bias)]


def on_triton(case: Case, pattern: sk.BlockSparse) -> Any:
    """The operation on the kernels, differentiable by them, whether or not calls of this block would take them."""
    call = pattern.crow_indices, pattern.col_indices, list(case.block), case.weight[0], case.geometry
    return lambda x, v, bias: blocks.block_conv2d.on(block_triton, x, v, bias, *call)


def definition(case: Case, pattern: sk.BlockSparse) -> Any:
    def run(x: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        return reference.dense_forward(x, pattern.with_values(values).to_dense(), bias, case.geometry)

    return run


@by_case
@pytest.mark.parametrize("dtype", [FP32, BF16, FP16])
def test_results_and_gradients(case: Case, dtype: torch.dtype) -> None:
    pattern, tensors = tensors_of(case, dtype)
    with poisoned():
        assert_verified(on_triton(case, pattern), definition(case, pattern), tensors)


@pytest.mark.parametrize("case", [CASES[1], CASES[9], CASES[13]], ids=lambda case: case.name)
def test_second_derivatives(case: Case) -> None:
    pattern, tensors = tensors_of(case, FP32)

    def both(of: Any) -> Any:
        def run(x: Tensor, values: Tensor) -> tuple[Tensor, ...]:
            y = of(x, values, values.new_zeros(case.weight[0]))
            seed = torch.linspace(-1, 1, y.numel(), device=y.device, dtype=y.dtype).view_as(y)
            return torch.autograd.grad(y, [x, values], seed * y.detach(), create_graph=True)

        return run

    assert_verified(both(on_triton(case, pattern)), both(definition(case, pattern)), tensors[:2])


@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize("dense", [False, True], ids=["values", "dense weight"])
@pytest.mark.parametrize("case", [CASES[1], CASES[9]], ids=lambda case: case.name)
def test_residual_and_limits(case: Case, dtype: torch.dtype, dense: bool) -> None:
    pattern, (x, values, bias) = tensors_of(case, dtype)
    weight = pattern.with_values(values).to_dense() if dense else values
    call = pattern.crow_indices, pattern.col_indices, list(case.block), case.weight[0], case.geometry
    residual = torch.randn_like(block_reference.forward(x, weight, bias, *call))

    def run(kernels: Any) -> Any:
        return lambda x, w, b, r: kernels.forward(x, w, b, *call, r, -0.75, 0.5)

    with torch.no_grad():
        given = [one.detach() for one in (x, weight, bias, residual)]
        assert_verified(run(block_triton), run(block_reference), given, gradients=False)
        given[0][0, :, 0, 0] = float("nan")
        assert run(block_triton)(*given).isnan().equal(run(block_reference)(*given).isnan())


@pytest.mark.parametrize("channels_last", [False, True])
def test_results_lie_in_memory_as_inputs_do(channels_last: bool) -> None:
    case = CASES[8]
    pattern, (x, values, bias) = tensors_of(case, FP32)
    format = reference.memory_format(channels_last)
    x = x.detach().contiguous(memory_format=format).requires_grad_()
    y = on_triton(case, pattern)(x, values, bias)
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert y.is_contiguous(memory_format=format)
    assert dx.is_contiguous(memory_format=format)


@pytest.mark.parametrize("block", [(16, 16), (8, 32)])
def test_public_functions_take_the_kernels(block: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[str] = []
    for name in ("forward", "input_gradient", "weight_gradient"):
        kernel = getattr(block_triton, name)
        monkeypatch.setattr(
            block_triton, name, lambda *given, _of=kernel, _name=name: (passes.append(_name), _of(*given))[1]
        )
    linear = sk.BlockSparse.from_dense(torch.randn(32, 64).to(DEVICE), block=block, sparsity=0.5)
    image = sk.BlockSparse.from_dense(torch.randn(32, 16, 3, 3).to(DEVICE), block=block, sparsity=0.5)
    for given, run in (
        ((3, 64), lambda x: sk.sparse_linear(x, linear)),
        ((2, 16, 5, 5), lambda x: sk.sparse_conv2d(x, image, padding=1)),
    ):
        x = torch.randn(given, device=DEVICE, requires_grad=True)
        passes.clear()
        with sk.use_backend("triton"):
            run(x).sum().backward()
        assert passes == ["forward", "input_gradient"]
    dense = torch.randn(32, 64, device=DEVICE, requires_grad=True)
    with sk.use_backend("triton"):
        passes.clear()
        sk.sparse_linear(x.new_ones(3, 64), linear.with_values(linear.values_of(dense))).sum().backward()
    assert passes == ["forward", "weight_gradient"]


def test_the_same_bits_and_parts_of_a_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row's bits do not change from run to run; its sum may be cut into parts, which changes the last bits alone."""
    case = Case("few rows", (3, 256, 1, 1), (32, 256, 1, 1), (16, 16), 1.0)
    pattern, tensors = tensors_of(case, BF16)
    run = on_triton(case, pattern)
    results = {}
    for parts in (1, 2, 3, 7, 16):
        monkeypatch.setattr(block_triton, "parts_of_sums", lambda *_, _parts=parts: _parts)
        with torch.no_grad():
            results[parts] = run(*tensors)
            assert torch.equal(run(*tensors), results[parts])
        assert_verified(run, definition(case, pattern), tensors, gradients=False)


def test_groups_of_pixels_cover_all(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("many pixels", (1, 16, 30, 20), (32, 16, 1, 1), (16, 16), 1.0)
    pattern, tensors = tensors_of(case, FP32)
    tensors = [one.detach() for one in tensors]
    monkeypatch.setattr(block_triton, "_L2", 1)
    one = on_triton(case, pattern)(*tensors)
    monkeypatch.setattr(block_triton, "_L2", 64 * 16 * 4 * 3)
    assert torch.equal(on_triton(case, pattern)(*tensors), one)
    assert_verified(on_triton(case, pattern), definition(case, pattern), tensors, gradients=False)


def test_parts_of_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("many pixels", (2, 16, 9, 10), (16, 16, 2, 2), (16, 16), 0.002, (("padding", 1),))
    pattern, (x, values, bias) = tensors_of(case, FP32)
    for parts in (1, 2, 3, 100):
        monkeypatch.setattr(block_triton, "parts_of_positions", lambda *_, _parts=parts: _parts)
        given = [x.detach(), values, bias.detach()]
        assert_verified(on_triton(case, pattern), definition(case, pattern), given)


def test_what_no_tile_reads_does_not_count() -> None:
    """Tiles that are blocks read what blocks read: an infinity elsewhere reaches nothing."""
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[:32, :32] = True
    pattern = sk.BlockSparse.from_dense(torch.randn(64, 64).to(DEVICE), mask.to(DEVICE), block=(32, 32))
    x = torch.randn(5, 64, device=DEVICE)
    x[:, 32:] = float("nan")
    x[2, 3] = float("inf")
    with sk.use_backend("triton"):
        y = sk.sparse_linear(x, pattern)
    assert y[2].isinf()[:32].all()
    finite = torch.ones(5, 64, dtype=torch.bool, device=DEVICE)
    finite[2, :32] = False
    assert y.isfinite().equal(finite)


# Tiles are kept


def made(pattern: sk.BlockSparse, geometry: Geometry | None = None) -> block_pattern.Pattern:
    g = geometry_of((32, 32, 1, 1), 1, 0, 1, 1) if geometry is None else geometry
    return block_pattern.Pattern(
        pattern.crow_indices, pattern.col_indices, pattern.block_size, pattern.shape[0], pattern.shape[1], g
    )


def test_tiles_are_worked_out_once_and_go_with_the_pattern() -> None:
    weight = torch.randn(32, 32, 1, 1).to(DEVICE)
    pattern = sk.BlockSparse.from_dense(weight[..., 0, 0], block=(16, 16), sparsity=0.5)
    before = len(block_pattern._tiles._of), len(block_pattern._places._of)
    first = made(pattern).tiles(4)
    assert made(pattern).tiles(4) is first
    assert made(pattern).tiles(2) is not first
    assert made(pattern).places(first, weight) is made(pattern).places(first, weight)
    assert (len(block_pattern._tiles._of), len(block_pattern._places._of)) == (before[0] + 1, before[1] + 1)
    del pattern, first
    gc.collect()
    assert (len(block_pattern._tiles._of), len(block_pattern._places._of)) == before


def test_indices_that_are_written_to_are_read_again() -> None:
    crow = torch.tensor([0, 1], dtype=torch.int32, device=DEVICE)
    col = torch.tensor([0], dtype=torch.int32, device=DEVICE)
    pattern = block_pattern.Pattern(crow, col, (16, 16), 16, 32, geometry_of((16, 32, 1, 1), 1, 0, 1, 1))
    first = pattern.tiles(4)
    col.fill_(1)
    second = pattern.tiles(4)
    assert (int(first.column[0]) * first.width, int(second.column[0]) * second.width) == (0, 16)
    assert len(block_pattern._tiles._of[col]) == 1


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_dense_weight_is_read_where_it_lies(channels_last: bool) -> None:
    case = Case("3x3", (2, 16, 5, 4), (32, 16, 3, 3), (16, 8), 0.005, (("padding", 1),))
    pattern, (x, values, bias) = tensors_of(case, FP32)
    dense = pattern.with_values(values).to_dense().detach()
    other = dense.contiguous(memory_format=reference.memory_format(not channels_last))
    dense = dense.contiguous(memory_format=reference.memory_format(channels_last))
    with torch.no_grad():
        run = on_triton(case, pattern)
        assert torch.equal(run(x, dense, bias), run(x, values, bias))
        assert torch.equal(run(x, other, bias), run(x, values, bias))
        # what is stored elsewhere does not count
        noisy = torch.where(pattern.mask, dense, 7.0).contiguous(memory_format=reference.memory_format(channels_last))
        assert torch.equal(run(x, noisy, bias), run(x, values, bias))


@pytest.mark.skipif(DEVICE != "cuda", reason="needs a GPU")
def test_graphs_are_captured_after_a_call() -> None:
    pattern = sk.BlockSparse.from_dense(torch.randn(32, 32, device=DEVICE), block=(16, 16), sparsity=0.5)
    x = torch.randn(8, 32, device=DEVICE)
    with pytest.raises(RuntimeError, match="before a CUDA graph"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        sk.sparse_linear(x, pattern)
    eager = sk.sparse_linear(x, pattern)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = sk.sparse_linear(x, pattern)
    graph.replay()
    assert torch.equal(y, eager)


@pytest.mark.parametrize(
    ("block", "dtype", "taken"),
    [((8, 8), BF16, True), ((16, 32), FP32, True), ((32, 4), BF16, False), ((16, 16), torch.float64, False)],
)
def test_blocks_that_kernels_take(block: tuple[int, int], dtype: torch.dtype, taken: bool) -> None:
    pattern = sk.BlockSparse.full((32, 32), dtype, torch.device(DEVICE), block=block)
    x = torch.zeros(2, 32, dtype=dtype, device=DEVICE)
    with sk.use_backend("triton"):
        assert blocks.serves(pattern, x, 1) == taken
    with sk.use_backend("reference"):
        assert not blocks.serves(pattern, x, 1)


@pytest.mark.parametrize("case", [CASES[9], CASES[13]], ids=lambda case: case.name)
def test_nothing_beside_a_tensor_is_read(case: Case) -> None:
    """NaN lies in front of and behind each tensor: ragged tiles stand out of groups, images and ends."""
    pattern, tensors = tensors_of(case, FP32)

    def fenced(tensor: Tensor) -> Tensor:
        flat = tensor.detach().permute(0, 2, 3, 1) if tensor.dim() == 4 else tensor.detach()
        whole = torch.full((flat.numel() + 2**14,), float("nan"), device=DEVICE)
        inner = whole[2**13 : 2**13 + flat.numel()].view(flat.shape).copy_(flat)
        return inner.permute(0, 3, 1, 2) if tensor.dim() == 4 else inner

    call = pattern.crow_indices, pattern.col_indices, list(case.block), case.weight[0], case.geometry
    x, values, bias = map(fenced, tensors)
    y = block_triton.forward(x, values, bias, *call)
    dy = fenced(torch.randn_like(y))
    image = x.size(1), x.size(2), x.size(3), True
    assert y.isfinite().all()
    assert block_triton.input_gradient(dy, values, *call[:3], case.geometry, *image).isfinite().all()
    assert block_triton.weight_gradient(dy, x, *call[:3], case.geometry, values.numel()).isfinite().all()


@pytest.mark.parametrize("stride", [16, 40])
def test_phases_that_no_tap_reaches_are_zero(stride: int) -> None:
    case = Case("far apart", (1, 8, 45, 21), (8, 8, 2, 1), (8, 8), 1.0, (("stride", stride),))
    pattern, tensors = tensors_of(case, FP32)
    assert len(made(pattern, case.geometry).tiles(4).backward) == 2
    assert_verified(on_triton(case, pattern), definition(case, pattern), [*tensors[:2], tensors[2].detach()])
