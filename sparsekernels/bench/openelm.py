# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The suite `openelm`: tokens per second of whole language models that differ in nothing but their norms.

The model is `openelm_model.py` beside this file. All variants of a case share one set of random weights and are
interleaved, so the comparison needs the memory of one model.

The share of time that the norms take is measured by leaving them out: `none` is the same model with every norm
replaced by nothing, the additions between the layers kept. This counts what a norm really costs inside the model
(launches that overlap, caches that it fills), which timing the calls by themselves does not.
"""

from __future__ import annotations

import contextlib
import copy
import fnmatch
import functools
import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparsekernels

from .. import dispatch, testing
from ..ops.rms_norm.implementations import RMS_NORM
from ..timing import Effort
from . import openelm_model
from .devices import capture
from .record import Record
from .report import Column, Layout, Row, rate_column, speedup_column
from .suite import Case, Prepared, Selection, Suite, Variant, Verdict

DEFAULT_MODEL = "270M"

Context = Callable[[], AbstractContextManager[object]]

NORMS: dict[str, Any] = {
    "naive": openelm_model.NaiveRMSNorm,
    "torch": nn.RMSNorm,
    "layer_norm": nn.LayerNorm,
    "ours": sparsekernels.nn.RMSNorm,
    "ours_add": openelm_model.AddRMSNorm,
    "none": lambda dim, eps: nn.Identity(),
}
"""The variants. `ours_add` fuses each norm with the addition before it, `ours` only replaces torch's module."""

OTHER_FUNCTIONS = ("layer_norm", "none")
"""Variants that compute something else and are held to nothing."""

ROUNDINGS = {"naive": 2}
"""How often a norm rounds to the dtype, where not once: the authors' rounds before the weight and behind it."""


def variants(case: Case, selection: Selection) -> list[Variant]:
    """One model for each norm. On CUDA also ours on the other backend, and all of them in CUDA graphs."""
    base = _base(case.name.partition("/")[0], case.dtype, case.device)
    oracle = _Oracle(case, base)
    builds: dict[str, tuple[Any, Context]] = {name: (norm, contextlib.nullcontext) for name, norm in NORMS.items()}
    if case.device == "cuda":
        for name in RMS_NORM.backends(base.norm.weight)[1:]:
            if name != "reference":
                builds[name] = (NORMS["ours"], functools.partial(dispatch.use_backend, name))
    return [
        Variant(
            f"{name}/graph" if graph else name,
            functools.partial(
                _prepare,
                case,
                base,
                norm,
                backend,
                graph,
                None if name in OTHER_FUNCTIONS else functools.partial(oracle.check, roundings=ROUNDINGS.get(name, 1)),
            ),
        )
        for graph in ((False, True) if case.device == "cuda" else (False,))
        for name, (norm, backend) in builds.items()
    ]


@functools.lru_cache(maxsize=1)
def _base(model: str, dtype: str, device: str) -> Any:
    """The model whose weights all variants use; kept for the next case, which often wants the same."""
    return openelm_model.build(model, sparsekernels.nn.RMSNorm, dtype=getattr(torch, dtype), device=device)


def _tokens(case: Case) -> Tensor:
    """A text of the case's length: (1, prompt + generate)."""
    length = case.parameters["prompt"] + case.parameters.get("generate", 0)
    return torch.randint(
        openelm_model.CONFIGS[case.name.partition("/")[0]].vocabulary,
        (1, length),
        generator=torch.Generator().manual_seed(0),
    ).to(case.device)


@dataclass(frozen=True)
class _Runs:
    """A model at work on a case: what is timed, and the logits that follow the case's text, read in the same way."""

    call: Callable[[], object]
    logits: Callable[[], Tensor]


def _prepare(
    case: Case, base: Any, norm: Any, backend: Context, graph: bool, oracle: Callable[[Tensor], Verdict] | None
) -> Prepared:
    with backend():
        runs = _runs(case, openelm_model.with_norm(base, norm), graph)

    def check() -> Verdict:
        assert oracle is not None
        with backend():
            return oracle(runs.logits())

    return Prepared(runs.call, context=backend, check=None if oracle is None else check)


