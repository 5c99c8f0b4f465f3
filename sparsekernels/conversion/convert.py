"""convert and revert: a pruned model's layers become the fastest of what computes the same, and back."""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_leaves, tree_map_only

from ..nn.replacement import Replacement, share_attributes, share_parameters
from ..timing import Interruptions
from .agreement import are_close, backward_at_random, differentiable, point_alike
from .batch_norm import dropout_by_torch
from .candidates import decisions as all_decisions
from .channels import dropped
from .decide import LEAST_GAIN, Measured, decide, reason_to_stay
from .engine import Engine
from .measure import CLOSE, MODEL, step, times_of
from .modules import has_hooks
from .report import CHANNEL_DROPPED, DENSE, FINE_GRAINED, LayerReport, Report
from .state import CONVERSION, unchanged
from .survey import LEAST_SPARSITY, OTHERS, Call, Layer, layers_of, record_inputs
from .tracing import Untraceable, first_line

_CHAINED = "a graph with chains of layers"
_ALL_CHAINED = "a graph with chains of all layers that can be sparse"

_CERTAIN_GAIN = 1.25
"""The fastest of several is easily the luckiest: less is measured once more, by itself and for longer."""
_MOST_ROUNDS = 0.7
"""In so many of these rounds it then has to be faster."""

_FUSED = "Fused for calls in evaluation mode without gradients: use torch.inference_mode() or torch.no_grad()."
_FUSED_IN_TRAINING = (
    "In training mode, BatchNorm and the residual sum, ReLU and dropout behind it are one step; dropout draws other"
    " random numbers than torch's from the same seed."
)


@dataclass
class _Swap:
    """A layer that was exchanged; `path` is its name in the model."""

    path: str
    parent: nn.Module
    original: nn.Module
    replacement: Replacement

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]


@dataclass
class _Conversion:
    """What was done to a model, so that it can be undone."""

    swaps: list[_Swap]
    engines: list[Engine]

    def install(self) -> None:
        for swap in self.swaps:
            share_attributes(swap.original, swap.replacement)
            swap.parent._modules[swap.name] = swap.replacement
        for engine in self.engines:
            vars(engine.module)["forward"] = engine.forward

    def share_attributes(self) -> None:
        """Once the original layers are what they were: calls of the model may have left something in theirs."""
        for swap in self.swaps:
            share_attributes(swap.original, swap.replacement)

    def uninstall(self) -> None:
        """Puts everything back that is still where it was put."""
        for engine in self.engines:
            if vars(engine.module).get("forward") == engine.forward:
                del vars(engine.module)["forward"]
        for swap in self.swaps:
            if swap.parent._modules.get(swap.name) is swap.replacement:
                swap.parent._modules[swap.name] = swap.original

    def check(self, function: str) -> None:
        """Raise where something was done to a layer that its original would not have."""
        for swap in self.swaps:
            layer = swap.replacement
            if parametrize.is_parametrized(layer):
                what, remedy = "a parametrization", "remove_parametrizations(layer, 'weight')"
            elif "weight" not in layer._parameters:
                what, remedy = "a mask", "torch.nn.utils.prune.remove(layer, 'weight')"
            elif has_hooks(layer):
                what, remedy = "hooks", "handle.remove()"
            else:
                continue
            raise RuntimeError(
                f"{function}: the converted layer {swap.path!r} was given {what} since, which would be lost; remove"
                f" that before, with {remedy}"
            )

    def hand_back(self) -> None:
        """Gives the original layers what became of their parameters and modes since."""
        for swap in self.swaps:
            swap.replacement.clear_unused()
            share_parameters(swap.replacement, swap.original)
            share_attributes(swap.replacement, swap.original)


