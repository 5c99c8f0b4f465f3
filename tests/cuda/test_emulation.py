# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The emulated device finds each kind of fault in a kernel that has it, and nothing in its twin that does not."""

from __future__ import annotations

import ctypes

import emulated
import pytest
import torch
from torch import Tensor

pytestmark = pytest.mark.skipif(emulated.missing() is not None, reason=str(emulated.missing()))

SEEDS = range(4)
THREADS = 64

# By kernel: the kind of its fault and a part of the words, and how many blocks it needs.
FAULTS = {
    "shared_race": ("race at", "nothing orders the two", 1),
    "shared_race_after_reading": ("race at", "nothing orders the two", 1),
    "warp_race": ("race at", "nothing orders the two", 1),
    "warp_barrier_between_warps": ("race at", "nothing orders the two", 1),
    "shuffle_is_no_barrier": ("race at", "nothing orders the two", 1),
    "unwritten_shared": ("unwritten at", "shared memory of 256 bytes + 252, which nothing wrote", 1),
    "unwritten_global": ("unwritten at", "reads to + ", 1),
    "shared_bounds": ("bounds at", "4 bytes of shared memory that are no object's", 1),
    "reads_beyond": ("bounds at", "reads 4 bytes that are in no tensor, 256 from from of 256", 1),
    "writes_before": ("bounds at", "writes 4 bytes that are in no tensor, -4 from to", 1),
    "misaligned": ("alignment at", "at an address that is no multiple of 16", 1),
    "misaligned_shared": ("alignment at", "at an address that is no multiple of 16", 1),
    "misaligned_read_only": ("alignment at", "an access of 8 bytes that is not aligned", 1),
    "global_race": ("race at", "nothing orders the two", 1),
    "blocks_write_one_word": ("race between blocks at", "writes to + 0", 2),
    "plain_beside_atomic": ("race between blocks at", "counter + 0", 3),
    "last_block": ("race between blocks at", "nothing orders the two", 3),
    "last_block_reads_all": ("race between blocks at", "nothing orders the two", 3),
    "barrier_of_some": ("barrier at", "waits at __syncthreads for threads that never come", 1),
    "barrier_after_return": ("barrier at", "waits at __syncthreads for threads that never come", 1),
    "warp_barrier_of_some": ("barrier at", "for threads that never come", 1),
    "shuffle_from_nobody": ("shuffle at", "reads lane 20, which takes no part", 1),
    "not_in_its_mask": ("mask at", "is not in its mask 7fffffff", 1),
    "copy_not_waited_for": ("copy at", "is on its way", 1),
    "copy_that_outlives_its_thread": ("copy at", "ends before its copies arrive", 1),
    "copy_of_two_bytes": ("copy at", "a copy of 2 bytes", 1),
    "wild_pointer": ("crash at", "touches 0x", 1),
    "copy_waited_for_by_its_thread_alone": ("race at", "nothing orders the two", 1),
}

# Their faults are found in the functions of the emulation's headers.
LIBRARY_CALLS = {name for name in FAULTS if "barrier_" in name and "between" not in name} | {
    "shuffle_from_nobody",
    "not_in_its_mask",
    "plain_beside_atomic",
    "copy_that_outlives_its_thread",
    "copy_of_two_bytes",
    "misaligned_read_only",
}


def launch(name: str, wrong: bool = False, blocks: int = 1, shared_bytes: int = 0, seed: int = 0) -> Tensor:
    """What a kernel leaves in `to`."""
    library = emulated.library("faults.cpp")
    with library.device(seed=seed) as device:
        start = torch.arange(1, THREADS + 1, dtype=torch.float32)
        source, counter = device.put(start, name="from"), device.put(torch.zeros(1, dtype=torch.int32), name="counter")
        to = device.put(torch.zeros(16 * THREADS), name="to", initialized=name == "global_race")
        arguments = [ctypes.c_void_p(one.data_ptr()) for one in (source, to, counter)]
        error = library.loaded.launch(
            name.encode(), blocks, ctypes.c_size_t(shared_bytes), *arguments, THREADS, int(wrong)
        )
        assert error == 0
    return to.clone()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found(name: str, seed: int) -> None:
    kind, words, blocks = FAULTS[name]
    with pytest.raises(emulated.Fault) as found:
        launch(name, wrong=True, blocks=blocks, seed=seed)
    lines = str(found.value).splitlines()
    assert any(line.startswith(kind) and words in line for line in lines), lines
    if name not in LIBRARY_CALLS:
        assert any("faults.cpp:" in line for line in lines)  # in which line


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", FAULTS)
def test_its_twin_passes(name: str, seed: int) -> None:
    first = launch(name, blocks=FAULTS[name][2], seed=seed)
    again = launch(name, blocks=FAULTS[name][2], seed=seed + 100)
    assert torch.equal(first.nan_to_num(-1), again.nan_to_num(-1))


def test_dynamic_shared_memory_is_as_large_as_the_launch_says() -> None:
    assert torch.equal(launch("dynamic_shared_bounds", shared_bytes=256)[:THREADS], torch.arange(1.0, 65))
    with pytest.raises(emulated.Fault, match="bounds at faults.cpp"):
        launch("dynamic_shared_bounds", shared_bytes=252)


def test_more_than_48_kilobytes_have_to_be_asked_for() -> None:
    with pytest.raises(AssertionError):
        launch("dynamic_shared_bounds", shared_bytes=48 * 1024 + 16)


@pytest.mark.parametrize("blocks", [1, 2, 7])
@pytest.mark.parametrize("seed", SEEDS)
def test_the_last_block_sums_up(seed: int, blocks: int) -> None:
    assert launch("last_block", blocks=blocks, seed=seed)[0] == blocks * (blocks + 1) / 2
    assert torch.equal(launch("last_block_reads_all", blocks=blocks, seed=seed)[:64], blocks * torch.arange(1.0, 65))


@pytest.mark.parametrize("seed", SEEDS)
def test_what_warps_and_blocks_compute_together(seed: int) -> None:
    result = launch("collectives", seed=seed).view(THREADS, 16)
    lane = torch.arange(THREADS) % 32
    eighth = lane % 8
    columns = [
        torch.full((THREADS,), 3),
        lane ^ 5,
        torch.where(eighth >= 2, lane - 2, lane),
        torch.where(eighth < 6, lane + 2, lane),
        *(torch.full((THREADS,), value) for value in (1, 1, 0, 496, -3, 31, 32, 1, 0, 0)),
        lane % 2,
        torch.full((THREADS,), 74),
    ]
    assert torch.equal(result, torch.stack(columns, 1).float())


def test_bits() -> None:
    assert launch("bits")[:8].tolist() == [8, 4, 31, 1, 1, 1, 0.5, 41]
