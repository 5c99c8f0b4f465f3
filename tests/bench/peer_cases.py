# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Cases as the suites of peers have them."""

from __future__ import annotations

from sparsekernels.bench.suite import Case, Selection


def pruned_case(name: str, batch: int, percent: float, pass_: str = "forward", mask: str = "random") -> Case:
    """A case of one pattern of zeros; the name of a linear layer has its shape."""
    kind, _, rest = name.partition("/")
    parameters = {"shape": tuple(map(int, rest.split("x")))} if kind == "linear" else {}
    case = Case("peers", name, pass_, "float32", "cpu", batch, False, parameters)
    (pruned,) = case.patterns(Selection(sparsities=(percent,), masks=(mask,)))
    return pruned
