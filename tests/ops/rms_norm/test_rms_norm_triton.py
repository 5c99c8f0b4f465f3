# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What only the Triton RMSNorm has: its tilings, its walk over the rows, its partial sums.

The cases of every implementation are in test_rms_norm.py, what is compiled in test_rms_norm_triton_compiled.py.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402

from sparsekernels.ops.rms_norm import reference, triton_config, triton_kernels  # noqa: E402
from sparsekernels.ops.rms_norm import triton as implementation  # noqa: E402
from sparsekernels.testing import compare, poisoned  # noqa: E402

BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # where kernels are interpreted

needs_gpu = pytest.mark.skipif(
    DEVICE != "cuda", reason="needs a GPU: programs run one after another in the interpreter"
)


# Tilings


@pytest.mark.parametrize("tiling_of", [triton_config.forward_tiling, triton_config.backward_tiling])
@pytest.mark.parametrize("itemsize", [2, 4, 8])
def test_tilings(tiling_of: Callable[[int, int], triton_config.Tiling], itemsize: int) -> None:
    previous = None
    for cols in [*range(1, 1100), *(2**n + d for n in range(11, 32) for d in (-1, 0, 1))]:
        tiling = tiling_of(cols, itemsize)
        for power in (tiling.block_rows, tiling.block_cols, tiling.num_warps):
            assert power > 0
            assert power & (power - 1) == 0
        assert tiling.looped == (tiling.block_cols < cols)
        assert tiling.block_cols < 2 * cols or tiling.block_cols * itemsize <= 16
        assert tiling.block_rows == 1 or tiling.block_rows * tiling.block_cols * itemsize == 4096
        assert 4 <= tiling.num_warps <= 32
        elements_of_thread = tiling.block_rows * tiling.block_cols / (32 * tiling.num_warps)
        assert 16 <= elements_of_thread * itemsize <= 64
        if previous is not None:
            assert previous.looped <= tiling.looped
            assert previous.block_cols <= tiling.block_cols or (tiling.looped and not previous.looped)
        previous = tiling
    assert previous is not None
    assert previous.looped


