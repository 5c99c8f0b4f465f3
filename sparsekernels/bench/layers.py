# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The suite `layers`: single layers of networks with fine-grained sparse weights, beside the dense layer.

A case is a layer, a pass and a batch. Its variants are the dense layer in float32 (the baseline), the same in bfloat16,
and ours for each pattern of nonzeros: "sparse:random-90" has 90% zeros in random places. With --block 32x32 there are
"block:32x32-90" and "block-bf16:32x32-90" in their place, as the suite `blocks` has them. All variants are interleaved,
so the dense layer is timed once and each speedup is taken within a round.

The dense layer is eager torch in the faster of two layouts: contiguous or channels_last, whichever takes less time when
the variant is made ready, with input and weight in that layout, and in bfloat16, beforehand. Weights packed for oneDNN
beforehand (torch.compile with freezing) can beat it where weights dominate. Ours is given float32 in the case's layout,
and what it converts counts. A single pass is one call of a kernel operator, without autograd; "all" is the forward, the
gradient to the input and that to the weight.

On CUDA the cases are others, in one dtype each, and have more formats: `layer_formats.py`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from .. import _library, testing
from ..formats import Unstructured
from ..ops.sparse_conv2d import implementations as kernels
from ..pruning import MASKS, kept_weights
from ..timing import Effort
from .block_layer import Ours, patterns
from .blocks import reachable
from .defaults import QUICK_MASKS, QUICK_SPARSITIES, SPARSITIES
from .devices import Built, Way, variants_of
from .layer import PASS_OF, RESULTS, TRUTH_IMAGES, Call, Inputs, Layer, dense_call, fastest_layout
from .layer_formats import in_every_format
from .record import Record
from .report import Layout, detail_column, rate_column, ratio_column, share_column, speedup_column, time_column
from .suite import Case, Selection, Suite, Variant, Verdict, read_cases


def sparse_call(layer: Layer, pass_: str, input: Tensor, weight: Unstructured, grad_output: Tensor) -> Call:
    """The pass as our kernel operators compute it."""
    geometry = layer.geometry
    image = layer.size, layer.size, layer.layout == "channels_last"
    x, dy = (tensor.view(*tensor.shape, 1, 1) if layer.linear else tensor for tensor in (input, grad_output))
    values, crow, col = weight.values, weight.crow_indices, weight.col_indices
    functions: dict[str, Callable[[], Tensor]] = {}
    if "output" in RESULTS[pass_]:
        functions["output"] = lambda: kernels.forward(x, values, None, crow, col, geometry)
    if "input gradient" in RESULTS[pass_]:
        transposed = tuple(weight.transposed(layer.groups))
        functions["input gradient"] = lambda: kernels.input_gradient(dy, values, *transposed, geometry, *image)
    if "weight gradient" in RESULTS[pass_]:
        functions["weight gradient"] = lambda: kernels.weight_gradient(dy, x, crow, col, geometry)
    calls = tuple(functions.values())
    return lambda: tuple(call() for call in calls)


class Oracle:
    """Holds all results of a sparse variant against those of the dense layer in float64.

    The gradient to the weight does not depend on which weights are kept: it is computed once for all patterns.
    """

    def __init__(self, case: Case, inputs: Inputs) -> None:
        self._pass, self._inputs = case.pass_, inputs

    def _both(self, result: str, weight: Tensor) -> tuple[Tensor, Tensor]:
        """One result of the dense layer: in float64, and in float32."""
        layer, pass_ = self._inputs.layer, PASS_OF[result]
        input, grad_output = self._inputs.tensors(pass_)
        (baseline,) = dense_call(layer, pass_, input, weight, grad_output)()
        parts = [
            dense_call(layer, pass_, some.double(), weight.double(), gradients.double())()[0]
            for some, gradients in zip(input.split(TRUTH_IMAGES), grad_output.split(TRUTH_IMAGES), strict=True)
        ]
        return torch.stack(parts).sum(0) if result == "weight gradient" else torch.cat(parts), baseline

    @functools.cached_property
    def _weight_gradient(self) -> tuple[Tensor, Tensor]:
        return self._both("weight gradient", self._inputs.weight)

    @torch.no_grad()
    def judge(self, results: tuple[Tensor, ...], weight: Tensor, kept: Tensor) -> Verdict:
        """`weight` is the dense weight with its zeros, `kept` says what is stored, in the order of the values."""
        comparisons = []
        for name, result in zip(RESULTS[self._pass], results, strict=True):
            if name == "weight gradient":
                truth, baseline = (tensor[kept] for tensor in self._weight_gradient)
            else:
                truth, baseline = self._both(name, weight)
                result = result.flatten(1) if self._inputs.layer.linear else result
            comparisons.append(testing.compare(name, result, truth, baseline))
        return Verdict(max(one.error for one in comparisons), all(one.passed for one in comparisons))


