# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""BatchNorm in training with the sum, the ReLU and the dropout behind it, as one step of a graph."""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..._torch import is_any_autocast_enabled
from ...dispatch import is_special, is_transformed
from ...ops.batch_norm.op import Act, batch_norm_act, takes

_torchs_dropout = contextvars.ContextVar("torchs_dropout", default=False)


@contextlib.contextmanager
def dropout_by_torch() -> Iterator[None]:
    """Dropout is torch's own function inside, so that the same seed drops what it drops for modules."""
    token = _torchs_dropout.set(True)
    try:
        yield
    finally:
        _torchs_dropout.reset(token)


_CONSTANT = 256 * torch.finfo(torch.float32).eps
"""Elements of a channel that differ by less, relative to the largest, are the same but for rounding."""


class NormInputs:
    """What BatchNorms in training are given inside `norm_inputs`.

    perturbs: whether random numbers are added. wrong: whether a fused one gave something else than torch's where it was
    given a constant channel as it is.
    """

    def __init__(self, perturbs: bool = True) -> None:
        self.perturbs = perturbs
        self._sizes: dict[int, tuple[Tensor, float]] = {}
        self.wrong = False

    def size(self, buffer: Tensor) -> float:
        """Of a running mean: the root mean square of what it is the mean of, in the largest channel; 0 for others."""
        return self._sizes[id(buffer)][1] if id(buffer) in self._sizes else 0.0

    def pass_on(self, input: Tensor, running_mean: Tensor | None) -> Tensor:
        """What a BatchNorm takes in the place of `input`, which is looked at."""
        with torch.no_grad():
            dims = (0, *range(2, input.dim()))
            if running_mean is not None:
                size = float(input.float().square().mean(dims).max().sqrt())
                self._sizes[id(running_mean)] = running_mean, max(size, self.size(running_mean))
            if not self.perturbs:
                return input
            largest, spread = input.abs().amax(dims), input.amax(dims) - input.amin(dims)
            constant = (spread <= _CONSTANT * largest) & (largest > 0)
            if not constant.any():
                return input
            generator = torch.Generator().manual_seed(7)
            numbers = torch.randn((len(input), 1, *input.shape[2:]), generator=generator, device="cpu")
            perturbation = numbers.to(input) * constant.view(-1, *[1] * (input.dim() - 2))
        return input + perturbation


_norm_inputs = contextvars.ContextVar[NormInputs | None]("norm_inputs", default=None)


@contextlib.contextmanager
def norm_inputs(perturbs: bool = True) -> Iterator[NormInputs]:
    """Inside, what BatchNorms in training are given is looked at, and random numbers are added to constant channels.

    The channel of an empty filter is its bias everywhere, but for rounding. Normalized, that is the bias of the
    BatchNorm and rounding times 1 / sqrt(eps): where the bias is zero, chance decides whether a ReLU passes all
    gradients of the channel or none, and they are 300 times as long as others. There, no two implementations agree;
    with random numbers, the same in each, all that are right do. A channel of zeros has no rounding and stays.

    perturbs: whether they are added, which is not done under autocast: no BatchNorm is fused there.
    """
    inputs = NormInputs(perturbs)
    genuine = F.batch_norm

    @functools.wraps(genuine)
    def batch_norm(
        input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, *args: Any, **kwargs: Any
    ) -> Tensor:
        in_training = args[2] if len(args) > 2 else kwargs.get("training", False)
        under_autocast = not inputs.perturbs and is_any_autocast_enabled()
        is_eager = not (torch.compiler.is_compiling() or is_transformed()) if under_autocast else not is_special()
        if in_training and is_eager and _norm_inputs.get() is inputs and input.numel() > 0:
            input = inputs.pass_on(input, running_mean)
        output: Tensor = genuine(input, running_mean, running_var, *args, **kwargs)
        return output

    token = _norm_inputs.set(inputs)
    F.batch_norm = batch_norm
    try:
        yield inputs
    finally:
        F.batch_norm = genuine
        _norm_inputs.reset(token)


