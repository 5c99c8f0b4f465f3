# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What code can get at beside the model: globals, closures, defaults, classes, context variables.

A forward may leave something there, an auxiliary loss in a list of its Python module for instance. A graph would leave
none, and convert's own calls are to leave none.

More than 400 lines: one walk over all kinds of places where code keeps something.
"""

from __future__ import annotations

import builtins
import collections
import contextlib
import contextvars
import functools
import gc
import io
import os
import sys
import types
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from ..._torch import GLOBAL_HOOKS
from . import settings, surroundings
from .copies import copy_of
from .entries import Entry
from .state import Held, attributes_or_none, is_same, items_of, put_back
from .surroundings import Asked, Beside

_MOST = 20_000
"""Elements that are looked into: what is beyond can be put back where it is held, but not what it holds."""

_LARGEST_COPY = 1 << 24
"""Bytes of a tensor that are copied."""

_LIBRARIES = (sys.stdlib_module_names | {"torch", "sparsekernels", "numpy"}) - {"__main__"}
"""Packages whose code leaves nothing of its own behind that a model would miss."""

_SET_ATTRIBUTE: types.CodeType = nn.Module.__setattr__.__code__
_CONTAINERS = (list, dict, set, collections.deque, collections.defaultdict)
_STORING = frozenset(("append", "appendleft", "extend", "insert", "add", "update", "setdefault", "pop", "clear"))
"""Methods of these that change them."""

_MISSING = object()
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType)  # torch.fx exchanges some while it traces

Binding = tuple[Callable[[], Any], Callable[[Any], None], Any]
"""How a name is read and written, and what it meant."""


class Reach:
    """What code got at while it was watched, as it was when each function was first entered.

    modules: whose classes, hooks and attributes are looked into at once. beside: what else is.
    """

    def __init__(self, modules: Iterable[nn.Module] = (), beside: object = None) -> None:
        self.speaks = self.tells_time = self.makes_tensors = False
        """Whether code that was watched has printed, logged or opened a file; has asked for the time, or for numbers of
        the system's that are others each time; has made tensors of numbers."""
        self.sets_seed = False
        """Whether code that was watched has set the state of a random number generator, be it for a while."""
        self.sets_context = False
        """Whether code that was watched has set a context variable, be it for a while."""
        self.settings = settings.Settings()
        """What code that was watched has set of torch, Python or the process."""
        self.drawn_at = ""
        """Where code that is no library's first drew random numbers, as a sentence goes on, if that was seen."""
        self.stores: dict[object, str] = {}
        """Where attributes of modules were first set, by the ids of the modules and the names, and where something was
        put into lists, dicts and sets, by their ids, as a sentence goes on."""
        self.asked: list[Asked] = []
        """What it has asked of its surroundings."""
        self._questions: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []
        self._read: list[Entry] = []  # globals
        self._read_keys: set[tuple[int, Any]] = set()
        self._called: dict[tuple[int, str], dict[str, Any]] = {}  # those that are functions, and where they are
        self._cells: list[tuple[types.CodeType, Callable[[], Any]]] = []  # of functions, by their code
        self._names: set[str] = set()
        self._bindings: dict[tuple[int, Any], Binding] = {}
        self._held: list[Held] = []
        self._classes: list[tuple[type, dict[str, Any]]] = []
        self._functions: list[types.FunctionType] = []
        self._entered: dict[int, types.CodeType] = {}
        self._seen: dict[int, Any] = {}  # with what has the id
        self._left = _MOST
        self._looks_at_hooks = False
        """Whether functions may run that nobody watches, in a backward pass: these have globals as well."""
        self._modules = list(modules)
        self._seen.update((id(module), module) for module in self._modules)
        for module in self._modules:
            self._look(type(module))
            for name, value in vars(module).items():
                if name.endswith("_hooks") and isinstance(value, dict):
                    self._look_at_hooks(value)
                elif isinstance(value, types.FunctionType | types.MethodType | functools.partial):
                    self._look(value)
                elif not isinstance(value, nn.Module):
                    self._look(type(value))
        for hooks in GLOBAL_HOOKS if self._modules else ():
            self._look_at_hooks(hooks)
        self._look(beside)
        for variable, value in contextvars.copy_context().items():
            self._bind((0, variable), functools.partial(variable.get, _MISSING), functools.partial(_set, variable))
            self._look(value)

    @contextlib.contextmanager
    def watched(
        self, silent: Callable[[], Exception] | None = None, passed: Callable[[types.FrameType], None] | None = None
    ) -> Iterator[None]:
        """Inside, functions are looked into when they are first entered; where a profiler runs that cannot be stopped,
        they are not.

        silent: makes what is raised where code is about to print, to log or to open a file. passed: is given the frame
        of each function of Python's that begins or ends.
        """
        previous: Any = sys.getprofile()
        stop = getattr(previous, "disable", None)
        entered: set[int] = set()
        outer = sys._getframe(2)  # of the `with`
        if previous is not None and not callable(previous) and stop is None:
            yield
            return

        def profile(frame: types.FrameType, event: str, argument: Any) -> None:
            if passed is not None and event in ("call", "return"):
                passed(frame)
            if event == "call":
                code = frame.f_code
                if code is _SET_ATTRIBUTE:
                    self._note_store(frame)
                if id(code) not in entered:
                    entered.add(id(code))
                    self._entered[id(code)] = code
                    self._enter(frame)
                self._ask_of(frame)
                self.sets_seed = self.sets_seed or surroundings.sets_seed(code)
                if silent is None or code.co_name != "_log" or frame.f_globals.get("__name__") != "logging":
                    return
                if _imports(frame, outer):
                    return
                self.speaks = True
            elif event != "c_call":
                return
            else:
                variable, is_own = getattr(argument, "__self__", None), not is_library(frame.f_globals.get("__name__"))
                if is_own and type(variable) is contextvars.ContextVar:
                    self.sets_context |= argument.__name__ == "set"
                    self._ask(variable.get, None)
                if is_own and type(variable) in _CONTAINERS and argument.__name__ in _STORING:
                    self.stores.setdefault(id(variable), line_of(frame))
                self.sets_seed = self.sets_seed or surroundings.sets_seed(argument)
                if is_own and settings.sets(argument):
                    self.settings.note(argument, {})
                if is_own and id(argument) in surroundings.STATES:
                    self._ask(argument)
                elif surroundings.makes_tensors(argument):
                    self.makes_tensors = True
                if not self.drawn_at and surroundings.draws(argument):
                    self.drawn_at = line_of(frame)
                if silent is None:
                    return
                speaks = _speaks(frame, argument)
                tells_time = surroundings.tells_time(argument) and (is_own or argument is os.urandom)
                if not (speaks or tells_time) or _imports(frame, outer):
                    return
                self.speaks, self.tells_time = self.speaks or speaks, self.tells_time or (tells_time and not speaks)
            raise silent()

        collects = gc.isenabled()
        gc.disable()  # functions in `gc.callbacks` are none of the model's
        if stop is not None:
            stop()
        sys.setprofile(profile)
        try:
            yield
        finally:
            sys.setprofile(previous if callable(previous) else None)
            if stop is not None:
                previous.enable()
            if collects:
                gc.enable()

    def now(self) -> Reach:
        """The same places, as they are now."""
        result = Reach()
        result._seen.update((id(module), module) for module in self._modules)
        for key, (read, write, _) in self._bindings.items():
            result._bind(key, read, write)
            result._look(read())
        result._look(*(held.value for held in self._held), *(kind for kind, _ in self._classes))
        return result

    def beside(self, code: bool = True) -> Beside:
        """What watched code read that is no part of the modules, as it is.

        code: whether functions and methods count, which may be put in the place of others.
        """
        kinds = [kind for kind, _ in self._classes]
        read, functions = list(self._read), list[types.FunctionType]()
        if code:
            read += [(space, name, space[name]) for (_, name), space in self._called.items() if name in space]
            functions = [one for one in self._functions if id(one.__code__) in self._entered]
        cells = [(one, one()) for function, one in self._cells if id(function) in self._entered]
        if not code:
            cells = [(one, value) for one, value in cells if not isinstance(value, (*_FUNCTIONS, type))]
        asked = [*self.asked, *cells]
        registered = {id(module) for module in self._modules}
        return Beside.of(read, kinds, self._names, asked, functions, registered, code)

    def holds(self, value: object) -> bool:
        """Whether it is one of the things that code got at."""
        return self._seen.get(id(value), _MISSING) is value

    def changed(self) -> bool:
        """Whether something else is there."""
        return next(self.effects(), None) is not None

    def effects(self) -> Iterator[object]:
        """The places where something else is."""
        yield from (id(held.value) for held in self._held if held.changed())
        yield from (kind for kind, names in self._classes if not _are_alike(_names_of(kind), names))
        yield from (key for key, (read, _, value) in self._bindings.items() if not is_same(read(), value))

    def put_back(self) -> bool:
        """Restore what can be written. Returns whether anything had changed."""
        changed = False
        self.settings.put_back()
        for read, write, value in self._bindings.values():
            with contextlib.suppress(Exception):
                if not is_same(read(), value):
                    changed = True
                    write(value)
        for kind, names in self._classes:
            if not _are_alike(_names_of(kind), names):
                changed = True
                with contextlib.suppress(Exception):
                    _put_back_names(kind, names)
        return put_back(self._held) or changed

    @contextlib.contextmanager
    def unchanged(self) -> Iterator[Reach]:
        """The same places, which are afterwards as they were before."""
        kept = self.now()
        try:
            yield kept
        finally:
            kept.put_back()

    def _note_store(self, frame: types.FrameType) -> None:
        """That an attribute of a module is set."""
        module, name = frame.f_locals["self"], frame.f_locals["name"]
        spaces = [vars(module).get(one, {}) for one in ("_parameters", "_buffers", "_modules")]
        for key in ((id(module), name), *(id(space) for space in spaces if name in space)):
            self.stores.setdefault(key, line_of(frame.f_back))

    def _ask_of(self, frame: types.FrameType) -> None:
        """Note a function of Python's that tells of the surroundings, or sets them, called by no library's code."""
        code, caller = frame.f_code, frame.f_back
        sets = settings.sets(code)
        if code is not surroundings.ENVIRON and id(code) not in surroundings.STATES and not sets:
            return
        while caller is not None and caller.f_globals.get("__name__") in ("os", "_collections_abc", "collections.abc"):
            caller = caller.f_back
        if caller is not None and not is_library(caller.f_globals.get("__name__")):
            if sets:
                self.settings.note(code, frame.f_locals)
            elif code is surroundings.ENVIRON:
                self._ask(os.environ.get, frame.f_locals["key"])
            else:
                self._ask(surroundings.STATES[id(code)])

    def _ask(self, function: Callable[..., Any], *args: Any) -> None:
        if (function, args) not in self._questions:
            self._questions.append((function, args))
            with contextlib.suppress(Exception):
                self.asked.append((functools.partial(function, *args), function(*args)))

    def _enter(self, frame: types.FrameType) -> None:
        """Look at the globals that a function names, and at those of modules that it names."""
        space, code = frame.f_globals, frame.f_code
        if not is_library(space.get("__name__")) and not _is_imported_now(space.get("__name__")):
            self._names.update(code.co_names, (one for one in code.co_consts if isinstance(one, str)))
            self._look_at_globals(space, code.co_names)

    def _look_at_globals(self, space: dict[str, Any], names: Iterable[str], reads: bool = True) -> None:
        """reads: whether code has read them; else they are only put back."""
        imported = [vars(module) for name in names if isinstance(module := _imported(name), types.ModuleType)]
        left, seen = [space, *imported], {id(one) for one in (space, *imported)}
        while left:  # a module within a module as well
            space = left.pop()
            for name in names:
                value = space.get(name, _MISSING)
                if not isinstance(value, types.ModuleType):
                    self._bind_item(space, name, reads)
                elif not (id(vars(value)) in seen or is_library(value.__name__) or _is_imported_now(value.__name__)):
                    seen.add(id(vars(value)))
                    left.append(vars(value))

    def _bind_item(self, space: dict[str, Any], name: str, reads: bool) -> None:
        value, key = space.get(name, _MISSING), (id(space), name)
        if not isinstance(value, _FUNCTIONS):
            self._bind(key, functools.partial(space.get, name, _MISSING), _writer(space, name))
            if reads and key not in self._read_keys:
                self._read_keys.add(key)
                if value is not _MISSING:
                    self._read.append((space, name, value))
        elif reads:
            self._called[key] = space
        self._look(value)

    def _bind(self, key: tuple[int, Any], read: Callable[[], Any], write: Callable[[Any], Any]) -> None:
        if key not in self._bindings:
            with contextlib.suppress(Exception):
                self._bindings[key] = read, write, read()

    def _look_at_hooks(self, hooks: dict[int, Any]) -> None:
        self._looks_at_hooks = True
        self._look(*hooks.values())
        self._looks_at_hooks = False

    def _look(self, *values: Any) -> None:
        left = list(values)
        while left and self._left > 0:
            value = left.pop()
            if id(value) in self._seen:
                continue
            self._seen[id(value)] = value
            with contextlib.suppress(Exception):  # of a class that is not ours
                inner = self._within(value)
                self._left -= 1 + len(inner)
                left.extend(inner)

    def _within(self, value: Any) -> list[Any]:
        """What `value` holds. What can change in it is kept."""
        if value is None or isinstance(value, str | int | float | types.ModuleType):
            return []
        if isinstance(value, tuple | frozenset):
            return list(value)
        if isinstance(value, types.FunctionType):
            return self._within_function(value)
        if isinstance(value, types.MethodType):
            return [value.__self__, value.__func__]
        if isinstance(value, functools.partial):
            return [value.func, *value.args, *value.keywords.values()]
        if isinstance(value, type):
            return self._within_class(value)
        if isinstance(value, staticmethod | classmethod):
            return [value.__func__]
        if isinstance(value, property):
            return [one for one in (value.fget, value.fset) if one is not None]
        if isinstance(value, contextvars.ContextVar):
            self._bind((0, value), functools.partial(value.get, _MISSING), functools.partial(_set, value))
            return [value.get(None)]
        items, attributes = items_of(value), attributes_or_none(value)
        if items is None and attributes is None:
            return []
        small = isinstance(value, Tensor) and not isinstance(value, nn.Parameter) and value.nbytes <= _LARGEST_COPY
        self._held.append(Held(value, items, attributes, copy_of(value) if small else None))
        inner = [] if attributes is None else [type(value), *attributes.values()]
        if isinstance(items, dict):
            inner.extend(items.values())
        elif isinstance(items, list | set):
            inner.extend(items)
        return inner

    def _within_function(self, function: types.FunctionType) -> list[Any]:
        if is_library(function.__module__):
            return []
        inner = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
        if inner:
            self._functions.append(function)
        for cell in function.__closure__ or ():
            read = functools.partial(_content_of, cell)
            self._bind((id(cell), ""), read, functools.partial(_fill, cell))
            self._cells.append((function.__code__, read))
            self._seen[id(cell)] = cell
            inner.append(read())
        self._held.append(Held(vars(function), dict(vars(function)), None))
        if self._looks_at_hooks:
            self._look_at_globals(function.__globals__, function.__code__.co_names, reads=False)
        return [*inner, *vars(function).values()]

    def _within_class(self, kind: type) -> list[Any]:
        if is_library(kind.__module__):
            return []
        self._classes.append((kind, _names_of(kind)))
        return [*kind.__bases__, *(value for name, value in vars(kind).items() if not _is_special(name))]


