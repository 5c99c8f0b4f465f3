# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Sparse training by the interface of the library sparse_learning: its scripts run with the import changed."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .._transformers import is_conv1d
from .algorithms import GROWTH, PRUNING, REDISTRIBUTION, Algorithm, algorithm_of, named
from .base import SparseTraining
from .kernels import Kernels
from .old_convention import OldConvention
from .schedules import ConstantRate, Schedule
from .signals import momentum_of
from .sparsifier import check_density, start_at_random
from .weights import MaskedWeight, layers_of, local_device, unwrapped, whole

_PRUNE = {"magnitude": "magnitude", "SET": "SET", "global_magnitude": "global magnitude"}
_GROWTH = {
    "random": "random",
    "momentum": "momentum",
    "momentum_neuron": "momentum of neurons",
    "global_momentum_growth": "global momentum",
    "gradient": "gradient",
}
_REDISTRIBUTION = {
    "momentum": "momentum",
    "magnitude": "magnitude",
    "nonzero": "nonzeros",
    "nonzeros": "nonzeros",
    "none": "none",
}
_INIT = {"constant": "uniform", "uniform": "uniform", "linear": "ERK", "ERK": "ERK", "SET": "SET", "resume": "resume"}


def add_sparse_args(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of sparse_learning to a parser: --growth, --prune, --redistribution, --prune-rate, --density,
    --dense and --verbose.

    Modes are names that `Masking` knows, or names of your own, in whose place you give it functions.

    Args:
        parser: To which they are added.
    """
    parser.add_argument("--growth", default="momentum", help=f"what grows: {', '.join(_GROWTH)}; default: %(default)s")
    parser.add_argument(
        "--prune", default="magnitude", help=f"what is pruned: {', '.join(_PRUNE)}; default: %(default)s"
    )
    parser.add_argument(
        "--redistribution",
        default="momentum",
        help=f"what a layer's share of new weights follows: {', '.join(_REDISTRIBUTION)}; default: %(default)s",
    )
    parser.add_argument(
        "--prune-rate", type=float, default=0.5, help="share of the weights that is pruned; default: %(default)s"
    )
    parser.add_argument(
        "--density", type=float, default=0.05, help="share of the weights that is used; default: %(default)s"
    )
    parser.add_argument("--dense", action="store_true", help="train dense")
    parser.add_argument("--verbose", action="store_true", help="print the nonzeros of each layer")


class Masking(SparseTraining):
    """Sparse momentum and its kin, as users of sparse_learning know it.

        add_sparse_args(parser)
        ...
        decay = CosineDecay(args.prune_rate, len(train_loader) * args.epochs)
        mask = Masking(optimizer, decay, prune_rate=args.prune_rate, prune_mode=args.prune, growth_mode=args.growth,
                       redistribution_mode=args.redistribution)
        mask.add_module(model, density=args.density)
        for epoch in range(args.epochs):
            for images, labels in train_loader:
                optimizer.zero_grad()
                F.cross_entropy(model(images), labels).backward()
                mask.step()  # in the place of optimizer.step()
            if epoch + 1 < args.epochs:
                mask.at_end_of_epoch()

    What differs from sparse_learning: the number of nonzeros is exact after every update; `masks` holds tensors of
    bool; norms of any class stay dense, and so does everything of one dimension; an unknown mode is a ValueError;
    `CosineDecay` stays at its least; layers that are nearly dense are pruned like all others; `name2removed` is of
    functions of its form alone; layers run on sparse kernels where that is faster; nothing is moved to a GPU.
    `Sparsifier` is the same for those who start fresh.

    Args:
        optimizer: Any torch.optim.Optimizer.
        prune_rate_decay: `CosineDecay`, `LinearDecay`, or what has their step() and get_dr(); None for a constant rate.
        prune_rate: The rate where `prune_rate_decay` is None.
        prune_mode: "magnitude", "SET", "global_magnitude", or a function: (weight, signal, mask, count) -> mask, or
            sparse_learning's (masking, mask, weight, name) -> mask.
        growth_mode: "momentum", "momentum_neuron", "random", "gradient", "global_momentum_growth", or a function:
            (weight, signal, mask, count) -> mask, or (masking, name, new_mask, total_regrowth, weight) -> mask.
        redistribution_mode: "momentum", "magnitude", "nonzero", "none", or a function: (weight, signal, mask, pruned)
            -> number, or (masking, name, weight, mask) -> number.
        prune_every_k_steps: Steps between updates; 0 for at_end_of_epoch() alone.
        verbose: Whether the nonzeros of each layer are printed at each update.
        fp16: Is not used: the optimizer's own parameters are masked.
        last_update: The last step behind which the topology changes; None for no last one.
        dense_grad_every: As of `Sparsifier`.
        seed: Of all random choices.
        kernels: Whether sparse kernels are tried.
        process_group: As of `Sparsifier`.

    Attributes:
        steps: Steps of the optimizer.
        updates: Updates of the topology.

    Raises:
        TypeError: For an optimizer or a schedule that is none.
        ValueError: For an unknown mode, or settings that do not fit together.

    Source:
        Dettmers & Zettlemoyer 2019, "Sparse networks from scratch", arXiv 1907.04840.
    """

    _updater_class = OldConvention

    def __init__(
        self,
        optimizer: Optimizer,
        prune_rate_decay: Schedule | None = None,
        prune_rate: float = 0.5,
        prune_mode: str | Callable[..., Any] = "magnitude",
        growth_mode: str | Callable[..., Any] = "momentum",
        redistribution_mode: str | Callable[..., Any] = "momentum",
        prune_every_k_steps: int = 0,
        verbose: bool = False,
        fp16: bool = False,
        *,
        last_update: int | None = None,
        dense_grad_every: int | str | None = "auto",
        seed: int = 0,
        kernels: bool = True,
        process_group: Any = None,
    ) -> None:
        where = "Masking"
        algorithm = algorithm_of(
            where,
            Algorithm("Masking"),
            _mode(where, "prune_mode", _PRUNE, PRUNING, prune_mode),
            _mode(where, "growth_mode", _GROWTH, GROWTH, growth_mode),
            _mode(where, "redistribution_mode", _REDISTRIBUTION, REDISTRIBUTION, redistribution_mode),
        )
        super().__init__(
            where,
            optimizer,
            algorithm,
            ConstantRate(prune_rate) if prune_rate_decay is None else prune_rate_decay,
            update_every=prune_every_k_steps or None,
            last_update=last_update,
            dense_grad_every=dense_grad_every,
            seed=seed,
            process_group=process_group,
            prune_rate=prune_rate,
        )
        assert isinstance(self._updater, OldConvention)
        self._updater.masking = self
        self.verbose, self._seed, self._use_kernels = verbose, seed, kernels
        self.name2removed: dict[str, int] = {}
        self.name2variance: dict[str, float] = {}

    def add_module(
        self,
        module: nn.Module,
        density: float,
        sparse_init: str = "constant",
        remove_param_names: Collection[str] = (),
        *,
        block: tuple[int, int] | None = None,
    ) -> None:
        """Mask the parameters of a module that have two dimensions or more.

        Args:
            module: Whose parameters the optimizer has.
            density: The share of the masked weights that is used, above 0 to 1. Of "resume" it is not used.
            sparse_init: "constant" or "uniform" for the same density in each layer, "linear" or "ERK" for one in
                proportion to the sum of a weight's dimensions over its elements, "SET", or "resume" for masks of what
                is not zero.
            remove_param_names: Parts of names; parameters with one of these stay dense, as do those with "bias".
            block: Rows and columns of a block, as of `Sparsifier`.

        Raises:
            TypeError: For what is no module.
            ValueError: For a density outside of (0, 1], an unknown `sparse_init`, nothing to prune, or an optimizer
                without these parameters. Then nothing has changed.
        """
        where = "Masking.add_module"
        if not isinstance(module, nn.Module):
            raise TypeError(f"{where}: expected module to be a torch.nn.Module, got {type(module).__name__}")
        distribution = named(where, "sparse_init", _INIT, sparse_init)
        check_density(where, density)
        list(layers_of(where, unwrapped(module), ()))  # raises for weights that a tool computes under masks of its own
        left_out = ("bias", *remove_param_names)
        root = unwrapped(module)
        upside_down = {id(one.weight) for one in root.modules() if is_conv1d(one)}
        weights = [
            MaskedWeight(
                name,
                parameter,
                torch.ones(parameter.shape, dtype=torch.bool, device=local_device(parameter)),
                block,
                id(parameter) in upside_down,
            )
            for name, parameter in root.named_parameters()
            if parameter.dim() > 1 and parameter.requires_grad and not any(part in name for part in left_out)
        ]
        if weights and distribution == "resume":
            for one in weights:
                units = one.units_of_mask(whole(one.parameter) != 0)
                one.mask, one.wanted = one.mask_of_units(units), int(units.count_nonzero())
        elif weights:
            generator = torch.Generator().manual_seed(self._seed + len(self._models))
            start_at_random(where, weights, density, distribution, self.algorithm, generator)
        make = functools.partial(Kernels, module, None, self.verbose or None)
        self._add(module, weights, make if self._use_kernels else None)
        if self.verbose:
            self.print_nonzero_counts()

    def at_end_of_epoch(self) -> None:
        """Change the topology once; see `update`."""
        self.update()

    def truncate_weights(self) -> None:
        """Change the topology once; see `update`."""
        self.update()

    def update(self) -> Any:
        """Change the topology once: prune, and grow as many. All of it or, where anything raises, nothing.

        Returns:
            What it did, an `Update`.

        Raises:
            RuntimeError, FloatingPointError, ValueError: As `Sparsifier.update`.
        """
        report = super().update()
        if self.verbose:
            self.print_nonzero_counts()
        return report

    def apply_mask(self) -> None:
        """Set what the masks do not use to zero."""
        for one in self._weights.values():
            one.apply()

    def remove_weight(self, name: str) -> None:
        """Leave a weight dense from now on. It keeps the zeros that it has, which then train.

        Args:
            name: Of the parameter, with or without ".weight".

        Raises:
            ValueError: For a name that has no mask.
        """
        self._forget([self._known(name if name in self._weights else f"{name}.weight").name])

    def remove_weight_partial_name(self, partial_name: str) -> None:
        """Leave the weights dense whose names contain this.

        Args:
            partial_name: A part of a name.
        """
        self._forget([name for name in self._weights if partial_name in name])

    def remove_type(self, nn_type: type[nn.Module]) -> None:
        """Leave the weights of layers of a class dense.

        Args:
            nn_type: The class.
        """
        layers = [one for model in self._models for one in model.modules() if isinstance(one, nn_type)]
        own = {id(parameter) for layer in layers for parameter in layer.parameters(recurse=False)}
        self._forget([name for name, one in self._weights.items() if id(one.parameter) in own])

    def print_nonzero_counts(self) -> None:
        """Print, for each masked weight, how many elements it uses."""
        for name, count in self.nonzeros.items():
            size = self._weights[name].mask.numel()
            print(f"{name}: {count} of {size} nonzeros, density {count / size:.4f}")
        print(
            f"all: {sum(self.nonzeros.values())} nonzeros, density {self.density:.4f}, prune rate {self.prune_rate:.4f}"
        )

    def get_momentum_for_weight(self, weight: nn.Parameter) -> Tensor:
        """The momentum of a weight, as sparse_learning's functions ask for it.

        Args:
            weight: A parameter that is masked.

        Returns:
            momentum_buffer, or of Adam exp_avg / (sqrt(exp_avg_sq) + 1e-8).

        Raises:
            RuntimeError: Where the optimizer has none of it yet.
        """
        found = momentum_of(self.optimizer.state.get(weight, {}), weight.shape)
        if found is None:
            raise RuntimeError(
                "Masking: expected a momentum of the weight, got none; it is there behind the first step"
            )
        return found

    # The statistics that functions of sparse_learning's form read

    @property
    def name2nonzeros(self) -> dict[str, int]:
        """How many elements each weight uses."""
        return self.nonzeros

    @property
    def name2zeros(self) -> dict[str, int]:
        """How many elements each weight does not use."""
        return {name: int((~one.mask).count_nonzero()) for name, one in self._weights.items()}

    @property
    def name2prune_rate(self) -> dict[str, float]:
        """The share of each weight that an update prunes."""
        return dict.fromkeys(self._weights, self.prune_rate)

    @property
    def total_nonzero(self) -> int:
        """How many elements all weights use."""
        return sum(self.nonzeros.values())

    @property
    def total_zero(self) -> int:
        """How many elements all weights do not use."""
        return sum(self.name2zeros.values())

    @property
    def total_removed(self) -> int:
        """How many elements functions of sparse_learning's form pruned in this update."""
        return sum(self.name2removed.values())

    @property
    def modules(self) -> list[nn.Module]:
        """What was added."""
        return list(self._models)


def _mode(where: str, what: str, old: dict[str, str], table: Any, mode: Any) -> Any:
    """A mode of sparse_learning by our name; one of ours, or a function, is itself."""
    if callable(mode):
        return mode
    return mode if isinstance(mode, str) and mode in table else named(where, what, old, mode)
