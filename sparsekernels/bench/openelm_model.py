# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
r"""OpenELM in plain PyTorch, with the norm as a parameter: the model that the suite `openelm` measures.

The models of Mehta et al. 2024 (arXiv 2404.14619, section 2) with random weights: a decoder without biases, RMSNorm
before attention, before the feed-forward network (FFN) and on queries and keys, rotary positions, grouped-query
attention, SwiGLU, and layers that widen with depth. The 1.1B model has 113 norms, half of them on rows of 64 numbers,
which makes it a good place to see what a norm costs.

To use the fused norm in a model of your own, write `sparsekernels.nn.RMSNorm` where `torch.nn.RMSNorm` stands; the
weights stay the same. Where a residual is added just before the norm, `add_norm` below shows how to do both in one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparsekernels

Norm = Callable[[int, float], nn.Module]
"""Makes a norm from the length of its rows and eps."""


def multiple_of(divisor: int, value: float) -> int:
    """`value` rounded to a multiple of `divisor`, and up where rounding down would lose more than a tenth."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


@dataclass(frozen=True)
class Config:
    """One size of OpenELM. Layer i of L has alpha_i * dim / head_dim query heads and an FFN of beta_i * dim units.

    alpha_i and beta_i grow linearly with i between the bounds given here, and are rounded to two places; query heads
    are a multiple of the four that share one key and value head, FFN widths a multiple of 256.
    """

    layers: int
    dim: int
    head_dim: int
    alpha: tuple[float, float] = (0.5, 1.0)
    beta: tuple[float, float] = (0.5, 4.0)
    group: int = 4
    ffn_multiple: int = 256
    vocabulary: int = 32000
    rope_base: float = 10000.0
    eps: float = 1e-6
    head_norms: bool = True
    """Whether queries and keys are normalized."""

    def _scaled(self, bounds: tuple[float, float]) -> list[float]:
        low, high = bounds
        return [self.dim * round(low + (high - low) * i / (self.layers - 1), 2) for i in range(self.layers)]

    @property
    def query_heads(self) -> tuple[int, ...]:
        width = self.head_dim * self.group
        return tuple(multiple_of(width, size) // self.head_dim for size in self._scaled(self.alpha))

    @property
    def kv_heads(self) -> tuple[int, ...]:
        return tuple(heads // self.group for heads in self.query_heads)

    @property
    def ffn_dims(self) -> tuple[int, ...]:
        return tuple(multiple_of(self.ffn_multiple, size) for size in self._scaled(self.beta))

    @property
    def norms(self) -> int:
        return (4 if self.head_norms else 2) * self.layers + 1


CONFIGS = {
    "270M": Config(layers=16, dim=1280, head_dim=64),
    "450M": Config(layers=20, dim=1536, head_dim=64),
    "1.1B": Config(layers=28, dim=2048, head_dim=64),
    "3B": Config(layers=36, dim=3072, head_dim=128),
}

LLAMA_1B = Config(
    layers=16,
    dim=2048,
    head_dim=64,
    alpha=(1.0, 1.0),
    beta=(4.0, 4.0),
    vocabulary=128256,
    rope_base=500000.0,
    eps=1e-5,
    head_norms=False,
)
"""The shape of Llama 3.2 1B: every layer alike, and the head is the embedding as in OpenELM. 1.24e9 weights."""


class NaiveRMSNorm(nn.Module):
    """RMSNorm as the authors wrote it at first: six operations, eight in half precision, each a pass over memory."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        normalized = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return normalized.type_as(x) * self.weight


class AddRMSNorm(sparsekernels.nn.RMSNorm):
    """The same norm, marked for `add_norm` below. Your own model needs no mark; here one model shows both ways."""


def add_norm(norm: nn.Module, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    """`norm(x + residual)` and `x + residual`, in one pass over memory where the norm is marked for it."""
    if isinstance(norm, AddRMSNorm):
        return norm.add_forward(x, residual)
    total = x + residual
    return norm(total), total


@dataclass(frozen=True)
class LayerCache:
    """Keys (rotated) and values of one layer: (batch, key and value heads, length, head_dim)."""

    keys: Tensor
    values: Tensor


@dataclass(frozen=True)
class Positions:
    """Where the tokens of a call stand, as tensors, so that a CUDA graph of the call works at every position."""

    index: Tensor  # (tokens,), integers
    cos: Tensor  # (tokens, head_dim / 2)
    sin: Tensor
    seen: Tensor | None  # (1, length of the cache): what a single token attends to; None for a whole prompt

    @staticmethod
    def at(index: Tensor, config: Config, cache: list[LayerCache] | None) -> Positions:
        half = torch.arange(config.head_dim // 2, device=index.device, dtype=torch.float32)
        angles = index[:, None] * config.rope_base ** (-2 * half / config.head_dim)
        seen = None
        if cache is not None and len(index) == 1:
            seen = torch.arange(cache[0].keys.shape[2], device=index.device) <= index[:, None]
        return Positions(index, angles.cos(), angles.sin(), seen)


def rotate(x: Tensor, positions: Positions) -> Tensor:
    """Rotary positions (Su et al. 2021, arXiv 2104.09864): x_j and x_(j + d/2) turn by position * base^(-2j/d)."""
    a, b = x.chunk(2, dim=-1)
    cos, sin = positions.cos, positions.sin
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).type_as(x)


class Attention(nn.Module):
    def __init__(self, config: Config, layer: int, norm: Norm) -> None:
        super().__init__()
        self.config = config
        self.heads = (config.query_heads[layer], config.kv_heads[layer], config.kv_heads[layer])
        self.qkv_proj = nn.Linear(config.dim, sum(self.heads) * config.head_dim, bias=False)
        self.out_proj = nn.Linear(self.heads[0] * config.head_dim, config.dim, bias=False)
        self.q_norm = norm(config.head_dim, config.eps) if config.head_norms else nn.Identity()
        self.k_norm = norm(config.head_dim, config.eps) if config.head_norms else nn.Identity()

    def forward(self, x: Tensor, positions: Positions, cache: LayerCache | None) -> Tensor:
        batch, tokens, _ = x.shape
        qkv = self.qkv_proj(x).view(batch, tokens, sum(self.heads), self.config.head_dim).transpose(1, 2)
        # Slices of a transposed tensor: rows of head_dim numbers at a stride. A good norm takes them as they are.
        query, key, value = qkv.split(self.heads, dim=1)
        query, key = rotate(self.q_norm(query), positions), rotate(self.k_norm(key), positions)
        if cache is not None:
            cache.keys.index_copy_(2, positions.index, key)
            cache.values.index_copy_(2, positions.index, value)
        if cache is not None and positions.seen is not None:
            # The queries that share a key stand where the tokens of a sequence would: no key is repeated in memory.
            query = query.view(batch, self.heads[1], self.config.group, self.config.head_dim)
            mixed = F.scaled_dot_product_attention(query, cache.keys, cache.values, attn_mask=positions.seen)
        else:
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True).transpose(1, 2)
        return self.out_proj(mixed.reshape(batch, tokens, -1))


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020, arXiv 2002.05202): W2 (silu(G x) * U x), with G and U in one matrix."""

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        self.proj_1 = nn.Linear(config.dim, 2 * config.ffn_dims[layer], bias=False)
        self.proj_2 = nn.Linear(config.ffn_dims[layer], config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.proj_1(x).chunk(2, dim=-1)
        return self.proj_2(F.silu(gate) * up)


class Block(nn.Module):
    """One layer. It takes the residual stream in two parts, whose sum is left to the first norm of the layer."""

    def __init__(self, config: Config, layer: int, norm: Norm) -> None:
        super().__init__()
        self.attn_norm = norm(config.dim, config.eps)
        self.attn = Attention(config, layer, norm)
        self.ffn_norm = norm(config.dim, config.eps)
        self.ffn = FeedForward(config, layer)

    def forward(
        self, x: Tensor, residual: Tensor | None, positions: Positions, cache: LayerCache | None = None
    ) -> tuple[Tensor, Tensor]:
        # The first layer has nothing to add yet.
        normalized, stream = (self.attn_norm(x), x) if residual is None else add_norm(self.attn_norm, x, residual)
        normalized, stream = add_norm(self.ffn_norm, self.attn(normalized, positions, cache), stream)
        return self.ffn(normalized), stream


class OpenELM(nn.Module):
    def __init__(self, config: Config, norm: Norm = nn.RMSNorm) -> None:
        super().__init__()
        self.config = config
        # empty, as `build` wants it: on the device "meta", the module's own initialization imports torch._dynamo
        self.embedding = nn.Embedding.from_pretrained(torch.empty(config.vocabulary, config.dim), freeze=False)
        self.blocks = nn.ModuleList(Block(config, layer, norm) for layer in range(config.layers))
        self.norm = norm(config.dim, config.eps)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of every position: (batch, tokens, vocabulary)."""
        return self.logits(self.hidden(tokens, torch.arange(tokens.shape[1], device=tokens.device)))

    def logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.embedding.weight)

    def hidden(self, tokens: Tensor, index: Tensor, cache: list[LayerCache] | None = None) -> Tensor:
        """The normalized output of the last layer for tokens (batch, n) that stand at `index` (n,).

        Without a cache, or with several tokens, attention is causal among these tokens, which are then a whole
        prompt; a single token with a cache attends to everything in the cache up to its own position.
        """
        positions = Positions.at(index, self.config, cache)
        x: Tensor = self.embedding(tokens)
        residual: Tensor | None = None
        for layer, block in enumerate(self.blocks):
            x, residual = block(x, residual, positions, cache[layer] if cache is not None else None)
        assert residual is not None
        return add_norm(self.norm, x, residual)[0]

    def new_cache(self, batch: int, length: int) -> list[LayerCache]:
        # Zeros, because what the mask hides must still be finite.
        return [
            LayerCache(*self.embedding.weight.new_zeros(2, batch, heads, length, self.config.head_dim))
            for heads in self.config.kv_heads
        ]


@torch.no_grad()
def build(
    name: str | Config,
    norm: Norm = nn.RMSNorm,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> OpenELM:
    """A model in evaluation mode with random weights, spread as the authors start theirs; norm weights near one."""
    config = CONFIGS[name] if isinstance(name, str) else name
    # Not one weight is initialized twice: the modules are empty until the loop below fills them.
    with torch.device("meta"):
        model = OpenELM(config, norm)
    model = model.to(dtype).to_empty(device=device).eval().requires_grad_(False)
    generator = torch.Generator(device).manual_seed(seed)
    for key, parameter in model.named_parameters():
        if parameter.dim() == 1:
            mean, std = (0.0 if key.endswith("bias") else 1.0), 0.1
        else:
            mean, std = 0.0, config.dim**-0.5
            if key.endswith(("out_proj.weight", "proj_2.weight")):
                std /= (2 * config.layers) ** 0.5
        parameter.normal_(mean, std, generator=generator)
    return model


def with_norm(model: OpenELM, norm: Norm) -> OpenELM:
    """A model with other norms and every weight shared with `model`, so that comparing norms costs no memory."""
    twin = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    norms = [(path, module) for path, module in twin.named_modules() if path.endswith("norm")]
    for path, old in ((path, module) for path, module in norms if not isinstance(module, nn.Identity)):
        new = norm(old.weight.numel(), model.config.eps).to(old.weight)
        if hasattr(new, "weight"):
            new.weight = old.weight
        twin.set_submodule(path, new.eval().requires_grad_(False))
    return twin


class Reader(nn.Module):
    """A model and the cache that it reads into: what a generator calls, for a prompt as for a single token."""

    def __init__(self, model: OpenELM, batch: int, length: int) -> None:
        super().__init__()
        self.model = model
        self.cache = model.new_cache(batch, length)
        self.train(model.training)

    def forward(self, tokens: Tensor, index: Tensor) -> Tensor:
        """Logits (batch, vocabulary) after tokens (batch, n) that stand at `index` (n,)."""
        return self.model.logits(self.model.hidden(tokens, index, self.cache)[:, -1])


class Generator:
    """Greedy generation with a cache of fixed length, optionally with the step of one token as a CUDA graph.

    After each call `logits` (batch, vocabulary) says what may come next, `token` (batch, 1) is the likeliest, and
    `position` (1,) is where it will stand.

    batch   sequences that are continued side by side
    length  tokens of the prompt and new tokens together
    """

    def __init__(self, model: OpenELM, batch: int, length: int, cuda_graph: bool = False) -> None:
        device = model.embedding.weight.device
        self.reader = Reader(model, batch, length)
        self.cache = self.reader.cache
        self.logits = torch.zeros(batch, model.config.vocabulary, dtype=model.embedding.weight.dtype, device=device)
        self.token = torch.zeros(batch, 1, dtype=torch.int64, device=device)
        self.position = torch.zeros(1, dtype=torch.int64, device=device)
        self._graph = self._capture() if cuda_graph else None

    @torch.inference_mode()
    def prompt(self, tokens: Tensor) -> None:
        """Read tokens (batch, n) from position 0 on."""
        self._read(tokens, torch.arange(tokens.shape[1], device=tokens.device))

    @torch.inference_mode()
    def step(self) -> None:
        """Read `token`, which stands at `position`."""
        if self._graph is None:
            self._read(self.token, self.position)
        else:
            self._graph.replay()

    def _read(self, tokens: Tensor, index: Tensor) -> None:
        # Everything stays on the device and in the same memory, so that a CUDA graph can be made of it.
        self.logits.copy_(self.reader(tokens, index))
        self.token.copy_(self.logits.argmax(-1, keepdim=True))
        self.position.copy_(index[-1:] + 1)

    @torch.inference_mode()
    def _capture(self) -> torch.cuda.CUDAGraph:
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            # Libraries set themselves up outside of the graph. The next prompt overwrites what this leaves behind.
            self._read(self.token, self.position)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._read(self.token, self.position)
        return graph

    def generate(self, tokens: Tensor, count: int) -> Tensor:
        """The `count` likeliest tokens after tokens (batch, n): (batch, count)."""
        if tokens.shape[1] + count > self.cache[0].keys.shape[2]:
            raise ValueError(
                f"generate: expected at most {self.cache[0].keys.shape[2]} tokens, which the cache holds, got"
                f" {tokens.shape[1]} + {count}"
            )
        self.prompt(tokens)
        new = [self.token.clone()]
        for _ in range(count - 1):
            self.step()
            new.append(self.token.clone())
        return torch.cat(new, dim=1)
