#!/usr/bin/env bash
# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0

# Tests that take long, or need another compiler, torch or Python, as legs that run one by one:
#   tests/legs.sh all | NAME...
# Each prints PASS, SKIP or FAIL and why. The exit status is 1 where a leg failed, 77 where none of them could run, else
# 0. They use the environment that `make test` made; those of the wheel's legs are in build/legs, of several GB each
# where pip finds a torch with CUDA. Settings: PYTHON (of another environment), PYTHON310 (where Python 3.10 is), NEWEST
# (a version of torch; default what pip finds), CLANG (the compiler; default clang++), PYTEST_ARGS.
set -uo pipefail
cd "$(dirname "$0")/.."
root=$PWD
python=${PYTHON:-$root/.venv/bin/python}
tools=$(dirname "$python")
work=$root/build/legs
kernels=(tests/ops tests/nn tests/formats tests/test_torch.py)
all=(avx2 portable jit-off many-steps many-updates cuda-emulation triton-architectures zoo pruned-by-nncf pruned-by-modelopt
  pruned-by-sparsimony pruned-by-torchao wheel clang sanitizers newest-torch torch-2.10)
skipped=77  # the exit status of a leg that cannot run here; the last line of its log says why

skip() { echo "$*"; exit $skipped; }

tests() { # PATH...
  PYTHONPATH=$PWD "$python" -m pytest -q -p no:cacheprovider ${PYTEST_ARGS:-} "$@"
}

forced() { # ISA: the tests of all kernels on it
  local known
  known=$(PYTHONPATH=$root "$python" -c "from sparsekernels import _library; print(*_library.supported_isas())") || exit 1
  case " $known " in *" $1 "*) ;; *) skip "this processor or build has no $1, only: $known" ;; esac
  SPARSEKERNELS_CPU_ISA=$1 tests "${kernels[@]}"
}

torch_folder() {
  "$python" -c "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])"
}

built_wheel() { # the path of the repaired wheel, which is built where there is none or a source is newer
  local found
  found=$(find dist -name 'sparsekernels-*manylinux*.whl' 2>/dev/null | head -n 1)
  if [ -z "$found" ] || [ -n "$(find csrc cmake sparsekernels setup.py CMakeLists.txt pyproject.toml -newer "$found" -type f \
    ! -name '*.pyc' ! -path 'sparsekernels/lib/*' | head -n 1)" ]; then
    CMAKE_ARGS="${CMAKE_ARGS:--DSPARSEKERNELS_CUDA=off}" make --silent wheel-here BIN="$tools" >&2 || return 1
    found=$(find dist -name 'sparsekernels-*manylinux*.whl' | head -n 1)
  fi
  realpath "$found"
}

installed() { # NAME PYTHON REQUIREMENT...: an environment with the wheel; sets `python` to its Python
  local built folder=$work/$1 interpreter=$2
  shift 2
  built=$(built_wheel) || exit 1
  [ -x "$folder/bin/python" ] || "$interpreter" -m venv "$folder" || exit 1
  if ! "$folder/bin/python" -m pip install --quiet "$@" 2>"$folder/pip.log"; then
    cat "$folder/pip.log"
    grep -qE 'No matching distribution|Max retries|timed out|NewConnectionError' "$folder/pip.log" || exit 1
    skip "pip cannot get $*"
  fi
  "$folder/bin/python" -m pip install --quiet --force-reinstall --no-deps "$built" || exit 1
  python=$folder/bin/python
}

smoke() { (cd / && "$python" "$root/tests/packaging/wheel_smoke.py"); }

tests_of_what_is_installed() { # a copy of the tests, so that the checkout's package is not the one they import
  local copy=$work/tests-$1
  rm -rf "$copy" && mkdir -p "$copy" && cp -r tests pyproject.toml "$copy" && cd "$copy" || exit 1
  "$python" -m pytest -q -p no:cacheprovider ${PYTEST_ARGS:-} "${kernels[@]}" tests/conversion
}

test_requirements=("pytest>=8" "pytest-benchmark>=4" "hypothesis>=6.100" "safetensors>=0.4" "numpy<2.4" "rich>=13")

