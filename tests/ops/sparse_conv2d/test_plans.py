# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Plans: calls that share what follows from pattern and shapes give what calls without a plan give, bit for bit."""

from __future__ import annotations

import gc
import threading

import pytest
import torch
from torch import Tensor

import sparsekernels as sk
from sparsekernels.ops.convolution import LINEAR, Geometry, geometry_of
from sparsekernels.ops.sparse_conv2d import plans
from sparsekernels.ops.sparse_conv2d.implementations import forward

pytestmark = pytest.mark.skipif(not plans.AVAILABLE, reason="the CPU kernels are not built")

Given = tuple[sk.Unstructured, Tensor, Geometry, Tensor]


def make(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, groups: int = 1, seed: int = 0) -> Given:
    """A pattern, the dense weight, a geometry and a bias."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(shape, generator=generator) < 0.2
    mask.view(-1)[:2] = torch.tensor([True, False])
    dense = torch.randn(shape, generator=generator).to(dtype)
    pattern = sk.Unstructured.from_dense(dense, mask)
    geometry = LINEAR if len(shape) == 2 else geometry_of(shape, 1, shape[2] // 2, 1, groups)
    return pattern, dense, geometry, torch.randn(shape[0], generator=generator).to(dtype)


def by_indices(input: Tensor, given: Given, *more: object) -> Tensor:
    pattern, _, geometry, bias = given
    result: Tensor = forward(input, pattern.values, bias, pattern.crow_indices, pattern.col_indices, geometry, *more)
    return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize(
    ("shape", "groups"), [((24, 40), 1), ((24, 12, 3, 3), 2), ((2, 3, 1, 1), 1), ((70, 33, 3, 3), 1)]
)
def test_same_bits(shape: tuple[int, ...], groups: int, dense: bool, dtype: torch.dtype) -> None:
    given = pattern, weight, geometry, bias = make(shape, dtype, groups)
    number = plans.plan_of(pattern, geometry)
    channels = shape[1] * groups
    size = (1, 1) if len(shape) == 2 else (9, 7)
    for batch in (1, 3, 17, 0, 3, 1):
        for layout in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(batch, channels, *size).to(dtype).contiguous(memory_format=layout)
            expected = by_indices(x, given)
            actual = plans.run(x, weight if dense else pattern.values, bias, number)
            assert torch.equal(actual, expected)
            assert actual.stride() == expected.stride()
            residual = torch.randn_like(expected)
            limits = (residual, -0.5, 1.5)
            assert torch.equal(
                plans.run(x, weight if dense else pattern.values, bias, number, *limits), by_indices(x, given, *limits)
            )


def test_a_dense_weight_in_channels_last() -> None:
    given = pattern, weight, geometry, bias = make((16, 8, 3, 3))
    x = torch.randn(2, 8, 6, 6)
    number = plans.plan_of(pattern, geometry)
    other = weight.contiguous(memory_format=torch.channels_last)
    assert torch.equal(plans.run(x, other, bias, number), by_indices(x, given))


def test_more_shapes_than_are_kept() -> None:
    given = pattern, weight, geometry, bias = make((16, 8, 3, 3))
    number = plans.plan_of(pattern, geometry)
    for _ in range(2):
        for width in range(3, 40):
            x = torch.randn(1, 8, 5, width)
            assert torch.equal(plans.run(x, weight, bias, number), by_indices(x, given))


def test_any_number_of_threads() -> None:
    given = pattern, weight, geometry, bias = make((64, 64, 3, 3))
    number = plans.plan_of(pattern, geometry)
    x = torch.randn(8, 64, 20, 20)
    expected = by_indices(x, given)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            assert torch.equal(plans.run(x, weight, bias, number), expected)
    finally:
        torch.set_num_threads(before)


def test_several_threads_at_a_time() -> None:
    given = pattern, weight, geometry, bias = make((32, 32, 3, 3))
    number = plans.plan_of(pattern, geometry)
    inputs = [torch.randn(1, 32, 4, width) for width in range(3, 30)]
    expected = [by_indices(x, given) for x in inputs]
    wrong: list[int] = []

    def work() -> None:
        for _ in range(5):
            for i, x in enumerate(inputs):
                if not torch.equal(plans.run(x, weight, bias, number), expected[i]):
                    wrong.append(i)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_weights_that_change_are_read_anew() -> None:
    layer = torch.nn.Linear(40, 24)
    layer.weight.data.mul_(torch.rand_like(layer.weight) < 0.2)
    sparse = sk.nn.SparseLinear.from_dense(layer)
    x = torch.randn(3, 40)
    with torch.no_grad():
        before = sparse(x)
        sparse.weight.mul_(2)
        torch.testing.assert_close(sparse(x) - sparse.bias, 2 * (before - sparse.bias))


def test_a_plan_goes_with_its_pattern() -> None:
    pattern, weight, geometry, bias = make((16, 8, 3, 3))
    number = plans.plan_of(pattern, geometry)
    other = pattern.with_values(2 * pattern.values)
    assert plans.plan_of(other, geometry) == number
    del pattern
    gc.collect()
    x = torch.randn(1, 8, 5, 5)
    plans.run(x, weight, bias, number)
    del other
    gc.collect()
    with pytest.raises(ValueError, match="sparse_conv2d: expected plan to be .*, got "):
        plans.run(x, weight, bias, number)


def test_what_does_not_fit_raises() -> None:
    pattern, weight, geometry, bias = make((16, 8, 3, 3))
    number = plans.plan_of(pattern, geometry)
    x = torch.randn(1, 8, 5, 5)
    refused = [
        (torch.randn(1, 9, 5, 5), weight, bias),
        (torch.randn(8, 5, 5), weight, bias),
        (x.half(), weight, bias),
        (x, weight[:15], bias),
        (x, pattern.values[:-1], bias),
        (x, weight.half(), bias),
        (x, weight, bias[:-1]),
        (x, weight, bias.half()),
        (torch.randn(1, 8, 0, 5), weight, bias),
    ]
    for arguments in refused:
        with pytest.raises(ValueError, match="sparse_conv2d: expected .*, got "):
            plans.run(*arguments, number)


def test_traces_hold_no_number() -> None:
    """A plan's number means another plan, or none, where a saved trace is loaded."""
    layer = torch.nn.Conv2d(8, 16, 3)
    layer.weight.data.mul_(torch.rand_like(layer.weight) < 0.2)
    sparse = sk.nn.SparseConv2d.from_dense(layer).eval().requires_grad_(False)
    x = torch.randn(1, 8, 5, 5)
    with torch.no_grad():
        traced = torch.jit.trace(sparse, x)
        assert "planned" not in str(traced.inlined_graph)
        graph = torch.fx.experimental.proxy_tensor.make_fx(sparse)(x)
        assert "planned" not in graph.code
        assert torch.equal(traced(x), sparse(x))
        assert torch.equal(graph(x), sparse(x))


