# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Sparse and masked operations on every device and by every backend: results, gradients, bits, CUDA graphs.

The matrices of the operations' own folders run where they are written for. This one has their cases on CUDA, where
there is one; without, it runs a few of them on the CPU, so that it is known to run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import attention_cases
import masked_cases
import pytest
import sparse_conv2d_cases
import torch
from device_cases import DEVICES
from test_block_kernels import BLOCKS, WIDE, takes, weight_of
from torch import Tensor

import sparsekernels as sk
from sparsekernels.ops.sparse_conv2d import reference
from sparsekernels.testing import assert_verified

GPU = "cuda" in DEVICES
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
KERNELS = ("cuda", "triton") if GPU else (None,)
BACKENDS = (None, *KERNELS) if GPU else KERNELS
"""None is what a plain call takes."""

by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
by_backend = pytest.mark.parametrize("backend", BACKENDS, ids=lambda name: name or "automatic")
by_kernels = pytest.mark.parametrize("backend", KERNELS, ids=lambda name: name or "automatic")
by_device = pytest.mark.parametrize("device", ["cuda"] if GPU else ["cpu"])


def some(cases: Sequence[Any], count: int = 2) -> Sequence[Any]:
    """All of them on a GPU; elsewhere a few, since the CPU has them in matrices of its own."""
    return cases if GPU else cases[:count]


@contextlib.contextmanager
def by(backend: str | None) -> Iterator[None]:
    """Inside, that backend runs; the test is skipped, with its reason, where it cannot."""
    if backend is None:
        yield
        return
    with sk.use_backend(backend):
        try:
            yield
        except sk.BackendError as reason:
            pytest.skip(str(reason))


class BlockCase:
    """A case of sparse convolution whose weight is in blocks: the tensors, the call and its definition."""

    def __init__(self, case: sparse_conv2d_cases.Case, block: tuple[int, int], dtype: torch.dtype, device: str) -> None:
        generator = torch.Generator().manual_seed(0)
        self.case = case
        input = case.view(torch.randn(case.shape, generator=generator).to(device, dtype))
        dense = torch.randn(case.weight, generator=generator).to(dtype)
        found = weight_of(case, block, dense, generator).to(device)
        if case.is_linear:
            mask = found.mask.view(case.weight)
            found = sk.BlockSparse.from_dense(found.to_dense().view(case.weight), mask, block=block)
        self.weight = found
        self.tensors = [input, found.values]
        if case.bias:
            self.tensors.append(torch.randn(case.weight[0], generator=generator).to(device, dtype))
        self.tensors = [tensor.detach().requires_grad_() for tensor in self.tensors]

    def call(self, x: Tensor, v: Tensor, *b: Tensor) -> Tensor:
        case, weight = self.case, self.weight.with_values(v)
        if case.is_linear:
            return sk.sparse_linear(x, weight, *b)
        return sk.sparse_conv2d(x, weight, b[0] if b else None, case.stride, case.padding, case.dilation, case.groups)

    def definition(self, x: Tensor, v: Tensor, *b: Tensor) -> Tensor:
        dense = self.weight.with_values(v).to_dense()
        dense = dense[:, :, None, None] if self.case.is_linear else dense
        y = reference.dense_forward(self.case.images(x), dense, b[0] if b else None, self.case.geometry)
        return self.case.result(y, x)


CONVOLUTIONS = [case for case in (*WIDE, *sparse_conv2d_cases.CASES) if len(case.weight) != 3]
IN_BLOCKS = [
    (case, block)
    for place, case in enumerate(CONVOLUTIONS)
    for number, block in enumerate(((64, 64), *BLOCKS))
    if takes(case, block) and (place < len(WIDE) or (place + number) % 4 == 0)
]
"""Of the small ones every block size in turn, a quarter for each case; of the wide ones all."""


@by_device
@by_kernels
@by_dtype
@pytest.mark.parametrize(
    ("case", "block"), some(IN_BLOCKS, 3), ids=lambda value: getattr(value, "name", None) or "x".join(map(str, value))
)
def test_blocks(
    case: sparse_conv2d_cases.Case, block: tuple[int, int], dtype: torch.dtype, backend: str | None, device: str
) -> None:
    one = BlockCase(case, block, dtype, device)
    with by(backend):
        assert_verified(one.call, one.definition, one.tensors)


