# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What modules consist of, to be put back where a conversion does not come to its end."""

from __future__ import annotations

from typing import Any

from torch import nn

from .graph.attach import detach
from .modules import GRAPH
from .watch.state import CONVERSION, KEPT_BY_TORCH


class Structure:
    """The classes, modes, hooks, children, parameters, buffers and graphs of all modules of a model."""

    def __init__(self, model: nn.Module) -> None:
        self._modules = [(module, type(module), self._parts_of(module)) for module in model.modules()]
        self._contents = [
            (value, value.copy())
            for _, _, parts in self._modules
            for value in parts.values()
            if isinstance(value, dict)
        ]

    def put_back(self) -> None:
        """Restore all of it: which there are, not the elements of tensors."""
        for module, kind, parts in self._modules:
            if vars(module).get(GRAPH) is not parts.get(GRAPH):
                detach(module)
            if type(module) is not kind:
                module.__class__ = kind
            attributes = vars(module)
            for name in self._parts_of(module).keys() - parts.keys():
                del attributes[name]
            attributes.update(parts)
        for value, content in self._contents:
            now = [(name, id(one)) for name, one in value.items()]
            if now != [(name, id(one)) for name, one in content.items()]:
                value.clear()
                value.update(content)

    @staticmethod
    def _parts_of(module: nn.Module) -> dict[str, Any]:
        return {
            name: value
            for name, value in vars(module).items()
            if name in {*KEPT_BY_TORCH, "forward", GRAPH, CONVERSION}
        }