leg_avx2() { forced avx2; }
leg_portable() { forced portable; }
leg_jit-off() { SPARSEKERNELS_CPU_JIT=0 tests tests/ops/sparse_conv2d tests/ops/layer_chain tests/nn; }
leg_many-steps() { # 10^4 random sequences of what users do, in two processes of one thread
  local test=tests/conversion/test_many_steps.py::test_many_steps other status=0
  export MANY_STEPS=1000 OMP_NUM_THREADS=1
  tests "$test"[{0..8..2}] &
  other=$!
  tests "$test"[{1..9..2}] || status=1
  wait $other && return $status
}
leg_many-updates() { # of the topology: 10^4 of random networks
  MANY_UPDATES=10000 tests tests/training/test_sparsifier.py::test_many_updates_without_an_error
}
leg_cuda-emulation() { CUDA_EMULATION=1 tests tests/cuda; } # the CUDA kernels on an emulated device, every combination
leg_triton-architectures() { # the Triton kernels of sparse operations, compiled for sm_80 and sm_100 as well
  EVERY_ARCHITECTURE=1 tests tests/ops/*/*_triton_compiled.py
}
layered() { # NAME FILE: the environment of `make test`, and above it what FILE names; sets `python` to its Python
  local folder=$work/$1 file=$2 packages
  packages=$("$python" -c "import site; print(site.getsitepackages()[0])") || exit 1
  [ -x "$folder/bin/python" ] || "$python" -m venv "$folder" || exit 1
  echo "$packages" >"$("$folder/bin/python" -c "import site; print(site.getsitepackages()[0])")/packages.pth"
  if ! "$folder/bin/python" -m pip install --quiet --no-deps -r "$file" 2>"$folder/pip.log"; then
    cat "$folder/pip.log"
    grep -qE 'No matching distribution|Max retries|timed out|NewConnectionError' "$folder/pip.log" || exit 1
    skip "pip cannot get what $file names"
  fi
  python=$folder/bin/python
}

# zoo: architectures of other authors; zoo-table, which is not of `all`: writes docs/zoo.md
leg_zoo() { layered zoo tests/zoo/requirements.txt && ZOO=1 tests tests/zoo; }
leg_zoo-table() { layered zoo tests/zoo/requirements.txt && PYTHONPATH=$root:$root/tests/conversion "$python" tests/zoo/make_table.py; }

# Masks of models that other tools pruned, each in an environment of its own.
pruned_by() { layered "pruned-by-$1" "tests/pruning/tools/$1.txt" && PRUNING_TOOL=$1 tests tests/pruning/tools; }
leg_pruned-by-nncf() { pruned_by nncf; }
leg_pruned-by-modelopt() { pruned_by modelopt; }
leg_pruned-by-sparsimony() { pruned_by sparsimony; }
leg_pruned-by-torchao() { pruned_by torchao; }

leg_sanitizers() { tests/sanitize.sh "$python"; }

leg_wheel() {
  local torch
  WHEEL=1 tests tests/packaging || exit 1
  torch=$("$python" -c "import torch; print(torch.__version__.split('+')[0])") || exit 1
  installed wheel "$python" "torch==$torch"
  smoke
}

leg_clang() { # no warning of clang's, and the tests of the operations on what it compiled
  local compiler=${CLANG:-clang++} copy=$work/clang-package
  command -v "$compiler" >/dev/null || skip "there is no $compiler"
  export PATH=$tools:$PATH
  cmake --fresh -S . -B "$work/clang" -DTORCH_DIR="$(torch_folder)" -DSPARSEKERNELS_CUDA=off \
    -G Ninja -DCMAKE_CXX_COMPILER="$compiler" -DCMAKE_CXX_FLAGS=-Werror || exit 1
  cmake --build "$work/clang" || exit 1
  rm -rf "$copy" && mkdir -p "$copy" && cp -r sparsekernels tests pyproject.toml "$copy" || exit 1
  cp "$work/clang/libsparsekernels_cpu.so" "$copy/sparsekernels/lib/" && cd "$copy" || exit 1
  tests tests/ops
}

leg_newest-torch() {
  installed newest "$python" "torch${NEWEST:+==$NEWEST}" "${test_requirements[@]}"
  smoke && tests_of_what_is_installed newest
}

leg_torch-2.10() {
  local interpreter=${PYTHON310:-python3.10}
  "$interpreter" -c "import sys; assert sys.version_info[:2] == (3, 10)" || skip "there is no Python 3.10 as $interpreter"
  installed torch-2.10 "$interpreter" "torch==2.10.0" "${test_requirements[@]}"
  smoke && tests_of_what_is_installed torch-2.10
}

run() { # NAME
  local log=$work/$1.log start=$SECONDS status=0
  ("leg_$1") >"$log" 2>&1 || status=$?
  if [ $status -eq 0 ]; then
    echo "PASS $1: $(grep -E '[0-9]+ passed' "$log" | tail -n 1), $((SECONDS - start)) s in all"
  elif [ $status -eq $skipped ]; then
    echo "SKIP $1: $(tail -n 1 "$log")"
  else
    status=1
    tail -n 30 "$log"
    echo "FAIL $1: after $((SECONDS - start)) s; all of its output is in build/legs/$1.log"
  fi
  return $status
}

case ${1:-} in
  "") echo "usage: tests/legs.sh all | NAME..., of: ${all[*]}" >&2; exit 2 ;;
  all) legs=("${all[@]}") ;;
  *) legs=("$@") ;;
esac
for leg in "${legs[@]}"; do
  declare -F "leg_$leg" >/dev/null || { echo "expected a leg of: ${all[*]}, got '$leg'" >&2; exit 2; }
done
mkdir -p "$work"
passed=()
failed=()
for leg in "${legs[@]}"; do
  status=0
  run "$leg" || status=$?
  case $status in
    0) passed+=("$leg") ;;
    "$skipped") ;;
    *) failed+=("$leg") ;;
  esac
done
[ ${#failed[@]} -eq 0 ] || { echo "failed: ${failed[*]}"; exit 1; }
[ ${#passed[@]} -gt 0 ] || { echo "nothing was tested: all legs were skipped"; exit $skipped; }
