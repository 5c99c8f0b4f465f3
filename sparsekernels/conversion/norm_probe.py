# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Which RMSNorm a module is, by what it computes.

A copy of the module is called on random inputs: of every two dtypes of input and weight, in several shapes, magnitudes
of the input, and in both modes. Some rows are tiny, some near the limits of their dtype, and so are weights: code that
clamps, or that scales against overflow, computes something else there. It is exchanged for the variant of `rms_norm`
that fits every one of these calls:

1. The results have the same shape and dtype.
2. The module computes that formula. Each element of its result is within three roundings of the exact value, 2 eps of
   the coarsest dtype of the call and 8 eps of float32: it may round where the variant does not, and sum in another
   order. What exceeds the dtype of the result is infinite. Where squares exceed float32, it gives what `rms_norm` does.
3. `rms_norm` is nowhere worse: its largest error is at most 1.1 times that of the module, plus 4 eps of float32 of the
   largest value. So elements may differ by a rounding, where ours is nearer the exact value or as near.
4. In float32 the gradients agree as well, by the rule of `sparsekernels.testing`.

Of several that fit, the one wins with the fewest elements that differ.

Whether channels are normalized that stand in another dimension shows where that is as wide as the last one. Such inputs
have the square of the width elements. So a wide norm is given none of them, a batch of zero: its operations have to be
those of an input with a few channels, which is compared as well.
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
from torch.overrides import TorchFunctionMode

from .._torch import tree_leaves
from ..ops.rms_norm import reference
from ..ops.rms_norm.arguments import CAST_BEFORE, UNIT_OFFSET
from ..ops.rms_norm.op import rms_norm
from ..testing import compare
from .graph.attach import own_class
from .graph.untraceable import first_line
from .modules import GRAPH

_HALVES = (torch.bfloat16, torch.float16)
PAIRS = (*itertools.product((torch.float32, *_HALVES), repeat=2), (torch.float64, torch.float64))
"""Dtypes of input and weight."""

_WIDTHS = (24, 40)
"""Of the inputs of a norm without weight, which takes any."""

_NARROW = 64
"""Up to this width inputs with as many channels are computed."""

_CHANNELS = 5
"""Of inputs of wider norms."""

