# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Results lie in memory as those of torch's own convolution, whatever the strides of the input: with gaps, of
dimensions of one element, broadcast."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from sparsekernels import _library, use_backend
from sparsekernels.nn import ChannelDroppedConv2d, SparseConv2d
from sparsekernels.ops.sparse_conv2d.reference import is_channels_last

pytestmark = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")

Sizes = tuple[int, int, int, int]
SIZES: list[Sizes] = list(itertools.product((1, 2), (1, 3), (1, 4), (1, 4)))  # type: ignore[arg-type]


def strides_of(sizes: Sizes) -> Iterator[Sizes]:
    """Those of both layouts, and such as are like them up to gaps and dimensions of one element."""
    _, channels, height, width = sizes
    image = channels * height * width
    of_images = {0, 1, image, 2 * image, 100}
    of_channels = {0, 1, 2, height * width}
    of_rows = {0, 1, width, width * channels, 2 * width * channels}
    of_pixels = {0, 1, channels, 2 * channels}
    yield from itertools.product(of_images, of_channels, of_rows, of_pixels)  # type: ignore[misc]


def input_of(sizes: Sizes, strides: Sizes) -> Tensor:
    return torch.ones(1000).as_strided(sizes, strides)


def layers_of(channels: int) -> tuple[nn.Conv2d, list[nn.Module]]:
    """A convolution, and what is converted from it."""
    conv = nn.Conv2d(channels, 5, 1, bias=False)
    with torch.no_grad():
        conv.weight[:2] = 0
    return conv, [SparseConv2d.from_dense(conv), ChannelDroppedConv2d.from_dense(conv)]


@pytest.mark.parametrize("sizes", SIZES)
def test_results(sizes: Sizes) -> None:
    """Of a batch, and of an image alone."""
    conv, layers = layers_of(sizes[1])
    with torch.inference_mode():
        for strides in strides_of(sizes):
            for x in (input_of(sizes, strides), input_of(sizes, strides)[0]):
                expected = conv(x).stride()
                assert [layer(x).stride() for layer in layers] == [expected] * 2, (strides, x.dim())


@pytest.mark.parametrize("sizes", SIZES[::3])
def test_gradients(sizes: Sizes) -> None:
    conv, layers = layers_of(sizes[1])
    for strides in strides_of(sizes):
        found = []
        for layer in (conv, *layers):
            x = input_of(sizes, strides).requires_grad_()
            result = layer(x)
            (gradient,) = torch.autograd.grad(result, x, torch.ones_like(result))
            found.append((result.stride(), gradient.stride()))
        assert len(set(found)) == 1, (strides, found)


@pytest.mark.parametrize("sizes", SIZES[::3])
def test_the_reference(sizes: Sizes) -> None:
    conv, (layer, _) = layers_of(sizes[1])
    with torch.inference_mode(), use_backend("reference"):
        for strides in itertools.islice(strides_of(sizes), 0, None, 7):
            x = input_of(sizes, strides)
            assert layer(x).stride() == conv(x).stride(), strides


def test_the_table_has_both_layouts() -> None:
    layouts = {is_channels_last(input_of(sizes, strides)) for sizes in SIZES for strides in strides_of(sizes)}
    assert layouts == {False, True}


def test_taps_of_a_column() -> None:
    """Where a weight has one column, torch may give that any stride."""
    pytest.importorskip("triton")
    from sparsekernels.ops.sparse_conv2d.expanded_products import tap_stride

    weight = torch.randn(4, 2, 3, 1)
    odd = torch.as_strided(weight, weight.shape, (6, 3, 1, 77))
    assert torch.equal(odd, weight)
    for one in (weight, odd, weight.to(memory_format=torch.channels_last), torch.randn(4, 2, 1, 3)):
        taps = one[0, 0].flatten()
        at = [one.storage_offset() + tap * tap_stride(one) for tap in range(3)]
        assert torch.equal(taps, torch.stack([one.as_strided((), (), place) for place in at]))
