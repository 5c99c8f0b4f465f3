#!/usr/bin/env bash
# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0

# ModelOpt 0.47.0 with torch 2.13.0: modelopt.torch.sparsity.export makes new Parameters of all weights that its layers
# have, which require gradients whatever the old ones did. An optimizer that was made before goes on moving the old ones,
# so that the exported weights do not train, and weights that were frozen no longer are. Its documentation says to train
# first; nothing is raised.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/python -m pip install --quiet torch==2.13.0 numpy==2.3.5 nvidia-modelopt==0.47.0 huggingface_hub==2.4.0 requests==2.34.2
env/bin/python - <<'PY'
import modelopt.torch.sparsity as mts
import torch
from torch import nn

model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
model[2].weight.requires_grad_(False)
optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=0.1)
held = model[0].weight
mts.sparsify(model, mode="sparse_magnitude")
assert model[0]._parameters["weight"] is held
mts.export(model)
print("the same parameter:", model[0].weight is held, "- still frozen:", not model[2].weight.requires_grad)
assert model[0].weight is not held
assert model[2].weight.requires_grad
before = model[0].weight.detach().clone()
model(torch.randn(8, 64)).square().mean().backward()
optimizer.step()
print("a step of the optimizer moved the weight:", not torch.equal(before, model[0].weight))
assert torch.equal(before, model[0].weight)
PY
