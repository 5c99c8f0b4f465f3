# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What small calls take: `python benchmarks/small_calls.py [THREADS]`, microseconds, beside torch's own.

Forward alone and with all gradients. To compare two trees, run it in turn with PYTHONPATH set to each.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.benchmark import Timer

import sparsekernels as sk

Function = Callable[[Tensor], Tensor]


def forward(function: Function, x: Tensor) -> None:
    with torch.no_grad():
        function(x)


def training(function: Function, leaves: list[Tensor], gradient: Tensor) -> None:
    torch.autograd.grad(function(leaves[0]), leaves, gradient)


def cases() -> dict[str, tuple[dict[str, tuple[Function, list[Tensor]]], Tensor]]:
    """By name: the functions and their parameters, and the input."""
    found = {}
    for name, dense, x in (
        ("conv 1x1, 64 channels, 8x8, batch 1", nn.Conv2d(64, 64, 1), torch.randn(1, 64, 8, 8)),
        ("linear 256x256, 8 rows", nn.Linear(256, 256), torch.randn(8, 256)),
    ):
        dense.weight.data.mul_(torch.rand_like(dense.weight) < 0.1)
        layer = sk.nn.SparseConv2d if isinstance(dense, nn.Conv2d) else sk.nn.SparseLinear
        sparse = layer.from_dense(dense)  # type: ignore[arg-type]
        found[name] = {"dense": (dense, [dense.weight]), "sparse": (sparse, [sparse.weight])}, x
    weight, bias = (torch.randn(256, requires_grad=True) for _ in range(2))
    norms: dict[str, tuple[Function, list[Tensor]]] = {
        "layer_norm": (lambda x: F.layer_norm(x, (256,), weight, bias), [weight]),
        "rms_norm": (lambda x: sk.rms_norm(x, (256,), weight), [weight]),
        "add_rms_norm": (lambda x: sk.add_rms_norm(x, x, (256,), weight)[0], [weight]),
    }
    found["norms of [1, 256]"] = norms, torch.randn(1, 256)
    return found


def seconds_of(call: Callable[[], object]) -> float:
    """By torch's own timer, which every tree has to which one may be compared."""
    timer = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
    return float(timer.blocked_autorange(min_run_time=1.0).median)


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else torch.get_num_threads())
    torch.manual_seed(0)
    for name, (functions, x) in cases().items():
        leaf = x.clone().requires_grad_()
        with torch.no_grad():
            gradient = torch.randn_like(next(iter(functions.values()))[0](x))
        passes = {
            "forward": {kind: functools.partial(forward, function, x) for kind, (function, _) in functions.items()},
            "with gradients": {
                kind: functools.partial(training, function, [leaf, *parameters], gradient)
                for kind, (function, parameters) in functions.items()
            },
        }
        for pass_, calls in passes.items():
            times = {kind: 1e6 * seconds_of(call) for kind, call in calls.items()}
            print(f"{name}, {pass_}: " + ", ".join(f"{kind} {time:.1f} us" for kind, time in times.items()))


if __name__ == "__main__":
    main()
