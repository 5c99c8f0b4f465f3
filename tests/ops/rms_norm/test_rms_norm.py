# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""rms_norm and add_rms_norm: every implementation on every case and dtype against the oracle, and what all promise."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from rms_norm_cases import CASES, DTYPES, Case, heads, inputs, rows, runs

import sparsekernels as sk
from sparsekernels.ops.rms_norm import reference
from sparsekernels.testing import assert_verified

RUNS = runs()
INTERPRETED = not torch.cuda.is_available()
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
by_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
by_run = pytest.mark.parametrize(("backend", "device"), RUNS, ids=lambda value: value)


@by_run
@by_case
@by_dtype
def test_rms_norm(backend: str, device: str, case: Case, dtype: torch.dtype) -> None:
    input, shape, weights = inputs(case, dtype, device)
    with sk.use_backend(backend):
        assert_verified(
            lambda x, *w: sk.rms_norm(x, shape, *w, eps=case.eps),
            lambda x, *w: reference.forward(x, shape, w[0] if w else None, eps_of(case, dtype)),
            [input, *weights],
        )


@by_run
@by_case
@by_dtype
def test_add_rms_norm(backend: str, device: str, case: Case, dtype: torch.dtype) -> None:
    input, shape, weights = inputs(case, dtype, device)
    residual, _, _ = inputs(case, dtype, device, seed=1)
    if case.name == "queries":
        residual = residual.detach().contiguous().requires_grad_()  # the two need not be strided alike

    def expected(x: torch.Tensor, r: torch.Tensor, *w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # rounded to the dtype under test in float64 as well: it is part of the definition, not an error
        total = (x + r).to(dtype).to(x.dtype) if x.dtype != dtype else x + r
        return reference.forward(total, shape, w[0] if w else None, eps_of(case, dtype)), total

    with sk.use_backend(backend):
        assert_verified(
            lambda x, r, *w: sk.add_rms_norm(x, r, shape, *w, eps=case.eps), expected, [input, residual, *weights]
        )


def eps_of(case: Case, dtype: torch.dtype) -> float:
    """What eps=None means in `dtype`, said out loud because the truth is computed in float64."""
    if case.eps is not None:
        return case.eps
    return torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps


@by_case
@by_dtype
def test_same_as_torch(case: Case, dtype: torch.dtype) -> None:
    """The reference itself, held to torch's own rms_norm: values, dtype, layout."""
    input, shape, weights = inputs(case, dtype, "cpu")
    with torch.no_grad():
        theirs = F.rms_norm(input, shape, *weights, eps=case.eps)
        for backend, device in RUNS:
            if device == "cpu" and backend != "triton":
                with sk.use_backend(backend):
                    ours = sk.rms_norm(input, shape, *weights, eps=case.eps)
                torch.testing.assert_close(ours, theirs)
                assert ours.is_contiguous()
                assert theirs.is_contiguous()


@by_run
@pytest.mark.parametrize("shape", [(5, 64), (3, 33), (2, 700), (33, 64), (40, 700), (600, 1000), (300, 4096)], ids=str)
@by_dtype
def test_bits_do_not_depend_on_the_batch(backend: str, device: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    """One row alone takes the weight as it is stored, one thread and no prefetch; many take all that there is."""
    count, width = shape
    if backend == "triton" and INTERPRETED:
        count = min(count, 5)
    x, g = torch.randn(2, count, width, device=device, dtype=dtype)
    w = torch.randn(width, device=device, dtype=dtype)
    with sk.use_backend(backend):
        whole = forward_and_input_gradient(x, w, g)
        for i in sorted({0, 1, count // 2, count - 2, count - 1}):
            single = forward_and_input_gradient(x[i : i + 1], w, g[i : i + 1])
            for together, alone in zip(whole, single, strict=True):
                assert torch.equal(together[i : i + 1], alone)


def forward_and_input_gradient(x: torch.Tensor, w: torch.Tensor, g: torch.Tensor) -> tuple[torch.Tensor, ...]:
    x = x.detach().requires_grad_()
    y = sk.rms_norm(x, w.shape, w, 1e-6)
    added, _ = sk.add_rms_norm(x, x, w.shape, w, 1e-6)
    return y.detach(), torch.autograd.grad(y, x, g)[0], added.detach(), torch.autograd.grad(added, x, g)[0]


@pytest.mark.parametrize("shape", [(3000, 64), (700, 1000), (2, 70000), (50000, 4)], ids=str)
@by_dtype
def test_bits_do_not_depend_on_threads(shape: tuple[int, int], dtype: torch.dtype) -> None:
    x, g = torch.randn(2, *shape, dtype=dtype)
    w = torch.randn(shape[-1], dtype=dtype).requires_grad_()
    x.requires_grad_()
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            y = sk.rms_norm(x, w.shape, w, 1e-6)
            results.append((y.detach(), *torch.autograd.grad(y, (x, w), g)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


@by_run
def test_weight_gradient_has_the_same_bits_from_run_to_run(backend: str, device: str) -> None:
    x, g = torch.randn(2, 200, 48, device=device)
    w = torch.randn(48, device=device, requires_grad=True)
    with sk.use_backend(backend):
        runs = [torch.autograd.grad(sk.rms_norm(x, (48,), w), w, g)[0] for _ in range(5)]
    assert all(torch.equal(runs[0], other) for other in runs[1:])


@by_run
@pytest.mark.parametrize("normalized", [1, 2])
def test_first_and_second_derivatives(backend: str, device: str, normalized: int) -> None:
    x, r = (torch.randn(2, 2, 3, dtype=torch.float64, device=device, requires_grad=True) for _ in range(2))
    shape = x.shape[-normalized:]
    w = torch.randn(shape, dtype=torch.float64, device=device, requires_grad=True)
    with sk.use_backend(backend):
        for function, arguments in (
            (lambda x, w: sk.rms_norm(x, shape, w, 1e-3), (x, w)),
            (lambda x: sk.rms_norm(x, shape, None, 1e-3), (x,)),
            (lambda w: sk.rms_norm(x.detach(), shape, w, 1e-3), (w,)),
            (lambda x: sk.rms_norm(x, shape, w.detach(), 1e-3), (x,)),
            (lambda x, r, w: sk.add_rms_norm(x, r, shape, w, 1e-3), (x, r, w)),
            (lambda x, r: sk.add_rms_norm(x, r, shape, None, 1e-3)[0], (x, r)),
            (lambda r, w: sk.add_rms_norm(x.detach(), r, shape, w, 1e-3)[1] * w, (r, w)),
        ):
            # In Triton's interpreter each of the many calls takes long: derivatives in random directions there.
            in_directions = backend == "triton"
            assert torch.autograd.gradcheck(function, arguments, fast_mode=in_directions)
            assert torch.autograd.gradgradcheck(function, arguments, fast_mode=in_directions)


@by_run
def test_third_derivative(backend: str, device: str) -> None:
    x = torch.randn(2, 4, dtype=torch.float64, device=device, requires_grad=True)
    w = torch.randn(4, dtype=torch.float64, device=device, requires_grad=True)

    def gradient(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(sk.rms_norm(x, (4,), w, 1e-3).pow(3).sum(), x, create_graph=True)[0]

    with sk.use_backend(backend):
        assert torch.autograd.gradgradcheck(gradient, (x, w))


@by_run
def test_the_backward_runs_on_the_backend_of_its_forward(backend: str, device: str) -> None:
    x, g = torch.randn(2, 5, 64, device=device)
    w = torch.randn(64, device=device)
    with sk.use_backend(backend):
        inside = forward_and_input_gradient(x, w, g)[1]
        leaf = x.clone().requires_grad_()
        y = sk.rms_norm(leaf, (64,), w, 1e-6)
    outside = torch.autograd.grad(y, leaf, g)[0]
    assert torch.equal(inside, outside)


@by_run
@by_dtype
def test_nan_and_infinity_go_through_as_in_torch(backend: str, device: str, dtype: torch.dtype) -> None:
    x = torch.randn(6, 70, device=device).to(dtype)
    x[1, 3], x[2, 69], x[3, 0], x[4, 10], x[4, 11] = torch.nan, torch.inf, -torch.inf, torch.inf, torch.nan
    w = torch.ones(70, device=device, dtype=dtype)
    w[20], w[21] = torch.inf, torch.nan
    with sk.use_backend(backend):
        torch.testing.assert_close(
            sk.rms_norm(x, (70,), w, 1e-6), F.rms_norm(x, (70,), w, 1e-6), equal_nan=True, check_stride=False
        )


@by_run
@by_dtype
def test_rounding(backend: str, device: str, dtype: torch.dtype) -> None:
    """Where every value of a row is 1 the weight comes back: what is left is the conversion, on all bit patterns."""
    if dtype not in (torch.bfloat16, torch.float16):
        pytest.skip("only the half types are converted")
    if backend == "triton" and INTERPRETED:
        pytest.skip("this would test the interpreter's conversions, not the device's")
    patterns = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype).to(device)
    x = torch.ones(patterns.numel(), 2, dtype=dtype, device=device)
    with sk.use_backend(backend):
        y = sk.rms_norm(x[:1].expand(1, 2), (2,), torch.ones(2, dtype=dtype, device=device), 0.0)
        assert torch.equal(y, torch.ones_like(y))
        # the weight takes every bit pattern, in one row whose values are all 1
        row = torch.ones(1, patterns.numel(), dtype=dtype, device=device)
        result = sk.rms_norm(row, (patterns.numel(),), patterns, 0.0)[0]
        # and float32 weights between two neighbors take every way of rounding
        wide = patterns[patterns.isfinite()].float()
        between = torch.cat([wide * 1.001953125, wide * 1.0078125, wide * 1.00390625, wide * 1.00048828125])
        row = torch.ones(1, between.numel(), dtype=dtype, device=device)
        rounded = sk.rms_norm(row, (between.numel(),), between, 0.0)[0]
    torch.testing.assert_close(result, patterns, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(rounded, between.to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize("device", sorted({device for _, device in RUNS}))
def test_strided_rows_are_read_in_place(device: str) -> None:
    x = heads(2, 3, 5, 64, of=6)(torch.Generator().manual_seed(0)).to(device)
    assert not x.is_contiguous()
    with torch.no_grad(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        sk.rms_norm(x, (64,), torch.ones(64, device=device))
    called = {event.name for event in profile.events()}
    assert "sparsekernels::_rms_norm" in called
    assert not called & {"aten::copy_", "aten::clone", "aten::contiguous", "aten::to"}, called


@pytest.mark.parametrize("device", sorted({device for _, device in RUNS}))
def test_more_than_two_to_the_31_elements(device: str) -> None:
    width = 4096
    row = torch.randn(1, width, device=device).bfloat16()
    count = (1 << 31) // width + 3
    w = torch.randn(width, device=device).bfloat16()
    y = sk.rms_norm(row.expand(count, width), (width,), w, 1e-6)
    assert y.numel() > 1 << 31
    expected = sk.rms_norm(row, (width,), w, 1e-6)[0]
    for i in (0, count // 2, count - 1):
        assert torch.equal(y[i], expected)


@st.composite
def strided(draw: st.DrawFn) -> tuple[torch.Tensor, int]:
    """A tensor of up to five dimensions, permuted, cut with steps, and how many of its dimensions are normalized."""
    shape = [*draw(st.lists(st.integers(0, 6), min_size=1, max_size=4)), draw(st.integers(1, 80))]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    x = torch.randn([size * 2 + 1 for size in shape], generator=generator)
    x = x.permute(draw(st.permutations(range(x.dim())))) if draw(st.booleans()) else x
    for dim in range(x.dim()):
        step = draw(st.sampled_from([1, 1, 1, 2]))
        start = draw(st.integers(0, 1))
        index = [slice(None)] * x.dim()
        index[dim] = slice(start, max(start, x.shape[dim] // 2), step)
        x = x[tuple(index)]
    return x, draw(st.integers(1, x.dim()))


@given(strided(), st.sampled_from(DTYPES), st.booleans())
def test_any_shape_and_strides(case: tuple[torch.Tensor, int], dtype: torch.dtype, add: bool) -> None:
    x, dims = case
    x = x.to(dtype) if x.dtype != dtype else x
    shape = x.shape[x.dim() - dims :]
    w = torch.linspace(0.5, 2, max(shape.numel(), 1))[: shape.numel()].view(shape).to(dtype).requires_grad_()
    x = x.detach().requires_grad_()
    for backend, device in RUNS:
        if device == "cpu" and backend != "triton":
            with sk.use_backend(backend):
                if add:
                    assert_verified(
                        lambda x, w: sk.add_rms_norm(x, x, shape, w, 1e-5)[0],
                        lambda x, w: reference.forward(x + x, shape, w, 1e-5),
                        [x, w],
                    )
                else:
                    assert_verified(
                        lambda x, w: sk.rms_norm(x, shape, w, 1e-5),
                        lambda x, w: reference.forward(x, shape, w, 1e-5),
                        [x, w],
                    )


def test_automatic_choice_is_the_first_row_that_supports_the_call() -> None:
    x = rows(3, 64)(torch.Generator().manual_seed(0))
    first = next(backend for backend, device in RUNS if device == "cpu")
    automatic = sk.rms_norm(x, (64,))
    with sk.use_backend(first):
        assert torch.equal(sk.rms_norm(x, (64,)), automatic)
