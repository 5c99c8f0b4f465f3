#!/usr/bin/env bash
# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0

# Builds the CPU kernels with the address and undefined-behavior sanitizers and runs the operations' tests on them, once
# for each instruction set that this processor has. Usage: tests/sanitize.sh PYTHON
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

export PATH="$(realpath "$(dirname "$python")"):$PATH"  # cmake and ninja
torch=$("$python" -c "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])")
cmake -G Ninja -S . -B "$work/build" -DTORCH_DIR="$torch" -DSPARSEKERNELS_CUDA=off \
  -DSPARSEKERNELS_SANITIZE=address,undefined >"$work/log"
cmake --build "$work/build" >>"$work/log" 2>&1 || { cat "$work/log"; exit 1; }

echo "sanitizers over tests/cpp"
cmake -G Ninja -S . -B "$work/cpp" -DSPARSEKERNELS_CPP_TESTS=on -DSPARSEKERNELS_SANITIZE=address,undefined >"$work/log"
cmake --build "$work/cpp" >>"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
"$work/cpp/tests/cpp/cpp_tests"

# A copy of the package and its tests, so that the sanitized library never stands in for the real one.
cp -r sparsekernels tests pyproject.toml "$work"
mkdir -p "$work/sparsekernels/lib"
cp "$work/build/libsparsekernels_cpu.so" "$work/sparsekernels/lib/"

# Python itself is not built with the sanitizers: their run-time library goes first, and Python's own leaks do not count.
python=$(realpath -s "$python")
cd "$work"
export LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so) $(gcc -print-file-name=libstdc++.so)"
export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
export PYTHONPATH="$work" SPARSEKERNELS_CPU_ISA
sparse=(tests/ops/sparse_conv2d/test_sparse_{conv2d,bits,derivatives,nan}.py
  tests/ops/sparse_conv2d/test_{rows_alike,elements}.py tests/ops/sparse_conv2d/test_block_{kernels,weight_gradient}.py)
for SPARSEKERNELS_CPU_ISA in $("$python" -c "from sparsekernels import _library; print(*_library.supported_isas())"); do
  echo "sanitizers over $SPARSEKERNELS_CPU_ISA"
  "$python" -c "import sparsekernels; assert sparsekernels.__file__.startswith('$work')"
  "$python" -m pytest -q -x -p no:cacheprovider --capture=sys tests/ops/rms_norm/test_rms_norm.py \
    tests/ops/rms_norm/test_rms_norm_{torch,refused,backends,module}.py "${sparse[@]}" \
    tests/ops/sparse_conv2d/test_jit.py tests/ops/sparse_conv2d/test_{plans,planned_gradients}.py \
    tests/ops/max_pool2d/test_max_pool2d.py tests/ops/packed_linear tests/ops/masked_matmul tests/ops/masked_attention tests/ops/layer_chain/test_layer_chain.py \
    tests/ops/test_fingerprint.py tests/ops/batch_norm/test_batch_norm_act.py \
    -k "not triton and not reference and not compile and not two_to_the_31 and not other_kernels"
done
echo "sanitizers over the best instruction set, no generated code"
unset SPARSEKERNELS_CPU_ISA
SPARSEKERNELS_CPU_JIT=0 "$python" -m pytest -q -x -p no:cacheprovider --capture=sys "${sparse[@]}" tests/ops/layer_chain/test_layer_chain.py \
  -k "not reference and not compile and not two_to_the_31 and not other_kernels"
