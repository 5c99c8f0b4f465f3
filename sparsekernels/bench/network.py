# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The network of a case of the suite `networks`: dense in its layouts, pruned, and what its layers take."""

from __future__ import annotations

import contextlib
import copy
import functools
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..pruning import largest_blocks, prunable, prune_, prune_blocks_
from ..timing import Effort
from .defaults import MEMORY_FORMATS
from .devices import PLACES, fastest
from .models import MODELS, calibrate_
from .suite import Case
from .suite_keys import block_of

LAYOUTS = Effort(seconds=0.2, least=3, most=30)
"""For choosing the faster memory format."""

Call = Callable[[], object]


@dataclass(frozen=True)
class Layer:
    """What the estimate is made from: the time of a layer of the dense network, and how full its input is."""

    seconds: float
    input_density: float
    zero_maps: float


class Network:
    """The network of a case, dense, with its images; everything is made when first asked for."""

    def __init__(self, case: Case) -> None:
        assert case.batch is not None
        self.device = case.device
        self._fastest: dict[torch.dtype, tuple[str, Call]] = {}
        self._pruned: dict[tuple[str, float], nn.Module] = {}
        self.name, self.pass_, self.batch = case.name.partition("/")[2].partition("@")[0], case.pass_, case.batch

    @functools.cached_property
    def model(self) -> nn.Module:
        return MODELS[self.name].make().to(PLACES[self.device])

    @functools.cached_property
    def images(self) -> Tensor:
        return self.random_images(1, self.batch)

    def random_images(self, seed: int, batch: int | None = None) -> Tensor:
        """Of the network's size; without a batch as many as calibration takes."""
        return MODELS[self.name].images(batch, seed=seed).to(PLACES[self.device])

    @functools.cached_property
    def labels(self) -> Tensor:
        labels = torch.randint(MODELS[self.name].classes, (self.batch,), generator=torch.Generator().manual_seed(2))
        return labels.to(PLACES[self.device])

    def pruned(self, kind: str, sparsity: float) -> nn.Module:
        """A copy, pruned, its BatchNorms with the statistics that it has then; kept until another is asked for.

        kind: of `pruning.PRUNINGS`, a block, "32x32", or "channels" for whole filters.
        """
        if (kind, sparsity) not in self._pruned:
            model = copy.deepcopy(self.model)
            if kind[:1].isdecimal():
                prune_blocks_(model, block_of(kind), sparsity, least_in_row=1)  # or no result depends on the images
            elif kind == "channels":
                prune_filters_(model, sparsity)
            else:
                prune_(model, kind, sparsity)
            calibrate_(model, self.random_images(3), seed=None)
            self._pruned = {(kind, sparsity): model.train(self.pass_ == "step")}
        return self._pruned[kind, sparsity]

    @functools.cached_property
    def layers(self) -> dict[str, Layer]:
        """Of the dense network, by name: what each takes within a pass, and what it is given."""
        return self.least_pass[1]

    @functools.cached_property
    def least_pass(self) -> tuple[float, dict[str, Layer]]:
        """The seconds of the shortest of some passes of the dense network, and its layers within that very pass.

        In a step with their part of the backward pass. Timed apart, the layers of a ResNet-50 took from 63 to 92% of
        what the whole took; noise came in twice. What layers are given is that of a pass in evaluation mode before,
        which warms up.
        """
        layout, _ = self.fastest(torch.float32)
        model = copy.deepcopy(self.model).eval()
        model.to(memory_format=MEMORY_FORMATS[layout])  # type: ignore[call-overload]
        images = self.images.contiguous(memory_format=MEMORY_FORMATS[layout])
        shares = _shares_of_inputs(model, images)
        call = call_of(self, model.train(self.pass_ == "step"), images)
        if self.pass_ == "step":
            call()
        watch = _Watch(model)
        shortest: tuple[float, dict[str, float]] = float("inf"), {}
        begin, rounds = time.perf_counter(), 0
        while rounds < 3 or (rounds < 30 and time.perf_counter() - begin < 0.5):
            watch.seconds = {}
            start = time.perf_counter()
            call()
            whole = time.perf_counter() - start
            if whole < shortest[0]:
                shortest = whole, watch.seconds
            rounds += 1
        whole, seconds = shortest
        return whole, {name: Layer(seconds[name], *shares[name]) for name in seconds}

    def estimate(self, kind: str, model: nn.Module) -> float:
        """The speedup that sparse momentum's formula gives for the pruned `model`."""
        dense = left = 0.0
        for name, module in prunable(model):
            if name not in self.layers:
                continue
            layer, used = self.layers[name], module.weight.detach() != 0
            channels = used.transpose(0, 1).flatten(1).any(1).double().mean().item()
            if kind == "dropped":
                share = channels * (1 - layer.zero_maps)
            else:
                share = layer.input_density * used.double().mean().item()
            dense += layer.seconds
            left += layer.seconds * share
        return float(f"{dense / left:.4g}") if left > 0 else float("inf")

    def fastest(self, dtype: torch.dtype) -> tuple[str, Call]:
        """The layout in which the dense network in `dtype` takes the least time, and its pass in that layout."""
        if dtype not in self._fastest:
            training = self.pass_ == "step"
            calls: dict[str, Call] = {}
            for name, format in MEMORY_FORMATS.items():
                model, images = copy.deepcopy(self.model).train(training), self.images
                if not training:
                    model, images = model.to(dtype), images.to(dtype)
                model.to(memory_format=format)  # type: ignore[call-overload]
                images = images.contiguous(memory_format=format)
                calls[name] = call_of(self, model, images, autocast=training and dtype != torch.float32)
            layout = fastest(self.device, calls, LAYOUTS)
            self._fastest[dtype] = layout, calls[layout]
        return self._fastest[dtype]

    def rest(self) -> float:
        """The share of the dense network's time that is none of its layers'."""
        whole, layers = self.least_pass
        return float(f"{max(0.0, 1 - sum(layer.seconds for layer in layers.values()) / whole):.3g}")


