# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The private APIs of torch that this package uses: check these first when torch is upgraded.

Names are here, for all others to import; attributes of modules and tensors, which are read where they are needed, are
listed in `ATTRIBUTES`. tests/test_torch.py finds what is used and not here. Checked with torch 2.10.0, 2.13 and 2.14.1:
tests/legs.sh runs that test, and those of what uses them, on the oldest torch and the newest.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch import backends as _backends
from torch._C import _functorch
from torch._subclasses.fake_tensor import FakeTensor as FakeTensor
from torch._subclasses.fake_tensor import FakeTensorMode as FakeTensorMode
from torch.autograd import forward_ad as forward_ad
from torch.nn.modules import batchnorm as _batchnorm
from torch.nn.modules import conv as _conv
from torch.nn.modules import dropout as _dropout
from torch.nn.modules import module as _module
from torch.utils import _python_dispatch, _pytree
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode

ATTRIBUTES: Mapping[type, tuple[str, ...]] = {
    nn.Module: (
        "_modules",
        "_parameters",
        "_buffers",
        "_forward_hooks",
        "_forward_pre_hooks",
        "_backward_hooks",
        "_backward_pre_hooks",
        "_state_dict_hooks",
        "_state_dict_pre_hooks",
        "_load_state_dict_pre_hooks",
        "_load_state_dict_post_hooks",
        "_compiled_call_impl",  # by Module.compile; torch.compile(module) gives another module, which has `_orig_mod`
        "_apply",  # what `to`, `half` and the like call
        "_load_from_state_dict",
        "_save_to_state_dict",
        "_replicate_for_data_parallel",
    ),
    nn.Conv2d: ("_conv_forward", "_reversed_padding_repeated_twice"),
    Tensor: ("_version", "_base", "_grad", "_make_wrapper_subclass"),
    TorchDispatchMode: ("_should_skip_dynamo",),
}
"""Attributes that are read, called or overridden, by the class that has them. A proxy of torch.fx that becomes an
attribute of a module is asked for `_is_param` and `_is_buffer`, which ours answers."""

NormBase = _batchnorm._NormBase
"""The base of all BatchNorms and InstanceNorms."""


def constant_when_compiled(function: Any) -> Any:
    """Let torch.compile call a function of no tensors while it traces, and take its result for a constant.

    As `torch.compiler.assume_constant_result` does, which would import dynamo, in one or two seconds.
    """
    function._dynamo_marked_constant = True
    return function


def mark_size_as_dynamic(tensor: Tensor) -> None:
    """Let torch.compile take the size of a tensor of one dimension for a variable from the first trace on.

    As `torch._dynamo.maybe_mark_dynamic` does, which would import dynamo: what it specializes on is no error.
    """
    tensor._dynamo_weak_dynamic_indices = {0}  # type: ignore[attr-defined]
    tensor._has_dynamo_dim_marking = True  # type: ignore[attr-defined]


TENSOR_CONSTANT = "_tensor_constant"
"""What torch.fx calls attributes that it makes of tensors which code has made."""

BackendFlag: Any = _backends.ContextProp
"""What is behind flags of torch.backends: its `__set__` is called where code sets one."""

ConvTransposeNd = _conv._ConvTransposeNd
DropoutNd = _dropout._DropoutNd

tree_leaves: Callable[[Any], list[Any]] = _pytree.tree_leaves
"""What containers hold, at any depth."""

tree_map_only: Callable[..., Any] = _pytree.tree_map_only
"""The same containers, with a function applied to what is of a type."""

# `forward_ad._current_level` is at least 0 inside of forward-mode differentiation. The hot paths read the attribute:
# a call around it costs 50 ns.

DispatchKey = torch._C.DispatchKey
DispatchKeySet = torch._C.DispatchKeySet

excluded: Callable[[torch._C.DispatchKeySet], Any] = torch._C._ExcludeDispatchKeyGuard
"""Context in which torch's dispatcher passes over these keys: an autocast rule calls its own operator below itself."""

is_any_autocast_enabled: Callable[[], bool] = torch._C._is_any_autocast_enabled
"""Whether autocast is on for any device, in one call."""

are_functorch_transforms_active: Callable[[], bool] = torch._C._are_functorch_transforms_active
"""Whether a call is inside of vmap, jvp, grad or another transform of torch.func."""


def outside_of_transforms() -> Any:
    """Context in which nothing is wrapped by transforms of torch.func: what is kept beside a pattern must not be."""
    return contextlib.nullcontext() if torch.compiler.is_compiling() else torch._C._DisableFuncTorch()


def is_functionalized() -> bool:
    """Whether a call is inside of torch.func.functionalize, which knows no autograd functions of other packages."""
    levels = _functorch.get_interpreter_stack() or ()
    return any(level.key() == _functorch.TransformType.Functionalize for level in levels)


