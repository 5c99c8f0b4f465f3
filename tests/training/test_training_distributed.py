# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Two processes train one model: DistributedDataParallel and FSDP2, the same updates on both, and errors on both."""

from __future__ import annotations

import copy
import os
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import distributed, multiprocessing, nn
from training_nets import network, perceptron, sgd

from sparsekernels.testing import prefer
from sparsekernels.training import Masking, Sparsifier

pytestmark = pytest.mark.skipif(
    not distributed.is_available() or not distributed.is_gloo_available(), reason="needs gloo"
)

WORLD = 2


def run_on(rank: int, body: Callable[[int], None], folder: str) -> None:
    """In a process of its own; what it raises is written down."""
    torch.set_num_threads(1)
    try:
        distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD, timeout=timedelta(seconds=60)
        )
        body(rank)
        distributed.barrier()
        distributed.destroy_process_group()
    except BaseException:
        Path(folder, f"error{rank}").write_text(traceback.format_exc())
        os._exit(1)


def on_two_ranks(body: Callable[[int], None], folder: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=run_on, args=(rank, body, str(folder))) for rank in range(WORLD)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    for process in processes:
        process.kill()
    errors = [path.read_text() for path in sorted(folder.glob("error*"))]
    assert not errors, "\n".join(errors)
    assert all(process.exitcode == 0 for process in processes)


def data_of(rank: int, step: int, images: bool) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 * step + rank)
    shape = (4, 3, 8, 8) if images else (4, 20)
    return torch.randn(shape, generator=generator), torch.randint(5, (4,), generator=generator)


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, rank: int, first: int, count: int, images: bool) -> None:
    for step in range(first, first + count):
        inputs, labels = data_of(rank, step, images)
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()


