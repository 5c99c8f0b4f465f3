# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Parameters of a converted model that are exchanged, computed, swapped, flattened, or without data for a while."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from conversion_checks import DROPPED, FINE, GRAPH, LAYERS, Prefer, assert_agree, run
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils import swap_tensors

import sparsekernels as sk
from sparsekernels import _library
from sparsekernels.pruning import prune_

pytestmark = [
    pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built"),
    pytest.mark.filterwarnings("ignore:.*computes? with the whole weight"),
    pytest.mark.filterwarnings("ignore:.*deprecated"),
]
set_swaps = torch.__future__.set_swap_module_params_on_conversion


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()
        self.flat, self.layer, self.head = nn.Flatten(), nn.Linear(8 * 25, 12), nn.Linear(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.flat(self.relu(self.norm(self.conv(x))))))


class Times(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * 2 + 0.1


class Dropped(nn.Module):
    """Another result in each access."""

    def forward(self, weight: Tensor) -> Tensor:
        return nn.functional.dropout(weight, 0.3)


def _layers(model: Any) -> list[Any]:
    return [model.conv, model.layer, model.norm]


def _other(weight: Tensor) -> nn.Parameter:
    generator = torch.Generator().manual_seed(weight.numel())
    return nn.Parameter(torch.randn(weight.shape, generator=generator) * (weight == 0))


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value * 2 if value.is_floating_point() else value for name, value in model.state_dict().items()}


def _swapping(change: Callable[[Any], object]) -> Callable[[Any], None]:
    def changed(model: nn.Module) -> None:
        set_swaps(True)
        try:
            change(model)
        finally:
            set_swaps(False)

    return changed


def _deleted(model: Any) -> None:
    for layer in _layers(model):
        weight = layer.weight
        del layer.weight
        layer.weight = _other(weight)


def _flat_views(model: Any) -> None:
    """As FSDP has it while a model is called."""
    owners = [(module, name, one) for module in model.modules() for name, one in module._parameters.items()]
    model.flat_parameter = nn.Parameter(torch.cat([one.detach().flatten() for _, _, one in owners]) * 1.5)
    pieces = model.flat_parameter.split([one.numel() for _, _, one in owners])
    for (module, name, one), piece in zip(owners, pieces, strict=True):
        del module._parameters[name]
        setattr(module, name, piece.view(one.shape))


def _flat_data(model: Any) -> None:
    buffer = nn.utils.parameters_to_vector(model.parameters()).detach()
    nn.utils.vector_to_parameters(buffer, model.parameters())
    buffer.mul_(1.5)


def _emptied(model: Any, device: str = "cpu", assign: bool = False) -> None:
    state = _state(model)
    model.to(device)
    if not assign:
        model.to_empty(device="cpu")
    model.load_state_dict(state, assign=assign)


def _initialized(model: Any) -> None:
    def fill(module: Any) -> None:
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.constant_(module.weight, 0.1)
            nn.init.zeros_(module.bias)

    model.apply(fill)


def _with_new_head(model: Any) -> None:
    model.head = nn.utils.skip_init(nn.Linear, 12, 6)
    _initialized(model.head)


def _each(function: Callable[[Any], object]) -> Callable[[Any], None]:
    def changed(model: Any) -> None:
        for layer in (model.conv, model.layer):
            torch.manual_seed(0)
            function(layer)

    return changed


def _parametrized(name: str = "weight") -> Callable[[Any], None]:
    return _each(lambda layer: parametrize.register_parametrization(layer, name, Times()))


def _no_longer_parametrized(model: Any) -> None:
    _parametrized()(model)
    _each(lambda layer: parametrize.remove_parametrizations(layer, "weight"))(model)


def _normalized(model: Any) -> None:
    """The norm of all of it: that of a filter of zeros would be divided by."""
    _each(lambda layer: nn.utils.weight_norm(layer, dim=None))(model)
    _each(nn.utils.remove_weight_norm)(model)


