# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The methods that a network is trained by: dense, and sparse from the start by those of `sparsekernels.training`."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from .._torch import has_bfloat16_convolutions
from ..training import CosineDecay, Sparsifier
from ..training.allocation import DISTRIBUTIONS
from . import options
from .datasets import seed_of
from .options import Options
from .runs import Run

MakeOptimizer = Callable[[Iterator[nn.Parameter]], Optimizer]
Context = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True)
class Plan:
    """What a method may know: the run, and its steps in all and in an epoch."""

    run: Run
    steps: int
    per_epoch: int


@dataclass
class Attached:
    """A method at work on a model; this one trains every weight.

    model      to call, and whose parameters are trained
    context    entered around forward passes
    """

    model: nn.Module
    optimizer: Optimizer
    context: Context = contextlib.nullcontext

    def nonzeros(self) -> Mapping[str, int]:
        """By weight: how many of its elements are in use."""
        return {name: one.numel() for name, one in self.model.named_parameters() if one.dim() > 1}

    def results(self) -> dict[str, Any]:
        """What the record says of it."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs beside model and optimizer."""
        return {}

    def load(self, model: dict[str, Any], optimizer: dict[str, Any], method: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.model.load_state_dict(model)
        self.optimizer.load_state_dict(optimizer)


@dataclass(frozen=True)
class Method:
    """One way to train.

    about    one line
    attach   sets it to work on a fresh model
    sparse   whether its runs have a density
    options  what a suite may set for it
    bf16     whether it computes in bfloat16
    """

    about: str
    attach: Callable[[nn.Module, MakeOptimizer, Plan], Attached]
    sparse: bool = True
    options: Options = field(default_factory=dict)
    bf16: bool = False


@dataclass
class Sparse(Attached):
    """Some weights are trained, by a `Sparsifier`, which does all in hooks of the optimizer."""

    sparsifier: Sparsifier | None = None

    def nonzeros(self) -> Mapping[str, int]:
        """Of masked weights those in use, of others all."""
        assert self.sparsifier is not None
        return {**super().nonzeros(), **self.sparsifier.nonzeros}

    def results(self) -> dict[str, Any]:
        """How often the topology changed, and which layers ran on sparse kernels."""
        assert self.sparsifier is not None
        return {"updates": self.sparsifier.updates, "kernels": self.sparsifier.line}

    def state_dict(self) -> dict[str, Any]:
        """The sparsifier's."""
        assert self.sparsifier is not None
        return self.sparsifier.state_dict()

    def load(self, model: dict[str, Any], optimizer: dict[str, Any], method: dict[str, Any]) -> None:
        """All three."""
        super().load(model, optimizer, method)
        assert self.sparsifier is not None
        self.sparsifier.load_state_dict(method)


def _is_block(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(isinstance(one, int) and not isinstance(one, bool) and 1 <= one <= 128 for one in value)
    )


def _is_interval(value: object) -> bool:
    return value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1)


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _options(
    block: list[int] | None = None, dense_grad_every: int | str = "auto", distribution: str = "uniform"
) -> Options:
    """What a suite may set for sparse methods, and what it is where none does."""
    return {
        "distribution": (distribution, ", ".join(map(repr, DISTRIBUTIONS)), lambda value: value in DISTRIBUTIONS),
        "prune_rate": options.share(0.5),
        "updates_per_epoch": options.whole(1),
        "dense_grad_every": (dense_grad_every, "'auto' or a number of steps", _is_interval),
        "block": (block, "rows and columns from 1 to 128", _is_block),
        "ignore": ([], "names of layers", _is_names),
        "scaled_init": (False, "true or false", lambda value: isinstance(value, bool)),
    }


def _dense(model: nn.Module, make: MakeOptimizer, plan: Plan) -> Attached:
    return Attached(model, make(model.parameters()))


def _dense_bf16(model: nn.Module, make: MakeOptimizer, plan: Plan) -> Attached:
    """Under autocast; on CPUs channels_last is the faster layout of convolutions in bfloat16."""
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Attached(model, make(model.parameters()), _bf16(plan))


def _bf16(plan: Plan) -> Context:
    return functools.partial(torch.autocast, plan.run.settings["device"], torch.bfloat16)


