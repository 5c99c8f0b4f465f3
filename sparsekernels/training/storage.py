# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What makes an experiment repeatable: seeds, files that are replaced atomically, check sums, masks as bits."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import hashlib
import math
import numbers
import os
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from .bits import packed, unpacked

State = dict[str, Any]
"""A copy of a state_dict, on the CPU."""


def check_integer(where: str, name: str, value: object, least: int = 0) -> int:
    """Return it; raise unless it is an int from `least` on."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{where}: expected {name} to be an int, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{where}: expected {name} from {least} on, got {value}")
    return int(value)


def derived(seed: int, *parts: object) -> int:
    """A seed of 63 bits that depends on all parts, alike on every machine."""
    text = "/".join(map(str, (seed, *parts)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The generators of torch, Python and, where it is imported, numpy start from a seed; afterwards they go on."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    numpy = sys.modules.get("numpy")
    python, of_numpy = random.getstate(), numpy.random.get_state() if numpy else None
    try:
        with torch.random.fork_rng(devices=list(devices)):
            torch.manual_seed(seed)
            random.seed(seed)
            if numpy:
                numpy.random.seed(seed % 2**32)
            yield
    finally:
        random.setstate(python)
        if numpy:
            numpy.random.set_state(of_numpy)


def build(op: str, factory: Callable[[], nn.Module], seed: int) -> nn.Module:
    """The model that `factory` makes from a seed, with parameters and buffers on the CPU."""
    if not callable(factory) or isinstance(factory, nn.Module):
        raise TypeError(f"{op}: expected factory to be a function that makes a model, got {type(factory).__name__}")
    with seeded(seed):
        model = factory()
    if not isinstance(model, nn.Module):
        raise TypeError(f"{op}: expected factory to make a torch.nn.Module, got {type(model).__name__}")
    for name, tensor in _tensors(model):
        if tensor.device.type != "cpu":
            raise ValueError(
                f"{op}: expected factory to make parameters on the CPU, whose draws are the same on every machine, got"
                f" {name!r} on {tensor.device}; the model is moved afterwards"
            )
    return model


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def checksum(model: nn.Module) -> str:
    """SHA-256 of names, dtypes, shapes and bytes of all parameters and buffers, on the CPU, of any strides."""
    found = hashlib.sha256()
    for name, tensor in _tensors(model):
        found.update(f"{name}\n{tensor.dtype}\n{list(tensor.shape)}\n".encode())
        found.update(bytes_of(tensor))
    return found.hexdigest()


def bytes_of(tensor: Tensor) -> bytes:
    """Of its elements, in their order, whatever the strides."""
    whole = tensor.detach().cpu().contiguous()
    size = whole.numel() * whole.element_size()
    return ctypes.string_at(whole.data_ptr(), size) if size > 0 else b""


def snapshot(op: str, model: nn.Module) -> State:
    """A copy of its state_dict on the CPU."""
    state: State = {}
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor):
            state[name] = value.detach().to("cpu", copy=True)
        else:  # what a module adds by get_extra_state
            state[name] = copy.deepcopy(plain(op, f"extra state {name!r} of the model", value))
    return state


def plain(op: str, name: str, value: Any) -> Any:
    """The same of Python's own types and tensors on the CPU, which a file can hold and anyone can read safely."""
    if value is None or type(value) in (bool, str):
        return value
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if isinstance(value, Mapping):
        return {plain(op, name, key): plain(op, name, one) for key, one in value.items()}
    if hasattr(value, "tobytes") and hasattr(value, "dtype"):  # of numpy
        if value.dtype.kind == "b" and value.shape == ():
            return bool(value)
        if value.dtype.kind in "biuf":
            return torch.from_numpy(value.astype(value.dtype.newbyteorder("="), order="C"))
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        items = [plain(op, name, one) for one in value]
        return tuple(items) if isinstance(value, tuple) else items
    raise TypeError(
        f"{op}: expected {name} to be made of None, bool, numbers, str, tensors, lists, tuples and dicts, which can be"
        f" saved, got {type(value).__name__} in it"
    )


_MARK = b"sparsekernels SHA-256 "
_COMMENT = len(_MARK) + 64
"""A zip file's comment, at its end: the mark, and the hexadecimal digest of all before."""


def is_finite(tensor: Tensor) -> bool:
    """Whether it has no NaN and no infinity; of integers, and what is not strided, always."""
    if tensor.layout != torch.strided or not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    return bool((tensor.float() if tensor.element_size() == 1 else tensor).isfinite().all())


def save_atomically(value: object, path: Path) -> None:
    """Write a file that is there as a whole or, however the process ends, as it was before.

    It is one of torch.save with a check sum at its end, which `read` looks at and torch.load does not.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w+b") as file:
            torch.save(value, file)
            file.seek(-22, os.SEEK_END)
            if not file.read().startswith(b"PK\5\6"):  # where zip files end that have no comment
                raise RuntimeError("save_atomically: expected torch.save to write a zip file without a comment")
            file.seek(-2, os.SEEK_END)
            file.write(_COMMENT.to_bytes(2, "little"))
            file.write(_MARK + _digest(file, file.tell()).encode())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":  # elsewhere folders cannot be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _digest(file: IO[bytes], size: int) -> str:
    """SHA-256 of the first bytes of a file, which is then behind them."""
    found = hashlib.sha256()
    file.seek(0)
    while size > 0 and (part := file.read(min(size, 1 << 20))):
        found.update(part)
        size -= len(part)
    return found.hexdigest()


def read(op: str, path: Path, device: torch.device | str = "cpu") -> Any:
    """What `save_atomically` wrote, every bit of it.

    Raises:
        OSError: Where the file cannot be opened.
        ValueError: For a file that is damaged, or was written by something else.
    """
    with path.open("rb") as file:
        try:
            size = file.seek(0, os.SEEK_END) - _COMMENT
            file.seek(max(0, size))
            comment = file.read()
            if not comment.startswith(_MARK):
                raise ValueError("it has no check sum at its end")
            if _digest(file, size).encode() != comment[len(_MARK) :]:
                raise ValueError("its content is not what its check sum is of")
            file.seek(0)
            return torch.load(file, map_location=device, weights_only=True)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise ValueError(
                f"{op}: expected {path} to be a file of ours, got one that cannot be read: {error}"
            ) from error


def load(op: str, path: Path, kind: str, *keys: str) -> dict[str, Any]:
    """What `save_atomically` wrote, if that was a dict of this `kind` that has these keys."""
    found = read(op, path)
    if not isinstance(found, dict) or found.get("kind") != kind:
        raise ValueError(f"{op}: expected {path} to hold a {kind}, got something else")
    for key in keys:
        if key not in found:
            raise ValueError(f"{op}: expected {path} to hold a {kind} with {key!r}, got one without")
    return found


def unpack(op: str, bits: object, shape: Sequence[int]) -> Tensor:
    """The mask of a shape that `packed` made bits of; raises where they are not of one."""
    size = -(-math.prod(shape) // 8)
    if not isinstance(bits, Tensor) or bits.dtype != torch.uint8 or tuple(bits.shape) != (size,):
        raise ValueError(f"{op}: expected {size} bytes for a mask of shape {list(shape)}, got something else")
    found = unpacked(bits, torch.Size(shape))
    if not torch.equal(packed(found), bits):
        raise ValueError(f"{op}: expected no bits behind a mask of shape {list(shape)}, got some")
    return found