def test_a_row_of_64_kilobytes_is_kept_in_registers() -> None:
    for itemsize in (2, 4, 8):
        assert not triton_config.forward_tiling(64 * 1024 // itemsize, itemsize).looped
        assert triton_config.forward_tiling(64 * 1024 // itemsize + 1, itemsize).looped


def test_programs_of_a_backward_are_resident_at_once_and_no_more_than_tiles() -> None:
    for cols in (1, 64, 1000, 8192, 100000):
        tiling = triton_config.backward_tiling(cols, 2)
        for rows in (1, 7, 100, 10**6, 2**33):
            programs = triton_config.backward_programs(rows, tiling, multiprocessors=132)
            assert 1 <= programs <= -(-rows // tiling.block_rows)
            assert programs * tiling.num_warps <= 132 * 16
            assert programs == -(-rows // tiling.block_rows) or programs * tiling.num_warps == 132 * 16


def test_vector_elements_divide_a_row() -> None:
    assert [triton_config.vector_elements(cols, 2) for cols in (1, 6, 100, 513, 1000, 4096)] == [1, 2, 4, 1, 8, 8]
    assert [triton_config.vector_elements(cols, 8) for cols in (1, 2, 100)] == [1, 2, 2]


# Rows


def addresses(space: triton_config.RowSpace, index: int) -> set[int]:
    """Where the rows of tensor number `index` begin."""
    found = [0]
    for size, stride in zip(space.sizes, space.strides[index], strict=True):
        found = [start + i * stride for start in found for i in range(size)]
    return set(found)


def test_leading_dimensions_collapse() -> None:
    heads = torch.empty(3, 7, 4 * 64).view(3, 7, 4, 64).transpose(1, 2)
    space = triton_config.row_space((heads, None, torch.empty_like(heads)), (64,))
    assert space == (84, 64, (84,), ((64,), (0,), (64,)))

    sliced = torch.empty(3, 7, 6 * 64)[..., : 4 * 64].view(3, 7, 4, 64).transpose(1, 2)
    output = torch.empty_like(sliced)
    space = triton_config.row_space((sliced, output), (64,))
    assert space == triton_config.RowSpace(84, 64, (21, 4), ((6 * 64, 64), (4 * 64, 64)))
    assert space is not None
    assert addresses(space, 1) == {64 * i for i in range(84)}


def test_one_row_has_the_strides_of_one_row_whatever_it_is_cut_from() -> None:
    one = torch.empty(9, 5, 100)[3:4, 2:3]
    assert triton_config.row_space((one[..., :64], one[..., :64]), (64,)) == (1, 64, (1,), ((64,), (64,)))


def test_what_a_kernel_cannot_walk() -> None:
    six = torch.empty(4, 4, 4, 4, 4, 8)[::2, ::2, ::2, ::2, ::2]
    assert triton_config.row_space((six, torch.empty_like(six)), (8,)) is None
    four = six[0]
    assert triton_config.row_space((four, torch.empty_like(four)), (8,)) is not None
    assert triton_config.row_space((torch.empty(4, 6).t(), torch.empty(6, 4)), (4,)) is None


@triton.jit  # type: ignore[untyped-decorator]
def offsets_of_rows(result, first, inner_sizes, strides, COUNT: tl.constexpr, COLS: tl.constexpr):  # type: ignore
    row = (first + tl.arange(0, COUNT)[:, None]).to(tl.int64)
    col = tl.arange(0, COLS)[None, :]
    place = tl.arange(0, COUNT)[:, None] * COLS + col
    tl.store(result + place, triton_kernels._offset(row, col, inner_sizes, strides, 1))


def test_offsets_beyond_32_bits() -> None:
    sizes, strides, first = (2**31, 3, 5, 7), (2**20 + 1, 2**33, 2**30, 2**35 + 1), 2**33 + 12345
    result = torch.empty(8, 2, dtype=torch.int64, device=DEVICE)
    offsets_of_rows[(1,)](result, first, sizes[1:], strides, COUNT=8, COLS=2)
    for i in range(8):
        row, offset = first + i, 0
        for size, stride in zip(sizes[:0:-1], strides[:0:-1], strict=True):
            row, position = divmod(row, size)
            offset += position * stride
        offset += row * strides[0]
        assert result[i].tolist() == [offset, offset + 1]


# Results


def rounded(*shape: int, dtype: torch.dtype) -> Tensor:
    """Random values that every dtype holds exactly."""
    return torch.randn(shape).bfloat16().to(DEVICE, dtype)


def check_backward(
    grad_output: Tensor,
    input: Tensor,
    shape: tuple[int, ...],
    weight: Tensor | None,
    eps: float = 1e-6,
    grad_sum: Tensor | None = None,
    need_input: bool = True,
    need_weight: bool = True,
) -> None:
    rest = (need_input, need_weight)
    with poisoned():
        actual = implementation.backward(grad_output, input, shape, weight, eps, grad_sum, *rest)
    baseline = reference.backward(grad_output, input, shape, weight, eps, grad_sum, *rest)
    g, x, w, s = (None if t is None else t.double() for t in (grad_output, input, weight, grad_sum))
    assert g is not None
    assert x is not None
    truth = reference.backward(g, x, shape, w, eps, s, *rest)
    for name, a, t, b in zip(("grad_input", "grad_weight"), actual, truth, baseline, strict=True):
        assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())
        comparison = compare(name, a, t, b)
        assert comparison.passed, comparison


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=str)
@pytest.mark.parametrize("weight_dtype", [BF16, FP32], ids=str)
def test_backward_of_more_programs_than_a_group_and_more_tiles_than_programs(
    dtype: torch.dtype, weight_dtype: torch.dtype
) -> None:
    rows, cols = 1300, 100
    tiling = triton_config.backward_tiling(cols, dtype.itemsize)
    assert rows // tiling.block_rows > 2 * triton_config.GROUP
    x, g, s = (rounded(rows, cols, dtype=dtype) for _ in range(3))
    check_backward(g, x, (cols,), rounded(cols, dtype=weight_dtype), grad_sum=s)


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32, FP64], ids=str)
def test_backward_of_long_rows(dtype: torch.dtype) -> None:
    rows, cols = 11, 10000
    assert triton_config.backward_tiling(cols, dtype.itemsize).looped
    x, g, s = (rounded(rows, cols, dtype=dtype) for _ in range(3))
    w = rounded(cols, dtype=FP32)
    if dtype == FP64:  # judged by gradcheck elsewhere; here against the reference as it is
        actual = implementation.backward(g, x, (cols,), w.double(), 1e-6, s, True, True)
        torch.testing.assert_close(actual, reference.backward(g, x, (cols,), w.double(), 1e-6, s, True, True))
        return
    check_backward(g, x, (cols,), w, grad_sum=s)


@pytest.mark.parametrize("cols", [96, 9000])
def test_backward_computes_what_is_needed(cols: int) -> None:
    x, g = rounded(10, cols, dtype=FP32), rounded(10, cols, dtype=FP32)
    w = rounded(cols, dtype=FP32)
    for need_input, need_weight in ((True, False), (False, True), (False, False)):
        check_backward(g, x, (cols,), w, need_input=need_input, need_weight=need_weight)
    check_backward(g, x, (cols,), None, need_weight=False)


def test_rows_past_the_end_do_not_reach_the_weight_gradient() -> None:
    """They have no values: with eps = 0 their 1 / rms is infinite."""
    x, g = rounded(3, 64, dtype=FP32), rounded(3, 64, dtype=FP32)
    check_backward(g, x, (64,), rounded(64, dtype=FP32), eps=0.0)


