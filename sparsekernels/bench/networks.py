# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The suite `networks`: whole networks with pruned weights, beside the dense network.

A case is a network, a pass and a batch. Its variants are the dense network in float32 (the baseline) and in bfloat16;
"dense-fused" and, for forward passes in the full benchmark, "dense-fused-bf16", the dense network as the graph that a
converted one runs as: what folding BatchNorm, fused sums and ReLUs and our pooling give, or in training BatchNorm, sum,
ReLU and dropout in one step, is not what zeros give; and for each
pattern of nonzeros two that `sparsekernels.convert` makes: "dropped:random-90", in which layers may lose filters and
channels that are all zero and nothing else, and "converted:random-90", in which each layer is what was measured to be
fastest. Every convolution and Linear is pruned to the same share, save depthwise convolutions. With --block 32x32 zeros
lie in such blocks, of the least norms, instead: "converted:32x32-90", and in bfloat16 "converted-bf16:32x32-90", whose
dense network is "dense-bf16".

The dense network is eager torch in the faster of two layouts, contiguous or channels_last, images and weights in that
layout beforehand. In bfloat16, a forward pass has weights and images in that type; a training step runs under autocast,
in which `convert` is called as well. Converted networks are given images in the layout that the dense one is faster in,
and for a step also in the other, and count with the faster. A step is a forward and backward pass of the cross entropy,
and SGD with momentum 0.9; forward passes are in evaluation mode and without gradients.

Beside the measured speedup stands the one that sparse momentum's authors estimate (Dettmers & Zettlemoyer, 2019;
arXiv:1907.04840, and their program): of the time t of each layer of the dense network, there is left

    channels:      t * (1 - share of the weight's input channels that are all zero) * (1 - share of its input's maps
                   that are all zero)
    fine-grained:  t * density of the input * density of the weight

and what is not a layer costs nothing. That share is listed as well.

On CUDA the variants are others: `network_formats.py`.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..conversion import Report, convert
from ..conversion.candidates import decisions, dropping, of_frozen
from ..conversion.graph.attach import attach
from ..conversion.graph.base import Graph
from ..conversion.graph.inference import InferenceGraph
from ..conversion.graph.training import TrainingGraph
from ..conversion.graph.untraceable import Untraceable
from ..pruning import PRUNINGS
from ..timing import Effort, fastest
from .defaults import MEMORY_FORMATS, QUICK_MASKS, QUICK_SPARSITIES, SPARSITIES
from .network import LAYOUTS, Network, call_of, without_gradients
from .network_checks import Forward, check_forward, check_step, check_training
from .network_formats import in_every_format
from .record import Record
from .report import Layout, detail_column, number_column, ratio_column, share_column, speedup_column, time_column
from .suite import Case, Prepared, Selection, Suite, Unavailable, Variant, Verdict

QUICK_DROPPED = 95.0
"""Below it, random zeros leave hardly a channel empty: the short benchmark does not look for any."""

KINDS: Mapping[str, tuple[str, ...]] = {"dropped": dropping(), "converted": decisions()[1:]}
"""The variants that are pruned, and what their layers may become."""

IN_BLOCKS: Mapping[str, tuple[tuple[str, torch.dtype], ...]] = {
    "forward": (("converted", torch.float32), ("converted-bf16", torch.bfloat16)),
    "step": (("converted", torch.float32), ("converted-bf16", torch.bfloat16)),
}
"""By the pass, the variants of networks whose zeros lie in blocks."""


