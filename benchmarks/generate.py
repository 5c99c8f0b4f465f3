# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Text generation by a pruned model of Llama's shape: `python benchmarks/generate.py [DTYPE] [THREADS] [LAYERS]`.

A prompt of 512 tokens, then 64 steps of one token with a key-value cache; 90% random zeros. The dense model and the one
converted on prompt and step take turns. Random weights: what is generated means nothing. To compare two trees, run it
in turn with PYTHONPATH set to each.
"""

from __future__ import annotations

import copy
import statistics
import sys
import time

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparsekernels as sk

HIDDEN, INNER, HEADS, VOCABULARY = 2048, 5632, 16, 1000
PROMPT, STEPS, ROUNDS = 512, 64, 4

Cache = list[tuple[Tensor, Tensor]]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before_attention, self.before_mlp = nn.RMSNorm(HIDDEN), nn.RMSNorm(HIDDEN)
        self.q, self.k, self.v, self.o = (nn.Linear(HIDDEN, HIDDEN, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(HIDDEN, INNER, bias=False) for _ in range(2))
        self.down = nn.Linear(INNER, HIDDEN, bias=False)

    def forward(self, x: Tensor, turn: Tensor, past: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
        normed = self.before_attention(x)
        heads = (layer(normed).unflatten(-1, (HEADS, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        q, k, v = heads
        q, k = rotated(q, turn), rotated(k, turn)
        if past is not None:
            k, v = torch.cat((past[0], k), 2), torch.cat((past[1], v), 2)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=past is None)
        x = x + self.o(attended.transpose(1, 2).flatten(2))
        normed = self.before_mlp(x)
        return x + self.down(F.silu(self.gate(normed)) * self.up(normed)), k, v


class Llama(nn.Module):
    """Of Llama's shape."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, HIDDEN)
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))
        self.norm, self.head = nn.RMSNorm(HIDDEN), nn.Linear(HIDDEN, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor, cache: Cache | None = None) -> tuple[Tensor, Cache]:
        first = 0 if cache is None else cache[0][0].size(2)
        frequencies = 1e4 ** -(torch.arange(0, HIDDEN // HEADS, 2) / (HIDDEN // HEADS))
        turn = torch.arange(first, first + tokens.size(1))[:, None] * frequencies
        x = self.embedding(tokens)
        kept: Cache = []
        for index, block in enumerate(self.blocks):
            x, k, v = block(x, turn, None if cache is None else cache[index])
            kept.append((k, v))
        return self.head(self.norm(x[:, -1:])), kept


def rotated(x: Tensor, turn: Tensor) -> Tensor:
    """By the angles `turn`, half against half (Su et al., 2021; arXiv:2104.09864)."""
    a, b = x.chunk(2, -1)
    cos, sin = turn.cos().to(x.dtype), turn.sin().to(x.dtype)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def generate(model: nn.Module, prompt: Tensor) -> tuple[float, float]:
    """Seconds of the prompt and of the steps behind it."""
    with torch.inference_mode():
        start = time.perf_counter()
        scores, cache = model(prompt)
        between = time.perf_counter()
        for _ in range(STEPS):
            scores, cache = model(scores.argmax(-1), cache)
        return between - start, time.perf_counter() - between


def prune_(module: nn.Module) -> None:
    """Set 90% of the weights of all linear layers to zero, at random."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            layer.weight.data.mul_(torch.rand(layer.weight.shape) < 0.1)


def pruned(blocks: int, dtype: torch.dtype) -> Llama:
    """The model, whose head is dense."""
    model = Llama(blocks).to(dtype).eval()
    prune_(model.blocks)
    return model


def main() -> None:
    dtype = getattr(torch, sys.argv[1] if len(sys.argv) > 1 else "float32")
    torch.set_num_threads(int(sys.argv[2]) if len(sys.argv) > 2 else torch.get_num_threads())
    torch.manual_seed(0)
    dense = pruned(int(sys.argv[3]) if len(sys.argv) > 3 else 4, dtype)
    model, prompt = copy.deepcopy(dense), torch.randint(VOCABULARY, (1, PROMPT))
    with torch.inference_mode():
        scores, cache = dense(prompt)
    start = time.perf_counter()
    print(sk.convert(model, example_inputs=[((prompt,), {}), ((scores.argmax(-1), cache), {})]))
    print(f"convert: {time.perf_counter() - start:.1f} s")
    for one in (dense, model):
        generate(one, prompt)  # untimed: what happens once
    rounds = []
    for index in range(ROUNDS):
        first, second = (dense, model) if index % 2 else (model, dense)
        times_of = {id(one): generate(one, prompt) for one in (first, second)}
        rounds.append((times_of[id(dense)], times_of[id(model)]))
    for name, part in (("prompt", slice(0, 1)), ("steps", slice(1, 2)), ("generate", slice(0, 2))):
        times = [(sum(one[part]), sum(other[part])) for one, other in rounds]
        before, after = (statistics.median(some) for some in zip(*times, strict=True))
        ratio = statistics.median(one / other for one, other in times)
        print(f"{name}: dense {before:.3f} s, converted {after:.3f} s, {ratio:.3f}x")


if __name__ == "__main__":
    main()
