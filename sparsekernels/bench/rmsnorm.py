# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The suite `rmsnorm`: one call of rms_norm, beside what else a user could call and what memory allows."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

import sparsekernels

from .. import dispatch, testing
from .._torch import backend_compiler_failed, without_donated_buffers
from ..ops.rms_norm import reference
from ..ops.rms_norm.implementations import RMS_NORM
from ..timing import Effort
from .devices import PLACES, Built, Context, Way, sets_beyond_cache, variants_of
from .record import Record
from .report import Layout, rate_column, ratio_column, speedup_column, time_column
from .suite import Case, Selection, Suite, Unavailable, Variant, Verdict

EPS = 1e-6

TENSORS_MOVED = {"forward": 2, "backward": 3, "forward+backward": 5}
"""Tensors of the input's size that each pass reads or writes: x, y; dy, x, dx; both."""

Function = Callable[[Tensor, Tensor], Tensor]
"""Of the input and the weight: the output."""


@dataclass(frozen=True)
class Inputs:
    """One set of tensors to call with: x (any strides), its weight, and the gradient of the output."""

    x: Tensor
    weight: Tensor
    grad_output: Tensor


def variants(case: Case, selection: Selection) -> list[Variant]:
    """Ours, torch's eager functions, torch.compile and a plain copy; on CUDA each also in a CUDA graph."""
    inputs = _inputs(case)
    shape, x = tuple(inputs[0].weight.shape), inputs[0].x

    def ours(x: Tensor, weight: Tensor) -> Tensor:
        return sparsekernels.rms_norm(x, shape, weight, EPS)

    def torch_eager(x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, shape, weight, EPS)

    bias = torch.zeros_like(inputs[0].weight).requires_grad_(inputs[0].weight.requires_grad)

    def layer_norm(x: Tensor, weight: Tensor) -> Tensor:
        return F.layer_norm(x, shape, weight, bias, EPS)

    oracle = Oracle(case, inputs[0])
    builds = {
        "ours": functools.partial(_build, case, inputs, ours, oracle),
        "torch": functools.partial(_build, case, inputs, torch_eager, oracle),
        "layer_norm": functools.partial(_build, case, inputs, layer_norm, None, also=(bias,)),
    }
    for name in _other_backends(x):
        backend = functools.partial(dispatch.use_backend, name)
        builds[name] = functools.partial(_build, case, inputs, ours, oracle, backend)
    if not selection.quick or case.pass_ in case.parameters.get("quick_compile", ()):
        builds["torch.compile"] = functools.partial(_compile, case, inputs, torch_eager, oracle)
    builds["copy"] = functools.partial(_copy, case, inputs)
    return variants_of(case, [Way(name, build) for name, build in builds.items()])


def _other_backends(x: Tensor) -> list[str]:
    """The kernels, beside those that a plain call takes, that a user could choose on a GPU."""
    if not x.is_cuda:
        return []
    return [name for name in RMS_NORM.backends(x)[1:] if name != "reference"]


def _inputs(case: Case) -> list[Inputs]:
    """Random inputs from a fixed seed. On CUDA enough that, called in turn, large ones are out of the L2 cache."""
    first = make_input(case, 0)
    sets = sets_beyond_cache(case.device, first.x.numel() * first.x.element_size())
    return [first, *(make_input(case, seed) for seed in range(1, sets))]


