# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The suite `networks`: whole networks with pruned weights, beside the dense network.

A case is a network, a pass and a batch. Its variants are the dense network in float32 (the baseline) and in bfloat16;
"dense-fused" and, for forward passes in the full benchmark, "dense-fused-bf16", the dense network as the graph that a
converted one runs as: what folding BatchNorm, fused sums and ReLUs and our pooling give, or in training BatchNorm, sum,
ReLU and dropout in one step, is not what zeros give; and for each
pattern of nonzeros two that `sparsekernels.convert` makes: "dropped:random-90", in which layers may lose filters and
channels that are all zero and nothing else, and "converted:random-90", in which each layer is what was measured to be
fastest. Every convolution and Linear is pruned to the same share, save depthwise convolutions.

The dense network is eager torch in the faster of two layouts, contiguous or channels_last, images and weights in that
layout beforehand. In bfloat16, a forward pass has weights and images in that type; a training step runs under
autocast. Converted networks are given float32 in the layout that the dense one is faster in, and for a step also in the
other, and count with the faster. A step is a forward and backward pass of the cross entropy, and SGD with momentum 0.9;
forward passes are in evaluation mode and without gradients.

Beside the measured speedup stands the one that sparse momentum's authors estimate (Dettmers & Zettlemoyer, 2019;
arXiv:1907.04840, and their program): of the time t of each layer of the dense network, there is left

    channels:      t * (1 - share of the weight's input channels that are all zero) * (1 - share of its input's maps
                   that are all zero)
    fine-grained:  t * density of the input * density of the weight

and what is not a layer costs nothing. That share is listed as well.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from .. import testing
from ..conversion import Report, convert
from ..conversion.candidates import decisions
from ..conversion.graph.batch_norm import dropout_by_torch
from ..conversion.graph.inference import InferenceGraph
from ..conversion.graph.tracing import Untraceable
from ..conversion.graph.training import TrainingGraph
from ..conversion.report import CHANNEL_DROPPED
from ..pruning import PRUNINGS, prunable, prune_
from ..timing import Effort, fastest
from .defaults import MEMORY_FORMATS, QUICK_MASKS, QUICK_SPARSITIES, SPARSITIES
from .models import MODELS, calibrate_
from .record import Record
from .report import Layout, detail_column, number_column, ratio_column, share_column, speedup_column, time_column
from .suite import Case, Prepared, Selection, Suite, Unavailable, Variant, Verdict

QUICK_DROPPED = 95.0
"""Below it, random zeros leave hardly a channel empty: the short benchmark does not look for any."""

LAYOUTS = Effort(seconds=0.2, least=3, most=30)
"""How long layouts are compared."""

CHECKED_IMAGES = 4
"""So many images of a batch go through the network in float64."""
TRAINING_IMAGES = 8
LARGEST_TRAINING_ERROR = 0.05
"""So many do in training mode, where BatchNorm makes one depend on the others; how far a parameter's gradient may then
be off, as a share of its length. ReLUs that rounding switches are worth 0.02 together in a fresh ResNet-50, 0.001
elsewhere."""
LOST = 0.5
"""A dense network in float32 that is further off has lost a gradient to rounding."""

KINDS: Mapping[str, tuple[str, ...]] = {"dropped": (CHANNEL_DROPPED,), "converted": decisions()[1:]}
"""The variants that are pruned, and what their layers may become."""

