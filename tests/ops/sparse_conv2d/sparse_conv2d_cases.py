# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The cases that every implementation of sparse convolution and linear is held to, as data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import sparsekernels as sk
from sparsekernels import Unstructured
from sparsekernels.ops.convolution import LINEAR, Geometry, geometry_of
from sparsekernels.ops.sparse_conv2d import reference
from sparsekernels.ops.sparse_conv2d.implementations import SPARSE_CONV2D

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
Mask = Callable[[tuple[int, ...], torch.Generator], Tensor]


def random(density: float) -> Mask:
    return lambda shape, generator: torch.rand(shape, generator=generator) < density


def tenth(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return random(0.1)(shape, generator)


def full(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.ones(shape, dtype=torch.bool)


def empty(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.zeros(shape, dtype=torch.bool)


def ragged(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Every third row empty, every third full, the first among the empty ones."""
    mask = random(0.3)(shape, generator)
    mask[::3], mask[1::3] = False, True
    return mask


def clustered(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Whole input channels empty, the last among them, and the others full."""
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[:, : shape[1] // 2 : 2] = True
    return mask


def last_only(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    mask = torch.zeros(torch.Size(shape).numel(), dtype=torch.bool)
    mask[-1] = True
    return mask.view(shape)


def as_it_is(x: Tensor) -> Tensor:
    return x


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def offset(x: Tensor) -> Tensor:
    """Starts one element into its storage, so that nothing is aligned."""
    return torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)


@dataclass(frozen=True)
class Case:
    """shape: of what `view` makes the input. weight: the shape of the dense weight."""

    name: str
    shape: tuple[int, ...]
    weight: tuple[int, ...]
    stride: int | Sequence[int] = 1
    padding: int | Sequence[int] | str = 0
    dilation: int | Sequence[int] = 1
    groups: int = 1
    mask: Mask = tenth
    bias: bool = True
    view: Callable[[Tensor], Tensor] = as_it_is

    @property
    def is_linear(self) -> bool:
        return len(self.weight) == 2

    def images(self, x: Tensor) -> Tensor:
        """The input as the kernels take it, [N, C, H, W]."""
        if self.is_linear:
            return x.reshape(-1, self.weight[1], 1, 1)
        x = x if x.dim() == len(self.weight) else x[None]
        return x if x.dim() == 4 else x.contiguous().unsqueeze(2)

    def result(self, y: Tensor, x: Tensor) -> Tensor:
        """What the kernels give, of an input `x`, as the operation gives it."""
        if self.is_linear:
            return y.view(*x.shape[:-1], self.weight[0])
        y = y if len(self.weight) == 4 else y.squeeze(2)
        return y if x.dim() == len(self.weight) else y[0]

    @property
    def geometry(self) -> Geometry:
        if self.is_linear:
            return LINEAR
        return geometry_of(self.weight, self.stride, self.padding, self.dilation, self.groups)


CONVOLUTIONS = (
    Case("one pixel", (1, 1, 1, 1), (1, 1, 1, 1), mask=full),
    Case("one image", (1, 16, 14, 14), (17, 16, 3, 3), padding=1),
    Case("batch 5", (5, 16, 7, 7), (33, 16, 3, 3), padding=1),
    Case("batch 16", (16, 17, 7, 7), (16, 17, 3, 3), padding=1),
    Case("batch 17", (17, 16, 5, 4), (16, 16, 3, 3), padding=1),
    Case("batch 33", (33, 3, 6, 6), (17, 3, 3, 3), padding=1),
    Case("batch 64", (64, 16, 8, 8), (33, 16, 3, 3), padding=1),
    Case("batch 64, wide", (64, 4, 5, 33), (6, 4, 3, 3), padding=1),
    Case("batch 80", (80, 5, 4, 4), (7, 5, 3, 3), padding=1),
    Case("no images", (0, 5, 7, 7), (6, 5, 3, 3), padding=1),
    Case("2x2", (16, 33, 2, 2), (17, 33, 3, 3), padding=1),
    Case("33x33", (1, 3, 33, 33), (16, 3, 3, 3), padding=1),
    Case("32x17", (2, 16, 32, 17), (16, 16, 3, 3), padding=1),
    Case("1x33", (3, 4, 1, 33), (5, 4, 1, 3)),
    Case("33x1", (3, 4, 33, 1), (5, 4, 3, 1)),
    Case("many channels", (2, 130, 7, 7), (65, 130, 3, 3), padding=1),
    Case("many outputs", (2, 3, 7, 7), (130, 3, 3, 3), padding=1),
    Case("1x1", (4, 65, 7, 7), (130, 65, 1, 1)),
    Case("1x1, batch 16", (16, 33, 7, 7), (17, 33, 1, 1)),
    Case("1x1, stride 2", (3, 17, 7, 8), (16, 17, 1, 1), stride=2),
    Case("1x1, padding", (2, 5, 4, 4), (6, 5, 1, 1), padding=2),
    Case("5x5", (2, 6, 9, 9), (7, 6, 5, 5), padding=2),
    Case("2x2 kernel", (2, 6, 9, 9), (7, 6, 2, 2), padding=1),
    Case("1x3", (3, 6, 5, 9), (7, 6, 1, 3), padding=(0, 1)),
    Case("7x7, stride 2", (2, 3, 33, 33), (16, 3, 7, 7), stride=2, padding=3),
    Case("7x7, stride 2, batch 16", (16, 3, 17, 17), (5, 3, 7, 7), stride=2, padding=3),
    Case("11x11, stride 4", (1, 3, 33, 33), (6, 3, 11, 11), stride=4, padding=2),
    Case("no padding", (3, 6, 9, 9), (7, 6, 3, 3)),
    Case("stride 2", (3, 6, 9, 10), (7, 6, 3, 3), stride=2, padding=1),
    Case("stride 2, batch 17", (17, 6, 9, 10), (7, 6, 3, 3), stride=2, padding=1),
    Case("stride 3", (3, 6, 10, 11), (7, 6, 3, 3), stride=3, padding=1),
    Case("stride (1, 2)", (3, 6, 9, 9), (7, 6, 3, 3), stride=(1, 2), padding=1),
    Case("stride larger than the kernel", (2, 4, 11, 11), (5, 4, 2, 2), stride=3),
    Case("dilation 2", (3, 6, 9, 9), (7, 6, 3, 3), dilation=2, padding=2),
    Case("dilation 2, stride 2", (16, 6, 9, 9), (7, 6, 3, 3), dilation=2, stride=2, padding=1),
    Case("dilation (1, 3)", (2, 6, 9, 9), (7, 6, 3, 3), dilation=(1, 3), padding=(1, 3)),
    Case("dilation 5", (2, 6, 9, 9), (7, 6, 3, 3), dilation=5, padding=5),
    Case("stride 4", (3, 6, 13, 12), (7, 6, 3, 3), stride=4, padding=1),
    Case("batch 40, 8x8", (40, 16, 8, 8), (40, 16, 3, 3), padding=1),
    Case("batch 33, 4x4", (33, 33, 4, 4), (70, 33, 3, 3), padding=1),
    Case("14x14", (3, 40, 14, 14), (63, 40, 3, 3), padding=1),
    Case("strips of rows", (1, 24, 120, 100), (5, 24, 3, 3), padding=1),
    Case("strips of many images", (16, 200, 8, 8), (5, 200, 3, 3), padding=1, mask=random(0.03)),
    Case("strips of columns", (1, 16, 140, 150), (5, 16, 1, 1), mask=random(0.3)),
    Case("more shifts than masks", (2, 3, 12, 13), (5, 3, 11, 11), padding=5),
    Case("more shifts than masks, batch 17", (17, 3, 6, 5), (5, 3, 9, 9), padding=4),
    Case("stride 2, channels last", (17, 34, 9, 9), (130, 34, 3, 3), stride=2, padding=1, view=channels_last),
    Case("stride 2, 16x16", (5, 18, 32, 32), (33, 18, 3, 3), stride=2, padding=1),
    Case("1x1, many outputs, channels last", (6, 70, 5, 5), (150, 70, 1, 1), view=channels_last),
    Case("lists", (3, 6, 9, 9), (7, 6, 3, 3), stride=[2, 1], padding=[1, 2], dilation=[1, 2]),
    Case("padding larger than the kernel", (2, 4, 3, 3), (5, 4, 3, 3), padding=4),
    Case("the kernel covers the image", (2, 4, 5, 5), (5, 4, 5, 5)),
    Case("same", (2, 6, 7, 7), (7, 6, 3, 3), padding="same"),
    Case("same, even kernel", (2, 6, 7, 7), (7, 6, 2, 4), padding="same"),
    Case("same, dilated", (16, 6, 7, 7), (7, 6, 2, 2), padding="same", dilation=3),
    Case("valid", (2, 6, 7, 7), (7, 6, 3, 3), padding="valid"),
    Case("2 groups", (3, 8, 7, 7), (6, 4, 3, 3), padding=1, groups=2, mask=random(0.3)),
    Case("4 groups, batch 16", (16, 8, 7, 7), (12, 2, 3, 3), padding=1, groups=4, stride=2, mask=random(0.3)),
    Case("depthwise", (3, 17, 7, 7), (17, 1, 3, 3), padding=1, groups=17, mask=random(0.5)),
    Case("depthwise, two each", (2, 5, 7, 7), (10, 1, 3, 3), padding=1, groups=5, mask=random(0.5)),
    Case("depthwise, channels last", (3, 17, 7, 7), (17, 1, 3, 3), 1, 1, 1, 17, random(0.5), view=channels_last),
    Case("half dense", (4, 16, 7, 7), (16, 16, 3, 3), padding=1, mask=random(0.5)),
    Case("2 percent", (4, 33, 7, 7), (33, 33, 3, 3), padding=1, mask=random(0.02)),
    Case("full", (4, 6, 7, 7), (7, 6, 3, 3), padding=1, mask=full),
    Case("empty", (4, 6, 7, 7), (7, 6, 3, 3), padding=1, mask=empty),
    Case("empty, no bias", (16, 6, 4, 4), (7, 6, 3, 3), padding=1, mask=empty, bias=False),
    Case("ragged", (4, 6, 7, 7), (17, 6, 3, 3), padding=1, mask=ragged),
    Case("ragged, batch 16", (16, 6, 7, 7), (17, 6, 3, 3), padding=1, mask=ragged),
    Case("clustered", (4, 16, 7, 7), (17, 16, 3, 3), padding=1, mask=clustered),
    Case("one nonzero", (4, 16, 7, 7), (17, 16, 3, 3), padding=1, mask=last_only),
    Case("no bias", (4, 6, 7, 7), (7, 6, 3, 3), padding=1, bias=False),
    Case("channels last", (4, 6, 7, 7), (7, 6, 3, 3), padding=1, view=channels_last),
    Case("channels last, batch 16", (16, 17, 4, 4), (16, 17, 3, 3), padding=1, stride=2, view=channels_last),
    Case("channels last, 1x1", (4, 17, 7, 7), (16, 17, 1, 1), view=channels_last),
    Case("every other image", (8, 6, 7, 7), (7, 6, 3, 3), padding=1, view=lambda x: x[::2]),
    Case("every other column", (17, 6, 7, 12), (7, 6, 3, 3), padding=1, view=lambda x: x[..., ::2]),
    Case("every other channel", (4, 12, 7, 7), (7, 6, 3, 3), padding=1, view=lambda x: x[:, ::2]),
    Case("transposed", (4, 6, 7, 9), (7, 6, 3, 3), padding=1, view=lambda x: x.transpose(2, 3)),
    Case("expanded batch", (1, 6, 7, 7), (7, 6, 3, 3), padding=1, view=lambda x: x.expand(5, -1, -1, -1)),
    Case("unaligned", (4, 6, 7, 7), (7, 6, 3, 3), padding=1, view=offset),
    Case("expanded channels", (4, 1, 7, 7), (7, 6, 3, 3), padding=1, view=lambda x: x.expand(-1, 6, -1, -1)),
    Case("unbatched", (6, 7, 7), (7, 6, 3, 3), padding=1),
)

LINEARS = (
    Case("one vector", (33,), (17, 33)),
    Case("one row", (1, 130), (65, 130)),
    Case("one element", (1, 1), (1, 1), mask=full),
    Case("5 rows", (5, 64), (33, 64)),
    Case("16 rows", (16, 65), (130, 65)),
    Case("100 rows", (100, 33), (16, 33)),
    Case("600 rows", (600, 17), (33, 17)),
    Case("leading dimensions", (2, 3, 5, 16), (17, 16)),
    Case("no rows", (3, 0, 16), (17, 16)),
    Case("linear, half dense", (7, 64), (64, 64), mask=random(0.5)),
    Case("linear, 2 percent", (40, 130), (130, 130), mask=random(0.02)),
    Case("linear, full", (20, 16), (17, 16), mask=full),
    Case("linear, empty", (20, 16), (17, 16), mask=empty),
    Case("linear, ragged", (20, 33), (17, 33), mask=ragged),
    Case("linear, clustered", (20, 33), (17, 33), mask=clustered),
    Case("linear, no bias", (20, 33), (17, 33), bias=False),
    Case("linear, every other row", (40, 33), (17, 33), view=lambda x: x[::2]),
    Case("linear, every other column", (20, 66), (17, 33), view=lambda x: x[:, ::2]),
    Case("linear, transposed", (33, 20), (17, 33), view=lambda x: x.t()),
    Case("linear, transposed batch", (4, 5, 33), (17, 33), view=lambda x: x.transpose(0, 1)),
    Case("linear, expanded", (1, 33), (17, 33), view=lambda x: x.expand(6, -1)),
    Case("linear, unaligned", (6, 33), (17, 33), view=offset),
)

SEQUENCES = (
    Case("1d, one position", (1, 1, 1), (1, 1, 1), mask=full),
    Case("1d, one sequence", (1, 16, 33), (17, 16, 3), padding=1),
    Case("1d, batch 5", (5, 16, 20), (33, 16, 5), padding=2),
    Case("1d, batch 16", (16, 17, 30), (16, 17, 3), padding=1),
    Case("1d, batch 17", (17, 16, 9), (16, 16, 3)),
    Case("1d, no sequences", (0, 5, 7), (6, 5, 3), padding=1),
    Case("1d, long", (2, 3, 5000), (9, 3, 7), padding=3),
    Case("1d, many channels", (2, 130, 40), (65, 130, 3), padding=1),
    Case("1d, many outputs", (2, 3, 40), (130, 3, 3), padding=1),
    Case("1d, 1 tap", (4, 65, 50), (130, 65, 1)),
    Case("1d, 1 tap, stride 2", (3, 17, 51), (16, 17, 1), stride=2),
    Case("1d, 1 tap, padding", (2, 5, 4), (6, 5, 1), padding=2),
    Case("1d, 2 taps", (2, 6, 19), (7, 6, 2), padding=1),
    Case("1d, 31 taps", (2, 3, 100), (5, 3, 31), padding=15),
    Case("1d, stride 2", (3, 6, 40), (7, 6, 3), stride=2, padding=1),
    Case("1d, stride 5", (1, 1, 400), (33, 1, 10), stride=5, mask=random(0.5)),
    Case("1d, stride larger than the kernel", (2, 4, 31), (5, 4, 2), stride=3),
    Case("1d, dilation 8", (2, 16, 64), (32, 16, 2), dilation=8),
    Case("1d, dilation 3, stride 2", (16, 6, 30), (7, 6, 3), dilation=3, stride=2, padding=2),
    Case("1d, lists", (3, 6, 30), (7, 6, 3), stride=[2], padding=[1], dilation=(2,)),
    Case("1d, padding larger than the kernel", (2, 4, 3), (5, 4, 3), padding=4),
    Case("1d, the kernel covers the sequence", (2, 4, 5), (5, 4, 5)),
    Case("1d, same", (2, 6, 17), (7, 6, 3), padding="same"),
    Case("1d, same, even kernel, dilated", (16, 6, 17), (7, 6, 4), padding="same", dilation=3),
    Case("1d, valid", (2, 6, 17), (7, 6, 3), padding="valid"),
    Case("1d, 2 groups", (3, 8, 17), (6, 4, 3), padding=1, groups=2, mask=random(0.3)),
    Case("1d, depthwise", (3, 17, 20), (17, 1, 4), padding=3, groups=17, mask=random(0.5)),
    Case("1d, full", (4, 6, 17), (7, 6, 3), padding=1, mask=full),
    Case("1d, empty", (4, 6, 17), (7, 6, 3), padding=1, mask=empty),
    Case("1d, ragged", (4, 6, 17), (17, 6, 3), padding=1, mask=ragged),
    Case("1d, clustered", (4, 16, 17), (17, 16, 3), padding=1, mask=clustered),
    Case("1d, one nonzero", (4, 16, 17), (17, 16, 3), padding=1, mask=last_only),
    Case("1d, no bias", (4, 6, 17), (7, 6, 3), padding=1, bias=False),
    Case("1d, every other sequence", (8, 6, 17), (7, 6, 3), padding=1, view=lambda x: x[::2]),
    Case("1d, every other position", (4, 6, 40), (7, 6, 3), padding=1, view=lambda x: x[..., ::2]),
    Case("1d, channels last", (4, 17, 6), (7, 6, 3), padding=1, view=lambda x: x.transpose(1, 2)),
    Case("1d, expanded batch", (1, 6, 17), (7, 6, 3), padding=1, view=lambda x: x.expand(5, -1, -1)),
    Case("1d, expanded channels", (4, 1, 17), (7, 6, 3), padding=1, view=lambda x: x.expand(-1, 6, -1)),
    Case("1d, unaligned", (4, 6, 17), (7, 6, 3), padding=1, view=offset),
    Case("1d, unbatched", (6, 17), (7, 6, 3), padding=1),
)
"""Of conv1d."""

CASES = CONVOLUTIONS + LINEARS + SEQUENCES


def inputs(case: Case, dtype: torch.dtype, device: str, seed: int = 0) -> tuple[Unstructured, list[Tensor]]:
    """The weight, and [input, values] or [input, values, bias], which all require gradients."""
    generator = torch.Generator().manual_seed(seed)
    # made in the dtype before `view`, which keeps what makes the case
    input = case.view(torch.randn(case.shape, generator=generator).to(device, dtype))
    dense = torch.randn(case.weight, generator=generator).to(device, dtype)
    weight = Unstructured.from_dense(dense, case.mask(case.weight, generator).to(device))
    tensors = [input, weight.values]
    if case.bias:
        tensors.append(torch.randn(case.weight[0], generator=generator).to(device, dtype))
    return weight, [tensor.detach().requires_grad_() for tensor in tensors]


def runs(dtype: torch.dtype = torch.float32) -> list[tuple[str, str]]:
    """(backend, device) for every implementation that can run here; Triton's interpreter is too slow for all of it, and
    has a file of its own: test_fine_grained_triton.py.
    """
    found = []
    for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
        probe = torch.empty(1, device=device, dtype=dtype)
        found += [(backend, device) for backend in SPARSE_CONV2D.backends(probe)]
    return [run for run in found if run != ("triton", "cpu")]


RUNS = [(backend, device, dtype) for dtype in DTYPES for backend, device in runs(dtype)]
by_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
by_run = pytest.mark.parametrize(
    ("backend", "device", "dtype"), RUNS, ids=lambda value: str(value).removeprefix("torch.")
)
by_float32_run = pytest.mark.parametrize(("backend", "device"), runs(), ids=lambda value: value)


def ours(case: Case, weight: Unstructured) -> Callable[..., Tensor]:
    """input, values[, bias] -> output by the public function."""
    if case.is_linear:
        return lambda x, v, *b: sk.sparse_linear(x, weight.with_values(v), *b)
    options = (case.stride, case.padding, case.dilation, case.groups)
    function = sk.sparse_conv2d if len(case.weight) == 4 else sk.sparse_conv1d
    return lambda x, v, *b: function(x, weight.with_values(v), b[0] if b else None, *options)


def definition(case: Case, weight: Unstructured) -> Callable[..., Tensor]:
    """The same by the reference, which torch differentiates."""

    def run(x: Tensor, v: Tensor, *b: Tensor) -> Tensor:
        bias = b[0] if b else None
        y = reference.forward(case.images(x), v, bias, weight.crow_indices, weight.col_indices, case.geometry)
        return case.result(y, x)

    return run


def conv_weight(dtype: torch.dtype = torch.float32, groups: int = 1) -> Unstructured:
    shape = (6, 4 // groups, 3, 3)
    return Unstructured.from_dense(torch.randn(shape, dtype=dtype), torch.rand(shape) < 0.3)


def sequence_weight(dtype: torch.dtype = torch.float32, groups: int = 1) -> Unstructured:
    shape = (6, 4 // groups, 3)
    return Unstructured.from_dense(torch.randn(shape, dtype=dtype), torch.rand(shape) < 0.4)


def linear_weight(dtype: torch.dtype = torch.float32) -> Unstructured:
    return Unstructured.from_dense(torch.randn(6, 8, dtype=dtype), torch.rand(6, 8) < 0.3)
