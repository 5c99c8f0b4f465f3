# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""How much faster than the dense layer a sparse one could be: the one definition that all suites have.

    reachable = min(1 / density, cap)
    cap       = time of the dense layer / time to move its activations
    fraction  = speedup / reachable

The activations of a pass are what it reads and writes apart from the weight and the gradient to that, each once. The
time to move them is that of the variant "copy", which does so and computes nothing, in the mode (eager, or in a CUDA
graph) of the variant that is judged; where there is no such measurement, their bytes over the rate of a large copy, in
which bytes that are read and bytes that are written both count.

In `worker.py` both are medians over the rounds of the ratio in a round, since the variants are interleaved:
speedup / min(1 / density, dense / copy) = max(speedup * density, copy / variant).
"""

from __future__ import annotations

from .layer import RESULTS, Layer


def activation_bytes(layer: Layer, pass_: str, itemsize: int) -> int:
    """What the pass moves of activations, of `itemsize` bytes each: for every result an input and an output.

    Those are x and y for the output, dy and dx for the gradient to the input, dy and x for that to the weight.
    """
    return len(RESULTS[pass_]) * layer.activations * itemsize


def traffic_cap(dense_seconds: float, activation_bytes: int, bytes_per_second: float) -> float:
    """The speedup over the dense layer that no number of zeros exceeds."""
    return dense_seconds * bytes_per_second / activation_bytes


def reachable(density: float, cap: float) -> float:
    """The speedup over the dense layer that a weight of this density could have."""
    return cap if density == 0 else min(1 / density, cap)
