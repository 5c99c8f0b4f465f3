# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What every operation is made of: declared once here, and by that known to torch, to `use_backend` and to `info`.

An `Operation` is a table of implementations and the *kernel operators* behind them, which torch's dispatcher hands to
the compiled kernel of a device. An `Operator` knows its gradients:

    SQUARE = Operation("square", reference, devices=("cpu",))
    SQUARE.kernel("forward", "_square(Tensor input) -> Tensor", torch.empty_like)
    square = Operator(SQUARE, "square(Tensor input) -> Tensor", SquareFunction, torch.empty_like, validate=validate)

`square(input)` is the general route of a call: through named backends, torch.compile, autocast and torch.func. A public
function with a hot path goes by `square.apply` or by the kernel operators first, in plain eager calls.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.overrides import has_torch_function_variadic

from .. import _library, dispatch
from .._torch import (
    DispatchKey,
    DispatchKeySet,
    apply_of,
    are_functorch_transforms_active,
    constant_when_compiled,
    excluded,
    forward_ad,
)
from ..checks import DTYPES
from ..dispatch import BackendError, Call, Implementation, select
from ..formats import SparseFormat

_LIBRARY = torch.library.Library("sparsekernels", "FRAGMENT")
_AUTOCAST = {"cpu": DispatchKey.AutocastCPU, "cuda": DispatchKey.AutocastCUDA}

Arguments = tuple[Any, ...]


def _same(*arguments: Any) -> Arguments:
    return arguments


def _compiled_on(device: str, kernels: object, dtypes: Sequence[torch.dtype], format: str | None) -> Implementation:
    """The row of the compiled kernels of a device, "cpu" or "cuda": for inputs of these dtypes, and for weights of this
    format, not in blocks.
    """
    loaded = _library.cpu if device == "cpu" else _library.cuda
    missing = _library.cpu_missing if device == "cpu" else _library.cuda_missing

    def supports(call: Call) -> str | None:
        if call.device.type != device:
            return f"it runs on {device}, the input is on {call.device}"
        if loaded is None:
            return missing
        if call.format != format:
            return f"it takes {_named(format)} weights, the weight is {_named(call.format)}"
        if call.block_size is not None:
            rows, columns = call.block_size
            return f"it takes weights of single elements, the weight is in blocks of {rows}x{columns}"
        if call.dtype not in dtypes:
            return f"it takes {', '.join(str(dtype)[6:] for dtype in dtypes)}, the input is {str(call.dtype)[6:]}"
        return call.unsupported_gpu

    return Implementation(device, supports, lambda: kernels)


@constant_when_compiled
def is_unsupported_gpu(device: torch.device) -> bool:
    """Whether no kernel of ours runs on this GPU."""
    return _is_unsupported_gpu(device)


@functools.cache  # a device stays as it is
def _is_unsupported_gpu(device: torch.device) -> bool:
    return torch.cuda.is_available() and Call(device, torch.float32).unsupported_gpu is not None  # else it has no data


def _named(format: str | None) -> str:
    return "dense" if format is None else repr(format)