def variants(case: Case, selection: Selection) -> list[Variant]:
    """The dense network in two dtypes, and two conversions for each pattern; on CUDA, `in_every_format`."""
    if case.device == "cuda":
        return in_every_format(case, selection)
    network = Network(case)
    result = [
        Variant("dense", functools.partial(_dense, network, torch.float32)),
        Variant("dense-bf16", functools.partial(_dense, network, torch.bfloat16)),
    ]
    if case.pass_ == "step":
        result.append(Variant("dense-fused", functools.partial(_fused_step, network)))
    else:
        result.append(Variant("dense-fused", functools.partial(_fused, network, torch.float32)))
        if not selection.quick:
            result.append(Variant("dense-fused-bf16", functools.partial(_fused, network, torch.bfloat16)))
    masks = case.parameters.get("masks", PRUNINGS)
    quick_masks = case.parameters.get("masks", QUICK_MASKS)
    sparsities = case.parameters.get("quick_sparsities", QUICK_SPARSITIES) if selection.quick else SPARSITIES
    own = () if selection.blocks else quick_masks if selection.quick else masks
    for kind in dict.fromkeys(selection.masks or own):
        chosen = selection.sparsities or sparsities
        for percent in dict.fromkeys(chosen):
            for name in KINDS:
                if selection.quick and name == "dropped" and percent < QUICK_DROPPED:
                    continue
                sparsity = round(percent / 100, 7)
                make = functools.partial(_pruned, network, name, kind, sparsity)
                result.append(Variant(f"{name}:{kind}-{percent:g}", make, sparsity))
    for kind in dict.fromkeys(selection.blocks):
        for percent in dict.fromkeys(selection.sparsities or sparsities):
            sparsity = round(percent / 100, 7)
            for name, dtype in IN_BLOCKS[case.pass_]:
                make = functools.partial(_pruned, network, "converted", kind, sparsity, dtype)
                result.append(Variant(f"{name}:{kind}-{percent:g}", make, sparsity))
    return result


def _dense(network: Network, dtype: torch.dtype) -> Prepared:
    """torch's network in eager mode, in the faster of its layouts."""
    layout, call = network.fastest(dtype)
    details: dict[str, Any] = {"batch": network.batch, "layout": layout}
    if dtype == torch.float32:
        details["not_layers"] = network.rest()
    return Prepared(call, warm=True, details=details)


def _fused(network: Network, dtype: torch.dtype) -> Prepared:
    """The dense network as a graph, in the faster of the layouts that a graph may have."""
    forwards: dict[str, Forward] = {}
    layout, _ = network.fastest(dtype)
    model = copy.deepcopy(network.model).eval().to(dtype)
    images = network.images.to(dtype).contiguous(memory_format=MEMORY_FORMATS[layout])
    model.to(memory_format=MEMORY_FORMATS[layout])  # type: ignore[call-overload]
    for name in {"contiguous", layout}:
        engine = InferenceGraph(model, images.dtype, images.device, MEMORY_FORMATS[name], frozen=True)
        try:
            engine.prepare()
        except Untraceable as reason:
            raise Unavailable(str(reason)) from reason
        forwards[name] = functools.partial(_by_graph, model, engine)
    calls = {name: functools.partial(without_gradients, forward, images) for name, forward in forwards.items()}
    chosen = fastest(calls, LAYOUTS)
    check = functools.partial(check_forward, network, forwards[chosen], network.model, images)
    return Prepared(calls[chosen], warm=True, check=check, details={"batch": network.batch, "layout": chosen})


def _by_graph(model: nn.Module, engine: Graph, images: Tensor) -> Tensor:
    """A forward pass of `model`, which has to stay alive for that."""
    result: Tensor = engine(images)
    return result


def _fused_step(network: Network) -> Prepared:
    """The dense network as a training graph, in contiguous layout, which that is made for."""
    dense = copy.deepcopy(network.model).train()
    model = copy.deepcopy(dense)
    engine = TrainingGraph(model, network.images.dtype, network.images.device)
    try:
        engine.prepare()
    except Untraceable as reason:
        raise Unavailable(str(reason)) from reason
    attach(model, engine.recipe, engine)
    check = functools.partial(check_training, network, model, dense)
    details = {"batch": network.batch, "layout": "contiguous"}
    return Prepared(call_of(network, model, network.images), check=check, details=details)


