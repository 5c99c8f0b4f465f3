# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What is in a model: which layers may be converted, why others may not, and what each is given."""

from __future__ import annotations

import functools
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils import parametrize

from .._torch import ConvTransposeNd
from ..checks import DTYPES
from ..nn.replacement import options_of
from .agreement import differentiable, kept
from .facts import Fact, LayerObstacle
from .modules import has_hooks
from .watch.generators import Generators
from .watch.state import Snapshot, unchanged

KINDS = (torch.nn.Conv2d, torch.nn.Linear)
"""The layers that may become something else; their subclasses may compute anything."""

OTHERS = (
    torch.nn.Conv1d,
    torch.nn.Conv3d,
    ConvTransposeNd,
    torch.nn.Bilinear,
    torch.nn.RNNBase,
    torch.nn.RNNCellBase,
)
"""Those that one may have pruned as well, for which there is no kernel."""

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
        channels_last = (
            tensor.dim() == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)
        )
        return cls(tuple(tensor.shape), tensor.dtype, tensor.device, channels_last, tensor.requires_grad)

    def make(self) -> Tensor:
        """A tensor like it, of normal random numbers, the same every time."""
        generator = torch.Generator(self.device).manual_seed(0)
        numbers = torch.randn(1 << 16, generator=generator, device=self.device)
        count = math.prod(self.shape)
        tensor = numbers.repeat(-(-count // numbers.numel()))[:count].view(self.shape)  # many would take a while
        memory_format = torch.channels_last if self.channels_last else torch.contiguous_format
        return tensor.to(self.dtype).contiguous(memory_format=memory_format).requires_grad_(self.requires_grad)


@dataclass
class Layer:
    """A convolution or linear layer of a model.

    obstacle: why it has to stay as it is; None where it may become something else.
    """

    name: str
    module: torch.nn.Module
    obstacle: Fact | None

    @property
    def weight(self) -> Tensor | None:
        """Its weight, where that is an ordinary tensor."""
        weight = getattr(self.module, "weight", None)
        return weight if isinstance(weight, Tensor) and weight.layout == torch.strided else None

    @functools.cached_property
    def sparsity(self) -> float | None:
        """Share of its weights that are zero, when that was asked first."""
        weight = self.weight
        if (
            weight is None
            or weight.is_meta
            or weight.numel() == 0
            or isinstance(weight, torch.nn.UninitializedParameter)
        ):
            return None
        return 1 - int(weight.detach().count_nonzero()) / weight.numel()


def layers_of(model: torch.nn.Module) -> list[Layer]:
    """Every convolution and linear layer of `model`, and whatever is a subclass of one."""
    places: dict[int, list[str]] = {}
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        places.setdefault(id(module), []).append(name)
        if len(places[id(module)]) == 1:
            for parameter in module.parameters(recurse=False):
                owners.setdefault(id(parameter), []).append(name)
    scripted = [name for name, module in model.named_modules() if isinstance(module, torch.jit.ScriptModule)]
    encoders = [name for name, module in model.named_modules() if _has_fast_path(module)]
    result = []
    for name, module in model.named_modules():
        if isinstance(module, KINDS):
            obstacle = _obstacle(name, module, places, owners)
            if obstacle is None and any(_is_within(name, other) for other in scripted):
                obstacle = LayerObstacle.WITHIN_SCRIPTED.of()
            if obstacle is None and any(_is_within(name, other) for other in encoders):
                obstacle = LayerObstacle.FAST_PATH.of()
            result.append(Layer(name, module, obstacle))
    return result


def _is_within(name: str, other: str) -> bool:
    return other in ("", name) or name.startswith(other + ".")


def _has_fast_path(module: torch.nn.Module) -> bool:
    return (
        isinstance(module, torch.nn.TransformerEncoderLayer)
        and not module.training
        and torch.backends.mha.get_fastpath_enabled()
    )


def _obstacle(
    name: str, module: torch.nn.Module, places: Mapping[int, list[str]], owners: Mapping[int, list[str]]
) -> Fact | None:
    """Why `module` has to stay as it is."""
    if isinstance(module, torch.jit.ScriptModule):
        return LayerObstacle.SCRIPTED.of()
    if isinstance(module, NonDynamicallyQuantizableLinear):
        return LayerObstacle.OUT_PROJ.of()
    if parametrize.is_parametrized(module):
        return LayerObstacle.PARAMETRIZED.of()
    if hasattr(module, "weight_orig") or hasattr(module, "weight_mask"):
        return LayerObstacle.MASKED.of()
    if type(module).__module__.startswith("sparsekernels."):
        return LayerObstacle.CONVERTED.of(kind=type(module).__name__)
    if type(module) not in KINDS:
        return LayerObstacle.SUBCLASS.of(kind=type(module).__name__, base=type(module).__mro__[1].__name__)
    if has_hooks(module):
        return LayerObstacle.HOOKS.of()
    if "forward" in vars(module):
        return LayerObstacle.FORWARD_REPLACED.of()
    if module._compiled_call_impl is not None:
        return LayerObstacle.COMPILED.of()
    if set(module._parameters) | set(module._buffers) | set(module._modules) != {"weight", "bias"}:
        return LayerObstacle.GIVEN_MORE.of()
    if name == "":
        return LayerObstacle.WHOLE_MODEL.of()
    if len(places[id(module)]) > 1:
        return LayerObstacle.SEVERAL_PLACES.of(places=tuple(places[id(module)]))
    weight = module.weight
    if type(weight) is not torch.nn.Parameter:
        return LayerObstacle.NO_PARAMETER.of(kind=type(weight).__name__)
    if weight.numel() == 0:
        return LayerObstacle.NO_ELEMENTS.of()
    sharers = tuple(other for other in owners[id(weight)] if other != name)
    if sharers:
        return LayerObstacle.SHARED.of(layers=sharers)
    if weight.layout != torch.strided or weight.dtype not in DTYPES:
        return LayerObstacle.DTYPE_OR_LAYOUT.of(dtype=weight.dtype, layout=weight.layout)
    if weight.device.type != "cpu":
        return LayerObstacle.DEVICE.of(device=weight.device.type)
    if weight.dtype == torch.float64:
        return LayerObstacle.FLOAT64.of()
    if not torch.isfinite(weight.detach()).all():
        return LayerObstacle.NOT_FINITE.of()
    return None


Call = tuple[Given | None, ...] | None
"""What a module was called with: None in the place of what is no plain tensor, and for a call with keywords."""


@dataclass(frozen=True)
class Recorded:
    """A run of the model, and what it gave.

    given: what each layer was given, by its name, once for each call; layers that were not called have no entry.
    calls: what the other modules were called with, by their ids.
    result: as `kept`.
    differentiable: whether any of its tensors has a gradient.
    repeatable: whether it left everything as it found it, so that another run of the same would give the same.
    random: whether it drew random numbers.
    seconds: what it took.
    """

    given: dict[str, list[Given]]
    calls: Mapping[int, list[Call]]
    result: object
    differentiable: bool
    repeatable: bool
    random: bool
    seconds: float


def record_inputs(model: torch.nn.Module, layers: list[Layer], call: Callable[[], object]) -> Recorded:
    """Run `call`. Raises what it raises."""
    before, generators = Snapshot(model), Generators(())
    handles = []
    given: dict[str, list[Given]] = {}
    calls: dict[int, list[Call]] = {}

    def note_call(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensors = tuple(Given.of(value) if type(value) is Tensor else None for value in args)
        calls.setdefault(id(module), []).append(None if kwargs else tensors)

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
    start = time.perf_counter()
    try:
        result = call()
    finally:
        seconds = time.perf_counter() - start
        for handle in handles:
            handle.remove()
    repeatable, differs = not before.changed(), bool(differentiable(result))
    return Recorded(given, calls, kept(result), differs, repeatable, generators.drawn(), seconds)


@dataclass(frozen=True)
class Example:
    """A call that the model may not become slower in.

    Attributes:
        name: As errors, notes and reports have it, with its arguments in words.
        values: All of its arguments.
        call: Makes it.
        recorded: What the first run of it gave.
    """

    name: str
    values: tuple[Any, ...]
    call: Callable[[], object]
    recorded: Recorded


MOST_PASSES = 8
"""Passes, at most, in which chance may call the layers that it has not called yet."""


def record_by_chance(
    model: torch.nn.Module, layers: list[Layer], recorded: list[Recorded], calls: Sequence[Callable[[], object]]
) -> None:
    """Run what draws random numbers until it called each layer, or one like it; adds to what was `recorded` of it.

    Layers that were never called get that as their obstacle. Everything is put back afterwards.
    """

    def missing() -> list[Layer]:
        given = [with_likes(layers, one.given) for one in recorded]
        return [one for one in layers if one.obstacle is None and not any(some[one.name] for some in given)]

    pairs = [pair for pair in zip(recorded, calls, strict=True) if pair[0].random]
    left = missing() if pairs else []
    with unchanged(model):
        for _ in range(MOST_PASSES - 1):
            if not left:
                break
            for first, call in pairs:
                first.given.update(record_inputs(model, left, call).given)
            left = missing()
    for layer in left:
        if layer.sparsity is not None and layer.sparsity >= LEAST_SPARSITY:
            layer.obstacle = LayerObstacle.LEFT_OUT.of(passes=MOST_PASSES)


def with_likes(layers: list[Layer], given: Mapping[str, list[Given]]) -> dict[str, list[Given]]:
    """What each layer was given, and what its like was where chance may have passed it by.

    Chance decides which blocks are called (LayerDrop) and which experts see how many rows. So a layer that was not
    called, or with no rows, has what the most of a layer of the same shapes was; and of linear layers whose names
    differ by numbers alone, all have what the one with the most rows was.
    """
    seen = {name: [one for one in some if math.prod(one.shape)] for name, some in given.items()}
    by_kind: dict[Any, list[list[Given]]] = {}
    by_place: dict[Any, list[list[Given]]] = {}
    for layer in layers:
        if layer.obstacle is None and seen.get(layer.name):
            by_kind.setdefault(_kind(layer), []).append(seen[layer.name])
            by_place.setdefault((_kind(layer), _place(layer)), []).append(seen[layer.name])
    result = {}
    for layer in layers:
        own = seen.get(layer.name, [])
        if layer.obstacle is None:
            siblings = by_place.get((_kind(layer), _place(layer)), [])
            if not own:
                own = max(siblings or by_kind.get(_kind(layer), []), key=_elements, default=own)
            elif isinstance(layer.module, torch.nn.Linear):
                own = max([own, *siblings], key=_elements)  # the first of those with as many: its own
        result[layer.name] = own
    return result


def _kind(layer: Layer) -> tuple[Any, ...]:
    """What layers that are alike have in common."""
    module: Any = layer.module
    return type(module), *options_of(module).items(), module.weight.dtype, bool(layer.sparsity)


def _place(layer: Layer) -> str:
    """Its name with other numbers left out."""
    return re.sub(r"\d+", "#", layer.name)


def _elements(given: list[Given]) -> int:
    return sum(math.prod(one.shape) for one in given)