@by_device
@by_kernels
@by_dtype
@pytest.mark.parametrize("kind", some(list(masked_cases.KINDS)))
@pytest.mark.parametrize("case", some(masked_cases.CASES), ids=str)
def test_masked_matmul(
    case: masked_cases.Case, kind: str, dtype: torch.dtype, backend: str | None, device: str
) -> None:
    mask = masked_cases.KINDS[kind](masked_cases.shape_of(case)).to(device)
    operands = [one.detach().to(device).requires_grad_() for one in masked_cases.operands(case, dtype)]
    with by(backend):
        assert_verified(
            lambda a, b: sk.masked_matmul(a, b, mask), lambda a, b: masked_cases.expected(a, b, mask), operands
        )


@by_device
@by_kernels
@by_dtype
@pytest.mark.parametrize("kinds", some([("few", None), (None, "few"), ("blocks", "half")], 1), ids=str)
@pytest.mark.parametrize("case", some(masked_cases.CASES, 1), ids=str)
def test_masks_of_operands(
    case: masked_cases.Case, kinds: tuple[str | None, ...], dtype: torch.dtype, backend: str | None, device: str
) -> None:
    """What they leave out is not read."""
    a_mask, b_mask = (
        None if kind is None else masked_cases.KINDS[kind](shape).to(device)
        for kind, shape in zip(kinds, case, strict=True)
    )
    a, b = (one.detach().to(device) for one in masked_cases.operands(case, dtype))
    for one, of in ((a, a_mask), (b, b_mask)):
        if of is not None:
            one.masked_fill_(~of, float("nan"))
    mask = masked_cases.KINDS["ragged"](masked_cases.shape_of(case)).to(device)
    with by(backend):
        assert_verified(
            lambda a, b: sk.masked_matmul(a, b, mask, a_mask=a_mask, b_mask=b_mask),
            lambda a, b: masked_cases.expected(a, b, mask, a_mask, b_mask),
            (a.requires_grad_(), b.requires_grad_()),
        )


@by_device
@by_kernels
@by_dtype
@pytest.mark.parametrize("kind", some(list(attention_cases.KINDS)))
@pytest.mark.parametrize("case", some(attention_cases.CASES), ids=str)
def test_masked_attention(
    case: attention_cases.Case, kind: str, dtype: torch.dtype, backend: str | None, device: str
) -> None:
    mask = attention_cases.KINDS[kind](attention_cases.shape_of(case)).to(device)
    operands = [one.detach().to(device).requires_grad_() for one in attention_cases.operands(case, dtype)]
    with by(backend):
        assert_verified(
            lambda q, k, v: sk.masked_attention(q, k, v, mask),
            lambda q, k, v: attention_cases.expected(q, k, v, mask),
            operands,
        )


Made = tuple[Callable[..., Tensor], list[Tensor]]


def _blocks(dtype: torch.dtype, device: str, block: tuple[int, int] = (16, 16)) -> Made:
    one = BlockCase(WIDE[1], block, dtype, device)
    return one.call, one.tensors


def _elements(dtype: torch.dtype, device: str) -> Made:
    weight, tensors = sparse_conv2d_cases.inputs(sparse_conv2d_cases.CONVOLUTIONS[1], dtype, device)
    return sparse_conv2d_cases.ours(sparse_conv2d_cases.CONVOLUTIONS[1], weight), tensors


def _linear(dtype: torch.dtype, device: str) -> Made:
    weight = torch.randn(160, 192, device=device).to(dtype)
    pattern = sk.Unstructured.from_dense(weight, torch.rand(160, 192, device=device) < 0.2)
    x = torch.randn(3, 192, device=device).to(dtype)
    tensors = [x.requires_grad_(), pattern.values.requires_grad_()]
    return lambda x, v: sk.sparse_linear(x, pattern.with_values(v)), tensors


