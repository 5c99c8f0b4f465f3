# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What is in a model: which layers may be converted, why others may not, and what each is given."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from .._torch import ConvTransposeNd, tree_leaves
from .._transformers import CONV1D, Conv1D
from ..checks import DTYPES
from ..clocks import SynchronizedClock
from ..ops.sparse_conv2d.reference import is_channels_last
from .agreement import differentiable, kept
from .facts import Fact, LayerObstacle
from .leftovers import masked_by_nncf, obstacle_left_in, obstacle_of_foreign
from .modules import has_hooks, is_ordinary
from .subclasses import has_own_forward_only, recorded
from .watch.generators import Generators
from .watch.reach import Reach
from .watch.snapshot import Snapshot
from .watch.state import TooMuch, attributes_of, held_by
from .watch.writes import Writes

KINDS: tuple[Any, ...] = (torch.nn.Conv2d, torch.nn.Linear, torch.nn.Conv1d, Conv1D)
"""The layers that may become something else; their subclasses where they do no more than cast and pad before."""


def is_kind(kind: type) -> bool:
    """Whether a class is one of `KINDS` itself, and no subclass."""
    return kind in KINDS or (kind.__module__, kind.__name__) == CONV1D


OTHERS = (
    torch.nn.Conv3d,
    ConvTransposeNd,
    torch.nn.Bilinear,
    torch.nn.RNNBase,
    torch.nn.RNNCellBase,
)
"""Those that one may have pruned as well, for which there is no kernel."""

PLAIN = (Tensor, torch.nn.Parameter)
"""Tensors on which operations are what they are; those on another subclass of Tensor may be anything."""

LEAST_SPARSITY = 0.3
"""Below it a layer with its nonzeros only was never faster, and is not even measured."""


@dataclass(frozen=True)
class Given:
    """A tensor that a layer was given: all that its time depends on."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    channels_last: bool
    requires_grad: bool

    @classmethod
    def of(cls, tensor: Tensor) -> Given:
        last = tensor.layout == torch.strided and is_channels_last(tensor)
        return cls(tuple(tensor.shape), tensor.dtype, tensor.device, last, tensor.requires_grad)

    def make(self) -> Tensor:
        """A tensor like it, of normal random numbers, the same every time."""
        generator = torch.Generator(self.device).manual_seed(0)
        # a prime number of them, or images and rows whose size divides it would all be the same
        numbers = torch.randn(65521, generator=generator, device=self.device)
        count = math.prod(self.shape)
        tensor = numbers.repeat(-(-count // numbers.numel()))[:count].view(self.shape)  # many would take a while
        memory_format = torch.channels_last if self.channels_last else torch.contiguous_format
        return tensor.to(self.dtype).contiguous(memory_format=memory_format).requires_grad_(self.requires_grad)


@dataclass
class Layer:
    """A convolution or linear layer of a model.

    obstacle: why it has to stay as it is; None where it may become something else. also: its other names, where what
    contains it has several. masked: whether NNCF masks its weight in each call.
    recordable: whether its class alone is the obstacle.
    """

    name: str
    module: torch.nn.Module
    obstacle: Fact | None
    also: tuple[str, ...] = ()
    masked: bool = False
    recordable: bool = False

    @property
    def weight(self) -> Tensor | None:
        """Its weight, where that is an ordinary tensor; others (quantized, distributed) may not count or compare."""
        try:
            weight = getattr(self.module, "weight", None)
        except Exception:  # a property, or a parametrization, of a class that is not ours
            return None
        return weight if is_ordinary(weight) else None

    @functools.cached_property
    def sparsity(self) -> float | None:
        """Share of its weights that are zero, when that was asked first."""
        weight = self.weight
        if weight is None or weight.is_meta or weight.is_quantized or weight.numel() == 0:
            return None
        return 1 - int(weight.detach().count_nonzero()) / weight.numel()

    @property
    def is_pruned(self) -> bool:
        """Whether it has `LEAST_SPARSITY` of zeros, to the digit that reports have: tools round to elements."""
        return self.sparsity is not None and round(self.sparsity, 3) >= LEAST_SPARSITY


def layers_of(model: torch.nn.Module) -> list[Layer]:
    """Every convolution and linear layer of `model`, and whatever is a subclass of one."""
    names: dict[int, list[str]] = {}
    places: dict[int, set[tuple[int, str]]] = {}
    owners: dict[int, list[str]] = {}
    modules = {"": model}
    for name, module in model.named_modules(remove_duplicate=False):
        modules[name] = module
        names.setdefault(id(module), []).append(name)
        owner, _, key = name.rpartition(".")
        places.setdefault(id(module), set()).add((id(modules[owner]), key))
        if len(names[id(module)]) == 1:
            for parameter in module.parameters(recurse=False):
                owners.setdefault(id(parameter), []).append(name)
    attributes = _in_attributes(model)
    masked = masked_by_nncf(model)
    scripted = [name for name, module in model.named_modules() if isinstance(module, torch.jit.ScriptModule)]
    encoders = [name for name, module in model.named_modules() if _has_fast_path(module)]
    result = []
    for name, module in model.named_modules():
        if isinstance(module, KINDS):
            several = tuple(names[id(module)]) if len(places[id(module)]) > 1 else ()
            if id(module) in attributes:
                several = (*names[id(module)], *attributes[id(module)])
            of_kind = _obstacle_of_kind(module)
            obstacle = of_kind or _obstacle(name, module, several, owners)
            if obstacle is None and any(_is_within(name, other) for other in scripted):
                obstacle = LayerObstacle.WITHIN_SCRIPTED.of()
            if obstacle is None and any(_is_within(name, other) for other in encoders):
                obstacle = LayerObstacle.FAST_PATH.of()
            recordable = False
            if of_kind is None and not is_kind(type(module)):
                recordable, obstacle = obstacle is None, _obstacle_of_subclass(module)
            also = tuple(names[id(module)][1:])
            result.append(Layer(name, module, obstacle, also, name in masked, recordable))
        elif (foreign := obstacle_of_foreign(module)) is not None:
            result.append(Layer(name, module, foreign, tuple(names[id(module)][1:])))
    return result


def _in_attributes(model: torch.nn.Module) -> dict[int, list[str]]:
    """The layers that the model can get at by an attribute as well, as by a list of them: nobody exchanges them there.
    By id, with the names of the attributes."""
    found: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for attribute, value in attributes_of(module).items():
            with contextlib.suppress(TooMuch):  # then no graph serves the model either
                for held in held_by([value], ()):
                    if isinstance(held.value, KINDS):
                        found.setdefault(id(held.value), []).append(f"{name}.{attribute}".lstrip("."))
    return found


def _name_of(kind: type) -> str:
    """Of a class; with its module where it is called as one of torch's is."""
    is_namesake = any(kind.__name__ == base.__name__ for base in KINDS)
    return f"{kind.__module__}.{kind.__qualname__}" if is_namesake else kind.__name__


