# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Networks in bfloat16: graphs in channels_last, and results that rounding takes far from each other."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from conversion_checks import BLOCK, GRAPH, Prefer, assert_agree, graphs_of
from test_convert_blocks import LAST, SMALL, with_kernels
from torch import Tensor, nn

import sparsekernels as sk
from sparsekernels import _library, testing
from sparsekernels._torch import has_bfloat16_convolutions
from sparsekernels.bench.models import calibrate_
from sparsekernels.conversion import modes
from sparsekernels.conversion.agreement import are_close
from sparsekernels.conversion.arguments import Arguments
from sparsekernels.conversion.float32_run import float32_run
from sparsekernels.conversion.graph.fused import FusedDense
from sparsekernels.conversion.graph.inference import InferenceGraph
from sparsekernels.ops.sparse_conv2d import blocks
from sparsekernels.pruning import prune_blocks_

pytestmark = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")

by_onednn = pytest.mark.skipif(
    not has_bfloat16_convolutions(), reason="oneDNN has no convolution in bfloat16 for this processor"
)


class Flattens(nn.Module):
    """`view` fits contiguous images alone; the images are a result as well."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8 * 36, 12)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        images = self.conv(x).relu()
        return self.last(images.view(x.size(0), -1)), images


@with_kernels
def test_a_graph_in_channels_last(prefer: Prefer) -> None:
    model = Flattens().eval()
    prune_blocks_(model, SMALL, 0.7)
    dense, x = copy.deepcopy(model), torch.randn(3, 8, 6, 6)
    prefer(BLOCK, LAST)
    report = sk.convert(model, x)
    assert report.way.value == LAST
    given: list[bool] = []
    (graph,) = graphs_of(model)
    fused: Any = graph.prepare().fused[0]
    fused.register_forward_pre_hook(
        lambda _, args: given.append(args[0].is_contiguous(memory_format=torch.channels_last))
    )
    with torch.no_grad():
        for _ in range(2):
            assert_agree(model, dense, x)
            assert model(x)[1].stride() == dense(x)[1].stride()
    assert given
    assert all(given)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert [one.layout for one in graphs_of(other)] == [torch.channels_last]
        assert_agree(other, dense, x)
    with pytest.raises(RuntimeError, match="view"), torch.no_grad():  # as the model itself
        model(x.contiguous(memory_format=torch.channels_last))


@by_onednn
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, {"stride": 2, "padding": 1}, {"groups": 4}, {"padding": "valid", "dilation": 2}, {"padding": "same"}],
    ids=str,
)
def test_dense_convolutions_end_within_their_call(options: dict[str, Any], bias: bool) -> None:
    """The sum and the ReLU, rounded once, by oneDNN; also where it is not for that."""
    layer = nn.Conv2d(8, 12, 3, bias=bias, **options)
    plain = layer.bfloat16()
    input = torch.randn(3, 8, 9, 10).bfloat16().contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        expected = plain(input)
        residual = torch.randn_like(expected)
        exact = copy.deepcopy(plain).double()(input.double())
        for limits in ((None, None), (0.0, None), (0.0, 6.0), (-1.0, 0.5)):
            fused = FusedDense(plain, None, *limits, layout=torch.channels_last)
            for addend in (None, residual, residual.contiguous(), residual[:1]):
                truth = exact if addend is None else exact + addend.double()
                truth = truth if limits == (None, None) else truth.clamp(*limits)
                result = fused(input, addend)
                assert result.is_contiguous(memory_format=torch.channels_last)
                assert (result.double() - truth).abs().max() <= 2**-7 * truth.abs().max()
                at_once = fused._at_once(input, addend)
                fits = limits[1] is None and options.get("padding") != "same" and (addend is None or addend is residual)
                fits = fits and (addend is None or layer.groups == 1)
                assert (at_once is not None) is fits
                if at_once is not None:
                    assert torch.equal(at_once, result)
                    step_by_step = expected if addend is None else expected + addend
                    step_by_step = step_by_step if limits[0] is None else step_by_step.relu()
                    assert testing.compare("output", result, truth, step_by_step).passed
        for other in (torch.randn(3, 7, 9, 10), torch.randn(3, 8, 1, 1)):
            wrong = other.bfloat16().contiguous(memory_format=torch.channels_last)
            try:
                limited = plain(wrong).relu()
            except RuntimeError:
                with pytest.raises(RuntimeError):
                    FusedDense(plain, None, 0.0, None, layout=torch.channels_last)(wrong)
            else:
                found = FusedDense(plain, None, 0.0, None, layout=torch.channels_last)(wrong)
                torch.testing.assert_close(found, limited, rtol=0.02, atol=0.02)
        with torch.backends.mkldnn.flags(enabled=False):
            assert FusedDense(plain, None, 0.0, None, layout=torch.channels_last)._at_once(input, None) is None


class Sums(nn.Module):
    """Residuals that may be written to, and such as others still read: an argument, a result, a view, a later layer."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(32, 32, 1) for _ in range(12))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        a, b, c, d, e, f, g, h, i, j, k, m = self.convs
        first = a(x)
        taken = (b(j(first).relu()) + first).relu()  # first is read no more
        of_argument = c(taken) + x
        returned = d(of_argument).relu()
        kept = e(taken) + returned
        base = f(kept).relu()
        seen = base.flatten(1)
        after_view = g(kept) + base
        later = h(after_view) + kept
        both = k(later)
        own = (m(both) + both).relu()  # which it reads as well
        return own, i(kept), returned, seen, of_argument


