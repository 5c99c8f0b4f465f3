# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The suite `decode`: tokens per second of pruned language models, on a CPU, for a prompt and one token at a time.

The models are OpenELM's and one of Llama's shape (`openelm_model.py`) with random weights, of which the linear layers
of all blocks are pruned; embedding and head, which are one matrix, stay dense. All variants of a case have the same
weights:

dense          torch, in the dtype of the case
dense-float32  torch in float32: the faster one where a processor has no arithmetic in bfloat16
compile        torch.compile of the dense model
packed         every pruned layer is a `PackedLinear`
ours           what `sparsekernels.convert` makes of it for a prompt and a step, with frozen=True and limited time,
               unchanged where it finds nothing faster

The short benchmark has compile and ours only where --variant names variants.

Held against the dense model in float64, as in `openelm`. Random weights: what is generated means nothing.
"""

from __future__ import annotations

import copy
import fnmatch
import functools
import gc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .._torch import backend_compiler_failed
from ..conversion import convert
from ..nn import PackedLinear
from ..pruning import prune_
from ..timing import Effort
from . import language, openelm_model
from .report import Column, Layout, Row, rate_column, speedup_column, time_ratio
from .suite import Case, Prepared, Selection, Suite, Unavailable, Variant

MODELS = {
    "openelm-270m": openelm_model.CONFIGS["270M"],
    "openelm-1.1b": openelm_model.CONFIGS["1.1B"],
    "llama-1b": openelm_model.LLAMA_1B,
}

DEFAULT_MODEL = "openelm-270m"

QUICK_SPARSITY = 80.0

MOST_SECONDS = 180.0
"""For `convert`: hardly two of OpenELM's blocks are alike, so that each has layers of its own to be measured."""

DENSE = ("dense", "dense-float32", "compile")
"""The variants that compute with zeros."""


def variants(case: Case, selection: Selection) -> list[Variant]:
    """The dense model in two dtypes and compiled, and two without its zeros; of one pattern of these."""
    weights = _Weights(case)
    builds: dict[str, Callable[[Case, Any], tuple[Any, language.Prepare]]] = {"dense": _dense}
    if case.dtype != "float32":
        builds["dense-float32"] = _in_float32
    builds["packed"] = _packed
    if not selection.quick or selection.variants:
        builds |= {"compile": _compiled, "ours": _converted}
    return [
        Variant(
            f"{name}:{case.pattern}",
            functools.partial(_prepare, case, weights, build),
            None if name in DENSE else case.parameters["sparsity"] / 100,
        )
        for name, build in builds.items()
    ]


class _Weights:
    """The dense model of a case, made when a variant first needs it: by then that of the case before is gone."""

    def __init__(self, case: Case) -> None:
        self._case = case

    @functools.cached_property
    def base(self) -> Any:
        own = self._case.parameters
        return _base(self._case.name.partition("/")[0], self._case.dtype, own["mask"], own["sparsity"])

    @functools.cached_property
    def oracle(self) -> language.Oracle:
        return language.Oracle(self._case, self.base)


_KEPT: dict[tuple[str, str, str, float], Any] = {}
"""The model that was made last: the next case often wants the same."""


def _base(model: str, dtype: str, mask: str, percent: float) -> Any:
    """The dense model with its zeros."""
    key = (model, dtype, mask, percent)
    if key not in _KEPT:
        _KEPT.clear()
        gc.collect()  # what was compiled refers to itself
        result = openelm_model.build(MODELS[model], nn.RMSNorm, dtype=getattr(torch, dtype))
        prune_(result.blocks, mask, percent / 100)
        _KEPT[key] = result
    return _KEPT[key]


def _prepare(case: Case, weights: _Weights, build: Callable[[Case, Any], tuple[Any, language.Prepare]]) -> Prepared:
    model, prepare = build(case, weights.base)
    runs = language.runs(case, model, prepare=prepare)
    layers = {name: module for name, module in model.blocks.named_modules() if isinstance(module, nn.Linear)}
    size = sum(one.nbytes if isinstance(one, PackedLinear) else one.weight.nbytes for one in layers.values())
    packed = sum(isinstance(one, PackedLinear) for one in layers.values())
    details = {"weight_bytes": size, "layers": len(layers), "packed_layers": packed}
    return Prepared(runs.call, check=lambda: weights.oracle.check(runs.logits()), details=details)


def _nothing(generator: openelm_model.Generator, prompt: Tensor) -> None:
    """For models that are ready."""