def admit_subclasses(layers: list[Layer], given: Mapping[str, list[Given]]) -> None:
    """Takes the obstacle from layers whose class does no more than cast and pad with what they were given.

    Their code runs once for each kind of input.
    """
    with torch.no_grad():
        for layer in layers:
            inputs = dict.fromkeys(given.get(layer.name, ())) if layer.recordable else ()
            with contextlib.suppress(Exception):  # the user's code may be made for the model's own inputs only
                if inputs and all(recorded(layer.module, one.make())[1] is not None for one in inputs):
                    layer.obstacle = None


def _is_within(name: str, other: str) -> bool:
    return other in ("", name) or name.startswith(other + ".")


def _has_fast_path(module: torch.nn.Module) -> bool:
    return (
        isinstance(module, torch.nn.TransformerEncoderLayer)
        and not module.training
        and torch.backends.mha.get_fastpath_enabled()
    )


def _obstacle_of_kind(module: torch.nn.Module) -> Fact | None:
    """Why nothing that is like `module` may be exchanged."""
    if isinstance(module, torch.jit.ScriptModule):
        return LayerObstacle.SCRIPTED.of()
    if isinstance(module, NonDynamicallyQuantizableLinear):
        return LayerObstacle.OUT_PROJ.of()
    left = obstacle_left_in(module)
    if left is None and type(module).__module__.startswith("sparsekernels."):
        return LayerObstacle.CONVERTED.of(kind=type(module).__name__)
    return left


def _obstacle_of_subclass(module: torch.nn.Module) -> Fact:
    base = next(kind for kind in KINDS if isinstance(module, kind))
    return LayerObstacle.SUBCLASS.of(kind=_name_of(type(module)), base=base.__name__)


def _obstacle(
    name: str, module: torch.nn.Module, several: tuple[str, ...], owners: Mapping[int, list[str]]
) -> Fact | None:
    """Why `module` has to stay as it is.

    several: its names, where more than one module holds it, or one under two keys.
    """
    if has_hooks(module):
        return LayerObstacle.HOOKS.of()
    if "forward" in vars(module):
        return LayerObstacle.FORWARD_REPLACED.of()
    if module._compiled_call_impl is not None:
        return LayerObstacle.COMPILED.of()
    if not is_kind(type(module)) and not has_own_forward_only(module):
        return _obstacle_of_subclass(module)
    children = set(module._modules) if is_kind(type(module)) else set()
    if set(module._parameters) | set(module._buffers) | children != {"weight", "bias"}:
        return LayerObstacle.GIVEN_MORE.of()
    if name == "":
        return LayerObstacle.WHOLE_MODEL.of()
    if several:
        return LayerObstacle.SEVERAL_PLACES.of(places=several)
    weight: Any = module.weight
    for which, parameter in (("weight", weight), ("bias", module.bias)):
        if type(parameter) is not torch.nn.Parameter and not (parameter is None and which == "bias"):
            return LayerObstacle.NO_PARAMETER.of(which=which, kind=type(parameter).__name__)
    if weight.numel() == 0:
        return LayerObstacle.NO_ELEMENTS.of()
    sharers = tuple(other for other in owners[id(weight)] if other != name)
    if sharers:
        return LayerObstacle.SHARED.of(layers=sharers)
    if weight.layout != torch.strided:
        return LayerObstacle.LAYOUT.of(layout=weight.layout)
    if weight.dtype not in DTYPES:
        return LayerObstacle.DTYPE.of(dtype=weight.dtype)
    if weight.device.type not in ("cpu", "cuda"):
        return LayerObstacle.DEVICE.of(device=weight.device.type)
    if weight.dtype == torch.float64:
        return LayerObstacle.FLOAT64.of()
    if not torch.isfinite(weight.detach()).all():
        return LayerObstacle.NOT_FINITE.of()
    return None


