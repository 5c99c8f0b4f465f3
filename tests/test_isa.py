# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Every instruction set that the CPU kernels were built for and this processor has passes the matrix."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sparsekernels import _library

HERE = Path(__file__).parent
ISAS = _library.supported_isas()
OTHERS = [isa for isa in ISAS if isa != _library.isa()]
WITH_JIT = ISAS[: ISAS.index("avx512") + 1] if "avx512" in ISAS else ()
"""AVX-512 and what is better, which has its instructions and more."""


def run(isa: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "SPARSEKERNELS_CPU_ISA": isa},
        capture_output=True,
        text=True,
        cwd=HERE,
        check=False,
    )


def test_the_best_is_taken() -> None:
    if _library.cpu is None:
        pytest.skip("the CPU kernels are not built")
    assert _library.isa() == ISAS[0]
    assert ISAS[-1] == "portable"
    assert _library.has_jit() == (_library.isa() in WITH_JIT)


@pytest.mark.parametrize("isa", OTHERS)
def test_matrix(isa: str) -> None:
    """The best one is under test everywhere else."""
    chosen = run(isa, "-c", "from sparsekernels import _library; print(_library.isa(), _library.has_jit())")
    assert chosen.stdout.split() == [isa, str(isa in WITH_JIT)]
    files = (
        "ops/rms_norm/test_rms_norm.py",
        "ops/sparse_conv2d/test_sparse_conv2d.py",
        "ops/sparse_conv2d/test_sparse_bits.py",
        "ops/sparse_conv2d/test_sparse_derivatives.py",
        "ops/sparse_conv2d/test_sparse_nan.py",
        "ops/layer_chain/test_layer_chain.py",
        "ops/masked_matmul/test_masked_matmul.py",
        "ops/masked_attention/test_masked_attention.py",
        "ops/masked_attention/test_few_queries.py",
        "ops/test_fingerprint.py",
        "ops/batch_norm/test_batch_norm_act.py",
        "ops/packed_linear/test_packed_linear.py",
    )
    result = run(isa, "-m", "pytest", "-q", "-x", *files, "-k", "not reference and not triton and not 31")
    assert result.returncode == 0, result.stdout[-4000:]
    assert " passed" in result.stdout


def test_an_unknown_one_is_refused() -> None:
    if _library.cpu is None:
        pytest.skip("the CPU kernels are not built")
    result = run("mmx", "-c", "import torch, sparsekernels as sk; sk.rms_norm(torch.ones(2, 2), (2,))")
    assert result.returncode == 1
    assert "sparsekernels: expected SPARSEKERNELS_CPU_ISA to be one of: " in result.stderr
    assert ", got 'mmx'" in result.stderr
    told = run("mmx", "-m", "sparsekernels", "info").stdout
    wrong = f"every call raises: expected SPARSEKERNELS_CPU_ISA to be one of: {' '.join(ISAS)}, got 'mmx'"
    for name in ("CPU kernels", "sparse patterns"):
        assert re.search(rf"^  {name} +{re.escape(wrong)}$", told, re.MULTILINE)
