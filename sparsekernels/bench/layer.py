# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The layer of a case, as the suites `layers` and `blocks` have it: its tensors, its passes, and torch's own."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..formats import SparseFormat
from ..ops.convolution import Geometry
from ..timing import Effort
from .defaults import MEMORY_FORMATS
from .devices import GRAPH_CALLS, PLACES, copy_of, fastest, in_turn, sets_beyond_cache
from .suite import Case

RESULTS = {
    "forward": ("output",),
    "input-gradient": ("input gradient",),
    "weight-gradient": ("weight gradient",),
    "all": ("output", "input gradient", "weight gradient"),
}
"""What each pass computes."""

PASS_OF = {results[0]: pass_ for pass_, results in RESULTS.items() if len(results) == 1}
"""The pass that computes nothing but a result."""

LAYOUTS = Effort(seconds=0.1, least=5, most=30)
"""How long the layouts of a dense layer are compared."""

TRUTH_IMAGES = 8
"""How many images of a batch go through the layer in float64 together: torch unfolds them, which takes memory."""

OTHER_KEYS = ("weight", "from_file", "blocks", "masks", "sparsities", "fine_sparsities", "routes")
"""The keys of a case that are not fields of `Layer` by their names."""

Call = Callable[[], tuple[Tensor, ...]]
"""Computes the pass: the tensors that `RESULTS` names."""


@dataclass(frozen=True)
class Layer:
    """A layer and the batch that it is given. weight is the weight's shape; a Linear has two dimensions.

    layout is that of the images that ours is given, of MEMORY_FORMATS.
    """

    weight: tuple[int, ...]
    batch: int
    size: int = 1
    stride: int = 1
    padding: int = 0
    groups: int = 1
    count: int = 1
    layout: str = "contiguous"

    @classmethod
    def of(cls, case: Case) -> Layer:
        """The layer of `case`."""
        assert case.batch is not None
        values = {key: value for key, value in case.parameters.items() if key not in OTHER_KEYS}
        return cls(weight=tuple(case.parameters["weight"]), batch=case.batch, **values)

    @property
    def linear(self) -> bool:
        return len(self.weight) == 2

    @property
    def geometry(self) -> list[int]:
        """As the kernel operators take it; a Linear is the 1x1 convolution of 1x1 images."""
        kernel_h, kernel_w = (1, 1) if self.linear else self.weight[2:]
        around = (self.padding,) * 4
        return list(Geometry(kernel_h, kernel_w, self.stride, self.stride, *around, 1, 1, self.groups))

    @property
    def input_shape(self) -> tuple[int, ...]:
        image = () if self.linear else (self.size, self.size)
        return (self.batch, self.weight[1] * self.groups, *image)

    @property
    def output_shape(self) -> tuple[int, ...]:
        image = () if self.linear else Geometry(*self.geometry).output_size(self.size, self.size)
        return (self.batch, self.weight[0], *image)

    @property
    def activations(self) -> int:
        """Elements of an input and an output."""
        return math.prod(self.input_shape) + math.prod(self.output_shape)

    def gflop(self, weights: int, pass_: str) -> float:
        """The work of a pass in which `weights` weights take part: a multiplication and an addition a position."""
        positions = self.batch * math.prod(self.output_shape[2:])
        return float(f"{2e-9 * weights * positions * len(RESULTS[pass_]):.5g}")

    def details(self) -> dict[str, Any]:
        return {"batch": self.batch, "count": self.count}


