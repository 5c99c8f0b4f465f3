# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""replace_norms: the RMSNorm modules of other libraries run as `sparsekernels.rms_norm`, by what they compute.

A module is a candidate if it has no modules inside, one input, at most one tensor, and an attribute for its epsilon.
`norm_probe` says which variant it is, `norm_call` is what it runs as from then on.
"""

from __future__ import annotations

import contextvars
import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..checks import DTYPES
from ..nn.norm import RMSNorm
from .graph.attach import attach, attached, detach, has_method, may_derive, own_class
from .graph.untraceable import first_line
from .norm_call import RMSNormCall, is_plain_value, norm_call_of
from .norm_probe import epsilons, is_torchs, recognized
from .watch.reach import Reach
from .watch.snapshot import unchanged
from .watch.state import attributes_of
from .watch.writes import Writes


@dataclass(frozen=True)
class NormReport:
    """One module that is an RMSNorm, or looks like one.

    Attributes:
        name: In the model, as `named_modules` has it.
        kind: The name of its class.
        replaced: Whether it runs as `sparsekernels.rms_norm`.
        options: Of the `sparsekernels.nn.RMSNorm` that computes the same: "eps", "cast", "unit_offset",
            "elementwise_affine".
        reason: Why it does not; empty where it does.
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
        """How many modules run as `sparsekernels.rms_norm` now."""
        return sum(norm.replaced for norm in self.norms)

    def __str__(self) -> str:
        if not self.norms:
            return "no RMSNorm was found that does not run as sparsekernels.rms_norm already"
        lines = [f"{self.replaced} of {len(self.norms)} norms run as sparsekernels.rms_norm"]
        alike = Counter((norm.kind, tuple(norm.options.items()), norm.reason) for norm in self.norms)
        first = {(norm.kind, tuple(norm.options.items()), norm.reason): norm.name for norm in reversed(self.norms)}
        for key, count in alike.items():
            kind, options, reason = key
            what = f"not replaced: {reason}" if reason else ", ".join(f"{name}={value!r}" for name, value in options)
            lines.append(f"  {count} x {kind} ({first[key]}{', ...' if count > 1 else ''}): {what}")
        return "\n".join(lines)


