#!/usr/bin/env bash
# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0

# torch 2.13.0: a copy of a parametrized module has the same class, made for the module, whose property `weight` computes
# the weight. torch.nn.utils.parametrize.remove_parametrizations takes that property off the class, so that of a module
# and its copy.deepcopy the one that keeps its parametrization has no weight any more: each call raises AttributeError
# (a backup, the average of torch.optim.swa_utils.AveragedModel). The sparsifiers of torch.ao.pruning, torchao and
# sparsimony end with it, in squash_mask. Who makes a mask permanent in one of several copies has to leave the class be.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/python -m pip install --quiet torch==2.13.0 numpy==2.3.5
env/bin/python - <<'PY'
import copy

import torch
from torch import nn
from torch.nn.utils import parametrize


class Masked(nn.Module):
    def forward(self, weight):
        return weight * (weight > 0)


print("torch", torch.__version__)
x = torch.randn(2, 4)
for first in ("the copy", "the module"):
    module = nn.Linear(4, 4)
    parametrize.register_parametrization(module, "weight", Masked())
    twin = copy.deepcopy(module)
    assert type(twin) is type(module)
    ended, other = (twin, module) if first == "the copy" else (module, twin)
    expected = other(x)
    parametrize.remove_parametrizations(ended, "weight")
    assert torch.equal(ended(x), expected)
    try:
        other(x)
    except AttributeError as error:
        print(f"after {first} was ended, the other one: {error}")
    else:
        raise AssertionError("it used to raise")
    assert parametrize.is_parametrized(other, "weight")
PY