def convert(
    model: nn.Module,
    example_input: Any = (),
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    decisions: Collection[str] = all_decisions(),
) -> Report:
    r"""Make a pruned model faster, in place: each Conv2d and Linear becomes the fastest of what computes the same.

    model: any module, pruned so that its weights have zeros. Its mode counts: in evaluation mode forward passes are
        measured and layers are fused; in training mode a forward and backward pass is measured.
    example_input: what `model` is called with, a tensor or a tuple of arguments, in the shapes that it will be used
        with. Other shapes are right as well, but may be slower than before.
    example_kwargs: what else it is called with, by name. A graph serves calls without keyword arguments only.
    decisions: what a layer may become beside "dense", of "channel-dropped" and "fine-grained".

    Each layer is measured as it is; without the filters and channels that are all zero ("channel-dropped"); and with
    its nonzeros only ("fine-grained"). The fastest stays. In evaluation mode, what torch.fx can trace then runs as a
    graph: BatchNorm is folded into the layer before it, and bias, residual sum and ReLU are part of it. That graph
    serves calls without gradients (`torch.inference_mode` or `torch.no_grad`) in evaluation mode; in other calls, the
    layers run one by one. In training mode, a graph has each BatchNorm2d with the residual sum, the ReLU and the
    dropout behind it as one step, which draws other random numbers from torch's generator than dropout does. Where the
    whole model is not faster in the end, it is left as it was. Threads are torch's (`torch.set_num_threads`); measuring
    takes from a second to half a minute, in training mode up to a minute.

    The layers share the parameters of those they replace: optimisers, `state_dict` and checkpoints do not notice.
    Weights that are zero stay zero in training, until `revert`. The graph notices when parameters change, unless they
    are written through `.data`; after that, convert again, which measures anew.

    Returns the report: a row for each layer, with the decision and why; times of the whole model before and after.

    Raises TypeError where `model` is no ordinary module, and ValueError where it cannot be called with `example_input`,
    for an `example_input` without elements, or for another decision; then nothing has changed.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"convert: model is of type {type(model).__name__}, expected a torch.nn.Module")
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError("convert: model is a torch.jit.ScriptModule, expected the torch.nn.Module it was made from")
    if isinstance(getattr(model, "_orig_mod", None), nn.Module) or model._compiled_call_impl is not None:
        raise TypeError("convert: model is compiled, expected what torch.compile was given: convert, then compile")
    decisions = (decisions,) if isinstance(decisions, str) else tuple(decisions)
    for decision in decisions:
        if decision not in all_decisions():
            raise ValueError(f"convert: decisions has {decision!r}, expected {', '.join(map(repr, all_decisions()))}")
    args = example_input if isinstance(example_input, tuple) else (example_input,)
    kwargs = dict(example_kwargs or {})
    for value in tree_leaves((args, kwargs)):
        if isinstance(value, Tensor) and value.numel() == 0:
            raise ValueError(f"convert: example_input has {_describe(value)}, expected one with elements")
    training = model.training
    call = functools.partial(_with_own_arguments, model, args, kwargs)
    # whatever mode the caller is in: what is made here outlives it
    with torch.inference_mode(False), torch.set_grad_enabled(training), unchanged(model):
        try:
            with torch.inference_mode(not training):
                call()
        except Exception as error:
            given = ", ".join([*map(_describe, args), *(f"{name}={_describe(kwargs[name])}" for name in kwargs)])
            hint = "; a list is one argument, a tuple is several" if isinstance(example_input, list) else ""
            raise ValueError(
                f"convert: model cannot be called with example_input ({given}){hint}: {type(error).__name__}: {error}"
            ) from error
        if training:
            _refuse_gradient_hooks(model)
        previous = vars(model).get(CONVERSION)
        _undo(model, "convert")
        try:
            layers = layers_of(model)
            with torch.inference_mode(not training):
                layers, calls = record_inputs(model, layers, call)
            report = _Attempt(model, (*args, *kwargs.values()), call, layers, calls, decisions).run()
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
    nothing happens. Returns the model. Raises RuntimeError, and changes nothing, where a converted layer was given
    hooks, a parametrization or a pruning mask since.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"revert: model is of type {type(model).__name__}, expected a torch.nn.Module")
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


def _with_own_arguments(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
    """A call on copies: models write to their arguments."""
    return model(*tree_map_only(Tensor, _copy_of, args), **tree_map_only(Tensor, _copy_of, kwargs))


def _copy_of(tensor: Tensor) -> Tensor:
    return tensor.detach().clone(memory_format=torch.preserve_format).requires_grad_(tensor.requires_grad)


def _refuse_gradient_hooks(model: nn.Module) -> None:
    """What happens when a gradient arrives would happen while layers are measured: an optimiser's step, say."""
    for name, parameter in model.named_parameters():
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
            raise ValueError(f"convert: the parameter {name} has hooks, which measuring would run; register them after")


def _describe(value: object) -> str:
    return f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


