# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The suite `masked`: products of two matrices of which only the elements under a mask are wanted.

A case is a shape, M x K x N, a pass and a dtype. Its variants are "dense", torch's product without any mask (the
baseline), and for each mask, "32x32-90" in blocks of which 90% are left out, "random-97" and "clustered-97" by
elements: "dense+mask", torch's product and its elements outside of the mask set to zero; "sampled-addmm", torch's
product of the nonzeros of a CSR matrix, in float32; "ours", `masked_matmul` with a mask that was prepared before; and
"ours+prepare", the same with a plain mask, bool or `BlockMask`, so that its preparation is inside of the time. All of
them are interleaved. forward+backward is the product and, through autograd, the gradients to both matrices.

Cases with `windows` among their keys are attention: `attention.py`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

import sparsekernels

from .. import testing
from ..timing import Effort
from . import attention
from .devices import PLACES, Built, Way, fastest, in_turn, precision, sets_beyond_cache, variants_of
from .layer import LAYOUTS
from .mask_patterns import Pattern, chosen_patterns
from .report import Layout, ratio_column, share_column, speedup_column, time_column
from .suite import Case, Selection, Suite, Variant, Verdict

Product = Callable[[Tensor, Tensor], Tensor]


class Inputs:
    """The matrices of a case, and the gradient of the result. On CUDA there are others to call with in turn."""

    def __init__(self, case: Case, seed: int = 0) -> None:
        rows, depth, columns = case.parameters["shape"]
        self.case, self._seed, place = case, seed, PLACES[case.device]
        generator = torch.Generator(place).manual_seed(seed)
        dtype = getattr(torch, case.dtype)
        self.backward = case.pass_ != "forward"
        sizes = (rows, depth), (depth, columns), (rows, columns)
        self.a, self.b, self.grad = (torch.randn(size, generator=generator, device=place).to(dtype) for size in sizes)
        if self.backward:
            self.a.requires_grad_()
            self.b.requires_grad_()

    @functools.cached_property
    def sets(self) -> list[Inputs]:
        """These and the others."""
        size = sum(one.numel() for one in (self.a, self.b, self.grad)) * self.a.element_size()
        count = sets_beyond_cache(self.case.device, size)
        return [self, *(Inputs(self.case, seed) for seed in range(self._seed + 1, self._seed + count))]

    def gflop(self) -> float:
        """Of the forward pass where everything is kept."""
        return 2e-9 * self.a.numel() * self.b.size(1)

    def calls(self, product: Product) -> list[Callable[[], tuple[Tensor, ...]]]:
        """The pass with each set."""
        return [one.call(product) for one in self.sets]

    def call(self, product: Product) -> Callable[[], tuple[Tensor, ...]]:
        """The pass."""
        a, b, grad = self.a, self.b, self.grad
        if not self.backward:
            return lambda: (product(a, b),)

        def step() -> tuple[Tensor, ...]:
            y = product(a, b)
            return (y.detach(), *torch.autograd.grad(y, (a, b), grad))

        return step

    @contextlib.contextmanager
    def context(self) -> Iterator[None]:
        with torch.set_grad_enabled(self.backward):  # sampled_addmm fails in inference mode
            yield


