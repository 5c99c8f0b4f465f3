# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The cache of JIT kernels, in processes of their own: the limit is read once, and other tests fill the cache here."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from test_jit import check, kept, layer

import sparsekernels as sk
from sparsekernels import _library

pytestmark = pytest.mark.skipif(kept() < 0 or not _library.has_jit(), reason="no JIT kernels")


def check_kept_by_content() -> None:
    x, weight = layer(0)
    check(x, weight)
    before = kept()
    assert before > 0
    check(2 * x, weight.with_values(weight.values * 3))  # other values
    check(x, sk.Unstructured.from_dense(weight.to_dense()))  # the same pattern in other tensors
    assert kept() == before
    check(x[:3], weight)  # another batch, laid out alike
    assert kept() == before


def check_kept_for_each_pattern_of_a_size() -> None:
    x, _ = layer(0)
    for seed in range(10, 14):
        before = kept()
        check(x, layer(seed)[1])
        assert kept() > before


def check_kept_for_weight_gradients() -> None:
    x, weight = layer(7)
    values = weight.values.clone().requires_grad_()
    y = sk.sparse_conv2d(x, weight.with_values(values), padding=1)
    before = kept()
    for _ in range(2):
        torch.autograd.grad(y, values, torch.ones_like(y), retain_graph=True)
    after = kept()
    assert after > before
    torch.autograd.grad(y, values, torch.ones_like(y))
    assert kept() == after


@pytest.mark.parametrize(
    "claim", [check_kept_by_content, check_kept_for_each_pattern_of_a_size, check_kept_for_weight_gradients]
)
def test_what_is_kept(claim: Callable[[], None]) -> None:
    here = str(pathlib.Path(__file__).parent)
    script = f"import sys; sys.path[:0] = [{here!r}]; import {__name__}; {__name__}.{claim.__name__}()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


STRESS = """
import os, random, signal, sys, threading
sys.path[:0] = [{tests!r}]
import torch
from test_jit import check, kept, layer
import sparsekernels as sk

torch.set_num_threads(1)
problems = []

def call(seed):
    chance, known = random.Random(seed), []
    try:
        for _ in range(30):
            if not known or chance.random() < 0.5:
                known.append(layer(chance.randrange(10**9), nonzeros=chance.choice([40, 40, 300, 900, 9000])))
            x, weight = chance.choice(known[-8:])
            check(x[:1], weight, gradients=chance.random() < 0.3)
            if kept() > 1 << 20:
                problems.append(kept())
    except BaseException as error:
        problems.append(error)

threads = [threading.Thread(target=call, args=(seed,)) for seed in range(8)]
for thread in threads:
    thread.start()
for seed in range(100, 110):
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        for nonzeros in (40, 900):
            x, weight = layer(seed, nonzeros=nonzeros)
            sk.sparse_conv2d(x[:1], weight, padding=1)
        os._exit(0)
    if os.waitpid(child, 0)[1] != 0:
        problems.append(seed)
for thread in threads:
    thread.join()
assert not problems, problems
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_threads_and_forks_in_a_cache_that_is_full() -> None:
    """Results are right, the limit holds, and no child waits."""
    script = STRESS.format(tests=str(pathlib.Path(__file__).parent))
    environment = {**os.environ, "SPARSEKERNELS_CPU_JIT": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_pattern_larger_than_the_limit() -> None:
    """It is compiled in every call, and what is kept stays."""
    script = f"""
import sys
sys.path[:0] = [{str(pathlib.Path(__file__).parent)!r}]
import torch
from test_jit import check, kept, layer
import sparsekernels as sk
check(*layer(0))
before = kept()
mask = torch.rand(256, 64, 3, 3) < 0.8
large = sk.Unstructured.from_dense(torch.randn(mask.shape), mask)
assert large.nnz * 10 > 1 << 20
x = torch.randn(1, 64, 8, 8)
for _ in range(3):
    check(x, large)
    assert kept() == before > 0
"""
    environment = {**os.environ, "SPARSEKERNELS_CPU_JIT": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


PATTERNS = """
import pathlib, sys
sys.path[:0] = [{tests!r}]
import torch
from test_jit import kept
import sparsekernels as sk

def resident():
    pages = pathlib.Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * 4096

torch.set_num_threads(1)
torch.manual_seed(0)
layer, x = sk.nn.SparseConv2d(48, 48, 3, padding=1), torch.randn(2, 48, 4, 4, requires_grad=True)
other = sk.nn.SparseConv2d(48, 48, 3, padding=1)
mask = torch.rand(layer.weight.shape) < 0.5
other.set_pattern(mask)
bytes_after, before = [], 0
for number in range(1001):
    layer.set_pattern(torch.rand(layer.weight.shape) < 0.5 if number % 50 else mask)  # also one that another has
    (layer(x) + other(x)).sum().backward()
    bytes_after.append(kept())
    if number == 100:
        before = resident()
one = bytes_after[0]
assert one > 300_000, one  # of forward, input gradient, weight gradient: together a thousand would take 300 MB
assert max(bytes_after) <= 2 * one + (4 << 20), (one, max(bytes_after))
assert bytes_after[-1] >= one
assert resident() - before < 8 << 20, (resident() - before, before)
del layer
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_old_patterns_of_a_layer_give_their_code_back() -> None:
    """A sixteenth of the room is left to them: memory does not grow over a thousand patterns."""
    script = PATTERNS.format(tests=str(pathlib.Path(__file__).parent))
    environment = {**os.environ, "SPARSEKERNELS_CPU_JIT": "64"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