class _Attempt:
    """One conversion of a model on its way."""

    def __init__(
        self,
        model: nn.Module,
        args: tuple[Any, ...],
        call: Callable[[], object],
        layers: list[Layer],
        calls: Mapping[int, list[Call]],
        decisions: Collection[str],
    ) -> None:
        self._decisions, self._calls = decisions, calls
        self._model, self._args, self._call, self._layers = model, args, call, layers
        self._training = model.training
        self._notes: list[str] = []
        self._interruptions = Interruptions()

    def run(self) -> Report:
        others = collections.Counter(type(one).__name__ for one in self._model.modules() if isinstance(one, OTHERS))
        if others:
            names = ", ".join(f"{count} {name}" for name, count in others.items())
            self._notes.append(f"Layers of other kinds stay as they are: {names}.")
        if self._training:
            self._notes.append("Measured in training mode: for inference, call model.eval() and convert again.")
            if not differentiable(self._call()):
                self._notes.append("No result of the model has a gradient: forward passes were measured.")
        with self._interruptions.counted():
            report = self._run()
        if self._interruptions.per_second > Interruptions.DISTURBING and report.before_ms is not None:
            words = f"Other programs took the processor {self._interruptions.per_second:.0f} times a second meanwhile"
            report = replace(report, notes=(*report.notes, f"{words}: these times are disturbed."))
        return report

    def _run(self) -> Report:
        wanted = {id(layer.module) for layer in self._layers if reason_to_stay(layer) is None}
        if not wanted:
            self._notes.append(_why_nothing(self._layers))
            return self._report([decide(layer, self._training, False, (), {}).row for layer in self._layers])
        regions = self._regions(wanted)
        fused = set() if self._training else {id(one) for region in regions for one in region.module.modules()}
        measured: Measured = {}
        rows: list[LayerReport] = []
        swaps: list[_Swap] = []
        in_chains: list[_Swap] = []
        for layer in self._layers:
            decision = decide(layer, self._training, id(layer.module) in fused, self._decisions, measured)
            rows.append(decision.row)
            owner, _, _ = layer.name.rpartition(".")
            swap = functools.partial(_Swap, layer.name, self._model.get_submodule(owner), layer.module)
            if decision.replacement is not None:
                swaps.append(swap(decision.replacement))
            if decision.in_chain is not None:
                in_chains.append(swap(decision.in_chain))
        if not swaps and not any(dropped(region.prepare().links) for region in regions):
            self._notes.append("Nothing was found that is faster: the model is as it was.")
            return self._report(rows)
        offers = self._offers(swaps, in_chains, regions)
        if not offers:  # the notes say why
            return self._report([_kept(row) for row in rows])
        return self._install_fastest(rows, offers, in_chains)

    def _report(self, rows: list[LayerReport], before_ms: float | None = None, after_ms: float | None = None) -> Report:
        mode = "train" if self._training else "eval"
        return Report(tuple(rows), before_ms, after_ms, mode, torch.get_num_threads(), tuple(self._notes))

    def _regions(self, wanted: set[int]) -> list[Engine]:
        """Graphs of the largest parts of the model that have one and a layer that may be exchanged, as they are now."""
        found: list[Engine] = []
        if torch._C._is_any_autocast_enabled():
            self._notes.append("Measured under autocast, where no graph serves: layers run one by one.")
            return found

        def visit(module: nn.Module, name: str) -> None:
            if id(module) in wanted or not any(id(one) in wanted for one in module.modules()):
                return
            try:
                if "forward" in vars(module):
                    raise Untraceable("its forward was replaced")
                engine = self._engine(module, True)
                engine.prepare()
                calls = self._calls.get(id(module), [])
                if not any(map(engine.serves, calls)):
                    other = "it is called with other arguments than tensors, or by keywords"
                    raise Untraceable(other if calls else "it is not called as a whole")
            except Untraceable as reason:
                if not self._training and not isinstance(module, nn.ModuleList | nn.ModuleDict):
                    self._notes.append(f"{name or 'The model as a whole'} does not run as a graph: {reason}.")
                for key, child in module.named_children():
                    visit(child, f"{name}.{key}" if name else key)
            else:
                found.append(engine)

        visit(self._model, "")
        return found

    def _engine(self, module: nn.Module, contiguous: bool, chains: bool = False) -> Engine:
        given = [one for call in self._calls.get(id(module), []) for one in call or () if one is not None]
        kinds = [(one.dtype, one.device) for one in given]
        kinds += [(one.dtype, one.device) for one in tree_leaves(self._args) if isinstance(one, Tensor)]
        kinds = [(dtype, device) for dtype, device in kinds if dtype.is_floating_point]
        if not kinds:
            raise Untraceable("example_input has no floating tensor")
        return Engine(module, *kinds[0], contiguous, CHANNEL_DROPPED in self._decisions, chains, self._training)

    def _offers(self, swaps: list[_Swap], in_chains: list[_Swap], regions: list[Engine]) -> dict[str, _Conversion]:
        """Ways to put the exchanged layers to use, whose results agree with those before.

        in_chains: layers that would not be exchanged for their own sake, or for something else.
        """
        offers: dict[str, _Conversion] = {}
        if self._training:
            plain = _Conversion(swaps, [])
            reason = self._differs_in_training(plain, _Conversion([], []), gradients=False)
            if reason is not None:
                self._refuse("layers one by one", reason)
                return offers
            offers["layers one by one"] = plain
            if regions:
                graph = _Conversion(swaps, [self._engine(region.module, True) for region in regions])
                reason = self._differs_in_training(graph, plain)
                if reason is None:
                    offers["a graph"] = graph
                else:
                    self._refuse("a graph", reason)
            return offers
        if regions:
            offers["a graph"] = _Conversion(swaps, [self._engine(region.module, True) for region in regions])
            chained = [self._engine(region.module, True, chains=True) for region in regions]
            offers[_CHAINED] = _Conversion(swaps, chained)
            if in_chains:
                others = {id(one.original) for one in in_chains}
                more = [one for one in swaps if id(one.original) not in others] + in_chains
                chained = [self._engine(region.module, True, chains=True) for region in regions]
                offers[_ALL_CHAINED] = _Conversion(more, chained)
            if any(isinstance(one, Tensor) and not one.is_contiguous() for one in self._args):
                engines = [self._engine(region.module, False) for region in regions]
                offers["a graph in the input's layout"] = _Conversion(swaps, engines)
        if swaps:
            offers["layers one by one"] = _Conversion(swaps, [])
        with torch.inference_mode(), unchanged(self._model):
            expected = self._call()
        for name in list(offers):
            reason = self._differs(offers[name], expected)
            if reason is not None:
                del offers[name]
                self._refuse(name, reason)
            elif name in (_CHAINED, _ALL_CHAINED) and not any(
                engine.prepare().chained for engine in offers[name].engines
            ):
                del offers[name]  # no two layers follow each other
        return offers

    def _refuse(self, name: str, reason: str) -> None:
        self._notes.append(f"As {name}, the model {reason}: not used.")

    def _differs(self, conversion: _Conversion, expected: object) -> str | None:
        """None where the model gives what it gave, but for rounding; else what it does, in words."""
        conversion.install()
        try:
            with torch.inference_mode(), unchanged(self._model):
                actual = self._call()
        except Exception as error:  # code that takes another way for a graph's stand-ins than for tensors
            return _raised(error)
        finally:
            conversion.uninstall()
        return None if are_close(actual, expected) else _OTHER_RESULTS

    def _differs_in_training(self, one: _Conversion, other: _Conversion, gradients: bool = True) -> str | None:
        """As `_differs`, of a forward and backward pass: results, buffers, and gradients unless these are others.

        With torch's own dropout in both. Nothing but the layers between is exchanged, so rounding is all that differs.
        """
        parameters, buffers = list(self._model.parameters()), list(self._model.buffers())
        found: list[tuple[tuple[object, list[Tensor]], list[Tensor | None]]] = []
        for conversion in (one, other):
            conversion.install()
            try:
                with unchanged(self._model), dropout_by_torch():
                    result = self._call()
                    backward_at_random(result)
                    kept = [buffer.clone() for buffer in buffers]
                    found.append(((result, kept), [parameter.grad for parameter in parameters]))
            except Exception as error:
                if conversion is other:
                    raise
                return _raised(error)
            finally:
                conversion.uninstall()
        (actual, mine), (expected, theirs) = found
        counts = [[one for one in kept if not one.is_floating_point()] for (_, kept) in (actual, expected)]
        same = all(map(torch.equal, *counts))
        same = same and are_close(actual, expected) and (not gradients or point_alike(mine, theirs))
        return None if same else _OTHER_RESULTS

    def _install_fastest(
        self, rows: list[LayerReport], offers: dict[str, _Conversion], in_chains: list[_Swap]
    ) -> Report:
        def run(conversion: _Conversion) -> None:
            conversion.install()
            try:
                step(self._call, self._training)
            finally:
                conversion.uninstall()

        before = "as before"
        turns: dict[str, Callable[[], object]] = {
            name: functools.partial(run, conversion) for name, conversion in offers.items()
        }
        as_it_was = functools.partial(run, _Conversion([], []))
        times = times_of({before: as_it_was, **turns}, MODEL)
        gains = {name: times.speedup(name, before) for name in offers}
        best = before
        for name in sorted(gains, key=lambda name: gains[name], reverse=True):
            if gains[name] < LEAST_GAIN:
                break
            if gains[name] < _CERTAIN_GAIN:
                again = times_of({before: as_it_was, name: turns[name]}, CLOSE)
                if again.speedup(name, before) < LEAST_GAIN or again.share_faster(name, before) < _MOST_ROUNDS:
                    continue
                times = again
            best = name
            break
        if best == before:
            self._notes.append("With the faster layers, the whole model was not faster for certain: it is as it was.")
            return self._report([_kept(row) for row in rows])
        if not offers[best].engines and any(offer.engines for offer in offers.values()):
            self._notes.append("As a graph, the model was no faster: its layers run one by one.")
        if offers[best].engines:
            if offers[best].engines[0].chains:
                self._notes.append("Sparse layers that follow each other run as one call, a few images on each thread.")
            self._notes.append(_FUSED_IN_TRAINING if self._training else _FUSED)
        offers[best].install()
        try:
            before_ms = times.milliseconds(before)
            if best == _ALL_CHAINED:
                taken = {id(one.replacement) for one in in_chains}
                rows = [_taken(row) if id(self._model.get_submodule(row.name)) in taken else row for row in rows]
            rows = _with_chains(self._model, rows, offers[best].engines)
            report = self._report(rows, before_ms, before_ms / times.speedup(best, before))
        except BaseException:
            offers[best].uninstall()
            raise
        vars(self._model)[CONVERSION] = offers[best]
        return report


