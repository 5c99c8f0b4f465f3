# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""cast="before" and unit_offset=True: as the transformers that have them write them down, and by the oracle."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from rms_norm_cases import CASES, DTYPES, Case, inputs, runs
from torch import Tensor

import sparsekernels as sk
from sparsekernels.ops.rms_norm import reference
from sparsekernels.ops.rms_norm.arguments import CAST_BEFORE, UNIT_OFFSET
from sparsekernels.testing import assert_verified

RUNS = runs()
INTERPRETED = not torch.cuda.is_available()
EPS = 1e-6
VARIANTS: dict[str, dict[str, Any]] = {
    "before": {"cast": "before"},
    "offset": {"unit_offset": True},
    "both": {"cast": "before", "unit_offset": True},
}
NAMES = (
    "one row",
    "width 33",
    "very wide",
    "many rows",
    "no weight",
    "float32 weight",
    "float64 weight",
    "strided weight",
    "two normalized dimensions",
    "queries",
    "no rows",
)
IN_THE_INTERPRETER = (  # tiles and loops
    (torch.float32, "width 33"),
    (torch.float32, "float64 weight"),
    (torch.bfloat16, "very wide"),
    (torch.bfloat16, "float32 weight"),
)
by_run = pytest.mark.parametrize(("backend", "device"), RUNS, ids=lambda value: value)
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
by_variant = pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)


def variant(options: dict[str, Any]) -> int:
    return CAST_BEFORE * ("cast" in options) + UNIT_OFFSET * ("unit_offset" in options)


# As they are written in transformers, by the names of the first that has each.


def normalized(x: Tensor) -> Tensor:
    wide = x.float()
    return wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPS)


def llama(x: Tensor, weight: Tensor) -> Tensor:
    return weight * normalized(x).to(x.dtype)


def olmo2(x: Tensor, weight: Tensor) -> Tensor:
    return (weight * normalized(x)).to(x.dtype)


def gemma(x: Tensor, weight: Tensor) -> Tensor:
    return (normalized(x) * (1.0 + weight.float())).type_as(x)


@by_run
@pytest.mark.parametrize("weight_dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize(
    ("original", "options"), [(llama, VARIANTS["before"]), (olmo2, {}), (gemma, VARIANTS["offset"])]
)
def test_as_the_originals(
    original: Callable[..., Tensor],
    options: dict[str, Any],
    dtype: torch.dtype,
    weight_dtype: torch.dtype,
    backend: str,
    device: str,
) -> None:
    """The same dtype, and the same bits but where a rounding of the root tips the last one."""
    generator = torch.Generator().manual_seed(0)
    x = (2 * torch.randn(16, 96, generator=generator)).to(device, dtype)
    weight = torch.randn(96, generator=generator).to(device, weight_dtype)
    theirs = original(x, weight)
    with sk.use_backend(backend):
        ours = sk.rms_norm(x, (96,), weight, EPS, **options)
        both, total = sk.add_rms_norm(x, x, (96,), weight, EPS, **options)
    assert ours.dtype == theirs.dtype
    assert (both.dtype, total.dtype) == (original(x + x, weight).dtype, dtype)
    if torch.finfo(theirs.dtype).eps > 1e-4:
        assert (ours != theirs).float().mean() < 0.01
    eps = torch.finfo(dtype if theirs.dtype == dtype or original is llama else theirs.dtype).eps
    torch.testing.assert_close(ours, theirs, rtol=2 * max(eps, 1e-6), atol=1e-5)


