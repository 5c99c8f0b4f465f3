# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The suite `blocks`: layers whose weights are zero in whole blocks, beside the dense layer in the same dtype.

A case is a layer, a pass and a dtype. Its variants are the dense layer (the baseline); "copy", which reads and writes
what the pass has to, and computes nothing; and for each block size and sparsity, "32x32-90", ours in blocks ("block"),
at some sparsities ours element by element on the same elements ("fine-grained"), and for the first block size, where
torch has a product for it, a tensor of its layout BSR ("torch-bsr"). All of them are interleaved.

The dense layer is eager torch in the fastest of the layouts that a user could choose: a convolution's images and weight
contiguous or channels_last, a Linear's weight as it is or stored transposed. Ours is given images in the faster of the
two layouts, too, or that of the case's key `layout`, and returns them in it: what it packs and unpacks counts. Forward
is `sparse_linear` or `sparse_conv2d` without gradients; a gradient is autograd's call through it. What depends on the
pattern alone is kept from call to call; the weight's values are packed in each call.

No number of zeros makes a layer faster than reading its input and writing its output. So beside the share reached of
1 / density stands that of min(1 / density, dense time / copy time): `roofline.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .._torch import bsr_linear
from ..timing import Effort
from .block_layer import Ours, Pattern, patterns
from .crossover import crossover_table
from .defaults import QUICK_SPARSITIES
from .devices import Built, Way, fastest, in_turn, precision, sets_beyond_cache, variants_of
from .layer import LAYOUTS, Call, Inputs, Layer, dense_call, fastest_layout, with_copies
from .record import Record
from .report import Layout, Table, detail_column, number_column, rate_column, share_column, speedup_column, time_column
from .suite import Case, Selection, Suite, Unavailable, Variant

QUICK_BLOCKS = 1
"""How many of a case's block sizes the short benchmark takes."""

ONE_CALL = Effort(seconds=0, sample=1e-5, least=1, most=1)
"""For choosing how torch's BSR is called: 2048x2048 at half the blocks takes a second."""


def variants(case: Case, selection: Selection) -> list[Variant]:
    """The dense layer, the copy, and for each pattern ours in blocks, ours by elements, and torch's BSR."""
    layer = Layer.of(case)
    inputs = Inputs(layer, dtype=getattr(torch, case.dtype), device=case.device)
    result = [Way("dense", functools.partial(dense, case, inputs)), Way("copy", functools.partial(copy, case, inputs))]
    own = case.parameters["blocks"][case.dtype]
    blocks = selection.blocks or (own[:QUICK_BLOCKS] if selection.quick else own)
    sparsities = QUICK_SPARSITIES if selection.quick else case.parameters["sparsities"]
    by_elements = selection.sparsities or case.parameters["fine_sparsities"]
    ours = Ours(case.pass_, inputs, case.parameters.get("layout"))
    may_bsr = layer.linear and case.pass_ == "forward" and (case.dtype == "float32" or case.device == "cuda")
    for pattern in patterns(ours, blocks, selection.sparsities or sparsities):
        result.append(pattern.way("block", pattern.in_blocks))
        if pattern.percent not in by_elements:
            continue
        result.append(pattern.way("fine-grained", pattern.by_elements))
        if may_bsr and pattern.has_whole_squares and (selection.blocks or pattern.block == blocks[0]):
            result.append(pattern.way("torch-bsr", functools.partial(bsr, pattern), ours=False))
    return variants_of(case, result)


def dense(case: Case, inputs: Inputs) -> Built:
    """torch's layer in eager mode, in the fastest of its layouts."""
    layer = inputs.layer
    if layer.linear:
        calls, layout = _fastest_linear(layer, case.pass_, inputs)
    else:
        calls, layout = fastest_layout(case.pass_, inputs, inputs.input.dtype)
    details = {**layer.details(), "gflop": layer.gflop(inputs.weight.numel(), case.pass_), "layout": layout}
    details |= precision(case, convolution=not layer.linear)
    return Built(calls, torch.inference_mode, details=details)


def _fastest_linear(layer: Layer, pass_: str, inputs: Inputs) -> tuple[list[Call], str]:
    calls: dict[str, list[Call]] = {"contiguous": [], "transposed": []}
    for one in inputs.sets(inputs.weight.numel() * inputs.weight.element_size()):
        input, grad_output = one.tensors(pass_)
        stored = inputs.weight if one is inputs else inputs.weight.clone()
        for name, weight in (("contiguous", stored), ("transposed", stored.t().contiguous().t())):
            calls[name].append(dense_call(layer, pass_, input, weight, grad_output))
    with torch.inference_mode():
        layout = fastest(inputs.device, {name: in_turn(some) for name, some in calls.items()}, LAYOUTS)
    return calls[layout], layout


def copy(case: Case, inputs: Inputs) -> Built:
    """What the pass reads, read once, and what it writes, written once, its weight and gradient to that apart."""
    calls = [_copy_call(case, inputs) for _ in range(sets_beyond_cache(case.device, inputs.activation_bytes))]
    return Built(calls, torch.inference_mode, details=inputs.layer.details())


def _copy_call(case: Case, inputs: Inputs) -> Call:
    layer = inputs.layer
    sizes = [torch.Size(shape).numel() for shape in (layer.input_shape, layer.output_shape)]
    read, other = (inputs.weight.new_ones(size + size % 2) for size in sizes)

    def gradient() -> tuple[Tensor, ...]:
        return _read(read), _read(other)

    def moved(source: Tensor, target: Tensor) -> Tensor:
        both = min(source.numel(), target.numel())
        written = torch.empty_like(target)
        written[:both].copy_(source[:both])
        if both < source.numel():
            _read(source[both:])
        elif both < target.numel():
            written[both:].zero_()
        return written

    passes: dict[str, Call] = {
        "forward": lambda: (moved(read, other),),
        "input-gradient": lambda: (moved(other, read),),
        "weight-gradient": gradient,
    }
    if case.pass_ in passes:
        return passes[case.pass_]
    return lambda: tuple(result for call in passes.values() for result in call())


def _read(tensor: Tensor) -> Tensor:
    """Reads an even number of elements, at the rate of memory in every dtype."""
    return tensor.view(torch.int32).amax()


def bsr(pattern: Pattern) -> Built:
    """torch's product with a weight of its layout BSR, in the fastest of the ways to write it."""
    inputs = pattern.ours.inputs
    sets = [(one.input, own.to_sparse_bsr()) for one, own in with_copies(inputs, pattern.weight)]  # type: ignore[attr-defined]
    ways: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "linear": F.linear,
        "product": lambda input, weight: (weight @ input.t()).t().contiguous(),
    }
    if inputs.device == "cuda":
        ways["triton"] = bsr_linear()
    working: dict[str, list[Call]] = {}
    reasons = []
    for name, way in ways.items():
        calls = [_one(way, input, weight) for input, weight in sets]
        try:
            with torch.no_grad():
                calls[0]()
            working[name] = calls
        except Exception as error:  # which ways there are depends on torch's build
            reasons.append(f"{name}: {error}".splitlines()[0])
    if not working:
        raise Unavailable("; ".join(reasons))
    with torch.no_grad():
        chosen = fastest(inputs.device, {name: in_turn(some) for name, some in working.items()}, ONE_CALL)
    return pattern.ours.built(working[chosen], pattern.weight, torch.no_grad)  # not for inference tensors


def _one(way: Callable[[Tensor, Tensor], Tensor], input: Tensor, weight: Tensor) -> Call:
    return lambda: (way(input, weight),)


class _Blocks(Suite):
    def cases(self, selection: Selection) -> list[Case]:
        """The selected cases; none where zeros are asked for that lie elsewhere than in blocks."""
        return [] if selection.masks or selection.weights else super().cases(selection)


def gflop(record: Record) -> float | None:
    """The work of one call, in GFLOP, as the record has it."""
    return record.details.get("gflop")


def reachable(record: Record) -> float | None:
    """The share reached of min(1 / density, dense time / copy time)."""
    return record.details.get("reachable_fraction")


def _crossovers(title: str, records: Sequence[Record]) -> list[Table]:
    return crossover_table("block", title, records)


SUITE = _Blocks(
    name="blocks",
    about="layers with weights in blocks, beside the dense layer in the same dtype",
    variants=variants,
    baseline="dense",
    ideal=None,
    full=Effort(seconds=0.8, least=3),
    quick=Effort(seconds=0.4, least=3),
    layout=Layout(
        columns=(
            time_column("dense"),
            detail_column("dense", "layout", "layout"),
            time_column("copy"),
            time_column("block"),
            speedup_column("block", "speedup"),
            share_column("block", "of ideal", lambda record: record.ideal_fraction),
            share_column("block", "of reachable", reachable),
            number_column("block", "cap", lambda record: record.details.get("traffic_cap")),
            rate_column("block", "GFLOP/s", gflop),
            speedup_column("fine-grained", "fine-grained"),
            speedup_column("torch-bsr", "torch-bsr"),
        ),
        legend=(
            "Medians of one call; the row says which blocks and how many percent of them are zero. dense: eager torch "
            "in the same dtype, in the fastest of its layouts (named). copy: reads and writes what the pass has to, "
            "and computes nothing. speedup: of block over dense, the median over the rounds. of ideal: that, of "
            "1 / density. of reachable: that, of min(1 / density, cap); cap: dense / copy. GFLOP/s: on what is stored. "
            "fine-grained, torch-bsr: speedups over dense of ours by single elements, and of torch's layout of blocks. "
            "faster from: the sparsity from which on block beats dense, interpolated; <= 50%: wherever it was "
            "measured, > 95%: nowhere."
        ),
        subject="block",
        rivals=("dense", "fine-grained", "torch-bsr"),
        chart="sparsity",
        also=_crossovers,
    ),
    sparse=True,
    in_blocks=True,
    floor="copy",
)
