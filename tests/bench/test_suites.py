# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Suites and what may be selected of them."""

from __future__ import annotations

from typing import Any

import pytest

from sparsekernels.bench import rmsnorm, suite
from sparsekernels.bench.suite import Selection


class TestSuites:
    def test_cases_are_the_product_of_their_lists(self) -> None:
        cases = suite.parse_cases(
            "s",
            """
            [[cases]]
            group = "a"
            shape = [[8, 64], [1, 20, 4, 64]]
            pass = ["forward", "backward"]
            dtype = ["bfloat16"]
            device = ["cpu"]
            color = "red"
            [[cases]]
            group = "b"
            name = ["prompt"]
            batch = 4
            quick = true
            """,
            "s.toml",
        )
        assert [(c.name, c.pass_, c.dtype, c.device, c.batch, c.quick) for c in cases] == [
            ("a/8x64", "forward", "bfloat16", "cpu", 8, False),
            ("a/8x64", "backward", "bfloat16", "cpu", 8, False),
            ("a/1x20x4x64", "forward", "bfloat16", "cpu", 1, False),
            ("a/1x20x4x64", "backward", "bfloat16", "cpu", 1, False),
            ("b/prompt", "forward", "float32", "cpu", 4, True),
            ("b/prompt", "forward", "float32", "cuda", 4, True),
            ("b/prompt", "forward", "bfloat16", "cpu", 4, True),
            ("b/prompt", "forward", "bfloat16", "cuda", 4, True),
        ]
        assert cases[0].parameters == {"shape": (8, 64), "color": "red"}

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ('group = "a"\nname = ["x"]\ndtype = ["int8"]', "table 1: expected dtype to be 'float32', .*, got 'int8'"),
            ('group = "a"\nname = ["x"]\npass = ["sideways"]', "expected pass to be 'forward', .*, got 'sideways'"),
            ('group = "a"', "expected group, and either shape or name, got group"),
            ('name = ["x"]', "expected group, and either shape or name, got name"),
            ('group = 3\nname = ["x"]', "^here/s.toml, table 1: expected group to be a string, got 3"),
            ('group = "a"\nshape = [128, 64]', "expected shape to be a list of shapes, .*, got .128, 64.$"),
            ('group = "a"\nshape = [[]]', "expected shape to be a list of shapes"),
            ('group = "a"\nshape = [[0, 64]]', "expected shape to be a list of shapes"),
            ('group = "a"\nname = "x"', "expected name to be a list of strings or a table of tables, got 'x'"),
            ('group = "a"\nname.x = 3', "expected name to be a list of strings or a table of tables, got {'x': 3}"),
            ('group = "a"\nname.x.batch = "4"', "table 1: expected batch to be a positive integer, got '4'"),
            ('group = "a"\nname = ["x"]\nbatch = -1', "expected batch to be a positive integer, got -1"),
            ('group = "a"\nname = ["x"]\ndevice = "cpu"', "expected device to be a list of strings, got 'cpu'"),
            ('group = "a"\nname = ["x"]\nfree_batch = 1', "expected free_batch to be true or false, got 1"),
            ('group = "a"\nname = ["x"]\nquick = 1', "expected quick to be true, false or a list of strings, got 1"),
            ('group = "a"\nname = ["x"]\nsparsities = ["90"]', "expected sparsities to be a list of numbers, got"),
            ('group = "a"\nname = ["x"]\nsparsities = [100]', "table 1: expected sparsity from 0 to below 100 percent"),
            ('group = "a"\nname = ["x"]\nmasks = ["even"]', "expected masks to be 'random', .*, got 'even'"),
            ('group = "a"\nname = ["x"]\nquick = ["backward"]', "expected quick to be 'forward', got 'backward'"),
        ],
    )
    def test_bad_tables_are_named(self, text: str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            suite.parse_cases("s", f"[[cases]]\n{text}", "here/s.toml")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("cases = 3", "^s.toml: expected cases to be a list of tables, got 3"),
            ("batch = 0", "^s.toml: expected batch to be a positive integer, got 0"),
        ],
    )
    def test_bad_keys_above_the_tables(self, text: str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            suite.parse_cases("s", text, "s.toml")

    def test_keys_of_a_name_go_before_those_of_its_table_and_these_before_the_files(self) -> None:
        cases = suite.parse_cases(
            "s",
            """
            pass = ["forward", "all"]
            dtype = ["float32"]
            device = ["cpu"]
            color = "red"
            [[cases]]
            group = "a"
            batch = 4
            free_batch = true
            [cases.name]
            x = { color = "blue", quick = ["forward"] }
            y = { pass = ["forward"], batch = 2 }
            """,
            "s.toml",
        )
        assert [(c.name, c.pass_, c.batch, c.free_batch, c.quick, c.parameters["color"]) for c in cases] == [
            ("a/x", "forward", 4, True, True, "blue"),
            ("a/x", "all", 4, True, False, "blue"),
            ("a/y", "forward", 2, True, False, "red"),
        ]

    def test_unknown_suite(self) -> None:
        with pytest.raises(
            ValueError,
            match="expected suite to be 'networks', 'layers', 'blocks', 'masked', .* or a .toml file, got 'x'",
        ):
            suite.load("x")

    @pytest.mark.parametrize("name", suite.SUITES)
    def test_the_cases_of_every_suite_are_distinct(self, name: str) -> None:
        cases = suite.read_cases(name)
        keys = {(case.name, case.pass_, case.dtype, case.device) for case in cases}
        assert len(keys) == len(cases) > 0
        assert suite.load(name).cases(Selection(quick=True))

    @pytest.mark.parametrize(
        ("selection", "expected"),
        [
            (Selection(cases=("decode",)), {"1x2048", "1x128", "8x1280", "32x2048"}),
            (Selection(cases=("512x64", "heads/*"), quick=True), {"512x64", "1x20x512x64"}),
            (Selection(batches=(512,), cases=("rows",)), {"512x64", "512x128"}),
            (Selection(cases=("nothing",)), set()),
            (Selection(passes=("backward",)), set()),
        ],
    )
    def test_selection_of_cases(self, selection: Selection, expected: set[str]) -> None:
        assert {case.name.partition("/")[2] for case in rmsnorm.SUITE.cases(selection)} == expected

    def test_selection_by_dtype_and_pass(self) -> None:
        cases = rmsnorm.SUITE.cases(Selection(dtypes=("bfloat16",), passes=("forward+backward",)))
        assert {(case.dtype, case.pass_, case.device) for case in cases} == {("bfloat16", "forward+backward", "cpu")}

    def test_selection_of_variants_ignores_the_mode(self) -> None:
        selection = Selection(variants=("ours",))
        assert selection.takes_variant("ours")
        assert selection.takes_variant("ours/graph")
        assert selection.takes_variant("ours:random-90")
        assert Selection(variants=("ours:random-90",)).takes_variant("ours:random-90/graph")
        assert not Selection(variants=("ours:random-90",)).takes_variant("ours:random-80")
        assert not selection.takes_variant("torch")

    @pytest.mark.parametrize(
        ("bad", "message"),
        [
            ({"device": "tpu"}, "expected device to be 'cpu', 'cuda', got 'tpu'"),
            ({"dtypes": ("int8",)}, "expected dtype to be 'float32', .*, got 'int8'"),
            ({"passes": ("up",)}, "expected pass to be 'forward', .*, got 'up'"),
            ({"masks": ("even",)}, "expected mask to be 'random', 'clustered', .*, got 'even'"),
            ({"sparsities": (100.0,)}, "expected sparsity from 0 to below 100 percent, got 100"),
        ],
    )
    def test_bad_selections(self, bad: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Selection(**bad)
