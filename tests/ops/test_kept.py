# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What is kept beside the tensors of a pattern: found again, forgotten with them, and never that of other tensors."""

from __future__ import annotations

import gc
import sys
import threading

import pytest
import torch
from torch import Tensor

from sparsekernels.ops import _kept as module
from sparsekernels.ops._kept import Kept


def memory() -> Kept[list[Tensor]]:
    return Kept("things", lambda made: made)


def test_it_is_made_once_for_tensors_and_key() -> None:
    kept, (a, b), calls = memory(), torch.zeros(2, 3), []
    first = kept.get((a, b), 1, lambda: calls.append(1) or [])
    assert kept.get((a, b), 1, lambda: calls.append(1) or []) is first
    assert kept.get((a, b), 2, lambda: calls.append(1) or []) is not first
    assert kept.get((a, b), 1, lambda: calls.append(1) or []) is first
    assert len(calls) == 2


@pytest.mark.parametrize("which", [0, 1])
def test_a_tensor_that_is_written_to_is_another(which: int) -> None:
    kept, tensors = memory(), (torch.zeros(3), torch.zeros(3))
    first = kept.get(tensors, 1, lambda: [])
    tensors[which].add_(1)
    second = kept.get(tensors, 1, lambda: [])
    assert second is not first
    assert kept.get(tensors, 1, lambda: []) is second
    assert len(kept._of[tensors[0]]) == 1


@pytest.mark.parametrize("which", [0, 1])
def test_a_tensor_that_is_given_other_data_is_another(which: int) -> None:
    """`data =` changes neither the object nor its version."""
    kept, tensors = memory(), (torch.zeros(3), torch.zeros(3))
    first = kept.get(tensors, 1, lambda: [])
    version = tensors[which]._version
    tensors[which].data = torch.ones(3)
    assert tensors[which]._version == version
    assert kept.get(tensors, 1, lambda: []) is not first
    assert len(kept._of[tensors[0]][1]) == 1


def test_what_is_written_while_it_is_made_is_not_in_it() -> None:
    kept, tensor, made = memory(), torch.zeros(3), []

    def make() -> list[Tensor]:
        made.append(tensor.clone())
        if len(made) == 1:
            tensor.add_(1)  # as another thread might
        return [made[-1]]

    kept.get((tensor,), 1, make)
    assert torch.equal(kept.get((tensor,), 1, make)[0], torch.ones(3))
    assert kept.get((tensor,), 1, make)[0] is made[1]


def test_two_that_share_the_first_tensor_take_turns() -> None:
    """Each is kept, as long as its own tensor lives."""
    kept, first, others = memory(), torch.zeros(3), [torch.zeros(3), torch.zeros(3)]
    made = [kept.get((first, other), 1, lambda: []) for other in others]
    assert all(kept.get((first, other), 1, lambda: []) is one for other, one in zip(others, made, strict=True))
    del others[0]
    gc.collect()
    kept.get((first, torch.zeros(3)), 1, lambda: [])
    assert len(kept._of[first][1]) == 2


def test_another_tensor_at_the_same_address_is_another() -> None:
    """Objects, not their ids: that of a tensor which is gone may be the next one's."""
    kept, first = memory(), torch.zeros(3)
    for number in range(50):
        second = torch.zeros(3)
        assert kept.get((first, second), 1, lambda number=number: [torch.tensor(number)])[0] == number
        del second
    assert len(kept._of[first]) == 1


def test_it_goes_with_the_first_tensor() -> None:
    kept, first, second = memory(), torch.zeros(3), torch.zeros(3)
    kept.get((first, second), 1, lambda: [])
    assert len(kept._of) == 1
    del first
    gc.collect()
    assert len(kept._of) == 0


def test_tensors_of_inference_mode() -> None:
    kept = memory()
    with torch.inference_mode():
        tensor = torch.zeros(3)
    assert kept.get((tensor,), 1, lambda: []) is kept.get((tensor,), 1, lambda: [])


def test_threads_share_it() -> None:
    kept, first, failures = memory(), torch.zeros(3), []

    def work(seed: int) -> None:
        try:
            for number in range(300):
                key = (seed + number) % 7
                assert kept.get((first,), key, lambda key=key: [torch.tensor(key)])[0] == key
                other = torch.zeros(2)
                assert kept.get((other, first), key, lambda key=key: [torch.tensor(-key)])[0] == -key
        except Exception as error:
            failures.append(error)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert not failures


def test_nothing_is_made_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, tensor = memory(), torch.zeros(3)
    kept.get((tensor,), 1, lambda: [])
    monkeypatch.setattr(module, "is_captured", lambda _: True)
    kept.get((tensor,), 1, lambda: [])
    with pytest.raises(RuntimeError, match="before a CUDA graph of one is captured, got none: things"):
        kept.get((tensor,), 2, lambda: [])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_other_streams_find_it_complete() -> None:
    kept, tensor, stream = memory(), torch.zeros(3, device="cuda"), torch.cuda.Stream()

    def make() -> list[Tensor]:
        torch.cuda._sleep(100_000_000)
        return [torch.ones(1 << 20, device="cuda")]

    made = kept.get((tensor,), 1, make)
    with torch.cuda.stream(stream):
        assert kept.get((tensor,), 1, make) is made
        total = made[0].sum()
    stream.synchronize()
    assert int(total) == 1 << 20
