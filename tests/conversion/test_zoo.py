# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""convert on networks in the style of those that others wrote; tests/zoo has many of theirs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from twins import Call
from zoo_checks import check_evaluation, check_training, prepared
from zoo_nets import ZOO, input_of

from sparsekernels import _library

pytestmark = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The networks are small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", ZOO)
def test_zoo(name: str) -> None:
    torch.manual_seed(1)
    call = Call((input_of(name, 2, 0),))
    model = prepared(ZOO[name](), call, 0.8)
    others = [Call((input_of(name, *sizes),)) for sizes in ((1, 0), (5, 0), (2, 1))]
    report = check_evaluation(model, [call, *others])
    for row in report.layers:
        depthwise = getattr(model.get_submodule(row.name), "groups", 1) > 2
        assert row.decision == ("dense" if depthwise else "fine-grained"), row
    assert check_training(model, call)
