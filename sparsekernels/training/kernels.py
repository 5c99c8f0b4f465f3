# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Which masked layers run on sparse kernels while they are trained: what `convert` measures on the first batch.

Layers for which that is slower stay dense, with a mask behind each step. When the density of the whole has changed
much, by a factor of `_CHANGED`, as it does in gradual pruning, it is measured again.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .._torch import is_any_autocast_enabled
from ..conversion import Report, convert, revert
from ..conversion.replay import Decided, decided_as
from ..conversion.report import DENSE
from .bits import packed
from .weights import is_sharded, unwrapped

if TYPE_CHECKING:
    from .base import SparseTraining

_CHANGED = 1.5
"""Once the density has become so many times another, layers are measured again. That single layers become denser or
sparser is no reason: a measurement takes as long as a hundred steps."""

_FIXED, _DENSEST = 0.4, 0.6
"""What share of a sparse layer's time as measured does not depend on its density, about; and the density above which no
layer is tried sparse."""

_SMALL = 65536
"""Inputs of at most so many elements are kept as they are: a model may look something up by them."""

_DECISIONS = ("fine-grained", "block")


@dataclass
class Call:
    """What a model was called with, and how."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    autocast: Mapping[str, torch.dtype]

    @contextlib.contextmanager
    def mode(self) -> Iterator[None]:
        """Inside, autocast is as it was."""
        with contextlib.ExitStack() as stack:
            for device, dtype in self.autocast.items():
                stack.enter_context(torch.autocast(device, dtype))
            yield


class Kernels:
    """The sparse layers of one model in training, found by `convert` once it has seen a batch.

    Args:
        model: Any module; of DistributedDataParallel, what it wraps is looked at.
        example: What the model is called with, as a tuple; None to wait for the first batch.
        progress: Whether a line says what was chosen; None for where stderr is a terminal.
    """

    def __init__(self, model: nn.Module, example: tuple[Any, ...] | None, progress: bool | None) -> None:
        self.model = unwrapped(model)
        self._progress = progress
        self.report: Report | None = None
        self._limits: dict[str, float] = {}
        self._dense: set[str] = set()
        self._call: Call | None = None
        self._wanted = True
        self._masks: dict[str, Tensor] = {}  # as bits, those that were measured with
        self._density = 0.0
        self._example: Any = None
        self._decided: Decided | None = None
        self._watch: Any = None
        self.why_not = _why_not(self.model, model)
        if self.why_not is None:
            if example is None:
                self._watch = self.model.register_forward_pre_hook(self._see, with_kwargs=True)
            else:
                self._call = Call(example, {}, _autocast())

    def _see(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.compiler.is_compiling() or not module.training or not torch.is_grad_enabled():
            return
        self._call = Call(args, kwargs, _autocast())
        self._stop_watching()

    def _stop_watching(self) -> None:
        if self._watch is not None:
            self._watch.remove()
            self._watch = None

    def after_step(self, training: SparseTraining) -> None:
        """Measure, where that is due and a batch was seen.

        Args:
            training: Whose masks count.
        """
        if self._wanted and self._call is not None and self.why_not is None:
            self._decide(training, None)

    def after_update(self, training: SparseTraining) -> None:
        """Measure again behind the step where densities changed much.

        Args:
            training: Whose masks count.
        """
        self._choose_products(training)
        ratio = training.density / self._density if self._density else 1.0
        self._wanted = self._wanted or not 1 / _CHANGED < ratio < _CHANGED

    def _decide(
        self, training: SparseTraining, again: Decided | None, masks: Mapping[str, Tensor] | None = None
    ) -> None:
        """masks: by which it is decided what may run on which kernels, as bits; None for those that there are. Not by
        what is not zero: new weights are."""
        assert self._call is not None
        self._masks = dict(masks) if masks else {name: packed(mask) for name, mask in training.masks.items()}
        self._density = training.density
        call, self._wanted = self._call, False
        wanted = contextlib.nullcontext() if again is None else decided_as(again)
        modes = {} if self.model.training else {one: one.training for one in self.model.modules()}
        if modes:
            self.model.train()
        try:
            with call.mode(), wanted, training._with_masks(self._masks):
                self.report = convert(
                    self.model, example_inputs=[(call.args, call.kwargs)], decisions=_DECISIONS, progress=False
                )
        except (TypeError, ValueError, RuntimeError) as error:  # of the model: it trains on as it is
            self.why_not = str(error).splitlines()[0]
        else:
            self._decided = Decided.of(self.report)
            with contextlib.suppress(_NotPlain):  # the batch itself is not kept alive
                self._example = _described([list(call.args), call.kwargs])
                args, kwargs = _made(self._example, _device_of(self.model))
                self._call = Call(tuple(args), dict(kwargs), call.autocast)
        finally:
            for module, training_mode in modes.items():
                module.training = training_mode
        training._take_layers()
        if again is None and self.report is not None:
            self._limits = _limits(self.report)
        self._choose_products(training)
        self._say()

    def _choose_products(self, training: SparseTraining) -> None:
        """Let torch multiply for layers that have become so dense that this is faster. By a rule, not a clock: a run
        that is resumed has the same bits."""
        found = training._layers.found()
        self._dense = set()
        for name, layers in found.items():
            mask = training.masks[name]
            is_dense = int(mask.count_nonzero()) > self._limits.get(name, 1.0) * mask.numel()
            if is_dense:
                self._dense.add(name)
            for layer in layers:
                if layer.dense_product is not is_dense:
                    layer.dense_product = is_dense

    def _say(self) -> None:
        if self._progress or (self._progress is None and sys.stderr.isatty()):
            print(self.line, file=sys.stderr)

    @property
    def line(self) -> str:
        """Which layers run on sparse kernels, and what that gains."""
        if self.why_not is not None:
            return f"sparse training: all layers are dense with a mask: {self.why_not}"
        if self.report is None:
            return "sparse training: layers are dense with a mask until a step behind a call of the model in training"
        too_dense = {name.removesuffix(".weight") for name in self._dense}
        rows = {row.name: row.decision != DENSE and row.name not in too_dense for row in self.report.layers}
        sparse = [name for name, is_sparse in rows.items() if is_sparse]
        dense = [name for name, is_sparse in rows.items() if not is_sparse]
        gain = ""
        if self.report.before_ms is not None and self.report.after_ms is not None:
            gain = (
                f"; forward and backward {self.report.after_ms:.3g} ms, dense {self.report.before_ms:.3g} ms"
                f" ({self.report.speedup:.2f}x)"
            )
        names = f" ({', '.join(dense[:4])}{', ...' if len(dense) > 4 else ''})" if dense else ""
        return f"sparse training: {len(sparse)} layers on sparse kernels, {len(dense)} dense with a mask{names}{gain}"

    def remove(self) -> None:
        """Give the model its own layers back."""
        self._stop_watching()
        if self._decided is not None:
            revert(self.model)

    # Checkpoints: a resumed run has the same kernels, which round in their own way

    def state_dict(self) -> dict[str, Any]:
        """What was decided, and what the model was called with.

        Returns:
            Tensors and plain values; of floating-point inputs the shapes alone. Inputs of other kinds than tensors,
            numbers, words and containers of these are not kept, and a resumed run measures anew.
        """
        call, example = self._call, None
        if call is not None:
            with contextlib.suppress(_NotPlain):
                example = self._example or _described([list(call.args), call.kwargs])
        return {
            "decided": None if self._decided is None else self._decided.state(),
            "limits": dict(self._limits),
            "masks": dict(self._masks),
            "density": self._density,
            "example": example,
            "autocast": {} if call is None else {name: str(dtype) for name, dtype in call.autocast.items()},
        }

    def check(self, state: Mapping[str, Any]) -> None:
        """Raise KeyError, TypeError or ValueError for what `state_dict` did not give.

        Args:
            state: As of `state_dict`.
        """
        if state["decided"] is not None:
            Decided.of_state(state["decided"])
        float(state["density"])
        for limit in state["limits"].values():
            float(limit)
        dict(state["masks"])
        dict(state["autocast"])
        if state["example"] is not None:
            _made(state["example"], torch.device("meta"))

    def load_state_dict(self, state: Mapping[str, Any], training: SparseTraining) -> None:
        """Run on the same kernels as the run that is resumed, without a measurement.

        Args:
            state: As of `state_dict`.
            training: Whose masks count.
        """
        if state["decided"] is None or state["example"] is None or self.why_not is not None:
            return
        args, kwargs = _made(state["example"], _device_of(self.model))
        autocast = {name: _dtype_of(dtype) for name, dtype in state["autocast"].items()}
        self._stop_watching()
        self._call, self._example = Call(tuple(args), dict(kwargs), autocast), state["example"]
        again = Decided.of_state(state["decided"])
        self._limits = dict(state["limits"])
        self._decide(training, again, state["masks"])
        self._density = float(state["density"])
        self._choose_products(training)
        if self._decided != again:
            warnings.warn(
                "sparse training: some layers of the resumed run are computed in another way than before, and round"
                f" differently: {self.line}",
                stacklevel=3,
            )


class _NotPlain(Exception):
    """An argument that a checkpoint does not keep."""


def _limits(report: Report) -> dict[str, float]:
    """Up to which density the sparse layers are faster, by what was measured: of their time `_FIXED` is taken not to
    depend on it."""
    limits = {}
    for row in report.layers:
        if row.decision != DENSE and row.sparsity is not None:
            gain, density = row.gains.get(row.decision), 1.0 - row.sparsity
            limit = _DENSEST if gain is None else density * (gain - _FIXED) / (1.0 - _FIXED)
            limits[f"{row.name}.weight" if row.name else "weight"] = max(min(limit, _DENSEST), 1.01 * density)
    return limits


def _why_not(model: nn.Module, given: nn.Module) -> str | None:
    if any(is_sharded(one) for one in model.parameters()):
        return "its weights are sharded"
    if isinstance(model, torch.jit.ScriptModule):
        return "it is a torch.jit.ScriptModule"
    inner = given.module if isinstance(given, nn.parallel.DistributedDataParallel) else given
    if isinstance(getattr(inner, "_orig_mod", None), nn.Module) or model._compiled_call_impl is not None:
        return "it is compiled already; give sparse training the model, and compile it after the first step"
    return None


def _autocast() -> dict[str, torch.dtype]:
    if not is_any_autocast_enabled():
        return {}
    return {name: torch.get_autocast_dtype(name) for name in ("cpu", "cuda") if torch.is_autocast_enabled(name)}


def _device_of(model: nn.Module) -> torch.device:
    return next((one.device for one in model.parameters()), torch.device("cpu"))


def _dtype_of(name: str) -> torch.dtype:
    found = getattr(torch, name.removeprefix("torch."), None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"expected a dtype of torch, got {name!r}")
    return found


def _described(value: Any) -> Any:
    """A call's arguments as plain values: of a large floating-point tensor its shape, dtype and range."""
    if isinstance(value, Tensor):
        if value.is_floating_point() and value.numel() > _SMALL:
            low, high = (float(one) for one in value.detach().double().aminmax())
            return {"shape": list(value.shape), "dtype": str(value.dtype), "low": low, "high": high}
        return value.detach().cpu().clone()
    if type(value) is dict:
        return {"dict": {key: _described(one) for key, one in value.items()}}
    if type(value) in (list, tuple):
        return {type(value).__name__: [_described(one) for one in value]}
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise _NotPlain


def _made(value: Any, device: torch.device) -> Any:
    """Arguments as `_described` tells them, of random numbers where it has shapes."""
    if isinstance(value, Tensor):
        return value.to(device)
    if not isinstance(value, Mapping):
        return value
    if "shape" in value:
        draws = torch.rand(list(value["shape"]), generator=torch.Generator().manual_seed(0))
        low, high = float(value["low"]), float(value["high"])
        return draws.mul_(high - low).add_(low).to(device, _dtype_of(value["dtype"]))
    if "dict" in value:
        return {key: _made(one, device) for key, one in value["dict"].items()}
    kind, several = next(iter(value.items()))
    return {"list": list, "tuple": tuple}[kind](_made(one, device) for one in several)
