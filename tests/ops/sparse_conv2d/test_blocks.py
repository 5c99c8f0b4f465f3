# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""sparse_conv2d and sparse_linear by weights in blocks: what the definition says, on every route of a call."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from sparse_conv2d_cases import DTYPES
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import sparsekernels as sk
from sparsekernels import _library
from sparsekernels.ops.convolution import LINEAR, geometry_of
from sparsekernels.ops.sparse_conv2d import op, reference
from sparsekernels.ops.sparse_conv2d.gradients import bias_gradient
from sparsekernels.testing import assert_verified


@dataclass(frozen=True)
class Case:
    """input: its shape. weight: the shape of the dense weight. density: of the mask that chooses blocks."""

    name: str
    input: tuple[int, ...]
    weight: tuple[int, ...]
    block: tuple[int, int]
    density: float = 0.05
    options: tuple[tuple[str, Any], ...] = ()
    bias: bool = True
    channels_last: bool = False

    @property
    def is_linear(self) -> bool:
        return len(self.weight) == 2


CASES = (
    Case("linear", (3, 5, 64), (64, 64), (32, 32), 0.001),
    Case("linear, 16x2", (20, 64), (48, 64), (16, 2), 0.01),
    Case("linear, ragged", (9, 45), (70, 45), (32, 16), 0.005),
    Case("linear, one row, one column of blocks", (1, 5), (3, 5), (128, 128), 0.1),
    Case("linear, empty", (4, 16), (8, 16), (4, 4), 0.0),
    Case("linear, full", (4, 16), (8, 16), (4, 4), 1.0),
    Case("linear, no rows", (0, 16), (8, 16), (4, 4)),
    Case("3x3", (2, 16, 9, 7), (32, 16, 3, 3), (16, 16), 0.005, (("padding", 1),)),
    Case("3x3, ragged", (3, 11, 6, 7), (21, 11, 3, 3), (8, 4), 0.02, (("padding", 1), ("stride", 2))),
    Case("24x40", (1, 50, 4, 4), (30, 50, 1, 1), (24, 40), 0.001),
    Case("groups", (2, 12, 5, 5), (18, 4, 3, 2), (4, 3), 0.05, (("groups", 3), ("padding", (1, 0)))),
    Case("depthwise", (2, 6, 5, 5), (6, 1, 3, 3), (4, 2), 0.1, (("groups", 6), ("padding", "same"))),
    Case("dilation, no bias", (2, 8, 9, 9), (8, 8, 2, 3), (4, 1), 0.1, (("dilation", (2, 1)),), bias=False),
    Case("channels last", (2, 16, 6, 6), (16, 16, 3, 3), (16, 1), 0.02, (("padding", 1),), channels_last=True),
    Case("one image", (8, 6, 6), (8, 8, 3, 3), (4, 4), 0.05),
    Case("empty", (2, 8, 5, 5), (8, 8, 3, 3), (4, 4), 0.0),
)
by_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def inputs(case: Case, dtype: torch.dtype) -> tuple[sk.BlockSparse, list[Tensor]]:
    """A pattern, and input, values and bias that require gradients."""
    dense, mask = torch.randn(case.weight).to(dtype), torch.rand(case.weight) < case.density
    pattern = sk.BlockSparse.from_dense(dense, mask, block=case.block)
    x = torch.randn(case.input).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last) if case.channels_last else x
    tensors = [x, pattern.values, *([torch.randn(case.weight[0]).to(dtype)] if case.bias else [])]
    return pattern, [tensor.clone().requires_grad_() for tensor in tensors]


def ours(case: Case, pattern: sk.BlockSparse) -> Callable[..., Tensor]:
    def run(x: Tensor, values: Tensor, bias: Tensor | None = None) -> Tensor:
        weight = pattern.with_values(values)
        if case.is_linear:
            return sk.sparse_linear(x, weight, bias)
        return sk.sparse_conv2d(x, weight, bias, **dict(case.options))

    return run