class Operation:
    """One operation: its table of implementations and its kernel operators.

    name             as `sparsekernels info` lists it
    reference        has the operation's functions in plain torch; runs everywhere
    implementations  the table, in order of preference: the compiled kernels, others, the reference
    compiled         the kernel operators, under the names and with the arguments of the reference's functions; `kernel`
                     adds to it. This is what runs where no backend is asked for: torch's dispatcher finds the kernel of
                     the input's device, and where none is registered the next row of the table runs
    by_table         the same functions as the table runs them, arguments checked: what torch's dispatcher calls where
                     it has no kernel
    dtypes           that the compiled kernels take; other calls are the reference's
    cuda_dtypes      that the table's kernels for a GPU take, where these are others
    format           of the weight, for operations on a sparse one; the compiled kernels take no other, and no blocks
    """

    def __init__(
        self,
        name: str,
        reference: Any,
        *,
        devices: Sequence[str] = (),
        others: Sequence[Implementation] = (),
        dtypes: tuple[torch.dtype, ...] = DTYPES,
        cuda_dtypes: tuple[torch.dtype, ...] | None = None,
        format: str | None = None,
    ) -> None:
        """Make the table: rows for the compiled kernels of `devices`, "cuda" and "cpu", then `others`."""
        self.name = name
        self.reference = reference
        self.compiled = SimpleNamespace()
        self.by_table = SimpleNamespace()
        self.implementations = (
            *(_compiled_on(device, self.compiled, dtypes, format) for device in devices),
            *others,
            Implementation("reference", lambda _: None, lambda: reference),
        )
        self.dtypes = dtypes
        self.cuda_dtypes = dtypes if cuda_dtypes is None else cuda_dtypes
        self.format = format

    def call_of(self, input: Tensor, weight: SparseFormat | None = None) -> Call:
        """The call on `input`, as far as it decides who can run it; without a weight, on one of `format`."""
        return Call(input.device, input.dtype, self.format) if weight is None else Call.of(input, weight)

    def backends(self, input: Tensor) -> list[str]:
        """The names of those that can run a call on `input`, best first."""
        call = self.call_of(input)
        return [row.name for row in self.implementations if row.supports(call) is None]

    def is_compiled(self, input: Tensor) -> bool:
        """Whether a compiled kernel of the input's device can run a call on it."""
        call = self.call_of(input)
        return any(row.name == call.device.type and row.supports(call) is None for row in self.implementations)

    def automatic(self, input: Tensor, weight: SparseFormat | None = None) -> Any:
        """Where the kernels of a call are if no backend is asked for.

        A weight in another format than the operation's, or in blocks, is for the table: each row says what it takes.
        """
        if weight is not None and (weight.format != self.format or weight.block_size is not None):
            return select(self.implementations, self.call_of(input, weight)).kernels()
        dtypes = self.cuda_dtypes if input.is_cuda else self.dtypes
        if input.dtype not in dtypes or (input.is_cuda and is_unsupported_gpu(input.device)):
            return self.reference
        return self.compiled

    def kernels_of(self, input: Tensor, weight: SparseFormat | None = None) -> Any:
        """Where the kernels of a call are: in the backend that was asked for by name, else the automatic one.

        Some derivatives are taken by torch itself, which knows how to differentiate the reference's own operations.
        """
        if by_torch := _differentiated_by_torch():
            if dispatch.forced in (None, "reference"):
                return self.reference
            raise BackendError(
                f"use_backend({dispatch.forced!r}): expected a call without {by_torch}, which 'reference' alone has,"
                " got one with them"
            )
        if dispatch.forced is None:
            return self.automatic(input, weight)
        call = self.call_of(input, weight)
        chosen = select(self.implementations, call, backend=dispatch.forced)
        if input.is_cuda and torch.compiler.is_compiling() and chosen is select(self.implementations, call):
            return self.automatic(input, weight)  # the same, as an operator: compiled code cannot look up what is kept
        return chosen.kernels()

    def define(self, schema: str) -> Any:
        """Define an operator by its schema alone, and return its overload: compiled libraries implement it."""
        _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        return getattr(torch.ops.sparsekernels, _name_of(schema)).default

    def kernel(
        self,
        function: str,
        schema: str,
        fake: Callable[..., Any] | None = None,
        *,
        check: Callable[..., object] | None = None,
        from_schema: Callable[..., Arguments] = _same,
        compiled: Callable[..., Any] | None = None,
        input: int = 0,
        autocast: Mapping[str, torch.dtype | None] | None = None,
    ) -> Any:
        """Define a kernel operator, which knows no gradients, and return its overload.

        function     the name under which the reference and other implementations have what it runs
        schema       torch's; the name starts with an underscore
        fake         the result without data, from the function's arguments; default the reference itself
        check        raises where the function's arguments do not fit; the compiled kernels have checks of their own
        from_schema  makes the function's arguments of the schema's, where they differ
        compiled     then calls the operator with the function's arguments
        input        which of the function's arguments decides who runs the call
        autocast     as in `Operator`
        """
        operator = self.define(schema)

        def by_table(*arguments: Any) -> Any:
            if check is not None:
                check(*arguments)
            chosen = select(self.implementations, self.call_of(arguments[input]))
            return getattr(chosen.kernels(), function)(*arguments)

        _LIBRARY.impl(_name_of(schema), lambda *given: by_table(*from_schema(*given)), "CompositeExplicitAutograd")
        without_data = getattr(self.reference, function) if fake is None else fake
        register_fake(schema, lambda *given: without_data(*from_schema(*given)))
        _register_casts(schema, operator, autocast or {})
        setattr(self.compiled, function, operator if compiled is None else compiled)
        setattr(self.by_table, function, by_table)
        return operator


