# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The suite of pruned language models, on a tiny one."""

from __future__ import annotations

import dataclasses
import functools
import json
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from test_bench_reports import make_record
from torch import nn

from sparsekernels import _library
from sparsekernels.bench import decode, language, openelm_model, report, worker
from sparsekernels.bench.record import Record
from sparsekernels.bench.suite import Case, Selection, Unavailable
from sparsekernels.nn import PackedLinear
from sparsekernels.testing import prefer
from sparsekernels.timing import Effort

TINY = openelm_model.Config(layers=2, dim=128, head_dim=16, vocabulary=97, ffn_multiple=16)
LLAMA = dataclasses.replace(openelm_model.LLAMA_1B, layers=2, dim=128, head_dim=16, vocabulary=97, ffn_multiple=16)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setitem(decode.MODELS, "openelm-270m", TINY)
    monkeypatch.setitem(decode.MODELS, "llama-1b", LLAMA)
    decode._KEPT.clear()
    yield
    decode._KEPT.clear()
    torch.set_num_threads(before)


def case_of(selection: Selection) -> Case:
    (case,) = decode.SUITE.cases(selection)
    return case


def test_cases() -> None:
    def names(*cases: str, quick: bool = False) -> set[str]:
        return {case.name.partition("/")[0] for case in decode.SUITE.cases(Selection(cases=cases, quick=quick))}

    assert names() == names(quick=True) == names("prompt-*") == {"openelm-270m"}
    assert names("llama-1b") == {"llama-1b"}
    assert names("*") == set(decode.MODELS)
    every = [(case.dtype, case.pattern) for case in decode.SUITE.cases(Selection(dtypes=("bfloat16",)))]
    percents = (50, 70, 80, 90)
    assert every == [("bfloat16", f"random-{percent}") for percent in percents for _ in range(2)]  # of the same weights
    assert case_of(Selection(quick=True)).pattern == "random-80"
    chosen = decode.SUITE.cases(Selection(quick=True, sparsities=(60.0,), masks=("magnitude",)))
    assert [case.pattern for case in chosen] == ["magnitude-60"]


@pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels were not built")
@pytest.mark.parametrize("model", ["openelm-270m", "llama-1b"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_measures_every_variant(model: str, dtype: str) -> None:
    quickly = dataclasses.replace(decode.SUITE, full=Effort(seconds=0.05, least=2, most=3))
    variants = ("dense", "dense-float32", "packed", "ours")  # a compiler takes a minute
    selection = Selection(dtypes=(dtype,), sparsities=(80.0,), variants=variants, cases=(model,))
    events: list[dict[str, Any]] = []
    with prefer("packed", "layers"):
        worker.run(quickly, selection, events.append)
    records = [Record.from_json(json.dumps(event["record"])) for event in events if event["event"] == "record"]
    rows = report.rows(records)
    labels = [f"{model}/generate-32 (random-80)", f"{model}/prompt-512 (random-80)"]
    assert [label for label, _ in rows] == labels
    for row in rows.values():
        assert set(row) == {"dense", "packed", "ours"} | ({"dense-float32"} if dtype != "float32" else set())
        assert {record.status for record in row.values()} == {"ok"}
        dense = row["dense"].details
        assert dense["layers"] == 4 * 2
        for name in ("packed", "ours"):
            assert row[name].details["packed_layers"] == 8
            assert row[name].details["weight_bytes"] < (0.32 if dtype == "bfloat16" else 0.28) * dense["weight_bytes"]
            assert row[name].sparsity == 0.8
            assert row[name].speedup is not None
        assert row["dense"].speedup == 1
    texts = [[column.text(row) for column in decode.SUITE.layout.columns] for row in rows.values()]
    titles = [column.title for column in decode.SUITE.layout.columns]
    for text in texts:
        empty = {title for title, one in zip(titles, text, strict=True) if not one}
        assert empty == {"compile tokens/s"} | (set() if dtype != "float32" else {"dense-float32 tokens/s"})
        for name in ("packed", "ours"):
            assert text[titles.index(f"{name} over the best dense")].endswith("x")
            assert float(text[titles.index(f"{name} MB")]) < 0.32 * float(text[titles.index("dense MB")])


def test_models_are_in_memory_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[Any]] = []
    build = openelm_model.build

    def build_alone(*args: Any, **kwargs: Any) -> Any:
        assert [one() for one in made] == [None] * len(made)
        model = build(*args, **kwargs)
        made.append(weakref.ref(model.embedding.weight))  # which what was made of the model has as well
        return model

    monkeypatch.setattr(openelm_model, "build", build_alone)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    quickly = dataclasses.replace(decode.SUITE, full=Effort(seconds=0.01, least=1, most=1))
    selection = Selection(
        dtypes=("bfloat16",), sparsities=(80.0, 90.0), variants=("dense", "compile", "packed", "ours")
    )
    for case in decode.SUITE.cases(selection):
        assert decode.variants(case, selection)
    assert not made
    events: list[dict[str, Any]] = []
    with prefer("packed", "layers"):
        worker.run(quickly, selection, events.append)
    found = [event["record"]["status"] for event in events if event["event"] == "record"]
    assert found == ["ok"] * 16  # four variants of two patterns, for a prompt and a token
    assert len(made) == 2


def test_every_case_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where torch has as many graphs of the function as it keeps: two of each model, for a prompt and a token."""
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    case = case_of(Selection(cases=("generate-32",), dtypes=("float32",), sparsities=(80.0,)))
    with torch._dynamo.config.patch(recompile_limit=2):
        for layers in (2, 3):
            base = openelm_model.build(dataclasses.replace(TINY, layers=layers))
            model, _ = decode._compiled(case, base)
            assert len(graphs) == 2 * (layers - 1)
            assert language.Oracle(case, base).check(language.runs(case, model).logits()).passed


def test_a_compiler_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def backend(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    case = case_of(Selection(cases=("generate-32",), dtypes=("float32",), sparsities=(80.0,)))
    with pytest.raises(Unavailable, match=r"torch.compile fails: .*no compiler here"):
        decode._compiled(case, openelm_model.build(TINY))


def test_what_convert_leaves_as_it_is_has_a_time() -> None:
    case = case_of(Selection(cases=("generate-32",), dtypes=("float32",), sparsities=(80.0,)))
    (ours,) = (one for one in decode.variants(case, Selection()) if one.name.startswith("ours"))
    with prefer("dense"):
        prepared = ours.prepare()
    assert prepared.details["packed_layers"] == 0
    assert prepared.check is not None
    assert prepared.check().passed


def test_the_short_benchmark_has_all_variants_that_are_asked_for() -> None:
    def kinds(**options: Any) -> list[str]:
        selection = Selection(quick=True, **options)
        return [one.name.partition(":")[0] for one in decode.variants(case_of(selection), selection)]

    short = ["dense", "dense-float32", "packed"]
    assert kinds() == short
    assert kinds(variants=("ours",)) == [*short, "compile", "ours"]


def test_the_best_dense_variant_counts() -> None:
    times = {"dense": 4.0, "dense-float32": 2.0, "compile": 3.0, "packed": 1.0}
    row = {name: make_record(name, (ms, ms, ms)) for name, ms in times.items()}
    column = decode._over_best_dense("packed")
    assert column.text(row) == "2.00x"
    assert column.text({name: row[name] for name in ("dense", "packed")}) == "4.00x"
    assert column.text({"packed": row["packed"]}) == ""


def test_no_wrong_weight_is_believed() -> None:
    case = case_of(Selection(cases=("generate-32",), dtypes=("float32",), sparsities=(80.0,)))
    base = decode._base("openelm-270m", "float32", "random", 80.0)
    oracle = language.Oracle(case, base)
    model, _ = decode._packed(case, base)
    assert oracle.check(language.runs(case, model).logits()).passed
    dense = nn.Linear(128, 128, bias=False)
    with torch.no_grad():
        dense.weight.copy_(model.blocks[1].attn.out_proj.weight * 1.01)
    model.blocks[1].attn.out_proj = PackedLinear.from_dense(dense)
    assert not oracle.check(language.runs(case, model).logits()).passed


def test_all_variants_have_the_same_parameters() -> None:
    case = case_of(Selection(cases=("generate-32",), dtypes=("bfloat16",), sparsities=(80.0,)))
    base = decode._base("openelm-270m", "bfloat16", "random", 80.0)
    before = {name: one.clone() for name, one in base.state_dict().items()}
    for build in (decode._packed, decode._in_float32):
        model, _ = build(case, base)
        assert model is not base
        assert all(torch.equal(one, before[name].to(one.dtype)) for name, one in model.state_dict().items())
    assert decode._packed(case, base)[0].embedding.weight is base.embedding.weight
    assert all(type(one) is nn.Linear for one in base.blocks.modules() if isinstance(one, nn.Linear))
    zeros = [float((one.weight == 0).float().mean()) for one in base.blocks.modules() if isinstance(one, nn.Linear)]
    assert all(0.78 < share < 0.82 for share in zeros)


def test_a_model_without_head_norms() -> None:
    model = openelm_model.build(LLAMA, dtype=torch.float64)
    assert sum(isinstance(one, nn.RMSNorm) for one in model.modules()) == LLAMA.norms == 5
    assert len({tuple(one.weight.shape) for one in model.blocks.modules() if isinstance(one, nn.Linear)}) == 4
    tokens = torch.randint(97, (1, 9))
    whole, generator = model(tokens), openelm_model.Generator(model, 1, 9)
    generator.prompt(tokens[:, :5])
    for place in range(5, 9):
        generator.token.copy_(tokens[:, place : place + 1])
        generator.step()
    torch.testing.assert_close(generator.logits, whole[:, -1])
    assert openelm_model.with_norm(model, nn.LayerNorm).blocks[0].attn.q_norm is not None
