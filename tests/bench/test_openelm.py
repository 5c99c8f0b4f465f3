# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""OpenELM: its four sizes, its parts against their definitions, generation, and the suite."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsekernels.bench import language, report, worker
from sparsekernels.bench import openelm as suite
from sparsekernels.bench import openelm_model as openelm
from sparsekernels.bench.record import Record
from sparsekernels.bench.suite import Case, Selection
from sparsekernels.timing import Effort

NORMS = {name: norm for name, norm in suite.NORMS.items() if name != "none"}

TINY = openelm.Config(layers=3, dim=128, head_dim=16, vocabulary=97, ffn_multiple=16)
"""Widths 64, 128, 128 for queries: one group of heads in the first layer, two in the others."""


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Nothing here is large enough for two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model() -> Any:
    return openelm.build(TINY, dtype=torch.float64)


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(TINY.vocabulary, (2, 11), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("name", "layers", "dim", "head_dim", "query_heads", "kv_heads", "ffn_dims", "norms", "parameters"),
    [
        ("270M", 16, 1280, 64, "12x5 16x7 20x4", (3, 5), (768, 5120), 65, 0.27e9),
        ("450M", 20, 1536, 64, "12x3 16x7 20x6 24x4", (3, 6), (768, 6144), 81, 0.46e9),
        ("1.1B", 28, 2048, 64, "16x3 20x7 24x8 28x6 32x4", (4, 8), (1024, 8192), 113, 1.08e9),
        ("3B", 36, 3072, 128, "12x4 16x14 20x12 24x6", (3, 6), (1536, 12288), 145, 3.04e9),
    ],
)
def test_sizes_are_the_published_ones(
    name: str,
    layers: int,
    dim: int,
    head_dim: int,
    query_heads: str,
    kv_heads: tuple[int, int],
    ffn_dims: tuple[int, int],
    norms: int,
    parameters: float,
) -> None:
    config = openelm.CONFIGS[name]
    assert (config.layers, config.dim, config.head_dim, config.norms) == (layers, dim, head_dim, norms)
    runs = " ".join(f"{heads}x{len(list(run))}" for heads, run in groupby(config.query_heads))
    assert runs == query_heads
    assert (config.kv_heads[0], config.kv_heads[-1]) == kv_heads
    assert (config.ffn_dims[0], config.ffn_dims[-1]) == ffn_dims
    with torch.device("meta"):
        model = openelm.OpenELM(config)
    assert sum(isinstance(module, nn.RMSNorm) for module in model.modules()) == norms
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(parameters, rel=0.02)
    assert not any(isinstance(module, nn.Linear) and module.bias is not None for module in model.modules())


def test_multiple_of_never_loses_more_than_a_tenth() -> None:
    assert openelm.multiple_of(256, 640) == 768
    assert openelm.multiple_of(256, 639) == 768  # 512 would be a fifth less
    assert openelm.multiple_of(256, 100) == 256
    assert openelm.multiple_of(8, 103) == 104


def test_logits_do_not_depend_on_later_tokens(model: Any, tokens: Tensor) -> None:
    before = model(tokens)
    changed = tokens.clone()
    changed[:, 6] = (changed[:, 6] + 1) % TINY.vocabulary
    after = model(changed)
    torch.testing.assert_close(after[:, :6], before[:, :6], rtol=0, atol=1e-12)
    assert ((after[:, 6:] - before[:, 6:]).abs().amax(-1) > 1e-3).all()


@pytest.mark.parametrize("fused", [False, True])
def test_cached_generation_equals_computing_everything_anew(model: Any, tokens: Tensor, fused: bool) -> None:
    if fused:
        model = openelm.with_norm(model, openelm.AddRMSNorm)
    generator = openelm.Generator(model, batch=2, length=tokens.shape[1] + 5)
    new = generator.generate(tokens, 5)
    text = tokens
    for index in range(5):
        expected = model(text)[:, -1]
        assert torch.equal(new[:, index], expected.argmax(-1))
        text = torch.cat((text, new[:, index : index + 1]), dim=1)
    generator.prompt(tokens)
    for index in range(4):
        torch.testing.assert_close(generator.logits, model(text[:, : tokens.shape[1] + index])[:, -1])
        assert torch.equal(generator.token, new[:, index : index + 1])
        assert generator.position.item() == tokens.shape[1] + index
        generator.step()


