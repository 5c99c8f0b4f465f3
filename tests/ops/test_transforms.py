# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Every differentiable operation inside of every composition of transforms that users write, against torch's own.

Inside of them no tensor says that it requires a gradient: a call that relies on it would run a kernel without one,
and the gradient would silently be missing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacrev, jvp, vjp, vmap

import sparsekernels as sk
from sparsekernels.ops.batch_norm.op import Act, batch_norm_act
from sparsekernels.ops.max_pool2d.op import max_pool2d

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")  # kernels are looped over under vmap

Function = Callable[[Tensor], Tensor]
EPS = torch.finfo(torch.float32).eps
LIMITED = Act(0.0, 6.0)


class Case(NamedTuple):
    """A function of one tensor, what it has to equal, and the tensor: [2, *input]."""

    ours: Function
    theirs: Function
    input: Tensor


def _cases() -> dict[str, Case]:
    g = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g)

    def sparse(*shape: int) -> sk.Unstructured:
        return sk.Unstructured.from_dense(randn(*shape) * (torch.rand(shape, generator=g) < 0.4))

    scale, rows, images = randn(16), randn(2, 3, 16), randn(2, 3, 4, 6, 6)
    matrix, filters, taps = sparse(8, 16), sparse(6, 4, 3, 3), sparse(6, 3, 3)
    last = images.transpose(1, 2).contiguous(memory_format=torch.channels_last_3d).transpose(1, 2)
    norm = randn(4), randn(4)

    def conv(x: Tensor) -> Tensor:
        return sk.sparse_conv2d(x, filters, padding=1, stride=2)

    def dense_conv(x: Tensor) -> Tensor:
        return F.conv2d(x, filters.to_dense(), padding=1, stride=2)

    return {
        "rms_norm": Case(lambda x: sk.rms_norm(x, (16,), scale), lambda x: F.rms_norm(x, (16,), scale, EPS), rows),
        "add_rms_norm": Case(
            lambda x: torch.cat(sk.add_rms_norm(x, x * 2, (16,), scale)),
            lambda x: torch.cat((F.rms_norm(x * 3, (16,), scale, EPS), x * 3)),
            rows,
        ),
        "sparse_linear": Case(lambda x: sk.sparse_linear(x, matrix), lambda x: F.linear(x, matrix.to_dense()), rows),
        "sparse_conv1d": Case(
            lambda x: sk.sparse_conv1d(x, taps, padding=1, stride=2),
            lambda x: F.conv1d(x, taps.to_dense(), padding=1, stride=2),
            randn(2, 3, 3, 9),
        ),
        "sparse_conv2d": Case(conv, dense_conv, images),
        "sparse_conv2d channels_last": Case(conv, dense_conv, last),
        "max_pool2d": Case(lambda x: max_pool2d(x, (3, 3, 2, 2, 1, 1)), lambda x: F.max_pool2d(x, 3, 2, 1), images),
        "batch_norm_act": Case(
            lambda x: batch_norm_act(x, *norm, 1e-5, LIMITED)[0],
            lambda x: F.batch_norm(x, None, None, *norm, True).clamp(0, 6),
            images,
        ),
    }


CASES = _cases()


def _loss(f: Function) -> Function:
    return lambda x: f(x).pow(2).sum() + x.sum()


def _backward(f: Function, x: Tensor) -> Tensor:
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    return torch.autograd.grad(_loss(f)(x), x)[0]


def _batched_gradients(f: Function, x: Tensor) -> Tensor:
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = f(x)
    gradients = torch.stack([torch.ones_like(y), y.detach()])
    return torch.autograd.grad(y, x, gradients, is_grads_batched=True)[0]


def _dual(f: Function, x: Tensor) -> Tensor:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(f(forward_ad.make_dual(x, x.sin()))).tangent


def _tangent(f: Function, x: Tensor) -> Tensor:
    return jvp(f, (x,), (x.sin(),))[1]


def _inner(x: Tensor) -> Tensor:
    """The batch one dimension further in."""
    return x.transpose(0, 1).contiguous()


