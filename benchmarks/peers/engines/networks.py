# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The tensors of a job in torch, for the engines that run on it and for what exports the job."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsekernels.bench.models import MODELS, calibrate_
from sparsekernels.bench.suite_keys import block_of
from sparsekernels.pruning import prune_, prune_blocks_
from sparsekernels.timing import Effort

EFFORT = Effort(seconds=0.5, least=3, most=20)
"""How long layouts, or ways to call the same, are compared."""

PASSES = {"forward": ("output",), "forward+backward": ("output", "input gradient", "weight gradient")}
"""What each pass computes, by the names that results have."""


def is_block(job: Mapping[str, Any]) -> bool:
    """Whether zeros are whole blocks, of the size that `pruning` names, "32x32"."""
    return str(job["pruning"])[:1].isdecimal()


def network(job: Mapping[str, Any]) -> torch.nn.Module:
    """The pruned network, in evaluation mode, the same in every process.

    Its BatchNorms have the statistics of the pruned network: with those of the dense one, activations fade from layer
    to layer until the logits are the same for every image, and a wrong result cannot be told from a right one.
    """
    description, seed = MODELS[job["name"]], job["seed"]
    model = description.make(seed, pretrained=False)
    if is_block(job):
        # As in sparsekernels.bench.network: else no result depends on the images.
        prune_blocks_(model, block_of(job["pruning"]), job["sparsity"], least_in_row=1)
    else:
        prune_(model, job["pruning"], job["sparsity"], seed)
    return calibrate_(model, description.images(seed=3 * seed + 1), 3 * seed + 2)


def load(job: Mapping[str, Any], *names: str) -> list[Tensor]:
    """The arrays in the job's files of these names."""
    return [torch.from_numpy(np.load(job[name])) for name in names]


def differentiated(
    function: Callable[[Tensor, Tensor], Tensor], input: Tensor, weight: Tensor, grad_output: Tensor
) -> Callable[[], tuple[Tensor, ...]]:
    """A call of `function` and of autograd: the output and both gradients. The tensors are made leaves of their own."""
    leaves = input.detach().clone().requires_grad_(), weight.detach().clone().requires_grad_()

    def call() -> tuple[Tensor, ...]:
        output = function(*leaves)
        return output, *torch.autograd.grad(output, leaves, grad_output)

    return call


def named(pass_: str, results: tuple[Tensor, ...]) -> dict[str, np.ndarray]:
    """The results of a call under their names, as dense float32 arrays."""
    arrays = [result.detach() for result in results]
    dense = [array.to_dense() if array.layout != torch.strided else array for array in arrays]
    return {name: array.float().numpy() for name, array in zip(PASSES[pass_], dense, strict=True)}
