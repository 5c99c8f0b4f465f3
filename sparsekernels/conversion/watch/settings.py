# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Settings of torch, of Python and of the process, which code may change for all that runs after it.

What is put back is what watched code was seen to set, as it was just before: other threads may set the rest meanwhile.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from ..._torch import BackendFlag

_cuda: Any = torch.backends.cuda
_backends: Any = torch.backends


class Setting(NamedTuple):
    """How it is read, how it is put back, and what user code calls to set it."""

    read: Callable[[], Any]
    write: Callable[[Any], object]
    setters: tuple[Any, ...]


def _of(read: Callable[[], Any], *setters: Callable[[Any], object]) -> Setting:
    return Setting(read, setters[0], setters)


def _set_default_device(device: torch.device) -> None:
    torch.set_default_device(None if device.type == "cpu" else device)


def _flushes_denormals() -> bool:
    return not bool(torch.full((1,), 1e-39, dtype=torch.float32, device="cpu").mul(1).item())


def _deterministic_modes() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _set_deterministic_modes(modes: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(modes[0], warn_only=modes[1])


def _anomaly_modes() -> tuple[bool, bool]:
    return torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()


def _set_anomaly_modes(modes: tuple[bool, bool]) -> None:
    torch.autograd.set_detect_anomaly(*modes)


def _autocast(device: str) -> Iterator[tuple[str, Setting]]:
    yield (
        f"autocast on {device}",
        Setting(
            lambda: torch.is_autocast_enabled(device),
            lambda enabled: torch.set_autocast_enabled(device, enabled),
            (torch.set_autocast_enabled,),
        ),
    )
    yield (
        f"autocast dtype on {device}",
        Setting(
            lambda: torch.get_autocast_dtype(device),
            lambda dtype: torch.set_autocast_dtype(device, dtype),
            (torch.set_autocast_dtype,),
        ),
    )


def _flags() -> Iterator[tuple[str, Setting]]:
    reduced = "allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction"
    for of, names in {
        "": ("fp32_precision",),
        "cudnn": ("enabled", "benchmark", "benchmark_limit", "deterministic", "allow_tf32", "fp32_precision"),
        "cudnn.conv": ("fp32_precision",),
        "cudnn.rnn": ("fp32_precision",),
        "mkldnn": ("enabled", "deterministic", "allow_tf32", "fp32_precision"),
        "mkldnn.conv": ("fp32_precision",),
        "mkldnn.matmul": ("fp32_precision",),
        "mkldnn.rnn": ("fp32_precision",),
        "cuda.matmul": ("allow_tf32", "fp32_precision", *reduced),
        "quantized": ("engine",),
        "opt_einsum": ("enabled", "strategy"),
    }.items():
        owner = _backends
        for part in filter(None, of.split(".")):
            owner = getattr(owner, part, None)
        if owner is not None:
            sets = vars(type(owner)).get("__setattr__", BackendFlag.__set__)
            for name in names:
                flag = Setting(_getter(owner, name), _setter(owner, name), (sets, BackendFlag.__set__))
                yield ".".join(filter(None, (of, name))), flag


def _getter(owner: Any, name: str) -> Callable[[], Any]:
    return lambda: getattr(owner, name)


def _setter(owner: Any, name: str) -> Callable[[Any], object]:
    return lambda value: setattr(owner, name, value)


_deterministic: Any = torch.utils.deterministic

SETTINGS: dict[str, Setting] = {
    "default dtype": _of(torch.get_default_dtype, torch.set_default_dtype),
    "default device": Setting(torch.get_default_device, _set_default_device, (torch.set_default_device,)),
    "threads": _of(torch.get_num_threads, torch.set_num_threads),
    "deterministic algorithms": Setting(
        _deterministic_modes,
        _set_deterministic_modes,
        (torch.use_deterministic_algorithms, torch.set_deterministic_debug_mode),
    ),
    "fill_uninitialized_memory": Setting(
        _getter(_deterministic, "fill_uninitialized_memory"),
        _setter(_deterministic, "fill_uninitialized_memory"),
        (type(_deterministic).fill_uninitialized_memory.fset,),
    ),
    "matmul precision": _of(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    "flushed denormals": _of(_flushes_denormals, torch.set_flush_denormal),
    "anomaly mode": Setting(_anomaly_modes, _set_anomaly_modes, (torch.autograd.set_detect_anomaly.__init__,)),
    "fast path": _of(torch.backends.mha.get_fastpath_enabled, torch.backends.mha.set_fastpath_enabled),
    "flash attention": _of(_cuda.flash_sdp_enabled, _cuda.enable_flash_sdp),
    "efficient attention": _of(_cuda.mem_efficient_sdp_enabled, _cuda.enable_mem_efficient_sdp),
    "plain attention": _of(_cuda.math_sdp_enabled, _cuda.enable_math_sdp),
    "attention of cuDNN": _of(_cuda.cudnn_sdp_enabled, _cuda.enable_cudnn_sdp),
    "swapped parameters": _of(
        torch.__future__.get_swap_module_params_on_conversion, torch.__future__.set_swap_module_params_on_conversion
    ),
    "repeated warnings": _of(torch.is_warn_always_enabled, torch.set_warn_always),
    "autocast cache": _of(torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled),
    "overwritten parameters": _of(
        torch.__future__.get_overwrite_module_params_on_conversion,
        torch.__future__.set_overwrite_module_params_on_conversion,
    ),
    **dict(_autocast("cpu")),
    **dict(_autocast("cuda")),
    **dict(_flags()),
    "working directory": _of(os.getcwd, os.chdir),
    "recursion limit": _of(sys.getrecursionlimit, sys.setrecursionlimit),
    "switch interval": _of(sys.getswitchinterval, sys.setswitchinterval),
    "thresholds of gc": Setting(gc.get_threshold, lambda values: gc.set_threshold(*values), (gc.set_threshold,)),
}

_ENVIRONMENT = (type(os.environ).__setitem__, type(os.environ).__delitem__)
_OTHERS = (torch.set_num_interop_threads, os.umask, gc.enable, gc.disable)
"""Set what cannot be put back, or what is another thing while code is watched."""


def _seen(setter: Any) -> int:
    """What a profiler sees of a function: itself, or its code if it is Python's; by its id."""
    return id(getattr(setter, "__code__", setter))


_NAMES: dict[int, list[str]] = {_seen(setter): [] for setter in (*_ENVIRONMENT, *_OTHERS)}
for _name, _setting in SETTINGS.items():
    for _one in dict.fromkeys(_setting.setters):
        _NAMES.setdefault(_seen(_one), []).append(_name)

_EDITS_ENVIRONMENT = frozenset(map(_seen, _ENVIRONMENT))


def sets(function: types.CodeType | Any) -> bool:
    """Whether a call changes a setting. function: a builtin function, or the code of one of Python's."""
    return id(function) in _NAMES


class Settings:
    """What watched code has set, as it was before."""

    def __init__(self) -> None:
        self.are_any = False
        """Whether it has set something, be it to what it was."""
        self._kept: dict[str, Any] = {}
        self._environment: dict[str, str | None] = {}

    def note(self, function: types.CodeType | Any, arguments: dict[str, Any]) -> None:
        """Called before a function that `sets` runs. arguments: of one of Python's, by their names."""
        self.are_any = True
        for name in _NAMES[id(function)]:
            if name not in self._kept:
                with contextlib.suppress(Exception):  # what this torch does not have, or was set in two ways
                    self._kept[name] = SETTINGS[name].read()
        if id(function) in _EDITS_ENVIRONMENT:
            key = arguments["key"]
            self._environment.setdefault(key, os.environ.get(key))

    def put_back(self) -> None:
        """All are what they were before."""
        for name, value in self._kept.items():
            with contextlib.suppress(Exception):
                if SETTINGS[name].read() != value:
                    SETTINGS[name].write(value)
        for key, text in self._environment.items():
            if text is None:
                os.environ.pop(key, None)
            elif os.environ.get(key) != text:
                os.environ[key] = text
