# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Which RMSNorm a module is, by what it computes.

A copy of the module is called on random inputs: of every two dtypes of input and weight, in several shapes, magnitudes
of the input, and in both modes. It is exchanged for the variant of `rms_norm` that fits every one of these calls:

1. The results have the same shape and dtype.
2. The module computes that formula. Each element of its result is within three roundings of the exact value, 2 eps of
   the coarsest dtype of the call and 8 eps of float32: it may round where the variant does not, and sum in another
   order.
3. `rms_norm` is nowhere worse: its largest error is at most 1.1 times that of the module, plus 4 eps of float32 of the
   largest value. So elements may differ by a rounding, where ours is nearer the exact value or as near.
4. In float32 the gradients agree as well, by the rule of `sparsekernels.testing`.

Of several that fit, the one wins with the fewest elements that differ.
"""

from __future__ import annotations

import copy
import itertools
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..ops.rms_norm import reference
from ..ops.rms_norm.arguments import CAST_BEFORE, UNIT_OFFSET
from ..ops.rms_norm.op import rms_norm
from ..testing import compare
from .graph.attach import own_class
from .modules import GRAPH

_HALVES = (torch.bfloat16, torch.float16)
PAIRS = (*itertools.product((torch.float32, *_HALVES), repeat=2), (torch.float64, torch.float64))
"""Dtypes of input and weight."""

_WIDTHS = (24, 40)
"""Of the inputs of a norm without weight, which takes any."""

_EPS32 = torch.finfo(torch.float32).eps


def is_torchs(module: nn.Module) -> bool:
    """Whether it is known what it computes."""
    return own_class(module) is nn.RMSNorm


def epsilons(module: nn.Module) -> list[float]:
    """What may be its epsilon."""
    found = (value for name, value in vars(module).items() if "eps" in name.lower())
    return [float(value) for value in found if isinstance(value, float) and value >= 0]


def recognized(module: nn.Module) -> dict[str, Any] | str:
    """The options of the `RMSNorm` that computes the same; else why there is none."""
    if is_torchs(module):
        affine = module.weight is not None
        return {"eps": module.eps, "elementwise_affine": affine, "cast": "after", "unit_offset": False}
    cpu = torch.random.get_rng_state()
    try:
        with torch.inference_mode(False), torch.autocast("cpu", enabled=False), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of slow combinations of dtypes
            probe = _Probe(module)
            found = list(filter(None, map(probe.outcome, probe.variants())))
    except Exception as error:
        return f"a copy of it cannot be called as a norm: {type(error).__name__}: {str(error).splitlines()[0][:100]}"
    finally:
        torch.random.set_rng_state(cpu)
    fitting = [one for one in found if one.reason is None]
    if fitting:
        best = min(fitting, key=lambda one: one.different)
        return {
            "eps": best.eps,
            "elementwise_affine": best.affine,
            "cast": "before" if best.variant & CAST_BEFORE else "after",
            "unit_offset": bool(best.variant & UNIT_OFFSET),
        }
    return max(found, key=lambda one: one.passed).reason or ""


@dataclass
class _Outcome:
    eps: float
    affine: bool
    variant: int
    passed: int = 0
    different: int = 0
    reason: str | None = None


@dataclass(frozen=True)
class _Called:
    """What a copy of the module gave."""

    x: Tensor
    weight: Tensor | None
    result: Tensor
    training: bool

    def __str__(self) -> str:
        weight = "" if self.weight is None else f" and {_name(self.weight.dtype)} weights"
        return f"for {_name(self.x.dtype)} inputs{weight}"


class _Probe:
    """A module's results on random inputs, each of which a variant has to give as well."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.names = [*module._parameters, *module._buffers]
        self.generator = torch.Generator().manual_seed(0)
        self.small = 2 * math.sqrt(max(epsilons(module)))
        """A magnitude at which epsilon counts, and where it stands."""
        self.calls = list(self._calls())

    def variants(self) -> Iterator[_Outcome]:
        for eps in sorted(set(epsilons(self.module))):
            yield _Outcome(eps, False, 0)
            if self.names:
                for variant in (0, CAST_BEFORE, UNIT_OFFSET, CAST_BEFORE | UNIT_OFFSET):
                    yield _Outcome(eps, True, variant)

    def _calls(self) -> Iterator[_Called]:
        widths = [len(getattr(self.module, self.names[0]))] if self.names else _WIDTHS
        for (dtype, weight_dtype), width in itertools.product(PAIRS, widths):
            if not self.names and weight_dtype != dtype:
                continue
            for shape, scale, training in (
                ((7, width), 1.0, True),
                ((2, 3, width), self.small, False),
                ((width,), 30.0, False),
                ((2, width, 1, width), 1.0, False),  # channels first or last: both fit
            ):
                x = (torch.randn(shape, generator=self.generator) * scale).to(dtype)
                copied, weight = self._copy(weight_dtype, training)
                given = x.clone()
                with torch.no_grad():
                    result = copied.forward(given)
                if not isinstance(result, Tensor):
                    raise TypeError(f"it returns a {type(result).__name__}")
                if not torch.equal(given, x):
                    raise ValueError("it writes to its input")
                yield _Called(x, weight, result, training)

    def _copy(self, dtype: torch.dtype, training: bool) -> tuple[nn.Module, Tensor | None]:
        """A copy on CPU with a random weight, and that weight. Its hooks stay where they are."""
        hooks: dict[int, Any] = {id(value): {} for name, value in vars(self.module).items() if name.endswith("_hooks")}
        copied = copy.deepcopy(self.module, hooks).to("cpu", dtype).train(training)
        vars(copied).pop(GRAPH, None)  # what it runs as already
        weight = None
        for name in self.names:
            tensor = getattr(copied, name)
            weight = torch.randn(tensor.shape, generator=self.generator).to(dtype)
            with torch.no_grad():
                tensor.copy_(weight)
        return copied, weight

    def outcome(self, one: _Outcome) -> _Outcome:
        for called in self.calls:
            weight = called.weight if one.affine else None
            shape = called.x.shape[-1:]
            ours = rms_norm(called.x, shape, weight, one.eps, *_options(one.variant))
            one.reason = self._difference(called, ours, weight, one)
            if one.reason is not None:
                return one
            one.passed += 1
            one.different += int((ours != called.result).sum())
        one.reason = self._difference_of_gradients(one)
        return one

    @staticmethod
    def _difference(called: _Called, ours: Tensor, weight: Tensor | None, one: _Outcome) -> str | None:
        theirs = called.result
        if theirs.shape != called.x.shape:
            return f"its result has the shape {list(theirs.shape)} for an input of {list(called.x.shape)}"
        if theirs.dtype != ours.dtype:
            return f"it gives {_name(theirs.dtype)} {called}, where an RMSNorm gives {_name(ours.dtype)}"
        exact = reference.forward(
            called.x.double(), called.x.shape[-1:], None if weight is None else weight.double(), one.eps, one.variant
        )
        dtypes = [theirs.dtype, called.x.dtype, *([] if called.weight is None else [called.weight.dtype])]
        infos = [torch.finfo(dtype) for dtype in dtypes]
        coarse = max(infos, key=lambda info: info.eps)
        subnormal = max(info.smallest_normal * info.eps for info in infos)  # float16's, not that of the coarsest
        largest = 1 if called.weight is None else 1 + called.weight.double().abs()
        roundings = (2 * coarse.eps + 8 * _EPS32) * exact.abs() + 2 * subnormal * largest
        off = (theirs.double() - exact).abs()
        if not bool((off <= roundings).all()):
            return f"it computes something else {called}"
        error, own = float(off.max()), float((ours.double() - exact).abs().max())
        if not own <= 1.1 * error + 4 * _EPS32 * float(exact.abs().max()):
            return f"it rounds less {called}"
        return None

    def _difference_of_gradients(self, one: _Outcome) -> str | None:
        width = len(getattr(self.module, self.names[0])) if self.names else _WIDTHS[0]
        copied, weight = self._copy(torch.float32, True)
        copied.requires_grad_()
        x = torch.randn(5, width, generator=self.generator).requires_grad_()
        seed = torch.randn(5, width, generator=self.generator)
        parameter = next(iter(copied.parameters()), None) if one.affine else None
        with torch.enable_grad():
            theirs = copied.forward(x)
            if not theirs.requires_grad:
                return "its result has no gradient"
            found = torch.autograd.grad(theirs, [x] if parameter is None else [x, parameter], seed, allow_unused=True)
            for dtype in (torch.float32, torch.float64):
                leaf = x.detach().to(dtype).requires_grad_()
                leaves = [leaf] if parameter is None else [leaf, parameter.detach().to(dtype).requires_grad_()]
                fixed = weight.to(dtype) if one.affine and weight is not None else None
                scale = fixed if parameter is None else leaves[1]
                result = rms_norm(leaf, (width,), scale, one.eps, *_options(one.variant))
                ours = torch.autograd.grad(result, leaves, seed.to(dtype))
                if dtype == torch.float32:
                    in_float32 = ours
        for mine, exact, other in zip(in_float32, ours, found, strict=True):
            if other is None or not bool((other - exact).abs().max() <= 64 * _EPS32 * exact.abs().max()):
                return "its gradients are others"
            if not compare("gradient", mine, exact, other).passed:
                return "its gradients are nearer the exact ones"
        return None


def _options(variant: int) -> tuple[str, bool]:
    return "before" if variant & CAST_BEFORE else "after", bool(variant & UNIT_OFFSET)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
