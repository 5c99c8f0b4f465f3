#!/usr/bin/env bash
# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0

# torch 2.13.0, CPU: torch.optim.swa_utils.AveragedModel(use_buffers=True) with an exponential average rounds integer
# buffers towards 0 after it has averaged them in floating point. A buffer of indices that is the same in the model and
# in its average does not stay the same: with a decay of 0.9999, 99 of the numbers 0 to 511 become one less, with 0.9
# 147, with 0.99 and 0.999 none. A model that reads such a buffer (relative positions of window attention, channels that
# pruning left) silently gathers other rows in its average. Who keeps indices has to keep them out of buffers.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/python -m pip install --quiet torch==2.13.0 numpy==2.3.5
env/bin/python - <<'PY'
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn


class Gather(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))
        self.register_buffer("index", torch.arange(512))

    def forward(self, x):
        return self.scale * x[self.index]


print("torch", torch.__version__)
for decay, expected in ((0.9999, 99), (0.9, 147), (0.999, 0), (0.99, 0)):
    for kind in ({"avg_fn": get_ema_avg_fn(decay)}, {"multi_avg_fn": get_ema_multi_avg_fn(decay)}):
        model = Gather()
        average = AveragedModel(model, use_buffers=True, **kind)
        for _ in range(3):
            average.update_parameters(model)
        off = average.module.index - model.index
        wrong = int((off != 0).sum())
        x = torch.arange(512.0)
        rows = int((average(x) != model(x)).sum())
        print(f"decay {decay}, {next(iter(kind))}: {wrong} of 512 indices changed, by {int(off.min())}; {rows} rows differ")
        assert wrong == rows == expected, f"expected {expected}"
        assert int(off.max()) == 0 and int(off.min()) == (-1 if expected else 0)
PY
