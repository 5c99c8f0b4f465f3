# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""convert and revert: a pruned model's layers become the fastest of what computes the same, and back."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._torch import tree_leaves, tree_map_only
from .attempt import Attempt
from .candidates import decisions as all_decisions
from .report import Report
from .survey import Example, Layer, Recorded, layers_of, record_by_chance, record_inputs
from .watch.state import CONVERSION, unchanged


def convert(
    model: nn.Module,
    example_input: Any = (),
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    example_inputs: Sequence[tuple[tuple[Any, ...], Mapping[str, Any]]] | None = None,
    decisions: Collection[str] | None = None,
) -> Report:
    r"""Replace each Conv2d and Linear of a pruned model with the fastest equivalent implementation, in place.

    Each layer is timed as it is ("dense"), without the filters and channels that are all zero ("channel-dropped"), and
    with its nonzeros only ("fine-grained"). The fastest wins. In evaluation mode, what torch.fx can trace then runs as
    a graph: BatchNorm is folded into the layer before it, and bias, residual sum and ReLU are part of it. That graph
    serves calls without gradients (`torch.inference_mode` or `torch.no_grad`) in evaluation mode; in other calls, the
    layers run one by one. In training mode, a graph has each BatchNorm2d with the residual sum, the ReLU and the
    dropout behind it as one step, which draws other random numbers from torch's generator than dropout does. Where the
    whole model is not faster in the end, it is left unchanged. Threads are torch's (`torch.set_num_threads`); measuring
    takes from a second to half a minute, in training mode up to a minute.

    The layers share the parameters of those they replace: optimizers, `state_dict` and checkpoints do not notice.
    Weights that are zero stay zero in training, until `revert`. The graph notices when parameters change, unless they
    are written through `.data`; after that, convert again, which measures anew.

    Args:
        model: any module, pruned so that its weights have zeros. Its mode counts: in evaluation mode forward passes are
            measured and layers are fused; in training mode a forward and backward pass is measured.
        example_input: what `model` is called with, a tensor or a tuple of arguments, in the shapes that it will be used
            with. Other shapes are right as well, but may be slower than before.
        example_kwargs: what else it is called with, by name. A graph serves calls without keyword arguments only.
        example_inputs: in the place of both, calls as pairs (args, kwargs), of each of which the model may not become
            slower: a prompt and a decoding step, say. What is faster by the geometric mean over them is taken.
        decisions: what a layer may become beside "dense", of "channel-dropped" and "fine-grained"; None for all.

    Returns:
        The report: a row for each layer, with the decision and why; times of the whole model before and after.

    Raises:
        TypeError: `model` is no ordinary module, `decisions` no collection, `example_kwargs` no mapping, or
            `example_inputs` no list of pairs, or given beside the other two.
        ValueError: it cannot be called with an example, an example has a tensor without elements, there is none, or
            `decisions` has another name. Then nothing has changed.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"convert: expected model to be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError("convert: expected model to be a torch.nn.Module, got a torch.jit.ScriptModule made of one")
    if isinstance(getattr(model, "_orig_mod", None), nn.Module) or model._compiled_call_impl is not None:
        raise TypeError("convert: expected model before torch.compile, got a compiled one; convert, then compile")
    if decisions is None:
        decisions = all_decisions()
    if not isinstance(decisions, Collection):
        raise TypeError(f"convert: expected decisions to be a collection of names, got {type(decisions).__name__}")
    if example_kwargs is not None and not isinstance(example_kwargs, Mapping):
        raise TypeError(f"convert: expected example_kwargs to be a mapping, got {type(example_kwargs).__name__}")
    decisions = (decisions,) if isinstance(decisions, str) else tuple(decisions)
    for decision in decisions:
        if decision not in all_decisions():
            raise ValueError(
                f"convert: expected decisions of {', '.join(map(repr, all_decisions()))}, got {decision!r}"
            )
    given = _given(example_input, example_kwargs, example_inputs)
    training = model.training
    calls = [functools.partial(_with_own_arguments, model, args, kwargs) for _, args, kwargs in given]
    # whatever mode the caller is in: what is made here outlives it
    with torch.inference_mode(False), torch.set_grad_enabled(training), unchanged(model):
        if training:
            _refuse_gradient_hooks(model)
        previous = vars(model).get(CONVERSION)
        _undo(model, "convert")
        try:
            layers, recorded = _first_runs(model, given, calls)
            examples = [
                Example(f"{name} ({_words(args, kwargs)})", (*args, *kwargs.values()), call, one)
                for (name, args, kwargs), call, one in zip(given, calls, recorded, strict=True)
            ]
            report = Attempt(model, examples, layers, decisions).run()
        except BaseException:
            if previous is not None and CONVERSION not in vars(model):
                previous.install()
                vars(model)[CONVERSION] = previous
            raise
    conversion = vars(model).get(CONVERSION)
    if conversion is not None:
        conversion.share_attributes()
    return report


def revert(model: nn.Module) -> nn.Module:
    """Undo `convert`, in place: the model has its own modules again, with the present values of their parameters.

    That goes for the model and for all parts of it that were converted by themselves; not for a part of what was
    converted as a whole, whose sparse layers stay (their `to_dense` gives dense ones). Where nothing was converted,
    nothing happens.

    Args:
        model: what `convert` was given, or what contains it.

    Returns:
        The model.

    Raises:
        TypeError: `model` is no module.
        RuntimeError: a converted layer was given hooks, a parametrization or a pruning mask since; nothing has changed.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"revert: expected model to be a torch.nn.Module, got {type(model).__name__}")
    converted = [module for module in model.modules() if CONVERSION in vars(module)]
    for module in converted:
        vars(module)[CONVERSION].check("revert")
    for module in converted:
        _undo(module, "revert")
    return model