class Operator:
    """An operator that knows its gradients. Graphs made by torch.export hold it.

    operation   whose kernels it runs
    overload    the operator as torch has it
    function    the autograd function, with `setup_context`. Its arguments are the operator's and, as the last one, the
                kernels of the call
    apply       `function.apply` for plain eager calls, without its overhead

    A graph holds tensors and numbers alone. Where the arguments are more, a pattern say, `to_schema` makes the
    arguments of `overload` of them, and `from_schema` these of those. In a graph that is traced below autograd
    (torch.compile) the operator leaves kernel operators, so that compiled code calls them without a detour.
    """

    def __init__(
        self,
        operation: Operation,
        schema: str,
        function: type[torch.autograd.Function],
        fake: Callable[..., Any] | None = None,
        *,
        validate: Callable[..., object] | None = None,
        to_schema: Callable[..., Arguments] = _same,
        from_schema: Callable[..., Arguments] = _same,
        autocast: Mapping[str, torch.dtype | None] | None = None,
        weight: int | None = None,
        differentiates_reference: bool = False,
    ) -> None:
        """Define it.

        fake        the result without data, from the schema's arguments; default `function` on the reference
        validate    raises TypeError or ValueError, in words, for arguments that do not fit
        autocast    by device, the dtype that autocast takes floating tensors to; None is the dtype that it is set to
        weight      which of the arguments is a sparse weight, whose format and blocks decide who can run the call
        differentiates_reference  whether `function` is for calls of the reference too. If not, and where it cannot be
                    (forward mode, compiled code), torch differentiates the reference's own operations
        """
        self.operation = operation
        self.overload = operation.define(schema)
        self.function = function
        self.apply = apply_of(function)
        self._validate = validate
        self._to_schema = to_schema
        self._autocast = autocast or {}
        self._weight = weight
        self._differentiates_reference = differentiates_reference

        def call(given: Arguments) -> Arguments:
            arguments = from_schema(*given)
            if validate is not None:
                validate(*arguments)
            return (*arguments, operation.automatic(arguments[0]))

        name = _name_of(schema)
        _LIBRARY.impl(name, lambda *given: function.forward(*call(given)), "CompositeExplicitAutograd")
        _LIBRARY.impl(name, lambda *given: function.apply(*call(given)), "Autograd")
        if fake is None:
            register_fake(schema, lambda *given: function.forward(*from_schema(*given), operation.reference))
        else:
            register_fake(schema, fake)
        _register_casts(schema, self.overload, self._autocast)

    def __call__(self, *arguments: Any) -> Any:
        """The general route: obeys `use_backend`, autocast, torch.compile, torch.func and forward mode."""
        operation, compiling, by_torch = self.operation, torch.compiler.is_compiling(), _differentiated_by_torch()
        differentiable = torch.is_grad_enabled() and (
            are_functorch_transforms_active()  # inside of them no tensor says that it requires a gradient
            or any(isinstance(argument, Tensor) and argument.requires_grad for argument in arguments)
        )
        weight = None if self._weight is None else arguments[self._weight]
        plain = dispatch.forced is None and by_torch is None
        if plain and compiling and differentiable and operation.automatic(arguments[0], weight) is operation.compiled:
            return self.as_operator(*arguments)
        arguments = self.cast(*arguments)
        if self._validate is not None:
            self._validate(*arguments)
        kernels = operation.kernels_of(arguments[0], weight)
        if differentiable and (
            kernels is not operation.reference
            or (self._differentiates_reference and by_torch is None and not compiling)
        ):
            return self.on(kernels, *arguments)
        return self.function.forward(*arguments, kernels)

    def as_operator(self, *arguments: Any) -> Any:
        """A call as one operator, which knows its gradients: for what records operators."""
        return self.overload(*self._to_schema(*arguments))

    def on(self, kernels: Any, *arguments: Any) -> Any:
        """On the kernels of a call, differentiable where that is asked for (create_graph=True): for backward passes."""
        if not torch.is_grad_enabled():
            return self.function.forward(*arguments, kernels)
        if kernels is self.operation.compiled and torch.compiler.is_compiling():
            return self.as_operator(*arguments)
        return self.function.apply(*arguments, kernels)

    def cast(self, *arguments: Any) -> Arguments:
        """The arguments as autocast has them: as they are where it is off."""
        for device, dtype in self._autocast.items():
            if torch.is_autocast_enabled(device) and arguments[0].device.type == device:
                return _cast(arguments, device, dtype)
        return arguments


