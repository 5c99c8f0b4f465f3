# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The cases of the suite `masked` that are attention: batch x heads x tokens x columns, queries, keys and values alike.

The variants are those of `masked.py`, for torch's `scaled_dot_product_attention` in the place of the product: "dense"
without any mask (the baseline), and for each mask "dense+mask", the same with it (as `is_causal` where it is causal),
"flex", a compiled `flex_attention` with a mask of its blocks, which has no backward pass on CPUs, "ours" and
"ours+prepare". Masks are those of blocks and of elements, "window256-77", in which each token sees 256 others around
it, and "causal-50". forward+backward has the gradients to all three.

A case with `queries` is a step of decoding: so many queries at the end of the tokens, with windows of those before, and
`key_heads` of keys and values, which heads of queries share.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import sparsekernels

from .. import testing
from .devices import PLACES, Built, Way, sets_beyond_cache, variants_of
from .mask_patterns import Pattern, chosen_patterns
from .suite import Case, Selection, Unavailable, Variant, Verdict

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Window(Pattern):
    """A mask of tokens near one another, or of those before: `width` is how many, 0 all of those before."""

    width: int = 0

    @functools.cached_property
    def mask(self) -> Tensor:
        """As a user has it."""
        return _window(*self.shape, self.width).to(PLACES[self.device])


def _window(queries: int, tokens: int, width: int) -> Tensor:
    place = torch.arange(tokens)
    distance = place[-queries:, None] - place
    if queries < tokens:
        return (distance >= 0) & (distance < width)
    return distance >= 0 if width == 0 else distance.abs() <= width // 2


def patterns(case: Case, selection: Selection) -> list[Pattern]:
    """The masks of `case`: windows, those of blocks, those of elements; of options what they name."""
    tokens = case.parameters["shape"][2]
    queries = case.parameters.get("queries", tokens)
    found: list[Pattern] = []
    if not (selection.blocks or selection.masks or selection.sparsities):
        for width in case.parameters["windows"]:
            kind = f"window{width}" if width else "causal"
            percent = round(100 - 100 * _window(queries, tokens, width).float().mean().item())
            found.append(Window(f"{kind}-{percent}", float(percent), (queries, tokens), case.device, width))
    return found + chosen_patterns(case, selection, (queries, tokens))


class Inputs:
    """The operands of a case, and the gradient of the result. On CUDA there are others to call with in turn."""

    def __init__(self, case: Case, seed: int = 0) -> None:
        self.case, self._seed, place = case, seed, PLACES[case.device]
        generator = torch.Generator(place).manual_seed(seed)
        batch, heads, tokens, columns = case.parameters["shape"]
        of_queries = batch, heads, case.parameters.get("queries", tokens), columns
        of_keys = batch, case.parameters.get("key_heads", heads), tokens, columns
        self.tokens, self.shared = tokens, heads // of_keys[1]
        dtype = getattr(torch, case.dtype)
        self.backward = case.pass_ != "forward"
        *operands, self.grad = (
            torch.randn(sizes, generator=generator, device=place).to(dtype)
            for sizes in (of_queries, of_keys, of_keys, of_queries)
        )
        self.operands: tuple[Tensor, ...] = tuple(one.requires_grad_(self.backward) for one in operands)

    @functools.cached_property
    def sets(self) -> list[Inputs]:
        """These and the others."""
        size = sum(one.numel() for one in (*self.operands, self.grad)) * self.grad.element_size()
        count = sets_beyond_cache(self.case.device, size)
        return [self, *(Inputs(self.case, seed) for seed in range(self._seed + 1, self._seed + count))]

    def calls(self, attention: Attention) -> list[Callable[[], tuple[Tensor, ...]]]:
        """The pass with each set."""
        return [one.call(attention) for one in self.sets]

    def gflop(self) -> float:
        """Of the forward pass where everything is kept."""
        return 4e-9 * self.grad.numel() * self.tokens

    def call(self, attention: Attention) -> Callable[[], tuple[Tensor, ...]]:
        """The pass."""
        q, k, v = self.operands
        if not self.backward:
            return lambda: (attention(q, k, v),)

        def step() -> tuple[Tensor, ...]:
            y = attention(q, k, v)
            return (y.detach(), *torch.autograd.grad(y, (q, k, v), self.grad))

        return step

    @contextlib.contextmanager
    def context(self) -> Iterator[None]:
        with torch.set_grad_enabled(self.backward):
            yield


def _definition(operands: tuple[Tensor, ...], gradient: Tensor | None, mask: Tensor) -> tuple[Tensor, ...]:
    """Dense, of one head; half types are computed in float32."""
    wide = torch.float64 if operands[0].dtype == torch.float64 else torch.float32
    with torch.enable_grad():
        own = [one.detach().requires_grad_() for one in operands]
        q, k, v = (one.to(wide) for one in own)
        weights = torch.where(mask, q @ k.mT * q.size(-1) ** -0.5, float("-inf")).softmax(-1)
        y = (torch.where(mask, weights, 0) @ v).to(operands[0].dtype)
        if gradient is None:
            return (y.detach(),)
        return (y.detach(), *torch.autograd.grad(y, own, gradient))


