# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Settings of torch, of Python and of the process, which code may change for all that runs after it."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ..._torch import BackendFlag

_cuda: Any = torch.backends.cuda

Setting = tuple[Callable[[], Any], Callable[[Any], object]]
"""How it is read and how it is set."""


def _set_default_device(device: torch.device) -> None:
    torch.set_default_device(None if device.type == "cpu" else device)


def _flushes_denormals() -> bool:
    return not bool(torch.full((1,), 1e-39, dtype=torch.float32, device="cpu").mul(1).item())


def _deterministic_modes() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _set_deterministic_modes(modes: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(modes[0], warn_only=modes[1])


def _set_environment(values: dict[str, str]) -> None:
    for name in os.environ.keys() - values.keys():
        del os.environ[name]
    os.environ.update(values)


def _set_filters(filters: list[Any]) -> None:
    with warnings.catch_warnings():  # which makes Python look at the filters again at its end
        pass
    warnings.filters[:] = filters  # type: ignore[index]


def _set_anomaly_mode(modes: tuple[bool, bool]) -> None:
    torch.autograd.set_detect_anomaly(*modes)


def _switch_gc(enabled: bool) -> None:
    (gc.enable if enabled else gc.disable)()


def _attribute(owner: Any, name: str) -> Setting:
    return lambda: getattr(owner, name), lambda value: setattr(owner, name, value)


def _autocast(device: str) -> Iterator[tuple[str, Setting]]:
    yield (
        f"autocast on {device}",
        (lambda: torch.is_autocast_enabled(device), lambda enabled: torch.set_autocast_enabled(device, enabled)),
    )
    yield (
        f"autocast dtype on {device}",
        (lambda: torch.get_autocast_dtype(device), lambda dtype: torch.set_autocast_dtype(device, dtype)),
    )


_FLAGS: tuple[tuple[str, Any, tuple[str, ...]], ...] = (
    ("cudnn", torch.backends.cudnn, ("enabled", "benchmark", "benchmark_limit", "deterministic", "allow_tf32")),
    ("mkldnn", torch.backends.mkldnn, ("enabled", "deterministic", "allow_tf32")),
    ("cuda.matmul", _cuda.matmul, ("allow_tf32", "allow_fp16_reduced_precision_reduction")),
    ("cuda.matmul", _cuda.matmul, ("allow_bf16_reduced_precision_reduction",)),
    ("quantized", torch.backends.quantized, ("engine",)),
    ("opt_einsum", torch.backends.opt_einsum, ("enabled", "strategy")),
    ("deterministic", torch.utils.deterministic, ("fill_uninitialized_memory",)),
)

_SETTINGS: dict[str, Setting] = {
    "default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "default device": (torch.get_default_device, _set_default_device),
    "threads": (torch.get_num_threads, torch.set_num_threads),
    "deterministic algorithms": (_deterministic_modes, _set_deterministic_modes),
    "matmul precision": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    "flushed denormals": (_flushes_denormals, torch.set_flush_denormal),
    "anomaly mode": (lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()), _set_anomaly_mode),
    "fast path": (torch.backends.mha.get_fastpath_enabled, torch.backends.mha.set_fastpath_enabled),
    "flash attention": (_cuda.flash_sdp_enabled, _cuda.enable_flash_sdp),
    "efficient attention": (_cuda.mem_efficient_sdp_enabled, _cuda.enable_mem_efficient_sdp),
    "plain attention": (_cuda.math_sdp_enabled, _cuda.enable_math_sdp),
    "attention of cuDNN": (_cuda.cudnn_sdp_enabled, _cuda.enable_cudnn_sdp),
    "swapped parameters": (
        torch.__future__.get_swap_module_params_on_conversion,
        torch.__future__.set_swap_module_params_on_conversion,
    ),
    **dict(_autocast("cpu")),
    **dict(_autocast("cuda")),
    **{f"{of}.{name}": _attribute(owner, name) for of, owner, names in _FLAGS for name in names},
    "environment": (lambda: dict(os.environ), _set_environment),
    "working directory": (os.getcwd, os.chdir),
    "path": (lambda: list(sys.path), lambda path: sys.path.__setitem__(slice(None), path)),
    "recursion limit": (sys.getrecursionlimit, sys.setrecursionlimit),
    "switch interval": (sys.getswitchinterval, sys.setswitchinterval),
    "thresholds of gc": (gc.get_threshold, lambda thresholds: gc.set_threshold(*thresholds)),
    "gc": (gc.isenabled, _switch_gc),
    "filters of warnings": (lambda: list(warnings.filters), _set_filters),
}


class Settings:
    """The settings as they are when this is made."""

    def __init__(self) -> None:
        self._kept = dict(_read())

    def changed(self) -> Iterator[str]:
        """The names of those that are others."""
        yield from (name for name, value in _read() if name in self._kept and value != self._kept[name])

    def put_back(self) -> bool:
        """Whether any had changed."""
        names = list(self.changed())
        for name in names:
            with contextlib.suppress(Exception):
                _SETTINGS[name][1](self._kept[name])
        return bool(names)


def _read() -> Iterator[tuple[str, Any]]:
    for name, (read, _) in _SETTINGS.items():
        with contextlib.suppress(Exception):  # what this torch does not have, or was set in two ways
            yield name, read()


_SETTERS: tuple[Any, ...] = (
    torch.set_default_dtype,
    torch.set_default_device,
    torch.set_num_threads,
    torch.set_num_interop_threads,
    torch.use_deterministic_algorithms,
    torch.set_deterministic_debug_mode,
    torch.set_float32_matmul_precision,
    torch.set_flush_denormal,
    torch.backends.mha.set_fastpath_enabled,
    _cuda.enable_flash_sdp,
    _cuda.enable_mem_efficient_sdp,
    _cuda.enable_math_sdp,
    _cuda.enable_cudnn_sdp,
    torch.set_autocast_enabled,
    torch.set_autocast_dtype,
    BackendFlag.__set__,
    type(os.environ).__setitem__,
    type(os.environ).__delitem__,
    os.chdir,
    os.umask,
    sys.setrecursionlimit,
    sys.setswitchinterval,
    gc.enable,
    gc.disable,
    gc.set_threshold,
)

SETTERS = frozenset(id(getattr(one, "__code__", one)) for one in _SETTERS)
"""Functions that change one, by the id of what a profiler sees: the function, or its code if it is Python's."""


def sets(function: types.CodeType | Any) -> bool:
    """Whether a call changes a setting. function: a builtin function, or the code of one of Python's."""
    return id(function) in SETTERS