def register_fake(schema: str, fake: Callable[..., Any]) -> None:
    """What an operator's result looks like without data, from the schema's arguments."""
    torch.library.register_fake(f"sparsekernels::{_name_of(schema)}", fake, lib=_LIBRARY)


def without_gradients(schema: str) -> None:
    """Let a kernel operator that returns no tensors be called past autograd, in half a microsecond less."""
    _LIBRARY.impl(_name_of(schema), torch.library.fallthrough_kernel, "Autograd")


def register_autocast(schema: str, device: str, rule: Callable[..., Any]) -> None:
    """What runs in the place of an operator under autocast of a device, where more than dtypes change."""
    _LIBRARY.impl(_name_of(schema), rule, _AUTOCAST[device].name)


def _register_casts(schema: str, operator: Any, autocast: Mapping[str, torch.dtype | None]) -> None:
    for device, dtype in autocast.items():
        register_autocast(schema, device, _casting(operator, device, dtype))


def _casting(operator: Any, device: str, dtype: torch.dtype | None) -> Callable[..., Any]:
    keys = DispatchKeySet(_AUTOCAST[device])

    def rule(*arguments: Any) -> Any:
        with excluded(keys):
            return operator(*_cast(arguments, device, dtype))

    return rule


def _cast(arguments: Arguments, device: str, dtype: torch.dtype | None) -> Arguments:
    """Floating tensors of a device in `dtype`; float64 is left as it is, as autocast leaves it."""
    wanted = torch.get_autocast_dtype(device) if dtype is None else dtype

    def is_cast(argument: Any) -> bool:
        return (
            isinstance(argument, Tensor)
            and argument.is_floating_point()
            and argument.dtype != torch.float64
            and argument.device.type == device
        )

    return tuple(argument.to(wanted) if is_cast(argument) else argument for argument in arguments)


def _name_of(schema: str) -> str:
    return schema.partition("(")[0]


def _differentiated_by_torch() -> str | None:
    """Which derivatives, if any, torch has to take of this call, through the operations of the reference."""
    if forward_ad._current_level >= 0:
        return "forward-mode derivatives"
    if torch.compiler.is_compiling() and are_functorch_transforms_active():
        return "compiled derivatives inside of torch.func"
    return None


# What a public function does when its call fails.


def is_traced(*tensors: object) -> bool:
    """Whether the first of these, the input, stands for a tensor: torch.fx's Proxy, say."""
    return not isinstance(tensors[0], Tensor) and has_torch_function_variadic(*tensors)


def explain(error: Exception, validate: Callable[..., object], *arguments: Any) -> NoReturn:
    """Raise what is wrong with the arguments, in words; where nothing is, `error` as it came."""
    try:
        validate(*arguments)
    except (TypeError, ValueError) as reason:
        raise reason from None
    raise error
