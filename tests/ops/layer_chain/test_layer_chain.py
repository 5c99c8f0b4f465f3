# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Chains of layers: against the layers one by one, in random graphs, layouts, batches and threads."""

from __future__ import annotations

import gc
import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sparsekernels.formats import Unstructured
from sparsekernels.ops.convolution import geometry_of
from sparsekernels.ops.layer_chain import reference
from sparsekernels.ops.layer_chain.implementations import LayerChain
from sparsekernels.ops.layer_chain.op import is_compiled
from sparsekernels.testing import compare

pytestmark = pytest.mark.skipif(not is_compiled(torch.empty(0)), reason="the compiled library is not there")


class _Layers:
    """Layers as plain torch computes them, and the same as a chain."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype
        self.steps: list[tuple] = []

    def conv(
        self, source, weight, bias=None, stride=1, padding=0, dilation=1, groups=1, residual=None, limits=(None, None)
    ):
        self.steps.append(
            (
                "conv",
                source,
                weight.to(self.dtype),
                None if bias is None else bias.to(self.dtype),
                stride,
                padding,
                dilation,
                groups,
                residual,
                limits,
            )
        )
        return len(self.steps)

    def pool(self, source, window):
        self.steps.append(("pool", source, window))
        return len(self.steps)

    def reference(self, input: Tensor, dtype: torch.dtype) -> Tensor:
        tensors = [input.to(dtype)]
        for step in self.steps:
            source = tensors[step[1]]
            if step[0] == "pool":
                kh, kw, sh, sw, ph, pw = step[2]
                tensors.append(F.max_pool2d(source, (kh, kw), (sh, sw), (ph, pw)))
                continue
            _, _, weight, bias, stride, padding, dilation, groups, residual, (low, high) = step
            result = F.conv2d(
                source, weight.to(dtype), None if bias is None else bias.to(dtype), stride, padding, dilation, groups
            )
            if residual is not None:
                result = result + tensors[residual]
            if low is not None or high is not None:
                result = result.clamp(low, high)
            tensors.append(result)
        return tensors[-1]

    def chain(self) -> LayerChain:
        chain = LayerChain(torch.empty(0, dtype=self.dtype))
        for number, step in enumerate(self.steps, 1):
            if step[0] == "pool":
                assert chain.add_max_pool2d(step[1], step[2]) == number
                continue
            _, source, weight, bias, stride, padding, dilation, groups, residual, (low, high) = step
            pattern = Unstructured.from_dense(weight, weight != 0)
            geometry = geometry_of(pattern.shape, stride, padding, dilation, groups)
            indices = pattern.crow_indices, pattern.col_indices
            made = chain.add_sparse_conv2d(
                source, pattern.values, bias, *indices, geometry, weight.size(1) * groups, residual, low, high
            )
            assert made == number
        return chain

    def check(self, input: Tensor, chain: LayerChain | None = None) -> Tensor:
        actual = (chain or self.chain())(input)
        truth = self.reference(input, torch.float64)
        verdict = compare("chain", actual, truth, self.reference(input, self.dtype))
        assert verdict.passed, verdict
        return actual


def _weight(generator: torch.Generator, out: int, inputs: int, kernel: tuple[int, int], density: float) -> Tensor:
    weight = torch.randn(out, inputs, *kernel, generator=generator)
    return (
        weight
        * (torch.rand(weight.shape, generator=generator) < density)
        / (inputs * kernel[0] * kernel[1] * density) ** 0.5
    )


def _random_layers(random_: random.Random, generator: torch.Generator, dtype: torch.dtype) -> tuple[_Layers, Tensor]:
    """A random graph: layers that follow each other, branches that meet in a sum, pooling."""
    layers = _Layers(dtype)
    channels = random_.choice((1, 3, 8, 17, 64))
    size = (random_.randint(5, 40), random_.randint(5, 40))
    input = torch.randn(random_.randint(1, 18), channels, *size, generator=generator)
    shapes = [(channels, *size)]
    for _ in range(random_.randint(1, 8)):
        source = random_.choice((len(shapes) - 1,) * 4 + tuple(range(len(shapes))))
        channels, height, width = shapes[source]
        if random_.random() < 0.15 and min(height, width) > 3:
            window = random_.choice(((2, 2, 2, 2, 0, 0), (3, 3, 2, 2, 1, 1), (3, 2, 1, 2, 0, 1)))
            layers.pool(source, window)
            kh, kw, sh, sw, ph, pw = window
            shapes.append((channels, (height + 2 * ph - kh) // sh + 1, (width + 2 * pw - kw) // sw + 1))
            continue
        kernel = random_.choice(((1, 1), (1, 1), (3, 3), (3, 3), (5, 3), (7, 7)))
        stride = random_.choice((1, 1, 1, 2, (2, 1)))
        dilation = random_.choice((1, 1, 1, 2))
        padding = random_.choice((0, tuple(k // 2 * dilation for k in kernel), tuple(k // 2 for k in kernel)))
        strides, paddings = (value if isinstance(value, tuple) else (value, value) for value in (stride, padding))
        shape = [
            (extent + 2 * p - dilation * (k - 1) - 1) // s + 1
            for extent, p, k, s in zip((height, width), paddings, kernel, strides, strict=True)
        ]
        if min(shape) < 1:
            continue
        groups = random_.choice((1, 1, 1, 1, channels if channels < 20 else 2 - channels % 2))
        out = random_.choice((1, 4, 16, 33, 64, 100))
        same = [i for i, other in enumerate(shapes) if list(other[1:]) == shape]
        residual = random_.choice(same) if same and random_.random() < 0.5 else None
        out = out if residual is None else shapes[residual][0]
        if out % groups:
            groups = 1
        weight = _weight(generator, out, channels // groups, kernel, random_.choice((0.02, 0.1, 0.3)))
        bias = torch.randn(out, generator=generator) if random_.random() < 0.7 else None
        limits = random_.choice(((None, None), (0.0, None), (0.0, 6.0), (None, 0.5)))
        layers.conv(source, weight, bias, stride, padding, dilation, groups, residual, limits)
        shapes.append((out, *shape))
    if not layers.steps:
        layers.conv(0, _weight(generator, 8, shapes[0][0], (1, 1), 0.3))
    return layers, input


@pytest.mark.parametrize("seed", range(80))
def test_random_graphs(seed: int) -> None:
    layers, input = _random_layers(random.Random(seed), torch.Generator().manual_seed(seed), torch.float32)
    chain = layers.chain()
    # what an earlier call left in memory must not show
    chain(torch.full_like(input, float("nan")))
    expected = layers.check(input, chain)
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            assert torch.equal(chain(input), expected), f"other bits with {count} threads"
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("seed", range(4))
def test_half_precision(dtype: torch.dtype, seed: int) -> None:
    layers = _Layers(dtype)
    generator = torch.Generator().manual_seed(seed)
    first = layers.conv(0, _weight(generator, 32, 16, (3, 3), 0.1), padding=1, limits=(0.0, None))
    layers.conv(first, _weight(generator, 32, 32, (1, 1), 0.2), residual=first)
    input = torch.randn(5, 16, 20, 18, generator=generator).to(dtype)
    result = layers.chain()(input)
    assert result.dtype == dtype
    # each layer rounds its result to the dtype, as torch's do
    truth, baseline = layers.reference(input, torch.float64), layers.reference(input, dtype)
    verdict = compare("chain", result, truth, baseline)
    assert verdict.passed, verdict


def _residual_block(generator: torch.Generator, layers: _Layers, source: int, width: int, out: int, stride: int) -> int:
    """A bottleneck, as of ResNet-50, on a tensor of `out` channels, or of half as many with a stride."""
    inputs = out if stride == 1 else out // 2
    one = layers.conv(source, _weight(generator, width, inputs, (1, 1), 0.1), torch.randn(width), limits=(0.0, None))
    two = layers.conv(
        one, _weight(generator, width, width, (3, 3), 0.1), torch.randn(width), stride, 1, limits=(0.0, None)
    )
    shortcut = source
    if stride != 1:
        shortcut = layers.conv(source, _weight(generator, out, inputs, (1, 1), 0.1), torch.randn(out), stride)
    return layers.conv(
        two, _weight(generator, out, width, (1, 1), 0.1), torch.randn(out), residual=shortcut, limits=(0.0, None)
    )


@pytest.mark.parametrize("batch", [1, 3, 8, 16])
@pytest.mark.parametrize("size", [(56, 56), (28, 28), (14, 14), (7, 7), (15, 9)])
def test_residual_networks(batch: int, size: tuple[int, int]) -> None:
    """Sums whose residual lies in another layout than they do, strides that gather, sums in place of a residual."""
    generator = torch.Generator().manual_seed(batch)
    layers = _Layers()
    at = layers.pool(0, (3, 3, 2, 2, 1, 1))
    for width, out, stride in ((16, 64, 1), (16, 64, 1), (32, 128, 2), (32, 128, 1), (64, 256, 2), (64, 256, 1)):
        at = _residual_block(generator, layers, at, width, out, stride)
    layers.check(torch.randn(batch, 64, 2 * size[0], 2 * size[1], generator=generator))


@pytest.mark.parametrize("batch", [16, 50, 64, 70])
@pytest.mark.parametrize("window", [(2, 2, 2, 2, 0, 0), (3, 3, 2, 2, 1, 1)])
@pytest.mark.parametrize("size", [(8, 8), (9, 10)])
def test_small_images(batch: int, window: tuple[int, ...], size: tuple[int, int]) -> None:
    """Sixteen images are interleaved, and stay so from layer to layer, through pooling and at borders."""
    generator = torch.Generator().manual_seed(batch)
    layers = _Layers()
    at, channels = 0, 64
    for out in (96, 128, 128):
        for _ in range(2):
            bias = torch.randn(out, generator=generator)
            at = layers.conv(at, _weight(generator, out, channels, (3, 3), 0.1), bias, padding=1, limits=(0.0, None))
            channels = out
        at = layers.pool(at, window)
    at = layers.conv(at, _weight(generator, 40, channels, (1, 1), 0.1))
    layers.conv(at, _weight(generator, 40, 40, (1, 1), 0.2), residual=at)
    input = torch.randn(batch, 64, *size, generator=generator)
    chain = layers.chain()
    chain(torch.full_like(input, float("nan")))
    expected = layers.check(input, chain)
    threads = torch.get_num_threads()
    try:
        for count in (1, 3, 5):
            torch.set_num_threads(count)
            assert torch.equal(chain(input), expected), f"other bits with {count} threads"
    finally:
        torch.set_num_threads(threads)


def test_a_residual_in_lines_and_a_sum_in_strips() -> None:
    """Strips of 22 rows of 44 columns do not begin at whole lines, as those of a ResNet-18 on large images."""
    generator = torch.Generator().manual_seed(0)
    for size in (88, 150):
        layers = _Layers()
        one = layers.conv(0, _weight(generator, 128, 64, (3, 3), 0.1), None, 2, 1, limits=(0.0, None))
        shortcut = layers.conv(0, _weight(generator, 128, 64, (1, 1), 0.1), None, 2)
        layers.conv(one, _weight(generator, 128, 128, (3, 3), 0.1), None, 1, 1, residual=shortcut)
        layers.check(torch.randn(1, 64, size, size, generator=generator))
        # a residual that lies in lines because a 1x1 layer reads it
        layers = _Layers()
        one = layers.conv(0, _weight(generator, 128, 64, (1, 1), 0.1))
        two = layers.conv(one, _weight(generator, 64, 128, (1, 1), 0.1))
        layers.conv(two, _weight(generator, 128, 64, (3, 3), 0.1), None, 1, 1, residual=one)
        layers.check(torch.randn(2, 64, size // 2, size // 2, generator=generator))


@pytest.mark.parametrize("batch", [1, 4, 32])
def test_single_rows_and_odd_strips(batch: int) -> None:
    generator = torch.Generator().manual_seed(batch)
    for dilation, width in ((16, 40), (2, 41), (1, 37)):
        layers = _Layers()
        one = layers.conv(0, _weight(generator, 16, 16, (1, 1), 0.3))
        layers.conv(one, _weight(generator, 16, 16, (1, 3), 0.3), None, 1, (0, dilation), (1, dilation))
        layers.check(torch.randn(batch, 16, 1, width, generator=generator))
    if batch > 4:
        return
    layers = _Layers()  # strips of a row that is no multiple of lines
    one = layers.conv(0, _weight(generator, 512, 512, (1, 1), 0.05))
    layers.conv(one, _weight(generator, 32, 512, (1, 1), 0.05), None, 1, (1, 0))
    layers.check(torch.randn(batch, 512, 10, 300, generator=generator))
    layers = _Layers()  # strips of columns
    one = layers.conv(0, _weight(generator, 64, 1024, (1, 1), 0.05), None, 2)
    layers.conv(one, _weight(generator, 64, 64, (1, 1), 0.1))
    layers.check(torch.randn(batch, 1024, 8, 600, generator=generator))


def test_other_sizes_and_batches() -> None:
    generator = torch.Generator().manual_seed(0)
    layers = _Layers()
    first = layers.conv(0, _weight(generator, 32, 8, (3, 3), 0.2), padding=1, limits=(0.0, None))
    layers.conv(first, _weight(generator, 16, 32, (1, 1), 0.2))
    chain = layers.chain()
    for batch, height, width in ((4, 9, 9), (1, 30, 17), (33, 9, 9), (0, 9, 9), (4, 9, 9), (2, 64, 64), (5, 3, 3)):
        input = torch.randn(batch, 8, height, width, generator=generator)
        layers.check(input, chain)
        layers.check(input.to(memory_format=torch.channels_last), chain)


def test_a_layer_without_nonzeros_and_a_full_one() -> None:
    layers = _Layers()
    first = layers.conv(0, torch.zeros(40, 8, 3, 3), torch.randn(40), padding=1, limits=(0.0, None))
    second = layers.conv(first, torch.randn(40, 40, 1, 1) / 6, residual=first)
    layers.conv(second, torch.zeros(4, 40, 1, 1))
    layers.check(torch.randn(3, 8, 12, 12))


def test_it_keeps_what_its_layers_point_to() -> None:
    layers = _Layers()
    layers.conv(0, torch.randn(16, 8, 3, 3))
    chain = layers.chain()
    gc.collect()
    layers.check(torch.randn(2, 8, 10, 10), chain)


def test_numbers_that_are_none() -> None:
    operators = torch.ops.sparsekernels
    with pytest.raises(ValueError, match="layer_chain: expected chain to be the number .*, got "):
        operators._run_layer_chain(torch.zeros(1, 1, 1, 1), 1 << 40)
    layers = _Layers()
    layers.conv(0, torch.randn(4, 4, 1, 1))
    chain = layers.chain()
    number = chain._number
    del chain
    gc.collect()
    with pytest.raises(ValueError, match="layer_chain: expected chain to be the number .*, got "):
        operators._run_layer_chain(torch.zeros(1, 4, 1, 1), number)
    operators._free_layer_chain(number)  # once more: harmless


def test_what_does_not_fit_is_an_error() -> None:
    pattern = Unstructured.of_mask(torch.ones(4, 8, 3, 3, dtype=torch.bool), torch.float32)
    indices = pattern.crow_indices, pattern.col_indices
    geometry = geometry_of(pattern.shape, 1, 0, 1, 1)
    chain = LayerChain(torch.empty(0))
    with pytest.raises(ValueError, match="layer_chain: expected a chain with layers, got none"):
        chain(torch.zeros(1, 8, 5, 5))
    for source, residual in ((1, None), (-1, None), (0, 1), (0, -2)):
        with pytest.raises(
            ValueError, match=f"layer_chain: expected source and residual below 1, got {source} and {residual or 0}"
        ):
            chain.add_sparse_conv2d(source, pattern.values, None, *indices, geometry, 8, residual)
    with pytest.raises(ValueError, match=r"layer_chain: expected values of .*, got float32 \[287\]"):
        chain.add_sparse_conv2d(0, pattern.values[1:], None, *indices, geometry, 8)
    with pytest.raises(ValueError, match=r"layer_chain: expected values of .*, got float16 \[288\]"):
        chain.add_sparse_conv2d(0, pattern.values.half(), None, *indices, geometry, 8)
    with pytest.raises(ValueError, match=r"layer_chain: expected bias of .*, got float32 \[5\]"):
        chain.add_sparse_conv2d(0, pattern.values, torch.zeros(5), *indices, geometry, 8)
    with pytest.raises(ValueError, match="expected crow_indices that ascend from 0 to 288, .*, got 288 to 0"):
        chain.add_sparse_conv2d(0, pattern.values, None, indices[0].flip(0), indices[1], geometry, 8)
    none = torch.zeros(1, dtype=torch.int32), torch.zeros(0, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"expected crow_indices of at least 1 output channel, got int32 \[1\]"):
        chain.add_sparse_conv2d(0, torch.zeros(0), None, *none, geometry, 8)
    with pytest.raises(ValueError, match="expected low of at most high, got 1"):
        chain.add_sparse_conv2d(0, pattern.values, None, *indices, geometry, 8, None, 1.0, 0.0)
    with pytest.raises(ValueError, match=r"expected window of .*, got \[2, 2, 0, 1, 0, 0\]"):
        chain.add_max_pool2d(0, (2, 2, 0, 1, 0, 0))
    chain.add_sparse_conv2d(0, pattern.values, None, *indices, geometry, 8)
    for input, words in (
        (torch.zeros(1, 7, 5, 5), "expected input of 8 channels in layer 0, got 7"),
        (torch.zeros(1, 8, 2, 5), "expected input that layer 0 fits into, got 2x5"),
        (torch.zeros(1, 8, 0, 5), "expected input that layer 0 fits into, got 0x5"),
        (torch.zeros(8, 5, 5), r"expected input of 4 dimensions, got float32 \[8, 5, 5\]"),
        (
            torch.zeros(1, 8, 5, 5, dtype=torch.float64),
            r"expected input of the dtype of the chain, got float64 \[1, 8, 5, 5\]",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            chain(input)
    assert chain(torch.zeros(1, 8, 5, 5)).shape == (1, 4, 3, 3)
    chain.add_sparse_conv2d(0, pattern.values, None, *indices, geometry_of(pattern.shape, 1, 1, 1, 1), 8, 1)
    with pytest.raises(ValueError, match="expected residual of the size 4x5x5 .*, got 4x3x3"):
        chain(torch.zeros(1, 8, 5, 5))


def test_columns_out_of_range_are_an_error() -> None:
    pattern = Unstructured.of_mask(torch.ones(4, 8, 3, 3, dtype=torch.bool), torch.float32)
    wrong = pattern.col_indices.clone()
    wrong[-1] = 8 * 9
    geometry = geometry_of(pattern.shape, 1, 0, 1, 1)
    chain = LayerChain(torch.empty(0))
    with pytest.raises(ValueError, match="col_indices"):
        chain.add_sparse_conv2d(0, pattern.values, None, pattern.crow_indices, wrong, geometry, 8)
    chain.add_sparse_conv2d(0, pattern.values, None, pattern.crow_indices, pattern.col_indices, geometry, 8)
    with torch.no_grad():
        pattern.col_indices[-1] = 8 * 9  # afterwards
    with pytest.raises((ValueError, RuntimeError)):
        chain(torch.zeros(1, 8, 5, 5))


@pytest.mark.parametrize("kind", [LayerChain, reference.LayerChain])
def test_both_implementations_refuse_the_same(kind: type) -> None:
    pattern = Unstructured.of_mask(torch.ones(4, 8, 3, 3, dtype=torch.bool), torch.float32)
    common = None, pattern.crow_indices, pattern.col_indices, geometry_of(pattern.shape, 1, 0, 1, 1), 8
    chain = kind(torch.empty(0))
    for limits in ((1.0, 0.0), (float("nan"), 0.0), (0.0, float("nan"))):
        with pytest.raises(ValueError, match="expected low of at most high"):
            chain.add_sparse_conv2d(0, pattern.values, *common, None, *limits)
    for residual in (-1, -2, 1):
        with pytest.raises(ValueError, match="layer_chain: expected"):
            chain.add_sparse_conv2d(0, pattern.values, *common, residual)
    with pytest.raises(ValueError, match="layer_chain: expected values of"):
        chain.add_sparse_conv2d(0, pattern.values.half(), *common)
    chain.add_sparse_conv2d(0, pattern.values, *common)
    with pytest.raises(ValueError, match="expected input"):
        chain(torch.zeros(1, 8, 2, 5))
