# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What a graph looks at in each call: `python benchmarks/graph_checks.py [NETWORK BATCH [SPARSITY]]`, on two threads.

Default resnet-50 16 and vgg16-d 64, 0.9. Microseconds without contents, of a graph that looks at contents and of one
that does not (`frozen=True`, which looks at torch's versions instead); with contents, and that as a share of the whole
call. Each is the median of interleaved rounds between whole calls, which empty the caches, but for those "at once": the
least of many without a call between.
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
        kinds = images.dtype, images.device, torch.contiguous_format
        graphs = [InferenceGraph(model, *kinds, chains=True, frozen=frozen) for frozen in (True, False)]
        frozen, plan = (graph.prepare() for graph in graphs)
        places = InferenceGraph(model, *kinds, chains=True).prepare()
        tensors = places.source._tensors
        tensors._content, tensors._value = False, tensors._fingerprint.value(False)
        whole_call = functools.partial(graphs[1], images)
        few = [functools.partial(check, one) for one in (places, frozen)]
        with torch.no_grad():
            whole_call()
            rounds = []
            for _ in range(11):
                of_few = []
                for one in few:
                    whole_call()
                    of_few.append(seconds(one))
                rounds.append([*of_few, seconds(functools.partial(check, plan)), seconds(whole_call)])
            at_once = [min(seconds(one, 20) for _ in range(50)) * 1e6 for one in few]
        *without, within, whole = map(statistics.median, zip(*rounds, strict=True))
        print(
            f"{name}, batch {batch}: without contents {without[0] * 1e6:.0f} us (frozen {without[1] * 1e6:.0f}),"
            f" at once {at_once[0]:.0f} ({at_once[1]:.0f}); with them {within * 1e3:.2f} ms,"
            f" {within / whole:.1%} of a call of {whole * 1e3:.1f} ms"
        )


if __name__ == "__main__":
    main()
