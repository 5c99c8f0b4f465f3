# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Blocks in bfloat16 on kernels of their own: every case of sparse convolution in blocks of many sizes, against the
oracle, with all gradients; and what calls by `sparse_conv2d` and `sparse_linear` make of them.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from sparse_conv2d_cases import CASES as ALL_CASES
from sparse_conv2d_cases import CONVOLUTIONS, Case, channels_last, random
from torch import Tensor

import sparsekernels as sk
from sparsekernels import _library
from sparsekernels.ops.sparse_conv2d import block_reference, blocks, op
from sparsekernels.testing import assert_verified, compare

compiled_only = pytest.mark.skipif(_library.cpu is None, reason="the compiled kernels were not built")

CASES = tuple(case for case in ALL_CASES if len(case.weight) != 3)  # sequences are images one pixel high
BLOCKS = ((32, 32), (16, 16), (16, 2), (16, 1), (8, 8), (4, 4), (24, 40), (1, 1), (5, 3), (128, 64), (40, 6), (2, 16))
WIDE = (
    Case("two block rows", (2, 70, 5, 5), (64, 70, 3, 3), padding=1, mask=random(0.01)),
    Case("many channels", (20, 130, 6, 7), (100, 130, 3, 3), padding=1, mask=random(0.004), view=channels_last),
    Case("groups of 48", (3, 96, 7, 7), (96, 48, 3, 3), padding=1, groups=2, mask=random(0.01)),
    Case("linear of 300 rows", (300, 150), (140, 150), mask=random(0.02), view=lambda x: x),
)


def images_of(case: Case, x: Tensor) -> Tensor:
    if case.is_linear:
        return x.reshape(-1, case.weight[1], 1, 1)
    return x if x.dim() == 4 else x[None]


def weight_of(case: Case, block: tuple[int, int], dense: Tensor, generator: torch.Generator) -> sk.BlockSparse:
    shape = (*case.weight, 1, 1)[:4]
    return sk.BlockSparse.from_dense(dense.view(shape), case.mask(case.weight, generator).view(shape), block=block)


def takes(case: Case, block: tuple[int, int]) -> bool:
    return case.groups == 1 or case.weight[0] // case.groups % block[0] == 0


def tensors_of(case: Case, block: tuple[int, int]) -> tuple[sk.BlockSparse, list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    input = images_of(case, case.view(torch.randn(case.shape, generator=generator).bfloat16()))
    weight = weight_of(case, block, torch.randn(case.weight, generator=generator).bfloat16(), generator)
    tensors = [input, weight.values]
    if case.bias:
        tensors.append(torch.randn(case.weight[0], generator=generator).bfloat16())
    return weight, [tensor.detach().requires_grad_() for tensor in tensors]


def call(operator: Callable[..., Tensor], case: Case, weight: sk.BlockSparse) -> Callable[..., Tensor]:
    pattern = weight.crow_indices, weight.col_indices, list(weight.block_size), weight.shape[0]
    geometry = list(case.geometry)
    return lambda x, v, *b: operator(x, v, b[0] if b else None, *pattern, geometry)


@compiled_only
@pytest.mark.parametrize("case", CASES + WIDE, ids=lambda case: case.name)
def test_block_conv2d(case: Case) -> None:
    """Values and gradients of the operator. Each case has three of the block sizes, all have all of them."""
    place = (CASES + WIDE).index(case)
    tried = [block for i, block in enumerate(BLOCKS) if (i + place) % 4 == 0 and takes(case, block)]
    for block in tried or [(1, 2)]:
        weight, tensors = tensors_of(case, block)
        assert_verified(
            call(blocks.block_conv2d.overload, case, weight), call(block_reference.forward, case, weight), tensors
        )


@compiled_only
@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"{block[0]}x{block[1]}")
def test_epilogue(block: tuple[int, int]) -> None:
    """Residual and limits, with and without the others, in both layouts, against the reference in float64."""
    for case in (CONVOLUTIONS[2], CONVOLUTIONS[-9], WIDE[0], WIDE[1]):
        weight, (input, values, *bias) = tensors_of(case, block)
        x, v, b = input.detach(), values.detach(), bias[0].detach() if bias else None
        pattern = weight.crow_indices, weight.col_indices, list(block), weight.shape[0], list(case.geometry)
        plain = blocks.compiled.forward(x, v, b, *pattern)
        residual = torch.randn_like(plain)
        for other, low, high in ((residual, 0.0, None), (residual, None, None), (None, 0.0, 0.5), (None, None, 0.0)):
            y = blocks.compiled.forward(x, v, b, *pattern, other, low, high)
            wide = [None if t is None else t.double() for t in (x, v, b, other)]
            truth = block_reference.forward(*wide[:3], *pattern, wide[3], low, high)
            sums = block_reference.forward(*wide[:3], *pattern, wide[3])
            error = block_reference.forward(x, v, b, *pattern, other).double() - sums
            comparison = compare("output", y, truth, truth + error)
            assert comparison.passed, (comparison, case.name, other is None, low, high)
            assert y.stride() == plain.stride()