def test_gradients_that_are_strided_otherwise_than_the_input() -> None:
    x = rounded(2, 5, 6 * 64, dtype=FP32)[..., : 3 * 64].view(2, 5, 3, 64).transpose(1, 2)
    g = rounded(2, 3, 5, 64, dtype=FP32)
    s = rounded(1, 3, 1, 64, dtype=FP32).expand(2, 3, 5, 64)
    w = rounded(64, dtype=FP32)
    check_backward(g, x, (64,), w, grad_sum=s)
    check_backward(g[..., :1].expand(2, 3, 5, 64), x, (64,), w, grad_sum=s)


def test_an_input_whose_rows_overlap() -> None:
    """Windows: the layout that torch gives an output like this one has no contiguous rows."""
    x = rounded(400, dtype=FP32).as_strided((5, 4, 16), (8, 16, 1))
    y = implementation.forward(x, (4, 16), None, 1e-6)
    torch.testing.assert_close(y, reference.forward(x, (4, 16), None, 1e-6))
    total = implementation.add_forward(x, x, (4, 16), None, 1e-6)
    torch.testing.assert_close(total, reference.add_forward(x, x, (4, 16), None, 1e-6))


def test_strided_rows_are_not_copied() -> None:
    x = rounded(2, 5, 6 * 64, dtype=FP32)[..., : 3 * 64].view(2, 5, 3, 64).transpose(1, 2)
    w = rounded(64, dtype=FP32)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        implementation.add_forward(x, x, (64,), w, 1e-6)
        implementation.backward(x, x, (64,), w, 1e-6, x, True, True)
    called = {event.name for event in profile.events()}
    assert "aten::empty_like" in called
    # the interpreter itself hands storages to and fro, which is one aten::copy_ of bytes; copies of tensors are clones
    assert not called & {"aten::clone", "aten::contiguous"}, called


def test_counters_are_left_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next launch on the stream finds them so."""
    kept: list[Tensor] = []

    def counters(device: torch.device, count: int) -> Tensor:
        if not kept:
            kept.append(torch.zeros(64, dtype=torch.int32, device=device))
        return kept[0]

    monkeypatch.setattr(implementation, "_zeroed_counters", counters)
    w = rounded(64, dtype=FP32)
    for rows in (1300, 40, 1):
        x, g = rounded(rows, 64, dtype=FP32), rounded(rows, 64, dtype=FP32)
        for _ in range(2):
            check_backward(g, x, (64,), w)
            assert not kept[0].any()


# On a GPU


@needs_gpu
@pytest.mark.parametrize("cols", [64, 1000, 4096, 20000])
def test_weight_gradients_on_many_streams_have_the_same_bits(cols: int) -> None:
    x, g = rounded(1000, cols, dtype=BF16), rounded(1000, cols, dtype=BF16)
    w = rounded(cols, dtype=BF16)
    expected = implementation.backward(g, x, (cols,), w, 1e-6, None, True, True)
    streams = [torch.cuda.Stream() for _ in range(4)]
    torch.cuda.synchronize()
    found = []
    for _ in range(10):
        for stream in streams:
            with torch.cuda.stream(stream):
                found.append(implementation.backward(g, x, (cols,), w, 1e-6, None, True, True))
    torch.cuda.synchronize()
    for actual in found:
        assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


@needs_gpu
def test_graphs_replayed_beside_each_other_have_counters_of_their_own() -> None:
    x, g, w = rounded(3000, 512, dtype=BF16), rounded(3000, 512, dtype=BF16), rounded(512, dtype=BF16)
    expected = implementation.backward(g, x, (512,), w, 1e-6, None, True, True)
    graphs, results = [], []
    for _ in range(3):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results.append(implementation.backward(g, x, (512,), w, 1e-6, None, True, True))
        graphs.append(graph)
    streams = [torch.cuda.Stream() for _ in graphs]
    for _ in range(20):
        for graph, stream in zip(graphs, streams, strict=True):
            with torch.cuda.stream(stream):
                graph.replay()
        implementation.backward(g, x, (512,), w, 1e-6, None, True, True)
    torch.cuda.synchronize()
    for actual in results:
        assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


@needs_gpu
@pytest.mark.parametrize("dtype", [BF16, FP32], ids=str)
@pytest.mark.parametrize("cols", [64, 100, 513, 2048, 70000])
def test_bits_do_not_depend_on_where_a_row_lies(cols: int, dtype: torch.dtype) -> None:
    x, g, w = rounded(5, cols, dtype=dtype), rounded(5, cols, dtype=dtype), rounded(cols, dtype=dtype)
    apart = torch.zeros(5, cols + 3, dtype=dtype, device=DEVICE)[:, 1:-2].copy_(x)
    for a, b in (
        (implementation.forward(x, (cols,), w, 1e-6), implementation.forward(apart, (cols,), w, 1e-6)),
        (
            implementation.backward(g, x, (cols,), w, 1e-6, None, True, False)[0],
            implementation.backward(g, apart, (cols,), w, 1e-6, None, True, False)[0],
        ),
    ):
        assert torch.equal(a, b)
