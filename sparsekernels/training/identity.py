# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What a user's function computes, as a check sum: whether the one of today is the one of a file that is resumed."""

from __future__ import annotations

import copyreg
import dis
import functools
import hashlib
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .storage import bytes_of

_OURS = __name__.partition(".")[0]


def identity(op: str, function: Callable[..., Any]) -> str:
    """SHA-256 of what a function computes with: its code, defaults, closure, and the object that it is a method of.

    Functions and classes that it names count too, and so do values of its global variables, as they are now. Of the
    standard library, and of what is installed among site-packages, names count alone.

    Args:
        op: Who asks, for the error.
        function: Any, with a name or without.

    Returns:
        Hexadecimal, the same in another process of the same version of Python.

    Raises:
        TypeError: For a value of which it cannot be told whether it is the same, such as a file.
    """
    return _Identity(op, function).text


class _Identity:
    def __init__(self, op: str, function: Callable[..., Any]) -> None:
        self._op, self._name = op, getattr(function, "__qualname__", type(function).__qualname__)
        self._seen: dict[int, int] = {}
        self._alive: list[Any] = []  # so that no two have one id
        found = hashlib.sha256()
        for part in self._parts(function):
            found.update(f"{len(part)}:".encode() + part)
        self.text = found.hexdigest()

    def _parts(self, value: Any) -> Iterator[bytes]:
        if value is None or value is ... or isinstance(value, bool | int | float | complex | str | bytes):
            yield f"{type(value).__qualname__} {value!r}".encode()
        elif isinstance(value, torch.dtype | torch.device | torch.layout | torch.memory_format | range | slice):
            yield repr(value).encode()
        elif isinstance(value, types.ModuleType):
            yield f"module {value.__name__}".encode()
        elif id(value) in self._seen:
            yield f"the {self._seen[id(value)]}th".encode()
        else:
            self._seen[id(value)] = len(self._seen)
            self._alive.append(value)
            yield from self._parts_once(value)

    def _parts_once(self, value: Any) -> Iterator[bytes]:
        if isinstance(value, Tensor):
            yield f"tensor {value.dtype} {list(value.shape)}".encode()
            yield bytes_of(value)
        elif isinstance(value, torch.Generator):
            yield from self._parts(value.get_state())
        elif hasattr(value, "tobytes") and hasattr(value, "dtype"):  # of numpy
            yield f"array {value.dtype} {list(value.shape)}".encode()
            yield value.tobytes()
        elif isinstance(value, Mapping):
            yield f"mapping {type(value).__qualname__} {len(value)}".encode()
            for key, one in value.items():
                yield from self._parts(key)
                yield from self._parts(one)
        elif isinstance(value, list | tuple):
            yield f"{type(value).__qualname__} {len(value)}".encode()
            for one in value:
                yield from self._parts(one)
        elif isinstance(value, set | frozenset):
            yield f"{type(value).__qualname__} {len(value)}".encode()
            yield from sorted(b"".join(self._parts(one)) for one in value)
        elif isinstance(value, types.CodeType):
            yield from self._of_code(value)
        elif isinstance(value, types.MethodType):
            yield b"method"
            yield from self._parts(value.__func__)
            yield from self._parts(value.__self__)
        elif isinstance(value, types.FunctionType):
            yield from self._of_function(value)
        elif isinstance(value, type):
            yield from self._of_class(value)
        else:
            yield from self._of_object(value)

    def _of_code(self, code: types.CodeType) -> Iterator[bytes]:
        yield code.co_code
        yield from self._parts([code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars])
        yield from self._parts(code.co_consts)

    def _of_function(self, function: types.FunctionType) -> Iterator[bytes]:
        yield f"function {function.__module__}.{function.__qualname__}".encode()
        cells = [_content(cell) for cell in function.__closure__ or ()]
        yield from self._parts([function.__defaults__, function.__kwdefaults__, cells])
        if _is_installed(function):  # the same with its next version
            return
        yield from self._parts(function.__code__)
        for name in sorted(set(_globals_in(function.__code__)) & function.__globals__.keys()):
            yield name.encode()
            yield from self._of_global(function.__globals__[name])

    def _of_global(self, value: Any) -> Iterator[bytes]:
        """What cannot be told apart is left out: a function may name whatever its module has."""
        try:
            yield b"".join(self._parts(value))
        except TypeError:
            yield b"something"

    def _of_class(self, kind: type) -> Iterator[bytes]:
        yield f"class {kind.__module__}.{kind.__qualname__}".encode()
        if not _is_installed(kind):
            for name, one in sorted(vars(kind).items()):
                function = getattr(one, "__func__", getattr(one, "fget", one))
                if isinstance(function, types.FunctionType):
                    yield name.encode()
                    yield from self._parts(function)
            for base in kind.__bases__:
                yield from self._parts(base)

    def _of_object(self, value: Any) -> Iterator[bytes]:
        """By what pickle would make it again from."""
        yield b"object"
        yield from self._parts(type(value))
        try:
            reduce = copyreg.dispatch_table.get(type(value))
            found = value.__reduce_ex__(4) if reduce is None else reduce(value)
        except Exception as error:
            raise TypeError(
                f"{self._op}: expected a function of plain values, tensors and functions, by which its tickets are told"
                f" apart, got {type(value).__name__} in {self._name!r}"
            ) from error
        if isinstance(found, tuple):  # function, arguments, state, items of a list, of a dict
            found = [list(one) if isinstance(one, Iterator) else one for one in found]
        self._alive.append(found)
        yield from self._parts(found)


@functools.cache
def _is_library(package: str) -> bool:
    if package == "__main__":
        return False
    if package == _OURS or package in sys.stdlib_module_names:
        return True
    file = getattr(sys.modules.get(package), "__file__", None) or ""
    return "site-packages" in Path(file).parts or "dist-packages" in Path(file).parts


def _is_installed(thing: Any) -> bool:
    return _is_library(str(getattr(thing, "__module__", "")).partition(".")[0])


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None


def _globals_in(code: types.CodeType) -> Iterator[str]:
    yield from (str(one.argval) for one in dis.get_instructions(code) if one.opname in ("LOAD_GLOBAL", "LOAD_NAME"))
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _globals_in(constant)