@compiled_only
@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"{block[0]}x{block[1]}")
def test_writes_over_the_residual(block: tuple[int, int]) -> None:
    """The bits of a result of its own; a residual that does not fit is refused, and not written to."""
    case = WIDE[1]
    weight, (input, values, bias) = tensors_of(case, block)
    x, v, b = channels_last(input.detach()), values.detach(), bias.detach()
    operands = x, v, b, weight.crow_indices, weight.col_indices, list(block), weight.shape[0], list(case.geometry)
    residual = channels_last(torch.randn_like(blocks.compiled.forward(*operands)))
    for low, high in ((None, None), (0.0, None), (-0.5, 0.5)):
        expected = blocks.compiled.forward(*operands, residual, low, high)
        result = residual.clone(memory_format=torch.preserve_format)
        torch.ops.sparsekernels._block_conv2d_(*operands, result, low, high)
        assert torch.equal(result, expected)
        fused = blocks.fused_forward(x, weight, v, b, case.geometry, result, low, high, takes_residual=True)
        assert (fused is result) == blocks.serves(weight, x, 1)
    for other in (residual.contiguous(), residual.float(), residual[:, :-1], residual[:1].expand_as(residual)):
        kept = other.clone()
        with pytest.raises(ValueError, match="expected residual of the shape"):
            torch.ops.sparsekernels._block_conv2d_(*operands, other)
        assert torch.equal(other, kept)


@compiled_only
@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"{block[0]}x{block[1]}")
def test_reads_a_dense_weight(block: tuple[int, int]) -> None:
    """By the same bits as its values, in any layout."""
    case = WIDE[1]
    weight, (input, values, bias) = tensors_of(case, block)
    pattern = weight.crow_indices, weight.col_indices, list(block)
    geometry = list(case.geometry)
    dense = torch.randn(weight.shape).bfloat16()  # what is outside of the blocks is not read
    dense.view(-1)[weight.flat_indices] = values.detach()
    expected = blocks.compiled.forward(input.detach(), values.detach(), bias.detach(), *pattern, 100, geometry)
    image = (*input.shape[1:], True)
    grads = torch.randn(expected.shape).bfloat16()
    gradient = blocks.compiled.input_gradient(grads, values.detach(), *pattern, geometry, *image)
    for view in (dense, channels_last(dense), dense.transpose(0, 1).contiguous().transpose(0, 1)):
        assert torch.equal(
            blocks.compiled.forward(input.detach(), view, bias.detach(), *pattern, 100, geometry), expected
        )
        assert torch.equal(blocks.compiled.input_gradient(grads, view, *pattern, geometry, *image), gradient)