Call = Callable[[], object]
Forward = Callable[[Tensor], Any]


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
        self._fastest: dict[torch.dtype, tuple[str, Call]] = {}
        self.name, self.pass_, self.batch = case.name.partition("/")[2].partition("@")[0], case.pass_, case.batch

    @functools.cached_property
    def model(self) -> nn.Module:
        return MODELS[self.name].make()

    @functools.cached_property
    def images(self) -> Tensor:
        return MODELS[self.name].images(self.batch, seed=1)

    @functools.cached_property
    def labels(self) -> Tensor:
        return torch.randint(MODELS[self.name].classes, (self.batch,), generator=torch.Generator().manual_seed(2))

    def pruned(self, kind: str, sparsity: float) -> nn.Module:
        """A copy, pruned, its BatchNorms with the statistics that it has then."""
        model = copy.deepcopy(self.model)
        prune_(model, kind, sparsity)
        calibrate_(model, MODELS[self.name].images(seed=3), seed=None)
        return model.train(self.pass_ == "step")

    @functools.cached_property
    def layers(self) -> dict[str, Layer]:
        """Of the dense network, by name: what each takes within a pass, and what it is given."""
        inputs: dict[str, Tensor] = {}
        handles = [
            module.register_forward_pre_hook(lambda _, args, name=name: inputs.update({name: args[0].detach()}))
            for name, module in prunable(self.model)
        ]
        with torch.no_grad():
            self.model(self.images)
        for handle in handles:
            handle.remove()
        _, seconds = self.least_pass
        found = {}
        for name in seconds:
            input = inputs[name]
            maps = input.reshape(*input.shape[:2], -1).count_nonzero(2)
            found[name] = Layer(
                seconds=seconds[name],
                input_density=int(maps.sum()) / input.numel(),
                zero_maps=1 - int(maps.count_nonzero()) / maps.numel(),
            )
        return found

    @functools.cached_property
    def least_pass(self) -> tuple[float, dict[str, float]]:
        """The seconds of the shortest of some passes of the dense network, and of each layer within that very pass.

        In a step with its part of the backward pass. Timed apart, the layers of a ResNet-50 took from 63 to 92% of what
        the whole took; noise came in twice.
        """
        layout, _ = self.fastest(torch.float32)
        model = copy.deepcopy(self.model).train(self.pass_ == "step")
        model.to(memory_format=MEMORY_FORMATS[layout])  # type: ignore[call-overload]
        call = call_of(self, model, self.images.contiguous(memory_format=MEMORY_FORMATS[layout]))
        watch = _Watch(model)
        shortest: tuple[float, dict[str, float]] = float("inf"), {}
        begin, rounds = time.perf_counter(), 0
        while rounds < 4 or (rounds < 30 and time.perf_counter() - begin < 0.5):
            watch.seconds = {}
            start = time.perf_counter()
            call()
            whole = time.perf_counter() - start
            if rounds > 0 and whole < shortest[0]:  # the first one warms up
                shortest = whole, watch.seconds
            rounds += 1
        return shortest

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
            layout = fastest(calls, LAYOUTS)
            self._fastest[dtype] = layout, calls[layout]
        return self._fastest[dtype]

    def rest(self) -> float:
        """The share of the dense network's time that is none of its layers'."""
        whole, layers = self.least_pass
        return float(f"{max(0.0, 1 - sum(layers.values()) / whole):.3g}")


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


def _without_gradients(module: Callable[[Tensor], object], input: Tensor) -> object:
    with torch.inference_mode():
        return module(input)


def call_of(network: Network, model: nn.Module, images: Tensor, autocast: bool = False) -> Call:
    """The pass of `network` by `model`, which is in the mode that it asks for."""
    if network.pass_ == "forward":
        return functools.partial(_without_gradients, model, images)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    context: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext
    if autocast:
        context = functools.partial(torch.autocast, "cpu", torch.bfloat16)

    def step() -> None:
        optimizer.zero_grad()
        with context():
            loss = F.cross_entropy(model(images), network.labels)
        loss.backward()
        optimizer.step()

    return step


def variants(case: Case, selection: Selection) -> list[Variant]:
    """The dense network in two dtypes, and two conversions for each pattern."""
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
    for kind in dict.fromkeys(selection.masks or (quick_masks if selection.quick else masks)):
        chosen = selection.sparsities or sparsities
        for percent in dict.fromkeys(chosen):
            for name in KINDS:
                if selection.quick and name == "dropped" and percent < QUICK_DROPPED:
                    continue
                sparsity = round(percent / 100, 7)
                make = functools.partial(_pruned, network, name, kind, sparsity)
                result.append(Variant(f"{name}:{kind}-{percent:g}", make, sparsity))
    return result


def _dense(network: Network, dtype: torch.dtype) -> Prepared:
    """torch's network in eager mode, in the faster of its layouts."""
    layout, call = network.fastest(dtype)
    details: dict[str, Any] = {"batch": network.batch, "layout": layout}
    if dtype == torch.float32:
        details["not_layers"] = network.rest()
    return Prepared(call, details=details)


def _fused(network: Network, dtype: torch.dtype) -> Prepared:
    """The dense network as a graph, in the faster of the layouts that a graph may have."""
    forwards: dict[str, Forward] = {}
    layout, _ = network.fastest(dtype)
    model = copy.deepcopy(network.model).eval().to(dtype)
    images = network.images.to(dtype).contiguous(memory_format=MEMORY_FORMATS[layout])
    model.to(memory_format=MEMORY_FORMATS[layout])  # type: ignore[call-overload]
    for contiguous in {True, layout == "contiguous"}:
        engine = InferenceGraph(model, images.dtype, images.device, contiguous)
        try:
            engine.prepare()
        except Untraceable as reason:
            raise Unavailable(str(reason)) from reason
        forwards["contiguous" if contiguous else layout] = engine.forward
    calls = {name: functools.partial(_without_gradients, forward, images) for name, forward in forwards.items()}
    chosen = fastest(calls, LAYOUTS)
    check = functools.partial(_check_forward, network, forwards[chosen], network.model, images)
    return Prepared(calls[chosen], check=check, details={"batch": network.batch, "layout": chosen})


