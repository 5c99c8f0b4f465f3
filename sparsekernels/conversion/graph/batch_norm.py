# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""BatchNorm in training with the sum, the ReLU and the dropout behind it, as one step of a graph."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ...dispatch import is_special
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
        separate_dropout = act.p > 0 and _torchs_dropout.get()
        output, statistics = batch_norm_act(*arguments, Act(act.low, act.high) if separate_dropout else act, residual)
        _track(norm, statistics, input.numel() // input.size(1))
        return F.dropout(output, act.p, True) if separate_dropout else output

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
