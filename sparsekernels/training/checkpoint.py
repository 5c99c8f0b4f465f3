# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that are there as a whole or not at all, from which a run goes on with the same bits."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from .base import SparseTraining
from .storage import read, save_atomically

_VERSION = 1


def save_checkpoint(path: str | os.PathLike[str], **parts: Any) -> None:
    """Write a checkpoint, replacing the last one at once: whoever is killed meanwhile finds that one.

        save_checkpoint("run.pt", model=model, optimizer=optimizer, sparsifier=sparsifier, scheduler=scheduler, epoch=3)

    Written are the states of random number generators as well: of torch on all devices, of Python, and of NumPy where
    it is imported.

    Args:
        path: Of the file. Its folder has to be there.
        **parts: By names of your choice: what has a state_dict(), or plain values and tensors.

    Raises:
        TypeError: For a part that torch.load could not read with weights_only=True.
        OSError: Where the file cannot be written. Then the last one is as it was.
    """
    values = {name: _state_of(part) for name, part in parts.items()}
    for name, value in values.items():
        _check_plain(name, value)
    save_atomically({"version": _VERSION, "parts": values, "generators": _generators()}, Path(path))


def load_checkpoint(path: str | os.PathLike[str], **parts: Any) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote into the same parts, random number generators included.

        values = load_checkpoint("run.pt", model=model, optimizer=optimizer, sparsifier=sparsifier, scheduler=scheduler)
        first_epoch = values["epoch"]

    Args:
        path: Of the file.
        **parts: By the names that they were saved under: what has a load_state_dict(). What is saved and not named here
            is returned.

    Returns:
        The other parts, by their names.

    Raises:
        OSError: Where the file cannot be opened.
        ValueError: For a file that is damaged or no checkpoint, lacks a part, or is of another model, optimizer or
            algorithm. Then nothing has changed.
    """
    found = read("load_checkpoint", Path(path))
    if not isinstance(found, dict) or found.get("version") != _VERSION or "parts" not in found:
        raise ValueError(f"load_checkpoint: expected what save_checkpoint wrote in {os.fspath(path)!r}")
    states = found["parts"]
    for name, part in parts.items():
        if name not in states:
            there = ", ".join(map(repr, states))
            raise ValueError(f"load_checkpoint: expected a checkpoint with {name!r}, got one with {there}")
        _check(name, part, states[name])
    for name, part in parts.items():
        part.load_state_dict(states[name])
    _set_generators(found["generators"])
    return {name: state for name, state in states.items() if name not in parts}


def _state_of(part: Any) -> Any:
    return part.state_dict() if callable(getattr(part, "state_dict", None)) else part


def _check_plain(name: str, value: Any) -> None:
    """Raise TypeError for what torch.load does not read with weights_only=True."""
    if value is None or isinstance(value, bool | int | float | str | bytes | torch.Tensor | torch.dtype | torch.Size):
        return
    if isinstance(value, Mapping):
        for key, one in value.items():
            _check_plain(name, key)
            _check_plain(name, one)
        return
    if type(value) in (list, tuple, set):
        for one in value:
            _check_plain(name, one)
        return
    raise TypeError(f"save_checkpoint: expected {name!r} of tensors and plain values, got {type(value).__name__} in it")


def _check(name: str, part: Any, state: Any) -> None:
    """Raise ValueError where a part could not take over a state, before any does."""
    if not callable(getattr(part, "load_state_dict", None)):
        raise ValueError(f"load_checkpoint: expected {name!r} to have load_state_dict(), got {type(part).__name__}")
    if isinstance(part, SparseTraining):
        part.check_state_dict(state)
    elif isinstance(part, nn.Module):
        own = part.state_dict()
        if not isinstance(state, Mapping) or own.keys() != state.keys():
            odd = sorted(own.keys() ^ (state.keys() if isinstance(state, Mapping) else set()))
            raise ValueError(
                f"load_checkpoint: expected {name!r} of the same architecture, got a difference in {odd[:3]}"
            )
        for key, value in own.items():
            shape = getattr(state[key], "shape", None)
            if shape != getattr(value, "shape", None):
                raise ValueError(
                    f"load_checkpoint: expected {name!r} of the same architecture, {key!r} of shape"
                    f" {list(value.shape)}, got {None if shape is None else list(shape)}"
                )
    elif isinstance(part, Optimizer):
        own_sizes = [len(group["params"]) for group in part.param_groups]
        sizes = [len(group["params"]) for group in state["param_groups"]]
        kinds = [set(one[0]) - {"initial_lr"} for one in (part.param_groups, state["param_groups"]) if one]
        if len(kinds) == 2 and kinds[0] != kinds[1]:
            odd = sorted(kinds[0] ^ kinds[1])
            raise ValueError(f"load_checkpoint: expected {name!r} of the same class, got a difference in {odd[:4]}")
        if sizes != own_sizes:
            raise ValueError(f"load_checkpoint: expected {name!r} of groups of {own_sizes} parameters, got {sizes}")


def _generators() -> dict[str, Any]:
    version, numbers, gauss = random.getstate()
    numpy = sys.modules.get("numpy")
    of_numpy = None
    if numpy is not None:
        kind, keys, position, has_gauss, cached = numpy.random.get_state()
        of_numpy = [str(kind), [int(key) for key in keys], int(position), int(has_gauss), float(cached)]
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": [version, list(numbers), gauss],
        "numpy": of_numpy,
    }


def _set_generators(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["torch"].cpu())
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([one.cpu() for one in state["cuda"]])
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    numpy = sys.modules.get("numpy")
    if numpy is not None and state["numpy"] is not None:
        kind, keys, position, has_gauss, cached = state["numpy"]
        numpy.random.set_state((kind, keys, position, has_gauss, cached))
