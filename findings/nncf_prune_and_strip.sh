#!/usr/bin/env bash
# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0

# NNCF 3.4.0 with torch 2.13.0, three things about nncf.prune and nncf.strip:
# - nncf.prune on a torch.nn.Sequential raises NotImplementedError, since it adds its hooks as a submodule, which such a
#   model then calls; the submodule stays, so that the model cannot be called any more.
# - nncf.strip imports torchao, which is none of NNCF's requirements: without it, ModuleNotFoundError.
# - strip_format=IN_PLACE, which alone writes the zeros, sets requires_grad of the pruned weights to False: who trains on
#   trains biases and norms alone, without a word. `forward` stays replaced.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/python -m pip install --quiet torch==2.13.0 numpy==2.3.5 nncf==3.4.0
cat >prune.py <<'PY'
import sys

import nncf
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 64)

    def forward(self, x):
        return self.layer(x)


x = torch.randn(2, 64)
kwargs = {"mode": nncf.PruneMode.UNSTRUCTURED_MAGNITUDE_LOCAL, "ratio": 0.9, "examples_inputs": x}
model = nncf.prune(Net().eval(), **kwargs)
if sys.argv[1] == "without torchao":
    sequential = nn.Sequential(nn.Linear(64, 64), nn.ReLU()).eval()
    for call in (lambda: nncf.prune(sequential, **kwargs), lambda: sequential(x)):
        try:
            call()
        except NotImplementedError as error:
            print(f"Sequential: {error}")
        else:
            raise AssertionError("it used to raise")
    try:
        nncf.strip(model, do_copy=False, strip_format=nncf.StripFormat.IN_PLACE)
    except ModuleNotFoundError as error:
        print(f"strip: {error}")
    else:
        raise AssertionError("it used to need torchao")
else:
    assert model.layer.weight.requires_grad
    model = nncf.strip(model, do_copy=False, strip_format=nncf.StripFormat.IN_PLACE)
    print("zeros:", float((model.layer.weight == 0).float().mean()), "forward:", type(model.forward).__name__)
    print("requires_grad:", {name: one.requires_grad for name, one in model.named_parameters()})
    assert not model.layer.weight.requires_grad
    assert model.layer.bias.requires_grad
    assert type(model.forward).__name__ == "ForwardWithHooks"
PY
env/bin/python prune.py "without torchao"
env/bin/python -m pip install --quiet --no-deps torchao==0.18.0
env/bin/python prune.py "with torchao"
