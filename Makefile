# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0

# Two targets are all that a newcomer needs: make bench, make test.

VENV := .venv
PYTHON ?= python3
BIN := $(VENV)/bin
# The build of torch for development; the package itself takes any from 2.10 on. Where pip's index offers a build with
# CUDA under this name, ask for the one that you want: make bench TORCH="torch==2.13.0 --index-url ..."
TORCH ?= torch==2.13.0
STAMP := $(VENV)/.installed
LINTERS := $(VENV)/.linters
NATIVE := $(shell find csrc -type f) CMakeLists.txt setup.py pyproject.toml

.PHONY: bench peers test test-full wheel wheel-here wheel-test lint format sanitize gpu clean

bench: $(STAMP)
	$(BIN)/sparsekernels bench

# Other engines beside ours. pip makes an environment for each; benchmarks/peers/README.md has their licenses.
peers: $(STAMP)
	$(BIN)/sparsekernels bench benchmarks/peers/networks.toml benchmarks/peers/linear.toml --quick

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

# What takes longer: other instruction sets, compilers, versions of torch and Python, the wheel, and the sanitizers. Each
# leg can be run by itself: tests/legs.sh NAME...
test-full: test
	tests/legs.sh all

# One wheel for every Python from 3.10 and torch from 2.10 on. It holds no copy of torch's libraries: they are loaded
# already when ours is, and are found by name.
wheel: $(STAMP)
	$(MAKE) wheel-here

# `wheel` with the environment of BIN as it is: tests/legs.sh has one that need not be .venv.
wheel-here:
	$(BIN)/python -m pip install --quiet --group wheel
	rm -rf build/wheel dist/sparsekernels-*.whl
	PATH="$(abspath $(BIN)):$$PATH" SPARSEKERNELS_REQUIRE_KERNELS=1 $(BIN)/python -m pip wheel --quiet --no-deps \
	  --no-build-isolation -w build/wheel .
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/auditwheel repair --plat manylinux_2_28_x86_64 --only-plat --exclude 'libtorch*' \
	  --exclude 'libc10*' -w dist build/wheel/sparsekernels-*.whl

# The wheel in an environment of its own, away from the checkout.
wheel-test: wheel
	rm -rf build/wheel-test
	$(BIN)/python -m venv build/wheel-test
	build/wheel-test/bin/python -m pip install --quiet $(TORCH)
	build/wheel-test/bin/python -m pip install --quiet --no-deps dist/sparsekernels-*.whl
	cd / && $(CURDIR)/build/wheel-test/bin/python $(CURDIR)/tests/packaging/wheel_smoke.py

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# torch first: the kernels are compiled against its headers.
$(STAMP): $(NATIVE) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1" "setuptools>=77.0.3" wheel "cmake>=3.18" ninja
	$(BIN)/python -m pip install --quiet $(TORCH) triton
	@echo "compiling the kernels (where there is nvcc, that takes two minutes)"
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[bench,test]"
	touch $(STAMP)

CPP := $(shell find csrc tests/cpp tests/cuda -name third_party -prune -o -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' | grep -v third_party)

$(LINTERS): pyproject.toml | $(STAMP)
	$(BIN)/python -m pip install --quiet --group lint
	touch $(LINTERS)

lint: $(LINTERS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CPP)
	$(BIN)/python tests/packaging/spdx.py

format: $(LINTERS)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)
	$(BIN)/python tests/packaging/spdx.py --fix

# The CPU kernels under the address and undefined-behavior sanitizers, every instruction set that is here.
sanitize: $(STAMP)
	tests/sanitize.sh $(BIN)/python

# On a machine with a CUDA torch and perhaps no network: the Python that is there, no environment of our own. What is
# complete is not run again: make gpu SECONDS=560, as often as it takes; make gpu PART=blocks for one part; make gpu
# TRITON_ONLY=1 without the CUDA kernels, as it is where there is no nvcc. benchmarks/gpu.py --help has what it needs.
gpu:
	$(PYTHON) benchmarks/gpu.py $(if $(PART),--part $(PART)) $(if $(SECONDS),--seconds $(SECONDS)) \
	  $(if $(FOLDER),--folder $(FOLDER)) $(if $(TRITON_ONLY),--triton-only)

clean:
	rm -rf $(VENV) build dist out *.egg-info sparsekernels/lib
