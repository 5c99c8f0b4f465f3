# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""A third-party operation, with gradients of any order: declared in one file, and a row in the table of all."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import sparsekernels as sk
from sparsekernels.bench import info
from sparsekernels.checks import check_tensor
from sparsekernels.ops import OPERATIONS
from sparsekernels.ops._operation import Operation, Operator

reference = SimpleNamespace(forward=torch.square)
OPERATION = Operation("square", reference)
OPERATION.kernel("forward", "_square(Tensor input) -> Tensor")


class Square(torch.autograd.Function):
    generate_vmap_rule = True
    forward = staticmethod(lambda input, kernels: kernels.forward(input))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Any], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return 2 * ctx.saved_tensors[0] * gradient, None


def validate(input: Tensor) -> None:
    check_tensor("square", "input", input)


square = Operator(OPERATION, "square(Tensor input) -> Tensor", Square, validate=validate)


def test_a_new_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(info, "OPERATIONS", [*OPERATIONS, OPERATION])
    assert ("square on cpu", "reference") in info.sections()["in use"]
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(square(x), x.square())
    assert torch.autograd.gradcheck(square, x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(square, x)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(lambda x: square(x).sum()))(x), 2 * x)
    torch.testing.assert_close(torch.compile(square, fullgraph=True, backend="aot_eager")(x), x.square())
    torch.library.opcheck(square.overload, (x,))
    with pytest.raises(TypeError, match="input"):
        square(x.int())
    with pytest.raises(sk.BackendError, match="of this operation, 'reference', got 'triton'"), sk.use_backend("triton"):
        square(x)
