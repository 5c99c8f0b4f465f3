# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The table of fingerprint. An implementation is a class `Fingerprint`.

The compiled one (csrc/fingerprint) hashes memory by XXH3, on all threads. It takes tensors of any dtype and strides; of
those that have left the CPU it takes the place alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ...checks import DTYPES
from .._operation import Operation
from .._release import release_with
from . import reference

FINGERPRINT = Operation("fingerprint", reference, devices=("cpu",), dtypes=DTYPES)

_make = FINGERPRINT.define("_make_fingerprint(Tensor[] tensors) -> int")
_value = FINGERPRINT.define("_fingerprint(int fingerprint, bool content) -> int")
_free = FINGERPRINT.define("_free_fingerprint(int fingerprint) -> ()")


class Fingerprint:
    """As that of the reference; it is the compiled library's, and known by a number."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._number: int = _make(list(tensors))
        release_with(self, _free, self._number)

    def value(self, content: bool) -> int:
        number: int = _value(self._number, content)
        return number


FINGERPRINT.compiled.Fingerprint = Fingerprint
