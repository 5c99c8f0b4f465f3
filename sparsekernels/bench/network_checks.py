# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What the suite `networks` computes, compared with the dense network in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from .. import testing
from ..conversion.graph.batch_norm import dropout_by_torch
from .defaults import MEMORY_FORMATS
from .network import Network
from .suite import Verdict

CHECKED_IMAGES = 4
"""How many images of a batch go through the network in float64."""
TRAINING_IMAGES = 8
LARGEST_TRAINING_ERROR = 0.05
"""How many do in training mode, where BatchNorm makes one depend on the others; how far a parameter's gradient may then
be off, as a share of its length. ReLUs that rounding switches are worth 0.02 together in a fresh ResNet-50, 0.001
elsewhere."""
LOST = 0.5
"""A dense network in float32 that is further off has lost a gradient to rounding."""

Forward = Callable[[Tensor], Any]


def check_forward(network: Network, forward: Forward, dense: nn.Module, images: Tensor) -> Verdict:
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
            batch = network.images if number == 0 else network.random_images(10 + number, network.batch)
            given = batch.to(images.dtype).contiguous(memory_format=format)
            found.append((forward(given)[places], exact(batch[places].double()), like(given)[places]))
    result, truth, baseline = (torch.cat(parts) for parts in zip(*found, strict=True))
    comparison = testing.compare("logits", result, truth, baseline)
    return Verdict(comparison.error, comparison.passed)


def check_step(network: Network, model: nn.Module, dense: nn.Module) -> Verdict:
    """The gradients for some images, against those of the dense network in float64; of pruned weights, those left.

    In training mode as a whole, and in evaluation mode element by element: there nothing is dropped out, and no sample
    depends on another. The networks stay as they are. An activation that rounding moves across the kink of a ReLU
    changes gradients by more than rounding does: of several images, each by itself, one has to pass.
    """
    in_training = check_training(network, model, dense)
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
    """Nothing is dropped out: networks in different dtypes draw different random numbers.

    In graphs `dropout_by_torch` sees to that.
    """

    leaves_graphs_alone = True

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return args[0] if func is F.dropout else func(*args, **(kwargs or {}))


def check_training(network: Network, model: nn.Module, dense: nn.Module, autocast: bool = False) -> Verdict:
    """The gradients for a few images in training mode, a parameter's as one vector.

    Allowed is what is rounding elsewhere, or twice what the dense network itself is off by for that parameter, in the
    worse of both layouts, and never more than `LOST`. Where that network is off by more, float32 has lost the
    gradient, and evaluation mode has to tell: an EfficientNet-Lite0 with 95% zeros has one that nearly cancels out, of
    which torch gets a tenth wrong in one layout, and nothing right in the other.

    autocast: whether both networks run in bfloat16 so.
    """
    places = torch.linspace(0, network.batch - 1, min(network.batch, TRAINING_IMAGES)).long()
    labels, gradients = network.labels[places], []
    masks = [one != 0 if one.dim() > 1 else torch.ones_like(one, dtype=torch.bool) for one in dense.parameters()]
    baselines = [copy.deepcopy(dense).to(memory_format=format) for format in MEMORY_FORMATS.values()]  # type: ignore[call-overload]
    for one in (copy.deepcopy(model), copy.deepcopy(dense).double(), *baselines):
        images = network.images[places].to(next(one.parameters()).dtype)
        one.zero_grad()
        short = autocast and images.dtype is torch.float32
        with _WithoutDropout(), dropout_by_torch(), torch.autocast(network.device, torch.bfloat16, enabled=short):
            loss = F.cross_entropy(one.train()(images), labels)
        loss.backward()
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