def _fused_step(network: Network) -> Prepared:
    """The dense network as a training graph, in contiguous layout, which that is made for."""
    dense = copy.deepcopy(network.model).train()
    model = copy.deepcopy(dense)
    engine = TrainingGraph(model, network.images.dtype, network.images.device)
    try:
        engine.prepare()
    except Untraceable as reason:
        raise Unavailable(str(reason)) from reason
    model.forward = engine.forward  # type: ignore[method-assign]
    check = functools.partial(_check_training, network, model, dense)
    details = {"batch": network.batch, "layout": "contiguous"}
    return Prepared(call_of(network, model, network.images), check=check, details=details)


def _pruned(network: Network, name: str, kind: str, sparsity: float) -> Prepared:
    """A converted network."""
    dense = network.pruned(kind, sparsity)
    found: dict[str, tuple[nn.Module, Tensor, Report]] = {}
    best, _ = network.fastest(torch.float32)
    for layout in (best,) if network.pass_ == "forward" else MEMORY_FORMATS:
        model, images = copy.deepcopy(dense), network.images.contiguous(memory_format=MEMORY_FORMATS[layout])
        model.to(memory_format=MEMORY_FORMATS[layout])  # type: ignore[call-overload]
        report = convert(model, images, decisions=KINDS[name])
        found[layout] = model, images, report
    copies = {name: call_of(network, copy.deepcopy(one[0]), one[1]) for name, one in found.items()}
    layout = fastest(copies, LAYOUTS)
    model, images, report = found[layout]

    def check() -> Verdict:
        if network.pass_ == "step":
            return _check_step(network, model, dense)
        return _check_forward(network, model, dense, images)

    details = {
        "batch": network.batch,
        "layout": layout,
        "estimated_speedup": network.estimate(name, dense),
        "layers": _counts(report),
    }
    return Prepared(call_of(network, model, images), check=check, details=details)


def _counts(report: Report) -> str:
    """How many layers were exchanged, of how many: "15/16"."""
    return f"{len(report.converted)}/{len(report.layers)}"


