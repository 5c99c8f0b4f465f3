# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Layers with sparse weights, as variants of a suite: in blocks, the elements of these, and single random ones.

A pass is what a user calls: `sparse_linear` or `sparse_conv2d`, and for gradients autograd through it. Of a normal
weight the blocks of the largest norms are kept, which are random ones. Their share is as near to what is asked for as
the number of blocks allows.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

import sparsekernels

from .. import testing
from ..formats import BlockSparse, SparseFormat, Unstructured
from ..pruning import kept_weights, largest
from .defaults import MEMORY_FORMATS
from .devices import Built, Way, autotuned, fastest, in_turn
from .layer import LAYOUTS, PASS_OF, RESULTS, TRUTH_IMAGES, Call, Inputs, Layer, dense_call, with_copies
from .suite import Verdict
from .suite_keys import block_of

TOGETHER = 16
"""How many images, or rows, are summed before they are compared."""


def block_call(layer: Layer, pass_: str, input: Tensor, weight: SparseFormat, grad_output: Tensor) -> Call:
    """The pass through the public functions and autograd."""

    def run(input: Tensor, weight: SparseFormat) -> Tensor:
        if layer.linear:
            return sparsekernels.sparse_linear(input, weight)
        return sparsekernels.sparse_conv2d(input, weight, None, layer.stride, layer.padding, 1, layer.groups)

    if pass_ == "forward":
        return lambda: (run(input, weight),)
    with torch.enable_grad():
        x = input.detach().requires_grad_("input gradient" in RESULTS[pass_])
        values = weight.values.detach().requires_grad_("weight gradient" in RESULTS[pass_])
        wanted = tuple(tensor for tensor in (x, values) if tensor.requires_grad)
        tracked = weight.with_values(values)
        if pass_ == "all":

            def every() -> tuple[Tensor, ...]:
                output = run(x, tracked)
                return output.detach(), *torch.autograd.grad(output, wanted, grad_output)

            return every
        output = run(x, tracked)
    return lambda: torch.autograd.grad(output, wanted, grad_output, retain_graph=True)


