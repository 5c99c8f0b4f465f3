# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""convert and revert: a pruned model's layers become the fastest of what computes the same, and back."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import math
import numbers
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._torch import tree_leaves
from ..nn.replacement import Replacement
from .arguments import Arguments
from .attempt import Attempt
from .candidates import decisions as all_decisions
from .candidates import of_frozen
from .chance import record_by_chance
from .float32_run import float32_run
from .graph.attach import has_graph
from .installation import Installed, check, put_back, release, replaced_in, take_out
from .measure import on_one_thread
from .modes import without_gradients
from .norms import restore_norms
from .progress import Progress, has_rich
from .report import Report
from .stand_ins import stand_ins
from .structure import Structure
from .survey import Example, Layer, Recorded, layers_of, record_inputs
from .watch.copies import is_lazy
from .watch.reach import Reach
from .watch.snapshot import unchanged
from .watch.state import CONVERSION
from .watch.writes import Writes


def convert(
    model: nn.Module,
    example_input: Any = (),
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    example_inputs: Sequence[tuple[tuple[Any, ...], Mapping[str, Any]]] | None = None,
    decisions: Collection[str] | None = None,
    max_seconds: float | None = None,
    progress: bool | None = None,
    frozen: bool = False,
) -> Report:
    r"""Replace each Conv2d, Conv1d and Linear of a pruned model with the fastest equivalent implementation, in place.

    Each layer is timed as it is ("dense"), without the filters and channels that are all zero ("channel-dropped"),
    with its nonzeros only ("fine-grained"), and, where these lie in blocks for which there are kernels, with those
    blocks only ("block"). The fastest wins. In evaluation mode, what torch.fx can trace then runs as a graph: BatchNorm
    is folded into the layer before it, and bias, residual sum and ReLU are part of it. That graph serves calls without
    gradients (`torch.inference_mode` or `torch.no_grad`) in evaluation mode; in other calls, the layers run one by one.
    In training mode, a graph has each BatchNorm2d with the residual sum, the ReLU and the
    dropout behind it as one step, which draws other random numbers from torch's generator than dropout does. The
    RMSNorms of such a model run as `rms_norm` where that gives the same, faster (see `replace_norms`). Where the whole
    model is not faster in the end, it is left unchanged. Threads are torch's (`torch.set_num_threads`); measuring
    takes from a second to half a minute, in training mode up to a minute; Ctrl-C leaves the model as it was.

    The layers share the parameters of those they replace: optimizers, `state_dict` and checkpoints do not notice.
    In layers that became sparse, weights that are zero stay zero in training, until `revert`; in those that stay dense
    they move, and so they do inside of blocks. In each call, the graph looks whether anything has written to what it
    was made of, on the CPU also past torch (`.data`, numpy, another process); then the layers run one by one until two
    calls in a row find the same. That takes as long as reading these parameters, and nothing with `frozen`.

    Args:
        model: any module, pruned so that its weights have zeros. Its mode counts: in evaluation mode forward passes are
            measured and layers are fused; in training mode a forward and backward pass is measured.
        example_input: what `model` is called with, a tensor or a tuple of arguments, in the shapes that it will be used
            with. Other shapes are right as well, but may be slower than before.
        example_kwargs: what else it is called with, by name.
        example_inputs: in the place of both, calls as pairs (args, kwargs), of each of which the model may not become
            slower: a prompt and a decoding step, say. What is faster by the geometric mean over them is taken.
        decisions: what a layer may become beside "dense", of "channel-dropped", "fine-grained", "block" and, with
            `frozen` and in evaluation mode, "packed"; None for all.
        max_seconds: how long this may take, about; None for no limit. The layers that promise most are measured first;
            one that was not measured in time becomes what the measured one most like it became. A run of the model is
            not interrupted, and where there is no time for a few of them, nothing changes.
        progress: whether a progress bar is drawn to stderr, which needs rich; None for where rich is installed and
            stderr is a terminal.
        frozen: whether parameters and buffers stay what they are. What they hold is not looked at in each call then; a
            call after a change that torch counts raises RuntimeError. In evaluation mode, linear layers may become
            `PackedLinear`, which keep no dense weight: memory is free where nobody else has that. For it, the model may
            be a tenth slower in one of several examples. They refuse training and `load_state_dict`; `state_dict` and
            `revert` unpack the weights.

    Returns:
        The report: a row for each layer, with the decision and why; times of the whole model before and after.

    Raises:
        TypeError: `model` is no ordinary module (a scripted or compiled one, or wrapped for distributed training),
            `decisions` no collection, `example_kwargs` no mapping, `example_inputs` no list of pairs, or given beside
            the other two, a tensor of an example nested, `max_seconds` no number, or `progress` or `frozen` no bool.
        ValueError: it cannot be called with an example, an example has a tensor without elements, there is none,
            `decisions` has another name, or `max_seconds` is not above 0. Then nothing has changed.
        ImportError: `progress` is True, and rich is not installed.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"convert: expected model to be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError("convert: expected model to be a torch.nn.Module, got a torch.jit.ScriptModule made of one")
    if isinstance(getattr(model, "_orig_mod", None), nn.Module) or model._compiled_call_impl is not None:
        raise TypeError("convert: expected model before torch.compile, got a compiled one; convert, then compile")
    _refuse_wrappers(model)
    if not isinstance(frozen, bool):
        raise TypeError(f"convert: expected frozen to be True or False, got {type(frozen).__name__}")
    lets_go = frozen and not model.training
    if decisions is None:
        decisions = tuple(name for name in all_decisions() if lets_go or name not in of_frozen())
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
        if decision in of_frozen() and not lets_go:
            how = "in training mode" if frozen else "without frozen=True"
            raise ValueError(
                f"convert: expected frozen=True and a model in evaluation mode for {decision!r}, got it {how}"
            )
    limit = _limit_of(max_seconds)
    if progress is not None and not isinstance(progress, bool):
        raise TypeError(f"convert: expected progress to be True, False or None, got {type(progress).__name__}")
    if progress and not has_rich():
        raise ImportError("convert: progress=True needs rich: pip install rich")
    given = _given(example_input, example_kwargs, example_inputs)
    with Progress(progress, limit) as pace:
        structure = Structure(model)
        try:
            # in a context of its own: variables that the model sets are the caller's business again afterwards
            context = contextvars.copy_context()
            report = context.run(_converted, model, given, decisions, pace, frozen)
            conversion = vars(model).get(CONVERSION)
            if conversion is not None:
                conversion.share_attributes()
            pace.stop()
        except BaseException:
            structure.put_back()
            release(model)
            raise
    release(model)
    return report


def _converted(
    model: nn.Module, given: list[_Given], decisions: Collection[str], pace: Progress, frozen: bool
) -> Report:
    training = model.training
    reach = Reach(model.modules())
    arguments = [Arguments(args, kwargs) for _, args, kwargs in given]
    calls = [functools.partial(_call, model, one) for one in arguments]
    with contextlib.ExitStack() as stack:
        # whatever mode the caller is in: what is made here outlives it
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(training))
        stack.enter_context(_initialized(model, calls))
        stack.enter_context(unchanged(model))
        for one in arguments:
            stack.callback(one.put_back)
        stack.callback(reach.put_back)
        writes = Writes(model)
        stack.callback(writes.put_back)
        previous = vars(model).get(CONVERSION)
        undone = {} if previous is None else _undo(model, previous)
        try:
            pace.at("the first run")
            layers, recorded = _first_runs(model, given, calls, reach, writes)
            examples = [
                Example(
                    f"{name} ({_words(args, kwargs)})",
                    (*args, *kwargs.values()),
                    call,
                    first,
                    functools.partial(float32_run, model, one),
                )
                for (name, args, kwargs), one, call, first in zip(given, arguments, calls, recorded, strict=True)
            ]
            with stand_ins(model) if training else contextlib.nullcontext():
                attempt = Attempt(model, examples, layers, decisions, pace, frozen)
                report = attempt.run()
            if training:
                attempt.take_parameters()
        except BaseException:
            put_back(undone)
            raise
    return report


def revert(model: nn.Module) -> nn.Module:
    """Undo `convert` and `replace_norms`, in place: the model has its own modules again, with their present parameters.

    That goes for all of it that was converted, with it, as a part of it or as a part of something else, wherever in the
    model that is by now. A layer that was taken out of the model is reverted with what contains it now. Where nothing
    was converted, nothing happens.

    Args:
        model: what `convert` was given, a part of that, or what contains any of it.

    Returns:
        The model.

    Raises:
        TypeError: `model` is no module.
        RuntimeError: a converted layer was given hooks, a parametrization, a pruning mask, or parameters, buffers or
            modules of other names since, or is `model` itself, which cannot be exchanged in place; nothing has changed.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"revert: expected model to be a torch.nn.Module, got {type(model).__name__}")
    layers = replaced_in(model)
    check(layers, "revert")
    take_out(model, layers, [module for module in model.modules() if has_graph(module)])
    for module in model.modules():
        vars(module).pop(CONVERSION, None)
    restore_norms(model)
    return model