def _pruned(network: Network, name: str, kind: str, sparsity: float, dtype: torch.dtype = torch.float32) -> Prepared:
    """A converted network."""
    dense = network.pruned(kind, sparsity)
    found: dict[str, tuple[nn.Module, Tensor, Report]] = {}
    best, _ = network.fastest(dtype)
    autocast = network.pass_ == "step" and dtype != torch.float32
    stored = torch.float32 if autocast else dtype
    for layout in (best,) if network.pass_ == "forward" else MEMORY_FORMATS:
        model = copy.deepcopy(dense).to(stored)
        images = network.images.to(stored).contiguous(memory_format=MEMORY_FORMATS[layout])
        model.to(memory_format=MEMORY_FORMATS[layout])  # type: ignore[call-overload]
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            is_frozen = network.pass_ == "forward"
            offered = [one for one in KINDS[name] if is_frozen or one not in of_frozen()]
            report = convert(model, images, decisions=offered, frozen=is_frozen)
        found[layout] = model, images, report
    layout = best
    if len(found) > 1:  # of copies, since steps change them
        copies = {name: call_of(network, copy.deepcopy(one[0]), one[1], autocast) for name, one in found.items()}
        layout = fastest(copies, LAYOUTS)
    model, images, report = found[layout]

    def check() -> Verdict:
        if autocast:
            return check_training(network, model, dense, autocast)
        if network.pass_ == "step":
            return check_step(network, model, dense)
        return check_forward(network, model, dense, images)

    details = {
        "batch": network.batch,
        "layout": layout,
        "layers": _counts(report),
    }
    if dtype == torch.float32:
        details["estimated_speedup"] = network.estimate(name, dense)
    return Prepared(call_of(network, model, images, autocast), check=check, details=details)


def _counts(report: Report) -> str:
    """How many layers were replaced, of how many: "15/16"."""
    return f"{len(report.converted)}/{len(report.layers)}"


def estimate_of(record: Record) -> float | None:
    """The speedup that the formula gives."""
    return record.details.get("estimated_speedup")


SUITE = Suite(
    name="networks",
    about="whole networks with pruned weights, beside the dense network",
    variants=variants,
    baseline="dense",
    ideal=None,
    full=Effort(seconds=10),
    quick=Effort(seconds=0.8, least=4),
    layout=Layout(
        columns=(
            time_column("dense"),
            detail_column("dense", "layout", "layout"),
            share_column("dense", "not layers", lambda record: record.details.get("not_layers")),
            time_column("dense-bf16"),
            speedup_column("dense-fused", "fused"),
            speedup_column("dense-fused-bf16", "fused-bf16"),
            speedup_column("sparse", "fine-grained"),
            speedup_column("block", "in blocks"),
            speedup_column("dropped", "dropped"),
            number_column("dropped", "est. dropped", estimate_of),
            time_column("converted"),
            detail_column("converted", "layers", "layers"),
            speedup_column("converted", "speedup"),
            number_column("converted", "est. speedup", estimate_of),
            ratio_column("dense-bf16", "converted"),
            time_column("converted-bf16"),
            detail_column("converted-bf16", "layers", "layers in bf16"),
            ratio_column("dense-bf16", "converted-bf16"),
        ),
        legend=(
            "Medians of one pass of the batch, float32 except those with bf16; the row says where the zeros are and "
            "how many percent. dense: eager torch in the faster of two layouts (named); not layers: the share of its "
            "time that is neither Linear nor convolution, depthwise ones being no layers here. fused, fused-bf16: "
            "speedup of the same graph as a converted network's, without zeros. "
            "dropped: speedup without filters and channels that are all zero. "
            "converted: by sparsekernels.convert; 15/16: 15 of 16 layers were replaced. est.: what sparse "
            "momentum's formula gives. On CUDA all of a row are in its dtype; fine-grained, in blocks: speedups where "
            "every layer is so, whatever it gains. dense-bf16 / converted: of times; above 1 the zeros beat the "
            "narrower type."
        ),
        subject="converted",
        rivals=("dense", "dense-bf16", "dense-fused", "dense-fused-bf16"),
        chart="sparsity",
    ),
    sparse=True,
    in_blocks=True,
)
