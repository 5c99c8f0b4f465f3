# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Sparse training: a network that is sparse from the first step, with an exact number of nonzeros; lottery tickets."""

from .algorithms import ALGORITHMS, GROWTH, PRUNING, REDISTRIBUTION, Algorithm
from .allocation import allocate, distribute
from .base import Update
from .checkpoint import load_checkpoint, save_checkpoint
from .criteria import CRITERIA, criterion, diff_sign, same_sign
from .functions import constant_fan_in, largest_signal, magnitude, neurons, set_pruning
from .held import HeldMasks
from .ladder import kept_after
from .learned import LearnedSupermask
from .lottery import Lottery
from .masking import Masking, add_sparse_args
from .schedules import ConstantRate, CosineDecay, LinearDecay
from .sparsifier import Sparsifier
from .supermasks import Supermask, one_shot_supermask
from .tickets import Ticket
from .treatments import starting_weights

__all__ = [
    "ALGORITHMS",
    "CRITERIA",
    "GROWTH",
    "PRUNING",
    "REDISTRIBUTION",
    "Algorithm",
    "ConstantRate",
    "CosineDecay",
    "HeldMasks",
    "LearnedSupermask",
    "LinearDecay",
    "Lottery",
    "Masking",
    "Sparsifier",
    "Supermask",
    "Ticket",
    "Update",
    "add_sparse_args",
    "allocate",
    "constant_fan_in",
    "criterion",
    "diff_sign",
    "distribute",
    "kept_after",
    "largest_signal",
    "load_checkpoint",
    "magnitude",
    "neurons",
    "one_shot_supermask",
    "same_sign",
    "save_checkpoint",
    "set_pruning",
    "starting_weights",
]