@dataclass(frozen=True)
class Call:
    """What a module was called with; a `Given` in the place of each plain tensor, also in tuples, lists and dicts."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
        """What is one tensor in several places is one `Given` there."""
        known: dict[int, Given] = {}
        return cls(
            tuple([_given(value, known) for value in args]),
            {name: _given(value, known) for name, value in kwargs.items()},
        )

    def tensors(self) -> list[Given]:
        """The plain tensors among the arguments."""
        return [value for value in tree_leaves((self.args, dict(self.kwargs))) if isinstance(value, Given)]


def _given(value: Any, known: dict[int, Given]) -> Any:
    if type(value) in PLAIN:
        given = known.get(id(value))
        if given is None:
            given = known[id(value)] = Given.of(value)
        return given
    if type(value) in (tuple, list):
        return type(value)([_given(one, known) for one in value])
    return {key: _given(one, known) for key, one in value.items()} if type(value) is dict else value


@dataclass(frozen=True)
class Recorded:
    """A run of the model, and what it gave.

    given: what each layer was given, by its name, once for each call; layers that were not called have no entry.
    calls: what the other modules were called with, by their ids.
    result: as `kept`.
    differentiable: whether any of its tensors has a gradient.
    repeatable: whether it left everything as it found it, so that another run of the same would give the same.
    random: whether it drew random numbers.
    leaves: whether it left something in attributes, in globals or the like.
    seconds: what it took.
    reach: what its code gets at beside the model.
    writes: what runs have written to parameters so far.
    """

    given: dict[str, list[Given]]
    calls: Mapping[int, list[Call]]
    result: object
    differentiable: bool
    repeatable: bool
    random: bool
    leaves: bool
    seconds: float
    reach: Reach
    writes: Writes

    def put_back(self) -> None:
        """Undo what runs that nobody else looks after have written to parameters, and have set."""
        self.reach.settings.put_back()
        self.writes.put_back()


def record_inputs(
    model: torch.nn.Module,
    layers: list[Layer],
    call: Callable[[], object],
    reach: Reach | None = None,
    writes: Writes | None = None,
) -> Recorded:
    """Run `call`, and watch what it gets at; parameters are afterwards what they were. Raises what it raises."""
    reach, writes = reach or Reach(model.modules()), writes or Writes(model)
    before, generators = Snapshot(model), Generators(())
    handles = []
    given: dict[str, list[Given]] = {}
    calls: dict[int, list[Call]] = {}

    def note_call(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.setdefault(id(module), []).append(Call.of(args, kwargs))

    own = {id(layer.module) for layer in layers}
    for module in model.modules():
        if id(module) not in own and not isinstance(module, torch.jit.ScriptModule):
            handles.append(module.register_forward_pre_hook(note_call, with_kwargs=True))
    for layer in layers:

        def note(
            module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], name: str = layer.name
        ) -> None:
            tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
            if len(tensors) == 1:
                given.setdefault(name, []).append(Given.of(tensors[0]))

        if not isinstance(layer.module, torch.jit.ScriptModule):
            handles.append(layer.module.register_forward_pre_hook(note, with_kwargs=True))
    start = (gpus := SynchronizedClock([*{one.device for one in model.parameters() if one.is_cuda}])).now()
    try:
        with writes.watched():
            with reach.watched():
                called = call()
            result, has_gradient = kept(called), bool(differentiable(called))
    finally:
        seconds = gpus.now() - start
        for handle in handles:
            handle.remove()
    leaves, random = before.has_left() or reach.changed() or reach.settings.are_any, generators.drawn()
    reach.settings.put_back()
    repeatable = not (before.changed() or leaves or writes.are_any)
    before.put_back_gradients()
    return Recorded(given, calls, result, has_gradient, repeatable, random, leaves, seconds, reach, writes)


@dataclass(frozen=True)
class Example:
    """A call that the model may not become slower in.

    Attributes:
        name: As errors, notes and reports have it, with its arguments in words.
        values: All of its arguments.
        call: Makes it.
        recorded: What the first run of it gave.
        in_float32: What a copy of the model in float32 gives, or what a run of it and that call of it gives; None where
            that is not known.
    """

    name: str
    values: tuple[Any, ...]
    call: Callable[[], object]
    recorded: Recorded
    in_float32: Callable[..., Any] = lambda *_: None
