# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""A model compared with its dense twin: results, gradients where weights are not zero, and what a pass leaves behind.

By the oracle's rule over whole models: the twin in float64 is the truth, itself in its own dtype the baseline.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from sparsekernels.conversion.agreement import leaves_of
from sparsekernels.testing import compare

LARGEST = {torch.float16: 1e3, torch.bfloat16: 1e3, torch.float32: 1e6, torch.float64: 1e6}
"""A model whose results are larger than that is not compared: they, or what they are sums of, may overflow."""
CHAOS = 0.05
"""Where the twin's own output in float32 is off by that share, its gradients are noise."""
LEAST = 2.0**-10
"""Smaller gradients are sums of what float16 has few bits for, as it has no smaller exponents."""
ROUNDINGS = 64


class Wrong(AssertionError):
    """The model is not what its twin is."""


@dataclass(frozen=True)
class Pass:
    """A way to call a model."""

    training: bool | None  # None: in the modes that its parts have
    gradients: bool
    inference: bool = False
    autocast: bool = False

    def __str__(self) -> str:
        mode = {None: "in its modes", True: "in training mode", False: "in evaluation mode"}[self.training]
        return f"{mode}, {'with' if self.gradients else 'without'} gradients{', autocast' * self.autocast}"


@dataclass(frozen=True)
class Call:
    """What a model is called with."""

    args: tuple[Any, ...] = ()
    kwargs: tuple[tuple[str, Any], ...] = ()

    def mapped(self, function: Any) -> Call:
        """With every floating tensor exchanged."""

        def each(value: Tensor) -> Tensor:
            return function(value) if value.is_floating_point() else value

        return Call(*tree_map_only(Tensor, each, (self.args, self.kwargs)))