def test_generator_can_be_used_again_and_refuses_what_does_not_fit(model: Any, tokens: Tensor) -> None:
    generator = openelm.Generator(model, batch=2, length=15)
    first = generator.generate(tokens, 4)
    generator.generate(tokens.flip(1), 4)
    assert torch.equal(generator.generate(tokens, 4), first)
    with pytest.raises(ValueError, match=r"expected at most 15 tokens, which the cache holds, got 11 \+ 5"):
        generator.generate(tokens, 5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("norm", NORMS)
def test_generation_with_a_cuda_graph(norm: str, tokens: Tensor) -> None:
    model = openelm.build(TINY, NORMS[norm], device="cuda")
    eager = openelm.Generator(model, 2, 20).generate(tokens.cuda(), 9)
    graph = openelm.Generator(model, 2, 20, cuda_graph=True)
    assert torch.equal(graph.generate(tokens.cuda(), 9), eager)
    assert torch.equal(graph.generate(tokens.cuda(), 9), eager)


def attention_by_definition(attention: Any, x: Tensor) -> Tensor:
    """Head by head and token by token: query head h reads key and value head h // group."""
    config, (query_heads, kv_heads, _) = TINY, attention.heads
    batch, count, _ = x.shape
    rows = attention.qkv_proj(x).view(batch, count, -1, config.head_dim)
    result = torch.zeros(batch, count, query_heads, config.head_dim, dtype=x.dtype)
    positions = openelm.Positions.at(torch.arange(count), config, None)
    for b in range(batch):
        for head in range(query_heads):
            shared = query_heads + head // config.group
            q = openelm.rotate(attention.q_norm(rows[b, :, head]), positions)
            k = openelm.rotate(attention.k_norm(rows[b, :, shared]), positions)
            for t in range(count):
                weights = torch.softmax(k[: t + 1] @ q[t] / config.head_dim**0.5, dim=0)
                result[b, t, head] = weights @ rows[b, : t + 1, shared + kv_heads]
    return attention.out_proj(result.flatten(2))


def test_attention_maps_heads_in_groups(model: Any) -> None:
    attention = model.blocks[-1].attn
    assert attention.heads == (8, 2, 2)
    x = torch.randn(2, 7, TINY.dim, dtype=torch.float64)
    expected = attention_by_definition(attention, x)
    torch.testing.assert_close(attention(x, openelm.Positions.at(torch.arange(7), TINY, None), None), expected)

    cache = model.new_cache(2, 9)
    attention(x[:, :6], openelm.Positions.at(torch.arange(6), TINY, cache), cache[-1])
    last = attention(x[:, 6:], openelm.Positions.at(torch.tensor([6]), TINY, cache), cache[-1])
    torch.testing.assert_close(last, expected[:, 6:])


def test_rotation_turns_pairs_and_depends_on_distance_only() -> None:
    q, k = torch.randn(2, 1, TINY.head_dim, dtype=torch.float64)

    def at(x: Tensor, position: int) -> Tensor:
        return openelm.rotate(x, openelm.Positions.at(torch.tensor([position]), TINY, None))

    scores = [(at(q, 5 + shift) * at(k, 2 + shift)).sum() for shift in (0, 1, 40, 700)]
    torch.testing.assert_close(torch.stack(scores), scores[0].expand(4), rtol=0, atol=1e-4)  # float32 angles
    assert abs((at(q, 5) * at(k, 3)).sum() - scores[0]) > 1e-2
    frequencies = 10000.0 ** (-2 * torch.arange(8, dtype=torch.float64) / 16)  # radians a position, pair by pair
    for position in (0, 1, 3, 500):
        turned = torch.complex(q[0, :8], q[0, 8:]) * torch.polar(torch.ones(8).double(), position * frequencies)
        torch.testing.assert_close(at(q, position)[0], torch.cat((turned.real, turned.imag)), rtol=0, atol=1e-4)


def test_feed_forward_gates_with_silu_of_the_first_half(model: Any) -> None:
    ffn = model.blocks[0].ffn
    x = torch.randn(3, TINY.dim, dtype=torch.float64)
    gate, up = ffn.proj_1.weight.chunk(2)
    expected = ((x @ gate.T) * torch.sigmoid(x @ gate.T) * (x @ up.T)) @ ffn.proj_2.weight.T
    torch.testing.assert_close(ffn(x), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_norms_agree_and_share_weights(dtype: torch.dtype, tokens: Tensor) -> None:
    model = openelm.build(TINY, dtype=dtype)
    logits = model(tokens)
    assert logits.dtype == dtype
    tolerance = 2e-5 if dtype == torch.float32 else 0.1  # of logits that spread by one
    for name, norm in NORMS.items():
        twin = openelm.with_norm(model, norm)
        shared = dict(model.named_parameters())
        for key, parameter in twin.named_parameters():
            assert parameter is shared[key] if key in shared else key.endswith("norm.bias")
        difference = (twin(tokens) - logits).abs().max().item()
        assert (difference < tolerance) == (name != "layer_norm"), (name, difference)


def test_norms_count_and_can_be_taken_out(model: Any, tokens: Tensor) -> None:
    bare = openelm.with_norm(model, lambda dim, eps: nn.Identity())
    assert sum(isinstance(module, nn.Identity) for module in bare.modules()) == TINY.norms
    assert bare(tokens).isfinite().all()
    assert sum(isinstance(module, nn.RMSNorm) for module in model.modules()) == TINY.norms


def test_query_and_key_norms_read_the_projection_in_place(model: Any, tokens: Tensor) -> None:
    attention = model.blocks[-1].attn
    seen: dict[str, Tensor] = {}
    hooks = [
        attention.qkv_proj.register_forward_hook(lambda module, args, output: seen.update(qkv=output)),
        attention.q_norm.register_forward_pre_hook(lambda module, args: seen.update(q=args[0])),
        attention.k_norm.register_forward_pre_hook(lambda module, args: seen.update(k=args[0])),
    ]
    try:
        model(tokens)
    finally:
        for hook in hooks:
            hook.remove()
    assert seen["q"].shape == (2, 8, 11, 16)
    assert seen["k"].shape == (2, 2, 11, 16)
    for name in ("q", "k"):
        assert seen[name].untyped_storage().data_ptr() == seen["qkv"].untyped_storage().data_ptr()
        assert not seen[name].is_contiguous()


def test_every_addition_before_a_norm_is_fused(tokens: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    model = openelm.build(TINY, openelm.AddRMSNorm)
    calls = []
    original = openelm.AddRMSNorm.add_forward
    monkeypatch.setattr(openelm.AddRMSNorm, "add_forward", lambda *args: calls.append(1) or original(*args))
    model(tokens)
    assert len(calls) == 2 * TINY.layers  # two a layer, and the last norm instead of the very first


def test_build_is_reproducible() -> None:
    first, again, other = (openelm.build(TINY, seed=seed) for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.embedding.weight, other.embedding.weight)
    assert not any(parameter.requires_grad for parameter in first.parameters())


CASES = [
    Case("openelm", "270M/prompt-9", "forward", "float32", "cpu", None, False, {"prompt": 9}),
    Case("openelm", "270M/generate-4", "forward", "bfloat16", "cpu", None, False, {"prompt": 5, "generate": 4}),
]


@pytest.fixture
def tiny_suite(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setitem(openelm.CONFIGS, "270M", TINY)
    suite._base.cache_clear()
    yield suite
    suite._base.cache_clear()


def test_suite_takes_other_models_only_by_name() -> None:
    def models(*cases: str, quick: bool = False) -> set[str]:
        return {case.name.partition("/")[0] for case in suite.SUITE.cases(Selection(cases=cases, quick=quick))}

    assert models() == models(quick=True) == models("prompt-*") == {"270M"}
    assert models("1.1B") == models("1.1B/prompt-512") == {"1.1B"}
    assert models("*") == set(openelm.CONFIGS)


def test_suite_cases_say_what_they_are_called() -> None:
    for case in suite.SUITE.cases(Selection(cases=("*",))):
        kind, _, count = case.name.rpartition("/")[2].partition("-")
        expected = case.parameters["prompt" if kind == "prompt" else "generate"]
        assert int(count) == expected
        assert ("generate" in case.parameters) == (kind == "generate")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_suite_measures_every_variant(tiny_suite: Any, dtype: str) -> None:
    events: list[dict[str, Any]] = []
    quickly = dataclasses.replace(tiny_suite.SUITE, full=Effort(seconds=0.05, least=2, most=3))
    worker.run(quickly, Selection(dtypes=(dtype,)), events.append)
    records = [Record.from_json(json.dumps(event["record"])) for event in events if event["event"] == "record"]
    rows = report.rows(records)
    assert list(rows) == [("270M/prompt-512", dtype), ("270M/generate-16", dtype)]
    for row in rows.values():
        assert set(row) >= {"naive", "torch", "layer_norm", "ours", "ours_add", "none"}
        for name, record in row.items():
            assert record.status == "ok"
            assert (record.max_error is None) == (name in suite.OTHER_FUNCTIONS)
            assert record.speedup is not None
            assert record.ideal_fraction is not None
        assert row["none"].ideal_fraction == row["layer_norm"].speedup == 1
        for column in suite.SUITE.layout.columns:
            assert column.text(row) or column.title == "triton"
    assert [language.tokens_of(row["ours"]) for row in rows.values()] == [512, 1]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_suite_believes_no_wrong_norm(tiny_suite: Any, case: Case) -> None:
    base = suite._base("270M", case.dtype, "cpu")
    oracle = language.Oracle(case, base)

    factor = 1.01 if case.dtype == "float32" else 1.5  # of queries and keys; little of it arrives at the logits

    class Wrong(nn.RMSNorm):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * (factor if x.shape[-1] == TINY.head_dim else 1.0)

    for norm in (nn.LayerNorm, Wrong):
        runs = language.runs(case, openelm.with_norm(base, norm))
        assert not oracle.check(runs.logits()).passed
    runs = language.runs(case, openelm.with_norm(base, nn.RMSNorm))
    assert oracle.check(runs.logits()).passed


def test_truth_by_blocks_is_the_model_in_float64(model: Any, tokens: Tensor) -> None:
    torch.testing.assert_close(language._last_logits(model, tokens), model(tokens)[:, -1])
