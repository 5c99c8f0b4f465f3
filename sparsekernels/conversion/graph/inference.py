# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""A graph for inference: each convolution and Linear takes over the BatchNorm, residual sum and ReLU behind it.

It serves calls without gradients. What it took from the modules (folded weights) is made anew when they have changed
since.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ..._torch import tree_map_only
from ...nn.replacement import Replacement
from ..facts import GraphObstacle
from .base import ONE_AT_A_TIME, Graph, Plan, assembled
from .chain import FusedChain, chain
from .channels import Link, choose_channels, links_of
from .fused import Fused, is_ordinary
from .fusion import drop_identities, fuse, pool, writes_to_input
from .trace import Trace
from .tracing import Untraceable


class _Tensors:
    """Parameters and buffers at their places, and what tells that one is another now.

    It is asked in each call: a list of each property is compared in less time than tensor after tensor.
    """

    def __init__(self, found: Sequence[tuple[dict[str, Any], str, Tensor]]) -> None:
        self._places = [place for place, _, _ in found]
        self._names = [name for _, name, _ in found]
        self._tensors = [tensor for _, _, tensor in found]
        self._aliases = [tensor.detach() for tensor in self._tensors]  # their memory is given to no other tensor
        self._versions = list(map(_VERSION, self._tensors))
        self._dtypes = list(map(_DTYPE, self._tensors))
        self._addresses = list(map(Tensor.data_ptr, self._tensors))

    def changed(self) -> bool:
        tensors = self._tensors
        try:
            return not (
                all(map(operator.is_, map(dict.get, self._places, self._names), tensors))
                and list(map(_VERSION, tensors)) == self._versions
                and list(map(_DTYPE, tensors)) == self._dtypes
                and all(map(Tensor.is_set_to, tensors, self._aliases))  # storage, shape and strides
                and list(map(Tensor.data_ptr, tensors)) == self._addresses  # a storage may be freed and filled again
                and not any(map(Tensor.is_neg, tensors))
            )
        except RuntimeError:  # raised of a tensor on another device than its alias
            return True


_VERSION, _DTYPE = operator.attrgetter("_version"), operator.attrgetter("dtype")


class _Pattern(NamedTuple):
    """Which weights a replacement uses."""

    layer: Replacement
    places: object


@dataclass
class InferencePlan(Plan):
    """A plan with constants.

    fused    layers, with the constants that were made of their modules
    chained  fused layers that are one call, in the places of these
    links    between fused layers that may agree on channels
    writes   whether an argument is changed in place
    tensors, patterns  what the constants were made of
    """

    fused: Sequence[Fused]
    chained: Sequence[FusedChain]
    links: Sequence[Link]
    writes: bool
    tensors: _Tensors = field(default_factory=lambda: _Tensors([]))
    patterns: Sequence[_Pattern] = ()

    def refresh(self) -> None:
        """Fold and pack anew where parameters, statistics or patterns are others than those that were folded."""
        if not self._is_stale():
            return
        with ONE_AT_A_TIME:
            if self._is_stale():  # no other thread was faster
                self.freeze()

    def _is_stale(self) -> bool:
        return self.tensors.changed() or any(layer.places is not places for layer, places in self.patterns)

    def freeze(self, fold: bool = True) -> None:
        """Make the constants of what the modules hold. Raises `Untraceable`, before it has done anything.

        fold: not where the layers are new, and have just done that.
        """
        for layer in self.fused:
            obstacle = layer.obstacle()
            if obstacle is not None:
                raise Untraceable(obstacle)
        tensors, patterns = _Tensors(list(_tensors_of(self.fused))), list(_patterns_of(self.fused))
        for layer in self.fused if fold else ():
            layer.fold()
        choose_channels(list(self.links))
        for layer in self.fused:
            layer.pack()
        for layers in self.chained:
            layers.pack()
        self.tensors, self.patterns = tensors, patterns


class InferenceGraph(Graph):
    """A graph for calls without gradients, in evaluation mode.

    contiguous: whether images are brought into contiguous layout, in which the sparse kernels are fastest, and results
    back into that of the input. drops: whether channels that are not needed are left out. chains: whether sparse layers
    that follow each other become one call (chain.py).
    """

    training: ClassVar[bool] = False

    def __init__(
        self,
        module: nn.Module,
        dtype: torch.dtype,
        device: torch.device,
        contiguous: bool,
        drops: bool = True,
        chains: bool = False,
        trace: Trace | None = None,
    ) -> None:
        super().__init__(module, dtype, device, trace)
        self.contiguous, self.drops, self.chains = contiguous, drops, chains

    def _may_run(self, args: tuple[Any, ...]) -> bool:
        if not torch.is_grad_enabled():
            return True
        return not any(value.requires_grad for value in args) and not any(
            parameter.requires_grad for parameter in self.module.parameters()
        )

    def _run(self, plan: InferencePlan, args: tuple[Any, ...]) -> Any:
        if not self.contiguous:
            return plan.run(*args)
        if plan.writes and any(not value.is_contiguous() for value in args):
            return type(self.module).forward(self.module, *args)  # the caller is to see what is written
        if not any(value.dim() == 4 and not value.is_contiguous() for value in args):
            return plan.run(*args)
        last = any(value.is_contiguous(memory_format=torch.channels_last) for value in args if value.dim() == 4)
        result = plan.run(*(value.contiguous() if value.dim() == 4 else value for value in args))
        return tree_map_only(Tensor, _to_channels_last, result) if last else result

    def _plan_of(self, trace: Trace) -> InferencePlan:
        graph, modules = trace.fresh()
        drop_identities(graph, modules)
        fused = fuse(graph, modules, self.contiguous)
        if self.contiguous:
            pool(graph, modules)
        if not fused:
            raise Untraceable(GraphObstacle.NOTHING_TO_FUSE)
        writes = any(writes_to_input(node, modules) for node in graph.nodes)
        links = links_of(graph, fused, modules) if self.drops else []
        chained = chain(graph, fused) if self.chains and self.contiguous else {}
        parts = [part for layer in fused.values() for part in layer.parts if part is not None]
        made = assembled(self.module, modules, graph, {**fused, **chained}, parts)
        plan = InferencePlan(
            made.run, trace.arguments, made.watch, list(fused.values()), list(chained.values()), links, writes
        )
        plan.freeze(fold=False)
        return plan


def _to_channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def _tensors_of(fused: Sequence[Fused]) -> Iterator[tuple[dict[str, Any], str, Tensor]]:
    for layer in fused:
        for part in layer.parts:
            for place in () if part is None else (part._parameters, part._buffers):
                for name, tensor in place.items():
                    if is_ordinary(tensor):  # torch counts batches, but no changes of the running statistics
                        if tensor.is_inference():
                            raise Untraceable(GraphObstacle.INFERENCE_TENSORS)
                        yield place, name, tensor


def _patterns_of(fused: Sequence[Fused]) -> Iterator[_Pattern]:
    for layer in fused:
        for part in layer.parts:
            if isinstance(part, Replacement):
                yield _Pattern(part, part.places)
