# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What holds of every model that another tool pruned: its masks are read, and it becomes a plain one."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from conversion_checks import DENSE, FINE, LAYERS, assert_agree
from torch import Tensor, nn

import sparsekernels as sk
from sparsekernels.pruning import finalize, masks_of
from sparsekernels.testing import prefer

WEIGHTS = ["body.0.weight", "body.3.weight", "fc1.weight", "fc2.weight"]


class Net(nn.Module):
    """Of the layers that tools prune. NNCF takes no torch.nn.Sequential."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()),
        )
        self.fc1, self.fc2 = nn.Linear(128, 64), nn.Linear(64, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(torch.relu(self.fc1(self.body(x))))


def net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net().eval()


def images() -> Tensor:
    return torch.randn(4, 16, 8, 8, generator=torch.Generator().manual_seed(1))


def assert_same_masks(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    assert sorted(found) == sorted(wanted)
    for name, mask in wanted.items():
        assert found[name].dtype == torch.bool
        assert torch.equal(found[name], mask.bool()), name


def contents(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in (*model.named_parameters(), *model.named_buffers())}


def assert_only_read(model: nn.Module, wanted: Mapping[str, Tensor]) -> None:
    """`masks_of` gives these and changes nothing."""
    before, modes = contents(model), [module.training for module in model.modules()]
    state = torch.get_rng_state()
    found = masks_of(model)
    assert_same_masks(found, wanted)
    assert torch.equal(state, torch.get_rng_state())
    assert modes == [module.training for module in model.modules()]
    after = contents(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    held = {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    assert not any(mask.data_ptr() in held for mask in found.values())  # which a later step of the tool would change


def assert_told(model: nn.Module, words: str, layers: int = 4) -> None:
    """What `convert` says of the last layers as they are."""
    with prefer(FINE, LAYERS):
        report = sk.convert(model, images())
    rows = report.layers[-layers:]
    assert [row.decision for row in rows] == [DENSE] * layers
    said = [*report.notes, *(row.reason or "" for row in rows)]
    assert any("sparsekernels.pruning.finalize(model)" in one for one in said), said
    assert any(words in one for one in said), said
    assert not any("not pruned" in one for one in said), said


def assert_becomes_plain(model: nn.Module, masks: Mapping[str, Tensor], same_parameters: bool = True) -> None:
    """A model whose masks are applied, finalized: it computes the same, trains and converts."""
    x = images()
    with torch.no_grad():
        expected = model.eval()(x)
    before, values = {id(one) for one in model.parameters()}, [one.requires_grad for one in model.parameters()]
    assert_same_masks(finalize(model), masks)
    plain = net(seed=1)
    assert {id(one) for one in model.parameters()} <= before or not same_parameters
    assert [type(one) for one in model.modules()] == [type(one) for one in plain.modules()]
    assert {**model.state_dict()}.keys() == {**plain.state_dict()}.keys()
    assert all(values) == all(one.requires_grad for one in model.parameters())
    with torch.no_grad():
        assert torch.equal(model(x), expected)
        plain.load_state_dict(model.state_dict())
        assert torch.equal(plain(x), expected)
    weights = dict(model.named_parameters())
    assert not any(weights[name][~mask.bool()].any() for name, mask in masks.items())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(x).square().mean().backward()
    optimizer.step()
    assert not torch.equal(model(x), expected)
    optimizer.zero_grad()
    model.load_state_dict(plain.state_dict())
    with prefer(FINE, LAYERS):
        report = sk.convert(model, x)
    assert [row.decision for row in report.layers] == [FINE] * 4, report
    assert_agree(model, plain, x)


def check(model: nn.Module, masks: Mapping[str, Tensor], words: str) -> None:
    """All of that, of copies of a model that a tool has pruned."""
    assert_only_read(model, masks)
    assert_told(copy.deepcopy(model), words)
    assert_becomes_plain(copy.deepcopy(model), masks)
