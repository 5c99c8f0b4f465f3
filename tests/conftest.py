"""Settings that must stand before sparsekernels is imported, and the devices that the matrices run on."""

import os

os.environ["SPARSEKERNELS_POISON"] = "1"  # the compiled kernels' outputs start as NaN

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton kernels run on the CPU, in Triton's interpreter

import contextlib
from collections.abc import Iterator

import pytest
from conversion_checks import Prefer
from hypothesis import HealthCheck, settings

from sparsekernels.conversion.measure import preferred

settings.register_profile(
    "sparsekernels", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("sparsekernels")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same random numbers in every run, whichever tests run."""
    torch.manual_seed(0)


@pytest.fixture
def prefer() -> Iterator[Prefer]:
    """`sparsekernels.testing.prefer`, for the rest of a test; "as before" is a name here, too."""
    with contextlib.ExitStack() as stack:
        yield lambda *names: stack.enter_context(preferred(names))
