# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Linear layers with weights in blocks, on a GPU: torch's dense one and its BSR, blksprs, and ours.

All are given a dense input and return a dense output. The weight is kept in the form that each has for it, and so is
what depends on the pattern alone; what has to be done in each call is within the time. Where there are several ways to
write the call, the fastest is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from gpu_calls import Make, Operation, check_device, engine_of
from protocol import Engine, Job, Unavailable, serve
from torch import Tensor
from torch.nn import functional as F


def _dense(job: Job) -> Make:
    return lambda weight: {
        "contiguous": Operation(F.linear, weight.clone()),
        "transposed": Operation(F.linear, weight.t().contiguous().t()),
    }


def _bsr(job: Job) -> Make:
    from sparsekernels._torch import bsr_linear

    if job["pass"] != "forward":
        raise Unavailable("torch has no gradients of a product with a weight in BSR")
    functions: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "linear": F.linear,
        "product": lambda x, weight: (weight @ x.t()).t().contiguous(),
    }
    if job["device"] == "cuda":
        functions["triton"] = bsr_linear()

    def make(weight: Tensor) -> Mapping[str, Operation]:
        _check_whole(weight, *job["block"])
        stored = weight.to_sparse_bsr(tuple(job["block"]))
        return {name: Operation(function, stored) for name, function in functions.items()}

    return make


def _blksprs(job: Job) -> Make:
    """The product of the compressed input and the compressed weight, [in, out] as it multiplies from the right.

    Its checks of arguments are switched off, as its interface offers: they ask the device for numbers in each call.
    Each operation keeps its own cache of what follows from layouts. The gradients are its own, through autograd; these
    work out anew what follows from layouts.
    """
    import blksprs

    ops, (size, columns) = blksprs.ops, job["block"]
    if size != columns or size < 16 or size & (size - 1):
        raise Unavailable("blksprs has square blocks alone, whose size is a power of two from 16 on")
    blksprs.utils.disable_validation()
    inward = {"to_sparse": ops.to_sparse, "to_sparse_row_striped": ops.to_sparse_row_striped}
    outward = {"to_dense": ops.to_dense, "to_dense_row_striped": ops.to_dense_row_striped}

    def make(weight: Tensor) -> Mapping[str, Operation]:
        _check_whole(weight, size, size)
        stored = weight.t().contiguous()[None]
        layout = _blocks_of(stored, size).ne(0).any(-1).any(-1)
        values = ops.to_sparse(stored, layout, size).as_subclass(Tensor).clone()

        def way(compress: Callable[..., Tensor], expand: Callable[..., Tensor]) -> Operation:
            caches: list[dict[str, object]] = [{}, {}, {}]
            full: dict[torch.Size, tuple[Tensor, Tensor]] = {}

            def run(x: Tensor, own: Tensor) -> Tensor:
                if x.shape not in full:
                    _check_whole(x, size, size)
                    rows = x.size(0) // size
                    full[x.shape] = tuple(layout.new_ones(1, rows, some) for some in layout.shape[1:])
                before, after = full[x.shape]
                packed = compress(x[None], before, size, layout_cache=caches[0])
                product = ops.matmul(packed, before, own, layout, after, size, layout_cache=caches[1])
                return expand(product, after, size, layout_cache=caches[2])[0]

            return Operation(run, values.clone(), lambda gradient: ops.to_dense(gradient, layout, size)[0].t())

        return {f"{one}, {other}": way(inward[one], outward[other]) for one in inward for other in outward}

    return make


def _blocks_of(tensor: Tensor, size: int) -> Tensor:
    """[1, rows / size, columns / size, size, size], of [1, rows, columns]."""
    return tensor.unflatten(2, (-1, size)).unflatten(1, (-1, size)).transpose(2, 3)


def _ours(job: Job) -> Make:
    import sparsekernels
    from sparsekernels.formats import BlockSparse

    def make(weight: Tensor) -> Mapping[str, Operation]:
        pattern = BlockSparse.from_dense(weight, weight != 0, block=tuple(job["block"]))
        values = pattern.values.detach().requires_grad_(job["pass"] != "forward")
        stored = pattern.with_values(values)
        return {"": Operation(lambda x, _: sparsekernels.sparse_linear(x, stored), values, _to_dense(pattern))}

    def _to_dense(pattern: BlockSparse) -> Callable[[Tensor], Tensor]:
        return lambda gradient: pattern.with_values(gradient).to_dense()

    return make


def _check_whole(tensor: Tensor, rows: int, columns: int) -> None:
    """Raises `Unavailable` where a matrix is not made of whole blocks."""
    if tensor.size(0) % rows or tensor.size(1) % columns:
        raise Unavailable(f"{list(tensor.shape)} is not whole blocks of {rows}x{columns}")


WAYS: dict[str, tuple[Callable[[Job], Make], str]] = {
    "dense": (_dense, "torch"),
    "bsr": (_bsr, "torch"),
    "blksprs": (_blksprs, "blksprs"),
    "ours": (_ours, "sparsekernels"),
}
"""By the way of a job: what makes the layer, and the package whose version counts."""


def prepare(job: Job) -> Engine:
    """The pass in the way that the job names."""
    check_device(job)
    make, package = WAYS[job["way"]]
    return engine_of(job, make(job), package)


if __name__ == "__main__":
    serve(prepare)