def replace_norms(model: nn.Module) -> NormsReport:
    r"""Let the RMSNorm modules of a model run as `sparsekernels.rms_norm`, in place, by what they compute.

        y = x / sqrt(mean(x^2) + eps) * weight      (or * (1 + weight), rounded before or after; or without weight)

    Classes of transformers, timm and others: six to eight operations each become one. A copy of each is compared with
    `rms_norm` on random input of all dtypes, and exchanged only where shape, dtype and values of the results are the
    same up to a rounding, and ours no farther from the exact value. So it goes by no name, and a norm that multiplies
    by 1 + weight becomes one with `unit_offset`. The modules are the same objects, of their class, with their
    parameters, attributes and hooks. Where one has changed since, as by another epsilon, its own code runs until
    `replace_norms` is called again; so it does under autocast, torch.compile and torch.func. `revert` ends it.
    `convert` does the same with the norms of a pruned model that are faster so.

    Args:
        model: Any module.

    Returns:
        The report: a row for each norm, with its options, or why it was left as it is; none for those that run so
        already.

    Raises:
        TypeError: `model` is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"replace_norms: expected model to be a torch.nn.Module, got {type(model).__name__}")
    # in a context of its own: variables that the model sets are the caller's business again afterwards
    return contextvars.copy_context().run(_replaced, model)


def _replaced(model: nn.Module) -> NormsReport:
    rows: list[NormReport] = []
    calls: list[tuple[Norm, RMSNormCall | None]] = []
    reach = Reach(model.modules())
    try:
        # whatever their code does while it is looked at
        with unchanged(model), Writes(model).watched(), reach.watched():
            for norm, call, reason in _judged(model):
                options = norm.verdict if call is not None and isinstance(norm.verdict, dict) else {}
                rows.append(NormReport(norm.name, own_class(norm.module).__name__, not reason, options, reason))
                calls.append((norm, call))
    finally:
        reach.put_back()
    for norm, call in calls:
        if norm_call_of(norm.module) is not None:
            detach(norm.module)
        if call is not None:
            attach(norm.module, call.recipe, call)
    return NormsReport(tuple(rows))


def _judged(model: nn.Module) -> Iterator[tuple[Norm, RMSNormCall | None, str]]:
    """Each norm with what it can run as, or why there is none."""
    reasons: dict[object, str] = {}
    for norm in norms_of(model):
        if not isinstance(norm.verdict, dict):
            yield norm, None, norm.verdict or ""
            continue
        call = RMSNormCall.of(norm.module, norm.verdict)
        if norm.key not in reasons:
            reasons[norm.key] = obstacle_in_code(norm.module, call, _inputs_of(norm.module)) or ""
        reason = reasons[norm.key]
        yield norm, None if reason else call, reason


@dataclass(frozen=True)
class Norm:
    """A module that is an RMSNorm, or looks like one; its name in the model; and what was found.

    verdict: the options of the `RMSNorm` that computes the same, else why there is none; None where there was no time.
    key: those that agree in it compute the same; None where nobody asked.
    """

    name: str
    module: nn.Module
    verdict: dict[str, Any] | str | None
    key: object = None


def norms_of(model: nn.Module, stop: Callable[[], bool] = bool) -> list[Norm]:
    """All but those that run as `rms_norm` already, and still may.

    stop: whether there is no time to find out what another kind of them computes.
    """
    found: list[Norm] = []
    verdicts: dict[object, dict[str, Any] | str | None] = {}
    for name, module in model.named_modules():
        if not _looks_like_one(module):
            continue
        call = norm_call_of(module)
        if call is not None and call.holds():
            continue
        reason = _obstacle(module)
        if reason is None:
            key = _key(module)
            if key not in verdicts:
                verdicts[key] = None if stop() else recognized(module)
            found.append(Norm(name, module, verdicts[key], key))
        else:
            found.append(Norm(name, module, reason))
    return found


def restore_norms(model: nn.Module) -> None:
    """Let the modules be what they were that `replace_norms` exchanged."""
    for module in model.modules():
        recipe = attached(module)
        if recipe is not None and recipe.kind is RMSNormCall and not recipe.options["by_convert"]:
            detach(module)


def obstacle_in_code(module: nn.Module, call: RMSNormCall, inputs: Iterable[Tensor]) -> str | None:
    """Where the module's code gets at more than the module, `call` would neither follow that nor leave anything."""
    reach = Reach([module])
    try:
        with torch.no_grad(), reach.watched():
            for input in inputs:
                module.forward(input)
        if reach.changed() or not call.holds():
            return "its code changes something beside its result"
        if not reach.beside(code=False).is_empty:
            return "its code reads globals or states of the process"
    except Exception as error:  # on random numbers, which may be none that it takes
        return f"its code raised {first_line(error)}"
    finally:
        reach.put_back()
    return None


def _inputs_of(module: nn.Module) -> list[Tensor]:
    """What a norm that was recognized can be called with."""
    tensors = [one for one in (*module._parameters.values(), *module._buffers.values()) if one is not None]
    shape = tensors[0].shape if tensors else getattr(module, "normalized_shape", (8,))
    like: dict[str, Any] = {"dtype": tensors[0].dtype, "device": tensors[0].device} if tensors else {}
    return [torch.ones((2, *shape), **like), torch.ones((2, 3, *shape), **like)]


def is_named_one(module: nn.Module) -> bool:
    """Whether its class is named an RMSNorm."""
    return "rmsnorm" in type(module).__name__.lower().replace("_", "")


def _looks_like_one(module: nn.Module) -> bool:
    """Whether it is named as one, or has what one needs; torch's other modules are known not to be one."""
    if isinstance(module, RMSNorm | torch.jit.ScriptModule):
        return False
    if is_named_one(module):
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
    if "forward" in vars(module) or module._compiled_call_impl is not None:
        return "its forward was replaced"
    if not has_method(module) or not may_derive(own_class(module)):
        return "its class can have no subclass, or its forward is no method"
    for name, value in attributes_of(module).items():
        if not is_plain_value(value):
            return f"its attribute {name}, a {type(value).__name__}, may change unseen"
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


def _key(module: nn.Module) -> object:
    """Modules that agree in this compute the same."""
    attributes = sorted(attributes_of(module).items(), key=lambda item: item[0])
    shapes = [
        [(name, None if one is None else tuple(one.shape)) for name, one in tensors.items()]
        for tensors in (module._parameters, module._buffers)
    ]
    return own_class(module), repr(attributes), repr(shapes)
