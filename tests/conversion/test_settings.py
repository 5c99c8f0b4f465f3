# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Code that changes settings of torch, of Python or of the process in a call: convert's own calls leave them."""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from acting_net import Net, pruned
from conversion_checks import FINE, GRAPH, LAYERS, Prefer, graphs_of

import sparsekernels as sk
from sparsekernels import _library
from sparsekernels.conversion.watch.reach import Reach
from sparsekernels.conversion.watch.settings import SETTINGS

pytestmark = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")

NAME = "TEST_SETTINGS"


def flag(owner: Any, name: str, value: object) -> Callable[[], object]:
    return lambda: setattr(owner, name, value)


def fp32_precision(of: str, value: str) -> Callable[[], object]:
    owner: Any = torch.backends
    for part in of.split("."):
        owner = getattr(owner, part)
    return flag(owner, "fp32_precision", value)


_backends: Any = torch.backends
SETS: dict[str, Callable[[], object]] = {
    "threads": lambda: torch.set_num_threads(torch.get_num_threads() % 2 + 1),
    "default dtype": lambda: torch.set_default_dtype(torch.float64),
    "default device": lambda: torch.set_default_device("meta"),
    "deterministic algorithms": lambda: torch.use_deterministic_algorithms(True, warn_only=True),
    "fill_uninitialized_memory": flag(torch.utils.deterministic, "fill_uninitialized_memory", False),
    "matmul precision": lambda: torch.set_float32_matmul_precision("high"),
    "fast path": lambda: torch.backends.mha.set_fastpath_enabled(False),
    "flash attention": lambda: torch.backends.cuda.enable_flash_sdp(False),
    "efficient attention": lambda: torch.backends.cuda.enable_mem_efficient_sdp(False),
    "plain attention": lambda: torch.backends.cuda.enable_math_sdp(False),
    "attention of cuDNN": lambda: torch.backends.cuda.enable_cudnn_sdp(False),
    "flushed denormals": lambda: torch.set_flush_denormal(True),
    "anomaly mode": lambda: torch.autograd.set_detect_anomaly(True),
    "repeated warnings": lambda: torch.set_warn_always(True),
    "autocast cache": lambda: torch.set_autocast_cache_enabled(False),
    "overwritten parameters": lambda: torch.__future__.set_overwrite_module_params_on_conversion(True),
    "swapped parameters": lambda: torch.__future__.set_swap_module_params_on_conversion(True),
    **{f"autocast on {one}": lambda one=one: torch.set_autocast_enabled(one, True) for one in ("cpu", "cuda")},
    **{
        f"autocast dtype on {one}": lambda one=one, dtype=dtype: torch.set_autocast_dtype(one, dtype)
        for one, dtype in (("cpu", torch.float16), ("cuda", torch.bfloat16))
    },
    "working directory": lambda: os.chdir(Path.cwd().parent),
    "recursion limit": lambda: sys.setrecursionlimit(sys.getrecursionlimit() + 1),
    "switch interval": lambda: sys.setswitchinterval(0.01),
    "thresholds of gc": lambda: gc.set_threshold(699),
}
FLAGS: dict[str, Callable[[], object]] = {
    "cudnn.enabled": flag(_backends.cudnn, "enabled", False),
    "cudnn.benchmark": flag(_backends.cudnn, "benchmark", True),
    "cudnn.deterministic": flag(_backends.cudnn, "deterministic", True),
    "mkldnn.deterministic": flag(_backends.mkldnn, "deterministic", True),
    "cuda.matmul.allow_bf16_reduced_precision_reduction": flag(
        _backends.cuda.matmul, "allow_bf16_reduced_precision_reduction", False
    ),
    **{
        f"{of}.fp32_precision": fp32_precision(of, value)
        for of, value in {"mkldnn.matmul": "bf16", "mkldnn.conv": "bf16", "cuda.matmul": "tf32"}.items()
    },
}


@pytest.fixture(autouse=True)
def _put_back() -> Iterator[None]:
    kept = {name: one.read() for name, one in SETTINGS.items() if name in SETS or name in FLAGS}
    yield
    for name, value in kept.items():
        if SETTINGS[name].read() != value:
            SETTINGS[name].write(value)
    os.environ.pop(NAME, None)


def test_all_but_flags_are_tried() -> None:
    assert SETS.keys() == {name for name in SETTINGS if "." not in name and name != "fp32_precision"}


@pytest.mark.filterwarnings("ignore:Anomaly")
@pytest.mark.parametrize("name", [*SETS, *FLAGS])
def test_each_is_seen_and_put_back(name: str) -> None:
    setting, reach = SETTINGS[name], Reach()
    before = setting.read()
    with reach.watched():
        {**SETS, **FLAGS}[name]()
    assert setting.read() != before
    assert reach.settings.are_any
    reach.put_back()
    assert setting.read() == before


IN_A_MODEL = ["threads", "default dtype", "default device", "cudnn.benchmark", "anomaly mode"]


@pytest.mark.filterwarnings("ignore:Anomaly")
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("called", [False, True])
@pytest.mark.parametrize("name", IN_A_MODEL)
def test_what_a_forward_sets(prefer: Prefer, name: str, called: bool, training: bool) -> None:
    """Later calls go on setting it. called: before, so that it is set to what it is."""
    act, read = {**SETS, **FLAGS}[name], SETTINGS[name].read
    if name == "threads":
        act = lambda: torch.set_num_threads(3)  # noqa: E731
    model, x = pruned(Net(lambda _: act()), training), torch.randn(4, 16)
    before = read()
    if called:
        model(x)
        assert read() != before
        (SETTINGS[name].write)(before) if name == "default device" else None
    start = read()
    prefer(FINE, GRAPH, LAYERS)
    assert sk.convert(model, x).converted
    assert read() == start
    assert not any(graph.module is model for graph in graphs_of(model))
    SETTINGS[name].write(before)
    with torch.no_grad():
        model(x)
    assert read() != before


def test_variables_of_the_environment(prefer: Prefer) -> None:
    """Those alone that its code sets: others are of other threads."""
    model, x, own = pruned(Net(lambda _: os.environ.update({NAME: "1"}))), torch.randn(4, 16), f"{NAME}_OF_A_THREAD"

    def go_on() -> None:
        os.environ[own] = "2"

    thread = threading.Timer(0.01, go_on)
    thread.start()
    prefer(FINE, GRAPH, LAYERS)
    assert sk.convert(model, x).converted
    thread.join()
    assert os.environ.pop(own) == "2"
    assert NAME not in os.environ
    with torch.no_grad():
        model(x)
    assert os.environ[NAME] == "1"


def test_what_other_threads_set_meanwhile_stays(prefer: Prefer) -> None:
    def act(_: object) -> None:
        thread = threading.Thread(target=lambda: torch.backends.cudnn.__setattr__("benchmark", True))
        thread.start()
        thread.join()

    model = pruned(Net(act))
    prefer(FINE, GRAPH, LAYERS)
    sk.convert(model, torch.randn(4, 16))
    assert torch.backends.cudnn.benchmark
