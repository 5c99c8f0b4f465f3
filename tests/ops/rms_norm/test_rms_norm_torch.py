# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""rms_norm as a citizen of torch: operators, compilers, transforms, autocast, meta tensors; and what it refuses."""

from __future__ import annotations

import contextlib
import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import sparsekernels as sk
from sparsekernels.dispatch import select
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
        pytest.raises(sk.BackendError, match="no forward-mode derivatives"),
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


# The module


def test_module_is_a_drop_in() -> None:
    ours, theirs = sk.nn.RMSNorm(16, eps=1e-6), torch.nn.RMSNorm(16, eps=1e-6)
    assert isinstance(ours, torch.nn.RMSNorm)
    assert repr(ours) == repr(theirs)
    torch.nn.init.normal_(theirs.weight)
    ours.load_state_dict(theirs.state_dict())
    assert list(ours.state_dict()) == ["weight"]
    x = torch.randn(3, 16)
    torch.testing.assert_close(ours(x), theirs(x))
    bare = sk.nn.RMSNorm([4, 4], elementwise_affine=False)
    assert bare.weight is None
    assert not bare.state_dict()
    torch.testing.assert_close(
        bare(x.view(3, 4, 4)), torch.nn.RMSNorm([4, 4], elementwise_affine=False)(x.view(3, 4, 4))
    )


def test_a_torch_module_becomes_ours() -> None:
    """As the README says."""
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.RMSNorm(8))
    x = torch.randn(3, 8)
    expected = model(x)
    for module in model.modules():
        if type(module) is torch.nn.RMSNorm:
            module.__class__ = sk.nn.RMSNorm
    assert isinstance(model[1], sk.nn.RMSNorm)
    torch.testing.assert_close(model(x), expected)


def test_module_copies_pickles_and_moves() -> None:
    module = sk.nn.RMSNorm(16, dtype=torch.float64)
    x = torch.randn(3, 16, dtype=torch.float64)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(other(x), module(x))
    assert module.to(torch.bfloat16).weight.dtype == torch.bfloat16
    assert module(x.bfloat16()).dtype == torch.bfloat16
    assert module.to("meta").weight.is_meta


# What is refused

X, W = torch.randn(3, 8), torch.ones(8)
REFUSED = [
    pytest.param((X, (7,)), {}, ValueError, r"expected input of shape \[\*, 7\] .*, got \[3, 8\]", id="wrong size"),
    pytest.param(
        (X, (2, 3, 8)), {}, ValueError, "expected input of shape .*, got", id="more dimensions than there are"
    ),
    pytest.param((X, (8, 3)), {}, ValueError, "expected input of shape .*, got", id="wrong order"),
    pytest.param((X, (12, 2)), {}, ValueError, "expected input of shape .*, got", id="the same number of elements"),
    pytest.param(
        (X, ()), {}, ValueError, r"expected normalized_shape of at least one size, got \(\)", id="empty shape"
    ),
    pytest.param(
        (torch.tensor(1.0), ()),
        {},
        ValueError,
        r"expected normalized_shape of at least one size, got \(\)",
        id="scalar",
    ),
    pytest.param((X, 8), {}, TypeError, "expected normalized_shape to be sizes .*, got 8", id="shape is a number"),
    pytest.param(
        (X, (8.0,)), {}, TypeError, r"expected normalized_shape to be sizes .*, got \(8.0,\)", id="shape of floats"
    ),
    pytest.param((X, None), {}, TypeError, "expected normalized_shape to be sizes .*, got None", id="no shape"),
    pytest.param(
        (X, (8,), torch.ones(7)), {}, ValueError, r"expected weight of shape \[8\] .*, got \[7\]", id="short weight"
    ),
    pytest.param(
        (X, (8,), torch.ones(1, 8)), {}, ValueError, "expected weight of shape .*, got", id="weight of two dimensions"
    ),
    pytest.param((X, (8,), [1.0] * 8), {}, TypeError, "expected weight to be .*, got list", id="weight is a list"),
    pytest.param(
        (X, (8,), torch.ones(8, dtype=torch.int32)),
        {},
        TypeError,
        "expected weight of dtype .*, got torch.int32",
        id="int weight",
    ),
    pytest.param(
        (X, (8,), W.to("meta")),
        {},
        ValueError,
        "expected weight on cpu like input, got meta",
        id="weight on another device",
    ),
    pytest.param((X.int(), (8,)), {}, TypeError, "expected input of dtype .*, got torch.int32", id="int input"),
    pytest.param((X.bool(), (8,)), {}, TypeError, "expected input of dtype .*, got torch.bool", id="bool input"),
    pytest.param(
        (X.to(torch.complex64), (8,)),
        {},
        TypeError,
        "expected input of dtype .*, got torch.complex64",
        id="complex input",
    ),
    pytest.param(
        (X.to(torch.float8_e4m3fn), (8,)),
        {},
        TypeError,
        "expected input of dtype .*, got torch.float8",
        id="float8 input",
    ),
    pytest.param(
        (X.to_sparse(), (8,)), {}, TypeError, "expected input of layout .*, got torch.sparse_coo", id="sparse input"
    ),
    pytest.param((X.tolist(), (8,)), {}, TypeError, "expected input to be .*, got list", id="input is a list"),
    pytest.param((None, (8,)), {}, TypeError, "expected input to be .*, got NoneType", id="no input"),
    pytest.param((X, (8,)), {"eps": -1e-6}, ValueError, "expected eps .*, got -1e-06", id="negative eps"),
    pytest.param((X, (8,)), {"eps": float("nan")}, ValueError, "expected eps .*, got nan", id="NaN eps"),
    pytest.param(
        (X, {"size": 8}),
        {},
        TypeError,
        "expected normalized_shape to be sizes .*, got {'size': 8}",
        id="shape is a dict",
    ),
    pytest.param((X, (8,)), {"eps": "small"}, TypeError, "expected eps to be .*, got str", id="eps is text"),
]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("backend", [None, "cpu", "reference"])
@pytest.mark.parametrize(("arguments", "options", "error", "message"), REFUSED)
def test_bad_input_is_refused_in_words(
    arguments: tuple[Any, ...],
    options: dict[str, Any],
    error: type[Exception],
    message: str,
    backend: str | None,
    training: bool,
) -> None:
    def grad(value: Any) -> Any:
        fits = training and isinstance(value, torch.Tensor) and value.is_floating_point() and value.is_leaf
        return value.detach().clone().requires_grad_() if fits and value.dtype.itemsize > 1 else value

    arguments = tuple(grad(value) for value in arguments)

    def call() -> None:
        with pytest.raises(error, match=message):
            sk.rms_norm(*arguments, **options)
        with pytest.raises(error, match="add_rms_norm: " + message.removeprefix("rms_norm: ")):
            sk.add_rms_norm(arguments[0], arguments[0], *arguments[1:], **options)

    if backend is None:
        call()
    else:
        with sk.use_backend(backend):
            call()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("residual", "error"),
    [
        (torch.randn(3, 7), ValueError),
        (torch.randn(1, 8), ValueError),
        (torch.randn(3, 8, device="meta"), ValueError),
        (torch.ones(3, 8, dtype=torch.int64), TypeError),
        (None, TypeError),
    ],
    ids=["shape", "broadcast", "device", "integers", "none"],
)
def test_bad_residual_is_refused(residual: Any, error: type[Exception], training: bool) -> None:
    with pytest.raises(error, match="add_rms_norm: expected residual .*, got"):
        sk.add_rms_norm(X.clone().requires_grad_(training), residual, (8,))


