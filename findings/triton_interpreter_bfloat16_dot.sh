#!/usr/bin/env bash
# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0

# Triton 3.6.0 and 3.9.0, in the interpreter (TRITON_INTERPRET=1), with torch 2.13.0 and numpy 2.3.5: tl.dot of bfloat16
# operands multiplies their bit patterns as 16-bit integers, as the interpreter keeps bfloat16 in integers of numpy and
# dot converts 8-bit floats alone. Ones times ones over a depth of 16 give 16 * 0x3F80 * 0x3F80, which is 4228120576, not
# 16, without an error or a warning; float16 and float32 are right. A conversion from float32 to bfloat16 drops bits
# where a GPU rounds to the nearest: 1 + 3 * 2^-9 gives 1.0, not 1.0078125. Whoever tests bfloat16 kernels in the
# interpreter has to convert operands to float32 before, and round by hand after.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
cat >dot.py <<'PY'
import torch
import triton
import triton.language as tl


@triton.jit
def product(a, b, c, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    tl.store(c + i, tl.dot(tl.load(a + i), tl.load(b + i)))


@triton.jit
def narrow(x, y, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    tl.store(y + i, tl.load(x + i).to(tl.bfloat16))


for dtype in (torch.float32, torch.float16, torch.bfloat16):
    a, c = torch.ones(16, 16, dtype=dtype), torch.zeros(16, 16)
    product[(1,)](a, a, c, SIZE=16)
    print(f"{dtype}: ones @ ones of depth 16 is {c[0, 0].item():.0f}")
x, y = torch.full((16,), 1 + 3 * 2.0**-9), torch.zeros(16, dtype=torch.bfloat16)
narrow[(1,)](x, y, SIZE=16)
print(f"1 + 3 * 2^-9 in bfloat16: torch {x.bfloat16()[0].item()}, interpreter {y[0].item()}")
PY
for version in 3.6.0 3.9.0; do
  python3 -m venv --clear env
  env/bin/python -m pip install --quiet torch==2.13.0 numpy==2.3.5
  env/bin/python -m pip install --quiet triton==$version
  echo "triton $version"
  TRITON_INTERPRET=1 env/bin/python dot.py | tee found
  grep -q "float32: ones @ ones of depth 16 is 16$" found
  grep -q "torch.float16: ones @ ones of depth 16 is 16$" found
  grep -q "bfloat16: ones @ ones of depth 16 is 4228120576$" found
  grep -q "torch 1.0078125, interpreter 1.0$" found
done