@by_onednn
@with_kernels
@pytest.mark.parametrize("in_blocks", [False, True])
def test_residuals_are_written_to_where_nobody_reads_them(monkeypatch: pytest.MonkeyPatch, in_blocks: bool) -> None:
    model = Sums().eval()
    if in_blocks:
        prune_blocks_(model, (16, 16), 0.5)
    model.bfloat16()
    dense, x = copy.deepcopy(model), torch.randn(4, 32, 6, 6).bfloat16()
    if in_blocks:
        for place, conv in enumerate(model.convs):
            assert isinstance(conv, nn.Conv2d)
            model.convs[place] = sk.nn.SparseConv2d.from_dense(conv, format="block", block=(16, 16))
    in_place, written = blocks._forward_in_place, []
    monkeypatch.setattr(blocks, "_forward_in_place", lambda *given: written.append(in_place(*given)))
    graph = InferenceGraph(model, torch.bfloat16, torch.device("cpu"), torch.channels_last)
    plan: Any = graph.prepare()
    names = {id(layer): name for name, layer in zip("abcdefghijkm", model.convs, strict=True)}
    taken = {names[id(one.parts[0])] for one in plan.fused if one.takes_residual}
    assert taken == {"b"}
    before = x.clone()
    with torch.no_grad():
        for _ in range(3):
            for found, expected in zip(graph(x), dense(x), strict=True):
                torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)
            assert torch.equal(x, before)
    assert len(written) >= 2 if in_blocks else not written