@compiled_only
@pytest.mark.parametrize("block", [(32, 32), (16, 16), (16, 32), (32, 16), (20, 32)], ids=lambda block: f"{block}")
def test_few_positions(block: tuple[int, int]) -> None:
    """Values that are read where they are give the bits that they give where they are laid out for many positions."""
    case = Case("whole blocks", (300, 128), (160, 128), mask=random(0.05), view=lambda x: x)
    for few in (case, dataclasses.replace(case, shape=(5, 128))):
        weight, tensors = tensors_of(few, block)
        assert_verified(
            call(blocks.block_conv2d.overload, few, weight), call(block_reference.forward, few, weight), tensors
        )
    weight, tensors = tensors_of(case, block)
    run = call(blocks.block_conv2d.overload, case, weight)
    input, *others = [tensor.detach() for tensor in tensors]
    expected = run(input, *others)
    for rows in (1, 2, 16, 17, 64, 65, 130):
        assert torch.equal(run(input[:rows], *others), expected[:rows]), rows


@compiled_only
@pytest.mark.parametrize("block", [(32, 32), (16, 16), (16, 2)], ids=lambda block: f"{block[0]}x{block[1]}")
def test_weights_beyond_the_cache(block: tuple[int, int]) -> None:
    """16 MB of weights, which work items take in shares."""
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(2048, 4096, generator=generator).bfloat16()
    mask = torch.rand(2048 // block[0], 4096 // block[1], generator=generator) < 0.95
    kept = mask.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    weight = sk.BlockSparse.from_dense(dense.view(2048, 4096, 1, 1), kept.view(2048, 4096, 1, 1), block=block)
    pattern = weight.crow_indices, weight.col_indices, list(block)
    geometry = [1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1]
    x = torch.randn(200, 4096, generator=generator).bfloat16()
    y = blocks.compiled.forward(x[..., None, None], weight.values, None, *pattern, 2048, geometry)[..., 0, 0]
    truth = x.double() @ (dense * kept).double().T
    assert (comparison := compare("output", y, truth, x @ (dense * kept).T)).passed, comparison
    image = (4096, 1, 1, True)
    grads = blocks.compiled.input_gradient(y[..., None, None], weight.values, *pattern, geometry, *image)[..., 0, 0]
    truth = y.double() @ (dense * kept).double()
    assert (comparison := compare("input gradient", grads, truth, y @ (dense * kept))).passed, comparison


@compiled_only
@pytest.mark.parametrize("block", [(32, 32), (16, 1), (16, 2)], ids=lambda block: f"{block[0]}x{block[1]}")
def test_same_bits_for_any_number_of_threads(block: tuple[int, int]) -> None:
    threads = torch.get_num_threads()
    for case in (WIDE[1], WIDE[3]):
        weight, tensors = tensors_of(case, block)
        found = []
        try:
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                output = call(blocks.block_conv2d.overload, case, weight)(*tensors)
                found.append([output, *torch.autograd.grad(output.square().sum(), tensors)])
        finally:
            torch.set_num_threads(threads)
        for other in found[1:]:
            assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@compiled_only
def test_second_derivatives() -> None:
    """Of the sums that the three kernels are: in bfloat16 against float64, whose derivatives are torch's."""
    case = Case("second", (3, 20, 5, 4), (24, 20, 3, 3), padding=1, mask=random(0.1), bias=False)
    weight, tensors = tensors_of(case, (8, 4))

    def second(run: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, ...]]:
        def derivatives(x: Tensor, v: Tensor) -> tuple[Tensor, ...]:
            y = run(x, v)
            dx, dv = torch.autograd.grad(y, (x, v), y.detach(), create_graph=True)
            return torch.autograd.grad((dx * x.detach()).sum() + (dv * v.detach()).sum(), (x, v))

        return derivatives

    assert_verified(
        second(call(blocks.block_conv2d.overload, case, weight)),
        second(call(block_reference.forward, case, weight)),
        tensors,
        gradients=False,
    )