def in_dtype(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy."""
    return copy.deepcopy(model).to(dtype)


def agree(
    model: nn.Module,
    twin: nn.Module,
    one: Pass,
    call: Call,
    *,
    wide: nn.Module | None = None,
    only_outputs: bool = False,
) -> bool:
    """Raises `Wrong` where a pass of `model` differs from one of the twin. False where nothing can be said.

    wide: the twin in float64, where there is one already; its buffers are those of the twin.
    """
    dtype = next(twin.parameters()).dtype
    exact = dtype is torch.float64
    narrow = in_dtype(twin, torch.float32) if exact else twin
    given = call.mapped(Tensor.float) if exact else call
    wide = in_dtype(twin, torch.float64) if wide is None else wide
    truth = results(wide, replace(one, autocast=False), call.mapped(Tensor.double))
    with buffers_kept(narrow):
        baseline = results(narrow, one, given)
    largest = LARGEST[torch.bfloat16 if one.autocast else dtype]
    if any(
        not result.isfinite().all() or result.abs().max() > largest for result in baseline.values() if result.numel()
    ):
        return False
    if dtype is torch.float32 and any(
        (baseline[name].double() - truth[name]).abs().max() > CHAOS * truth[name].abs().max()
        for name in truth
        if name.startswith("output") and truth[name].numel() and not one.autocast
    ):
        return False
    actual = results(model, one, call)
    names = [name for name in truth if not only_outputs or name.startswith(OUTPUTS)]
    if not only_outputs and list(actual) != names:
        raise Wrong(f"{one}: results {list(actual)}, expected {names}")
    failed = []
    for name in names:
        expected = truth[name] if exact else baseline[name]
        if not expected.is_floating_point():
            if not torch.equal(actual[name], expected):
                raise Wrong(f"{one}: {name} is {actual[name].tolist()}, expected {expected.tolist()}")
            continue
        if actual[name].dtype != expected.dtype:
            raise Wrong(f"{one}: {name} is {actual[name].dtype}, not {expected.dtype}")
        if dtype is torch.float16 and name.startswith("gradient") and truth[name].abs().max() < LEAST:
            continue
        comparison = compare(name, actual[name], truth[name], baseline[name], exact)
        if not comparison.passed:
            failed.append(comparison)
    if failed and one.gradients:  # what cancels is as precise as what is added up
        sums = _sums_of_magnitudes(wide, replace(one, autocast=False), call.mapped(Tensor.double))
        for name in {row.name for row in failed} & set(sums):
            actual[name], truth[name], baseline[name] = (
                _with(every[name], sums[name]) for every in (actual, truth, baseline)
            )
        failed = [compare(row.name, actual[row.name], truth[row.name], baseline[row.name], exact) for row in failed]
        failed = [row for row in failed if not row.passed]
    # where a sum is next to a kink, chance decides on which side a rounding puts it: others of the reference, in the
    # dtype that it multiplies in
    eps = torch.finfo(torch.bfloat16 if one.autocast else torch.float32).eps
    for seed in range(ROUNDINGS):
        if not failed:
            break
        with torch.random.fork_rng(devices=[]):
            other = given.mapped(functools.partial(jittered, seed=seed, eps=eps))
            with buffers_kept(narrow), _rounded_otherwise(narrow, seed, eps):
                others = results(narrow, one, other)
        again = []
        for row in failed:
            reference = others[row.name]
            if reference.shape != truth[row.name].shape:
                reference = _with(reference, sums[row.name])
            again.append(compare(row.name, actual[row.name], truth[row.name], reference, exact))
        failed = [max(pair, key=lambda row: row.allowed) for pair in zip(failed, again, strict=True)]
        failed = [row for row in failed if not row.passed]
    if failed:
        raise Wrong(f"{one}: " + "; ".join(map(str, failed)))
    return True


OUTPUTS = ("output", "gradient of input")


def results(model: nn.Module, one: Pass, call: Call) -> dict[str, Tensor]:
    """What a pass gives: the output, gradients where weights are not zero, the buffers afterwards.

    The gradients of the parameters of one layer are one result: that of a bias in front of a BatchNorm, a sum in which
    everything cancels, is as precise as that of the weight.
    """
    modes = [(module, module.training) for module in model.modules()]
    if one.training is not None:
        model.train(one.training)
    given = call.mapped(lambda x: x.detach().clone().requires_grad_(one.gradients))
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.set_grad_enabled(one.gradients))
            if one.inference and not one.gradients:
                stack.enter_context(torch.inference_mode())
            if one.autocast:
                stack.enter_context(torch.autocast("cpu", torch.bfloat16))
            result = model(*given.args, **dict(given.kwargs))
    finally:
        for module, training in modes:
            module.training = training
    outputs = [leaf for leaf in leaves_of(result) if isinstance(leaf, Tensor)]
    found = {f"output {index}": output.detach() for index, output in enumerate(outputs)}
    outputs = [output for output in outputs if output.requires_grad]
    if one.gradients and outputs:
        kept = [(parameter, parameter.grad) for parameter in model.parameters()]
        for parameter, _ in kept:
            parameter.grad = None
        generator = torch.Generator().manual_seed(1)
        seeds = [torch.randn(output.shape, generator=generator).bfloat16().to(output.dtype) for output in outputs]
        torch.autograd.backward(outputs, seeds)
        leaves = [leaf for leaf in tree_leaves((given.args, given.kwargs)) if isinstance(leaf, Tensor)]
        for index, leaf in enumerate(leaves):
            if leaf.grad is not None:
                found[f"gradient of input {index}"] = leaf.grad
        for name, module in model.named_modules():
            parameters = [one for one in module._parameters.values() if one is not None]
            if parameters:
                found[f"gradients of {name}"] = torch.cat([_at_nonzeros(one).flatten() for one in parameters])
        for parameter, gradient in kept:
            parameter.grad = gradient
    return found | {name: buffer.clone() for name, buffer in model.named_buffers()}


def _with(values: Tensor, one: float) -> Tensor:
    """One more; half types would round it."""
    values = values if values.dtype is torch.float64 else values.float()
    return torch.cat([values, values.new_full((1,), one)])


def _sums_of_magnitudes(model: nn.Module, one: Pass, call: Call) -> dict[str, float]:
    """Of the products that a gradient of each layer's bias or weight is a sum of: how large that could be."""
    found: dict[str, float] = {}
    handles = []
    for name, module in model.named_modules():
        if any(parameter is not None for parameter in module._parameters.values()):

            def look(module: nn.Module, args: Any, output: Any, key: str = f"gradients of {name}") -> None:
                largest = max([1.0, *(one.abs().max().item() for one in tree_leaves(args) if isinstance(one, Tensor))])

                def add(gradient: Tensor) -> None:
                    channels = 1 if gradient.dim() == 4 else gradient.dim() - 1
                    total = gradient.abs().transpose(channels, -1).flatten(0, -2).sum(0).max().item() * largest
                    found[key] = found.get(key, 0.0) + total

                if isinstance(output, Tensor) and output.requires_grad:
                    output.register_hook(add)

            handles.append(module.register_forward_hook(look))
    try:
        results(model, one, call)
    finally:
        for handle in handles:
            handle.remove()
    return found


@contextlib.contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Inside, passes write to copies of the buffers."""
    kept = [(module, dict(module._buffers)) for module in model.modules()]
    for module, buffers in kept:
        module._buffers.update({name: copy_of(buffer) for name, buffer in buffers.items()})
    try:
        yield
    finally:
        for module, buffers in kept:
            module._buffers.update(buffers)


def copy_of(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().clone(memory_format=torch.preserve_format)


def jittered(tensor: Tensor, seed: int, eps: float) -> Tensor:
    """Another rounding of nearly the same numbers, to that eps or the dtype's, if that is larger; zeros stay."""
    eps = max(eps, torch.finfo(tensor.dtype).eps)
    draw = torch.rand(tensor.shape, generator=torch.Generator().manual_seed(seed)) - 0.5
    return (tensor.double() * (1 + 2 * eps * draw.double())).to(tensor.dtype)


@contextlib.contextmanager
def _rounded_otherwise(model: nn.Module, seed: int, eps: float) -> Iterator[None]:
    """Inside, its parameters are others by a rounding."""
    kept = [(parameter, parameter.data) for parameter in model.parameters()]
    for parameter, values in kept:
        parameter.data = jittered(values, seed, eps)
    try:
        yield
    finally:
        for parameter, values in kept:
            parameter.data = values


def _at_nonzeros(parameter: Tensor) -> Tensor:
    """Its gradient, of a weight where that is not zero."""
    gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    return torch.where(parameter != 0, gradient, 0) if parameter.dim() > 1 else gradient