def _undo(model: nn.Module, function: str) -> None:
    conversion = vars(model).get(CONVERSION)
    if conversion is not None:
        conversion.check(function)
        del vars(model)[CONVERSION]
        conversion.uninstall()
        conversion.hand_back()


_Given = tuple[str, tuple[Any, ...], dict[str, Any]]
"""The name of an example, and what the model is called with."""


def _given(example_input: Any, example_kwargs: Any, example_inputs: Any) -> list[_Given]:
    """The examples, checked."""
    if example_inputs is None:
        args = example_input if isinstance(example_input, tuple) else (example_input,)
        given: list[_Given] = [("example_input", args, dict(example_kwargs or {}))]
    else:
        if example_kwargs is not None or not (isinstance(example_input, tuple) and not example_input):
            raise TypeError("convert: expected example_input with example_kwargs, or example_inputs, got both")
        if not isinstance(example_inputs, list | tuple):
            kind = type(example_inputs).__name__
            raise TypeError(f"convert: expected example_inputs to be a list of pairs (args, kwargs), got a {kind}")
        if not example_inputs:
            raise ValueError("convert: expected example_inputs of at least one pair (args, kwargs), got none")
        given = []
        for index, pair in enumerate(example_inputs):
            name = f"example_inputs[{index}]"
            is_pair = isinstance(pair, tuple) and len(pair) == 2
            if not (is_pair and isinstance(pair[0], tuple) and isinstance(pair[1], Mapping)):
                what = f"({', '.join(map(_describe, pair))})" if isinstance(pair, tuple) else _describe(pair)
                raise TypeError(
                    f"convert: expected {name} to be a pair (args, kwargs) of a tuple and a mapping, got {what}"
                )
            given.append((name, pair[0], dict(pair[1])))
    for name, args, kwargs in given:
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, Tensor) and value.numel() == 0:
                raise ValueError(f"convert: expected {name} of tensors with elements, got {_describe(value)}")
    return given


def _first_runs(
    model: nn.Module, given: list[_Given], calls: Sequence[Callable[[], object]]
) -> tuple[list[Layer], list[Recorded]]:
    """The layers, and what runs gave and were given; once more where a run made modules or parameters."""
    while True:
        layers, before, recorded = layers_of(model), _parts(model), []
        for (name, args, kwargs), call in zip(given, calls, strict=True):
            with torch.inference_mode(not model.training):
                try:
                    recorded.append(record_inputs(model, layers, call))
                except Exception as error:
                    is_list = name == "example_input" and len(args) == 1 and isinstance(args[0], list)
                    hint = "; a list is one argument, a tuple is several" if is_list else ""
                    raise ValueError(
                        f"convert: expected {name} that model can be called with, got ({_words(args, kwargs)}){hint}:"
                        f" {type(error).__name__}: {error}"
                    ) from error
        if _parts(model) == before:
            with torch.inference_mode(not model.training):
                record_by_chance(model, layers, recorded, calls)
            return layers, recorded


def _parts(model: nn.Module) -> list[tuple[int, type]]:
    return [(id(part), type(part)) for part in (*model.modules(), *model.parameters())]


def _with_own_arguments(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
    """A call on copies: models write to their arguments."""
    return model(*tree_map_only(Tensor, _copy_of, args), **tree_map_only(Tensor, _copy_of, kwargs))


def _copy_of(tensor: Tensor) -> Tensor:
    return tensor.detach().clone(memory_format=torch.preserve_format).requires_grad_(tensor.requires_grad)


def _refuse_gradient_hooks(model: nn.Module) -> None:
    """What happens when a gradient arrives would happen while layers are measured: an optimizer's step, say."""
    for name, parameter in model.named_parameters():
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
            raise ValueError(
                f"convert: expected parameters without hooks, which measuring would run, got hooks of {name};"
                " register them after"
            )


def _words(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    return ", ".join([*map(_describe, args), *(f"{name}={_describe(kwargs[name])}" for name in kwargs)])


def _describe(value: object) -> str:
    return f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
