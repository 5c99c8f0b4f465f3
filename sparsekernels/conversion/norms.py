# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""replace_norms: the RMSNorm modules of other libraries become `sparsekernels.nn.RMSNorm`, by what they compute.

A module is a candidate if it has no modules inside, one input, at most one tensor, and an attribute for its epsilon.
`norm_probe` says what it is exchanged for.
"""

from __future__ import annotations

import inspect
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..checks import DTYPES
from ..nn.norm import RMSNorm
from ..ops.rms_norm.op import rms_norm
from .modules import has_hooks
from .norm_probe import epsilons, is_torchs, recognized
from .watch.state import KEPT_BY_TORCH


@dataclass(frozen=True)
class NormReport:
    """One module that is an RMSNorm, or looks like one.

    Attributes:
        name: In the model, as `named_modules` has it.
        kind: The name of its class.
        replaced: Whether it was exchanged.
        options: Of the `sparsekernels.nn.RMSNorm` in its place: "eps", "cast", "unit_offset", "elementwise_affine".
        reason: Why it was not; empty where it was.
    """

    name: str
    kind: str
    replaced: bool
    options: dict[str, Any]
    reason: str = ""


@dataclass(frozen=True)
class NormsReport:
    """What `replace_norms` did. `str` gives it as text, modules alike in one line.

    Attributes:
        norms: A row for each module, in the order of the model.
    """

    norms: tuple[NormReport, ...]

    @property
    def replaced(self) -> int:
        """How many modules were exchanged."""
        return sum(norm.replaced for norm in self.norms)

    def __str__(self) -> str:
        lines = [f"{self.replaced} of {len(self.norms)} norms run as sparsekernels.nn.RMSNorm"]
        alike = Counter((norm.kind, tuple(norm.options.items()), norm.reason) for norm in self.norms)
        first = {(norm.kind, tuple(norm.options.items()), norm.reason): norm.name for norm in reversed(self.norms)}
        for key, count in alike.items():
            kind, options, reason = key
            what = f"not replaced: {reason}" if reason else ", ".join(f"{name}={value!r}" for name, value in options)
            lines.append(f"  {count} x {kind} ({first[key]}{', ...' if count > 1 else ''}): {what}")
        return "\n".join(lines)


class ReplacedRMSNorm(RMSNorm):
    """What stands in the place of another library's norm: with its tensors under their names, and its attributes."""

    _weight: str | None
    _input: str

    def __init__(self, original: nn.Module, options: dict[str, Any]) -> None:
        nn.Module.__init__(self)
        theirs = vars(original)
        own = frozenset(vars(nn.Module()))
        vars(self).update({name: value for name, value in theirs.items() if name not in own})
        self.eps = options["eps"]
        self.cast, self.unit_offset = options["cast"], options["unit_offset"]
        self.elementwise_affine = options["elementwise_affine"]
        names = [*original._parameters, *original._buffers]
        vars(self)["_weight"] = names[0] if names and self.elementwise_affine else None
        vars(self)["_input"] = next(iter(inspect.signature(original.forward).parameters))
        vars(self)["_original"] = original  # no part of the model
        weight = getattr(original, names[0]) if self._weight is not None else None
        given: tuple[int, ...] = theirs["normalized_shape"] if is_torchs(original) else ()
        self.normalized_shape = given if weight is None else tuple(weight.shape)
        self._share(original, self)

    @staticmethod
    def _share(source: nn.Module, target: nn.Module) -> None:
        """Let `target` have the tensors of `source`, and its mode."""
        target._parameters.clear()
        target._parameters.update(source._parameters)
        target._buffers.clear()
        target._buffers.update(source._buffers)
        target._non_persistent_buffers_set = set(source._non_persistent_buffers_set)
        target.training = source.training

    def original(self) -> nn.Module:
        """The module that was replaced, with the present values of its parameters."""
        original: nn.Module = vars(self)["_original"]
        self._share(self, original)
        return original

    def _scale(self) -> Tensor | None:
        name = self._weight
        return None if name is None else self._parameters[name] if name in self._parameters else self._buffers[name]

    def reset_parameters(self) -> None:
        scale = self._scale()
        if scale is not None:
            nn.init.constant_(scale, 0 if self.unit_offset else 1)

    def extra_repr(self) -> str:
        options = ("eps", "elementwise_affine", "cast", "unit_offset")
        shape = self.normalized_shape or "any"
        return ", ".join([f"{shape}", *(f"{name}={getattr(self, name)!r}" for name in options)])

    def forward(self, input: Tensor | None = None, **named: Tensor) -> Tensor:  # type: ignore[override]
        if input is None:
            if list(named) != [self._input]:
                raise TypeError(f"RMSNorm: expected one input, {self._input}, got {list(named)}")
            input = named[self._input]
        shape = self.normalized_shape or input.shape[-1:]
        return rms_norm(input, shape, self._scale(), self.eps, self.cast, self.unit_offset)

    def add_forward(self, input: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        total = input + residual
        return self(total), total


def replace_norms(model: nn.Module) -> NormsReport:
    r"""Exchange the RMSNorm modules of a model for `sparsekernels.nn.RMSNorm`, in place, by what they compute.

        y = x / sqrt(mean(x^2) + eps) * weight      (or * (1 + weight), rounded before or after; or without weight)

    Classes of transformers, timm and others: six to eight operations each become one. A copy of each is compared with
    `rms_norm` on random input of all dtypes, and exchanged only where shape, dtype and values of the results are the
    same up to a rounding, and ours no farther from the exact value. So it goes by no name, and a norm that multiplies
    by 1 + weight becomes one with `unit_offset`. Parameters are shared and keep their names: optimizers, `state_dict`
    and checkpoints do not notice. `revert` puts the modules back.

    Args:
        model: Any module.

    Returns:
        The report: a row for each norm, with its options, or why it was left as it is.

    Raises:
        TypeError: `model` is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"replace_norms: expected model to be a torch.nn.Module, got {type(model).__name__}")
    rows: list[NormReport] = []
    done: dict[int, ReplacedRMSNorm] = {}
    verdicts: dict[object, dict[str, Any] | str] = {}
    for name, module in model.named_modules():
        if not _looks_like_one(module):
            continue
        kind = type(module).__name__
        reason = "it is the whole model, which is not replaced in place" if name == "" else _obstacle(module)
        if reason is None:
            key = _key(module)
            if key not in verdicts:
                verdicts[key] = recognized(module)
            verdict = verdicts[key]
            if isinstance(verdict, dict):
                done[id(module)] = ReplacedRMSNorm(module, verdict)
                rows.append(NormReport(name, kind, True, verdict))
                continue
            reason = verdict
        rows.append(NormReport(name, kind, False, {}, reason))
    for parent in list(model.modules()):
        for name, module in parent._modules.items():
            if id(module) in done:
                parent._modules[name] = done[id(module)]
    return NormsReport(tuple(rows))


def check_norms(model: nn.Module, function: str) -> None:
    """Raise where something was done to a norm that was replaced which its original would not have."""
    for name, module in model.named_modules():
        if isinstance(module, ReplacedRMSNorm) and (has_hooks(module) or parametrize.is_parametrized(module)):
            raise RuntimeError(
                f"{function}: the replaced norm {name!r} was given hooks or a parametrization since, which would be"
                " lost; remove them before"
            )


def restore_norms(model: nn.Module) -> None:
    """Put the modules back that `replace_norms` exchanged."""
    for parent in list(model.modules()):
        for name, module in parent._modules.items():
            if isinstance(module, ReplacedRMSNorm):
                parent._modules[name] = module.original()


def _looks_like_one(module: nn.Module) -> bool:
    """Whether it is named as one, or has what one needs; torch's other modules are known not to be one."""
    if isinstance(module, RMSNorm | torch.jit.ScriptModule):
        return False
    if "rmsnorm" in type(module).__name__.lower().replace("_", ""):
        return True
    if type(module).__module__.startswith("torch.") or module._modules or not epsilons(module):
        return False
    tensors = [*module._parameters.values(), *module._buffers.values()]
    return all(one is not None and one.dim() == 1 for one in tensors[:1]) and len(tensors) <= 1


def _obstacle(module: nn.Module) -> str | None:
    """Why a module is not asked what it computes."""
    if parametrize.is_parametrized(module):
        return "its weight is parametrized"
    if module._modules:
        return f"it has modules inside: {', '.join(module._modules)}"
    if has_hooks(module):
        return "it has hooks"
    if "forward" in vars(module) or module._compiled_call_impl is not None:
        return "its forward was replaced"
    parameters = list(inspect.signature(module.forward).parameters.values())
    if len(parameters) != 1 or parameters[0].kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD:
        names = ", ".join(str(one) for one in parameters[1:] or parameters)
        return f"its forward takes more than the input: {names}"
    every = {**module._parameters, **module._buffers}
    tensors = {name: tensor for name, tensor in every.items() if tensor is not None}
    for name, tensor in tensors.items():
        if type(tensor) not in (nn.Parameter, Tensor) or tensor.layout != torch.strided:
            return f"its {name} is a {type(tensor).__name__}, no ordinary tensor"
        if tensor.dtype not in DTYPES or tensor.is_meta:
            return f"its {name} is of {tensor.dtype} on {tensor.device}"
        if tensor.numel() < 2:
            return f"its {name} of {tensor.numel()} elements fits inputs of any width"
    if is_torchs(module):
        return None
    if len(every) > 1:
        return f"it has more tensors than a weight: {', '.join(every)}"
    if len(tensors) != len(every):
        return f"its {next(iter(every))} is None"
    for name, tensor in tensors.items():
        if tensor.dim() != 1:
            return f"its {name} has the shape {list(tensor.shape)}"
    if not epsilons(module):
        return "no attribute of it says its epsilon"
    return None


def _told(value: object) -> str:
    """What tells two attributes apart; of what has no value of its own, which object it is."""
    plain = value is None or type(value) in (bool, int, float, str, torch.dtype, torch.Size)
    if type(value) in (tuple, list):
        return f"{type(value).__name__} of {', '.join(map(_told, value))}"  # type: ignore[call-overload]
    return repr(value) if plain else f"{type(value).__name__} {id(value)}"


def _key(module: nn.Module) -> object:
    """Modules that agree in this compute the same."""
    plain = {name: _told(value) for name, value in vars(module).items() if name not in KEPT_BY_TORCH}
    shapes = [(name, None if one is None else tuple(one.shape)) for name, one in module._parameters.items()]
    buffers = [(name, None if one is None else tuple(one.shape)) for name, one in module._buffers.items()]
    return type(module), repr(sorted(plain.items(), key=lambda item: item[0])), repr((shapes, buffers))
