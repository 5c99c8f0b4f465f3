# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""A whole network in every format, all in the dtype of the case: the suite `networks` on CUDA.

    dense                  torch's, in the faster of two layouts
    dropped:channels-90    without 90% of the filters of each layer but the last: `nn.ChannelDroppedConv2d` and the like
    sparse:random-90       every layer of single elements
    block:32x32-90         every layer in blocks
    converted:random-90    as `sparsekernels.convert` leaves it, which takes what it measured to be faster; likewise
                           converted:32x32-90

In the rows of a format every layer has it, whatever it gains; a layer that has no zeros to leave out stays dense. In
bfloat16 and float16 a forward pass has weights and images in that type, and a training step runs under autocast. Each
variant is measured in the faster of the two layouts of images.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..conversion import convert
from ..nn import ChannelDroppedConv2d, ChannelDroppedLinear, SparseConv2d, SparseLinear
from ..pruning import prunable
from .defaults import MEMORY_FORMATS, QUICK_SPARSITIES
from .devices import Built, Way, autotuned, fastest, precision, variants_of
from .network import LAYOUTS, Network, call_of
from .network_checks import CHECKED_IMAGES, check_forward, check_training
from .suite import Case, Selection, Unavailable, Variant, Verdict
from .suite_keys import block_of

Change = Callable[[nn.Module, Tensor], object]
"""Makes a network what the variant says, in place; given images of the case."""


def in_every_format(case: Case, selection: Selection) -> list[Variant]:
    """The variants of `case`; its keys `blocks` and `sparsities` say which patterns, or the options."""
    network = Network(case)
    percents = tuple(dict.fromkeys(selection.sparsities or case.parameters.get("sparsities", QUICK_SPARSITIES)))
    chosen = bool(selection.masks or selection.blocks)
    blocks = tuple(dict.fromkeys(selection.blocks if chosen else case.parameters.get("blocks", ())))
    masks = tuple(dict.fromkeys(selection.masks if chosen else ("random",)))
    ways = [Way("dense", functools.partial(_built, case, network, lambda: network.model, None))]
    frozen = case.pass_ == "forward"
    for percent in percents:
        rows: list[tuple[str, str, Change]] = [] if chosen else [("dropped", "channels", _without_channels)]
        for mask in masks:
            rows += [("sparse", mask, _sparse), ("converted", mask, functools.partial(_converted, frozen))]
        for block in blocks:
            in_blocks = functools.partial(_in_blocks, block_of(block))
            rows += [("block", block, in_blocks), ("converted", block, functools.partial(_converted, frozen))]
        share = round(percent / 100, 7)
        for name, kind, change in rows:
            dense = functools.partial(network.pruned, kind, share)
            build = functools.partial(_built, case, network, dense, change)
            ways.append(Way(f"{name}:{kind}-{percent:g}", build, share))
    return variants_of(case, ways)


def _replaced(model: nn.Module, make: Callable[[Any], nn.Module]) -> None:
    """Every layer by what `make` makes of it; one that it refuses, having no such zeros, stays."""
    for name, module in list(prunable(model)):
        parent, _, own = name.rpartition(".")
        try:
            made = make(module)
        except ValueError:
            continue
        setattr(model.get_submodule(parent), own, made)


def _sparse(model: nn.Module, images: Tensor) -> None:
    _replaced(model, lambda one: (SparseLinear if isinstance(one, nn.Linear) else SparseConv2d).from_dense(one))


def _in_blocks(block: tuple[int, int], model: nn.Module, images: Tensor) -> None:
    def make(one: Any) -> nn.Module:
        kind: Any = SparseLinear if isinstance(one, nn.Linear) else SparseConv2d
        return kind.from_dense(one, format="block", block=block)  # type: ignore[no-any-return]

    _replaced(model, make)


def _without_channels(model: nn.Module, images: Tensor) -> None:
    def make(one: Any) -> nn.Module:
        if one.weight.flatten(1).any(1).all():
            raise ValueError("no filter is zero")
        return (ChannelDroppedLinear if isinstance(one, nn.Linear) else ChannelDroppedConv2d).from_dense(one)

    _replaced(model, make)


def _converted(frozen: bool, model: nn.Module, images: Tensor) -> None:
    report = convert(model, images, frozen=frozen)
    if not report.converted:
        raise Unavailable("convert left every layer as it was")


def _built(case: Case, network: Network, dense: Callable[[], nn.Module], change: Change | None) -> Built:
    """A network of its own, so that steps change no other; what is judged comes out of a copy of it."""
    training, dtype = network.pass_ == "step", getattr(torch, case.dtype)
    autocast = training and dtype != torch.float32
    stored = torch.float32 if autocast else dtype
    origin = dense()
    made: dict[str, tuple[nn.Module, Tensor]] = {}
    for layout, format in MEMORY_FORMATS.items():
        model = copy.deepcopy(origin).to(stored).train(training)
        model.to(memory_format=format)  # type: ignore[call-overload]
        images = network.images.to(stored).contiguous(memory_format=format)
        if change is not None:
            with torch.autocast(network.device, torch.bfloat16, enabled=autocast):
                change(model, images)
        made[layout] = model, images
    trials = {name: call_of(network, copy.deepcopy(model), images, autocast) for name, (model, images) in made.items()}
    layout = fastest(network.device, trials, LAYOUTS)
    model, images = made[layout]
    untrained = copy.deepcopy(model) if training else model

    def judge(logits: Any) -> Verdict:
        with autotuned(network.device, False):
            if training:
                return check_training(network, untrained, origin, autocast)
            assert network.batch >= CHECKED_IMAGES  # else others than these would be asked for
            return check_forward(network, lambda _: logits, origin, images)

    details = {"batch": network.batch, "layout": layout, **precision(case, convolution=True)}
    call = call_of(network, model, images, autocast)
    return Built([call], judge=judge, details=details, graphed=1)