def test_bad_calls_of_the_operators_do_not_crash() -> None:
    x, w, g = torch.randn(3, 8), torch.ones(8), torch.randn(3, 8)
    for call in (
        lambda: ops._rms_norm(x, 1, 7, w, None),
        lambda: ops._rms_norm(x, 3, 8, w, None),
        lambda: ops._rms_norm(x, 0, 1, None, None),
        lambda: ops._rms_norm(x, -1, 8, None, None),
        lambda: ops._rms_norm(x, 1, 8, torch.ones(9), None),
        lambda: ops._rms_norm(x, 1, 8, w, -1.0),
        lambda: ops._rms_norm(x.int(), 1, 8, None, None),
        lambda: ops._rms_norm_backward(g[:2], x, 1, 8, w, None, None, True, True),
        lambda: ops._rms_norm_backward(g.double(), x, 1, 8, w, None, None, True, True),
        lambda: ops._rms_norm_backward(g, x, 1, 8, None, None, None, True, True),
        lambda: ops._rms_norm_backward(g, x, 1, 8, w, None, g[:1], True, True),
    ):
        with pytest.raises((RuntimeError, ValueError, TypeError)):
            call()


# The choice of an implementation


def test_unknown_backend() -> None:
    with (
        pytest.raises(ValueError, match="expected name to be 'cuda', 'cpu', 'triton', 'reference', got 'metal'"),
        sk.use_backend("metal"),
    ):
        pass


def test_a_backend_that_cannot_run_the_call_says_why() -> None:
    with (
        sk.use_backend("cuda"),
        pytest.raises(sk.BackendError, match="'cuda' was asked for but cannot.*the input is on cpu"),
    ):
        sk.rms_norm(X, (8,))


def test_use_backend_nests_and_ends_with_an_exception() -> None:
    from sparsekernels import dispatch

    with sk.use_backend("cpu"):
        with contextlib.suppress(KeyError), sk.use_backend("reference"):
            assert dispatch.forced == "reference"
            raise KeyError
        assert dispatch.forced == "cpu"
    assert dispatch.forced is None


def test_no_implementation_gives_every_reason() -> None:
    with pytest.raises(sk.BackendError, match="cuda: .*cpu: "):
        select(RMS_NORM.implementations[:2], RMS_NORM.call_of(torch.empty(1, device="meta")))
    with pytest.raises(sk.BackendError, match="no such implementation, only cuda"):
        select(RMS_NORM.implementations[:1], RMS_NORM.call_of(X), backend="cpu")
