# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""BatchNorm with limits and dropout in one pass: results, statistics, gradients, and which elements are dropped."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sparsekernels import _library
from sparsekernels.ops.batch_norm import implementations, reference
from sparsekernels.ops.batch_norm.op import Act, batch_norm_act, takes
from sparsekernels.ops.batch_norm.philox import drawn, philox4x32
from sparsekernels.ops.batch_norm.reference import passing
from sparsekernels.testing import compare

pytestmark = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")

SHAPES = [
    (2, 3, 8, 8),
    (5, 1, 1, 1),
    (3, 4, 1, 5),
    (64, 7, 2, 2),
    (2, 17, 7, 9),
    (1, 3, 65, 67),
    (9, 5, 4, 4),
    (2, 2, 46, 46),  # more than a block
    (300, 6, 5, 3),
]
ACTS = [
    Act(),
    Act(0.0),
    Act(0.0, 6.0),
    Act(-0.25, 0.5),
    Act(None, 0.5),
    Act(p=0.4),
    Act(0.0, None, 0.3),
    Act(0.0, 1.0, 0.9),
]
EPS = 1e-3


def composed(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    act: Act,
    kept: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """The same in torch's operations, in any dtype."""
    result = F.batch_norm(input, None, None, weight, bias, True, 0.0, EPS)
    result = result if residual is None else result + residual
    if act.low is not None or act.high is not None:
        result = result.clamp(act.low, act.high)
    return result if kept is None else result * kept / (1 - act.p)


def kept_of(input: Tensor, act: Act, seed: int) -> Tensor:
    images, channels = input.shape[:2]
    numbers = drawn(images, channels, input[0, 0].numel(), seed, input.device)
    return (numbers.view(input.shape) >= round(act.p * 2**32)).to(torch.float64)


def arguments(shape: tuple[int, ...], affine: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
    input = torch.randn(shape) * 3 + torch.randn(shape[1])[:, None, None] * 5
    return input, torch.randn(shape[1]) if affine else None, torch.randn(shape[1]) if affine else None


def test_known_answers() -> None:
    """Of the authors' own tests (Random123, kat_vectors)."""
    pi = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    cases = [
        ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((2**32 - 1,) * 4, 2**64 - 1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (pi, 0x299F31D0_A4093822, (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
    ]
    for counter, seed, words in cases:
        a, b, c, d = (torch.tensor([one]) for one in counter)
        assert tuple(int(word) for word in philox4x32((a, b, c, d), seed)) == words


@pytest.mark.parametrize("act", ACTS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("adds", [True, False])
def test_results_and_gradients(shape: tuple[int, ...], act: Act, affine: bool, adds: bool) -> None:
    """Against the composition in float64; a limit that rounding crosses counts as crossed."""
    given = *arguments(shape, affine), torch.randn(shape) if adds else None
    leaves = [one.requires_grad_() for one in given if one is not None]
    seed_state = torch.get_rng_state()
    output, statistics = batch_norm_act(*given[:3], EPS, act, given[3])
    torch.set_rng_state(seed_state)
    seed = int(torch.empty((), dtype=torch.int64).random_()) if act.p > 0 else 0
    kept = kept_of(given[0], act, seed) if act.p > 0 else None

    def run(dtype: torch.dtype) -> tuple[Tensor, ...]:
        own = [None if one is None else one.detach().to(dtype).requires_grad_() for one in given]
        result = composed(*own[:3], act, None if kept is None else kept.to(dtype), own[3])
        return result, *torch.autograd.grad(result, [one for one in own if one is not None], gradient.to(dtype))

    gradient = torch.randn(shape)
    # no gradient where rounding may decide
    plain = composed(*given[:3], Act(), None, given[3]).detach()
    for limit in (act.low, act.high):
        if limit is not None:
            gradient[(plain - limit).abs() < 1e-4] = 0
    mine = (output, *torch.autograd.grad(output, leaves, gradient))
    names = ("input", "weight", "bias", "residual")
    names = ("output", *(name for name, one in zip(names, given, strict=True) if one is not None))
    for name, actual, truth, baseline in zip(names, mine, run(torch.float64), run(torch.float32), strict=True):
        comparison = compare(name, actual, truth, baseline)
        assert comparison.passed, comparison
    wide = given[0].detach().double()
    mean, variance = wide.mean((0, 2, 3)), wide.var((0, 2, 3), unbiased=False)
    torch.testing.assert_close(statistics[0].double(), mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(statistics[1].double(), variance, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(statistics[2].double(), (variance + EPS).rsqrt(), rtol=1e-5, atol=0)


def test_far_from_zero() -> None:
    """A mean of a thousand deviations costs no more digits than it has to."""
    input = torch.randn(16, 4, 32, 32) + 1000
    truth = F.batch_norm(input.double(), None, None, None, None, True, 0.0, 1e-5)
    baseline = F.batch_norm(input, None, None, None, None, True, 0.0, 1e-5)
    output, statistics = batch_norm_act(input, None, None, 1e-5, Act())
    assert compare("output", output, truth, baseline).passed
    torch.testing.assert_close(statistics[1].double(), input.double().var((0, 2, 3), unbiased=False), rtol=1e-5, atol=0)


def test_a_constant_channel() -> None:
    input = torch.full((4, 2, 5, 5), 0.1)
    input[:, 1] = torch.randn(4, 5, 5)
    output, statistics = batch_norm_act(input, None, torch.tensor([2.0, 0.0]), 1e-5, Act(0.0))
    torch.testing.assert_close(output[:, 0], torch.full((4, 5, 5), 2.0), rtol=0, atol=1e-4)
    assert 0 <= statistics[1, 0] < 1e-12


@pytest.mark.parametrize("act", [Act(), Act(0.0), Act(0.0, 6.0)], ids=str)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_spoils_its_channel_only(act: Act, value: float) -> None:
    input = torch.randn(4, 3, 6, 6)
    input[2, 1, 3, 3] = value
    expected = F.batch_norm(input, None, None, None, None, True, 0.0, EPS)
    if act.low is not None:
        expected = expected.clamp(act.low, act.high)
    output, _ = batch_norm_act(input, None, None, EPS, act)
    torch.testing.assert_close(output, expected, equal_nan=True)
    assert output[:, 1].isnan().all()


def test_gradients_at_the_limits_are_torchs() -> None:
    """None at a limit itself."""
    input = torch.tensor([-1.0, 0.0, 1.0]).view(3, 1, 1, 1).requires_grad_()  # 0 is normalized to 0
    bias = torch.zeros(1, requires_grad=True)
    output, _ = batch_norm_act(input, None, bias, 1e-9, Act(0.0))
    (mine,) = torch.autograd.grad(output.sum(), bias)
    assert mine.item() == 1
    for low, high in ((0.0, None), (-0.5, 0.0)):
        _, _, kept = implementations.forward(input.detach(), None, None, None, 1e-9, low, high, 0.0, 0)
        assert passing(kept, input).flatten()[1] == 0


@pytest.mark.parametrize("p", [0.1, 0.5, 0.999])
def test_dropout(p: float) -> None:
    """As many as p says, others in each call, the same from the same seed; what is left is scaled."""
    input = torch.randn(32, 8, 32, 32)
    torch.manual_seed(1)
    one, _ = batch_norm_act(input, None, None, EPS, Act(p=p))
    other, _ = batch_norm_act(input, None, None, EPS, Act(p=p))
    torch.manual_seed(1)
    again, _ = batch_norm_act(input, None, None, EPS, Act(p=p))
    assert torch.equal(one, again)
    count = input.numel()
    deviation = math.sqrt(count * p * (1 - p))
    for result in (one, other):
        assert abs(int((result == 0).sum()) - count * p) < 5 * deviation
    both = int(((one == 0) & (other == 0)).sum())
    assert abs(both - count * p * p) < 5 * math.sqrt(count * p * p * (1 - p * p))
    plain, _ = batch_norm_act(input, None, None, EPS, Act())
    torch.testing.assert_close(one[one != 0], plain[one != 0] / (1 - p))
    # neighbors have nothing to do with each other, in a row, a column, a channel and an image
    dropped = (one == 0).double() - p
    for dim in range(4):
        products = dropped.narrow(dim, 1, dropped.size(dim) - 1) * dropped.narrow(dim, 0, dropped.size(dim) - 1)
        assert abs(products.mean().item()) < 5 * p * (1 - p) / math.sqrt(products.numel())


def test_same_bits_for_any_number_of_threads() -> None:
    input = torch.randn(16, 24, 33, 35)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            forward = implementations.forward(input, input, None, None, EPS, 0.0, None, 0.25, 77)
            results.append([*forward, *implementations.backward(input, input, None, *forward[1:], 0.25, True, True)])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_second_derivatives() -> None:
    """Of a sum of squares of the gradients, against float64; and that a graph is made of them at all."""
    shape = (4, 3, 5, 5)
    given, act = (*arguments(shape, True), torch.randn(shape)), Act(0.0, None, 0.3)
    gradient = torch.randn(shape)
    found = []
    seed_state = torch.get_rng_state()
    seed = int(torch.empty((), dtype=torch.int64).random_())
    kept = kept_of(given[0], act, seed)
    for dtype in (torch.float32, torch.float64):
        torch.set_rng_state(seed_state)
        own = [one.detach().to(dtype).requires_grad_() for one in given if one is not None]
        if dtype == torch.float32:
            output, _ = batch_norm_act(*own[:3], EPS, act, own[3])
        else:
            output = composed(*own[:3], act, kept, own[3])
        first = torch.autograd.grad(output, own, gradient.to(dtype), create_graph=True)
        found.append(torch.autograd.grad(sum(one.square().sum() for one in first), own[:2]))
    for mine, truth in zip(*found, strict=True):
        torch.testing.assert_close(mine.double(), truth, rtol=1e-3, atol=1e-4 * truth.abs().max().item())


def test_gradients_that_are_not_wanted() -> None:
    input, weight, bias = arguments((3, 4, 5, 5), True)
    assert weight is not None
    output, statistics = batch_norm_act(input, weight.requires_grad_(), bias, EPS, Act(0.0))
    assert not statistics.requires_grad
    output.square().sum().backward()
    assert input.grad is None
    expected = torch.autograd.grad(composed(input, weight, bias, Act(0.0)).square().sum(), weight)[0]
    torch.testing.assert_close(weight.grad, expected, rtol=1e-4, atol=1e-4)
    # a gradient as no kernel would write it
    output, _ = batch_norm_act(input.requires_grad_(), None, None, EPS, Act(0.0))
    expected = composed(input, None, None, Act(0.0))
    gradient = torch.randn(3, 1, 5, 1).expand(3, 4, 5, 5)
    (mine,) = torch.autograd.grad(output, input, gradient)
    (theirs,) = torch.autograd.grad(expected, input, gradient)
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_what_the_kernel_does_not_take() -> None:
    plain = torch.randn(2, 3, 4, 4)
    assert takes(plain, None, None, EPS, Act(0.0, None, 0.5))
    one = torch.randn(1, 3, 1, 1)
    for input in (plain.double(), plain.bfloat16(), plain.contiguous(memory_format=torch.channels_last), plain[0]):
        assert not takes(input, None, None, EPS, Act())
    for input in (one, plain[:0], plain[:, :0], plain[..., ::2], plain.to("meta"), torch.nn.Parameter(plain)):
        assert not takes(input, None, None, EPS, Act())
    assert not takes(plain, torch.ones(3).double(), None, EPS, Act())
    assert not takes(plain, None, torch.ones(6)[::2], EPS, Act())
    assert not takes(plain, None, None, EPS, Act(p=1.0))
    assert not takes(plain, None, None, 0.0, Act())


@pytest.mark.parametrize(("change", "fails"), [("bias", False), ("weight", True), ("input", True)])
def test_what_changes_between_forward_and_backward(change: str, fails: bool) -> None:
    """What torch does not save may change; what it saves may not."""
    tensors = dict(zip(("input", "weight", "bias"), arguments((3, 4, 5, 5), True), strict=True))
    leaves = {name: tensor.requires_grad_() for name, tensor in tensors.items() if tensor is not None}
    copies = {name: tensor * 1 for name, tensor in leaves.items()}
    output, _ = batch_norm_act(copies["input"], copies["weight"], copies["bias"], EPS, Act(0.0))
    wanted, loss = list(leaves.values()), output.square().sum()
    expected = torch.autograd.grad(loss, wanted, retain_graph=True)
    with torch.no_grad():
        copies[change].zero_()
    if fails:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
    else:
        assert all(map(torch.equal, torch.autograd.grad(loss, wanted), expected))


def test_hooks_run_once() -> None:
    """With create_graph as well: on the weight, and on an input whose gradient is kept."""
    found = []
    for create_graph in (False, True):
        torch.manual_seed(2)
        given = [one.requires_grad_() for one in arguments((3, 4, 5, 5), True) if one is not None]
        given[1].register_hook(lambda gradient: 0.1 * gradient)
        inner = given[0] * 2
        inner.retain_grad()
        output, _ = batch_norm_act(inner, given[1], given[2], EPS, Act(0.0))
        output.square().sum().backward(create_graph=create_graph)
        found.append([inner.grad, *(one.grad for one in given)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "change",
    [
        {"input": torch.randn(2, 3, 4, 4).double()},
        {"input": torch.randn(2, 3, 4, 8)[..., ::2]},
        {"input": torch.randn(2)},
        {"input": torch.randn(0, 3, 4, 4)},
        {"weight": torch.ones(4)},
        {"weight": torch.ones(3).double()},
        {"bias": torch.ones(6)[::2]},
        {"residual": torch.randn(2, 3, 4, 5)},
        {"residual": torch.randn(2, 3, 4, 4).double()},
        {"residual": torch.randn(2, 3, 4, 8)[..., ::2]},
        {"p": 1.0},
        {"p": -0.1},
        {"p": math.nan},
        {"eps": 0.0},
        {"eps": math.nan},
    ],
)
def test_malformed_forward(change: dict[str, object]) -> None:
    given = {
        "input": torch.randn(2, 3, 4, 4),
        "weight": None,
        "bias": None,
        "eps": 1e-5,
        "low": 0.0,
        "high": None,
        "residual": None,
    }
    with pytest.raises((RuntimeError, ValueError), match="batch_norm: expected .*, got "):
        implementations.forward(**{**given, "p": 0.5, "seed": 1, **change})


@pytest.mark.parametrize(
    "change",
    [
        {"gradient": torch.randn(2, 3, 4, 5)},
        {"gradient": torch.randn(2, 3, 4, 4).double()},
        {"statistics": torch.ones(3, 4)},
        {"statistics": torch.ones(9)},
        {"kept": torch.zeros(5, dtype=torch.int16)},
        {"kept": torch.zeros(6, dtype=torch.int32)},
        {"weight": torch.ones(2)},
        {"p": 1.0},
    ],
)
def test_malformed_backward(change: dict[str, object]) -> None:
    input = torch.randn(2, 3, 4, 4)
    _, statistics, kept = implementations.forward(input, None, None, None, 1e-5, 0.0, None, 0.5, 1)
    given = {"gradient": input, "input": input, "weight": None, "statistics": statistics, "kept": kept}
    with pytest.raises((RuntimeError, ValueError), match="batch_norm: expected .*, got "):
        implementations.backward(**{**given, "p": 0.5, "need_input": True, "need_residual": False, **change})


def test_the_reference_takes_any_layout() -> None:
    x = torch.randn(2, 3, 4, 5)
    numbers = 1e-5, 0.0, 6.0, 0.5, 7
    expected = reference.forward(x, None, None, None, *numbers)
    last = reference.forward(x.contiguous(memory_format=torch.channels_last), None, None, None, *numbers)
    torch.testing.assert_close(last, expected)


def test_the_references_own_gradients_stop_at_limits() -> None:
    """As those of the kernel do: torch differentiates the reference inside of transforms."""
    x = torch.zeros(2, 3, 4, 4, requires_grad=True)
    bias = torch.zeros(3, requires_grad=True)
    output, _, _ = reference.forward(x, None, None, bias, 1e-5, 0.0, None, 0.0, 0)
    assert torch.equal(torch.autograd.grad(output.sum(), bias)[0], torch.zeros(3))
