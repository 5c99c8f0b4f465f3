# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What a graph looks at in each call: `python benchmarks/graph_checks.py [NETWORK BATCH [SPARSITY]]`, on two threads.

Default resnet-50 16 and vgg16-d 64, 0.9. Microseconds without contents (`frozen=True`) and with them, and the latter as
a share of the whole call, each the median of interleaved rounds.
"""

from __future__ import annotations

import functools
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from sparsekernels.bench.models import MODELS
from sparsekernels.conversion.graph.inference import InferenceGraph
from sparsekernels.nn import SparseConv2d, SparseLinear
from sparsekernels.pruning import prunable, prune_

_SPARSE = {torch.nn.Conv2d: SparseConv2d, torch.nn.Linear: SparseLinear}


def seconds(call: Callable[[], object], count: int = 1) -> float:
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count


def check(plan: Any) -> bool:
    return plan.watch.unchanged() and not plan.is_stale()


def main() -> None:
    cases = [(sys.argv[1], int(sys.argv[2]))] if len(sys.argv) > 2 else [("resnet-50", 16), ("vgg16-d", 64)]
    torch.set_num_threads(2)
    for name, batch in cases:
        model, images = MODELS[name].make().eval(), MODELS[name].images(batch)
        prune_(model, "random", float(sys.argv[3]) if len(sys.argv) > 3 else 0.9)
        for path, layer in prunable(model):
            owner, _, key = path.rpartition(".")
            kind = _SPARSE.get(type(layer))
            if kind is not None and (layer.weight == 0).any():
                model.get_submodule(owner)._modules[key] = kind.sharing(layer)
        kinds = images.dtype, images.device
        graphs = [InferenceGraph(model, *kinds, True, chains=True, frozen=frozen) for frozen in (True, False)]
        plans = [graph.prepare() for graph in graphs]
        checks = [functools.partial(check, plan) for plan in plans]
        with torch.no_grad():
            graphs[1](images)
            calls = [(checks[0], 100), (checks[1], 1), (functools.partial(graphs[1], images), 1)]
            rounds = [[seconds(call, count) for call, count in calls] for _ in range(11)]
        without, within, whole = map(statistics.median, zip(*rounds, strict=True))
        print(
            f"{name}, batch {batch}: {without * 1e6:.0f} us without contents, {within * 1e3:.2f} ms with them,"
            f" {within / whole:.1%} of a call of {whole * 1e3:.1f} ms"
        )


if __name__ == "__main__":
    main()
