# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""One layer in every format, all in the dtype of the case: the suite `layers` on CUDA, and `few-rows`.

dense                      torch's, in the fastest of its layouts (cuDNN, which may time its algorithms, and cuBLAS)
copy                       reads and writes the activations of the pass, and computes nothing
dropped:channels-90        torch's, without 90% of its outputs: what dropping channels would leave
sparse:random-90           ours, of single elements
sparse-triton:random-90    the same by one of the ways of `routes.py`, whatever a call would choose; likewise
                           sparse-cuda and sparse-expanded
block:32x32-90             ours, in blocks
torch-bsr:32x32-90         torch's layout BSR, a linear layer's forward
torch-2to4:2to4-50         torch's layout for two of four elements, likewise, in half types
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from ..formats import Unstructured
from . import routes
from .block_layer import Elements, Ours, patterns
from .blocks import bsr, copy, dense
from .defaults import QUICK_MASKS, QUICK_SPARSITIES, SPARSITIES
from .devices import GRAPH_CALLS, Built, Way, variants_of
from .layer import Call, Inputs, Layer, fastest_layout
from .suite import Case, Selection, Unavailable, Variant, Verdict

MOST_SETS = 64
"""Of inputs where the weight alone has to be out of the cache."""


def in_every_format(case: Case, selection: Selection) -> list[Variant]:
    """The variants of `case`; its keys `masks`, `blocks` and `sparsities` say which patterns, or the options.

    Its key `routes` says how single elements are multiplied besides.
    """
    layer = Layer.of(case)
    dtype: torch.dtype = getattr(torch, case.dtype)
    most = MOST_SETS if layer.linear and layer.batch <= 16 else GRAPH_CALLS
    inputs = Inputs(layer, dtype=dtype, device=case.device, most=most)
    ours = Ours(case.pass_, inputs, case.parameters.get("layout"))
    own = QUICK_SPARSITIES if selection.quick else case.parameters.get("sparsities", SPARSITIES)
    percents = tuple(dict.fromkeys(selection.sparsities or own))
    chosen = bool(selection.masks or selection.blocks)
    masks = selection.masks if chosen else case.parameters.get("masks", QUICK_MASKS)
    blocks = selection.blocks if chosen else case.parameters.get("blocks", ())
    ways = [Way("dense", functools.partial(dense, case, inputs)), Way("copy", functools.partial(copy, case, inputs))]
    if layer.groups == 1 and not chosen:
        ways += [
            Way(
                f"dropped:channels-{percent:g}", functools.partial(_dropped, case, inputs, percent / 100), percent / 100
            )
            for percent in percents
        ]
    elements = [Elements(ours, mask, percent) for mask in dict.fromkeys(masks) for percent in percents]
    ways += [one.way("sparse") for one in elements]
    ways += [_by_route(one, inputs, route) for route in case.parameters.get("routes", ()) for one in elements]
    products = layer.linear and case.pass_ == "forward" and case.device == "cuda"
    for pattern in patterns(ours, blocks, percents):
        ways.append(pattern.way("block", pattern.in_blocks))
        if products and pattern.has_whole_squares and pattern.block == blocks[0]:
            ways.append(pattern.way("torch-bsr", functools.partial(bsr, pattern), ours=False))
    if products and not chosen and dtype.itemsize == 2:
        ways.append(Way("torch-2to4:2to4-50", functools.partial(_two_of_four, ours), 0.5, ours=False))
    return variants_of(case, ways)


def _by_route(elements: Elements, inputs: Inputs, route: str) -> Way:
    """Ours by that route."""
    own = elements.way(f"sparse-{route}")

    @contextlib.contextmanager
    def context() -> Iterator[None]:
        with torch.inference_mode(), routes.taking(route):
            yield

    def build() -> Built:
        routes.check(route, inputs.input)
        return dataclasses.replace(own.build(), context=context)

    return dataclasses.replace(own, build=build)


def _dropped(case: Case, inputs: Inputs, sparsity: float) -> Built:
    """torch's layer with the outputs that are left."""
    layer = inputs.layer
    left = max(1, round(layer.weight[0] * (1 - sparsity)))
    small = dataclasses.replace(layer, weight=(left, *layer.weight[1:]))
    few = Inputs(small, inputs.weight[:left].contiguous(), inputs.weight.dtype, inputs.device)
    calls, layout = fastest_layout(case.pass_, few, inputs.weight.dtype)
    details = {**layer.details(), "gflop": small.gflop(few.weight.numel(), case.pass_)}
    return Built(calls, torch.inference_mode, details=details | ({"layout": layout} if layout else {}))


def _two_of_four(ours: Ours) -> Built:
    """torch's product with a weight of which the two largest of each four neighbors in a row are kept."""
    inputs = ours.inputs
    groups = inputs.weight.view(-1, 4)
    kept = torch.zeros_like(groups, dtype=torch.bool).scatter_(1, groups.abs().topk(2, 1).indices, True)
    mask = kept.view_as(inputs.weight)
    weight = torch.where(mask, inputs.weight, 0)
    calls = []
    try:
        for one in inputs.sets(weight.numel() * weight.element_size() * 9 // 16):
            calls.append(_linear(one.input, torch.sparse.to_sparse_semi_structured(weight)))
        with torch.no_grad():
            calls[0]()
    except Exception as reason:  # it depends on torch's build, and on the shape
        raise Unavailable(f"{reason}".splitlines()[0]) from reason
    judged = Unstructured.from_dense(inputs.weight, mask)

    def judge(results: tuple[Tensor, ...]) -> Verdict:
        return ours.oracle.judge(results, judged)

    layer = inputs.layer
    return Built(calls, torch.no_grad, None, judge, {**layer.details(), "gflop": layer.gflop(judged.nnz, "forward")})


def _linear(input: Tensor, weight: Tensor) -> Call:
    return lambda: (F.linear(input, weight),)
