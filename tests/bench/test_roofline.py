# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""How much could be reached. The caps that the design gives for an H100 are those of a copy at 3.0 TB/s, as RMSNorms
are published to reach, and of dense products in bfloat16 at 650 TFLOP/s in convolutions and 700 in cuBLAS.
"""

from __future__ import annotations

import pytest

from sparsekernels.bench import layers, roofline
from sparsekernels.bench.layer import Inputs, Layer


@pytest.mark.parametrize(("channels", "size", "cap"), [(64, 56, 1.3), (128, 28, 2.7), (256, 14, 5.3), (512, 28, 10.6)])
def test_convolutions_on_an_h100(channels: int, size: int, cap: float) -> None:
    layer = Layer((channels, channels, 3, 3), 64, size=size, padding=1)
    seconds = layer.gflop(channels * channels * 9, "forward") * 1e9 / 650e12
    found = roofline.traffic_cap(seconds, roofline.activation_bytes(layer, "forward", 2), 3.0e12)
    assert round(found, 1) == cap
    assert roofline.reachable(0.05, found) == min(20.0, found)
    assert roofline.reachable(0.5, found) == min(2.0, found)


def test_a_linear_layer_on_an_h100() -> None:
    layer = Layer((4096, 4096), 4096)
    seconds = layer.gflop(4096**2, "forward") * 1e9 / 700e12
    found = roofline.traffic_cap(seconds, roofline.activation_bytes(layer, "forward", 2), 3.0e12)
    assert found == pytest.approx(8.8, abs=0.05)


def test_gradients_move_as_much_as_a_forward() -> None:
    layer = Layer((8, 4, 3, 3), 2, size=6)
    once = 2 * (4 * 36 + 8 * 16) * 4
    assert [roofline.activation_bytes(layer, pass_, 4) for pass_ in layers.RESULTS] == [once, once, once, 3 * once]
    assert Inputs(layer).activation_bytes == once
