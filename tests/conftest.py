"""Settings that must stand before sparsekernels is imported, and the devices that the matrices run on."""

import os

os.environ["SPARSEKERNELS_POISON"] = "1"  # the compiled kernels' outputs start as NaN

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton kernels run on the CPU, in Triton's interpreter

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "sparsekernels", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("sparsekernels")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same random numbers in every run, whichever tests run."""
    torch.manual_seed(0)
