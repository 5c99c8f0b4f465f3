# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The suite `few-rows`: linear layers on 1 to 16 rows, on a GPU up to 8192, in every format (`layer_formats.py`).

Few rows leave the tensor cores idle: what a call takes is the time to read its weight. Each call in turn has a copy
of the weight of its own, so many of them that the L2 cache does not hold them all, as in a model, where the layers
before have read theirs since. "GB/s" is the rate at which the values are read, each once, and a bit for every element
of a weight of single ones, which is the least that says where they are: for short rows the share of that in what the
device can read is what is reached, and 1 / density is out of reach (16 bits and 1, so 0.89 of it at 50% zeros and 0.44
at 95%).

From some 64 rows on the tensor cores decide, which leave out no single zeros. What is to be seen there is what the
zeros cost. On a GPU single elements are also measured by each way to multiply them: `routes.py`.
"""

from __future__ import annotations

import math

import torch

from ..timing import Effort
from .layer_formats import in_every_format
from .record import Record
from .report import Layout, detail_column, rate_column, share_column, speedup_column, time_column
from .suite import Suite


def gigabytes(record: Record) -> float | None:
    """What a call has to read of the weight, in GB (1e9 bytes): its values, and a bit for each element where needed."""
    rows, columns = map(int, record.case.partition("/")[2].partition("@")[0].split("x"))
    dtype: torch.dtype = getattr(torch, record.dtype)
    elements = rows * columns
    values = elements * (1 - (record.sparsity or 0.0)) * dtype.itemsize
    return 1e-9 * (values + (elements / 8 if record.kind == "sparse" else 0))


def of_bytes(record: Record) -> float | None:
    """The speedup, of the dense weight's bytes over these."""
    if record.speedup is None:
        return None
    rows, columns = map(int, record.case.partition("/")[2].partition("@")[0].split("x"))
    dtype: torch.dtype = getattr(torch, record.dtype)
    least = gigabytes(record)
    dense = 1e-9 * math.prod((rows, columns)) * dtype.itemsize
    return None if not least else record.speedup * least / dense


SUITE = Suite(
    name="few-rows",
    about="linear layers on few rows, where the bytes of the weight decide, and on a GPU on more",
    variants=in_every_format,
    baseline="dense",
    ideal=None,
    full=Effort(seconds=1.5, least=5),
    quick=Effort(seconds=0.4, least=3),
    layout=Layout(
        columns=(
            time_column("dense"),
            detail_column("dense", "layout", "layout"),
            rate_column("dense", "GB/s", gigabytes),
            speedup_column("dropped", "dropped"),
            time_column("sparse"),
            speedup_column("sparse", "speedup"),
            rate_column("sparse", "GB/s", gigabytes),
            share_column("sparse", "of the bytes", of_bytes),
            speedup_column("sparse-triton", "by Triton"),
            speedup_column("sparse-cuda", "by CUDA"),
            speedup_column("sparse-expanded", "expanded"),
            time_column("block"),
            speedup_column("block", "speedup in blocks"),
            speedup_column("torch-bsr", "torch-bsr"),
            speedup_column("torch-2to4", "torch-2to4"),
        ),
        legend=(
            "Medians of one call; the row says where the zeros are and how many percent. dense: torch's, in the faster "
            "of two layouts of the weight (named). Speedups are over dense, the median over the rounds. dropped: the "
            "dense layer without so many of its outputs. GB/s: of the values, and of a bit for each element where "
            "single ones are zero. of the bytes: the speedup, of the dense weight's bytes over these. by Triton, by "
            "CUDA, expanded: of single elements in that way, whatever a call chooses."
        ),
        subject="sparse",
        rivals=("dense", "torch-2to4"),
        chart="sparsity",
    ),
    sparse=True,
    in_blocks=True,
)