class Inputs:
    """The tensors of a case, each made when first asked for and the same every time.

    real: the weight, where it is not drawn; dtype: of all of them; most: how many sets of them there are, at most.
    """

    def __init__(
        self,
        layer: Layer,
        real: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        most: int = GRAPH_CALLS,
    ) -> None:
        self.layer, self.device, self._real, self._dtype, self._most = layer, device, real, dtype, most
        self._seed, self._others = 0, list[Inputs]()

    def _normal(self, shape: tuple[int, ...], seed: int) -> Tensor:
        place = PLACES[self.device]
        generator = torch.Generator(place).manual_seed(seed + self._seed)
        return torch.randn(shape, generator=generator, device=place).to(self._dtype)

    @functools.cached_property
    def weight(self) -> Tensor:
        return self._normal(self.layer.weight, 0) if self._real is None else self._real.to(self._dtype)

    @functools.cached_property
    def input(self) -> Tensor:
        return self._normal(self.layer.input_shape, 1).contiguous(memory_format=MEMORY_FORMATS[self.layer.layout])

    @functools.cached_property
    def grad_output(self) -> Tensor:
        return self._normal(self.layer.output_shape, 2).contiguous(memory_format=MEMORY_FORMATS[self.layer.layout])

    def tensors(self, pass_: str) -> tuple[Tensor, Tensor]:
        """The input, and the gradient of the output where the pass has one; else the input again."""
        return self.input, self.input if pass_ == "forward" else self.grad_output

    @property
    def activation_bytes(self) -> int:
        """Of an input and an output."""
        return self.layer.activations * self._dtype.itemsize

    def sets(self, weight_bytes: int) -> list[Inputs]:
        """These and, on CUDA, others to call in turn, for a weight of so many bytes. See `devices`.

        All have the same weight, which whoever calls with it copies.
        """
        count = sets_beyond_cache(self.device, self.activation_bytes + weight_bytes, self._most)
        while len(self._others) < count - 1:
            other = Inputs(self.layer, self.weight, self._dtype, self.device)
            other._seed = 10 * (len(self._others) + 1)
            self._others.append(other)
        return [self, *self._others[: count - 1]]


def bytes_of(weight: SparseFormat) -> int:
    """What is stored of a weight: values and indices."""
    return sum(one.numel() * one.element_size() for one in weight.to_tensors().values())


def with_copies(inputs: Inputs, weight: SparseFormat) -> list[tuple[Inputs, SparseFormat]]:
    """The sets of inputs, each with a copy of the weight that nothing else is kept beside."""
    first, *others = inputs.sets(bytes_of(weight))
    return [(first, weight), *((other, copy_of(weight)) for other in others)]


def dense_call(layer: Layer, pass_: str, input: Tensor, weight: Tensor, grad_output: Tensor) -> Call:
    """The pass as torch computes it. The two gradients of a convolution are one call, as autograd makes it."""
    wanted = RESULTS[pass_]
    if layer.linear:
        functions: dict[str, Callable[[], Tensor]] = {
            "output": lambda: F.linear(input, weight),
            "input gradient": lambda: grad_output @ weight,
            "weight gradient": lambda: grad_output.t() @ input,
        }
        return lambda: tuple(functions[result]() for result in wanted)

    stride, padding = [layer.stride] * 2, [layer.padding] * 2
    gradients = ["input gradient" in wanted, "weight gradient" in wanted, False]

    def convolution() -> tuple[Tensor, ...]:
        output = (F.conv2d(input, weight, None, stride, padding, 1, layer.groups),) if "output" in wanted else ()
        if not any(gradients):
            return output
        found = torch.ops.aten.convolution_backward(
            grad_output, input, weight, None, stride, padding, [1, 1], False, [0, 0], layer.groups, gradients
        )
        return output + tuple(gradient for gradient in found if gradient is not None)

    return convolution


def fastest_layout(pass_: str, inputs: Inputs, dtype: torch.dtype) -> tuple[list[Call], str]:
    """The pass as torch computes it in `dtype` in the faster of its layouts, which is named where there are two.

    A call for each set of inputs.
    """
    layer = inputs.layer
    formats = {"": torch.contiguous_format} if layer.linear else MEMORY_FORMATS
    sets = inputs.sets(inputs.weight.numel() * dtype.itemsize)

    def call_in(one: Inputs, format: torch.memory_format) -> Call:
        tensors = (one.input, one.weight, one.tensors(pass_)[1])
        # a weight of its own for every set but the first
        input, weight, grad_output = (
            tensor.to(dtype, memory_format=format, copy=tensor is one.weight and one is not inputs)
            for tensor in tensors
        )
        return dense_call(layer, pass_, input, weight, grad_output)

    calls = {name: [call_in(one, format) for one in sets] for name, format in formats.items()}
    with torch.inference_mode():
        layout = fastest(inputs.device, {name: in_turn(some) for name, some in calls.items()}, LAYOUTS)
    return calls[layout], layout
