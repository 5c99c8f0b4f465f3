# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Text generation by a pruned model of Llama's shape.

    python benchmarks/generate.py [DTYPE] [THREADS] [LAYERS] [--packed] [--sparsity 0.9]

A prompt of 512 tokens, then 64 steps of one token with a key-value cache; random zeros. The dense model and the one
converted on prompt and step take turns, or, with --packed, one whose linear layers are `PackedLinear`. 20 layers are
a model of a billion weights. Random weights: what is generated means nothing. To compare two trees, run it in turn with
PYTHONPATH set to each.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparsekernels as sk
from sparsekernels.pruning import prune_

HIDDEN, INNER, HEADS, VOCABULARY, SPARSITY = 2048, 5632, 16, 1000, 0.9
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


def pruned(blocks: int, dtype: torch.dtype, sparsity: float = SPARSITY) -> Llama:
    """The model, whose head is dense."""
    model = Llama(blocks).to(dtype).eval()
    prune_(model.blocks, "random", sparsity)
    return model


def packed(model: Llama) -> Llama:
    """A copy without dense weights in its blocks."""
    twin = copy.copy(model)
    twin._modules = dict(model._modules)
    twin.blocks = nn.ModuleList()
    for block in model.blocks:
        own = copy.copy(block)
        own._modules = {
            name: sk.nn.PackedLinear.from_dense(layer) if isinstance(layer, nn.Linear) else layer
            for name, layer in block.named_children()
        }
        twin.blocks.append(own)
    return twin


def converted(dense: Llama, prompt: Tensor) -> Llama:
    """A copy, converted for a prompt and a step."""
    model = copy.deepcopy(dense)
    with torch.inference_mode():
        scores, cache = dense(prompt)
    start = time.perf_counter()
    print(sk.convert(model, example_inputs=[((prompt,), {}), ((scores.argmax(-1), cache), {})]))
    print(f"convert: {time.perf_counter() - start:.1f} s")
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dtype", nargs="?", default="float32")
    parser.add_argument("threads", nargs="?", type=int, default=torch.get_num_threads())
    parser.add_argument("layers", nargs="?", type=int, default=4)
    parser.add_argument("--packed", action="store_true")
    parser.add_argument("--sparsity", type=float, default=SPARSITY)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    dense = pruned(args.layers, getattr(torch, args.dtype), args.sparsity)
    prompt = torch.randint(VOCABULARY, (1, PROMPT))
    model = packed(dense) if args.packed else converted(dense, prompt)
    way = "packed" if args.packed else "converted"
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
        print(f"{name}: dense {before:.3f} s, {way} {after:.3f} s, {ratio:.3f}x")


if __name__ == "__main__":
    main()