TRANSFORMS: dict[str, Callable[[Function, Tensor], Tensor]] = {
    "vmap": lambda f, x: vmap(f)(x),
    "vmap over another dimension": lambda f, x: vmap(f, in_dims=1)(_inner(x)),
    "backward of vmap": lambda f, x: _backward(vmap(f), x),
    "backward of vmap over another dimension": lambda f, x: _backward(vmap(f, in_dims=1), _inner(x)),
    "grad": lambda f, x: grad(_loss(f))(x[0]),
    "grad of vmap": lambda f, x: grad(_loss(vmap(f)))(x),
    "grad of vmap without grad mode": lambda f, x: torch.no_grad()(grad(_loss(vmap(f))))(x),
    "vmap of grad": lambda f, x: vmap(grad(_loss(f)))(x),
    "vmap of grad over another dimension": lambda f, x: vmap(grad(_loss(f)), in_dims=1)(_inner(x)),
    "grad of vmap of grad": lambda f, x: grad(_loss(vmap(grad(_loss(f)))))(x),
    "grad of grad": lambda f, x: grad(_loss(grad(_loss(f))))(x[0]),
    "vjp": lambda f, x: vjp(f, x[0])[1](f(x[0]))[0],
    "jvp": lambda f, x: _tangent(f, x[0]),
    "jvp of vmap": lambda f, x: _tangent(vmap(f), x),
    "vmap of jvp": lambda f, x: vmap(lambda one: _tangent(f, one))(x),
    "jvp of grad": lambda f, x: _tangent(grad(_loss(f)), x[0]),
    "jacrev": lambda f, x: jacrev(lambda one: f(one).flatten()[:3])(x[0]),
    "batched gradients": lambda f, x: _batched_gradients(f, x[0]),
    "forward mode": lambda f, x: _dual(f, x[0]),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms(name: str, transform: str) -> None:
    case, run = CASES[name], TRANSFORMS[transform]
    expected = run(case.theirs, case.input)
    limit = 1e-4 * float(expected.abs().max())
    torch.testing.assert_close(run(case.ours, case.input), expected, rtol=1e-3, atol=limit)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("transform", ["grad", "grad of vmap", "vmap of grad", "vmap"])
def test_compiled_transforms(name: str, transform: str) -> None:
    case, run = CASES[name], TRANSFORMS[transform]
    torch._dynamo.reset()
    expected = run(case.theirs, case.input)
    compiled = torch.compile(lambda x: run(case.ours, x), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(case.input), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def _layers(kind: str, dense_grad: bool) -> tuple[torch.nn.Module, torch.nn.Module, Tensor, Tensor]:
    """A sparse layer, the dense one, where the first one's weight has gradients, and an input."""
    dense: Any = torch.nn.Linear(9, 7) if kind == "linear" else torch.nn.Conv2d(4, 6, 3, padding=1)
    with torch.no_grad():
        dense.weight *= torch.rand_like(dense.weight) < 0.4
    layer = sk.nn.SparseLinear if kind == "linear" else sk.nn.SparseConv2d
    reached = (dense.weight != 0) | dense_grad
    x = torch.randn(4, 9) if kind == "linear" else torch.randn(2, 4, 5, 5)
    return layer.from_dense(dense, dense_grad=dense_grad), dense, reached, x


def _of_parameters(module: torch.nn.Module, x: Tensor) -> Callable[[dict[str, Tensor]], Tensor]:
    return lambda weights: functional_call(module, weights, (x,)).pow(2).sum()


def _detached(module: torch.nn.Module) -> dict[str, Tensor]:
    return {key: one.detach().clone() for key, one in module.named_parameters()}


def _gradients(module: torch.nn.Module, x: Tensor) -> dict[str, Tensor]:
    return grad(_of_parameters(module, x))(_detached(module))


def _of_stacked(module: torch.nn.Module, x: Tensor) -> dict[str, Tensor]:
    stacked = {key: torch.stack([one, one * 2]) for key, one in _detached(module).items()}
    return grad(lambda weights: vmap(_of_parameters(module, x))(weights).sum())(stacked)


def _compiled(module: torch.nn.Module, x: Tensor) -> dict[str, Tensor]:
    torch._dynamo.reset()
    result: dict[str, Tensor] = torch.compile(grad(_of_parameters(module, x)), backend="aot_eager")(_detached(module))
    return result


def _compiled_of_stacked(module: torch.nn.Module, x: Tensor) -> dict[str, Tensor]:
    torch._dynamo.reset()
    stacked = {key: torch.stack([one, one * 2]) for key, one in _detached(module).items()}
    loss = _of_parameters(module, x)
    result: dict[str, Tensor] = torch.compile(grad(lambda weights: vmap(loss)(weights).sum()), backend="aot_eager")(
        stacked
    )
    return result


def _backward_while_forward_mode_is_open(module: torch.nn.Module, x: Tensor) -> dict[str, Tensor]:
    with forward_ad.dual_level():
        names, parameters = zip(*module.named_parameters(), strict=True)
        return dict(zip(names, torch.autograd.grad(module(x).pow(2).sum(), parameters), strict=True))


def _tangents_of_gradients(module: torch.nn.Module, x: Tensor) -> dict[str, Tensor]:
    weights = _detached(module)
    result: dict[str, Tensor] = jvp(grad(_of_parameters(module, x)), (weights,), (weights,))[1]
    return result


@pytest.mark.parametrize(
    "run",
    [
        _gradients,
        _of_stacked,
        _compiled,
        _compiled_of_stacked,
        _backward_while_forward_mode_is_open,
        _tangents_of_gradients,
    ],
)
@pytest.mark.parametrize("dense_grad", [False, True])
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_gradients_of_a_layers_parameters(
    kind: str, dense_grad: bool, run: Callable[[torch.nn.Module, Tensor], dict[str, Tensor]]
) -> None:
    sparse, dense, reached, x = _layers(kind, dense_grad)
    ours, theirs = run(sparse, x), run(dense, x)
    torch.testing.assert_close(ours["weight"], theirs["weight"] * reached, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours["bias"], theirs["bias"], rtol=1e-4, atol=1e-4)


def test_a_backend_by_name_says_what_it_cannot_compile() -> None:
    x = torch.randn(3, 16)
    with (
        sk.use_backend("cpu"),
        pytest.raises(Exception, match="without compiled derivatives inside of torch.func"),
    ):
        torch.compile(grad(lambda x: sk.rms_norm(x, (16,)).sum()), backend="eager", fullgraph=True)(x)