def variants(case: Case, selection: Selection) -> list[Variant]:
    """The dense layer in two dtypes, and ours for each pattern; on CUDA all of a case are in its dtype."""
    if case.device == "cuda":
        return in_every_format(case, selection)
    layer = Layer.of(case)
    real = None
    if case.parameters.get("from_file"):
        assert selection.weights is not None
        real = read_weights(selection.weights)[case.name.partition("/")[2].partition("@")[0]]
    inputs = Inputs(layer, real)
    oracle = Oracle(case, inputs)
    result = [
        Way("dense", functools.partial(_dense, case, inputs, torch.float32)),
        Way("dense-bf16", functools.partial(_dense, case, inputs, torch.bfloat16)),
    ]
    if real is not None:
        sparsity = 1 - real.count_nonzero().item() / real.numel()
        make = functools.partial(_sparse, case, inputs, oracle, lambda: real != 0)
        return variants_of(case, [*result, Way("sparse:real", make, round(sparsity, 5))])
    sparsities = tuple(dict.fromkeys(selection.sparsities or (QUICK_SPARSITIES if selection.quick else SPARSITIES)))
    masks = () if selection.blocks else QUICK_MASKS if selection.quick else MASKS
    for kind in dict.fromkeys(selection.masks or masks):
        for percent in sparsities:
            sparsity = round(percent / 100, 7)
            make = functools.partial(_sparse, case, inputs, oracle, functools.partial(_kept, kind, inputs, sparsity))
            result.append(Way(f"sparse:{kind}-{percent:g}", make, sparsity))
    for kind, dtype in (("block", torch.float32), ("block-bf16", torch.bfloat16)) if selection.blocks else ():
        given = inputs if dtype is torch.float32 else Inputs(layer, dtype=dtype)
        found = patterns(Ours(case.pass_, given, layer.layout), selection.blocks, sparsities)
        result += [pattern.way(kind, pattern.in_blocks) for pattern in found]
    return variants_of(case, result)


def _kept(kind: str, inputs: Inputs, sparsity: float) -> Tensor:
    return kept_weights(kind, inputs.weight, sparsity)


def _dense(case: Case, inputs: Inputs, dtype: torch.dtype) -> Built:
    """torch's layer in eager mode, in the faster of its layouts."""
    layer = inputs.layer
    calls, layout = fastest_layout(case.pass_, inputs, dtype)
    details = {**layer.details(), "gflop": layer.gflop(inputs.weight.numel(), case.pass_)}
    return Built(calls, torch.inference_mode, details={**details, **({"layout": layout} if layout else {})})


def _sparse(case: Case, inputs: Inputs, oracle: Oracle, keep: Callable[[], Tensor]) -> Built:
    """Ours, with the weights that `keep` says."""
    layer, kept = inputs.layer, keep()
    packed = Unstructured.from_dense(inputs.weight, kept)
    input, grad_output = inputs.tensors(case.pass_)
    call = sparse_call(layer, case.pass_, input, packed, grad_output)

    def judge(results: tuple[Tensor, ...]) -> Verdict:
        return oracle.judge(results, inputs.weight * kept, kept)

    details = {**layer.details(), "gflop": layer.gflop(int(kept.sum()), case.pass_), "peak_gflops": peak_gflops()}
    return Built([call], torch.inference_mode, None, judge, details)


@functools.cache
def peak_gflops() -> float | None:
    """The rate of multiply-adds with one operand from L1, measured; None where nothing here can measure it."""
    return None if _library.cpu is None else float(f"{kernels.fma_from_l1_gflops():.4g}")


