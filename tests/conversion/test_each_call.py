# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What code does anew in each call: it sets seeds, makes modules and parameters."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from conversion_checks import FINE, GRAPH, LAYERS, Prefer
from torch import Tensor, nn

import sparsekernels as sk
from sparsekernels import _library
from sparsekernels.pruning import prune_

pytestmark = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")


class Seeded(nn.Module):
    """Sets the state of a generator for a while, or for good."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.layer, self.how = nn.Linear(16, 16), how

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x).relu()
        if self.how == "fork":
            with torch.random.fork_rng():
                torch.manual_seed(0)
                return y + torch.rand_like(y)
        if self.how == "python":
            random.seed(0)
            return y
        state = torch.get_rng_state()
        torch.manual_seed(0)
        noise = torch.rand_like(y)
        torch.set_rng_state(state)
        return y + noise


@pytest.mark.parametrize("how", ["fork", "python", "state"])
def test_code_that_sets_a_seed_is_no_graph(prefer: Prefer, how: str) -> None:
    model = Seeded(how).eval()
    prune_(model, "random", 0.7)
    dense, x = copy.deepcopy(model), torch.randn(4, 16)
    prefer(FINE, GRAPH, LAYERS)
    sk.convert(model, x)
    with torch.no_grad():
        for _ in range(3):
            drawn = []
            for one in (model, dense):
                drawn.append((one(x), random.random() if how == "python" else None))
            torch.testing.assert_close(*drawn)


@pytest.mark.parametrize("training", [False, True])
def test_modules_and_parameters_that_each_call_makes(prefer: Prefer, training: bool) -> None:
    class Makes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            self.pool = nn.AvgPool1d(2)
            self.scale = nn.Parameter(torch.ones(()))
            return torch.as_tensor(self.pool(self.layer(x)) * self.scale)

    model = Makes().train(training)
    prune_(model, "random", 0.7)
    dense, x = copy.deepcopy(model), torch.randn(4, 16)
    prefer(FINE, GRAPH, LAYERS)
    sk.convert(model, x)
    torch.testing.assert_close(model(x), dense(x), rtol=1e-4, atol=1e-5)