ROUGH = 8.0
"""How many times the tolerance torch's own attention may be off: in half types it rounds weights in between."""


def judge(inputs: Inputs, results: tuple[Tensor, ...], mask: Tensor, rough: float = 1.0) -> Verdict:
    """`results` of the pass under `mask`, by the definition in float64, and as a baseline in the dtype of the case."""
    names = ("result", "gradient to q", "gradient to k", "gradient to v")
    worst, passed = 0.0, True
    q, *of_keys = inputs.operands
    given = (q, *(one.repeat_interleave(inputs.shared, 1) for one in of_keys), inputs.grad)
    flat = [one.detach().flatten(0, 1) for one in given]
    for head in range(flat[0].size(0)):
        *operands, gradient = (one[head] for one in flat)
        seed = gradient if inputs.backward else None
        truth = _definition(tuple(one.double() for one in operands), None if seed is None else seed.double(), mask)
        baseline = _definition(tuple(operands), seed, mask)
        found = (one.flatten(0, 1)[head] for one in results)
        for row in zip(names, found, truth, baseline, strict=False):
            comparison = testing.compare(*row)
            worst, passed = max(worst, comparison.error), passed and comparison.error <= rough * comparison.allowed
    return Verdict(worst, passed)


def variants(case: Case, selection: Selection) -> list[Variant]:
    """torch's attention, and for each mask the ways to have only what it keeps."""
    inputs = Inputs(case)
    dense = functools.partial(F.scaled_dot_product_attention, enable_gqa=inputs.shared > 1)
    result = [Way("dense", functools.partial(_built, inputs, None, dense))]
    ways: dict[str, Callable[[Pattern], Attention]] = {"dense+mask": functools.partial(_dense_and_mask, inputs)}
    by_flex = case.pass_ == "forward" or case.device == "cuda"  # on CPUs it has no backward pass
    if by_flex and not selection.quick and "queries" not in case.parameters:
        ways["flex"] = functools.partial(_flex, inputs)
    ways |= {
        "ours": functools.partial(_ours, inputs),
        "ours+prepare": functools.partial(_ours_and_prepare, inputs),
    }
    for pattern in patterns(case, selection):
        share = round(pattern.percent / 100, 7)
        for name, way in ways.items():
            make = functools.partial(_of_pattern, inputs, pattern, way, 1.0 if name.startswith("ours") else ROUGH)
            modes = {"graphs": name != "ours+prepare", "ours": name.startswith("ours")}
            result.append(Way(f"{name}:{pattern.name}", make, share, **modes))
    return variants_of(case, result)


def _of_pattern(inputs: Inputs, pattern: Pattern, way: Callable[[Pattern], Attention], rough: float) -> Built:
    return _built(inputs, pattern, way(pattern), rough)


def _built(inputs: Inputs, pattern: Pattern | None, attention: Attention, rough: float = 1.0) -> Built:
    def judged(results: tuple[Tensor, ...]) -> Verdict:
        assert pattern is not None
        return judge(inputs, results, pattern.elements, rough)

    kept = 1.0 if pattern is None else pattern.elements.sum().item() / pattern.elements.numel()
    details = {"gflop": float(f"{(3.5 if inputs.backward else 1) * kept * inputs.gflop():.5g}")}
    return Built(inputs.calls(attention), inputs.context, None, None if pattern is None else judged, details)


def _dense_and_mask(inputs: Inputs, pattern: Pattern) -> Attention:
    dense = functools.partial(F.scaled_dot_product_attention, enable_gqa=inputs.shared > 1)
    if isinstance(pattern, Window) and pattern.width == 0:
        return functools.partial(dense, is_causal=True)
    return functools.partial(dense, attn_mask=pattern.elements)


def _flex(inputs: Inputs, pattern: Pattern) -> Attention:
    """Compiled; in the blocks that the mask does not leave out altogether, of 32 x 32, or of 128 x 128 on CUDA."""
    from torch.nn.attention import flex_attention

    mask = pattern.elements
    tokens, size = mask.size(0), 128 if mask.is_cuda else 32

    def kept(batch: Any, head: Any, row: Any, key: Any) -> Any:
        return mask[row, key]

    try:
        blocks = flex_attention.create_block_mask(
            kept, None, None, tokens, tokens, device=mask.device.type, BLOCK_SIZE=size
        )
        compiled: Any = torch.compile(flex_attention.flex_attention)
        with inputs.context():
            compiled(*inputs.operands, block_mask=blocks)
    except Exception as error:
        lines = str(error).strip().splitlines()
        raise Unavailable(f"flex_attention: {lines[0] if lines else type(error).__name__}") from error
    return lambda q, k, v: compiled(q, k, v, block_mask=blocks)


def _ours(inputs: Inputs, pattern: Pattern) -> Attention:
    mask = sparsekernels.prepare_mask(pattern.mask)
    return lambda q, k, v: sparsekernels.masked_attention(q, k, v, mask, enable_gqa=inputs.shared > 1)


def _ours_and_prepare(inputs: Inputs, pattern: Pattern) -> Attention:
    mask = pattern.mask
    return lambda q, k, v: sparsekernels.masked_attention(q, k, v, mask, enable_gqa=inputs.shared > 1)
