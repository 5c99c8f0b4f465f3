"""Settings that must stand before sparsekernels is imported, and the devices that the matrices run on."""

import os

os.environ["SPARSEKERNELS_POISON"] = "1"  # the compiled kernels' outputs start as NaN

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton kernels run on the CPU, in Triton's interpreter

from collections.abc import Callable, Mapping

import pytest
from conversion_checks import Prefer, convert_module
from hypothesis import HealthCheck, settings

from sparsekernels.conversion import decide as decide_module
from sparsekernels.conversion.measure import Times

settings.register_profile(
    "sparsekernels", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("sparsekernels")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same random numbers in every run, whichever tests run."""
    torch.manual_seed(0)


@pytest.fixture
def prefer(monkeypatch: pytest.MonkeyPatch) -> Prefer:
    """Takes the place of the clock: the first of the arguments is the fastest, what is not among them the slowest.

    Every call is made once, as when it is measured.
    """

    def choose(*names: str) -> None:
        def fake(calls: Mapping[str, Callable[[], object]], effort: object) -> Times:
            for call in calls.values():
                call()
            order = {"as before": 50.0} | {name: float(place) for place, name in enumerate(names, 1)}
            return Times({name: [1e-3 * order.get(name, 100.0)] for name in calls})

        monkeypatch.setattr(decide_module, "times_of", fake)
        monkeypatch.setattr(convert_module, "times_of", fake)

    return choose