class Keeps(nn.Conv2d):
    """Code of a user, which may look at its input later."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.to(self.weight.dtype))


@by_onednn
def test_residuals_that_a_subclass_reads_stay(prefer: Prefer) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(32, 32, 1), Keeps(32, 32, 1), nn.Conv2d(32, 32, 1)

        def forward(self, x: Tensor) -> Tensor:
            first = self.a(x)
            result: Tensor = self.c(self.b(first)) + first
            return result

    model = Net().eval()
    prune_blocks_(model, (16, 16), 0.5)
    model.bfloat16()
    dense, x = copy.deepcopy(model), torch.randn(4, 32, 6, 6).bfloat16()
    prefer(BLOCK, LAST)
    assert sk.convert(model, x).way.value == LAST
    (graph,) = graphs_of(model)
    assert not any(one.takes_residual for one in graph.prepare().fused)
    assert_agree(model, dense, x)


def deep(layers: int = 24) -> tuple[nn.Module, Tensor]:
    """Rounding in bfloat16 takes its results further off than a tenth of the largest."""
    torch.manual_seed(0)
    parts = [part for _ in range(layers) for part in (nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU())]
    model = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(32)).eval()
    prune_blocks_(model, (16, 16), 0.6)
    calibrate_(model, torch.randn(64, 32, 8, 8))
    return model.bfloat16(), torch.randn(8, 32, 8, 8).bfloat16()


@pytest.mark.parametrize("wrong", [False, True])
def test_rounding_is_told_from_wrong_results(prefer: Prefer, monkeypatch: pytest.MonkeyPatch, wrong: bool) -> None:
    model, x = deep()
    with torch.no_grad():
        exact, before = float32_run(model, Arguments((x,), {})), model(x)
    assert isinstance(exact, Tensor)
    compared: list[bool] = []

    def are_close_(actual: Any, expected: Any, exact: Any = None, *dtypes: Any) -> bool:
        result = are_close(actual, expected, exact, *dtypes)
        if exact is not None:
            compared.append(result)
        return result

    monkeypatch.setattr(modes, "are_close", are_close_)
    if wrong:  # one layer of 24 loses its bias
        genuine = sk.conversion.graph.fused.Fused.fold

        def fold(fused: Any) -> None:
            genuine(fused)
            if fused.parts[0] is model[30]:
                fused.bias = torch.zeros_like(fused.bias)

        monkeypatch.setattr(sk.conversion.graph.fused.Fused, "fold", fold)
    prefer("fine-grained", GRAPH)
    report = sk.convert(model, x)
    with torch.no_grad():
        after = model(x)
    assert not are_close(before * 1.5, before)
    assert not are_close(before * 1.5 + 1, before, exact)
    assert compared
    assert all(compared) is not wrong
    assert (report.way.value == GRAPH) is not wrong
    errors = [float((one.double() - exact.double()).square().mean()) for one in (after, before)]
    assert errors[0] <= 4 * errors[1]


def test_exact_decides_in_short_dtypes_alone() -> None:
    exact = torch.randn(1000)
    noise = torch.randn(1000)
    before, after = (exact + 0.2 * noise).bfloat16(), (exact - 0.2 * noise).bfloat16()
    assert not are_close(after, before)
    assert are_close(after, before, exact)
    assert are_close({"a": [after]}, {"a": [before]}, {"a": [exact]})
    assert not are_close({"a": [after]}, {"a": [before]}, {"b": [exact]})
    assert not are_close(after, before, exact.double())
    assert not are_close(after.float(), before.float(), exact)
    assert not are_close((exact + noise).bfloat16(), before, exact)  # further off than before
    assert not are_close((exact - noise).bfloat16(), (exact + noise).bfloat16(), exact)  # all is lost
    assert not are_close(after, before, exact[:10])
    spoiled = after.clone()
    spoiled[3] = torch.nan
    assert not are_close(spoiled, before, exact)
    lowest = torch.where(torch.arange(1000) % 7 == 0, -torch.inf, 0)
    assert are_close(after + lowest.bfloat16(), before + lowest.bfloat16(), exact + lowest)
    assert not are_close(after, before + lowest.bfloat16(), exact + lowest)


@pytest.mark.parametrize("ratio", [1.8, 2.2])
def test_errors_may_double(ratio: float) -> None:
    exact, noise = torch.randn(4, 8, 10, 10), torch.randn(4, 8, 10, 10)
    before, after = (exact + 0.1 * noise).bfloat16(), (exact - ratio * 0.1 * noise).bfloat16()
    assert not are_close(after, before)
    assert are_close(after, before, exact) is (ratio < 2)


def test_parts_count_by_themselves() -> None:
    """What is wrong in one channel, border, image or number is no rounding, however large the tensor."""
    torch.manual_seed(0)
    exact, noise = torch.randn(8, 64, 16, 16), torch.randn(2, 8, 64, 16, 16)
    before, after = (exact + 0.2 * noise[0]).bfloat16(), (exact + 0.2 * noise[1]).bfloat16()
    assert not are_close(after, before)
    assert are_close(after, before, exact)
    for place in ((slice(None), 5), (..., 15), (slice(None), slice(None), 0), (3,), (3, 5, 7, 9)):
        wrong = after.clone()
        wrong[place] = 0 if len(place) < 4 else 40
        assert not are_close(wrong, before, exact), place
    scores, biases = torch.randn(16, 1000), torch.randn(2, 1000)  # of the last layer, off alike in all images
    before, after = ((scores + 0.15 * bias + 0.02 * torch.randn(16, 1000)).bfloat16() for bias in biases)
    assert not are_close(after, before)
    assert are_close(after, before, scores)


def test_what_has_no_run_in_float32() -> None:
    class Casts(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.bfloat16())

    x = torch.randn(2, 4)
    assert float32_run(nn.Linear(4, 4), Arguments((x,), {})) is None
    assert float32_run(Casts(4, 4).bfloat16(), Arguments((x.bfloat16(),), {})) is None
    model = nn.Linear(4, 4).bfloat16()
    result = float32_run(model, Arguments((x.bfloat16(),), {}))
    assert isinstance(result, Tensor)
    assert result.dtype is torch.float32
    assert model.weight.dtype is torch.bfloat16

    class Shared(nn.Linear):
        def __deepcopy__(self, memo: object) -> Shared:
            return self

    shared = nn.Sequential(Shared(4, 4), nn.Linear(4, 4)).bfloat16()
    assert float32_run(shared, Arguments((x.bfloat16(),), {})) is None
    assert all(one.dtype is torch.bfloat16 for one in shared.parameters())

    class Full(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            raise MemoryError

    with pytest.raises(MemoryError):
        float32_run(Full(4, 4).bfloat16(), Arguments((x.bfloat16(),), {}))