class Oracle:
    """Holds the results of a layer against those of the dense layer in float64.

    A layer is linear in its batch. So images are summed in groups, each with a random sign, before they go through the
    layer in float64, and so are the results that are judged: every element of them takes part, at a fraction of the
    work. The gradient to the weight is computed as a whole, once for all patterns.
    """

    def __init__(self, pass_: str, inputs: Inputs) -> None:
        self._pass, self._inputs = pass_, inputs
        signs = torch.randint(0, 2, (inputs.layer.batch,), generator=torch.Generator().manual_seed(3))
        self._signs = (signs.double() * 2 - 1).to(inputs.weight.device)

    def _mixed(self, tensor: Tensor) -> Tensor:
        """Sums of `TOGETHER` images each, with their signs, in float64."""
        batch = tensor.size(0)
        signed = tensor.double() * self._signs.view(-1, *(1,) * (tensor.dim() - 1))
        groups = signed.new_zeros(-(-batch // TOGETHER), *signed.shape[1:])
        return groups.index_add_(0, torch.arange(batch, device=signed.device) // TOGETHER, signed)

    @functools.cached_property
    def _mixed_inputs(self) -> tuple[Tensor, Tensor]:
        input, grad_output = self._inputs.tensors(self._pass)
        return self._mixed(input), self._mixed(grad_output)

    @functools.cached_property
    def _weight_gradient(self) -> tuple[Tensor, Tensor]:
        """Of the dense weight, flat: in float64, and in the dtype of the case."""
        layer, weight = self._inputs.layer, self._inputs.weight
        input, grad_output = self._inputs.tensors("weight-gradient")
        (baseline,) = dense_call(layer, "weight-gradient", input, weight, grad_output)()
        images = layer.batch if layer.linear else TRUTH_IMAGES
        parts = [
            dense_call(layer, "weight-gradient", some.double(), weight.double(), gradients.double())()[0]
            for some, gradients in zip(input.split(images), grad_output.split(images), strict=True)
        ]
        return torch.stack(parts).sum(0).flatten(), baseline.flatten()

    def _one(self, name: str, result: Tensor, weight: SparseFormat, dense: Tensor) -> testing.Comparison:
        if name == "weight gradient":
            truth, baseline = (tensor[weight.flat_indices] for tensor in self._weight_gradient)
            return testing.compare(name, result, truth, baseline)
        layer, pass_ = self._inputs.layer, PASS_OF[name]
        input, grad_output = self._inputs.tensors(pass_)
        (baseline,) = dense_call(layer, pass_, input, dense, grad_output)()
        mixed, mixed_gradients = self._mixed_inputs
        (truth,) = dense_call(layer, pass_, mixed, dense.double(), mixed_gradients)()
        if result.shape != baseline.shape:
            return testing.compare(name, result, baseline.double(), baseline)
        return testing.compare(name, self._mixed(result), truth, self._mixed(baseline))

    @torch.no_grad()
    def judge(self, results: tuple[Tensor, ...], weight: SparseFormat) -> Verdict:
        """`weight` is that of the call: its values, and which are stored, in the order of their gradient."""
        dense = weight.to_dense()
        names = RESULTS[self._pass]
        with autotuned(self._inputs.device, False):
            comparisons = [self._one(name, result, weight, dense) for name, result in zip(names, results, strict=True)]
        return Verdict(max(one.error for one in comparisons), all(one.passed for one in comparisons))


Context = Callable[[], contextlib.AbstractContextManager[object]]


class Ours:
    """What all patterns of a case share: the oracle, and the layout of the images that ours is given.

    Of the layouts of MEMORY_FORMATS that is the one in which the first pattern is faster, as a user would choose it for
    the whole network; with layout, of `Layer`, that.
    """

    def __init__(self, pass_: str, inputs: Inputs, layout: str | None = None) -> None:
        self.pass_, self.inputs, self.layout = pass_, inputs, layout
        self.oracle = Oracle(pass_, inputs)
        self.context: Context = torch.inference_mode if pass_ == "forward" else contextlib.nullcontext

    def calls(self, weight: SparseFormat) -> list[Call]:
        """The pass with `weight`, for each set of inputs."""
        layer = self.inputs.layer
        if layer.linear or self.layout is not None:
            return self._calls(weight, MEMORY_FORMATS[self.layout or layer.layout])
        calls = {name: self._calls(weight, format) for name, format in MEMORY_FORMATS.items()}
        with self.context():
            self.layout = fastest(self.inputs.device, {name: in_turn(some) for name, some in calls.items()}, LAYOUTS)
        return calls[self.layout]

    def _calls(self, weight: SparseFormat, format: torch.memory_format) -> list[Call]:
        layer, found = self.inputs.layer, []
        for one, own in with_copies(self.inputs, weight):
            input, grad_output = one.tensors(self.pass_)
            if not layer.linear:
                input = input.contiguous(memory_format=format)
                grad_output = grad_output.contiguous(memory_format=format)
            found.append(block_call(layer, self.pass_, input, own, grad_output))
        return found

    def built(self, calls: Sequence[Call], weight: SparseFormat, context: Context | None = None) -> Built:
        """`calls`, whose results are those of the pass with `weight`; context: instead of that of ours."""
        layer = self.inputs.layer
        details = {**layer.details(), "gflop": layer.gflop(weight.nnz, self.pass_)}
        if not layer.linear:
            details["layout"] = self.layout

        def judge(results: tuple[Tensor, ...]) -> Verdict:
            return self.oracle.judge(results, weight)

        return Built(calls, context or self.context, None, judge, details)


class Pattern:
    """Some blocks of the weight of a case; the weight is made when first asked for."""

    def __init__(self, ours: Ours, block: str, percent: float) -> None:
        self.name, self.block, self.percent, self.ours = f"{block}-{percent:g}", block, percent, ours
        self._block, self._sparsity = block_of(block), round(percent / 100, 7)

    @functools.cached_property
    def weight(self) -> BlockSparse:
        return BlockSparse.from_dense(self.ours.inputs.weight, block=self._block, sparsity=self._sparsity)

    @property
    def has_whole_squares(self) -> bool:
        """Whether the weight is made of whole square blocks, those for which torch has a product on the CPU."""
        return self._block[0] == self._block[1] and not any(
            size % step for size, step in zip(self.ours.inputs.layer.weight, self._block, strict=False)
        )

    def way(self, kind: str, build: Callable[[], Built], ours: bool = True) -> Way:
        """The variant of that kind."""
        return Way(f"{kind}:{self.name}", build, self._sparsity, ours=ours)

    def in_blocks(self) -> Built:
        """Ours, from the weight in blocks."""
        return self.ours.built(self.ours.calls(self.weight), self.weight)

    def by_elements(self) -> Built:
        """Ours, from the elements of the blocks."""
        weight = self.weight.elements()
        return self.ours.built(self.ours.calls(weight), weight)


def patterns(ours: Ours, blocks: Sequence[str], sparsities: Sequence[float]) -> list[Pattern]:
    """Each of `blocks`, "32x32", at each of `sparsities`, in percent."""
    return [Pattern(ours, block, one) for block in dict.fromkeys(blocks) for one in dict.fromkeys(sparsities)]


class Elements:
    """Single elements of the weight of a case, chosen by a mask of `pruning.MASKS`."""

    def __init__(self, ours: Ours, kind: str, percent: float) -> None:
        self.name, self._kind, self._ours = f"{kind}-{percent:g}", kind, ours
        self._sparsity = round(percent / 100, 7)

    @functools.cached_property
    def weight(self) -> Unstructured:
        weight = self._ours.inputs.weight
        return Unstructured.from_dense(weight, kept(self._kind, weight, self._sparsity))

    def way(self, kind: str) -> Way:
        """Ours, as the variant of that kind."""
        return Way(f"{kind}:{self.name}", lambda: self._built(), self._sparsity)

    def _built(self) -> Built:
        return self._ours.built(self._ours.calls(self.weight), self.weight)


def kept(kind: str, weight: Tensor, sparsity: float) -> Tensor:
    """The mask of `kept_weights`. On CUDA a random one is drawn there: the CPU takes seconds for a large weight."""
    if kind != "random" or not weight.is_cuda:
        return kept_weights(kind, weight, sparsity)
    generator = torch.Generator(weight.device).manual_seed(0)
    return largest(torch.rand(weight.shape, generator=generator, device=weight.device), sparsity)