_SHARE_OF_LIMIT = 0.9
"""Of the largest number of a dtype, what is said to be near it."""

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
            reason = probe.reason_of_channels()
            if reason is not None:
                return reason
            found = list(filter(None, map(probe.outcome, probe.variants())))
    except Exception as error:
        return f"a copy of it cannot be called as a norm: {first_line(error)[:120]}"
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
    """What a copy of the module gave. overflows: whether squares of the input exceed float32, in all rows."""

    x: Tensor
    weight: Tensor | None
    result: Tensor
    training: bool
    overflows: bool = False

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
        widths = [self._width] if self.names else _WIDTHS
        for (dtype, weight_dtype), width in itertools.product(PAIRS, widths):
            if not self.names and weight_dtype != dtype:
                continue
            for shape, scale, training in (
                ((7, width), 1.0, True),
                ((2, 3, width), self.small, False),
                ((width,), 30.0, False),
            ):
                yield self._call(torch.randn(shape, generator=self.generator) * scale, dtype, weight_dtype, training)
            if width <= _NARROW:  # channels first or last: both fit
                x = torch.randn(2, width, 1, width, generator=self.generator)
                yield self._call(x, dtype, weight_dtype, False)
            in_range, overflowing = self._extremes(dtype, width)
            yield self._call(in_range, dtype, weight_dtype, False)
            if overflowing is not None:
                yield self._call(overflowing, dtype, weight_dtype, False, overflows=True)
            if self.names:
                x = torch.randn(2, width, generator=self.generator)
                limit = 1e37 if weight_dtype == torch.float64 else torch.finfo(weight_dtype).max / 3
                yield self._call(x, dtype, weight_dtype, False, weight_scale=limit)

    def _extremes(self, dtype: torch.dtype, width: int) -> tuple[Tensor, Tensor | None]:
        """Rows of tiny and huge numbers, and one of a number near the limit; and those whose squares exceed float32.

        Of float64 none of these: many norms compute in float32 there, too, and `rms_norm` does not.
        """
        limit = _SHARE_OF_LIMIT * torch.finfo(dtype).max
        scales = (1e-7, 1e-5, 1e3) if dtype == torch.float16 else (1e-20, 1e-10, 1e10, 1e15, 1e20)
        rows = torch.randn(len(scales) + 1, width, generator=self.generator, dtype=torch.float64)
        rows *= torch.tensor((*scales, 1.0), dtype=torch.float64)[:, None]
        if dtype == torch.float64:
            return rows[:-2], None
        rows[-1, 0] = limit
        return (rows, None) if dtype == torch.float16 else (rows[:-2], rows[-2:])

    def _call(
        self,
        x: Tensor,
        dtype: torch.dtype,
        weight_dtype: torch.dtype,
        training: bool,
        weight_scale: float = 1.0,
        overflows: bool = False,
    ) -> _Called:
        x = x.to(dtype)
        copied, weight = self._copy(weight_dtype, training, weight_scale)
        given = x.clone()
        with torch.no_grad():
            result = copied.forward(given)
        if not isinstance(result, Tensor):
            raise TypeError(f"it returns a {type(result).__name__}")
        if not torch.equal(given, x):
            raise ValueError("it writes to its input")
        return _Called(x, weight, result, training, overflows)

    @property
    def _width(self) -> int:
        return len(getattr(self.module, self.names[0])) if self.names else _WIDTHS[0]

    def reason_of_channels(self) -> str | None:
        """Why it is no norm of the last dimension where another one is as wide, if that was not computed."""
        if self._width <= _NARROW:
            return None
        for dtype, weight_dtype in PAIRS:
            x = torch.randn(2, _CHANNELS, 1, self._width, generator=self.generator)
            try:
                self.calls.append(self._call(x, dtype, weight_dtype, False))
            except Exception as error:
                return f"it cannot be called with inputs of shape {list(x.shape)}: {first_line(error)[:120]}"
            few, many = (self._operations(dtype, weight_dtype, channels) for channels in (_CHANNELS, self._width))
            if few != many:
                return "it computes something else where the last dimension is not the only one of its width"
        return None

    def _operations(self, dtype: torch.dtype, weight_dtype: torch.dtype, channels: int) -> list[object]:
        """Those of an input with so many channels, which has no elements; sizes do not count."""
        copied, _ = self._copy(weight_dtype, False)
        with torch.no_grad(), _Operations() as operations:
            copied.forward(torch.empty(0, channels, 1, self._width, dtype=dtype))
        return operations.found

    def _copy(self, dtype: torch.dtype, training: bool, scale: float = 1.0) -> tuple[nn.Module, Tensor | None]:
        """A copy on CPU with a random weight, and that weight. Its hooks stay where they are."""
        hooks: dict[int, Any] = {id(value): {} for name, value in vars(self.module).items() if name.endswith("_hooks")}
        copied = copy.deepcopy(self.module, hooks).to("cpu", dtype).train(training)
        vars(copied).pop(GRAPH, None)  # what it runs as already
        weight = None
        for name in self.names:
            tensor = getattr(copied, name)
            numbers = torch.randn(tensor.shape, generator=self.generator, dtype=torch.float64) * scale
            limit = torch.finfo(dtype).max
            weight = numbers.clamp(-limit, limit).to(dtype)
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
        dtypes = [theirs.dtype, called.x.dtype, *([] if called.weight is None else [called.weight.dtype])]
        infos = [torch.finfo(dtype) for dtype in dtypes]
        coarse = max(infos, key=lambda info: info.eps)
        exact = reference.forward(
            called.x.double(), called.x.shape[-1:], None if weight is None else weight.double(), one.eps, one.variant
        )
        if called.overflows:
            exact = ours.double()
        limit, margin = torch.finfo(theirs.dtype).max, 4 * coarse.eps
        beyond = exact.abs() >= (1 + margin) * limit
        if not torch.equal(theirs[beyond].double(), exact[beyond].sign() * math.inf):
            return f"it does not overflow {called}"
        within = exact.abs() <= (1 - margin) * limit
        if not within.any():
            return None
        subnormal = max(info.smallest_normal * info.eps for info in infos)  # float16's, not that of the coarsest
        largest = 1 if called.weight is None else 1 + called.weight.double().abs()
        roundings = (2 * coarse.eps + 8 * _EPS32) * exact.abs() + 2 * subnormal * largest
        if weight is not None and weight.dtype == torch.float64 and one.variant & UNIT_OFFSET:
            # 1 + weight in float32: near a weight of -1 little is left beside its rounding
            alone = reference.forward(called.x.double(), called.x.shape[-1:], None, one.eps, 0)
            roundings = roundings + 2 * _EPS32 * (alone * weight).abs()
        off = (theirs.double() - exact).abs()
        if not bool((off <= roundings)[within].all()):
            return f"it computes something else {called}"
        error, own = (float((one.double() - exact)[within].abs().max()) for one in (theirs, ours))
        if not own <= 1.1 * error + 4 * _EPS32 * float(exact[within].abs().max()):
            return f"it rounds less {called}"
        return None

    def _difference_of_gradients(self, one: _Outcome) -> str | None:
        width = self._width
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


class _Operations(TorchFunctionMode):
    """Records which functions of torch are called inside, with their arguments, but for tensors and sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[object] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found.append((function, [_plain(value) for value in tree_leaves((args, kwargs))]))
        return function(*args, **(kwargs or {}))


def _plain(value: object) -> object:
    if isinstance(value, Tensor):
        return value.dtype, value.dim()
    return "a size" if isinstance(value, int) and abs(value) >= _CHANNELS else value


def _options(variant: int) -> tuple[str, bool]:
    return "before" if variant & CAST_BEFORE else "after", bool(variant & UNIT_OFFSET)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