def functional_schemas(name: str) -> list[tuple[str, Any]]:
    """Names and schemas of the overloads that write to none of their arguments, of torch's operator of that name."""
    operator: Any = getattr(torch.ops.aten, name, None)
    if not isinstance(operator, torch._ops.OpOverloadPacket):
        return []
    overloads = [getattr(operator, name) for name in operator.overloads()]
    found = [(one.name(), one._schema) for one in overloads]
    return [(name, schema) for name, schema in found if not any(map(_is_written, schema.arguments))]


def _is_written(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


def written_arguments(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    """The tensors that a call of an operator writes to, by its schema; none of what has no schema."""
    schema = getattr(function, "_schema", None)
    if schema is None or not schema.is_mutable:
        return
    for place, argument in enumerate(schema.arguments):
        if _is_written(argument):
            value = args[place] if place < len(args) else kwargs.get(argument.name)
            yield from (one for one in tree_leaves(value) if isinstance(one, Tensor))


def is_composite(name: str) -> bool:
    """Whether an operator is code on other operators: then its schema need not tell whether it gives an argument."""
    try:
        return torch._C._dispatch_has_kernel_for_dispatch_key(name, "CompositeImplicitAutograd")
    except RuntimeError:  # TorchScript's alone
        return False


dispatch_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack
"""How many dispatch modes are active: fake tensors, make_fx and the like see the operators of a call."""


def has_function_mode() -> bool:
    """Whether a torch function mode is active that may do anything: not a default device, which is one as well, and
    none whose class says by `leaves_graphs_alone` that what it changes is no operation of a graph.
    """
    for index in range(torch._C._len_torch_function_stack()):
        kind = type(torch._C._get_function_stack_at(index))
        if kind is not DeviceContext and not getattr(kind, "leaves_graphs_alone", False):
            return True
    return False


def flop_counters() -> list[Any]:
    """The FlopCounterModes that are active, as objects with a dictionary `flop_registry` of their own.

    Each enters a dispatch mode that has it as its `counter`.
    """
    from torch.utils._python_dispatch import _get_current_dispatch_mode_stack as modes

    counters = [getattr(mode, "counter", None) for mode in modes()]
    return [one for one in counters if isinstance(getattr(one, "flop_registry", None), dict)]


GLOBAL_HOOKS: tuple[dict[int, Any], ...] = tuple(
    value for name, value in vars(_module).items() if name.startswith("_global_") and isinstance(value, dict)
)
"""Those that all modules call, of each kind."""

has_any_global_hook: Callable[[], bool] = _module._has_any_global_hook
"""Whether a hook is registered for every module."""


def backend_compiler_failed() -> type[Exception]:
    """What torch.compile raises where its backend fails. The import takes two seconds; torch.compile needs it, too."""
    from torch._dynamo.exc import BackendCompilerFailed

    return BackendCompilerFailed


def without_donated_buffers() -> Any:
    """A context in which torch.compile makes a backward that leaves what its forward kept, so that it can run again."""
    import torch._functorch.config as config

    return config.patch(donated_buffer=False)


def is_differentiated(tensor: Tensor) -> bool:
    """Whether a tensor has gradients, for autograd or for a transform of torch.func around the call."""
    while _functorch.is_functorch_wrapped_tensor(tensor):
        if _functorch.is_gradtrackingtensor(tensor):
            return True
        tensor = _functorch.get_unwrapped(tensor)
    return tensor.requires_grad


def peeled(tensor: Tensor) -> Tensor:
    """What the wrappers of torch.func around a tensor hold, the dimensions that vmap maps over in front."""
    while _functorch.is_functorch_wrapped_tensor(tensor):
        inner = _functorch.get_unwrapped(tensor)
        if _functorch.is_batchedtensor(tensor):
            inner = inner.movedim(_functorch.maybe_get_bdim(tensor), 0)
        tensor = inner
    return tensor


without_function_modes: Callable[[], Any] = torch._C.DisableTorchFunction
"""Context in which no torch function mode sees the operators of a call."""

without_modes: Callable[[], Any] = _python_dispatch._disable_current_modes
"""Context in which no dispatch mode sees the operators of a call."""


def is_exported_to_onnx(input: object) -> bool:
    """Whether `input`, of a layer, is one of torch.onnx.export's. Of an ordinary tensor it says False at once."""
    return type(input) is not Tensor and torch.onnx.is_in_onnx_export()


def version_of(weight: Tensor) -> int:
    """What autograd counts of the writes to a tensor; negative where it does not."""
    try:
        return weight._version
    except RuntimeError:  # of an inference tensor
        return -1


def is_captured(tensor: Tensor) -> bool:
    """Whether calls on a tensor become part of a CUDA graph."""
    if not tensor.is_cuda:
        return False
    if torch.cuda.device_count() == 1:
        return torch.cuda.is_current_stream_capturing()
    with torch.cuda.device(tensor.device):  # of which the current stream is asked
        return torch.cuda.is_current_stream_capturing()


def may_be_kept(made: Tensor) -> bool:
    """Whether what was just made of a pattern may be kept beside it, for calls on any stream. The host waits for it.

    Not where it is traced, since it would outlive its graph, and not while a CUDA graph is captured, which fills it no
    sooner than it is replayed, in memory of its own: what is made there is a part of that graph. As long as the pattern
    lives, so does what is kept; who drops a pattern that another stream still reads waits first, as with any tensor.
    """
    if torch.compiler.is_compiling():
        return False
    if not made.is_cuda or isinstance(made, FakeTensor):
        return True
    if is_captured(made):
        return False
    torch.cuda.current_stream(made.device).synchronize()
    return True


def is_jit_tracing() -> bool:
    """Whether torch.jit.trace records."""
    return torch._C._get_tracing_state() is not None


def saved_tensors_hooks() -> Any:
    """The innermost hooks on tensors that autograd saves, None without."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True)


def apply_of(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """The apply of an autograd function without default arguments, for eager calls outside of torch.func.

    `Function.apply` binds default arguments through `inspect` wherever a `setup_context` is defined: in Python before
    torch 2.14, inside of C++ since. So this is the C++ apply of a class whose one `forward` takes both steps. A
    `rms_norm` of [1, 256] float32 takes, forward alone and with backward, in us (EPYC, one thread):

    |                             | torch 2.10    | torch 2.13   | torch 2.14.1 |
    |-----------------------------|---------------|--------------|--------------|
    | Function.apply              | 31.8, 90.7    | 26.5, 76.6   | 26.6, 83.0   |
    | the C++ apply of `function` | 8.3, 46.6     | 7.2, 41.2    | 25.3, 76.2   |
    | this                        | 8.2, 45.7     | 7.2, 40.9    | 7.0, 43.1    |
    """

    def forward(ctx: Any, *args: Any) -> Any:
        output = function.forward(*args)
        function.setup_context(ctx, args, output)
        return output

    steps = {"forward": forward, "setup_context": torch.autograd.Function.setup_context}  # the latter: not defined
    one_step = type(function.__name__, (function,), {name: staticmethod(step) for name, step in steps.items()})
    return super(torch.autograd.Function, one_step).apply  # type: ignore[misc, no-any-return]


def has_bfloat16_convolutions() -> bool:
    """Whether oneDNN convolves in bfloat16 on this processor, which takes AVX-512 or AVX-NE-CONVERT: where it does not,
    torch's own convolutions in bfloat16 round sums as they go."""
    return has_products_of(torch.bfloat16)


def has_products_of(dtype: torch.dtype) -> bool:
    """Whether torch multiplies matrices of `dtype` by oneDNN on this processor, or in float32: where it does neither,
    products in bfloat16 and float16 take several times as long as those in float32."""
    names = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    asked = getattr(torch.ops.mkldnn, names[dtype], None) if dtype in names else None
    return asked is None or bool(asked())


def convolution_with_limits() -> Callable[..., Tensor] | None:
    """oneDNN's convolution in bfloat16 with what is done to its result while that is in registers, if torch has it and
    uses oneDNN, and that has it for this processor.

    op(input, weight, bias, padding, stride, dilation, groups, name, numbers, algorithm) with "none", "relu" or
    "hardtanh"; op.binary(input, other, weight, bias, padding, stride, dilation, groups, "add", 1.0, name, numbers,
    algorithm) adds `other` before, and has no limits but "relu" or None. torch.compile calls them.
    """
    if not torch._C._has_mkldnn or not torch.backends.mkldnn.enabled or not has_bfloat16_convolutions():
        return None
    return getattr(torch.ops.mkldnn, "_convolution_pointwise", None)


def convolution_into() -> Callable[..., Tensor]:
    """Where `convolution_with_limits` has an operator: its `binary` that writes the result to `other`, its first."""
    found: Callable[..., Tensor] = torch.ops.mkldnn._convolution_pointwise_.binary
    return found


def bsr_linear() -> Callable[[Tensor, Tensor], Tensor]:
    """Of an input [rows, in] and a weight [out, in] in the layout BSR, on CUDA: torch's Triton kernel for that product.

    Imported when it is asked for, since torch imports much with it.
    """
    from torch.sparse._triton_ops import bsr_dense_addmm

    def linear(input: Tensor, weight: Tensor) -> Tensor:
        zeros = input.new_zeros(1).expand(weight.size(0), input.size(0))
        product: Tensor = bsr_dense_addmm(zeros, weight, input.t(), beta=0)
        return product.t()

    return linear