@by_run
@by_variant
@pytest.mark.parametrize("case", [case for case in CASES if case.name in NAMES], ids=lambda case: case.name)
@by_dtype
def test_by_the_oracle(backend: str, device: str, options: dict[str, Any], case: Case, dtype: torch.dtype) -> None:
    if backend == "triton" and INTERPRETED and (dtype, case.name) not in IN_THE_INTERPRETER:
        pytest.skip("slow in the interpreter")
    input, shape, weights = inputs(case, dtype, device)
    with sk.use_backend(backend):
        assert_verified(
            lambda x, *w: sk.rms_norm(x, shape, *w, eps=EPS, **options),
            lambda x, *w: reference.forward(x, shape, w[0] if w else None, EPS, variant(options)),
            [input, *weights],
        )
        assert_verified(
            lambda x, *w: sk.add_rms_norm(x, x, shape, *w, eps=EPS, **options)[0],
            lambda x, *w: reference.forward(x + x, shape, w[0] if w else None, EPS, variant(options)),
            [input, *weights],
        )


@by_run
@by_variant
def test_first_and_second_derivatives(backend: str, device: str, options: dict[str, Any]) -> None:
    if backend == "triton" and INTERPRETED and options is not VARIANTS["both"]:
        pytest.skip("slow in the interpreter")
    x, r = (torch.randn(2, 3, dtype=torch.float64, device=device, requires_grad=True) for _ in range(2))
    w = torch.randn(3, dtype=torch.float64, device=device, requires_grad=True)
    with sk.use_backend(backend):
        checks = [
            (lambda x, w: sk.rms_norm(x, (3,), w, 1e-3, **options), (x, w)),
            (lambda x: sk.rms_norm(x, (3,), w.detach(), 1e-3, **options), (x,)),
            (lambda x, r, w: sk.add_rms_norm(x, r, (3,), w, 1e-3, **options), (x, r, w)),
        ]
        for function, arguments in checks[:1] if backend == "triton" and INTERPRETED else checks:
            assert torch.autograd.gradcheck(function, arguments)
            assert torch.autograd.gradgradcheck(function, arguments)


