# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""MaskedLinear: results and gradients of the dense layer with a masked weight."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import sparsekernels as sk
from sparsekernels.testing import assert_verified


def dense(layer: torch.nn.Linear, x: Tensor, weight: Tensor, bias: Tensor, mask: Tensor) -> Tensor:
    """The definition; half types are multiplied in float32."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    used = torch.where(mask, weight, 0) if mask.dtype == torch.bool else weight * mask.to(weight.dtype)
    return (x.to(wide) @ used.to(wide).mT).to(x.dtype) + bias


def ours(layer: sk.nn.MaskedLinear, x: Tensor, weight: Tensor, bias: Tensor, mask: Tensor) -> Tensor:
    result: Tensor = torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x, mask))
    return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("density", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(40,), (7, 40), (2, 65, 40), (0, 40)], ids=str)
def test_bool_masks(shape: tuple[int, ...], density: float, dtype: torch.dtype) -> None:
    layer = sk.nn.MaskedLinear(40, 70).to(dtype)
    mask = torch.rand(70, 40) < density
    x = torch.randn(shape).to(dtype).requires_grad_()
    tensors = x, layer.weight, layer.bias
    assert_verified(lambda *of: ours(layer, *of, mask), lambda *of: dense(layer, *of, mask), tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("needs", [True, False])
def test_floating_masks(needs: bool, dtype: torch.dtype) -> None:
    """The gradient of the mask is there where it is zero, too."""
    layer = sk.nn.MaskedLinear(40, 70).to(dtype)
    mask = (torch.rand(70, 40) < 0.1).to(dtype).requires_grad_(needs)
    tensors = torch.randn(33, 40).to(dtype).requires_grad_(), layer.weight, layer.bias, mask
    assert_verified(lambda *of: ours(layer, *of), lambda *of: dense(layer, *of), tensors)


def test_derivatives() -> None:
    layer = sk.nn.MaskedLinear(5, 7, dtype=torch.float64)
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(7, 5) < 0.5
    weight, bias = layer.weight, layer.bias
    assert torch.autograd.gradgradcheck(lambda *of: ours(layer, *of, mask), (x, weight, bias))
    factors = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *of: ours(layer, *of), (x, weight, bias, factors))
    assert torch.autograd.gradgradcheck(lambda *of: ours(layer, *of), (x, weight, bias, factors))


def test_a_supermask_is_trained() -> None:
    """The best half of the scores is the mask; a straight-through gradient moves the scores."""
    torch.manual_seed(0)
    layer = sk.nn.MaskedLinear(16, 4)
    layer.requires_grad_(False)
    scores = torch.nn.Parameter(torch.randn(4, 16))
    x = torch.randn(256, 16)
    target = F.linear(x, layer.weight * (torch.rand(4, 16) < 0.5))
    optimizer = torch.optim.Adam([scores], 0.05)
    losses = []
    for _ in range(150):
        hard = (scores >= scores.flatten().median()).float()
        loss = F.mse_loss(layer(x, hard + scores - scores.detach()), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_what_is_masked_is_not_read() -> None:
    layer = sk.nn.MaskedLinear(40, 70)
    mask = torch.rand(70, 40) < 0.5
    x = torch.randn(9, 40)
    wanted = layer(x, mask)
    with torch.no_grad():
        layer.weight[~mask] = float("nan")
    assert torch.equal(layer(x, mask), wanted)


def test_state_is_that_of_a_linear_layer() -> None:
    linear, layer = torch.nn.Linear(6, 4), sk.nn.MaskedLinear(6, 4)
    layer.load_state_dict(linear.state_dict())
    x = torch.randn(5, 6)
    torch.testing.assert_close(layer(x, torch.ones(4, 6, dtype=torch.bool)), linear(x))
    assert sk.nn.MaskedLinear(6, 4, bias=False)(x, torch.zeros(4, 6, dtype=torch.bool)).abs().max() == 0


def test_compiled() -> None:
    layer = sk.nn.MaskedLinear(40, 70)
    x, mask = torch.randn(9, 40), torch.rand(70, 40) < 0.3
    compiled = torch.compile(layer, fullgraph=True)
    for one in (mask, mask.float(), mask.float().requires_grad_()):
        torch.testing.assert_close(compiled(x, one), layer(x, one))


def test_autocast() -> None:
    layer, x, mask = sk.nn.MaskedLinear(40, 70), torch.randn(9, 40), torch.rand(70, 40) < 0.3
    for one in (mask, mask.float()):
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(x, one)
        assert y.dtype == torch.bfloat16
        y.float().sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32


@pytest.mark.parametrize(
    ("x", "mask", "error", "words"),
    [
        (torch.ones(3, 5), torch.ones(4, 6).bool(), ValueError, r"input of shape \[\*, 6\], got \[3, 5\]"),
        (torch.ones(3, 6), torch.ones(6, 4).bool(), ValueError, r"mask of shape \[4, 6\] like weight, got \[6, 4\]"),
        (torch.ones(3, 6), torch.ones(4, 6).int(), TypeError, "mask of dtype torch.bool or torch.float32 like weight"),
        (torch.ones(3, 6), None, TypeError, "mask to be a torch.Tensor, got NoneType"),
        (torch.ones(3, 6), torch.ones(4, 6, device="meta").bool(), ValueError, "mask on cpu like weight, got meta"),
        (torch.ones(3, 6).int(), torch.ones(4, 6).bool(), TypeError, "input of dtype"),
        (torch.ones(3, 6).double(), torch.ones(4, 6).bool(), TypeError, "input of dtype torch.float32 like weight"),
    ],
)
def test_refused(x: Tensor, mask: Tensor, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match="MaskedLinear: expected " + words):
        sk.nn.MaskedLinear(6, 4)(x, mask)


def test_second_derivatives_where_a_mask_is_zero() -> None:
    """A floating mask has a gradient there, and so has the gradient of the input."""
    layer = sk.nn.MaskedLinear(4, 3).double()
    x, mask = torch.randn(5, 4, dtype=torch.float64, requires_grad=True), torch.rand(3, 4, dtype=torch.float64)
    mask[0] = 0
    mask.requires_grad_()
    results = []
    for y in (layer(x, mask), torch.nn.functional.linear(x, layer.weight * mask, layer.bias)):
        (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        results.append(torch.autograd.grad(gradient.sum(), (mask, layer.weight)))
    torch.testing.assert_close(*results)
    wanted = results[1]
    layer = layer.float()
    small = x.detach().float().requires_grad_(), mask.detach().float().requires_grad_()
    (gradient,) = torch.autograd.grad(layer(*small).square().sum(), small[0], create_graph=True)
    found = torch.autograd.grad(gradient.sum(), (small[1], layer.weight))
    torch.testing.assert_close([one.double() for one in found], list(wanted), rtol=1e-4, atol=1e-4)
