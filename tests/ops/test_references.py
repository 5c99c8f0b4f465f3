# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The references of batch_norm_act, max_pool2d and layer_chain: the compiled kernels' results, and exact gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import sparsekernels as sk
from sparsekernels import _library
from sparsekernels.dispatch import Call, Implementation
from sparsekernels.formats import Unstructured
from sparsekernels.ops import OPERATIONS
from sparsekernels.ops._operation import Operation
from sparsekernels.ops.batch_norm import gradients as batch_norm_gradients
from sparsekernels.ops.batch_norm.implementations import BATCH_NORM
from sparsekernels.ops.batch_norm.op import Act, batch_norm_act
from sparsekernels.ops.convolution import geometry_of
from sparsekernels.ops.layer_chain.implementations import LAYER_CHAIN
from sparsekernels.ops.layer_chain.op import layer_chain
from sparsekernels.ops.max_pool2d import gradients as max_pool2d_gradients
from sparsekernels.ops.max_pool2d.implementations import MAX_POOL2D
from sparsekernels.ops.max_pool2d.op import max_pool2d

built = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")
WINDOWS = [(2, 2, 2, 2, 0, 0), (3, 3, 2, 2, 1, 1), (3, 2, 1, 3, 1, 0)]


def test_every_operation_ends_with_its_reference() -> None:
    """The last row runs everywhere, and the functions of the compiled kernels are the reference's."""
    for operation in OPERATIONS:
        assert operation.backends(torch.empty(1, device="meta"))[-1] == "reference"
        for function in vars(operation.compiled):
            assert callable(getattr(operation.reference, function)), (operation.name, function)


@built
@pytest.mark.parametrize("act", [Act(), Act(0.0), Act(-0.5, 0.5), Act(0.0, None, 0.3), Act(p=0.5)], ids=str)
@pytest.mark.parametrize("shape", [(5, 3, 7, 9), (2, 4, 1, 1), (3, 2, 33)], ids=str)
@pytest.mark.parametrize("extras", [True, False])
def test_batch_norm_as_the_kernel(shape: tuple[int, ...], act: Act, extras: bool) -> None:
    """Results, statistics, which gradients pass, and the gradients; what is dropped is the same, bit by bit."""
    input, gradient = torch.randn(shape), torch.randn(shape)
    residual, weight, bias = (
        (torch.randn(shape), torch.randn(shape[1]), torch.randn(shape[1])) if extras else [None] * 3
    )
    numbers = 1e-3, act.low, act.high, act.p, 1234567890123
    found: list[list[Tensor]] = []
    for kernels in (BATCH_NORM.compiled, BATCH_NORM.reference):
        output, statistics, kept = kernels.forward(input, residual, weight, bias, *numbers)
        backward = kernels.backward(gradient, input, weight, statistics, kept, act.p, True, True)
        found.append([output, statistics, kept, *backward])
    for actual, expected in zip(*found, strict=True):
        assert actual.dtype == expected.dtype
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("act", [Act(), Act(0.0), Act(-0.5, 0.5, 0.25)], ids=str)
def test_batch_norm_in_float64(act: Act) -> None:
    """First and second derivatives by finite differences, and torch's own composition."""
    shape = (3, 2, 3, 3)
    given = [torch.randn(size, dtype=torch.float64, requires_grad=True) for size in (shape, shape, (2,), (2,))]

    def run(input: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        torch.manual_seed(3)
        return batch_norm_act(input, weight, bias, 1e-3, act, residual)[0]

    assert torch.autograd.gradcheck(run, given)
    assert torch.autograd.gradgradcheck(run, given)
    if act.p == 0:
        input, residual, weight, bias = given
        expected = F.batch_norm(input, None, None, weight, bias, True, 0.0, 1e-3) + residual
        torch.testing.assert_close(run(*given), expected.clamp(act.low, act.high) if act != Act() else expected)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"input": torch.ones(2, dtype=torch.float64)}, "input"),
        ({"input": torch.ones(0, 3, 4, dtype=torch.float64)}, "input"),
        ({"weight": torch.ones(4)}, "weight"),
        ({"residual": torch.ones(2, 3, 5)}, "residual"),
        ({"eps": 0.0}, "eps"),
        ({"p": 1.0}, "p"),
    ],
)
def test_batch_norm_refuses(change: dict[str, Any], words: str) -> None:
    given = {"input": torch.ones(2, 3, 4, dtype=torch.float64), "residual": None, "weight": None, "bias": None}
    arguments = {**given, "eps": 1e-5, "low": 0.0, "high": None, "p": 0.5, "seed": 1, **change}
    with pytest.raises(ValueError, match=f"expected {words}"):
        BATCH_NORM.by_table.forward(*arguments.values())


