# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Measured launch configurations: the committed table, and how configuration functions consult it."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from sparsekernels.ops import _triton_table as table
from sparsekernels.ops.rms_norm import triton_config


@dataclasses.dataclass(frozen=True)
class Config:
    block: int
    warps: int


@pytest.fixture
def rule(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Config]:
    monkeypatch.setattr(table, "TUNED", {})

    @table.from_table("test.kernel", tunes=("warps",))
    @functools.cache
    def config(cols: int, dtype: torch.dtype = torch.bfloat16) -> Config:
        return Config(cols, 4)

    return config


def use(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int] | None, document: Any) -> None:
    monkeypatch.setattr(table._tables, "measured", table.read(json.dumps(document), "a table"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)


DOCUMENT = {"9.0": {"measured": "a GPU", "kernels": {"test.kernel": {"64,bfloat16": {"warps": 8}}}}}


def test_the_committed_table() -> None:
    """Of kernels that there are, and of fields that may be changed."""
    for kernels in table.read(table.FILE.read_text(encoding="utf-8"), table.FILE.name).values():
        for kernel, entries in kernels.items():
            assert all(set(entry) <= set(table.TUNED[kernel].tunes) for entry in entries.values())


def test_an_entry_goes_before_the_rule(rule: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    assert rule(64) == Config(64, 4)
    use(monkeypatch, (9, 0), DOCUMENT)
    assert rule(64) == rule(cols=64) == rule(64, torch.bfloat16) == Config(64, 8)
    assert rule(64, torch.float32) == Config(64, 4)
    assert rule(65) == Config(65, 4)
    assert table.lookup("test.kernel", "64,bfloat16") == {"warps": 8}
    assert table.lookup("test.kernel", "64,bfloat16", (8, 0)) is None
    assert table.lookup("other", "64,bfloat16") is None


@pytest.mark.parametrize("capability", [None, (8, 0), (10, 0)])
def test_on_other_gpus_the_rule_counts(
    rule: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int] | None
) -> None:
    use(monkeypatch, capability, DOCUMENT)
    assert rule(64) == Config(64, 4)


def test_what_is_tried_goes_before_the_table(rule: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, (9, 0), DOCUMENT)
    with table.trying("test.kernel", "64,bfloat16", {"warps": 2}), table.listening() as asked:
        assert rule(64) == Config(64, 2)
        rule(128)
    assert rule(64) == Config(64, 8)
    assert asked == [
        table.Asked("test.kernel", "64,bfloat16", Config(64, 2)),
        table.Asked("test.kernel", "128,bfloat16", Config(128, 4)),
    ]


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ([], "a table: expected an object by compute capability, got list"),
        ({"9.0": {"kernels": {}}}, "a table: expected measured and kernels under '9.0', got "),
        ({"9.0": {"measured": "", "kernels": {"a": {"1": {"warps": 1.5}}}}}, "a table: expected integers for a at '1'"),
        (
            {"9.0": {"measured": "", "kernels": {"a": {"1": {"warps": True}}}}},
            "a table: expected integers for a at '1'",
        ),
    ],
)
def test_bad_tables(document: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        table.read(json.dumps(document), "a table")


def test_rms_norm_consults_it(monkeypatch: pytest.MonkeyPatch) -> None:
    forward, backward = triton_config.forward_tiling(4096, 2), triton_config.backward_tiling(4096, 2)
    entry = {"4096,2": {"num_warps": 2 * forward.num_warps}}
    use(monkeypatch, (9, 0), {"9.0": {"measured": "", "kernels": {"rms_norm.forward": entry}}})
    assert triton_config.forward_tiling(4096, 2) == dataclasses.replace(forward, num_warps=2 * forward.num_warps)
    assert triton_config.backward_tiling(4096, 2) == backward
    assert {"rms_norm.forward", "rms_norm.backward"} <= set(table.TUNED)