def _names_of(kind: type) -> dict[str, Any]:
    """The attributes of a class that are no methods."""
    return {name: value for name, value in vars(kind).items() if not _is_special(name) and not callable(value)}


def _put_back_names(kind: type, names: dict[str, Any]) -> None:
    for name in _names_of(kind).keys() - names.keys():
        type.__delattr__(kind, name)
    for name, value in names.items():
        if vars(kind).get(name, _MISSING) is not value:
            type.__setattr__(kind, name, value)


def _are_alike(names: dict[str, Any], others: dict[str, Any]) -> bool:
    return names.keys() == others.keys() and all(is_same(value, others[name]) for name, value in names.items())


def _is_special(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


def is_library(name: Any) -> bool:
    """Whether the module of that name has code of such packages."""
    return isinstance(name, str) and name.partition(".")[0] in _LIBRARIES


def line_of(frame: types.FrameType | None) -> str:
    """Where the code that is no library's is that led to `frame`, as a sentence goes on."""
    while frame is not None and is_library(frame.f_globals.get("__name__")):
        frame = frame.f_back
    return "" if frame is None else at_line(frame.f_lineno, frame.f_globals.get("__name__"))


def at_line(line: int, module: Any) -> str:
    """A place in code, as a sentence goes on."""
    return f" (at line {line} of {module})"


def _imports(frame: types.FrameType, outer: types.FrameType) -> bool:
    """Whether a frame within `outer` is in the middle of an import, which may not be broken off: a package of which a
    part was imported stays broken.
    """
    one: types.FrameType | None = frame
    while one is not None and one is not outer:
        if one.f_code.co_filename.startswith("<frozen importlib"):
            return True
        one = one.f_back
    return False


def _is_imported_now(name: Any) -> bool:
    """Whether the module of that name, or the package that it belongs to, is still being imported: what that leaves is
    no effect of a model's code."""
    modules = (sys.modules.get(one) for one in (name, name.partition(".")[0])) if isinstance(name, str) else ()
    return any(getattr(getattr(module, "__spec__", None), "_initializing", False) for module in modules)


def _imported(name: str) -> types.ModuleType | None:
    """The module of that name, which code may import where it runs, if it is no library's."""
    return None if is_library(name) or _is_imported_now(name) else sys.modules.get(name)


def _content_of(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it is empty
        return _MISSING


def _fill(cell: types.CellType, value: Any) -> None:
    if value is _MISSING:
        del cell.cell_contents
    else:
        cell.cell_contents = value


def _set(variable: contextvars.ContextVar[Any], value: Any) -> None:
    """One that had no value keeps what it has: Python takes it away with the token of who set it alone."""
    if value is not _MISSING:
        variable.set(value)


def _writer(space: dict[str, Any], name: str) -> Callable[[Any], None]:
    def write(value: Any) -> None:
        if value is _MISSING:
            space.pop(name, None)
        else:
            space[name] = value

    return write


def _speaks(frame: types.FrameType, function: Any) -> bool:
    """Whether a call of a builtin function, by code that is no library's, is to be seen outside of the process."""
    if function not in (builtins.print, builtins.open, warnings.warn):
        if getattr(function, "__name__", "") not in ("write", "writelines"):
            return False
        if not isinstance(getattr(function, "__self__", None), io.IOBase):
            return False
    return not is_library(frame.f_globals.get("__name__"))