def _matmul(dtype: torch.dtype, device: str) -> Made:
    mask = sk.prepare_mask(masked_cases.in_blocks((130, 97), 0.3, (32, 32)).to(device))
    operands = [one.detach().to(device).requires_grad_() for one in masked_cases.operands(masked_cases.CASES[5], dtype)]
    return lambda a, b: sk.masked_matmul(a, b, mask), operands


def _attention(dtype: torch.dtype, device: str) -> Made:
    case = attention_cases.CASES[8]
    mask = sk.prepare_mask(attention_cases.KINDS["clusters"](attention_cases.shape_of(case)).to(device))
    operands = [one.detach().to(device).requires_grad_() for one in attention_cases.operands(case, dtype)]
    return lambda q, k, v: sk.masked_attention(q, k, v, mask), operands


def _norm(dtype: torch.dtype, device: str) -> Made:
    x, w = torch.randn(70, 1000, device=device).to(dtype), torch.randn(1000, device=device).to(dtype)
    return lambda x, w: sk.rms_norm(x, (1000,), w, 1e-6), [x.requires_grad_(), w.requires_grad_()]


CALLS: dict[str, Callable[[torch.dtype, str], Made]] = {
    "blocks": _blocks,
    "blocks of 64": lambda dtype, device: _blocks(dtype, device, (64, 64)),
    "elements": _elements,
    "linear": _linear,
    "masked_matmul": _matmul,
    "masked_attention": _attention,
    "rms_norm": _norm,
}
by_call = pytest.mark.parametrize("name", CALLS)


def results(function: Callable[..., Tensor], tensors: list[Tensor], seed: Tensor | None = None) -> list[Tensor]:
    """The output, and the gradients to all."""
    y = function(*tensors)
    seed = torch.linspace(-1, 1, y.numel(), device=y.device).to(y.dtype).view_as(y) if seed is None else seed
    return [y.detach(), *torch.autograd.grad(y, tensors, seed)]


@by_device
@by_backend
@by_dtype
@by_call
def test_the_same_bits_from_run_to_run(name: str, dtype: torch.dtype, backend: str | None, device: str) -> None:
    function, tensors = CALLS[name](dtype, device)
    with by(backend):
        first = results(function, tensors)
        for _ in range(3):
            assert all(map(torch.equal, first, results(function, tensors)))


@pytest.mark.skipif(not GPU, reason="needs a GPU")
@by_device
@by_backend
@by_dtype
@by_call
def test_a_cuda_graph_has_the_bits_of_eager_calls(
    name: str, dtype: torch.dtype, backend: str | None, device: str
) -> None:
    """Captured forward and backward, replayed on inputs that were written to since."""
    function, tensors = CALLS[name](dtype, device)
    with by(backend):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            seed = torch.randn_like(function(*tensors))
            for _ in range(2):
                results(function, tensors, seed)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            captured = results(function, tensors, seed)
        for scale in (1.0, -0.5):
            with torch.no_grad():
                tensors[0].mul_(scale)
            graph.replay()
            torch.cuda.synchronize()
            found = [one.clone() for one in captured]
            assert all(map(torch.equal, found, results(function, tensors, seed)))


@pytest.mark.skipif(not GPU, reason="needs a GPU")
@by_device
@by_backend
@by_call
def test_a_call_waits_for_nothing(name: str, backend: str | None, device: str) -> None:
    """Nothing in it asks the device for a number, once what it needs is kept."""
    function, tensors = CALLS[name](torch.bfloat16, device)
    with by(backend):
        results(function, tensors)
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            results(function, tensors)
        finally:
            torch.cuda.set_sync_debug_mode(before)


@pytest.mark.skipif(not GPU, reason="needs a GPU")
@by_device
@by_backend
@by_call
def test_streams_do_not_disturb_each_other(name: str, backend: str | None, device: str) -> None:
    function, tensors = CALLS[name](torch.bfloat16, device)
    with by(backend):
        expected = results(function, tensors)
        streams = [torch.cuda.Stream() for _ in range(4)]
        torch.cuda.synchronize()
        found = []
        for _ in range(5):
            for stream in streams:
                with torch.cuda.stream(stream):
                    found.append(results(function, tensors))
        torch.cuda.synchronize()
    assert all(torch.equal(*pair) for one in found for pair in zip(expected, one, strict=True))
