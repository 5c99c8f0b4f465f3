#!/usr/bin/env bash
# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0

# Everything that only a GPU can tell, in under 9 minutes and without a network: builds the CUDA kernels with the torch
# and nvcc that are there, runs the whole matrix on the device for both GPU backends, then the benchmark suites, eager
# and under CUDA graphs. Leaves a log and the records in one folder. Usage: benchmarks/gpu.sh [PYTHON [FOLDER]]
set -uo pipefail
cd "$(dirname "$0")/.."
python=${1:-python3}
out=${2:-gpu-report}
mkdir -p "$out"
exec > >(tee "$out/log.txt") 2>&1
failed=0

step() { # SECONDS NAME COMMAND...: one step, its time and its outcome
  local limit=$1 name=$2 started=$SECONDS
  shift 2
  echo "== $name"
  if timeout "$limit" "$@"; then
    echo "== $name: done in $((SECONDS - started)) s"
  else
    echo "== $name: FAILED after $((SECONDS - started)) s"
    failed=1
  fi
}

export PYTHONUNBUFFERED=1 PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" SPARSEKERNELS_REQUIRE_KERNELS=1
export CMAKE_ARGS="-DSPARSEKERNELS_CUDA=on -DSPARSEKERNELS_CUDA_ARCHITECTURES=native ${CMAKE_ARGS:-}"
"$python" -c "import torch; assert torch.cuda.is_available(), 'torch sees no GPU'" || exit 2

workers=()
"$python" -c "import xdist" 2>/dev/null && workers=(-n 8)

step 150 build "$python" setup.py --quiet build_ext --inplace
step 30 info "$python" -m sparsekernels info
step 200 tests "$python" -m pytest -q -p no:cacheprovider "${workers[@]}" tests/ops/rms_norm/test_rms_norm.py tests/ops/rms_norm/test_rms_norm_torch.py -k "cuda"
step 120 "benchmark rmsnorm" "$python" -m sparsekernels bench rmsnorm --device cuda --json "$out/rmsnorm.jsonl" \
  --markdown "$out/rmsnorm.md" --plot "$out/rmsnorm.png"
step 100 "benchmark openelm" "$python" -m sparsekernels bench openelm --device cuda --json "$out/openelm.jsonl" \
  --markdown "$out/openelm.md"
echo "== total: $SECONDS s, in $out"
exit $failed
