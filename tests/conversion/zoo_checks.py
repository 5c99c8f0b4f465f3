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
    make_lively(model)
    if len(call.args) == 1 and not call.kwargs and isinstance(call.args[0], torch.Tensor):
        calibrate_(model, call.args[0])
    prune_(model, "random", sparsity)
    return model


@torch.no_grad()
def make_lively(model: nn.Module) -> None:
    """What begins at zero, or nearly so, would hide what comes before it: heads, biases, the scales of residuals."""
    for parameter in model.parameters():
        if not parameter.any():
            parameter.normal_(std=0.1)
        elif parameter.numel() == max(parameter.shape, default=1) and parameter.abs().max() < 0.01:
            parameter.uniform_(0.5, 1.0)


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


def check_evaluation(model: nn.Module, calls: Sequence[Call]) -> Report:
    """Converts on the first of `calls`, and compares on all; copies, the state and the way back, too."""
    dense = copy.deepcopy(model)
    wide = copy.deepcopy(model).double()
    types = {name: type(module) for name, module in model.named_modules()}
    report = converted(model, calls[0])

    def compare(other: nn.Module, one: Pass, call: Call = calls[0]) -> None:
        if not agree(other, dense, one, call, wide=wide):
            raise Wrong(f"{one}: the dense model is too sensitive to be compared with")

    for call in (*calls, *calls[1:]):  # a shape that comes again may run as a graph
        compare(model, Pass(False, False, inference=True), call)
    expect_state(model, dense)
    compare(copy.deepcopy(model), Pass(False, False))
    compare(pickle.loads(pickle.dumps(model)), Pass(False, False))
    compare(model, Pass(False, False))
    compare(model, Pass(False, True))  # last: some keep what torch does not copy afterwards
    sk.revert(model)
    if {name: type(module) for name, module in model.named_modules()} != types:
        raise Wrong("revert leaves other modules")
    if any("forward" in vars(module) for module in model.modules()):
        raise Wrong("revert leaves a graph")
    expect_state(model, dense)
    return report


def check_training(model: nn.Module, call: Call) -> bool:
    """Converts in training mode, and compares a pass with gradients. False where the model is too sensitive."""
    dense = copy.deepcopy(model)
    model.train()
    converted(model, call)
    expect_state(model, dense)
    said = agree(model, dense, Pass(True, True), call)
    sk.revert(model)
    for name, values in dense.named_parameters():
        if not torch.equal(values, model.get_parameter(name)):
            raise Wrong(f"revert gives another {name}")
    return said


def expect_state(model: nn.Module, dense: nn.Module) -> None:
    """The same keys in the same order, the same values bit for bit."""
    mine, theirs = model.state_dict(), dense.state_dict()
    if list(mine) != list(theirs):
        raise Wrong(f"the keys of the state are {list(mine)}, not {list(theirs)}")
    for name, values in theirs.items():
        if mine[name].dtype != values.dtype or not torch.equal(mine[name], values):
            raise Wrong(f"the state has another {name}")