@compiled_only
def test_refuses() -> None:
    case = WIDE[0]
    weight, (input, values, bias) = tensors_of(case, (16, 8))
    x, v, b, crow, col = (t.detach() for t in (input, values, bias, weight.crow_indices, weight.col_indices))
    forward, geometry = torch.ops.sparsekernels._block_conv2d.default, list(case.geometry)
    block = [16, 8]
    forward(x, v, b, crow, col, block, 64, geometry)
    ascending, beyond = col.flip(0).contiguous(), col.clone()
    beyond[-1] = 9 * 9
    for arguments, words in (
        ((x.float(), v, b, crow, col, block, 64), "bfloat16"),
        ((x, v.float(), b, crow, col, block, 64), "weight"),
        ((x, v[1:], b, crow, col, block, 64), "values"),
        ((x, v, b[1:], crow, col, block, 64), "bias"),
        ((x, v, b, crow[1:], col, block, 64), "indices"),
        ((x, v, b, crow, ascending, block, 64), "ascend"),
        ((x, v, b, crow, beyond, block, 64), "col_indices"),
        ((x, v, b, crow, col.long(), block, 64), "indices"),
        ((x, v, b, crow, col, [0, 8], 64), "block"),
        ((x, v, b, crow, col, [16, 129], 64), "block"),
        ((x, v, b, crow, col, [16], 64), "block"),
        ((x, v, b, crow, col, block, 0), "rows"),
        ((x[0], v, b, crow, col, block, 64), "dimensions"),
        ((x, v.view(1, -1), b, crow, col, block, 64), "weight"),
    ):
        with pytest.raises((RuntimeError, ValueError, TypeError), match=words):
            forward(*arguments, geometry)


@compiled_only
@pytest.mark.parametrize(
    "environment", [{"SPARSEKERNELS_CPU_AMX": "0"}, {"SPARSEKERNELS_CPU_ISA": "portable"}], ids=str
)
def test_other_kernels(environment: dict[str, str]) -> None:
    """The same tests on the kernels that this machine would not take."""
    if environment.items() <= os.environ.items() or "SPARSEKERNELS_CPU_ISA" in os.environ:
        pytest.skip("these are the kernels that run now")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__]
    chosen = "batch or stride or channels or linear or epilogue or dense_weight or derivatives"
    root = Path(__file__).resolve().parents[3]
    ran = subprocess.run(
        [*command, "-k", f"({chosen}) and not other_kernels"],
        env={**os.environ, **environment, "SPARSEKERNELS_QUIET": "1"},
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-2000:]
    assert " passed" in ran.stdout


# Calls by the public functions


def is_fast() -> bool:
    return blocks.has_block_kernel(torch.device("cpu"), torch.bfloat16, (32, 32))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
@pytest.mark.parametrize("block", [(32, 32), (16, 2), (4, 4)], ids=lambda block: f"{block[0]}x{block[1]}")
def test_public_functions(block: tuple[int, int], dtype: torch.dtype) -> None:
    """As the dense layer computes, with all gradients, whatever kernels serve."""
    for case in (*WIDE, CONVOLUTIONS[-1]):
        if not takes(case, block):
            continue
        generator = torch.Generator().manual_seed(1)
        x = case.view(torch.randn(case.shape, generator=generator).to(dtype)).detach().requires_grad_()
        dense = torch.randn(case.weight, generator=generator).to(dtype)
        weight = sk.BlockSparse.from_dense(dense, case.mask(case.weight, generator), block=block)
        values, bias = weight.values.clone().requires_grad_(), torch.randn(case.weight[0]).to(dtype).requires_grad_()

        def ours(x: Tensor, v: Tensor, b: Tensor, case: Case = case, weight: sk.BlockSparse = weight) -> Tensor:
            if case.is_linear:
                return sk.sparse_linear(x, weight.with_values(v), b)
            options = case.stride, case.padding, case.dilation, case.groups
            return sk.sparse_conv2d(x, weight.with_values(v), b, *options)

        def truth(x: Tensor, v: Tensor, b: Tensor, case: Case = case, weight: sk.BlockSparse = weight) -> Tensor:
            whole = weight.with_values(v).to_dense()
            wide = [t.double() if t.dtype is torch.float64 else t.float() for t in (x, whole, b)]
            if case.is_linear:
                return torch.nn.functional.linear(*wide).to(x.dtype)
            options = case.stride, case.padding, case.dilation, case.groups
            return torch.nn.functional.conv2d(*wide, *options).to(x.dtype)

        assert_verified(ours, truth, [x, values, bias])