@pytest.mark.parametrize("change", [{"gradient": 1}, {"statistics": 1}, {"kept": 3}])
def test_batch_norm_backward_refuses(change: dict[str, int]) -> None:
    input = torch.ones(2, 3, 4, dtype=torch.float64)
    _, statistics, kept = BATCH_NORM.by_table.forward(input, None, None, None, 1e-5, 0.0, None, 0.5, 1)
    given: dict[str, Any] = {"gradient": input, "input": input, "weight": None, "statistics": statistics, "kept": kept}
    given = {name: tensor[: change[name]] if name in change else tensor for name, tensor in given.items()}
    with pytest.raises(ValueError, match=f"expected {next(iter(change))}"):
        BATCH_NORM.by_table.backward(*given.values(), 0.5, True, True)


@built
@pytest.mark.parametrize("window", WINDOWS)
def test_max_pool2d_as_the_kernel(window: tuple[int, ...]) -> None:
    x = torch.randn(2, 3, 9, 11).round()
    found = []
    for kernels in (MAX_POOL2D.compiled, MAX_POOL2D.reference):
        output, places = kernels.forward_with_places(x, window)
        gradient = torch.ones_like(output).cumsum(3)
        found.append([kernels.forward(x, window), output, places, kernels.backward(gradient, places, (9, 11))])
    for actual, expected in zip(*found, strict=True):
        assert actual.dtype == expected.dtype
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("backend", MAX_POOL2D.backends(torch.empty(1)))
def test_max_pool2d_on_a_named_backend(backend: str) -> None:
    x = torch.randn(2, 3, 8, 8).contiguous(memory_format=torch.channels_last).requires_grad_()
    expected = F.max_pool2d(x, 2)
    with sk.use_backend(backend):
        pooled = max_pool2d(x, WINDOWS[0])
        assert torch.equal(pooled, expected)
        assert torch.equal(max_pool2d(x.detach(), WINDOWS[0]), expected)
    assert torch.equal(torch.autograd.grad(pooled.sum(), x)[0], torch.autograd.grad(expected.sum(), x)[0])
    with (
        sk.use_backend("triton"),
        pytest.raises(sk.BackendError, match="expected a .*, 'cpu', 'reference', got 'triton'"),
    ):
        max_pool2d(x, WINDOWS[0])


@pytest.mark.parametrize(
    "change",
    [
        {"gradient": torch.ones(1, 2, 4, 5)},
        {"places": torch.zeros(1, 2, 4, 4, dtype=torch.int64)},
        {"places": torch.full((1, 2, 4, 4), 64, dtype=torch.int32)},
        {"places": torch.full((1, 2, 4, 4), -1, dtype=torch.int32)},
        {"size": [8]},
        {"size": [0, 8]},
    ],
)
def test_max_pool2d_backward_refuses(change: dict[str, Any]) -> None:
    given: dict[str, Any] = {"gradient": torch.ones(1, 2, 4, 4), "places": torch.zeros(1, 2, 4, 4, dtype=torch.int32)}
    with pytest.raises(ValueError, match="expected"):
        MAX_POOL2D.by_table.backward(*{**given, "size": [8, 8], **change}.values())


def test_the_operators_are_torchs_citizens() -> None:
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    torch.library.opcheck(max_pool2d_gradients.max_pool2d.overload, (x, list(WINDOWS[1])))
    arguments = x, None, None, None, 1e-5, 0.0, 6.0, 0.25, 7
    torch.library.opcheck(batch_norm_gradients.batch_norm_act.overload, arguments)


@pytest.mark.parametrize(
    "window", [(2, 2, 2, 2, 0), (0, 2, 2, 2, 0, 0), (2, 2, 0, 2, 0, 0), (2, 2, 2, 2, 2, 0), (9,) * 6]
)
@pytest.mark.parametrize("backend", MAX_POOL2D.backends(torch.empty(1)))
def test_max_pool2d_refuses(window: tuple[int, ...], backend: str) -> None:
    with sk.use_backend(backend), pytest.raises((ValueError, RuntimeError), match="max_pool2d: expected"):
        max_pool2d(torch.ones(1, 2, 8, 8), window)


