# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The dicts of a module are exchanged for others that hold the same, and then changed: the graph sees it."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conversion_checks import DROPPED, FINE, GRAPH, Prefer, graphs_of
from conversion_nets import drop_channels_
from torch import nn

import sparsekernels as sk
from sparsekernels.pruning import prune_

Change = Callable[[Any], None]


def doubled(module: Any, args: Any, output: Any) -> Any:
    return 2 * output


def exchange(module: nn.Module, name: str) -> Any:
    vars(module)[name] = type(vars(module)[name])(vars(module)[name])
    return vars(module)[name]


def of_parameters(layer: Any, name: str) -> Change:
    """The new dict has another parameter, the old one that which the graph knows."""

    def change(net: Any) -> None:
        module = getattr(net, layer)
        exchange(module, "_parameters")[name] = nn.Parameter(2 * getattr(module, name).detach())

    return change


def written_by_others(net: Any) -> None:
    exchange(net.norm, "_parameters")["weight"].data.mul_(3)


def of_statistics(net: Any) -> None:
    exchange(net.norm, "_buffers")["running_mean"] = torch.ones(8)


def of_children(net: Any) -> None:
    exchange(net, "_modules")["norm"] = nn.Tanh()


def of_order(net: Any) -> None:
    """Equal as dicts are."""
    net.last._modules = dict(reversed(net.last._modules.items()))


def of_hooks(net: Any) -> None:
    net.norm._forward_hooks = OrderedDict()
    net.norm.register_forward_hook(doubled)


def of_hooks_by_hand(net: Any) -> None:
    net.conv._forward_hooks = OrderedDict({0: doubled})


def hooks_by_hand(net: Any) -> None:
    net.conv._forward_hooks[0] = doubled


def of_the_models_hooks(net: Any) -> None:
    exchange(net.last, "_forward_hooks")[0] = doubled


CHANGES: dict[str, Change] = {
    "weight": of_parameters("conv", "weight"),
    "bias": of_parameters("conv", "bias"),
    "scale": of_parameters("norm", "weight"),
    "slope": of_parameters("slope", "weight"),
    "written": written_by_others,
    "statistics": of_statistics,
    "children": of_children,
    "order": of_order,
    "hooks": of_hooks,
    "hooks by hand": of_hooks_by_hand,
    "hooks in place": hooks_by_hand,
    "hooks of a container": of_the_models_hooks,
}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.slope = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.PReLU()
        self.last = nn.Sequential(OrderedDict(a=nn.Conv2d(8, 8, 1), b=nn.Tanh(), c=nn.Conv2d(8, 8, 1)))

    def forward(self, x: Any) -> Any:
        return self.last(self.slope(self.norm(self.conv(x))))


@pytest.mark.parametrize("decision", [FINE, DROPPED])
@pytest.mark.parametrize("change", CHANGES)
def test_what_the_new_dict_holds_counts(prefer: Prefer, change: str, decision: str) -> None:
    model, x = Net().eval(), torch.randn(2, 3, 6, 6)
    prune_(model, "random", 0.6)
    drop_channels_(model)
    dense = copy.deepcopy(model)
    prefer(decision, GRAPH)
    sk.convert(model, x)
    assert len(list(graphs_of(model))) == 1
    with torch.no_grad():
        before = model(x)
        for one in (model, dense):
            CHANGES[change](one)
        assert not torch.allclose(dense(x), before, rtol=1e-2)
        for _ in range(3):
            torch.testing.assert_close(model(x), dense(x), rtol=1e-4, atol=1e-5)
