# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What is worked out of the tensors of a pattern, kept as long as they live and nobody writes to them.

Kernel operators take tensors and numbers, not the pattern that they are of, and a graph holds no more: what a call
needs beside them is found again by the tensors.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch.utils.weak import TensorWeakRef, WeakTensorKeyDictionary

from .._torch import is_captured, version_of

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class _Entry(Generic[T]):
    """What was made, of which tensors in which versions, and on which stream."""

    made: T
    others: tuple[TensorWeakRef, ...]  # all but the first
    states: tuple[tuple[int, int], ...]
    stream: torch.cuda.Stream | None

    def is_of(self, tensors: Sequence[Tensor]) -> bool:
        same = all(ref() is one for ref, one in zip(self.others, tensors[1:], strict=True))
        return same and self.states == _states_of(tensors)

    def is_for_others(self, tensors: Sequence[Tensor]) -> bool:
        """Whether it is of tensors that live, and not all of them these, in whatever state."""
        others = [ref() for ref in self.others]
        return None not in others and any(one is not of for one, of in zip(others, tensors[1:], strict=True))


def _states_of(tensors: Sequence[Tensor]) -> tuple[tuple[int, int], ...]:
    """By which contents are known: how often a tensor was written to, and where it is, which `data =` changes."""
    return tuple((version_of(one), one.data_ptr()) for one in tensors)


class Kept(Generic[T]):
    """A memory of what `make` returned for some tensors and a key. Threads and streams may share it.

    It holds the tensors weakly, and forgets with the first of them. They are told apart as objects, by where their
    memory is and by how often they were written to; torch does not count that of those made in inference mode.
    """

    def __init__(self, what: str, tensors_of: Callable[[T], Iterable[Tensor]]) -> None:
        """Keep nothing yet.

        what: in words, for the error of a captured graph.
        tensors_of: gives the tensors of what is made.
        """
        self._what, self._tensors_of = what, tensors_of
        self._of: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._lock = threading.Lock()

    def find(self, tensors: Sequence[Tensor], key: Hashable) -> T | None:
        """What there is for `tensors` and `key`, which `get` has made.

        Args:
            tensors: Of the pattern; at least one.
            key: As `get`'s.

        Returns:
            What was made, or None.
        """
        with self._lock:
            entries: Sequence[_Entry[T]] = self._of.get(tensors[0], {}).get(key, ())
        entry = next((one for one in entries if one.is_of(tensors)), None)
        if entry is None:
            return None
        self._used_here(entry)
        return entry.made

    def get(self, tensors: Sequence[Tensor], key: Hashable, make: Callable[[], T]) -> T:
        """What there is for `tensors` and `key`; what `make` returns where there is nothing.

        On a GPU the host waits for what was made, so that other streams may read it.

        Args:
            tensors: Of the pattern; at least one.
            key: What else `make` depends on.
            make: Works it out. Two threads may do so at once; one result is kept.

        Returns:
            What `make` returned, now or before.

        Raises:
            RuntimeError: Where nothing is kept and a CUDA graph is captured.
        """
        found = self.find(tensors, key)
        if found is not None:
            return found
        if is_captured(tensors[0]):
            raise RuntimeError(
                "sparsekernels: expected a call of the same kind, by this pattern and dtype, before a CUDA graph of one"
                f" is captured, got none: {self._what} are worked out there"
            )
        states = _states_of(tensors)  # before: what is written meanwhile may be in what is made, or not
        made, stream = make(), None
        if tensors[0].is_cuda:
            stream = torch.cuda.current_stream(tensors[0].device)
            stream.synchronize()
        with self._lock:
            of_first = self._of.get(tensors[0])
            if of_first is None:
                of_first = self._of[tensors[0]] = {}
            others = [one for one in of_first.get(key, ()) if one.is_for_others(tensors)]
            of_first[key] = (*others, _Entry(made, tuple(map(TensorWeakRef, tensors[1:])), states, stream))
        return made

    def _used_here(self, entry: _Entry[T]) -> None:
        """Its memory is not to be given away while another stream than that which made it may still read it."""
        if entry.stream is None:
            return
        stream = torch.cuda.current_stream(entry.stream.device)
        if stream != entry.stream and not torch.cuda.is_current_stream_capturing():
            for tensor in self._tensors_of(entry.made):
                tensor.record_stream(stream)