class Oracle:
    """Judges by the product in float64, and as a baseline by torch's in the dtype of the case."""

    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs

    def _results(self, mask: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
        one = self._inputs
        a, b, grad = (tensor.detach().to(dtype) for tensor in (one.a, one.b, one.grad))
        y = torch.where(mask, a @ b, 0)
        if not one.backward:
            return (y,)
        kept = torch.where(mask, grad, 0)
        return y, kept @ b.t(), a.t() @ kept

    def judge(self, results: tuple[Tensor, ...], mask: Tensor) -> Verdict:
        """`results` of the pass under `mask`."""
        names = ("product", "gradient to a", "gradient to b")
        with torch.no_grad():
            truths, baselines = self._results(mask, torch.float64), self._results(mask, self._inputs.a.dtype)
            comparisons = [testing.compare(*row) for row in zip(names, results, truths, baselines, strict=False)]
        return Verdict(max(one.error for one in comparisons), all(one.passed for one in comparisons))


def variants(case: Case, selection: Selection) -> list[Variant]:
    """torch's product, and for each mask the ways to have only what it keeps."""
    if "windows" in case.parameters:
        return attention.variants(case, selection)
    inputs = Inputs(case)
    oracle = Oracle(inputs)
    result = [Way("dense", functools.partial(_dense, inputs))]
    kinds: dict[str, Callable[[Inputs, Oracle, Pattern], Built]] = {"dense+mask": _dense_then_mask}
    if (case.pass_, case.dtype) == ("forward", "float32"):
        kinds["sampled-addmm"] = _sampled
    kinds |= {"ours": _ours, "ours+prepare": _ours_and_prepare}
    for pattern in patterns(case, selection):
        share = round(pattern.percent / 100, 7)
        for name, kind in kinds.items():
            build = functools.partial(kind, inputs, oracle, pattern)
            modes = {"graphs": name != "ours+prepare", "ours": name.startswith("ours")}
            result.append(Way(f"{name}:{pattern.name}", build, share, **modes))
    return variants_of(case, result)


def patterns(case: Case, selection: Selection) -> list[Pattern]:
    """The masks of `case`, those in blocks first; of options what they name, else those of its keys."""
    rows, _, columns = case.parameters["shape"]
    return chosen_patterns(case, selection, (rows, columns))


def _details(inputs: Inputs, pattern: Pattern | None = None) -> dict[str, float]:
    kept = 1.0 if pattern is None else pattern.elements.sum().item() / pattern.elements.numel()
    return {"gflop": float(f"{(3 if inputs.backward else 1) * kept * inputs.gflop():.5g}")}


def _dense(inputs: Inputs) -> Built:
    details = _details(inputs) | precision(inputs.case, convolution=False)
    return Built(inputs.calls(torch.mm), inputs.context, details=details)


def _judged(inputs: Inputs, oracle: Oracle, pattern: Pattern, product: Product) -> Built:
    def judge(results: tuple[Tensor, ...]) -> Verdict:
        product, *rest = results
        if product.layout is torch.sparse_csr:
            results = (product.to_dense(), *rest)
        return oracle.judge(results, pattern.elements)

    return Built(inputs.calls(product), inputs.context, None, judge, _details(inputs, pattern))


def _dense_then_mask(inputs: Inputs, oracle: Oracle, pattern: Pattern) -> Built:
    """The faster of three ways to write it."""
    mask = pattern.elements
    outside = ~mask
    products: dict[str, Product] = {
        "where": lambda a, b: torch.where(mask, a @ b, 0),
        "multiplied": lambda a, b: (a @ b).mul_(mask),
        "filled": lambda a, b: (a @ b).masked_fill_(outside, 0),
    }
    with inputs.context():
        calls = {name: in_turn(inputs.calls(product)) for name, product in products.items()}
        name = fastest(inputs.case.device, calls, LAYOUTS)
    return _judged(inputs, oracle, pattern, products[name])


def _sampled(inputs: Inputs, oracle: Oracle, pattern: Pattern) -> Built:
    sparse = pattern.elements.float().to_sparse_csr()
    return _judged(inputs, oracle, pattern, lambda a, b: torch.sparse.sampled_addmm(sparse, a, b, beta=0.0))


def _ours(inputs: Inputs, oracle: Oracle, pattern: Pattern) -> Built:
    mask = sparsekernels.prepare_mask(pattern.mask)
    return _judged(inputs, oracle, pattern, lambda a, b: sparsekernels.masked_matmul(a, b, mask))


def _ours_and_prepare(inputs: Inputs, oracle: Oracle, pattern: Pattern) -> Built:
    mask = pattern.mask
    return _judged(inputs, oracle, pattern, lambda a, b: sparsekernels.masked_matmul(a, b, mask))


class _Masked(Suite):
    def cases(self, selection: Selection) -> list[Case]:
        """The selected cases; none where a mask is asked for that is one of weights, or a file of these."""
        return [] if selection.weights or "magnitude" in selection.masks else super().cases(selection)


SUITE = _Masked(
    name="masked",
    about="matrix products of which only the elements under a mask are wanted",
    variants=variants,
    baseline="dense",
    ideal=None,
    full=Effort(seconds=1.5, least=3),
    quick=Effort(seconds=0.4, least=3),
    layout=Layout(
        columns=(
            time_column("dense"),
            time_column("dense+mask"),
            time_column("sampled-addmm"),
            time_column("flex"),
            time_column("ours"),
            time_column("ours+prepare"),
            speedup_column("ours", "speedup"),
            share_column("ours", "of ideal", lambda record: record.ideal_fraction),
            speedup_column("ours+prepare", "with preparation"),
            ratio_column("dense+mask", "ours+prepare"),
            ratio_column("sampled-addmm", "ours+prepare"),
            ratio_column("flex", "ours+prepare"),
        ),
        legend=(
            "Medians of one call; the row says how the mask's zeros lie and how many percent they are. dense: torch's "
            "product, or attention, without a mask, which the speedups are over. dense+mask: the same and then the "
            "mask, in the fastest of three ways; of attention, with it. flex: flex_attention, compiled. ours: the mask "
            "prepared beforehand; ours+prepare: within the time. of ideal: the speedup, of 1 / density. Ratios are of "
            "times; above 1 ours is faster, its preparation included."
        ),
        subject="ours",
        rivals=("dense", "dense+mask", "sampled-addmm", "flex"),
        chart="sparsity",
    ),
    sparse=True,
    in_blocks=True,
)
