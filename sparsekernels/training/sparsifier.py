# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Sparse training in one class."""

from __future__ import annotations

import functools
import numbers
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..blocks import check_block
from .algorithms import Algorithm, algorithm_of
from .allocation import ShareFunction, at_least_one, distribute
from .base import SparseTraining
from .functions import MaskFunction
from .kernels import Kernels
from .schedules import ConstantRate, Schedule
from .validation import check_seed, checked_mask
from .weights import MaskedWeight, layers_of, local_device, unwrapped


class Sparsifier(SparseTraining):
    """Trains a model sparse: its optimizer's steps keep masks, and change them.

        sparsifier = Sparsifier(model, optimizer, density=0.1, update_every=100, last_update=10000)
        for images, labels in loader:
            optimizer.zero_grad()
            loss(model(images), labels).backward()
            optimizer.step()  # masks and updates of the topology are hooks of it

    Masked are the weights of all `prunable` layers: Linear, Conv2d and Conv1d, without depthwise convolutions. Biases
    and norms stay dense. The number of nonzeros is the same after every update, exactly; in blocks it is the number of
    blocks, and with constant fan-in the nearest multiple of the outputs that a layer has left.

    An update: of each layer the share `prune_rate` of its weights is pruned, those of least magnitude, say; as many are
    grown, in the layers and at the places that the algorithm chooses. New weights start at 0, also those that were
    pruned by the same update. What the optimizer knows of pruned weights is set to 0, unless growth is by momentum:
    that accumulates for missing weights as well.

    After the first batch in training mode `convert` measures which layers are faster on sparse kernels, and puts them
    in; they share parameters, so optimizer and checkpoints do not notice. The other layers stay dense, with a mask
    behind each step. `line` says which.

    DistributedDataParallel: wrap before; all ranks make the same updates, and each update checks that they do. FSDP2:
    `fully_shard`, then the optimizer, then this; layers are dense with a mask. torch.compile: give `example_input`, and
    compile afterwards.

    Args:
        model: Any module.
        optimizer: Any torch.optim.Optimizer of its parameters.
        density: Of the masked weights, the share that is used, above 0 to 1; or one for each, by the weight's name.
            None where `masks` says it.
        algorithm: "sparse momentum", "SET", "RigL", "gradual magnitude", "SRigL", "static", or an `Algorithm`.
        distribution: How nonzeros are distributed at the start: "uniform", "ERK" or "SET"; see `distribute`.
        prune: What prunes, in the place of the algorithm's: "magnitude", "SET", "global magnitude", or a function
            (weight, signal, mask, count) -> mask with `count` fewer.
        growth: What grows: "momentum", "momentum of neurons", "gradient", "random", "global momentum", or a function
            (weight, signal, mask, count) -> mask with `count` more.
        redistribution: A layer's share of new weights: "momentum", "magnitude", "nonzeros", "none", or a function
            (weight, signal, mask, pruned) -> number.
        signal: What a growth function looks at: "momentum", "gradient" or "random".
        prune_rate: The share that an update prunes: a number, or a schedule such as `CosineDecay`, of steps.
        update_every: Steps between updates; None for none but by `update()`.
        last_update: The last step behind which the topology changes; None for no last one. Of gradual pruning the step
            at which the density is reached.
        dense_grad_every: At which steps the gradients of missing weights are computed: every so many, None for never,
            "auto" for every step with growth by momentum, at updates with growth by gradient, never without either.
        block: Rows and columns of a block: weights are used and pruned as whole blocks, by their norms.
        masks: The masks to start from, bool, by the names of weights, as `sparsekernels.pruning.finalize` gives those
            of models that other tools pruned; other weights are dense. None for random ones.
        ignore: Names of layers, or of modules with all of their layers, that stay dense; see `prunable`.
        seed: Of all random choices.
        kernels: Whether sparse kernels are tried.
        example_input: What the model is called with, a tensor or a tuple; None to wait for the first batch.
        progress: Whether a line on stderr says which layers run on kernels; None for where that is a terminal.
        process_group: The ranks that train the same model, where it is not wrapped by DistributedDataParallel.
        compact_state: Whether the optimizer's state has an element for each used weight alone, which saves memory and
            time. For SGD, Adam and others of torch that treat each element by itself, without growth by momentum.

    Attributes:
        steps: Steps of the optimizer since it began.
        updates: Updates of the topology since then.

    Raises:
        TypeError: For a model or an optimizer that is none, or masks that are not bool tensors.
        ValueError: For a density outside of (0, 1], an unknown name of an algorithm, a part or a layer, nothing to
            prune, an optimizer without the model's weights or without the momentum that growth looks at, and settings
            that do not fit together. Then nothing has changed.

    Source:
        Dettmers & Zettlemoyer 2019, "Sparse networks from scratch", arXiv 1907.04840 (sparse momentum); Mocanu et al.
        2018, Nature Communications 9 (SET); Evci et al. 2020, arXiv 1911.11134 (RigL); Zhu & Gupta 2017, arXiv
        1710.01878 (gradual magnitude); Lasby et al. 2024, arXiv 2305.02299 (SRigL).
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        density: float | Mapping[str, float] | None = None,
        *,
        algorithm: str | Algorithm = "sparse momentum",
        distribution: str = "uniform",
        prune: str | MaskFunction | None = None,
        growth: str | MaskFunction | None = None,
        redistribution: str | ShareFunction | None = None,
        signal: str | None = None,
        prune_rate: float | Schedule = 0.5,
        update_every: int | None = None,
        last_update: int | None = None,
        dense_grad_every: int | str | None = "auto",
        block: tuple[int, int] | None = None,
        masks: Mapping[str, Tensor] | None = None,
        ignore: Collection[str] = (),
        seed: int = 0,
        kernels: bool = True,
        example_input: Any = None,
        progress: bool | None = None,
        process_group: Any = None,
        compact_state: bool = False,
    ) -> None:
        where = "Sparsifier"
        if not isinstance(kernels, bool):
            raise TypeError(f"{where}: expected kernels to be True or False, got {kernels!r}")
        check_seed(where, seed)
        if not isinstance(model, nn.Module):
            raise TypeError(f"{where}: expected model to be a torch.nn.Module, got {type(model).__name__}")
        if (density is None) == (masks is None):
            given = "neither" if masks is None else "both"
            raise ValueError(f"{where}: expected density or masks, got {given}")
        if block is not None:
            block = check_block(where, block)
        chosen = algorithm_of(where, algorithm, prune, growth, redistribution, signal)
        root = unwrapped(model)
        generator = torch.Generator().manual_seed(seed)
        weights = weights_of(where, root, ignore, block)
        if masks is not None:
            weights = with_masks(where, root, weights, masks, block)
        if not weights:
            raise ValueError(f"{where}: expected a model with layers to prune, Linear or convolutions, got none")
        if masks is None:
            assert density is not None
            start_at_random(where, weights, density, distribution, chosen, generator)
        rate = prune_rate if hasattr(prune_rate, "get_dr") else ConstantRate(prune_rate)  # type: ignore[arg-type]
        super().__init__(
            where,
            optimizer,
            chosen,
            rate,  # type: ignore[arg-type]
            update_every=update_every,
            last_update=last_update,
            dense_grad_every=dense_grad_every,
            seed=seed + 1,
            process_group=process_group,
            compact_state=compact_state,
        )
        example = example_input if isinstance(example_input, tuple) or example_input is None else (example_input,)
        try:
            self._add(model, weights, functools.partial(Kernels, model, example, progress) if kernels else None)
        except BaseException:
            self.remove()
            raise


def weights_of(
    where: str, model: nn.Module, ignore: Collection[str], block: tuple[int, int] | None
) -> list[MaskedWeight]:
    """The weights of the `prunable` layers that are trained, all used.

    Args:
        where: Who asks, for errors.
        model: Any module.
        ignore: Names of layers or modules that are left out.
        block: Rows and columns of a block.

    Returns:
        The weights.

    Raises:
        ValueError: For a weight that is computed, or an unknown name.
    """
    found = []
    for name, weight, transposed in layers_of(where, model, ignore):
        if weight.requires_grad and weight.numel():
            mask = torch.ones(weight.shape, dtype=torch.bool, device=local_device(weight))
            found.append(MaskedWeight(name, weight, mask, block, transposed))
    return found


def with_masks(
    where: str,
    model: nn.Module,
    weights: list[MaskedWeight],
    masks: Mapping[str, Tensor],
    block: tuple[int, int] | None,
) -> list[MaskedWeight]:
    """The parameters that have a mask, with it.

    Args:
        where: Who asks, for errors.
        model: Whose parameters they are.
        weights: Those of its layers.
        masks: By the names of parameters.
        block: Rows and columns of a block.

    Returns:
        The weights, in the order of the masks.

    Raises:
        TypeError: For a mask that is not a bool tensor.
        ValueError: For an unknown name or another shape.
    """
    by_name = {one.name: one for one in weights}
    parameters = dict(model.named_parameters())
    found = []
    for name, mask in masks.items():
        one = by_name.get(name)
        if one is None and name in parameters and parameters[name].dim() > 1:  # of a recurrent layer, say
            every = torch.ones(parameters[name].shape, dtype=torch.bool, device=local_device(parameters[name]))
            one = MaskedWeight(name, parameters[name], every, block)
        if one is None:
            known = ", ".join(map(repr, list(by_name)[:3]))
            raise ValueError(f"{where}: expected masks by the names of weights, as {known}, got {name!r}")
        units = one.units_of_mask(checked_mask(where, one, mask))
        one.mask, one.wanted = one.mask_of_units(units), int(units.count_nonzero())
        found.append(one)
    return found


def start_at_random(
    where: str,
    weights: list[MaskedWeight],
    density: float | Mapping[str, float],
    distribution: str,
    algorithm: Algorithm,
    generator: torch.Generator,
) -> None:
    """Give weights masks at random, or all of themselves where they are pruned gradually, and the number wanted.

    Args:
        where: Who asks, for errors.
        weights: Are given `mask` and `wanted`.
        density: Of all together, or of each by its name.
        distribution: "uniform", "ERK" or "SET".
        algorithm: What they are trained by.
        generator: Of the masks.

    Raises:
        ValueError: For a density outside of (0, 1], an unknown distribution or name.
    """
    sizes = [one.count for one in weights]
    if isinstance(density, Mapping):
        names = {one.name for one in weights}
        for name in density:
            if name not in names:
                known = ", ".join(map(repr, sorted(names)[:3]))
                raise ValueError(f"{where}: expected densities by the names of weights, as {known}, got {name!r}")
        weights[:] = [one for one in weights if one.name in density]
        sizes = [one.count for one in weights]
        shares = [check_density(where, density[one.name]) for one in weights]
        counts = at_least_one([round(share * size) for share, size in zip(shares, sizes, strict=True)], sizes)
    else:
        total = max(round(check_density(where, density) * sum(sizes)), 1)
        counts = distribute(total, [one.shape for one in weights], sizes, distribution)
    for one, count in zip(weights, counts, strict=True):
        one.wanted = count
        if not algorithm.gradual:
            one.mask = one.random_mask(count, generator, algorithm.constant_fan_in)


def check_density(where: str, density: object) -> float:
    """Raise ValueError unless it is above 0 and at most 1.

    Args:
        where: Who asks, for the error.
        density: What is asked about.

    Returns:
        It.
    """
    if isinstance(density, bool) or not isinstance(density, numbers.Real) or not 0 < float(density) <= 1:
        raise ValueError(f"{where}: expected density above 0 and at most 1, got {density!r}")
    return float(density)
