# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What code asks of the class of a value, in ways that what stands for a tensor cannot answer as that would.

`isinstance` is answered. `type(x) is Tensor`, a table of functions by `type(x)`, `match x: case Tensor()` and
`functools.singledispatch` are not: Python asks nobody. So the functions that are passed while code is traced are looked
at: whether they ask like that, and whether it is of a proxy.
"""

from __future__ import annotations

import dis
import functools
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from torch import nn

from ..watch.reach import is_library, line_of

_HARMLESS = {"list", "tuple", "dict", "set", "str", "bytes", "NoneType"}
"""Classes that neither tensors nor sizes have."""
_TEXTS = ("FORMAT_", "CONVERT_")
_COMPARISONS = ("IS_OP", "COMPARE_OP", "CONTAINS_OP")
_FILLERS = ("CACHE", "PUSH_NULL", "PRECALL", "EXTENDED_ARG", "NOP")
_CALLS = ("CALL", "CALL_FUNCTION")
_MATCHES = ("MATCH_CLASS", "MATCH_SEQUENCE", "MATCH_MAPPING")

_DISPATCH: types.CodeType = functools.singledispatch(lambda value: value).dispatch.__code__
"""What looks up a function by the class of an argument."""


class _Questions(NamedTuple):
    """Of what a function asks the class.

    names: of its variables. texts: of variables, as a text: `str(type(x))`. attributes: of modules, each with the name
    of the variable. of_any: of anything else.
    """

    names: frozenset[str]
    texts: frozenset[str]
    attributes: frozenset[tuple[str, str]]
    of_any: bool


class ClassQuestions:
    """Looks at frames; `asked` is where the class of a proxy was asked for, as a sentence goes on, or None.

    is_proxy: whether a value stands for a tensor or a size. is_tensor: whether for a tensor, whose class has the name
    that its proxy's has. proxies: their classes.
    """

    def __init__(
        self, is_proxy: Callable[[Any], bool], is_tensor: Callable[[Any], bool], proxies: tuple[type, ...]
    ) -> None:
        self._is_proxy, self._is_tensor, self._proxies = is_proxy, is_tensor, proxies
        self._found: dict[int, tuple[types.CodeType, _Questions | None]] = {}
        self.asked: str | None = None

    def look(self, frame: types.FrameType) -> None:
        """At a function that begins or ends."""
        code = frame.f_code
        if self.asked is not None:
            return
        if code is _DISPATCH:
            if any(frame.f_locals.get("cls") is kind for kind in self._proxies):
                self.asked = ""
            return
        if is_library(frame.f_globals.get("__name__")):
            return
        if id(code) not in self._found:
            self._found[id(code)] = code, _questions_of(code)
        questions = self._found[id(code)][1]
        if questions is not None and self._concerns(questions, frame.f_locals):
            self.asked = line_of(frame)

    def _concerns(self, questions: _Questions, variables: Mapping[str, Any]) -> bool:
        if any(self._is_proxy(variables.get(name)) for name in questions.names):
            return True
        texts = [variables.get(name) for name in questions.texts]
        if any(self._is_proxy(value) and not self._is_tensor(value) for value in texts):
            return True
        for name, attribute in questions.attributes:
            owner = variables.get(name)
            if isinstance(owner, nn.Module) and (attribute in owner._parameters or attribute in owner._buffers):
                return True
            if self._is_proxy(owner):
                return True
        return questions.of_any and any(map(self._has_proxy, list(variables.values())))

    def _has_proxy(self, value: Any) -> bool:
        if type(value) in (list, tuple):
            return any(map(self._is_proxy, value))
        return any(map(self._is_proxy, value.values())) if type(value) is dict else self._is_proxy(value)


def _questions_of(code: types.CodeType) -> _Questions | None:
    """None where it asks for none."""
    steps = [step for step in dis.get_instructions(code) if step.opname not in _FILLERS]
    names: set[str] = set()
    texts: set[str] = set()
    attributes: set[tuple[str, str]] = set()
    of_any = any(step.opname in _MATCHES for step in steps)
    for place, step in enumerate(steps):
        if step.argval == "__class__" and step.opname.startswith("LOAD_ATTR"):
            begin, end = place - 1, place + 1
        elif step.argval == "type" and step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            begin = place + 1
            call = next((at for at in range(begin, len(steps)) if steps[at].opname in _CALLS), None)
            if call is None or call == begin:  # given as the last argument: `isinstance(x, type)`
                continue
            end = call + 1
        else:
            continue
        if _is_harmless(steps, end):
            continue
        variable = _variables(steps[begin])
        if variable is None or end - begin > 3 or (step.argval == "type" and steps[end - 1].arg != 1):
            of_any = True
        elif end - begin == 3 and steps[begin + 1].opname.startswith("LOAD_ATTR"):
            attributes.add((variable, str(steps[begin + 1].argval)))
        elif step.argval == "type" and steps[place - 1].argval == "str" and steps[end].opname in _CALLS:
            texts.add(variable)
        else:
            names.add(variable)
    if not (names or texts or attributes or of_any):
        return None
    return _Questions(frozenset(names), frozenset(texts), frozenset(attributes), of_any)


def _variables(step: dis.Instruction) -> str | None:
    """The variable that is put on the stack, the last one of two."""
    if not step.opname.startswith(("LOAD_FAST", "LOAD_DEREF")):
        return None
    return str(step.argval[-1] if isinstance(step.argval, tuple) else step.argval)


def _is_harmless(steps: list[dis.Instruction], place: int) -> bool:
    """Whether a class that is on the stack before `place` becomes a text, or is compared with harmless ones."""
    step = steps[place]
    if step.opname.startswith("LOAD_ATTR") and step.argval == "__name__":
        step = steps[place + 1]
    if step.opname.startswith(_TEXTS):
        return True
    compared = list(_compared(steps, place))
    return bool(compared) and all(name in _HARMLESS for name in compared)


def _compared(steps: list[dis.Instruction], place: int) -> Iterator[str]:
    """The names of what is compared with that; none where something else is done."""
    found: list[str] = []
    for step in steps[place:]:
        if step.opname in _COMPARISONS:
            yield from found
            return
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME") or step.opname.startswith("LOAD_ATTR"):
            found.append(str(step.argval))
        elif not step.opname.startswith("BUILD_"):
            return