def _with_chains(model: nn.Module, rows: list[LayerReport], engines: list[Engine]) -> list[LayerReport]:
    """`rows`, with what the chains of the graphs leave out."""
    counts: dict[int, tuple[int, int]] = {}
    for engine in engines:
        counts |= dropped(engine.prepare().links)
    result = []
    for row in rows:
        outputs, inputs = counts.get(id(model.get_submodule(row.name)), (0, 0))
        if outputs or inputs:
            words = f"the graph leaves out {outputs} of its outputs and {inputs} of its inputs"
            decision = CHANNEL_DROPPED if row.decision == DENSE else row.decision
            row = replace(row, decision=decision, reason=f"{row.reason}; {words}")
        result.append(row)
    return result


def _taken(row: LayerReport) -> LayerReport:
    """The row of a layer that became sparse for the sake of its neighbours."""
    alone = row.reason
    if row.decision != DENSE and row.speedup is not None:
        alone = row.reason.replace("measured to be faster", f"{row.decision} would be {row.speedup:.2f}x")
    return replace(row, decision=FINE_GRAINED, reason=f"for the sake of its chain; alone, {alone}", ms=None)


_OTHER_RESULTS = "gave other results than before"


def _raised(error: Exception) -> str:
    return f"raised {first_line(error)}"


def _kept(row: LayerReport) -> LayerReport:
    if row.decision == DENSE or row.speedup is None:
        return row
    reason = f"alone, {row.decision} would be {row.speedup:.2f}x; see the notes on the whole model"
    return replace(row, decision=DENSE, reason=reason, ms=row.dense_ms)


def _why_nothing(layers: list[Layer]) -> str:
    if not layers:
        return "The model has no Conv2d and no Linear."
    if max(layer.sparsity or 0 for layer in layers) < LEAST_SPARSITY:
        return (
            f"The model is not pruned: no layer has as much as {LEAST_SPARSITY:.0%} zeros among its weights."
            " Prune it first, with torch.nn.utils.prune for instance."
        )
    return "No layer that has zeros can be exchanged: the model is as it was."
