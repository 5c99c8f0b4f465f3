# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Code that changes settings of torch, of Python or of the process in a call: convert's own calls leave them."""

from __future__ import annotations

import gc
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from acting_net import Net, pruned
from conversion_checks import FINE, GRAPH, LAYERS, Prefer

import sparsekernels as sk
from sparsekernels import _library
from sparsekernels.conversion.watch.settings import Settings

pytestmark = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")

NAME = "TEST_SETTINGS"

SETS: dict[str, Callable[[], object]] = {
    "environment": lambda: os.environ.update({NAME: "1"}),
    "threads": lambda: torch.set_num_threads(torch.get_num_threads() % 2 + 1),
    "default dtype": lambda: torch.set_default_dtype(torch.float64),
    "default device": lambda: torch.set_default_device("meta"),
    "cudnn.benchmark": lambda: setattr(torch.backends.cudnn, "benchmark", True),
    "deterministic algorithms": lambda: torch.use_deterministic_algorithms(True, warn_only=True),
    "matmul precision": lambda: torch.set_float32_matmul_precision("high"),
    "fast path": lambda: torch.backends.mha.set_fastpath_enabled(False),
    "plain attention": lambda: torch.backends.cuda.enable_math_sdp(False),
    "flushed denormals": lambda: torch.set_flush_denormal(True),
    "anomaly mode": lambda: torch.autograd.set_detect_anomaly(True),
    "swapped parameters": lambda: torch.__future__.set_swap_module_params_on_conversion(True),
    "autocast dtype on cpu": lambda: torch.set_autocast_dtype("cpu", torch.float16),
    "working directory": lambda: os.chdir(Path.cwd().parent),
    "path": lambda: sys.path.append("elsewhere"),
    "recursion limit": lambda: sys.setrecursionlimit(sys.getrecursionlimit() + 1),
    "switch interval": lambda: sys.setswitchinterval(0.01),
    "gc": gc.disable,
    "thresholds of gc": lambda: gc.set_threshold(699),
    "filters of warnings": lambda: warnings.simplefilter("ignore"),
}
IN_A_MODEL = ["environment", "threads", "default dtype", "default device", "cudnn.benchmark", "filters of warnings"]


@pytest.fixture(autouse=True)
def _put_back() -> Iterator[None]:
    kept = Settings()
    yield
    kept.put_back()


@pytest.mark.filterwarnings("ignore:Anomaly")
@pytest.mark.parametrize("name", SETS)
def test_each_is_put_back(name: str) -> None:
    own = Settings()
    SETS[name]()
    assert name in list(own.changed())
    assert own.put_back()
    assert not list(own.changed())


@pytest.mark.parametrize("name", IN_A_MODEL)
def test_what_a_forward_sets(prefer: Prefer, name: str) -> None:
    """Later calls go on setting it."""
    own = Settings()
    model, x = pruned(Net(lambda _: SETS[name]())), torch.randn(4, 16)
    prefer(FINE, GRAPH, LAYERS)
    assert sk.convert(model, x).converted
    assert not list(own.changed())
    with torch.no_grad():
        model(x)
    assert name in list(own.changed())


def test_what_is_set_already_when_it_is_traced(prefer: Prefer) -> None:
    """A call may find it otherwise."""
    own = Settings()

    def act(_: object) -> None:
        os.environ[NAME] = "1"
        torch.backends.cudnn.benchmark = True

    model, x = pruned(Net(act)), torch.randn(4, 16)
    with torch.no_grad():
        model(x)
    prefer(FINE, GRAPH, LAYERS)
    assert sk.convert(model, x).converted
    own.put_back()
    with torch.no_grad():
        model(x)
    assert set(own.changed()) == {"environment", "cudnn.benchmark"}


def test_in_training(prefer: Prefer) -> None:
    own = Settings()
    model = pruned(Net(lambda _: os.environ.update({NAME: "1"})), True)
    prefer(FINE, GRAPH, LAYERS)
    assert sk.convert(model, torch.randn(4, 16)).converted
    assert not list(own.changed())