@functools.cache
def read_weights(path: str) -> dict[str, Tensor]:
    """The pruned weights in the .npz file `path`, by layer, in the shapes that the suite's file gives them.

    A layer "conv1" is three arrays: conv1.shape, the shape of the weight; conv1.index, where in the flattened weight
    its nonzeros are; conv1.value, these. Raises ValueError that names the array at fault.
    """
    import numpy  # what draws the plots needs it, the package does not

    cases = {c.name.partition("/")[2]: c for c in read_cases("layers") if c.parameters.get("from_file")}
    result = {}
    try:
        with numpy.load(Path(path), allow_pickle=False) as file:
            arrays = {key: file[key] for name in cases for key in _keys(name) if key in file}
    except (OSError, ValueError) as error:
        raise ValueError(f"weights {path!r}: expected an .npz file, got what cannot be read as one: {error}") from error
    for name, case in cases.items():
        if missing := [key for key in _keys(name) if key not in arrays]:
            raise ValueError(f"weights {path!r}: expected {', '.join(_keys(name))}, got no {', '.join(missing)}")
        expected = tuple(case.parameters["weight"])
        shape, index, value = (torch.as_tensor(arrays[key]) for key in _keys(name))
        if tuple(shape.tolist()) != expected:
            raise ValueError(f"weights {path!r}: expected {name}.shape to be {list(expected)}, got {shape.tolist()}")
        flat = torch.zeros(math.prod(expected))
        if index.shape != value.shape or index.dim() != 1 or not index.dtype.is_signed or index.is_floating_point():
            raise ValueError(
                f"weights {path!r}: expected {name}.index and {name}.value to be equally many integers and values, got"
                f" {index.dtype} of shape {list(index.shape)} and {value.dtype} of shape {list(value.shape)}"
            )
        if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < flat.numel():
            raise ValueError(
                f"weights {path!r}: expected {name}.index from 0 to {flat.numel() - 1}, got {int(index.min())} to"
                f" {int(index.max())}"
            )
        result[name] = flat.scatter_(0, index.long(), value.float()).view(expected)
    return result


def _keys(name: str) -> tuple[str, str, str]:
    return f"{name}.shape", f"{name}.index", f"{name}.value"


class _Layers(Suite):
    def cases(self, selection: Selection) -> list[Case]:
        """The selected cases; those of a file of weights where `selection.weights` names one, which is then checked."""
        if selection.weights is not None:
            read_weights(selection.weights)
        found = super().cases(selection)
        return [case for case in found if selection.weights is not None or not case.parameters.get("from_file")]


def gflop(record: Record) -> float | None:
    """The work of one call, in GFLOP, as the record has it."""
    return record.details.get("gflop")


def share_of_peak(record: Record) -> float | None:
    """The rate on the nonzeros over the machine's peak."""
    work, peak = gflop(record), record.details.get("peak_gflops")
    if work is None or not peak or record.p50_ms is None:
        return None
    return work / (record.p50_ms * 1e-3) / peak


SUITE = _Layers(
    name="layers",
    about="layers of networks with pruned weights, beside the dense layer",
    variants=variants,
    baseline="dense",
    ideal=None,
    full=Effort(seconds=6),
    quick=Effort(seconds=0.5),
    layout=Layout(
        columns=(
            detail_column("dense", "count", "layers"),
            time_column("dense"),
            detail_column("dense", "layout", "layout"),
            time_column("dense-bf16"),
            time_column("copy"),
            speedup_column("dropped", "dropped"),
            time_column("block"),
            speedup_column("block", "speedup in blocks"),
            share_column("block", "in blocks, of reachable", reachable),
            time_column("block-bf16"),
            ratio_column("dense-bf16", "block-bf16"),
            time_column("sparse"),
            speedup_column("sparse", "speedup"),
            share_column("sparse", "of ideal", lambda record: record.ideal_fraction),
            share_column("sparse", "of reachable", reachable),
            rate_column("sparse", "GFLOP/s", gflop),
            share_column("sparse", "of peak", share_of_peak),
            ratio_column("dense-bf16", "sparse"),
            speedup_column("torch-bsr", "torch-bsr"),
            speedup_column("torch-2to4", "torch-2to4"),
        ),
        legend=(
            "Medians of one call, float32 except dense-bf16; the row says where the zeros are and how many percent. "
            "layers: how many of the net have this shape. dense: eager torch in the faster of two layouts (named). "
            "speedup: over dense, the median over the rounds. of ideal: that, of 1 / density. GFLOP/s: on the nonzeros "
            "only; of peak: of multiply-adds with one operand from L1, measured on as many threads. dense-bf16 / "
            "sparse: of times; above 1 the zeros beat the narrower type. On CUDA all of a row are in its dtype; copy: "
            "reads and writes what the pass has to, apart from weights; dropped: the dense layer without so many of "
            "its outputs; of reachable: of min(1 / density, dense / copy)."
        ),
        subject="sparse",
        rivals=("dense", "dense-bf16"),
        chart="sparsity",
    ),
    sparse=True,
    in_blocks=True,
    floor="copy",
)
