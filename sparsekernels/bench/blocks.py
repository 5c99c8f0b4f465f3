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
1 / density stands that of min(1 / density, dense time / copy time).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..timing import Effort, fastest
from .block_layer import Ours, Pattern, patterns
from .crossover import crossover_table
from .defaults import QUICK_SPARSITIES
from .layer import LAYOUTS, Call, Inputs, Layer, dense_call, fastest_layout
from .record import Record
from .report import Layout, Table, detail_column, rate_column, share_column, speedup_column, time_column
from .suite import Case, Prepared, Selection, Suite, Unavailable, Variant

QUICK_BLOCKS = 1
"""How many of a case's block sizes the short benchmark takes."""

ONE_CALL = Effort(seconds=0, sample=1e-5, least=1, most=1)
"""For choosing how torch's BSR is called: 2048x2048 at half the blocks takes a second."""


def variants(case: Case, selection: Selection) -> list[Variant]:
    """The dense layer, the copy, and for each pattern ours in blocks, ours by elements, and torch's BSR."""
    layer = Layer.of(case)
    inputs = Inputs(layer, dtype=getattr(torch, case.dtype))
    result = [
        Variant("dense", functools.partial(_dense, case, inputs)),
        Variant("copy", functools.partial(_copy, case, inputs)),
    ]
    own = case.parameters["blocks"][case.dtype]
    blocks = selection.blocks or (own[:QUICK_BLOCKS] if selection.quick else own)
    sparsities = QUICK_SPARSITIES if selection.quick else case.parameters["sparsities"]
    by_elements = selection.sparsities or case.parameters["fine_sparsities"]
    ours = Ours(case.pass_, inputs, case.parameters.get("layout"))
    may_bsr = layer.linear and (case.pass_, case.dtype) == ("forward", "float32")
    for pattern in patterns(ours, blocks, selection.sparsities or sparsities):
        result.append(pattern.variant("block", pattern.in_blocks))
        if pattern.percent not in by_elements:
            continue
        result.append(pattern.variant("fine-grained", pattern.by_elements))
        if may_bsr and pattern.has_whole_squares and (selection.blocks or pattern.block == blocks[0]):
            result.append(pattern.variant("torch-bsr", functools.partial(_bsr, pattern)))
    return result


def _dense(case: Case, inputs: Inputs) -> Prepared:
    """torch's layer in eager mode, in the fastest of its layouts."""
    layer = inputs.layer
    if layer.linear:
        call, layout = _fastest_linear(layer, case.pass_, inputs)
    else:
        call, layout = fastest_layout(case.pass_, inputs, inputs.input.dtype)
    details = {**layer.details(), "gflop": layer.gflop(inputs.weight.numel(), case.pass_), "layout": layout}
    return Prepared(call, context=torch.inference_mode, details=details)


def _fastest_linear(layer: Layer, pass_: str, inputs: Inputs) -> tuple[Call, str]:
    input, grad_output = inputs.tensors(pass_)
    weights = {"contiguous": inputs.weight, "transposed": inputs.weight.t().contiguous().t()}
    calls = {name: dense_call(layer, pass_, input, weight, grad_output) for name, weight in weights.items()}
    with torch.inference_mode():
        layout = fastest(calls, LAYOUTS)
    return calls[layout], layout


def _copy(case: Case, inputs: Inputs) -> Prepared:
    """What the pass reads, read once, and what it writes, written once, its weight and gradient to that apart."""
    layer = inputs.layer
    sizes = [torch.Size(shape).numel() for shape in (layer.input_shape, layer.output_shape)]
    read = torch.ones(sizes[0] + sizes[0] % 2, dtype=inputs.input.dtype)
    other = torch.ones(sizes[1] + sizes[1] % 2, dtype=inputs.input.dtype)
    if case.pass_ == "weight-gradient":
        return Prepared(lambda: (_read(read), _read(other)), context=torch.inference_mode, details=layer.details())
    source, target = (read, other) if case.pass_ == "forward" else (other, read)
    both = min(source.numel(), target.numel())

    def copy() -> Tensor:
        written = torch.empty_like(target)
        written[:both].copy_(source[:both])
        if both < source.numel():
            _read(source[both:])
        elif both < target.numel():
            written[both:].zero_()
        return written

    return Prepared(copy, context=torch.inference_mode, details=layer.details())


def _read(tensor: Tensor) -> Tensor:
    """Reads an even number of elements, at the rate of memory in every dtype."""
    return tensor.view(torch.int32).amax()


def _bsr(pattern: Pattern) -> Prepared:
    """torch's product with a weight of its layout BSR, in the faster of two ways to write it."""
    weight, input = pattern.weight.to_sparse_bsr(), pattern.ours.inputs.input
    calls: dict[str, Call] = {
        "linear": lambda: (F.linear(input, weight),),
        "product": lambda: ((weight @ input.t()).t().contiguous(),),
    }
    working: dict[str, Call] = {}
    reasons = []
    for name, call in calls.items():
        try:
            with torch.no_grad():
                call()
            working[name] = call
        except RuntimeError as error:  # which ways there are depends on torch's build
            reasons.append(f"{name}: {error}".splitlines()[0])
    if not working:
        raise Unavailable("; ".join(reasons))
    with torch.no_grad():
        way = fastest(working, ONE_CALL)
    return pattern.ours.judged(working[way], pattern.weight, torch.no_grad)  # not for inference tensors


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
            rate_column("block", "GFLOP/s", gflop),
            speedup_column("fine-grained", "fine-grained"),
            speedup_column("torch-bsr", "torch-bsr"),
        ),
        legend=(
            "Medians of one call; the row says which blocks and how many percent of them are zero. dense: eager torch "
            "in the same dtype, in the fastest of its layouts (named). copy: reads and writes what the pass has to, "
            "and computes nothing. speedup: of block over dense, the median over the rounds. of ideal: that, of "
            "1 / density. of reachable: that, of min(1 / density, dense / copy). GFLOP/s: on the stored elements only. "
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