CHANGES: dict[str, Callable[[Any], object]] = {
    "swapped to another dtype and back": _swapping(lambda model: model.bfloat16().float()),
    "swapped by loading": _swapping(lambda model: model.load_state_dict(_state(model), assign=True)),
    "swapped through meta": _swapping(lambda model: _emptied(model, "meta")),
    "another parameter": lambda model: [setattr(one, "weight", _other(one.weight)) for one in _layers(model)],
    "deleted and set": _deleted,
    "set in the dict": lambda model: [one._parameters.update(weight=_other(one.weight)) for one in _layers(model)],
    "flat views": _flat_views,
    "flat data": _flat_data,
    "a vector": lambda model: nn.utils.vector_to_parameters(
        nn.utils.parameters_to_vector(model.parameters()) * 1.5, model.parameters()
    ),
    "parametrized": _parametrized(),
    "a parametrized bias": _parametrized("bias"),
    "no longer parametrized": _no_longer_parametrized,
    "weight_norm": _each(lambda layer: parametrizations.weight_norm(layer, dim=None)),
    "spectral_norm": _each(parametrizations.spectral_norm),
    "orthogonal": lambda model: parametrizations.orthogonal(model.head),
    "weight_norm, removed": _normalized,
    "no gradients": lambda model: model.requires_grad_(False),
    "shared memory": lambda model: model.share_memory(),
    "emptied": _emptied,
    "through meta": lambda model: _emptied(model, "meta"),
    "through meta, assigned": lambda model: _emptied(model, "meta", assign=True),
    "initialized": _initialized,
    "a head without initialization": _with_new_head,
}


def _converted(prefer: Prefer, decision: str, how: str) -> tuple[Any, Any, Tensor]:
    model = Net().eval()
    prune_(model, "random", 0.8)
    with torch.no_grad():
        model.conv.weight[:2] = 0
        model.layer.weight[:2] = 0
        model.norm.running_mean.normal_()
    dense, x = copy.deepcopy(model), torch.randn(2, 4, 5, 5)
    prefer(decision, how)
    assert sk.convert(model, x).converted
    assert_agree(model, dense, x)
    return model, dense, x


def _gradients(model: nn.Module, x: Tensor) -> Iterator[Tensor]:
    model.zero_grad()
    result = model(x)
    if result.requires_grad:
        result.square().sum().backward()
    return (one.grad * (one != 0) for one in model.parameters() if one.grad is not None)


@pytest.mark.parametrize("way", [(FINE, GRAPH), (FINE, LAYERS), (DROPPED, LAYERS)], ids=" ".join)
@pytest.mark.parametrize("change", CHANGES)
def test_as_the_dense_model(prefer: Prefer, change: str, way: tuple[str, str]) -> None:
    model, dense, x = _converted(prefer, *way)
    for one in (model, dense):
        CHANGES[change](one)
    for _ in range(3):
        for mine, theirs in zip(run(model, x), run(dense, x), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    assert list(model.state_dict()) == list(dense.state_dict())
    for mine, theirs in zip(_gradients(model, x), _gradients(dense, x), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3 * (1 + float(theirs.abs().max())))


@pytest.mark.parametrize("decision", [FINE, DROPPED])
def test_a_swap_of_one_parameter(prefer: Prefer, decision: str) -> None:
    """Layers take it. A graph refers to the parameters: torch says so, and nothing has changed."""
    model, dense, x = _converted(prefer, decision, LAYERS)
    for one in (model, dense):
        for layer in _layers(one):
            swap_tensors(layer.weight, _other(layer.weight))
    for _ in range(3):
        assert_agree(model, dense, x)
    model, dense, x = _converted(prefer, decision, GRAPH)
    with pytest.raises(RuntimeError, match="holding references"):
        swap_tensors(model.conv.weight, _other(model.conv.weight))
    assert_agree(model, dense, x)


@pytest.mark.parametrize("decision", [FINE, DROPPED])
def test_a_computed_weight_is_computed_once_a_call(prefer: Prefer, decision: str) -> None:
    """It may be of random numbers, or, as spectral_norm's, keep something for the next."""
    model, dense, x = _converted(prefer, decision, LAYERS)
    for one in (model, dense):
        for layer in (one.conv, one.layer):
            parametrize.register_parametrization(layer, "weight", Dropped(), unsafe=True)
        one.to(torch.float32)
        torch.manual_seed(0)
        copy.deepcopy(one)
    results = []
    for one in (model, dense):
        torch.manual_seed(0)
        results.append([run(one, x)[0] for _ in range(2)])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


def test_what_keeps_from_reverting(prefer: Prefer) -> None:
    for name, what in (("weight", "a parametrization"), ("bias", "a parametrization")):
        model, _, _ = _converted(prefer, FINE, LAYERS)
        _parametrized(name)(model)
        with pytest.raises(RuntimeError, match=rf"given {what} since.*remove_parametrizations\(layer, '{name}'\)"):
            sk.revert(model)
    model, _, _ = _converted(prefer, FINE, LAYERS)
    _flat_views(model)
    with pytest.raises(RuntimeError, match=r"given a weight that is no parameter since.*layer\.weight = torch\.nn"):
        sk.revert(model)
