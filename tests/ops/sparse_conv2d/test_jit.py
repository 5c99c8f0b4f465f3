# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The JIT kernels of patterns on AVX-512: used, kept, dropped and done without as promised."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from sparse_conv2d_cases import runs
from torch import Tensor

import sparsekernels as sk
from sparsekernels import _library
from sparsekernels.ops.sparse_conv2d.implementations import kept_kernel_bytes
from sparsekernels.testing import assert_verified


def kept() -> int:
    """Bytes; -1 where there are no JIT kernels."""
    return int(kept_kernel_bytes()) if ("cpu", "cpu") in runs() else -1


pytestmark = pytest.mark.skipif(kept() < 0, reason="no JIT kernels: not built, not AVX-512, or refused by the system")
needs_jit = pytest.mark.skipif(not _library.has_jit(), reason="code is generated for AVX-512 only")


def layer(seed: int, nonzeros: int = 900) -> tuple[Tensor, sk.Unstructured]:
    generator = torch.Generator().manual_seed(seed)
    full = torch.randn(32, 32, 3, 3, generator=generator)
    places = torch.randperm(full.numel(), generator=generator)[:nonzeros]
    mask = torch.zeros(full.numel(), dtype=torch.bool)
    mask[places] = True
    x = torch.randn(4, 32, 16, 16, generator=generator)
    return x, sk.Unstructured.from_dense(full, mask.view(full.shape))


def ours(weight: sk.Unstructured, padding: int, groups: int) -> Callable[..., Tensor]:
    """input, values[, bias] -> output."""
    return lambda x, v, b=None: sk.sparse_conv2d(x, weight.with_values(v), b, padding=padding, groups=groups)


def dense(weight: sk.Unstructured, padding: int, groups: int) -> Callable[..., Tensor]:
    """The same by torch's own convolution."""

    def run(x: Tensor, v: Tensor, b: Tensor | None = None) -> Tensor:
        w = weight.with_values(v).to_dense()
        return torch.nn.functional.conv2d(x, w, b, padding=padding, groups=groups)

    return run


def check(
    x: Tensor,
    weight: sk.Unstructured,
    *bias: Tensor,
    padding: int = 1,
    groups: int = 1,
    gradients: bool = False,
) -> None:
    tensors = [one.detach().requires_grad_(gradients) for one in (x, weight.values, *bias)]
    assert_verified(ours(weight, padding, groups), dense(weight, padding, groups), tensors, gradients)


def test_a_pattern_that_changes_in_place() -> None:
    """Nobody should, and then the result is that of the new one."""
    x, weight = layer(1)
    check(x, weight)
    columns = weight.col_indices.clone()
    end = int(weight.crow_indices[1])
    free = sorted(set(range(32 * 9)) - set(columns[:end].tolist()))
    columns[:end] = torch.tensor(free[:end], dtype=columns.dtype)
    new = weight.to_dense().flatten(1)
    new[0] = 0
    new[0, columns[:end].long()] = weight.values[:end]
    weight.col_indices.copy_(columns)
    assert_verified(
        lambda x: sk.sparse_conv2d(x, weight, padding=1),
        lambda x: torch.nn.functional.conv2d(x, new.view(32, 32, 3, 3).to(x.dtype), padding=1),
        [x],
        gradients=False,
    )


SCRIPT = """
import sys, torch
sys.path[:0] = [{tests!r}]
from test_jit import check, kept, layer
import sparsekernels as sk
print(kept())
x, weight = layer(0)
most, layers = 0, []  # those in use
for seed in range({patterns}):
    layers.append(layer(seed, nonzeros=9000))
    check(*layers[-1])
    most = max(most, kept())
check(x, weight)
print(most)
torch.save(sk.sparse_conv2d(x, weight, padding=1), {path!r})
"""


def run(setting: str | None, path: str, patterns: int = 1) -> tuple[int, int, Tensor]:
    environment = {key: value for key, value in os.environ.items() if key != "SPARSEKERNELS_CPU_JIT"}
    if setting is not None:
        environment["SPARSEKERNELS_CPU_JIT"] = setting
    script = SCRIPT.format(tests=str(pathlib.Path(__file__).parent), patterns=patterns, path=path)
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, most = (int(line) for line in done.stdout.split())
    return first, most, torch.load(path)


