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
import fnmatch
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

import sparsekernels

from .. import dispatch
from ..ops.rms_norm.implementations import RMS_NORM
from ..timing import Effort
from . import language, openelm_model
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
    oracle = language.Oracle(case, base)
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


def _prepare(
    case: Case, base: Any, norm: Any, backend: Context, graph: bool, oracle: Callable[[Tensor], Verdict] | None
) -> Prepared:
    with backend():
        runs = language.runs(case, openelm_model.with_norm(base, norm), graph)

    def check() -> Verdict:
        assert oracle is not None
        with backend():
            return oracle(runs.logits())

    return Prepared(runs.call, context=backend, check=None if oracle is None else check)


class _OpenELM(Suite):
    def cases(self, selection: Selection) -> list[Case]:
        """The selected cases: of the default model, and of those that `selection.cases` names."""
        named = [glob.partition("/")[0] for glob in selection.cases]

        def wanted(model: str) -> bool:
            return model == DEFAULT_MODEL or any(fnmatch.fnmatchcase(model, glob) for glob in named)

        return [case for case in super().cases(selection) if wanted(case.name.partition("/")[0])]


def speed_column(variant: str) -> Column:
    """Tokens per second of `variant`, and in brackets the share of time that its norms take."""
    rate = rate_column(variant, "tokens/s", language.tokens_of)

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