def _sparse(
    model: nn.Module,
    make: MakeOptimizer,
    plan: Plan,
    *,
    algorithm: str,
    growth: str | None = None,
    kernels: bool = False,
    bf16: bool = False,
) -> Attached:
    """The topology changes so many times an epoch, but not after the last one, by a rate that falls by a cosine."""
    run, optimizer = plan.run, make(model.parameters())
    assert run.density is not None
    given = options.values(METHODS[run.method].options, run.options)
    every = max(1, plan.per_epoch // given["updates_per_epoch"])
    changes = algorithm != "static"
    block = given["block"]
    sparsifier = Sparsifier(
        model,
        optimizer,
        run.density,
        algorithm=algorithm,
        growth=growth,
        distribution=given["distribution"],
        prune_rate=CosineDecay(given["prune_rate"], plan.steps),
        update_every=every if changes else None,
        last_update=max(1, plan.steps - plan.per_epoch) if changes else None,
        dense_grad_every=given["dense_grad_every"],
        block=None if block is None else (block[0], block[1]),
        ignore=given["ignore"],
        seed=seed_of(run.seed, "masks"),
        kernels=kernels,
        progress=False,
    )
    if given["scaled_init"]:
        _scale(model, sparsifier)
    return Sparse(model, optimizer, _bf16(plan) if bf16 else contextlib.nullcontext, sparsifier)


@torch.no_grad()
def _scale(model: nn.Module, sparsifier: Sparsifier) -> None:
    """Multiply the weights of each layer by 1 / sqrt(its density): initializers count inputs that masks leave out."""
    for name, mask in sparsifier.masks.items():
        model.get_parameter(name).mul_((mask.numel() / int(mask.sum())) ** 0.5)


def _by(about: str, algorithm: str, known: Options | None = None, bf16: bool = False, **settings: Any) -> Method:
    attach = functools.partial(_sparse, algorithm=algorithm, bf16=bf16, **settings)
    return Method(about, attach, options=known or _options(), bf16=bf16)


METHODS: Mapping[str, Method] = {
    "dense": Method("all weights, float32", _dense, sparse=False),
    "dense-bf16": Method("all weights, under autocast to bfloat16", _dense_bf16, sparse=False, bf16=True),
    "sparse momentum": _by("Dettmers & Zettlemoyer 2019", "sparse momentum"),
    "sparse momentum, 10th steps": _by(
        "sparse momentum that sees the gradients of missing weights at every 10th step alone",
        "sparse momentum",
        _options(dense_grad_every=10),
    ),
    "sparse momentum, ERK": _by(
        "sparse momentum that begins with more weights in small layers, by ERK (Evci et al. 2020)",
        "sparse momentum",
        _options(distribution="ERK"),
    ),
    "random growth": _by("sparse momentum that grows at random places", "sparse momentum", growth="random"),
    "SET": _by("Mocanu et al. 2018", "SET"),
    "RigL": _by("Evci et al. 2020", "RigL"),
    "SRigL": _by("Lasby et al. 2024", "SRigL"),
    "gradual magnitude": _by("Zhu & Gupta 2017, from dense on", "gradual magnitude"),
    "static": _by("a random mask that stays", "static"),
    "sparse": _by("sparse momentum, on sparse kernels where these are faster", "sparse momentum", kernels=True),
    "block-sparse": _by(
        "sparse momentum of blocks, under autocast to bfloat16, on the kernels for blocks",
        "sparse momentum",
        _options([16, 16]),
        kernels=True,
        bf16=True,
    ),
}
"""The methods by name. With the last two, which layers run on sparse kernels is measured, and no part of the run: they
give the same accuracy in the mean, and not the same bits."""


def left_out(run: Run) -> str | None:
    """Why a run is not made on this machine unless it is asked for by name; None where it is made."""
    if run.settings["device"] == "cpu" and METHODS[run.method].bf16 and not has_bfloat16_convolutions():
        return "torch's convolutions in bfloat16 take many times as long as those in float32 on this processor"
    return None


def check_options(where: str, name: str, given: Mapping[str, object]) -> None:
    """Raise ValueError for an option that the method does not have, or of a value that it does not take."""
    options.check(where, METHODS[name].options, given)
