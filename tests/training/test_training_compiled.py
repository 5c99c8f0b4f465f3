# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""A model that torch.compile has compiled is trained sparse: updates do not have it compiled again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from training_nets import assert_masked, batches, network, sgd

from sparsekernels.testing import prefer
from sparsekernels.training import Sparsifier


@pytest.mark.parametrize(("every", "compilations"), [(1, 1), (3, 2)])
@pytest.mark.parametrize("kernels", [False, True])
def test_updates_compile_nothing(every: int, compilations: int, kernels: bool) -> None:
    """Dense gradients at some steps alone are a second program."""
    runs = []
    for compiled in (False, True):
        torch.compiler.reset()
        model = network()
        optimizer = sgd(model)
        with prefer("fine-grained", "layers"):
            sparsifier = Sparsifier(
                model,
                optimizer,
                0.2,
                algorithm="RigL",
                update_every=3,
                dense_grad_every=every,
                kernels=kernels,
                example_input=torch.randn(8, 3, 8, 8),
                progress=False,
            )
        calls: list[int] = []

        def backend(graph: Any, inputs: Sequence[Any], calls: list[int] = calls) -> Any:
            calls.append(1)
            return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)  # type: ignore[no-untyped-call]

        net: Any = torch.compile(model, backend=backend) if compiled else model
        data, losses = batches(model), []
        for _ in range(10):
            inputs, labels = next(data)
            optimizer.zero_grad()
            loss = F.cross_entropy(net(inputs), labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            assert_masked(model, sparsifier)
        assert sparsifier.updates == 3
        assert len(calls) == (0 if not compiled else compilations if kernels else 1)
        runs.append((losses, sparsifier.masks))
    assert runs[0][0] == pytest.approx(runs[1][0], rel=1e-3)
    torch.compiler.reset()


def test_a_compiled_model_waits_for_no_batch() -> None:
    """Its layers cannot be exchanged any more; it trains dense with a mask, and the line says why."""
    model = torch.compile(network(), backend="eager")
    optimizer = sgd(model)  # type: ignore[arg-type]
    sparsifier = Sparsifier(model, optimizer, 0.2, algorithm="SET", update_every=1, progress=False)  # type: ignore[arg-type]
    assert "it is compiled already" in sparsifier.line
    assert list(sparsifier.masks) == ["0.weight", "3.weight", "7.weight", "9.weight"]
    inputs, labels = next(batches(network()))
    F.cross_entropy(model(inputs), labels).backward()
    optimizer.step()
    assert sum(sparsifier.nonzeros.values()) == round(0.2 * sum(mask.numel() for mask in sparsifier.masks.values()))
    torch.compiler.reset()
