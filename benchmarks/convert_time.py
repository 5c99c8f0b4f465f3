# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""How long `convert` takes: `python benchmarks/convert_time.py [NETWORK [BATCH [SPARSITY [LIMIT]]]]`, seconds.

Default resnet-50, 16, 0.9, inf: random zeros in every layer, and no `max_seconds`. To compare two trees, run it in
turn with PYTHONPATH set to each, on a machine that does nothing else.
"""

from __future__ import annotations

import sys
import time

import torch

import sparsekernels as sk
from sparsekernels.bench.models import MODELS
from sparsekernels.pruning import prune_


def main() -> None:
    name, batch, sparsity, limit = [*sys.argv[1:], *("resnet-50", "16", "0.9", "inf")[len(sys.argv) - 1 :]]
    torch.manual_seed(0)
    model, images = MODELS[name].make().eval(), MODELS[name].images(int(batch))
    prune_(model, "random", float(sparsity))
    with torch.inference_mode():
        model(images)  # what torch does at its first call is no part of it
    start = time.perf_counter()
    report = sk.convert(model, images, max_seconds=float(limit))
    seconds = time.perf_counter() - start
    converted = sum(row.decision != "dense" for row in report.layers)
    print(f"{name}, batch {batch}: {seconds:.1f} s, {converted} of {len(report.layers)} layers converted")
    print(report.summary())


if __name__ == "__main__":
    main()