def definition(case: Case, pattern: sk.BlockSparse) -> Callable[..., Tensor]:
    def run(x: Tensor, values: Tensor, bias: Tensor | None = None) -> Tensor:
        dense = pattern.with_values(values).to_dense()
        if case.is_linear:
            rows = x.reshape(-1, x.shape[-1], 1, 1)
            y = reference.dense_forward(rows, dense[:, :, None, None], bias, LINEAR)
            return y.view(*x.shape[:-1], case.weight[0])
        options = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, **dict(case.options)}
        images = x[None] if x.dim() == 3 else x
        y = reference.dense_forward(images, dense, bias, geometry_of(pattern.shape, **options))
        return y[0] if x.dim() == 3 else y

    return run


BACKENDS = [None, "reference", *(["cpu"] if _library.cpu is not None else [])]


@by_case
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_results_and_gradients(case: Case, dtype: torch.dtype, backend: str | None) -> None:
    if (backend, dtype) == ("cpu", torch.float64):
        pytest.skip("the kernels have no float64")
    pattern, tensors = inputs(case, dtype)
    with contextlib.nullcontext() if backend is None else sk.use_backend(backend):
        assert_verified(ours(case, pattern), definition(case, pattern), tensors)
        with torch.no_grad():
            plain = [tensor.detach() for tensor in tensors]
            assert_verified(ours(case, pattern), definition(case, pattern), plain, gradients=False)
            output = ours(case, pattern)(*plain)
    if case.channels_last:
        assert output.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")
@by_case
def test_it_has_the_bits_of_its_elements(case: Case) -> None:
    """Where blocks have no kernel of their own they run on the plan that their elements have."""
    pattern, (x, values, *bias) = inputs(case, torch.float32)
    elements = pattern.with_values(values).elements()
    fine = ours(case, elements)(x, elements.values, *bias)  # type: ignore[arg-type]
    blocks = ours(case, pattern)(x, values, *bias)
    assert torch.equal(blocks, fine)
    seed = torch.randn_like(blocks)
    both = (torch.autograd.grad(y, [x, values, *bias], seed) for y in (blocks, fine))
    assert all(torch.equal(one, other) for one, other in zip(*both, strict=True))
    if case.name != "one image":
        assert len(elements.plans) == 1


@pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")
@by_case
@pytest.mark.parametrize("recorded", [False, True], ids=["eager", "recorded backward"])
def test_second_derivatives_have_the_bits_of_its_elements(case: Case, recorded: bool) -> None:
    """Values keep the order of blocks through all passes, also where one of them may not be made by a plan."""
    pattern, (x, values, *bias) = inputs(case, torch.float32)
    elements = pattern.with_values(values).elements()

    def both(run: Callable[..., Tensor], given: Tensor) -> tuple[Tensor, ...]:
        y = run(x, given, *bias)
        seed = torch.linspace(-1, 1, y.numel()).view_as(y)
        with FlopCounterMode(display=False) if recorded else contextlib.nullcontext():
            first = torch.autograd.grad(y, [x, values], seed, create_graph=True)
            total = sum(((one * torch.linspace(-1, 1, one.numel()).view_as(one)).sum() for one in first), x.sum())
            return *first, *torch.autograd.grad(total, [x, values])

    ordered = both(ours(case, pattern), values)
    plain = both(ours(case, elements), elements.values)  # type: ignore[arg-type]
    assert all(torch.equal(one, other) for one, other in zip(ordered, plain, strict=True))


@pytest.mark.parametrize("name", ["linear, ragged", "groups", "3x3, ragged"])
@pytest.mark.usefixtures("one_thread")
def test_second_derivatives(name: str) -> None:
    small = {"linear, ragged": ((3, 5), (6, 5)), "groups": ((1, 6, 3, 3), (9, 2, 3, 2))}
    case = next(case for case in CASES if case.name == name)
    shapes = small.get(name, ((1, 3, 4, 4), (5, 3, 3, 3)))
    case = Case(name, *shapes, block=(4, 2), density=0.1, options=case.options)
    pattern, tensors = inputs(case, torch.float64)
    assert torch.autograd.gradcheck(ours(case, pattern), tensors)
    assert torch.autograd.gradgradcheck(ours(case, pattern), tensors)