def _undo(model: nn.Module, conversion: Installed) -> dict[str, Replacement]:
    """Take out what a conversion put into the model, as far as it is there; not that of parts. Returns the layers."""
    own = {id(layer) for layer, _ in conversion.replacements()}
    layers = {name: layer for name, layer in replaced_in(model).items() if id(layer) in own}
    check(layers, "convert")
    take_out(model, layers, [module for module in model.modules() if conversion.has_graph(module)])
    del vars(model)[CONVERSION]
    return layers


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
            if isinstance(value, Tensor) and value.is_nested:
                raise TypeError(
                    f"convert: expected {name} of tensors of one shape, got a nested tensor, which no sparse layer"
                    " takes; convert with one of its unbind(), or with its to_padded_tensor(0.0)"
                )
            if isinstance(value, Tensor) and value.numel() == 0:
                raise ValueError(f"convert: expected {name} of tensors with elements, got {_describe(value)}")
    return given


_MOST_FIRST_RUNS = 3


def _first_runs(
    model: nn.Module, given: list[_Given], calls: Sequence[Callable[[], object]], reach: Reach, writes: Writes
) -> tuple[list[Layer], list[Recorded]]:
    """The layers, and what runs gave and were given; once more where a run made modules or parameters."""
    for _ in range(_MOST_FIRST_RUNS):
        with on_one_thread():
            layers, before = layers_of(model), _parts(model)
        with contextlib.nullcontext() if model.training else without_gradients(model):
            recorded = []
            for (name, args, kwargs), call in zip(given, calls, strict=True):
                try:
                    recorded.append(record_inputs(model, layers, call, reach, writes))
                except Exception as error:
                    hint = _hint(args) if name == "example_input" else ""
                    raise ValueError(
                        f"convert: expected {name} that {_kind_of(model)} can be called with, got"
                        f" ({_words(args, kwargs, _describe_wholly)}){hint}: {type(error).__name__}: {error}"
                    ) from error
            if _parts(model) == before:
                record_by_chance(model, layers, recorded, calls)
                return layers, recorded
    return layers, recorded  # it makes some in each call


