# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The suite `networks` on CUDA: a network in every format."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import fake_cuda
import pytest
import torch
from fake_cuda import measure
from torch import Tensor, nn

import sparsekernels as sk
from sparsekernels.bench import network_formats, networks
from sparsekernels.bench.models import MODELS, Model
from sparsekernels.bench.network import prune_filters_
from sparsekernels.bench.suite import Case, Selection


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Small(nn.Module):
    """Two convolutions and a Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.second, self.last = nn.Conv2d(16, 16, 3), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        return self.last(torch.relu(self.second(x)).mean((2, 3)))  # type: ignore[no-any-return]


class TestNetworks:
    @pytest.fixture(autouse=True)
    def small(self, monkeypatch: pytest.MonkeyPatch, graphs: type[fake_cuda.Graph]) -> None:
        monkeypatch.setitem(MODELS, "small", Model(Small, (3, 8, 8), 5, "for this test"))
        monkeypatch.setattr(torch, "autocast", functools.partial(_autocast, torch.autocast))

    def case(self, pass_: str, dtype: str) -> Case:
        keys = {"blocks": ["8x8"], "sparsities": [50]}
        return Case("networks", "test/small", pass_, dtype, "cuda", 6, True, keys, True)

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    @pytest.mark.parametrize("pass_", ["forward", "step"])
    def test_every_format(self, pass_: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(network_formats, "convert", lambda *_, **__: SimpleNamespace(converted=[]))
        records, notes = measure(self.case(pass_, dtype), networks.SUITE)
        names = ["dense", "dropped:channels-50", "sparse:random-50", "converted:random-50", "block:8x8-50"]
        names.append("converted:8x8-50")
        assert list(records) == [*names, *(f"{name}/graph" for name in names)]
        converted = {name: one for name, one in records.items() if one.kind == "converted"}
        assert {one.status for one in converted.values()} == {"unavailable"}
        others = {name: one.status for name, one in records.items() if name not in converted}
        assert others == dict.fromkeys(others, "ok"), notes
        assert records["block:8x8-50"].details["layout"] in ("contiguous", "channels_last")

    @pytest.mark.parametrize(
        ("name", "kinds"),
        [
            ("sparse:random-50", (sk.nn.SparseConv2d, sk.nn.SparseConv2d, sk.nn.SparseLinear)),
            ("block:8x8-50", (sk.nn.SparseConv2d, sk.nn.SparseConv2d, sk.nn.SparseLinear)),
            ("block:16x16-50", (sk.nn.SparseConv2d, sk.nn.SparseConv2d, nn.Linear)),
            ("dropped:channels-50", (sk.nn.ChannelDroppedConv2d, sk.nn.ChannelDroppedConv2d, nn.Linear)),
        ],
    )
    def test_every_layer_has_the_format(
        self, monkeypatch: pytest.MonkeyPatch, name: str, kinds: tuple[type, ...]
    ) -> None:
        """A layer that has nothing to leave out stays dense: the last is one block of 16x16, and loses no filter."""
        seen: list[tuple[type, ...]] = []
        right = network_formats.call_of

        def spied(network: Any, model: Any, *others: Any) -> Any:
            seen.append(tuple(type(one) for one in (model.first, model.second, model.last)))
            return right(network, model, *others)

        monkeypatch.setattr(network_formats, "call_of", spied)
        selection = Selection(device="cuda", blocks=("8x8", "16x16") if name.startswith("block") else ())
        ways = {one.name: one for one in networks.variants(self.case("forward", "float32"), selection)}
        ways[name].prepare()
        assert set(seen) == {kinds}

    def test_a_wrong_network_has_no_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        right = sk.nn.SparseConv2d.forward
        monkeypatch.setattr(sk.nn.SparseConv2d, "forward", lambda self, x: right(self, x) * 1.1)
        chosen = Selection(device="cuda", variants=("dense", "sparse", "block"))
        records, _ = measure(self.case("forward", "float32"), networks.SUITE, chosen)
        for name in ("sparse:random-50", "block:8x8-50", "sparse:random-50/graph"):
            assert (records[name].status, records[name].p50_ms) == ("wrong", None)
        assert records["dense"].status == "ok"

    @pytest.mark.parametrize("sparsity", [0.5, 0.9])
    def test_filters(self, sparsity: float) -> None:
        model = Small()
        prune_filters_(model, sparsity)
        for one in (model.first, model.second):
            kept = one.weight.flatten(1).any(1)
            assert kept.sum() == max(1, round(16 * (1 - sparsity)))
        assert model.last.weight.all()


def _autocast(right: Any, device: str, *arguments: Any, **options: Any) -> Any:
    return right("cpu" if device == "cuda" else device, *arguments, **options)