@needs_jit
def test_switched_off_and_limited(tmp_path) -> None:
    path = str(tmp_path / "y.pt")
    off, _, without = run("0", path)
    assert off == -1
    first, most, limited = run("1", path, patterns=20)
    assert first == 0
    assert 0 < most <= 1 << 20
    _, more, default = run(None, path, patterns=20)
    assert more > 1 << 20
    assert torch.equal(limited, default)
    assert not torch.equal(limited, without)  # another order of additions: it was another kernel
    x, weight = layer(0)
    for y in (limited, without):
        assert_verified(lambda *_, y=y: y, dense(weight, 1, 1), [x, weight.values], gradients=False)


@needs_jit
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_limits_that_are_no_numbers() -> None:
    """Each in a process of its own, since the limit is read once."""
    settings = ["many", "-1", "1e3", "64MB", "99999999999999999999"]
    script = f"""
import os, torch, sparsekernels as sk
weight = sk.Unstructured.from_dense(torch.randn(32, 32), torch.rand(32, 32) < 0.2)
for setting in {settings!r}:
    if os.fork() == 0:
        os.environ["SPARSEKERNELS_CPU_JIT"] = setting
        try:
            sk.sparse_linear(torch.randn(4, 32), weight)
        except ValueError as error:
            print(error, flush=True)
        os._exit(0)
    os.wait()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    wanted = "sparsekernels: expected SPARSEKERNELS_CPU_JIT to be a whole number of megabytes"
    lines = done.stdout.splitlines()
    assert len(lines) == len(settings), done.stdout + done.stderr
    for line, setting in zip(lines, settings, strict=True):
        assert line.startswith(wanted)
        assert line.endswith(f", got '{setting}'")


TURNS = """
import sys
sys.path[:0] = [{tests!r}]
from test_jit import check, kept, layer
layers = [layer(seed, nonzeros=9000 + 10 * seed) for seed in range(20)]
found = []
for _ in range(4):
    for one in layers:
        check(*one)
    found.append(kept())
for seed in range(100, 120):  # each used once: nothing gives way to them
    check(*layer(seed, nonzeros=9000 + seed))
found.append(kept())
new = layer(200, nonzeros=1000)
for _ in range(2):
    check(*new)
print(*found, kept())
"""


@needs_jit
def test_patterns_that_take_turns_do_not_drive_each_other_out() -> None:
    """Those that were first stay. A new one is kept when asked for again, in place of what was not meanwhile."""
    script = TURNS.format(tests=str(pathlib.Path(__file__).parent))
    environment = {**os.environ, "SPARSEKERNELS_CPU_JIT": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *turns, last = (int(number) for number in done.stdout.split())
    assert len(set(turns)) == 1
    assert 1 << 19 < turns[0] <= 1 << 20
    assert last not in turns
    assert last <= 1 << 20


@pytest.mark.parametrize("outputs", [1, 11, 12, 30, 31, 32, 62, 63, 113])
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels last"])
def test_any_number_of_rows(outputs: int, channels_last: bool) -> None:
    """Slices are at most 31 rows, 28 where channels are neighbors."""
    x, full = torch.randn(3, 20, 9, 10), torch.randn(outputs, 20, 3, 3)
    weight = sk.Unstructured.from_dense(full, torch.rand_like(full) < 0.2)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    check(x, weight)
    check(x, weight, gradients=True)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("groups", [1, 2])
def test_rows_of_very_different_numbers_of_nonzeros(kernel: int, groups: int) -> None:
    """Threads share rows by their nonzeros: some get none."""
    x, full = torch.randn(1, 64, 14, 14), torch.randn(256, 64 // groups, kernel, kernel)
    mask = torch.rand_like(full) < 0.01
    mask[40:60] = True
    weight = sk.Unstructured.from_dense(full, mask)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            check(x, weight, padding=kernel // 2, groups=groups, gradients=True)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (4, 16), (15, 17), (70, 61)])
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels last"])
@pytest.mark.parametrize("kernel", [1, 3])
def test_rows_without_nonzeros_have_their_bias(size: tuple[int, int], channels_last: bool, kernel: int) -> None:
    x, full, bias = torch.randn(2, 150, *size), torch.randn(70, 150, kernel, kernel), torch.randn(70)
    mask = torch.rand_like(full) < 0.1
    mask[:40] = False  # a slice
    mask[50:60, :140] = False  # of some panels
    weight = sk.Unstructured.from_dense(full, mask)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    check(x, weight, bias, padding=kernel // 2)
    y = sk.sparse_conv2d(x, weight, bias, padding=kernel // 2)
    assert torch.equal(y[:, :40], bias[:40, None, None].expand_as(y[:, :40]))


REFUSED = """
import ctypes, struct, sys
sys.path[:0] = [{tests!r}, {chains!r}]
import torch
from test_jit import check, kept, layer
from test_layer_chain import _Layers, _weight
import sparsekernels as sk

