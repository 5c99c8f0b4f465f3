# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""rms_norm as a citizen of torch: operators, compilers, transforms, autocast, meta tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import sparsekernels as sk
from sparsekernels.ops.rms_norm.implementations import RMS_NORM

ops = torch.ops.sparsekernels


def operator_calls() -> list[Any]:
    x, r, g = (torch.randn(3, 4, 6, requires_grad=True) for _ in range(3))
    w = torch.randn(6, requires_grad=True)
    plain = [tensor.detach() for tensor in (x, r, g, w)]
    return [
        pytest.param(ops.rms_norm.default, (x, (6,), w, 1e-6), id="rms_norm"),
        pytest.param(ops.rms_norm.default, (x, (4, 6), None, None), id="rms_norm without weight"),
        pytest.param(ops.rms_norm.default, (x.transpose(0, 1), (6,), w, None), id="rms_norm, strided"),
        pytest.param(ops.add_rms_norm.default, (x, r, (6,), w, 1e-6), id="add_rms_norm"),
        pytest.param(ops.rms_norm_backward.default, (g, x, (6,), w, 1e-6, None, True, True), id="backward"),
        pytest.param(ops.rms_norm_backward.default, (g, x, (6,), w, 1e-6, r, True, False), id="backward, input only"),
        pytest.param(ops._rms_norm.default, (plain[0], 1, 6, plain[3], 1e-6), id="kernel rms_norm"),
        pytest.param(ops._rms_norm.default, (plain[0].transpose(0, 1), 1, 6, None, None), id="kernel, strided"),
        pytest.param(ops._add_rms_norm.default, (*plain[:2], 1, 6, plain[3], None), id="kernel add_rms_norm"),
        pytest.param(
            ops._rms_norm_backward.default,
            (plain[2], plain[0], 1, 6, plain[3], None, None, True, True),
            id="kernel backward",
        ),
        pytest.param(
            ops._rms_norm_backward.default,
            (plain[2], plain[0], 2, 24, None, None, plain[1], True, False),
            id="kernel backward with grad_sum",
        ),
    ]


@pytest.mark.parametrize(("operator", "arguments"), operator_calls())
def test_opcheck(operator: Any, arguments: tuple[Any, ...]) -> None:
    torch.library.opcheck(operator, arguments)


