# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Settings that must stand before sparsekernels is imported, which tests need a GPU, and what many share."""

import os

os.environ["SPARSEKERNELS_POISON"] = "1"  # the compiled kernels' outputs start as NaN

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton kernels run on the CPU, in Triton's interpreter

import contextlib
import gc
import inspect
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from conversion_checks import Prefer, attempt_module
from hypothesis import HealthCheck, settings

from sparsekernels.conversion import blocks as blocks_module
from sparsekernels.conversion import decide as decide_module
from sparsekernels.conversion import rows as rows_module
from sparsekernels.conversion.measure import Times, preferred

settings.register_profile(
    "sparsekernels", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("sparsekernels")


def list_builtins_once() -> None:
    """Triton's interpreter lists the members of its language anew in every call of a function, for most of its time."""
    try:
        from triton import language as tl
        from triton.runtime import interpreter
    except ImportError:
        return
    parts = (tl, tl.core, tl.math, tl.tensor, tl.core.tensor_descriptor_base)
    known = {part: [name for name, value in inspect.getmembers(part) if tl.core.is_builtin(value)] for part in parts}

    def builtins_of(part: Any) -> list[tuple[str, Any]]:
        return [(name, getattr(part, name)) for name in known[part]] if part in known else inspect.getmembers(part)

    interpreter.inspect = SimpleNamespace(**{**vars(inspect), "getmembers": builtins_of})


if os.environ.get("TRITON_INTERPRET") == "1":
    list_builtins_once()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--every", type=int, default=1, metavar="N", help="run one of N tests, evenly of all that match")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark a test that runs on a GPU; `make gpu` runs these.

    It has a parameter `device`, or else its file a DEVICE, that is "cuda"; or it is skipped where there is none.
    """
    if isinstance(item, pytest.Function):
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        on_gpu = str(parameters.get("device", getattr(item.module, "DEVICE", None))) == "cuda"
        reasons = [str(mark.kwargs.get("reason")) for mark in item.iter_markers("skipif")]
        if on_gpu or any(reason.startswith("needs a GPU") for reason in reasons):
            item.add_marker(pytest.mark.cuda)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Compile the Triton kernels of sparse operations for 9.0 alone: the other architectures take a minute each.

    The file that takes longest comes first, so that two workers end at the same time.
    """
    items.sort(key=lambda item: item.path.name != "test_isa.py")
    for item in items:
        of_sparse = item.path.name.endswith("_triton_compiled.py") and item.path.parent.name != "rms_norm"
        parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        if of_sparse and parameters.get("architecture", 90) != 90 and "EVERY_ARCHITECTURE" not in os.environ:
            item.add_marker(pytest.mark.skip(reason="tests/legs.sh triton-architectures sets EVERY_ARCHITECTURE"))
    every = config.getoption("--every")
    if every > 1:
        config.hook.pytest_deselected(items=[one for place, one in enumerate(items) if place % every])
        items[:] = items[::every]


def pytest_collection_finish() -> None:
    """What is there by now stays: garbage collections, which `convert` asks for as well, need not visit it."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same random numbers in every run, whichever tests run."""
    torch.manual_seed(0)


@pytest.fixture
def prefer() -> Iterator[Prefer]:
    """`sparsekernels.testing.prefer`, for the rest of a test; "as before" is a name here, too."""
    with contextlib.ExitStack() as stack:
        yield lambda *names: stack.enter_context(preferred(names))


@pytest.fixture
def block_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """`convert` takes it that there are kernels for blocks of all kinds; those that there are run."""
    monkeypatch.setattr(blocks_module, "has_block_kernel", lambda device, dtype, block: True)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Prefer:
    """Takes the place of the clock: the first of the arguments takes 1 ms, the second 2 ms, what is no argument 100 ms.

    Unlike with `prefer`, these count as measured. "as before" takes 50 ms where it is no argument.
    """

    def choose(*names: str) -> None:
        milliseconds = {"as before": 50.0} | {name: float(place) for place, name in enumerate(names, 1)}

        def times_of(calls: Mapping[str, Callable[[], object]], *_: object, **__: object) -> Times:
            for call in calls.values():
                call()
            return Times({name: [1e-3 * milliseconds.get(name, 100.0)] * 3 for name in calls})

        def faster_than_dense(calls: Mapping[str, object], *_: object) -> Times:
            """Whatever the number of rows."""
            return Times({name: [100.0 if name == "dense" else 1.0] for name in calls})

        monkeypatch.setattr(decide_module, "times_of", times_of)
        monkeypatch.setattr(attempt_module, "times_of", times_of)
        monkeypatch.setattr(rows_module, "times_of", faster_than_dense)

    return choose
