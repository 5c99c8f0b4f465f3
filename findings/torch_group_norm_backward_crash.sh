#!/usr/bin/env bash
# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0

# torch 2.13.0, CPU: the backward pass of GroupNorm ends the process with a segmentation fault where its input is in
# channels_last layout and needs no gradient, but weight or bias do: the first GroupNorm behind frozen layers. Contiguous
# inputs are right, and so is channels_last with a gradient to the input.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/python -m pip install --quiet torch==2.13.0 numpy==2.3.5
cat >group_norm.py <<'PY'
import sys

import torch

x = torch.randn(3, 6, 8, 8, requires_grad="input" in sys.argv)
if "channels_last" in sys.argv:
    x = x.contiguous(memory_format=torch.channels_last)
torch.nn.GroupNorm(1, 6)(x).sum().backward()
PY
env/bin/python -c "import torch; print('torch', torch.__version__)"
env/bin/python group_norm.py
env/bin/python group_norm.py channels_last input
status=0
env/bin/python group_norm.py channels_last || status=$?
echo "channels_last without a gradient to the input: exit status $status"
[ $status -eq 139 ] || { echo "it was a segmentation fault"; exit 1; }