class Block(torch.nn.Module):
    """A residual step: an add_rms_norm, a linear layer, a norm without weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = sk.nn.RMSNorm(width, eps=1e-6)
        self.linear = torch.nn.Linear(width, width, bias=False)
        self.second = sk.nn.RMSNorm((width,), elementwise_affine=False)

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        y, residual = self.first.add_forward(x, residual)
        return self.second(self.linear(y)) + residual


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_whole_graph_with_dynamic_shapes(backend: str) -> None:
    block = Block(16)
    compiled = torch.compile(block, fullgraph=True, dynamic=True, backend=backend)
    for count in (3, 5):
        x, residual = torch.randn(2, count, 16)
        expected, actual = block(x, residual), compiled(x, residual)
        torch.testing.assert_close(actual, expected)
        for a, b in zip(
            torch.autograd.grad(actual.sum(), list(block.parameters())),
            torch.autograd.grad(expected.sum(), list(block.parameters())),
            strict=True,
        ):
            torch.testing.assert_close(a, b)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x, residual), expected)


@pytest.mark.parametrize("backend", RMS_NORM.backends(torch.empty(1)))
def test_compile_under_a_named_backend(backend: str) -> None:
    if backend == "triton":
        pytest.skip("Triton's interpreter cannot be traced")
    x, w = torch.randn(3, 16), torch.randn(16)
    compiled = torch.compile(lambda x, w: sk.rms_norm(x, (16,), w), fullgraph=True, backend="aot_eager")
    with sk.use_backend(backend):
        torch.testing.assert_close(compiled(x, w), sk.rms_norm(x, (16,), w))
    torch.testing.assert_close(compiled(x, w), sk.rms_norm(x, (16,), w))  # traced anew once the block is left


def test_compiled_graphs_call_the_kernel_operators() -> None:
    targets: list[str] = []

    def record(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        targets.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    from torch._dynamo.backends.common import aot_autograd

    torch._dynamo.reset()
    compiled = torch.compile(sk.nn.RMSNorm(8), fullgraph=True, backend=aot_autograd(fw_compiler=record))
    compiled(torch.randn(3, 8, requires_grad=True)).sum().backward()
    assert "sparsekernels._rms_norm.default" in targets
    assert "sparsekernels._rms_norm_backward.default" in targets


def test_export() -> None:
    x, residual = torch.randn(2, 4, 16)
    block = Block(16)
    program = torch.export.export(
        block, (x, residual), dynamic_shapes={"x": {0: torch.export.Dim.AUTO}, "residual": {0: torch.export.Dim.AUTO}}
    )
    targets = [str(node.target) for node in program.graph.nodes]
    assert "sparsekernels.rms_norm.default" in targets
    assert "sparsekernels.add_rms_norm.default" in targets
    more = torch.randn(2, 7, 16)
    torch.testing.assert_close(program.module()(*more), block(*more))
    torch.testing.assert_close(program.run_decompositions().module()(*more), block(*more))


def test_functional_transforms() -> None:
    x, w = torch.randn(4, 3, 8, dtype=torch.float64), torch.randn(8, dtype=torch.float64)

    def ours(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return sk.rms_norm(x, (8,), w, 1e-5).pow(3).sum()

    def theirs(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, (8,), w, 1e-5).pow(3).sum()

    for transform in (
        lambda f: torch.func.grad(f, argnums=(0, 1)),
        lambda f: torch.func.vmap(torch.func.grad(f, argnums=(0, 1)), in_dims=(0, None)),
        lambda f: torch.func.jacrev(torch.func.jacrev(f)),
        lambda f: torch.func.jacfwd(f, argnums=(0, 1)),
        lambda f: torch.func.hessian(f),
        lambda f: torch.func.vmap(f, in_dims=(0, None)),
    ):
        torch.testing.assert_close(transform(ours)(x, w), transform(theirs)(x, w))


def test_forward_mode() -> None:
    x, w, tangent = torch.randn(4, 8), torch.randn(8), torch.randn(4, 8)
    for function in (
        lambda x: sk.rms_norm(x, (8,), w),
        lambda x: sk.add_rms_norm(x, x, (8,), w)[0],
    ):
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(x, tangent)
            actual = torch.autograd.forward_ad.unpack_dual(function(dual)).tangent
        expected = torch.func.jvp(function, (x,), (tangent,))[1]
        assert actual is not None
        assert actual.abs().max() > 0
        torch.testing.assert_close(actual, expected)
    theirs = torch.func.jvp(lambda x: F.rms_norm(x, (8,), w), (x,), (tangent,))[1]
    torch.testing.assert_close(torch.func.jvp(lambda x: sk.rms_norm(x, (8,), w), (x,), (tangent,))[1], theirs)
    with (
        sk.use_backend("cpu"),
        torch.autograd.forward_ad.dual_level(),
        pytest.raises(sk.BackendError, match="expected a call without forward-mode derivatives, .*, got one with"),
    ):
        sk.rms_norm(x, (8,), w)


def test_functional_gradient_under_autocast() -> None:
    x, w = torch.randn(4, 8), torch.randn(8)
    with torch.autocast("cpu", torch.bfloat16):
        ours = torch.func.grad(lambda x: sk.rms_norm(x, (8,), w).pow(2).sum())(x)
        theirs = torch.func.grad(lambda x: F.rms_norm(x, (8,), w).pow(2).sum())(x)
    torch.testing.assert_close(ours, theirs)


def test_functional_transforms_of_the_sum() -> None:
    x, r = torch.randn(2, 3, 8, dtype=torch.float64)

    def ours(x: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
        y, s = sk.add_rms_norm(x, r, (8,), None, 1e-5)
        return (y * s.sin()).sum()

    def theirs(x: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
        return (F.rms_norm(x + r, (8,), None, 1e-5) * (x + r).sin()).sum()

    torch.testing.assert_close(torch.func.grad(ours, (0, 1))(x, r), torch.func.grad(theirs, (0, 1))(x, r))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("device", ["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
@pytest.mark.parametrize("training", [False, True])
def test_autocast_as_in_torch(device: str, dtype: torch.dtype, training: bool) -> None:
    x = torch.randn(3, 16, device=device, dtype=dtype, requires_grad=training)
    w = torch.randn(16, device=device, requires_grad=training)
    with torch.autocast(device, torch.bfloat16):
        ours, theirs = sk.rms_norm(x, (16,), w), F.rms_norm(x, (16,), w)
        added, total = sk.add_rms_norm(x, x, (16,), w)
        assert total.dtype == (x + x).dtype
        assert added.dtype == F.rms_norm(x + x, (16,), w).dtype
    assert ours.dtype == theirs.dtype
    torch.testing.assert_close(ours, theirs)
    if training:
        a, b = (torch.autograd.grad(y.float().sum(), (x, w)) for y in (ours, theirs))
        for mine, torchs in zip(a, b, strict=True):
            assert mine.dtype == torchs.dtype
            torch.testing.assert_close(mine, torchs, rtol=2e-2, atol=2e-2)


def test_meta_and_fake_tensors() -> None:
    x, w = torch.empty(3, 5, 64, device="meta", dtype=torch.bfloat16), torch.empty(64, device="meta")
    y = sk.rms_norm(x, (64,), w)
    assert (y.shape, y.dtype, y.device.type) == (x.shape, x.dtype, "meta")
    y, s = sk.add_rms_norm(x, x, (64,), w)
    assert y.shape == s.shape == x.shape
    with pytest.raises(ValueError, match=r"expected weight of shape \[64\] like normalized_shape, got \[63\]"):
        sk.rms_norm(x, (64,), torch.empty(63, device="meta"))
    with torch.device("meta"):
        module = sk.nn.RMSNorm(64)
    assert module(x).shape == x.shape


def test_gradient_checkpointing_and_tensor_subclasses() -> None:
    from torch.utils.checkpoint import checkpoint

    module = sk.nn.RMSNorm(16)
    x = torch.randn(3, 16, requires_grad=True)
    plain = torch.autograd.grad(module(x).pow(2).sum(), x)[0]
    checkpointed = torch.autograd.grad(checkpoint(module, x, use_reentrant=False).pow(2).sum(), x)[0]
    assert torch.equal(plain, checkpointed)

    class Tagged(torch.Tensor):
        pass

    assert isinstance(sk.rms_norm(x.detach().as_subclass(Tagged), (16,)), Tagged)


@pytest.mark.parametrize("training", [False, True])
def test_a_residual_of_another_dtype_is_promoted(training: bool) -> None:
    x, residual = torch.randn(3, 8).bfloat16().requires_grad_(training), torch.randn(3, 8).requires_grad_(training)
    with torch.autocast("cpu", torch.bfloat16):  # bfloat16 branches beside a float32 stream are what autocast makes
        y, total = sk.add_rms_norm(x, residual, (8,))
    assert y.dtype == total.dtype == torch.float32
    torch.testing.assert_close(total, x + residual)
    torch.testing.assert_close(y, F.rms_norm(x + residual, (8,)))
    if training:
        gradients = torch.autograd.grad(y.sum(), (x, residual))
        assert [gradient.dtype for gradient in gradients] == [torch.bfloat16, torch.float32]


def test_symbolic_trace() -> None:
    block = Block(16)
    x, residual = torch.randn(2, 3, 16)
    traced = torch.fx.symbolic_trace(block)
    torch.testing.assert_close(traced(x, residual), block(x, residual))
