# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Single elements on a GPU, multiplied in a way that is given, whatever a call would choose by itself.

triton     decoded by the Triton kernel
cuda       decoded by the CUDA kernel, on up to 16 rows
expanded   made dense first, then torch's product

So that "each is taken where it is the fastest" can be seen: of the records that the suite `few-rows` leaves of these,
benchmarks/decode_routes.py makes the limits in ops/sparse_conv2d/expanded_routes.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

from .. import dispatch
from ..ops.sparse_conv2d.bitmap import has_compiled_linear
from ..ops.sparse_conv2d.expanded_routes import MOST_BY_NONZEROS
from .suite import Unavailable

ROUTES = ("triton", "cuda", "expanded")
MOST_ROWS_OF_CUDA = max(MOST_BY_NONZEROS)

Decides = Callable[..., bool]


def check(route: str, input: Tensor) -> None:
    """Raises `Unavailable` where the kernel of a route is not there for so many rows, ValueError where it is none."""
    if route not in ROUTES:
        raise ValueError(f"expected route to be {', '.join(map(repr, ROUTES))}, got {route!r}")
    if route == "cuda" and not has_compiled_linear(input):
        raise Unavailable("the library has no CUDA kernels here")
    if route == "cuda" and input.size(0) > MOST_ROWS_OF_CUDA:
        raise Unavailable(f"the CUDA kernel takes up to {MOST_ROWS_OF_CUDA} rows, and these are {input.size(0)}")


@contextlib.contextmanager
def taking(route: str) -> Iterator[None]:
    """Inside, products with single elements on a GPU take that route."""
    from ..ops.sparse_conv2d import expanded  # needs Triton

    decided: Mapping[str, bool] = {"is_decoded": route != "expanded", "goes_by_nonzeros": route == "cuda"}
    module: Any = expanded
    before: dict[str, Decides] = {name: getattr(module, name) for name in decided}
    backend = contextlib.nullcontext() if route == "cuda" else dispatch.use_backend("triton")
    try:
        for name, answer in decided.items():
            setattr(module, name, _always(answer))
        with backend:
            yield
    finally:
        for name, function in before.items():
            setattr(module, name, function)


def _always(answer: bool) -> Decides:
    return lambda *_: answer