def _runs(case: Case, model: Any, graph: bool = False) -> _Runs:
    return (_generate if "generate" in case.parameters else _prompt)(case, model, graph)


def _prompt(case: Case, model: Any, graph: bool) -> _Runs:
    """The whole text at once."""
    generator, tokens = openelm_model.Generator(model, 1, case.parameters["prompt"]), _tokens(case)
    read = functools.partial(generator.prompt, tokens)
    call: Callable[[], object] = _capture(read).replay if graph else read

    def logits() -> Tensor:
        call()
        result: Tensor = generator.logits
        return result

    return _Runs(call, logits)


def _generate(case: Case, model: Any, graph: bool) -> _Runs:
    """One token a call, in turn each of those that follow the prompt."""
    tokens, prompt, new = _tokens(case), case.parameters["prompt"], case.parameters["generate"]
    generator = openelm_model.Generator(model, 1, prompt + new, cuda_graph=graph)
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

    return _Runs(call, logits)


def _capture(call: Callable[[], object]) -> torch.cuda.CUDAGraph:
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.synchronize()
    return capture(call, stream)[0]


class _Oracle:
    """Holds the logits after the case's text against a model that is computed in float64 and keeps no cache."""

    def __init__(self, case: Case, base: Any) -> None:
        self._case, self._base = case, base

    @functools.cached_property
    def _reference(self) -> tuple[Tensor, Tensor]:
        """The logits in float64, and those of the reference in the case's dtype."""
        with dispatch.use_backend("reference"):
            return _last_logits(self._base, _tokens(self._case)), _runs(self._case, self._base).logits()

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


class _OpenELM(Suite):
    def cases(self, selection: Selection) -> list[Case]:
        """The selected cases: of the default model, and of those that `selection.cases` names."""
        named = [glob.partition("/")[0] for glob in selection.cases]

        def wanted(model: str) -> bool:
            return model == DEFAULT_MODEL or any(fnmatch.fnmatchcase(model, glob) for glob in named)

        return [case for case in super().cases(selection) if wanted(case.name.partition("/")[0])]


def tokens_of(record: Record) -> float:
    """Tokens of one timed call: the whole prompt, or one that is generated."""
    kind, _, count = record.case.rpartition("/")[2].partition("-")
    return float(count) if kind == "prompt" else 1.0


def speed_column(variant: str) -> Column:
    """Tokens per second of `variant`, and in brackets the share of time that its norms take."""
    rate = rate_column(variant, "tokens/s", tokens_of)

    def text(row: Row) -> str:
        record = row.get(variant)
        if record is None or record.p50_ms is None:
            return "" if record is None else record.status
        share = "" if record.ideal_fraction is None else f" ({1 - record.ideal_fraction:.1%})"
        return rate.text(row) + share

    return Column(variant, text)


SUITE = _OpenELM(
    name="openelm",
    about="OpenELM with different norms; 270M, or --case 450M, 1.1B, 3B",
    variants=variants,
    baseline="layer_norm",
    ideal="none",
    full=Effort(seconds=40),
    quick=Effort(seconds=3, least=3),
    layout=Layout(
        columns=(
            *map(speed_column, ("naive", "torch", "layer_norm", "triton", "ours", "ours_add")),
            speedup_column("ours", "ours speedup"),
            speedup_column("ours_add", "ours_add speedup"),
        ),
        legend=(
            "Tokens per second, from medians: of a whole prompt, or of tokens generated one by one after 64. In "
            "brackets the share of time that the norms take, against the same model without them, the median over the "
            "rounds. speedup: over the model with LayerNorm, likewise. ours_add: each norm fused with the addition "
            "before it."
        ),
        subject="ours",
        rivals=("naive", "torch", "layer_norm"),
    ),
)