@by_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dense_weights(case: Case, dtype: torch.dtype) -> None:
    """The gradient to all of a dense weight, of which the blocks are read."""
    pattern, (x, _, *bias) = inputs(case, dtype)
    dense = torch.randn(case.weight).to(dtype).requires_grad_()
    options = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, **dict(case.options)}

    def run(x: Tensor, weight: Tensor, *bias: Tensor) -> Tensor:
        if case.is_linear:
            return op.linear(x, pattern, weight, bias[0] if bias else None)
        return op.conv2d(x, pattern, weight, bias[0] if bias else None, **options)

    def whole(x: Tensor, weight: Tensor, *bias: Tensor) -> Tensor:
        used, b = reference.used_weight(weight, pattern.flat_indices), bias[0] if bias else None
        if case.is_linear:
            rows = x.reshape(-1, x.shape[-1], 1, 1)
            return reference.dense_forward(rows, used[:, :, None, None], b, LINEAR).view(*x.shape[:-1], case.weight[0])
        images = x[None] if x.dim() == 3 else x
        y = reference.dense_forward(images, used, b, geometry_of(pattern.shape, **options))
        return y[0] if x.dim() == 3 else y

    assert_verified(run, whole, [x, dense, *bias])


@pytest.mark.parametrize("warm", [False, True], ids=["met in the graph", "worked out before"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic: bool, warm: bool) -> None:
    conv, fc = (next(case for case in CASES if case.name == name) for name in ("3x3, ragged", "linear, ragged"))
    (kernel, (_, kernel_values, *_)), (matrix, _) = inputs(conv, torch.float32), inputs(fc, torch.float32)
    if warm:
        kernel.transposed(), matrix.transposed()

    def net(x: Tensor, v: Tensor) -> Tensor:
        y = sk.sparse_conv2d(x, kernel.with_values(v), None, 2, 1).relu().flatten(1)
        return sk.sparse_linear(y.repeat(1, 2)[:, :45], matrix)

    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for images in (3, 4):
        x = torch.randn(images, *conv.input[1:], requires_grad=True)
        actual, expected = compiled(x, kernel_values), net(x, kernel_values)
        torch.testing.assert_close(actual, expected)
        mine, theirs = (torch.autograd.grad(y.square().sum(), (x, kernel_values)) for y in (actual, expected))
        for one, other in zip(mine, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x, kernel_values), expected)