def refuse_executable_memory():
    # As a hardened system has it: a seccomp filter by which mprotect with PROT_EXEC fails with EPERM.
    libc = ctypes.CDLL(None, use_errno=True)
    mprotect, protection, executable = 10, 16 + 2 * 8, 4  # on x86-64; where struct seccomp_data has it; PROT_EXEC
    code = b"".join(struct.pack("HBBI", *one) for one in (
        (0x20, 0, 0, 0),           # load the number of the system call
        (0x15, 0, 3, mprotect),    # unless it is this, allow
        (0x20, 0, 0, protection),  # load its third argument
        (0x45, 0, 1, executable),  # unless it has this bit, allow
        (0x06, 0, 0, 0x00050001),  # fail with EPERM
        (0x06, 0, 0, 0x7FFF0000),  # allow
    ))
    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_char_p)]
    no_new_privileges, filtered = 38, 22
    program = Program(len(code) // 8, code)
    return libc.prctl(no_new_privileges, 1, 0, 0, 0) == 0 == libc.prctl(filtered, 2, ctypes.byref(program), 0, 0)

def chain_of(seed):
    layers, generator = _Layers(), torch.Generator().manual_seed(seed)
    first = layers.conv(0, _weight(generator, 64, 32, (3, 3), 0.1), padding=1, limits=(0.0, None))
    second = layers.conv(first, _weight(generator, 64, 64, (3, 3), 0.1), padding=1)
    layers.conv(second, _weight(generator, 64, 64, (1, 1), 0.3), residual=first)
    return layers

known, new, images = layer(0), layer(1), torch.randn(9, 32, 14, 14)
check(*known, gradients=True)
chain_of(0).check(images)
before = kept()
if not refuse_executable_memory():
    print("skipped")
    raise SystemExit
check(*known, gradients=True)
for _ in range(2):
    check(*new, gradients=True)
    with sk.use_backend("cpu"):
        check(*new, gradients=True)
    chain_of(1).check(images)
assert kept() == before, (kept(), before)
print("done")
"""


@needs_jit
def test_executable_memory_that_is_refused_later() -> None:
    """Tiles serve, in single calls, their gradients and chains; kernels that are there still run."""
    here = pathlib.Path(__file__).parent
    script = REFUSED.format(tests=str(here), chains=str(here.parent / "layer_chain"))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    if done.stdout == "skipped\n":
        pytest.skip("this system takes no seccomp filter")


FORKS = """
import os, signal, sys, threading
sys.path[:0] = [{tests!r}]
import torch
from test_jit import layer
import sparsekernels as sk

torch.set_num_threads(1)
stop = threading.Event()

def compile_others(seed):
    while not stop.is_set():
        x, weight = layer(seed := seed + 1, nonzeros=300)
        sk.sparse_conv2d(x[:1], weight.with_values(weight.values.clone().requires_grad_()), padding=1).sum().backward()

threads = [threading.Thread(target=compile_others, args=(1000 * i,)) for i in range(3)]
for thread in threads:
    thread.start()
x, weight = layer(0, nonzeros=300)
late = 0
for _ in range(60):
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        layer(1, nonzeros=300)
        sk.sparse_conv2d(x[:1], weight, padding=1)
        os._exit(0)
    late += os.waitpid(child, 0)[1] != 0
stop.set()
for thread in threads:
    thread.join()
assert late == 0, late
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_fork_while_other_threads_compile() -> None:
    """The child does not wait for a thread that it does not have."""
    script = FORKS.format(tests=str(pathlib.Path(__file__).parent))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
