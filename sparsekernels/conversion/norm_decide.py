# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Which norms of a model run as `rms_norm`: those that are faster so, on what the model gave them."""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from .decide import LEAST_GAIN
from .facts import Count, Fact, Note
from .graph.attach import has_graph, own_class
from .graph.classes import ComparedClasses
from .installation import Conversion
from .measure import LAYER, NORMS, AllTimes, Times, on_one_thread, rules_out, stopped_by, times_of
from .modes import Mode
from .norm_call import RMSNormCall
from .norms import Norm, is_named_one, norms_of, obstacle_in_code
from .progress import Progress
from .report import DENSE
from .survey import Call, Example, Given

_SHARE = 0.2
"""Of the time that is left, where it is limited."""


@dataclass(frozen=True)
class NormDecisions:
    """What becomes of the norms of a model.

    norms: those that are to run as `rms_norm`. runs: the note for that. facts: of those that stay. untimed: how many
    there was no time for.
    """

    norms: list[tuple[nn.Module, RMSNormCall]] = field(default_factory=list)
    runs: Fact | None = None
    facts: tuple[Fact, ...] = ()
    untimed: int = 0


def decide_norms(
    model: nn.Module, examples: Sequence[Example], mode: Mode, compared: ComparedClasses, pace: Progress
) -> NormDecisions:
    """Each kind of norm is timed once, on inputs like those of each example, and in training with backward passes."""
    if rules_out(NORMS):
        return NormDecisions()
    pace.at("looking for norms")
    reserve = pace.left * (1 - _SHARE) if pace.limited else 0.0
    stop = functools.partial(pace.stop, reserve)
    with on_one_thread():
        found = _norms_of(model, stop)
    staying: dict[str, list[nn.Module]] = {}
    kinds: dict[object, list[tuple[Norm, RMSNormCall]]] = {}
    for norm in found:
        reason = _obstacle(norm, examples, compared)
        if reason is not None:
            if is_named_one(norm.module):
                staying.setdefault(reason, []).append(norm.module)
        elif isinstance(norm.verdict, dict):
            call = RMSNormCall.of(norm.module, norm.verdict, by_convert=True)
            kinds.setdefault(_kind_of(norm, examples), []).append((norm, call))
    norms: list[tuple[nn.Module, RMSNormCall]] = []
    facts: list[Fact] = []
    before = after = 0.0
    untimed = sum(norm.verdict is None for norm in found)
    for done, alike in enumerate(kinds.values()):
        pace.at("measuring norms", done, len(kinds))
        if stop():
            untimed += len(alike)
            continue
        first, call = alike[0]
        given = _given(first.module, examples)
        inputs = (one.make() for one in itertools.chain.from_iterable(given))
        reason = obstacle_in_code(first.module, call, inputs)
        if reason is not None:
            staying.setdefault(reason, []).extend(norm.module for norm, _ in alike)
            continue
        with stopped_by(stop):
            times = _times(first.module, call, given, mode)
        if times.faster([NORMS], DENSE, LEAST_GAIN):
            norms += [(norm.module, call) for norm, call in alike]
            if times.measured:
                before += len(alike) * times.milliseconds(DENSE)
                after += len(alike) * times.milliseconds(DENSE) / times.speedup(NORMS, DENSE)
        elif not times.is_certain(NORMS, DENSE):
            facts.append(Note.NORMS_UNDECIDED.of(kinds=kinds_of([norm.module for norm, _ in alike])))
        elif times.measured:
            modules = [norm.module for norm, _ in alike]
            gain, where = times.speedup(NORMS, DENSE), ""
            if len(times.each) > 1 and gain >= LEAST_GAIN:
                place, gain = times.slowest(NORMS, DENSE)
                called = [example for example, some in zip(examples, given, strict=True) if some]
                where = f" with {called[place].name}"
            facts.append(Note.NORMS_NOT_FASTER.of(gain=gain, where=where, kinds=kinds_of(modules)))
    runs = None
    if norms:
        names = kinds_of([norm for norm, _ in norms])
        runs = Note.NORMS.of(gain=before / after, kinds=names) if after else Note.NORMS_PREFERRED.of(kinds=names)
    stay = [Note.NORMS_STAY.of(kinds=kinds_of(modules), reason=reason) for reason, modules in staying.items()]
    return NormDecisions(norms, runs, (*stay, *facts), untimed)


def norms_beside(model: nn.Module, pace: Progress) -> list[Fact]:
    """What there is to say of norms where nothing else is to be converted."""
    if rules_out(NORMS):
        return []
    with on_one_thread():
        modules = [norm.module for norm in _norms_of(model, pace.stop) if isinstance(norm.verdict, dict)]
    return [Note.NORMS_BESIDE.of(kinds=kinds_of(modules))] if modules else []


def kinds_of(modules: Sequence[nn.Module]) -> tuple[Count, ...]:
    """How many there are of each class, as notes have it."""
    return tuple(Count(count, name) for name, count in Counter(own_class(one).__name__ for one in modules).items())


def _norms_of(model: nn.Module, stop: Callable[[], bool]) -> list[Norm]:
    """But for what `replace_norms` has exchanged, whatever became of it."""
    return [norm for norm in norms_of(model, stop) if not has_graph(norm.module)]


def _obstacle(norm: Norm, examples: Sequence[Example], compared: ComparedClasses) -> str | None:
    """Why a norm is not even measured."""
    if isinstance(norm.verdict, str):
        return norm.verdict
    where = compared.by_identity(own_class(norm.module))
    if where:
        return f"{where} tells classes apart by identity, and what runs so has a class of its own"
    calls = [call for example in examples for call in example.recorded.calls.get(id(norm.module), ())]
    if not calls:
        return "the model did not call them with this input (calls in compiled code are not seen)"
    if any(_input_of(call) is None for call in calls):
        return "they are called with something else than a plain tensor"
    return None


def _input_of(call: Call) -> Given | None:
    values = [*call.args, *call.kwargs.values()]
    return values[0] if len(values) == 1 and isinstance(values[0], Given) else None


def _given(module: nn.Module, examples: Sequence[Example]) -> list[list[Given]]:
    """What a norm was given in each example, once for each call."""
    each = [map(_input_of, example.recorded.calls.get(id(module), ())) for example in examples]
    return [[given for given in one if given is not None] for one in each]


def _kind_of(norm: Norm, examples: Sequence[Example]) -> object:
    """What the times of a norm depend on."""
    tensors: Mapping[str, Tensor | None] = {**norm.module._parameters, **norm.module._buffers}
    storage = [(one.dtype, one.device, one.stride(), one.requires_grad) for one in tensors.values() if one is not None]
    return norm.key, repr(storage), tuple(map(tuple, _given(norm.module, examples)))


def _times(module: nn.Module, call: RMSNormCall, given: Sequence[Sequence[Given]], mode: Mode) -> AllTimes:
    """As it is, and as `rms_norm`: all of the calls of a pass together, of each example in which it is called."""
    installed = Conversion([], [], [(module, call)]).installed
    each: list[Times] = []
    for one in given:
        if not one:
            continue
        with mode.gradients():
            # not by a call of the module: its hooks are the user's
            run: Callable[[], None] = functools.partial(
                mode.run_layer, _forward_of(module), [some.make() for some in one]
            )
            each.append(times_of({DENSE: run, NORMS: run}, LAYER, {NORMS: installed}))
    return AllTimes(tuple(each))


def _forward_of(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """Looked up in each call: it is another while something hangs on the module."""
    return lambda x: module.forward(x)
