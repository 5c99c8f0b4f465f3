# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""GPUs that our kernels are not for, old ones and those of AMD: the reference runs there, and `info` says why."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import sparsekernels as sk
from sparsekernels import _library, dispatch
from sparsekernels.bench import info
from sparsekernels.dispatch import BackendError, Call, select
from sparsekernels.ops import OPERATIONS, _operation, _triton_table
from sparsekernels.ops.rms_norm import op
from sparsekernels.ops.sparse_conv2d.blocks import BLOCKS

REASON = "it needs a GPU of compute capability 8.0 or later, this one has 7.5"
CUDA = torch.device("cuda", 0)


@pytest.fixture
def turing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every CUDA device has 7.5, and the CUDA library was loaded; what asks for devices finds one."""
    monkeypatch.setattr(dispatch, "capability_of", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    _operation._is_unsupported_gpu.cache_clear()
    yield
    _operation._is_unsupported_gpu.cache_clear()


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_the_reference_is_next(turing: None, operation: _operation.Operation) -> None:
    for dtype in operation.cuda_dtypes:
        call = Call(CUDA, dtype, operation.format)
        assert select(operation.implementations, call).name == "reference"
        reasons = [row.supports(call) for row in operation.implementations if row.name == "triton"]
        assert reasons == [REASON] * len(reasons)


def test_gpus_of_amd_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch calls them cuda."""
    monkeypatch.setattr(torch.version, "hip", "7.0")
    for operation in [*OPERATIONS, BLOCKS]:
        call = Call(CUDA, operation.cuda_dtypes[0], operation.format)
        assert select(operation.implementations, call).name == "reference"
    assert dict(info._on_gpus()) == {
        "all operations": "the reference: it is written for GPUs of NVIDIA, this is one of AMD"
    }


def test_a_compiled_kernel_is_refused(turing: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_library, "cuda", "libsparsekernels_cuda.so")
    row = _operation._compiled_on("cuda", object(), (torch.float32,), None)
    assert row.supports(Call(CUDA, torch.float32)) == REASON
    with pytest.raises(BackendError, match=rf"use_backend\('cuda'\): .*{REASON}"):
        select([row], Call(CUDA, torch.float32), backend="cuda")


def test_info_says_why(turing: None) -> None:
    assert f"not triton: {REASON}" in [text for name, text in info.sections()["in use"]]

    assert info.sections()["on cuda"] == [("all operations", f"the reference: {REASON}")]


@pytest.mark.parametrize(("library", "by"), [(None, "Triton's kernel;"), ("here", "the CUDA kernel or Triton's,")])
def test_info_of_a_gpu(monkeypatch: pytest.MonkeyPatch, library: str | None, by: str) -> None:
    monkeypatch.setattr(dispatch, "capability_of", lambda device: (9, 0))
    monkeypatch.setattr(_library, "cuda", library)
    monkeypatch.setattr(_triton_table._tables, "measured", {"9.0": {}, "8.0": {}})
    told = dict(info._on_gpus())
    assert "blocks smaller than 8x8" in told
    assert told["fine-grained linear and 1x1, up to 16 rows"].startswith(by)
    assert told["launch configurations"] == "measured for 8.0, 9.0"
    assert "sparse_conv2d, sparse_linear (blocks) on cpu in bfloat16" in dict(info.sections()["in use"])


@pytest.mark.parametrize("cast", ["after", "before"])
@pytest.mark.parametrize("tracked", [False, True])
def test_the_hot_path_of_rms_norm_finds_its_way(monkeypatch: pytest.MonkeyPatch, cast: str, tracked: bool) -> None:
    """It asks torch's dispatcher, which knows devices alone; the kernel there cannot be launched."""

    def fail(*arguments: object) -> Tensor:
        raise RuntimeError("no kernel image is available for execution on the device")

    x, r, w = (torch.randn(size, requires_grad=tracked) for size in ((3, 8), (3, 8), (8,)))
    expected = sk.rms_norm(x, (8,), w, cast=cast), sk.add_rms_norm(x, r, (8,), w, cast=cast)
    for name in ("_kernel", "_add_kernel", "_apply", "_add_apply"):
        monkeypatch.setattr(op, name, fail)
    with pytest.raises(RuntimeError, match="no kernel image"):
        sk.rms_norm(x, (8,), w, cast=cast)
    monkeypatch.setattr(op, "_is_on_unsupported_gpu", lambda input: True)
    found = sk.rms_norm(x, (8,), w, cast=cast), sk.add_rms_norm(x, r, (8,), w, cast=cast)
    torch.testing.assert_close(found, expected)
    assert found[0].requires_grad == tracked
    with pytest.raises(ValueError, match="expected"):
        sk.rms_norm(x, (7,), w, cast=cast)


def test_a_device_that_is_new_enough_is_not_asked_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(dispatch, "capability_of", lambda device: asked.append(device) or (8, 0))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    _operation._is_unsupported_gpu.cache_clear()
    assert not _operation.is_unsupported_gpu(CUDA)
    assert not _operation.is_unsupported_gpu(CUDA)
    assert asked == [CUDA]
    _operation._is_unsupported_gpu.cache_clear()


def test_capability_is_a_constant_of_compiled_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch.compile cannot look up is asked for while it traces."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))

    def which(x: Tensor) -> Tensor:
        return x + 1 if Call(CUDA, x.dtype).unsupported_gpu is not None else x

    assert torch.equal(torch.compile(which, fullgraph=True, backend="eager")(torch.zeros(2)), torch.ones(2))
