# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Language models at work, as the suites `openelm` and `decode` measure them: a prompt, or a token at a time."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import dispatch, testing
from . import openelm_model
from .devices import capture
from .record import Record
from .suite import Case, Verdict

Prepare = Callable[[openelm_model.Generator, Tensor], object]
"""Given a generator and a prompt."""


def tokens_for(case: Case, model: Any) -> Tensor:
    """A text of the case's length: (1, prompt + generate)."""
    length = case.parameters["prompt"] + case.parameters.get("generate", 0)
    draws = torch.Generator().manual_seed(0)
    return torch.randint(model.config.vocabulary, (1, length), generator=draws).to(case.device)


@dataclass(frozen=True)
class Runs:
    """A model at work on a case: what is timed, and the logits that follow the case's text, read in the same way."""

    call: Callable[[], object]
    logits: Callable[[], Tensor]


def runs(case: Case, model: Any, graph: bool = False, prepare: Prepare = lambda generator, tokens: None) -> Runs:
    """The model at work. prepare: what is done with its generator before, which then has room for a token more."""
    return (_generate if "generate" in case.parameters else _prompt)(case, model, graph, prepare)


def _prompt(case: Case, model: Any, graph: bool, prepare: Prepare) -> Runs:
    """The whole text at once."""
    generator, tokens = openelm_model.Generator(model, 1, case.parameters["prompt"] + 1), tokens_for(case, model)
    prepare(generator, tokens)
    read = functools.partial(generator.prompt, tokens)
    call: Callable[[], object] = _capture(read).replay if graph else read

    def logits() -> Tensor:
        call()
        result: Tensor = generator.logits
        return result

    return Runs(call, logits)


def _generate(case: Case, model: Any, graph: bool, prepare: Prepare) -> Runs:
    """One token a call, in turn each of those that follow the prompt."""
    tokens, prompt, new = tokens_for(case, model), case.parameters["prompt"], case.parameters["generate"]
    generator = openelm_model.Generator(model, 1, prompt + new, cuda_graph=graph)
    prepare(generator, tokens[:, :prompt])
    generator.prompt(tokens[:, :prompt])
    turns = itertools.cycle(range(new))

    def call() -> None:
        if next(turns) == 0:
            generator.position.fill_(prompt)
        generator.step()

    def logits() -> Tensor:
        generator.prompt(tokens[:, :prompt])
        for index in range(prompt, prompt + new):
            generator.token.copy_(tokens[:, index : index + 1])
            generator.step()
        result: Tensor = generator.logits
        return result

    return Runs(call, logits)


def _capture(call: Callable[[], object]) -> torch.cuda.CUDAGraph:
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.synchronize()
    return capture(call, stream)[0]


class Oracle:
    """Holds the logits after the case's text against a model that is computed in float64 and keeps no cache."""

    def __init__(self, case: Case, base: Any) -> None:
        self._case, self._base = case, base

    @functools.cached_property
    def _reference(self) -> tuple[Tensor, Tensor]:
        """The logits in float64, and those of the reference in the case's dtype."""
        with dispatch.use_backend("reference"):
            return _last_logits(self._base, tokens_for(self._case, self._base)), runs(self._case, self._base).logits()

    def check(self, logits: Tensor, roundings: int = 1) -> Verdict:
        """The error is held to that of the reference, whose norms round once, times `roundings`."""
        truth, baseline = self._reference
        comparison = testing.compare("logits", logits, truth, truth + roundings * (baseline - truth))
        return Verdict(comparison.error, comparison.passed)


@torch.no_grad()
def _last_logits(model: Any, tokens: Tensor) -> Tensor:
    """Logits in float64 after the last of `tokens`, a block at a time: all of a 3B model would need 24 GB."""
    positions = openelm_model.Positions.at(torch.arange(tokens.shape[1], device=tokens.device), model.config, None)
    x, residual = model.embedding(tokens).double(), None
    for block in model.blocks:
        x, residual = copy.deepcopy(block).double()(x, residual, positions)
    assert residual is not None  # every size has layers
    hidden, _ = openelm_model.add_norm(copy.deepcopy(model.norm).double(), x, residual)
    return F.linear(hidden[:, -1], model.embedding.weight.double())


def tokens_of(record: Record) -> float:
    """Tokens of one timed call: the whole prompt, or one that is generated."""
    kind, _, count = record.case.rpartition("/")[2].partition("-")
    return float(count) if kind == "prompt" else 1.0