def _dense(case: Case, base: Any) -> tuple[Any, language.Prepare]:
    return base, _nothing


def _in_float32(case: Case, base: Any) -> tuple[Any, language.Prepare]:
    return copy.deepcopy(base).float(), _nothing


def _twin(base: Any) -> Any:
    """A model of the same parameters, whose modules can be exchanged."""
    return copy.deepcopy(base, {id(one): one for one in base.parameters()})


def _compiled(case: Case, base: Any) -> tuple[Any, language.Prepare]:
    model = _twin(base)
    torch.compiler.reset()  # what has as many graphs of one function as its limit allows runs others uncompiled
    model.hidden = torch.compile(model.hidden, dynamic=False)
    try:
        language.runs(case, model).call()
    except backend_compiler_failed() as error:
        raise Unavailable(f"torch.compile fails: {' '.join(str(error).strip().splitlines()[:2])}") from error
    return model, _nothing


def _packed(case: Case, base: Any) -> tuple[Any, language.Prepare]:
    model = _twin(base)
    for path, module in list(model.blocks.named_modules()):
        if type(module) is nn.Linear:
            model.blocks.set_submodule(path, PackedLinear.from_dense(module))
    return model, _nothing


def _converted(case: Case, base: Any) -> tuple[Any, language.Prepare]:
    def prepare(generator: openelm_model.Generator, prompt: Tensor) -> None:
        length = prompt.shape[1]
        step = torch.zeros(1, 1, dtype=torch.int64), torch.tensor([length])
        with torch.no_grad():
            convert(
                generator.reader,
                example_inputs=[((prompt, torch.arange(length)), {}), (step, {})],
                max_seconds=MOST_SECONDS,
                progress=False,
                frozen=True,
            )

    return _twin(base), prepare


class _Decode(Suite):
    def cases(self, selection: Selection) -> list[Case]:
        """The selected cases, each once for each pattern: of the default model, and of those that `selection.cases`
        names. Those that share weights follow each other."""
        named = [glob.partition("/")[0] for glob in selection.cases]
        if selection.quick and not selection.sparsities:
            selection = replace(selection, sparsities=(QUICK_SPARSITY,))
        found: dict[tuple[str, str, str], list[Case]] = {}
        for case in super().cases(selection):
            model = case.name.partition("/")[0]
            if model == DEFAULT_MODEL or any(fnmatch.fnmatchcase(model, glob) for glob in named):
                for one in case.patterns(selection):
                    found.setdefault((model, case.dtype, one.pattern), []).append(one)
        return [case for cases in found.values() for case in cases]


def _over_best_dense(variant: str) -> Column:
    """How many times as fast as the fastest of the dense variants."""

    def text(row: Row) -> str:
        ratios = [time_ratio(row.get(name), row.get(variant)) for name in DENSE]
        known = [one for one in ratios if one is not None]
        return f"{min(known):.2f}x" if known else ""

    return Column(f"{variant} over the best dense", text)


def _megabytes(variant: str) -> Column:
    def text(row: Row) -> str:
        record = row.get(variant)
        return "" if record is None or not record.details else f"{record.details['weight_bytes'] / 1e6:.3g}"

    return Column(f"{variant} MB", text)


def _rate(variant: str) -> Column:
    return rate_column(variant, "tokens/s", language.tokens_of)


SUITE = _Decode(
    name="decode",
    about="pruned language models, prompts and decoding; OpenELM 270M, or --case openelm-1.1b, llama-1b",
    variants=variants,
    baseline="dense",
    ideal=None,
    full=Effort(seconds=20),
    quick=Effort(seconds=3, least=3),
    layout=Layout(
        columns=(
            *map(_rate, DENSE),
            _rate("packed"),
            speedup_column("packed", "packed speedup"),
            _over_best_dense("packed"),
            _rate("ours"),
            speedup_column("ours", "ours speedup"),
            _over_best_dense("ours"),
            *map(_megabytes, ("dense", "packed", "ours")),
        ),
        legend=(
            "Tokens per second, from medians: of a whole prompt, or of tokens generated one by one after 64; the row "
            "says where the zeros are and how many percent. Speedups are over dense in the same dtype, the median over "
            "the rounds; over the best dense: of dense, dense-float32 and compile. MB: of the weights of the blocks, "
            "as they are kept."
        ),
        subject="packed",
        rivals=DENSE,
    ),
    sparse=True,
)
