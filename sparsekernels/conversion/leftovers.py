# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What other tools leave in a model, recognized by what is there, and zeros in weights that no layer here has.

None of these tools is imported: what counts is the attributes, the submodules and the modules of classes.
"""

from __future__ import annotations

import collections
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .._torch import NormBase
from ..pruning.nncf import is_of_nncf, mask_hooks
from .facts import Fact, LayerObstacle, Note
from .modules import is_ordinary

_QUANTIZED = ("torch.ao.nn.quantized.", "torch.ao.nn.intrinsic.quantized.")


MASKS = (
    LayerObstacle.FAKE_SPARSITY,
    LayerObstacle.MASKED,
    LayerObstacle.MASKED_BY_MODELOPT,
    LayerObstacle.MASK_BESIDE,
)
"""Of layers whose pruning has to be made permanent."""


def obstacle_left_in(module: nn.Module) -> Fact | None:
    """Why a layer stays, where another tool's work on it has to be ended first; and how that is done."""
    if parametrize.is_parametrized(module):
        parametrizations: Any = module.parametrizations
        if "weight" not in parametrizations:
            return LayerObstacle.PARAMETRIZED_OTHERS.of(names=tuple(parametrizations))
        has_mask = any("mask" in one._buffers for one in parametrizations["weight"])
        return (LayerObstacle.FAKE_SPARSITY if has_mask else LayerObstacle.PARAMETRIZED).of()
    parameters, buffers = module._parameters, module._buffers
    if {"weight_g", "weight_v"} <= parameters.keys():
        return LayerObstacle.WEIGHT_NORM.of()
    if "weight_orig" in parameters and "weight_u" in buffers:
        return LayerObstacle.SPECTRAL_NORM.of()
    for name in ("weight", "bias"):
        if f"{name}_orig" in parameters:
            return LayerObstacle.MASKED.of(name=name)
    if "_weight_mask" in buffers:
        return LayerObstacle.MASKED_BY_MODELOPT.of()
    for name in ("weight", "bias"):
        if f"{name}_mask" in buffers:
            return LayerObstacle.MASK_BESIDE.of(name=name)
    return None


def obstacle_of_foreign(module: nn.Module) -> Fact | None:
    """Why a layer that is of no class to convert, but is one by its name, stays; None for what is none."""
    kind = type(module)
    if isinstance(module, torch.jit.ScriptModule):
        return None
    if kind.__module__.startswith(_QUANTIZED) and callable(getattr(kind, "weight", None)):
        return LayerObstacle.QUANTIZED.of(kind=f"{kind.__module__}.{kind.__name__}")
    has_values = any(name.endswith("values") for name in module._parameters)
    if has_values and not any(module.children()) and not hasattr(module, "weight"):
        return LayerObstacle.OWN_VALUES.of(kind=kind.__name__)
    return None


def is_forward_of_nncf(module: nn.Module) -> bool:
    """Whether NNCF gave it a `forward` of its own."""
    return is_of_nncf(vars(module).get("forward"))


def masked_by_nncf(model: nn.Module) -> set[str]:
    """The names of layers whose weight NNCF masks in each call, by modules among its hooks."""
    return {hook.name.rpartition(".")[0] for hook in mask_hooks(model) if hook.name.endswith(".weight")}


@dataclass
class _Zeros:
    """Parameters of one kind with zeros: their names, how many elements they have, and how many of these are zero."""

    names: list[str] = field(default_factory=list)
    elements: int = 0
    zeros: int = 0

    @property
    def words(self) -> str:
        others = f" and {len(self.names) - 1} more" if len(self.names) > 1 else ""
        return f"{self.names[0]}{others}, {self.zeros / self.elements:.0%} zeros"


def zeros_elsewhere(model: nn.Module, layers: Collection[int], least: float) -> Iterator[Fact]:
    """Where there are zeros, or masks that would make some, beside those of the layers that may be exchanged.

    layers: the ids of these. least: the share of zeros that counts; of a BatchNorm's scales each one does.
    """
    weights: dict[str, _Zeros] = collections.defaultdict(_Zeros)
    norms: dict[str, _Zeros] = collections.defaultdict(_Zeros)
    masks = _Zeros()
    for hook in mask_hooks(model):
        if not hook.parameter.is_meta:
            _count(masks, hook.name, hook.mask())
    for owner, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue
        for name, parameter in module._parameters.items():
            if id(module) in layers or not is_ordinary(parameter) or parameter.is_meta or parameter.numel() == 0:
                continue
            full = f"{owner}.{name}" if owner else name
            if isinstance(module, NormBase) and name == "weight":
                if not bool(parameter.detach().all()):
                    _count(norms[type(module).__name__], full, parameter)
            elif parameter.dim() > 1:
                share = 1 - int(parameter.detach().count_nonzero()) / parameter.numel()
                if least <= share < 1:  # one that is all zero is not pruned: it was not trained yet
                    _count(weights[f"{type(module).__name__}.{name}"], full, parameter)
    if masks.names:
        yield Note.MASKS_OF_NNCF.of(masks=masks.words)
    if weights:
        found = tuple(f"{kind} ({zeros.words})" for kind, zeros in weights.items())
        yield Note.ZEROS_ELSEWHERE.of(weights=found)
    if norms:
        found = tuple(f"{kind} ({zeros.words})" for kind, zeros in norms.items())
        yield Note.ZERO_SCALES.of(norms=found)


def _count(zeros: _Zeros, name: str, tensor: Tensor) -> None:
    zeros.names.append(name)
    zeros.elements += tensor.numel()
    zeros.zeros += tensor.numel() - int(tensor.detach().count_nonzero())
