#!/usr/bin/env bash
# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0

# sparsimony 0.1.0: prepare() puts a function of its own in the place of the optimizer's `step`, which multiplies momentum
# by the masks. It asks the layers for their parametrizations, which squash_mask() takes away, so that the optimizer's
# next step changes the weights and then raises AttributeError: who trains on after squash_mask() needs a new optimizer.
# (`del optimizer.step` gives the old one its own step back.)
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/python -m pip install --quiet torch==2.13.0 numpy==2.3.5
env/bin/python -m pip install --quiet --no-deps sparsimony==0.1.0
env/bin/python - <<'PY'
import torch
from sparsimony.distributions.base import UniformDistribution
from sparsimony.dst.rigl import RigL
from sparsimony.schedulers.base import CosineDecayScheduler
from torch import nn

model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
rigl = RigL(CosineDecayScheduler(0.3, 100, 2), UniformDistribution(), optimizer, sparsity=0.9)
rigl.prepare(model, [{"tensor_fqn": "0.weight"}, {"tensor_fqn": "2.weight"}])


def backward():
    optimizer.zero_grad()
    model(torch.randn(8, 64)).square().mean().backward()


backward()
optimizer.step()
rigl.step()
rigl.squash_mask()
backward()
before = model[0].weight.detach().clone()
try:
    optimizer.step()
except AttributeError as error:
    print(f"a step after squash_mask: {error}")
else:
    raise AssertionError("it used to raise")
assert not torch.equal(before, model[0].weight)
print("the weights were changed before")
del optimizer.step
backward()
optimizer.step()
PY
