# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""A graph for training: each BatchNorm takes over the residual sum, the ReLU and the dropout behind it.

Max pooling is ours; the other modules are called as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from ...nn.replacement import Replacement
from ..facts import GraphObstacle
from .attach import NO_ANSWER
from .base import Graph, Plan, assembled
from .batch_norm import FusedNorm
from .fusion import drop_identities, fuse_norms, pool
from .trace import Trace
from .untraceable import Untraceable


@dataclass
class TrainingPlan(Plan):
    """A plan, with its fused BatchNorms and whether max pooling is ours in it."""

    norms: Sequence[FusedNorm]
    pools: bool


_SETTINGS = ("dense_grad", "dense_product")
"""What sparse training sets between two steps of layers, which a graph calls as they are."""


class TrainingGraph(Graph):
    """A graph for calls with gradients, in training mode."""

    training: ClassVar[bool] = True

    def _may_run(self, args: tuple[Any, ...]) -> bool:
        return torch.is_grad_enabled()

    def answer(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        # code may look at whether gradients are enabled: it was traced for training
        return super().answer(args, kwargs) if torch.is_grad_enabled() else NO_ANSWER

    def _plan_of(self, trace: Trace) -> TrainingPlan:
        graph, modules = trace.fresh()
        drop_identities(graph, modules)
        norms = fuse_norms(graph, modules)
        pools = pool(graph, modules)
        if not pools and not norms:
            raise Untraceable(GraphObstacle.NOTHING_TO_FUSE)
        parts = [part for norm in norms.values() for part in norm.parts if part is not None]
        free: list[tuple[nn.Module, tuple[str, ...]]] = [(part, ("eps", "momentum")) for part in parts]
        free += [(one, _SETTINGS) for one in modules.values() if isinstance(one, Replacement)]
        made = assembled(trace, modules, graph, norms, parts, free)
        return TrainingPlan(made, trace.arguments, list(norms.values()), pools)
