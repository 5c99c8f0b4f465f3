# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""convert on architectures of other authors, forced, in both modes. `tests/legs.sh zoo` installs what they need."""

from __future__ import annotations

import os

import pytest
import torch
from zoo_checks import check_evaluation, check_training
from zoo_models import ZOO, let_torchvision_be_imported, pruned

from sparsekernels import _library

pytestmark = [
    pytest.mark.skipif("ZOO" not in os.environ, reason="takes minutes; tests/legs.sh zoo sets ZOO"),
    pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built"),
]


@pytest.fixture(scope="module", autouse=True)
def imports() -> None:
    let_torchvision_be_imported()


@pytest.mark.parametrize("name", ZOO)
def test_evaluation(name: str) -> None:
    model, calls = pruned(name)
    report = check_evaluation(model, calls)
    assert report.converted, report.notes


CHAOTIC = {"ghostnet_050"}
"""In training mode, of random weights so sparse, the dense model itself is off by a quarter in float32."""


@pytest.mark.parametrize("name", ZOO)
def test_training(name: str) -> None:
    model, _ = pruned(name)
    row = ZOO[name]
    said = check_training(model, row.call(4, row.sizes[0]))  # of more than two, or BatchNorm makes noise of them
    assert said == (name not in CHAOTIC)
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