def _check_forward(network: Network, forward: Forward, dense: nn.Module, images: Tensor) -> Verdict:
    """What `forward` gives for the whole batch, some of its images against the dense network in float64.

    The baseline is the dense network on the same batch in the same layout: torch's algorithms depend on both. Smaller
    batches than `CHECKED_IMAGES` are several: by the few results for one image, torch may be off by little by chance.
    """
    count = min(network.batch, CHECKED_IMAGES)
    # from all over the batch, which may go through in parts
    places = torch.linspace(0, network.batch - 1, count).long()
    format = torch.contiguous_format if images.is_contiguous() else torch.channels_last
    like = copy.deepcopy(dense).to(images.dtype).to(memory_format=format)  # type: ignore[call-overload]
    exact = copy.deepcopy(dense).double()
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    with torch.inference_mode():
        for number in range(-(-CHECKED_IMAGES // count)):
            batch = network.images if number == 0 else MODELS[network.name].images(network.batch, seed=10 + number)
            given = batch.to(images.dtype).contiguous(memory_format=format)
            found.append((forward(given)[places], exact(batch[places].double()), like(given)[places]))
    result, truth, baseline = (torch.cat(parts) for parts in zip(*found, strict=True))
    comparison = testing.compare("logits", result, truth, baseline)
    return Verdict(comparison.error, comparison.passed)


def _check_step(network: Network, model: nn.Module, dense: nn.Module) -> Verdict:
    """The gradients for some images, against those of the dense network in float64; of pruned weights, those left.

    In training mode as a whole, and in evaluation mode element by element: there nothing is dropped out, and no sample
    depends on another. The networks stay as they are. An activation that rounding moves across the kink of a ReLU
    changes gradients by more than rounding does: of several images, each by itself, one has to pass.
    """
    in_training = _check_training(network, model, dense)
    if not in_training.passed:
        return in_training
    verdicts: list[Verdict] = []
    truth = copy.deepcopy(dense).double().eval()
    for index in range(min(CHECKED_IMAGES, network.batch)):
        gradients = []
        for one in (model, truth, dense):
            images = network.images[index : index + 1].to(next(one.parameters()).dtype)
            F.cross_entropy(one.eval()(images), network.labels[index : index + 1]).backward()
            gradients.append([parameter.grad for parameter in one.parameters()])
            one.zero_grad()
        verdicts.append(_compare_gradients(dense, gradients))
        if verdicts[-1].passed:
            break
    for one in (model, dense):
        one.train()
    return verdicts[-1]


class _WithoutDropout(TorchFunctionMode):
    """Nothing is dropped out: networks in different dtypes draw different random numbers."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return args[0] if func is F.dropout else func(*args, **(kwargs or {}))


def _check_training(network: Network, model: nn.Module, dense: nn.Module) -> Verdict:
    """The gradients for a few images in training mode, a parameter's as one vector.

    Allowed is what is rounding elsewhere, or twice what the dense network itself is off by for that parameter, in the
    worse of both layouts, and never more than `LOST`. Where that network is off by more, float32 has lost the
    gradient, and evaluation mode has to tell: an EfficientNet-Lite0 with 95% zeros has one that nearly cancels out, of
    which torch gets a tenth wrong in one layout, and nothing right in the other.
    """
    places = torch.linspace(0, network.batch - 1, min(network.batch, TRAINING_IMAGES)).long()
    labels, gradients = network.labels[places], []
    masks = [one != 0 if one.dim() > 1 else torch.ones_like(one, dtype=torch.bool) for one in dense.parameters()]
    baselines = [copy.deepcopy(dense).to(memory_format=format) for format in MEMORY_FORMATS.values()]  # type: ignore[call-overload]
    for one in (copy.deepcopy(model), copy.deepcopy(dense).double(), *baselines):
        images = network.images[places].to(next(one.parameters()).dtype)
        one.zero_grad()
        with _WithoutDropout(), dropout_by_torch():
            F.cross_entropy(one.train()(images), labels).backward()
        found = []
        for parameter, mask in zip(one.parameters(), masks, strict=True):
            assert parameter.grad is not None
            found.append(parameter.grad[mask])
        gradients.append(found)
    mine, truth, *others = gradients
    errors = testing.gradient_errors(mine, truth)
    rounding = torch.stack([testing.gradient_errors(other, truth) for other in others]).amax(0)
    told = rounding <= LOST
    if not told.any() or not errors.isfinite().all():
        return Verdict(float("inf"), False)
    allowed = (testing.ERROR_FACTOR * rounding).clamp(LARGEST_TRAINING_ERROR, LOST)
    return Verdict(float(errors[told].max()), bool((errors <= allowed)[told].all()))


def _compare_gradients(dense: nn.Module, gradients: list[list[Tensor | None]]) -> Verdict:
    comparisons = []
    for parameter, mine, truth, baseline in zip(dense.parameters(), *gradients, strict=True):
        used = parameter != 0 if parameter.dim() > 1 else torch.ones_like(parameter, dtype=torch.bool)
        assert mine is not None
        assert truth is not None
        assert baseline is not None
        comparisons.append(testing.compare("gradient", mine[used], truth[used], baseline[used]))
    return Verdict(max(one.error for one in comparisons), all(one.passed for one in comparisons))


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
            speedup_column("dropped", "dropped"),
            number_column("dropped", "est. dropped", estimate_of),
            time_column("converted"),
            detail_column("converted", "layers", "layers"),
            speedup_column("converted", "speedup"),
            number_column("converted", "est. speedup", estimate_of),
            ratio_column("dense-bf16", "converted"),
        ),
        legend=(
            "Medians of one pass of the batch, float32 except dense-bf16; the row says where the zeros are and how "
            "many percent. dense: eager torch in the faster of two layouts (named); not layers: the share of its time "
            "that is neither Linear nor convolution, depthwise ones being no layers here. fused, fused-bf16: speedup "
            "of the same graph as a converted network's, without zeros. "
            "dropped: speedup without filters and channels that are all zero. "
            "converted: by sparsekernels.convert; so many layers of all were exchanged. est.: what sparse "
            "momentum's formula gives. dense-bf16 / converted: of times; above 1 the zeros beat the narrower type."
        ),
        subject="converted",
        rivals=("dense", "dense-bf16", "dense-fused", "dense-fused-bf16"),
        chart="sparsity",
    ),
    sparse=True,
)
