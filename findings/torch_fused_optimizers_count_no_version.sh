#!/usr/bin/env bash
# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0

# torch 2.13.0, CPU: a step of an optimizer with fused=True (SGD, Adam, AdamW, Adagrad) changes parameters in place, and
# leaves their version counters as they were; without fused each step counts at least one. So autograd does not notice a
# weight that changed between a forward and its backward pass, and what is made of a weight (folded, packed, quantized)
# and known by the version is silently of the weight before. Who keeps such things has to compare contents.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/python -m pip install --quiet torch==2.13.0 numpy==2.3.5
env/bin/python - <<'PY'
import torch

print("torch", torch.__version__)
for kind in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad):
    for fused in (False, True):
        weight = torch.nn.Parameter(torch.ones(4))
        weight.grad = torch.ones(4)
        before = weight._version
        kind([weight], lr=0.1, fused=fused).step()
        assert not torch.equal(weight, torch.ones(4))
        counted = weight._version - before
        print(f"{kind.__name__}, fused={fused}: {counted} versions counted")
        assert (counted == 0) == fused, "only fused steps counted none"
PY