def test_transforms() -> None:
    case = next(case for case in CASES if case.name == "groups")
    pattern, (x, values, bias) = inputs(case, torch.float32)
    run, whole = ours(case, pattern), definition(case, pattern)
    several = torch.randn(3, *values.shape)
    actual = torch.func.vmap(run, (None, 0, None))(x, several, bias)
    torch.testing.assert_close(actual, torch.stack([whole(x, v, bias) for v in several]), rtol=1e-4, atol=1e-4)

    def loss(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda v, image: function(image[None], v, bias).square().sum()

    gradients = (torch.func.vmap(torch.func.grad(loss(one)), (None, 0)) for one in (run, whole))
    per_image = (one(values.detach(), x.detach()) for one in gradients)
    torch.testing.assert_close(*per_image, rtol=1e-4, atol=1e-4)
    tangents = [torch.randn_like(tensor) for tensor in (x, values)]
    forward = (
        torch.func.jvp(lambda x, v, one=one: one(x, v, bias), (x.detach(), values.detach()), tuple(tangents))[1]
        for one in (run, whole)
    )
    torch.testing.assert_close(*forward, rtol=1e-4, atol=1e-4)


def test_autocast() -> None:
    for name in ("linear, ragged", "3x3, ragged"):
        case = next(case for case in CASES if case.name == name)
        pattern, tensors = inputs(case, torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            actual = ours(case, pattern)(*tensors)
        halves = [tensor.detach().bfloat16().requires_grad_() for tensor in tensors]
        expected = ours(case, pattern)(*halves)
        assert actual.dtype == torch.bfloat16
        assert torch.equal(actual, expected)
        seed = torch.randn_like(actual)
        mine = torch.autograd.grad(actual, tensors, seed)
        for one, other in zip(mine, torch.autograd.grad(expected, halves, seed), strict=True):
            torch.testing.assert_close(one, other.float())


def test_recorded() -> None:
    """By torch.fx, torch.export and torch.jit.trace, which hold plain tensors."""
    case = next(case for case in CASES if case.name == "3x3, ragged")
    pattern, tensors = inputs(case, torch.float32)
    x, values, bias = (tensor.detach() for tensor in tensors)
    weight = pattern.with_values(values)

    class Net(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return sk.sparse_conv2d(x, weight, bias, 2, 1)

    net, expected = Net(), Net()(x)
    torch.testing.assert_close(torch.fx.symbolic_trace(net)(x), expected)
    torch.testing.assert_close(torch.export.export(net, (x,)).module()(x), expected)
    torch.testing.assert_close(torch.jit.trace(net, (x,))(x), expected)


def test_what_is_refused() -> None:
    pattern, (x, *_) = inputs(CASES[2], torch.float32)
    for input in (x, x.detach()):
        with pytest.raises(ValueError, match=r"sparse_linear: expected input of shape \[\*, 45\]"):
            sk.sparse_linear(input[:, 1:], pattern)
        with pytest.raises(TypeError, match="expected weight of dtype torch.bfloat16 like input, got torch.float32"):
            sk.sparse_linear(input.bfloat16(), pattern)
        with pytest.raises(ValueError, match=r"expected bias of shape \[70\] for the outputs, got \[69\]"):
            sk.sparse_linear(input, pattern, torch.ones(69))
        with pytest.raises(ValueError, match=r"sparse_conv2d: expected weight of shape \[out, in/groups, kh, kw\]"):
            sk.sparse_conv2d(input, pattern)
    conv, (images, *_) = inputs(CASES[7], torch.float32)
    for channels in (15, 17):
        with pytest.raises(ValueError, match=f"expected input of 16 channels .*, got {channels}"):
            sk.sparse_conv2d(torch.ones(1, channels, 5, 5), conv)
    with pytest.raises(ValueError, match="expected groups to divide the 32 outputs, got 3"):
        sk.sparse_conv2d(torch.ones(1, 48, 5, 5), conv, groups=3)
    with pytest.raises(TypeError, match="expected weight to be a sparsekernels.Unstructured or BlockSparse"):
        sk.sparse_conv2d(images, conv.to_dense())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_bias_gradients_are_sums_in_float32(dtype: torch.dtype, layout: torch.memory_format) -> None:
    """Rounded once, whatever the layout; each sum of 40 thousand numbers near 1 would be 256 in bfloat16 itself."""
    torch.manual_seed(0)
    grad_output = (1 + 0.1 * torch.randn(20, 16, 45, 45)).to(dtype).contiguous(memory_format=layout)
    expected = grad_output.double().sum((0, 2, 3))
    assert ((bias_gradient(grad_output).double() - expected).abs() <= torch.finfo(dtype).eps * expected).all()
    assert torch.equal(bias_gradient(grad_output), grad_output.float().sum((0, 2, 3)).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_of_each_sample(dtype: torch.dtype) -> None:
    """What a pattern keeps is not that of a transform: also where a transform is the first to ask for it."""
    weight, x = torch.randn(64, 64).to(dtype), torch.randn(4, 3, 64).to(dtype)
    mask = torch.rand(2, 2) < 0.7
    mask[0, 0] = True
    kept = mask.repeat_interleave(32, 0).repeat_interleave(32, 1)
    for convert in (sk.BlockSparse.from_dense(weight, kept, block=(32, 32)), sk.Unstructured.from_dense(weight, kept)):
        pattern: Any = convert

        def loss(values: Tensor, x: Tensor, pattern: Any = pattern) -> Tensor:
            return sk.sparse_linear(x, pattern.with_values(values)).float().square().sum()

        found = torch.vmap(torch.func.grad(loss), (None, 0))(pattern.values.clone(), x)
        for each, one in zip(found, x, strict=True):
            values = pattern.values.clone().requires_grad_()
            (wanted,) = torch.autograd.grad(loss(values, one), values)
            torch.testing.assert_close(each, wanted, rtol=0.02, atol=0.02 * float(wanted.abs().max()))
        assert sk.sparse_linear(x[0], pattern).shape == (3, 64)