@torch.no_grad()
def prune_filters_(model: nn.Module, sparsity: float) -> None:
    """Set that share of the outputs of each layer but the last to zero, those of the least norms."""
    *layers, _ = prunable(model)
    for _, module in layers:
        weight = module.weight
        rows = weight.detach().flatten(1).norm(dim=1)[:, None]
        weight.mul_(largest_blocks(rows, (1, 1), sparsity).view(-1, *[1] * (weight.dim() - 1)))


def _shares_of_inputs(model: nn.Module, images: Tensor) -> dict[str, tuple[float, float]]:
    """Of each `prunable` layer, by name: the density of its input, and the share of its maps that are all zero."""
    found: dict[str, tuple[float, float]] = {}

    def look(name: str, input: Tensor) -> None:
        maps = input.reshape(*input.shape[:2], -1).count_nonzero(2)
        found[name] = int(maps.sum()) / input.numel(), 1 - int(maps.count_nonzero()) / maps.numel()

    handles = [
        module.register_forward_pre_hook(lambda _, args, name=name: look(name, args[0]))
        for name, module in prunable(model)
    ]
    with torch.inference_mode():
        model(images)
    for handle in handles:
        handle.remove()
    return found


class _Watch:
    """Looks at the clock before and after each `prunable` layer, forward and, where there are gradients, backward."""

    def __init__(self, model: nn.Module) -> None:
        self.seconds: dict[str, float] = {}
        self._begun: dict[str, float] = {}
        for name, module in prunable(model):
            module.register_forward_pre_hook(lambda _, args, name=name: self._begin(name))
            module.register_forward_hook(functools.partial(self._after, name))

    def _begin(self, name: str) -> None:
        self._begun[name] = time.perf_counter()

    def _end(self, name: str) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - self._begun[name]

    def _after(self, name: str, module: nn.Module, args: object, output: Tensor) -> None:
        self._end(name)
        if output.grad_fn is not None:
            output.grad_fn.register_prehook(lambda _: self._begin(name))
            output.grad_fn.register_hook(lambda *_: self._end(name))


def without_gradients(module: Callable[[Tensor], object], input: Tensor) -> object:
    with torch.inference_mode():
        return module(input)


def call_of(network: Network, model: nn.Module, images: Tensor, autocast: bool = False) -> Call:
    """The pass of `network` by `model`, which is in the mode that it asks for."""
    if network.pass_ == "forward":
        return functools.partial(without_gradients, model, images)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    context: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext
    if autocast:
        context = functools.partial(torch.autocast, images.device.type, torch.bfloat16)

    def step() -> None:
        optimizer.zero_grad()
        with context():
            loss = F.cross_entropy(model(images), network.labels)
        loss.backward()
        optimizer.step()

    return step