def make_input(case: Case, seed: int) -> Inputs:
    place = PLACES[case.device]
    generator = torch.Generator(place).manual_seed(seed)
    dtype = getattr(torch, case.dtype)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=place).to(dtype)

    shape = case.parameters["shape"]
    if case.parameters.get("layout") == "heads":
        batch, heads, tokens, size = shape
        total = heads + 2 * max(1, heads // 4)  # grouped-query attention: four query heads to a key and a value head
        x = normal(batch, tokens, total, size).transpose(1, 2)[:, :heads]
    else:
        x = normal(*shape)
    grad_output = torch.empty_like(x).copy_(normal(*shape))
    wants_grad = case.pass_ != "forward"
    return Inputs(x.requires_grad_(wants_grad), normal(shape[-1]).requires_grad_(wants_grad), grad_output)


class Oracle:
    """Judges results by the reference in float64, which is computed once, when first asked for."""

    def __init__(self, case: Case, inputs: Inputs) -> None:
        self._case, self._inputs = case, inputs

    def _reference(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        one = self._inputs
        wants_grad = self._case.pass_ != "forward"
        x, weight = (tensor.detach().to(dtype).requires_grad_(wants_grad) for tensor in (one.x, one.weight))
        output = reference.forward(x, weight.shape, weight, EPS)
        if not wants_grad:
            return (output,)
        return (output, *torch.autograd.grad(output, (x, weight), one.grad_output.to(dtype)))

    @functools.cached_property
    def _truth_and_baseline(self) -> list[tuple[Tensor, Tensor]]:
        with torch.inference_mode(False), torch.enable_grad():
            return list(zip(self._reference(torch.float64), self._reference(self._inputs.x.dtype), strict=True))

    def check(self, outputs: tuple[Tensor, ...]) -> Verdict:
        names = ("output", "gradient to the input", "gradient to the weight")
        comparisons = [
            testing.compare(name, output.detach(), truth.detach(), baseline.detach())
            for name, output, (truth, baseline) in zip(names, outputs, self._truth_and_baseline, strict=False)
        ]
        return Verdict(max(one.error for one in comparisons), all(one.passed for one in comparisons))


def _build(
    case: Case,
    inputs: Sequence[Inputs],
    function: Function,
    oracle: Oracle | None,
    backend: Context = contextlib.nullcontext,
    also: tuple[Tensor, ...] = (),
) -> Built:
    """`function` as this case calls it; what is judged is the output, with the gradients to x and weight if wanted.

    also: tensors beside x and the weight that a backward gives gradients to.
    """
    judge = None if oracle is None else oracle.check

    @contextlib.contextmanager
    def context() -> Iterator[None]:
        with torch.inference_mode(case.pass_ == "forward"), backend():
            yield

    def call_of(one: Inputs) -> Callable[[], object]:
        x, weight, grad_output = one.x, one.weight, one.grad_output
        if case.pass_ == "forward":
            return lambda: function(x, weight)
        if case.pass_ == "forward+backward":
            return lambda: torch.autograd.grad(function(x, weight), (x, weight, *also), grad_output)
        output = function(x, weight)
        return lambda: torch.autograd.grad(output, (x, weight, *also), grad_output, retain_graph=True)

    def outputs() -> tuple[Tensor, ...]:
        one = inputs[0]
        output = function(one.x, one.weight)
        if case.pass_ == "forward":
            return (output,)
        return (output, *torch.autograd.grad(output, (one.x, one.weight), one.grad_output))

    with context():
        return Built([call_of(one) for one in inputs], context, outputs, judge)


def _compile(case: Case, inputs: Sequence[Inputs], function: Function, oracle: Oracle) -> Built:
    torch.compiler.reset()
    compiled = torch.compile(function, dynamic=False)
    try:
        with without_donated_buffers():  # a backward is called again and again on what its forward kept
            built = _build(case, inputs, compiled, oracle)
            with built.context():
                built.call()
    except backend_compiler_failed() as error:
        raise Unavailable(f"torch.compile fails: {str(error).strip().splitlines()[0]}") from error
    return built


def _copy(case: Case, inputs: Sequence[Inputs]) -> Built:
    """What the pass would cost if it computed nothing: tensors of the same sizes read and written.

    Forward, a copy of x; backward, the sum of x and the gradient of the output, which reads two and writes one.
    """

    def call_of(x: Tensor, grad_output: Tensor) -> Callable[[], object]:
        if case.pass_ == "forward":
            return x.clone
        if case.pass_ == "backward":
            return lambda: torch.add(x, grad_output)
        return lambda: (x.clone(), torch.add(x, grad_output))

    return Built([call_of(one.x.detach(), one.grad_output) for one in inputs], torch.inference_mode)


def elements(case: str) -> int:
    """The numbers in the input of the case of this name."""
    return math.prod(map(int, case.rpartition("/")[2].split("x")))


def gigabytes(record: Record) -> float | None:
    """What a call on CUDA has to move, in GB (1e9 bytes). On CPU most cases are in its caches: None."""
    if record.device != "cuda":
        return None
    dtype: torch.dtype = getattr(torch, record.dtype)
    return elements(record.case) * dtype.itemsize * TENSORS_MOVED[record.pass_] * 1e-9


SUITE = Suite(
    name="rmsnorm",
    about="one call of rms_norm, from single rows to a training step's",
    variants=variants,
    baseline="torch",
    ideal="copy",
    full=Effort(seconds=3),
    quick=Effort(seconds=0.2),
    layout=Layout(
        columns=(
            time_column("copy"),
            time_column("torch"),
            time_column("layer_norm"),
            time_column("torch.compile"),
            time_column("triton"),
            time_column("ours"),
            rate_column("ours", "GB/s", gigabytes),
            ratio_column("ours", "copy"),
            ratio_column("ours", "layer_norm"),
            speedup_column("ours", "speedup"),
        ),
        legend=(
            "Medians of one call. copy: reads and writes as many tensors of the input's size as the pass has to, and "
            "computes nothing. Ratios are of times, lower is better. speedup: over torch's rms_norm, the median over "
            "the rounds. layer_norm: with weight and bias, as torch.nn.LayerNorm has them."
        ),
        subject="ours",
        rivals=("torch", "layer_norm", "torch.compile"),
    ),
)