def test_results_without_data() -> None:
    pattern, weight, geometry, bias = make((16, 8, 3, 3))
    number = plans.plan_of(pattern, geometry)
    x = torch.randn(2, 8, 5, 6)
    expected = plans.run(x, weight, bias, number)
    with torch._subclasses.FakeTensorMode() as mode:
        fake = plans.run(*(mode.from_tensor(tensor) for tensor in (x, weight, bias)), number)
    assert (fake.shape, fake.dtype, fake.stride()) == (expected.shape, expected.dtype, expected.stride())


@pytest.mark.parametrize("order", [[0, 0, 1, 2], [0, 1, 2, 4], [0, 1, 2, -1]])
def test_an_order_is_a_permutation(order: list[int]) -> None:
    crow, col = torch.tensor([0, 2, 4], dtype=torch.int32), torch.tensor([0, 1, 0, 1], dtype=torch.int32)
    with pytest.raises(ValueError, match="expected order to be a permutation of the nonzeros"):
        torch.ops.sparsekernels._plan_sparse_conv2d(crow, col, LINEAR, 2, torch.tensor(order, dtype=torch.int32))
    with pytest.raises(ValueError, match="expected"):
        torch.ops.sparsekernels._plan_sparse_conv2d(crow, col, LINEAR, 2, torch.tensor([0, 1], dtype=torch.int32))