def test_a_row_sees_format_block_size_and_dtype() -> None:
    """Of the weight of the call, not of the operation's usual one."""

    class Blocks(Unstructured):
        format = "blocks"
        block_size = 4, 8

    calls = []
    row = Implementation("cpu", calls.append, lambda: None)  # type: ignore[arg-type, func-returns-value]
    operation = Operation("blocks", None, others=[row], format="unstructured")
    x, weight = torch.ones(2, 8).half(), Blocks.of_mask(torch.ones(4, 8, dtype=torch.bool))
    with sk.use_backend("cpu"):
        operation.kernels_of(x, weight)
        operation.kernels_of(x)
    assert calls == [Call(x.device, torch.float16, "blocks", (4, 8)), Call(x.device, torch.float16, "unstructured")]
    assert calls[0].capability is None


@built
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_compiled_rows_refuse_other_formats_and_blocks(operation: Operation) -> None:
    """In words, by name; else another row runs the call. A call without a weight is one of the operation's format."""

    class Other(Unstructured):
        format = "other"

    class Blocks(Unstructured):
        block_size = 4, 8

    x, mask = torch.ones(2, 8), torch.ones(4, 8, dtype=torch.bool)
    taken = "dense" if operation.format is None else "'unstructured'"
    refused = {Other: f"got one that it cannot: it takes {taken} weights, the weight is 'other'"}
    if operation.format is not None:
        refused[Blocks] = "got one that it cannot: it takes weights of single elements, the weight is in blocks of 4x8"
    for format, words in refused.items():
        assert operation.kernels_of(x, format.of_mask(mask)) is not operation.compiled
        with sk.use_backend("cpu"), pytest.raises(sk.BackendError, match=words):
            operation.kernels_of(x, format.of_mask(mask))
    assert operation.backends(x)[0] == "cpu"
    assert operation.is_compiled(x)


def test_a_row_that_refuses_the_blocks_of_a_weight_is_passed_over() -> None:
    class Blocks(Unstructured):
        format = "blocks"
        block_size = 4, 8

    def supports(call: Call) -> str | None:
        return "it takes blocks of 2x2" if call.block_size == (4, 8) else None

    mine = object()
    operation = Operation("blocks", reference := object(), others=[Implementation("cpu", supports, lambda: mine)])
    x, weight = torch.ones(2, 8), Blocks.of_mask(torch.ones(4, 8, dtype=torch.bool))
    assert operation.kernels_of(x, weight) is reference
    with sk.use_backend("cpu"), pytest.raises(sk.BackendError, match="it takes blocks of 2x2"):
        operation.kernels_of(x, weight)
    weight.block_size = 2, 2
    assert operation.kernels_of(x, weight) is mine


def _chain(chain: Any) -> Any:
    """A convolution, a pooling, and a convolution with a residual and limits."""
    generator = torch.Generator().manual_seed(4)
    patterns = []
    for shape in ((6, 4, 3, 3), (6, 6, 3, 3)):
        dense = torch.randn(shape, generator=generator)
        patterns.append(Unstructured.from_dense(dense, torch.rand(shape, generator=generator) < 0.4))
    first, second = (
        (p.values, None, p.crow_indices, p.col_indices, geometry_of(p.shape, 1, 1, 1, 1)) for p in patterns
    )
    one = chain.add_sparse_conv2d(0, *first, 4, low=0.0)
    two = chain.add_max_pool2d(one, (2, 2, 2, 2, 0, 0))
    chain.add_sparse_conv2d(two, *second, 6, residual=two, low=0.0, high=6.0)
    return chain


def test_a_chain_is_its_layers() -> None:
    x = torch.randn(3, 4, 8, 8)
    with sk.use_backend("reference"):
        reference = _chain(layer_chain(x))
    assert isinstance(reference, LAYER_CHAIN.reference.LayerChain)
    torch.testing.assert_close(reference(x), _chain(layer_chain(x))(x), rtol=1e-4, atol=1e-4)
    for wrong in (x[0], x.double(), x[:, :3]):
        with pytest.raises(ValueError, match="expected"):
            reference(wrong)
    with pytest.raises(ValueError, match="expected"):
        reference.add_max_pool2d(9, (2, 2, 2, 2, 0, 0))
    with pytest.raises(ValueError, match="with layers"):
        LAYER_CHAIN.reference.LayerChain(x)(x)
    with (
        sk.use_backend("triton"),
        pytest.raises(sk.BackendError, match="expected a .*, 'cpu', 'reference', got 'triton'"),
    ):
        layer_chain(x)
