# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""nn.RMSNorm as a module."""

from __future__ import annotations

import copy
import pickle

import torch

import sparsekernels as sk


def test_module_is_a_drop_in() -> None:
    ours, theirs = sk.nn.RMSNorm(16, eps=1e-6), torch.nn.RMSNorm(16, eps=1e-6)
    assert isinstance(ours, torch.nn.RMSNorm)
    assert repr(ours) == repr(theirs)
    torch.nn.init.normal_(theirs.weight)
    ours.load_state_dict(theirs.state_dict())
    assert list(ours.state_dict()) == ["weight"]
    x = torch.randn(3, 16)
    torch.testing.assert_close(ours(x), theirs(x))
    bare = sk.nn.RMSNorm([4, 4], elementwise_affine=False)
    assert bare.weight is None
    assert not bare.state_dict()
    torch.testing.assert_close(
        bare(x.view(3, 4, 4)), torch.nn.RMSNorm([4, 4], elementwise_affine=False)(x.view(3, 4, 4))
    )


def test_a_torch_module_becomes_ours() -> None:
    """As the README says."""
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.RMSNorm(8))
    x = torch.randn(3, 8)
    expected = model(x)
    for module in model.modules():
        if type(module) is torch.nn.RMSNorm:
            module.__class__ = sk.nn.RMSNorm
    assert isinstance(model[1], sk.nn.RMSNorm)
    torch.testing.assert_close(model(x), expected)


def test_module_copies_pickles_and_moves() -> None:
    module = sk.nn.RMSNorm(16, dtype=torch.float64)
    x = torch.randn(3, 16, dtype=torch.float64)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(other(x), module(x))
    assert module.to(torch.bfloat16).weight.dtype == torch.bfloat16
    assert module(x.bfloat16()).dtype == torch.bfloat16
    assert module.to("meta").weight.is_meta
