# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Converted linear layers by the number of rows: `python benchmarks/layer_rows.py [DTYPE] [THREADS] [SHAPE ...]`.

The model of generate.py, of one block, converted on a prompt and a decoding step; 90% random zeros. Each distinct
layer, and what a graph made of it, beside its dense twin: interleaved, with cold caches, at the numbers of rows that
`convert` measures and at some between. A ratio is dense over converted; a star marks those served by the dense product.
Shapes such as 64x64 are layers by themselves, converted on 512 rows and on 1.
"""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Callable, Iterator

import generate
import torch
from torch import Tensor, nn

import sparsekernels as sk
from sparsekernels.conversion.rows import ROWS, emptied
from sparsekernels.conversion.watch.state import CONVERSION
from sparsekernels.nn.replacement import has_rows
from sparsekernels.timing import Effort, median_ratio, samples_of

BETWEEN = (3, 5, 12, 17, 24, 33, 48, 100, 200, 300, 1024)
EFFORT = Effort(seconds=0.3, sample=1e-6, least=21, most=101, slow=0.0)

Way = tuple[str, Callable[[Tensor], Tensor], tuple[bool, ...]]


def ways_of(model: nn.Module) -> Iterator[tuple[str, list[Way]]]:
    """The names of sparse linear layers, and how each is computed, with the table of its rows."""
    fused = {}
    if CONVERSION in vars(model):
        plans = [graph.prepare() for _, graph in vars(model)[CONVERSION].live_graphs()]
        fused = {id(one.parts[0]): one for plan in plans for one in plan.fused}
    for name, layer in model.named_modules():
        if isinstance(layer, sk.nn.SparseLinear):
            ways: list[Way] = [("module", layer, layer.dense_rows)]
            if id(layer) in fused:
                ways.append(("graph", fused[id(layer)], fused[id(layer)].dense_rows))
            yield name, ways


def llama(dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    """Dense and converted."""
    dense = generate.pruned(1, dtype)
    model, prompt = copy.deepcopy(dense), torch.randint(generate.VOCABULARY, (1, generate.PROMPT))
    with torch.inference_mode():
        scores, cache = dense(prompt)
    print(sk.convert(model, example_inputs=[((prompt,), {}), ((scores.argmax(-1), cache), {})]))
    return dense, model


def single(shape: str, dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    outputs, inputs = map(int, shape.split("x"))
    dense = nn.Sequential(nn.Linear(inputs, outputs)).to(dtype).eval()
    generate.prune_(dense)
    model, examples = copy.deepcopy(dense), [((torch.randn(rows, inputs).to(dtype),), {}) for rows in (512, 1)]
    print(sk.convert(model, example_inputs=examples))
    return dense, model


def main() -> None:
    dtype = getattr(torch, sys.argv[1] if len(sys.argv) > 1 else "float32")
    torch.set_num_threads(int(sys.argv[2]) if len(sys.argv) > 2 else torch.get_num_threads())
    torch.manual_seed(0)
    pairs = [single(shape, dtype) for shape in sys.argv[3:]] or [llama(dtype)]
    numbers = sorted({*ROWS, *BETWEEN})
    print(f"{'':<20}{'':<8}", *(f"{rows:>6}" for rows in numbers), sep="")
    lowest, seen = (float("inf"), ""), set()
    for dense, model in pairs:
        between = emptied(sum(one.nbytes for one in dense.parameters()))
        for name, ways in ways_of(model):
            layer, twin = model.get_submodule(name), dense.get_submodule(name)
            twin.weight, twin.bias = layer.weight, layer.bias  # one place in memory
            kind = tuple(twin.weight.shape), *(table for _, _, table in ways)
            if kind in seen:
                continue
            seen.add(kind)
            ratios: dict[str, list[float]] = {way: [] for way, _, _ in ways}
            for rows in numbers:
                x = torch.randn(rows, twin.in_features).to(dtype)
                calls = {"dense": functools.partial(twin, x)}
                calls.update((way, functools.partial(call, x)) for way, call, _ in ways)
                with torch.inference_mode():
                    times = samples_of(calls, EFFORT, dict.fromkeys(calls, between))
                for way in ratios:
                    ratios[way].append(median_ratio(times["dense"], times[way]))
            for way, _, table in ways:
                stars = ["*" if has_rows(table, rows) else " " for rows in numbers]
                columns = [f"{ratio:>5.2f}{star}" for ratio, star in zip(ratios[way], stars, strict=True)]
                print(f"{name:<20}{way:<8}", *columns, sep="", flush=True)
                worst = min(range(len(numbers)), key=ratios[way].__getitem__)
                lowest = min(lowest, (ratios[way][worst], f"{name}, {way}, {numbers[worst]} rows"))
    print(f"least: {lowest[0]:.3f} ({lowest[1]})" if seen else "nothing was converted")


if __name__ == "__main__":
    main()
