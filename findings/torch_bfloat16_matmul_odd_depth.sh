#!/usr/bin/env bash
# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0

# torch 2.13.0, CPU with AMX: of a bfloat16 product a @ b whose depth is odd, one infinity or NaN at the beginning of a
# row of a makes the row before it NaN as well: pairs of elements are read, of which the last has its second one from the
# next row, times zero. With an even depth, in float32, and without AMX (ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16) each row is
# its own. oneDNN's issue 5717 is about its cause, mended there in July 2026: torch 2.13.0 has an older copy. Seen on an
# Intel Xeon with AMX, one thread; on other processors there is nothing to see. Whoever tests that an operation reads
# nothing that is masked cannot take that product for the right result.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
if ! grep -q amx_bf16 /proc/cpuinfo; then
  echo "this processor has no AMX: nothing to see"
  exit 0
fi
python3 -m venv env
env/bin/python -m pip install --quiet torch==2.13.0 numpy==2.3.5
cat >rows.py <<'PY'
import torch

torch.set_num_threads(1)


def rows_with_nan(depth, dtype, value):
    torch.manual_seed(0)
    a, b = torch.randn(64, depth).to(dtype), torch.randn(depth, 64).to(dtype)
    a[10, 0] = value
    return (a @ b).isfinite().logical_not().any(1).nonzero().flatten().tolist()


for value in (float("nan"), float("inf")):
    for depth, dtype in ((63, torch.bfloat16), (64, torch.bfloat16), (63, torch.float32)):
        print(f"{value} in row 10, depth {depth}, {dtype}: not finite are rows {rows_with_nan(depth, dtype, value)}")
PY
env/bin/python rows.py | tee found
[ "$(grep -c 'depth 63, torch.bfloat16: not finite are rows \[9, 10\]' found)" = 2 ]
[ "$(grep -c 'rows \[10\]' found)" = 4 ]
echo "the same without AMX:"
ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 env/bin/python rows.py | tee found
[ "$(grep -c 'rows \[10\]' found)" = 6 ]
