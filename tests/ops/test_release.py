# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What the compiled library keeps is freed when its owner is gone, and nothing that records operators sees it."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

import sparsekernels as sk
from sparsekernels import _library
from sparsekernels.ops._release import _left
from sparsekernels.ops.fingerprint.op import fingerprint
from sparsekernels.ops.sparse_conv2d import plans
from sparsekernels.pruning import prune_

pytestmark = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")


class Seen(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def layer_with_a_plan() -> nn.Module:
    dense = nn.Linear(8, 8)
    prune_(dense, "random", 0.5)
    layer: nn.Module = sk.nn.SparseLinear.sharing(dense)
    layer(torch.randn(2, 8))
    return layer


def exported(function: Callable[[Tensor], Tensor]) -> str:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return function(x)

    return str(torch.export.export(Net(), (torch.ones(3),)).graph)


def traced(function: Callable[[Tensor], Tensor]) -> str:
    return str(torch.jit.trace(function, torch.ones(3)).inlined_graph)


RECORDERS: dict[str, Callable[[Any], str]] = {
    "export": exported,
    "make_fx": lambda function: str(make_fx(function)(torch.ones(3)).graph),
    "jit.trace": traced,
}


@pytest.mark.parametrize("recorder", RECORDERS)
def test_nothing_is_recorded(recorder: str) -> None:
    gc.collect()
    known = set(plans._of_number)
    owners = [layer_with_a_plan(), fingerprint([torch.ones(2)])]
    assert set(plans._of_number) > known

    def forget(x: Tensor) -> Tensor:
        owners.clear()
        gc.collect()
        return x + 1

    assert "sparsekernels" not in RECORDERS[recorder](forget)
    assert not owners
    fingerprint([torch.ones(2)])  # gone at once, and with it what was left
    assert not _left
    assert set(plans._of_number) == known


def test_a_function_mode_sees_nothing() -> None:
    owners = [layer_with_a_plan()]
    with Seen() as seen:
        owners.clear()
        gc.collect()
    assert not seen.names
    assert not _left
