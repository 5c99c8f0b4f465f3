# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Tries sparsekernels as installed: run by an interpreter that has the wheel and torch, and nothing of a checkout.

    python wheel_smoke.py

It needs no pytest. `make wheel-test` and tests/legs.sh make the environment.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import sysconfig
import warnings
from pathlib import Path

import torch
from torch import nn

warnings.simplefilter("error")  # the one that says that the kernels were not built, too
import sparsekernels as sk  # noqa: E402
from sparsekernels import _library  # noqa: E402
from sparsekernels.nn import SparseConv2d  # noqa: E402
from sparsekernels.testing import prefer  # noqa: E402

warnings.simplefilter("default")


def installed() -> None:
    folders = [Path(sysconfig.get_path(kind)).resolve() for kind in ("purelib", "platlib")]
    assert any(folder in Path(sk.__file__).resolve().parents for folder in folders), sk.__file__
    assert _library.cpu is not None, _library.cpu_missing
    assert _library.isa() == _library.supported_isas()[0], _library.isa()


def pruned(layer: nn.Conv2d) -> nn.Conv2d:
    with torch.no_grad():
        layer.weight[layer.weight.abs() < layer.weight.abs().quantile(0.9)] = 0
    return layer


def sparse_convolution() -> None:
    """Forward and all gradients against the dense layer."""
    dense = pruned(nn.Conv2d(16, 32, 3, padding=1))
    sparse = SparseConv2d.from_dense(dense)
    images = torch.randn(2, 16, 9, 9)
    mine, theirs = images.clone().requires_grad_(), images.clone().requires_grad_()
    outputs = sparse(mine), dense(theirs)
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)
    for output in outputs:
        output.square().sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(sparse.bias.grad, dense.bias.grad, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(sparse.weight.grad, dense.weight.grad * sparse.mask, rtol=1e-4, atol=1e-3)


def rms_norm() -> None:
    x = torch.randn(5, 64, requires_grad=True)
    torch.testing.assert_close(sk.rms_norm(x, (64,)), nn.functional.rms_norm(x, (64,)))
    sk.rms_norm(x, (64,)).sum().backward()


def conversion() -> None:
    model = nn.Sequential(pruned(nn.Conv2d(8, 64, 3, padding=1)), nn.BatchNorm2d(64), nn.ReLU())
    model += nn.Sequential(pruned(nn.Conv2d(64, 64, 3, padding=1)), nn.ReLU())
    model.eval()
    images = torch.randn(2, 8, 16, 16)
    with torch.inference_mode():
        expected = model(images)
    with prefer("fine-grained", "graph", "layers"):
        report = sk.convert(model, images)
    assert any(isinstance(module, SparseConv2d) for module in model.modules()), report
    assert str(report)
    with torch.inference_mode():
        torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-4)


def command_line() -> None:
    """`info` needs no extra; the rest names the one that it needs."""
    program = Path(sys.executable).with_name("sparsekernels")
    for command in ([str(program)], [sys.executable, "-m", "sparsekernels"]):
        told = subprocess.run([*command, "info"], capture_output=True, text=True, check=True).stdout
        assert str(_library.isa()) in told, told
        assert torch.__version__ in told, told
    if importlib.util.find_spec("typer") is None:
        refused = subprocess.run([program, "bench"], capture_output=True, text=True, check=False)
        assert refused.returncode != 0
        assert "sparsekernels[bench]" in refused.stderr, refused.stderr


def main() -> None:
    torch.manual_seed(0)
    checks = (installed, sparse_convolution, rms_norm, conversion, command_line)
    for check in checks:
        check()
    print(f"Python {sys.version.split()[0]}, torch {torch.__version__}, {_library.isa()}")
    print(f"{len(checks)} passed, 0 failed")


if __name__ == "__main__":
    main()