@pytest.mark.skipif(not is_fast(), reason="blocks have no kernels of their own here")
def test_which_kernels_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks' own in bfloat16, eager, under autocast and compiled; those of single elements elsewhere."""
    calls = []
    own = blocks.conv2d
    monkeypatch.setattr(op.blocks, "conv2d", lambda *arguments: calls.append(1) or own(*arguments))
    dense = torch.randn(64, 64) * torch.rand(64, 64).ge(0.5)
    weight, x = sk.BlockSparse.from_dense(dense, block=(32, 32), sparsity=0.5), torch.randn(5, 64)

    def served(run: Callable[[], object]) -> bool:
        calls.clear()
        run()
        return bool(calls)

    assert not served(lambda: sk.sparse_linear(x, weight))
    assert served(lambda: sk.sparse_linear(x.bfloat16(), weight.to(torch.bfloat16)))
    assert not served(lambda: sk.sparse_linear(x.half(), weight.to(torch.float16)))
    with torch.autocast("cpu", torch.bfloat16):
        assert served(lambda: sk.sparse_linear(x, weight))
    small = sk.BlockSparse.from_dense(dense, block=(4, 4), sparsity=0.5).to(torch.bfloat16)
    assert not served(lambda: sk.sparse_linear(x.bfloat16(), small))
    with sk.use_backend("reference"):
        assert not served(lambda: sk.sparse_linear(x.bfloat16(), weight.to(torch.bfloat16)))


@pytest.mark.parametrize("training", [False, True])
def test_layers(training: bool) -> None:
    """A layer of blocks computes what the dense one does, and trains its blocks alone."""
    torch.manual_seed(0)
    dense = torch.nn.Conv2d(64, 64, 3, padding=1).bfloat16().to(memory_format=torch.channels_last)
    sk.pruning.prune_blocks_(dense, (32, 32), 0.5)
    layer = sk.nn.SparseConv2d.from_dense(dense, format="block", block=(32, 32))
    x = torch.randn(3, 64, 6, 6).bfloat16()
    with torch.set_grad_enabled(training):
        y, z = layer(x), dense(x)
    error = (y.double() - z.double()).abs().max()
    assert error <= 2**-6 * z.abs().max()
    if training:
        y.sum().backward()
        z.sum().backward()
        assert layer.weight.grad is not None
        assert dense.weight.grad is not None
        assert not layer.weight.grad[~layer.mask].any()
        difference = (layer.weight.grad - dense.weight.grad)[layer.mask].abs().max()
        assert difference <= 2**-6 * dense.weight.grad.abs().max()
    with torch.no_grad():
        layer.weight.view(-1)[(~layer.mask).flatten().nonzero()[0]] = 8.0
        with pytest.warns(UserWarning, match="would leave out"):
            shown = layer(x)
    assert (shown - y).abs().max() > 0.1


@pytest.mark.skipif(not is_fast(), reason="blocks have no kernels of their own here")
def test_compiled_code_has_the_kernels() -> None:
    layer = sk.nn.SparseLinear(64, 96, format="block", block=(32, 32)).bfloat16()
    layer.set_pattern(torch.rand(96, 64) < 0.002)
    x = torch.randn(7, 64).bfloat16().requires_grad_()
    expected = layer(x)
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        graphs.append(graph.print_readable(print_output=False))
        return graph.forward

    found = torch.compile(layer, fullgraph=True, backend=backend)(x)
    assert "block_conv2d" in graphs[0]
    assert torch.equal(found, expected)
    gradients = [torch.autograd.grad(y.float().square().sum(), (x, layer.weight)) for y in (found, expected)]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