def alone(algorithm: str, count: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The same on the batches of both ranks in one process: masks and weights."""
    model = perceptron()
    optimizer = sgd(model)
    sparsifier = Sparsifier(model, optimizer, 0.2, algorithm=algorithm, update_every=2, kernels=False)
    for step in range(count):
        both = [data_of(rank, step, False) for rank in range(WORLD)]
        optimizer.zero_grad()
        F.cross_entropy(model(torch.cat([x for x, _ in both])), torch.cat([y for _, y in both])).backward()
        optimizer.step()
    return sparsifier.masks, model.state_dict()


def assert_same_on_all(tensors: list[torch.Tensor]) -> None:
    for one in tensors:
        others = [torch.empty_like(one) for _ in range(WORLD)]
        distributed.all_gather(others, one.contiguous())
        assert all(torch.equal(one, other) for other in others)


@pytest.mark.parametrize("algorithm", ["sparse momentum", "RigL"])
def test_data_parallel_is_what_one_process_does(algorithm: str, tmp_path: Path) -> None:
    def body(rank: int) -> None:
        model = nn.parallel.DistributedDataParallel(perceptron())
        optimizer = sgd(model)
        sparsifier = Sparsifier(model, optimizer, 0.2, algorithm=algorithm, update_every=2, kernels=False)
        assert list(sparsifier.masks) == ["0.weight", "2.weight"]
        steps(model, optimizer, rank, 0, 6, images=False)
        assert sparsifier.updates == 3
        masks, state = alone(algorithm, 6)
        for name, mask in masks.items():
            assert torch.equal(mask, sparsifier.masks[name]), name
        for name, value in state.items():
            torch.testing.assert_close(model.module.state_dict()[name], value, rtol=1e-4, atol=1e-5)
        assert_same_on_all([*(mask.byte() for mask in sparsifier.masks.values()), *model.state_dict().values()])

    on_two_ranks(body, tmp_path)


def test_data_parallel_on_sparse_kernels(tmp_path: Path) -> None:
    def body(rank: int) -> None:
        model = nn.parallel.DistributedDataParallel(network())
        optimizer = sgd(model)
        sparsifier = Sparsifier(model, optimizer, 0.2, algorithm="RigL", update_every=3, progress=False)
        with prefer("fine-grained", "graph", "layers"):
            steps(model, optimizer, rank, 0, 8, images=True)
        assert "4 layers on sparse kernels" in sparsifier.line
        assert sparsifier.updates == 2
        weights = [p.detach() for p in model.parameters()]
        assert_same_on_all([*(mask.byte() for mask in sparsifier.masks.values()), *weights])

    on_two_ranks(body, tmp_path)


@pytest.mark.parametrize("algorithm", ["sparse momentum", "SET", "gradual magnitude"])
def test_sharded_weights_have_the_masks_of_whole_ones(algorithm: str, tmp_path: Path) -> None:
    """Also where the shards are of different sizes, 5 rows on two ranks."""

    def body(rank: int) -> None:
        from torch.distributed.fsdp import fully_shard
        from torch.distributed.tensor import DTensor

        options: Any = {"last_update": 6} if algorithm == "gradual magnitude" else {}
        model = perceptron()
        for layer in (model[0], model[2]):
            fully_shard(layer)
        fully_shard(model)
        optimizer = sgd(model)
        sparsifier = Sparsifier(model, optimizer, 0.2, algorithm=algorithm, update_every=2, **options)
        assert isinstance(model[2].weight, DTensor)
        assert "its weights are sharded" in sparsifier.line
        steps(model, optimizer, rank, 0, 6, images=False)
        if algorithm != "gradual magnitude":
            masks, state = alone(algorithm, 6)
            for name, mask in masks.items():
                assert torch.equal(mask, sparsifier.masks[name]), name
            for name, value in state.items():
                torch.testing.assert_close(model.state_dict()[name].full_tensor(), value, rtol=1e-4, atol=1e-5)
        for name, parameter in model.named_parameters():
            if name in sparsifier.masks:
                whole = parameter.full_tensor().detach()
                assert not whole[~sparsifier.masks[name]].any()
        assert sum(sparsifier.nonzeros.values()) == 120
        state_dict = copy.deepcopy(sparsifier.state_dict())
        steps(model, optimizer, rank, 6, 1, images=False)
        sparsifier.load_state_dict(state_dict)
        assert sparsifier.steps == 6

    on_two_ranks(body, tmp_path)


def test_ranks_that_disagree_raise_on_all(tmp_path: Path) -> None:
    def body(rank: int) -> None:
        model = nn.parallel.DistributedDataParallel(perceptron())
        optimizer = sgd(model)
        with pytest.raises(RuntimeError, match="expected the same masks on all ranks, got others on rank 1"):
            Sparsifier(model, optimizer, 0.2, seed=rank, kernels=False)
        assert model.module[0].weight.all()  # nothing has changed
        mask = Masking(optimizer, prune_every_k_steps=2, growth_mode="random", kernels=False)
        mask.add_module(model, 0.2)
        steps(model, optimizer, rank, 0, 1, images=False)
        before = mask.masks
        if rank == 1:
            with torch.no_grad():
                model.module[0].weight.mul_(torch.rand(24, 20))
        with pytest.raises(RuntimeError, match="expected the same masks on all ranks, got others on rank 1"):
            mask.at_end_of_epoch()
        assert all(torch.equal(one, mask.masks[name]) for name, one in before.items())

    on_two_ranks(body, tmp_path)


def test_an_error_on_one_rank_is_one_on_all(tmp_path: Path) -> None:
    def body(rank: int) -> None:
        model = nn.parallel.DistributedDataParallel(perceptron())
        optimizer = sgd(model)
        sparsifier = Sparsifier(model, optimizer, 0.2, algorithm="SET", kernels=False)
        steps(model, optimizer, rank, 0, 1, images=False)
        if rank == 1:
            with torch.no_grad():
                model.module[0].weight.fill_(float("nan"))
        kind, message = (
            (FloatingPointError, "weights that are finite") if rank else (RuntimeError, "an error on rank 1")
        )
        with pytest.raises(kind, match=message):
            sparsifier.update()

    on_two_ranks(body, tmp_path)


def test_a_shard_that_is_not_finite_refuses_the_step_on_all(tmp_path: Path) -> None:
    def body(rank: int) -> None:
        from torch.distributed.fsdp import fully_shard

        model = perceptron()
        fully_shard(model)
        optimizer = sgd(model)
        Sparsifier(model, optimizer, 0.2, algorithm="SET")
        inputs, labels = data_of(rank, 0, False)
        F.cross_entropy(model(inputs), labels).backward()
        if rank == 0:
            model[0].weight.grad.to_local()[0, 0] = float("nan")  # type: ignore[operator]
        with pytest.raises(FloatingPointError, match="'0.weight'" if rank == 0 else "a weight on another rank"):
            optimizer.step()

    on_two_ranks(body, tmp_path)


def test_ranks_that_average_by_themselves_say_so(tmp_path: Path) -> None:
    def body(rank: int) -> None:
        model = perceptron()
        optimizer = sgd(model)
        sparsifier = Sparsifier(
            model, optimizer, 0.2, algorithm="SET", process_group=distributed.group.WORLD, kernels=False
        )
        if rank == 1:
            sparsifier.set_masks({"0.weight": ~sparsifier.masks["0.weight"]})
        with pytest.raises(RuntimeError, match="expected the same masks on all ranks"):
            sparsifier.update()

    on_two_ranks(body, tmp_path)
