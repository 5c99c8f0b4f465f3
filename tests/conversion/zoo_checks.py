# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What every architecture of the zoo has to pass, whoever wrote it."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence

import torch
from torch import nn
from twins import Call, Pass, Wrong, agree

import sparsekernels as sk
from sparsekernels.bench.models import calibrate_
from sparsekernels.conversion.report import Report
from sparsekernels.pruning import prune_
from sparsekernels.testing import prefer

PREFERENCE = ("fine-grained", "chains", "graph", "layers")
"""Everything that has nonzeros and zeros converts."""


def prepared(model: nn.Module, call: Call, sparsity: float = 0.9) -> nn.Module:
    """Pruned, of lively BatchNorms, without chance, in evaluation mode."""
    without_chance(model)
    model.eval()
    if len(call.args) == 1 and not call.kwargs and isinstance(call.args[0], torch.Tensor):
        calibrate_(model, call.args[0])
    prune_(model, "random", sparsity)
    return model


def without_chance(model: nn.Module) -> None:
    """Dropout of all kinds drops nothing."""
    names = ("p", "drop_prob", "dropout", "attn_drop_p", "layerdrop", "attention_dropout", "activation_dropout")
    for module in model.modules():
        for name in names:
            if isinstance(vars(module).get(name), float):
                setattr(module, name, 0.0)


def converted(model: nn.Module, call: Call) -> Report:
    with prefer(*PREFERENCE):
        return sk.convert(model, call.args, example_kwargs=dict(call.kwargs))


def check_evaluation(model: nn.Module, calls: Sequence[Call], gradients: bool = True) -> Report:
    """Converts on the first of `calls`, and compares on all; copies, the state and the way back, too."""
    dense = copy.deepcopy(model)
    wide = copy.deepcopy(model).double()
    types = {name: type(module) for name, module in model.named_modules()}
    report = converted(model, calls[0])
    for call in calls:
        agree(model, dense, Pass(False, False, inference=True), call, wide=wide)
    if gradients:
        agree(model, dense, Pass(False, True), calls[0], wide=wide)
    expect_state(model, dense)
    agree(copy.deepcopy(model), dense, Pass(False, False), calls[0], wide=wide)
    agree(pickle.loads(pickle.dumps(model)), dense, Pass(False, False), calls[0], wide=wide)
    agree(model, dense, Pass(False, False), calls[0], wide=wide)
    sk.revert(model)
    if {name: type(module) for name, module in model.named_modules()} != types:
        raise Wrong("revert leaves other modules")
    if any("forward" in vars(module) for module in model.modules()):
        raise Wrong("revert leaves a graph")
    expect_state(model, dense)
    return report


def check_training(model: nn.Module, call: Call) -> Report:
    """Converts in training mode, and compares a pass with gradients there, and one without."""
    dense = copy.deepcopy(model)
    model.train()
    report = converted(model, call)
    expect_state(model, dense)
    agree(model, dense, Pass(True, True), call)
    sk.revert(model)
    for name, values in dense.named_parameters():
        if not torch.equal(values, model.get_parameter(name)):
            raise Wrong(f"revert gives another {name}")
    return report


def expect_state(model: nn.Module, dense: nn.Module) -> None:
    """The same keys in the same order, the same values bit for bit."""
    mine, theirs = model.state_dict(), dense.state_dict()
    if list(mine) != list(theirs):
        raise Wrong(f"the keys of the state are {list(mine)}, not {list(theirs)}")
    for name, values in theirs.items():
        if mine[name].dtype != values.dtype or not torch.equal(mine[name], values):
            raise Wrong(f"the state has another {name}")