class FusedNorm(torch.nn.Module):
    """What `norm` in training mode, a sum, limits and dropout give one after the other; running statistics follow.

    `forward` takes the input and a residual or None. The module is not its child: parameters, buffers, eps and momentum
    are those that it has when this is called. adds: whether there is a sum.
    """

    taken: tuple[torch.nn.Module, ...] = ()
    """All that it stands for."""

    def __init__(self, norm: torch.nn.BatchNorm2d, act: Act, adds: bool = False) -> None:
        super().__init__()
        self.parts: tuple[torch.nn.BatchNorm2d] = (norm,)
        self.act, self.adds = act, adds

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        (norm,) = self.parts
        act = self.act
        arguments = input, norm.weight, norm.bias, norm.eps
        if is_special() or not takes(*arguments, act, residual) or not _fits(norm, input):
            return self._one_by_one(input, residual)
        inputs = _norm_inputs.get()
        if inputs is not None:
            arguments = inputs.pass_on(input, norm.running_mean), *arguments[1:]
            inputs.wrong = inputs.wrong or (arguments[0] is not input and not self._is_right(input, residual))
        separate_dropout = act.p > 0 and _torchs_dropout.get()
        output, statistics = batch_norm_act(*arguments, Act(act.low, act.high) if separate_dropout else act, residual)
        _track(norm, statistics, input.numel() // input.size(1))
        return F.dropout(output, act.p, True) if separate_dropout else output

    def _is_right(self, input: Tensor, residual: Tensor | None) -> bool:
        """Whether results for `input` are torch's but for rounding, and gradients are finite."""
        (norm,) = self.parts
        weight, bias, residual = (None if one is None else one.detach() for one in (norm.weight, norm.bias, residual))
        low, high = self.act.low, self.act.high
        input = input.detach()
        with torch.enable_grad():
            x = input.clone().requires_grad_()
            mine, _ = batch_norm_act(x, weight, bias, norm.eps, Act(low, high), residual)
            (gradient,) = torch.autograd.grad(mine, x, torch.ones_like(mine))
        theirs = torch.batch_norm(input, weight, bias, None, None, True, 0.0, norm.eps, False)
        theirs = theirs if residual is None else theirs + residual
        theirs = theirs if low is None and high is None else theirs.clamp(low, high)
        if not theirs.isfinite().all():
            return True  # results are compared as well
        factor = norm.eps**-0.5 * (1.0 if weight is None else float(weight.abs().max()))
        rounding = 8 * torch.finfo(input.dtype).eps * float(input.abs().max()) * factor
        allowed = 2e-3 * float(theirs.abs().max()) + rounding
        return bool(((mine.detach() - theirs).abs() <= allowed).all() and gradient.isfinite().all())

    def _one_by_one(self, input: Tensor, residual: Tensor | None) -> Tensor:
        low, high, p = self.act.low, self.act.high, self.act.p
        result: Tensor = self.parts[0](input)
        if residual is not None:
            result = result + residual
        if low == 0 and high is None:
            result = F.relu(result)
        elif low is not None and high is not None:
            result = F.hardtanh(result, low, high)
        return F.dropout(result, p, True) if p > 0 else result

    def extra_repr(self) -> str:
        return f"{self.parts[0].num_features}, low={self.act.low}, high={self.act.high}, p={self.act.p}"


def _fits(norm: torch.nn.BatchNorm2d, input: Tensor) -> bool:
    """Whether the parameters have the shape, and the running statistics are what those of `input` can be added to."""
    shape = input.shape[1:2]
    if (norm.running_mean is None) is not (norm.running_var is None):
        return False
    if any(tensor is not None and tensor.shape != shape for tensor in (norm.weight, norm.bias)):
        return False
    return all(
        tensor is None
        or (tensor.dtype is torch.float32 and tensor.shape == shape and tensor.is_cpu and not tensor.is_inference())
        for tensor in (norm.running_mean, norm.running_var)
    )


def _track(norm: torch.nn.BatchNorm2d, statistics: Tensor, count: int) -> None:
    """What BatchNorm does in training: an average of means, and of unbiased estimates of the variance.

    Through `data`, since torch does not count it as a change of these tensors either: its own BatchNorm saves them for
    its backward pass.
    """
    if not norm.track_running_stats:
        return
    factor = 0.0 if norm.momentum is None else norm.momentum
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:
            factor = 1 / float(norm.num_batches_tracked)
    if norm.running_mean is not None:
        norm.running_mean.data.mul_(1 - factor).add_(statistics[0], alpha=factor)
    if norm.running_var is not None:
        norm.running_var.data.mul_(1 - factor).add_(statistics[1], alpha=factor * count / (count - 1))
