# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Sparse training: a network that is sparse from the first step, with an exact number of nonzeros."""

from .algorithms import ALGORITHMS, GROWTH, PRUNING, REDISTRIBUTION, Algorithm
from .allocation import allocate, distribute
from .base import Update
from .checkpoint import load_checkpoint, save_checkpoint
from .functions import constant_fan_in, largest_signal, magnitude, neurons, set_pruning
from .masking import Masking, add_sparse_args
from .schedules import ConstantRate, CosineDecay, LinearDecay
from .sparsifier import Sparsifier

__all__ = [
    "ALGORITHMS",
    "GROWTH",
    "PRUNING",
    "REDISTRIBUTION",
    "Algorithm",
    "ConstantRate",
    "CosineDecay",
    "LinearDecay",
    "Masking",
    "Sparsifier",
    "Update",
    "add_sparse_args",
    "allocate",
    "constant_fan_in",
    "distribute",
    "largest_signal",
    "load_checkpoint",
    "magnitude",
    "neurons",
    "save_checkpoint",
    "set_pruning",
]