@contextlib.contextmanager
def _initialized(model: nn.Module, calls: Sequence[Callable[[], object]]) -> Iterator[None]:
    """Inside, and from then on, lazy modules have parameters, by calls that change no statistics."""
    if any(map(is_lazy, (*model.parameters(), *model.buffers()))):
        modes = [(module, module.training) for module in model.modules()]
        with torch.no_grad(), unchanged(model), Writes(model).watched():
            try:
                for module, _ in modes:
                    module.training = False
                for call in calls:
                    with contextlib.suppress(Exception):  # what there is to say of it, the first run does
                        call()
            finally:
                for module, training in modes:
                    module.training = training
    yield


def _parts(model: nn.Module) -> list[tuple[int, type]]:
    return [(id(part), type(part)) for part in (*model.modules(), *model.parameters())]


def _call(model: nn.Module, arguments: Arguments) -> object:
    args, kwargs = arguments.of_a_call()
    return model(*args, **kwargs)


_WRAPPERS = {"DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule"}
"""torch's classes that exchange parameters or gradients with other processes whenever the model runs."""


def _refuse_wrappers(model: nn.Module) -> None:
    """Measuring one process's model would leave the others waiting, and gradients that were announced never come."""
    for name, module in model.named_modules():
        for base in type(module).__mro__:
            if base.__name__ in _WRAPPERS and base.__module__.startswith("torch."):
                where = f"{name!r} in a {base.__name__}" if name else f"a {base.__name__}"
                raise TypeError(
                    f"convert: expected model before {base.__name__} wraps it, got {where}; convert the module inside,"
                    " then wrap it"
                )


def _limit_of(max_seconds: object) -> float:
    if max_seconds is None:
        return math.inf
    if isinstance(max_seconds, bool) or not isinstance(max_seconds, numbers.Real):
        raise TypeError(f"convert: expected max_seconds to be a number or None, got {type(max_seconds).__name__}")
    seconds = float(max_seconds)
    if not seconds > 0:
        raise ValueError(f"convert: expected max_seconds to be above 0, got {max_seconds}")
    return seconds


def _hint(args: tuple[Any, ...]) -> str:
    """What a user may have meant that gave these arguments."""
    if len(args) == 1 and isinstance(args[0], list):
        return "; a list is one argument, a tuple is several"
    if len(args) == 1 and isinstance(args[0], Mapping):
        return "; what is given by keyword goes into example_kwargs"
    if args and all(isinstance(one, int) for one in args):
        return "; a shape is no input: give a tensor of it"
    return ""


def _kind_of(model: nn.Module) -> str:
    """The model, with the floating dtypes and the devices of its parameters."""
    kinds = dict.fromkeys(f"{one.dtype} on {one.device}" for one in model.parameters() if one.is_floating_point())
    return f"model (of {' and '.join(kinds)})" if kinds else "model"


def _describe_wholly(value: object) -> str:
    return f"{_describe(value)}, {value.dtype} on {value.device}" if isinstance(value, Tensor) else _describe(value)


def _words(args: tuple[Any, ...], kwargs: Mapping[str, Any], words: Callable[[object], str] | None = None) -> str:
    words = words or _describe
    return ", ".join([*map(words, args), *(f"{name}={words(kwargs[name])}" for name in kwargs)])


def _describe(value: object) -> str:
    if value is None:
        return "None"
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}"
    name = type(value).__name__
    return f"an {name}" if name[:1].lower() in "aeiou" else f"a {name}"
