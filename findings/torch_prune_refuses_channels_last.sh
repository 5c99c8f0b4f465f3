#!/usr/bin/env bash
# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0

# torch 2.13.0: torch.nn.utils.prune's unstructured methods raise RuntimeError ("view size is not compatible") for the
# weight of a convolution in torch.channels_last, the layout in which convolutions train faster on many processors.
# They call view(-1) on the scores of the weight. In the contiguous layout the same call works, and so does moving the
# pruned model to channels_last afterwards. Structured pruning of the same weight does not raise.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/python -m pip install --quiet torch==2.13.0 numpy==2.3.5
cat >channels_last.py <<'PY'
import torch
from torch import nn
from torch.nn.utils import prune

for method in (prune.random_unstructured, prune.l1_unstructured):
    layer = nn.Conv2d(16, 16, 3).to(memory_format=torch.channels_last)
    try:
        method(layer, "weight", amount=0.5)
    except RuntimeError as error:
        print(f"{method.__name__}: {error}")
        assert "view size is not compatible" in str(error)
    else:
        raise AssertionError("it used to raise")
    layer = nn.Conv2d(16, 16, 3)
    method(layer, "weight", amount=0.5)
    layer.to(memory_format=torch.channels_last)
    layer(torch.randn(1, 16, 8, 8))
    print(f"{method.__name__}, then channels_last: {float((layer.weight == 0).float().mean()):.2f} zeros")

layer = nn.Conv2d(16, 16, 3).to(memory_format=torch.channels_last)
prune.ln_structured(layer, "weight", amount=0.5, n=2, dim=0)
print(f"ln_structured: {float((layer.weight == 0).float().mean()):.2f} zeros")
PY
env/bin/python channels_last.py