@by_run
@by_variant
@by_dtype
def test_bits_do_not_depend_on_the_batch(
    backend: str, device: str, options: dict[str, Any], dtype: torch.dtype
) -> None:
    for count, width in ((5, 33), (33, 64), *([] if backend == "triton" else [(600, 1000)])):
        x, w = torch.randn(count, width, device=device, dtype=dtype), torch.randn(width, device=device, dtype=dtype)
        with sk.use_backend(backend):
            whole = sk.rms_norm(x, (width,), w, EPS, **options)
            for i in (0, count // 2, count - 1):
                assert torch.equal(whole[i : i + 1], sk.rms_norm(x[i : i + 1], (width,), w, EPS, **options))


@by_run
@by_dtype
def test_a_weight_of_zeros_is_a_weight_of_ones(backend: str, device: str, dtype: torch.dtype) -> None:
    x = torch.randn(9, 70, device=device).to(dtype)
    zeros, ones = torch.zeros(70, device=device, dtype=dtype), torch.ones(70, device=device, dtype=dtype)
    with sk.use_backend(backend):
        expected = sk.rms_norm(x, (70,), ones, EPS)
        assert torch.equal(sk.rms_norm(x, (70,), zeros, EPS, unit_offset=True), expected)
        for options in VARIANTS.values():
            assert torch.equal(sk.rms_norm(x, (70,), None, EPS, **options), sk.rms_norm(x, (70,), None, EPS))
        x[2, 3], x[3, 4], ones[5], ones[6] = torch.nan, torch.inf, torch.nan, torch.inf
        torch.testing.assert_close(
            sk.rms_norm(x, (70,), ones, EPS, cast="before"), sk.rms_norm(x, (70,), ones, EPS), equal_nan=True
        )


@by_variant
@pytest.mark.parametrize("weight_dtype", [torch.bfloat16, torch.float32], ids=str)
def test_transforms(options: dict[str, Any], weight_dtype: torch.dtype) -> None:
    torch._dynamo.reset()  # one limit of recompilations for all that share a forward
    x, w = torch.randn(3, 8).bfloat16(), torch.randn(8, dtype=weight_dtype)

    class Model(torch.nn.Module):
        def forward(self, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
            return sk.rms_norm(x, (8,), w, EPS, **options), sk.add_rms_norm(x, x, (8,), w, EPS, **options)[0]

    expected = Model()(x, w)
    for function in (
        torch.compile(Model(), backend="aot_eager", fullgraph=True),
        torch.export.export(Model(), (x, w)).module(),
        torch.fx.symbolic_trace(Model()),
        torch.func.vmap(Model(), (0, None)),
    ):
        for ours, theirs in zip(function(x, w), expected, strict=True):
            assert torch.equal(ours, theirs)
    meta = Model()(x.to("meta"), w.to("meta"))
    assert [one.dtype for one in meta] == [one.dtype for one in expected]
    w.requires_grad_()

    def gradients(model: Callable[..., tuple[Tensor, Tensor]]) -> Tensor:
        return torch.autograd.grad([one.float().sum() for one in model(x, w)], w)[0]

    compiled = torch.compile(Model(), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(gradients(compiled), gradients(Model()))


@pytest.mark.parametrize("training", [False, True])
def test_refused(training: bool) -> None:
    x = torch.randn(2, 8, requires_grad=training)
    for options, error, message in (
        ({"cast": "never"}, ValueError, r"rms_norm: expected cast of 'after' or 'before', got 'never'"),
        ({"cast": None}, ValueError, r"rms_norm: expected cast of 'after' or 'before', got None"),
        ({"unit_offset": "yes"}, TypeError, r"rms_norm: expected unit_offset to be a bool, got str"),
    ):
        with pytest.raises(error, match=message):
            sk.rms_norm(x, (8,), torch.ones(8), **options)
        with pytest.raises(error, match="add_" + message):
            sk.add_rms_norm(x, x, (8,), torch.ones(8), **options)
        with pytest.raises(error, match=message.replace("rms_norm", "RMSNorm")):
            sk.nn.RMSNorm(8, **options)
    with pytest.raises(ValueError, match=r"rms_norm: expected weight of shape \[8\]"):
        sk.rms_norm(x, (8,), torch.ones(7, dtype=torch.float64), cast="before")


def test_operators_refuse_a_weight_that_widens() -> None:
    """The public functions multiply apart from them."""
    x, w = torch.randn(2, 8).bfloat16(), torch.ones(8)
    for call in (
        lambda: torch.ops.sparsekernels._rms_norm(x, 1 + CAST_BEFORE, 8, w, EPS),
        lambda: torch.ops.sparsekernels._rms_norm(x.to("meta"), 1 + CAST_BEFORE, 8, w.to("meta"), EPS),
        lambda: torch.ops.sparsekernels.rms_norm(x, (8,), w, EPS, CAST_BEFORE),
    ):
        with pytest.raises((ValueError, RuntimeError), match="expected weight whose product with input"):
            call()


def test_module() -> None:
    x = torch.randn(3, 8).bfloat16()
    before = sk.nn.RMSNorm(8, EPS, cast="before")
    assert before(x).dtype == torch.float32
    assert repr(before) == "RMSNorm((8,), eps=1e-06, elementwise_affine=True, cast='before')"
    offset = sk.nn.RMSNorm(8, EPS, unit_offset=True)
    assert not offset.weight.any()
    assert repr(offset) == "RMSNorm((8,), eps=1e-06, elementwise_affine=True, unit_offset=True)"
    assert offset(x).dtype == torch.bfloat16
    torch.nn.init.normal_(offset.weight)
    for module in (offset, copy.deepcopy(offset), pickle.loads(pickle.dumps(offset))):
        assert torch.equal(module(x), sk.rms_norm(x, (8,), offset.weight, EPS, unit_offset=True))
        assert torch.equal(
            module.add_forward(x, x)[0], sk.add_rms_norm(x, x, (8,), offset.weight, EPS, unit_offset=True)[0]
        )
