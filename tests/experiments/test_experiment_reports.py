# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What is made of records: tables, words and plots, of numbers that are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from tiny_data import record_of, run_of

from sparsekernels.bench.report import NothingToDraw
from sparsekernels.experiments import criteria_report, densities, lottery_report, over_time, reports
from sparsekernels.experiments.records import Record


def over_densities(accuracies: Mapping[tuple[str, float | None], Sequence[float]]) -> list[Record]:
    """By method and density: the accuracy of each seed."""
    return [
        record_of(run_of(method=method, density=density, seed=seed), [50.0, accuracy])
        for (method, density), values in accuracies.items()
        for seed, accuracy in enumerate(values)
    ]


DENSITIES = over_densities(
    {
        ("dense", None): [89.0, 90.0],
        ("sparse momentum", 0.1): [88.0, 89.0],
        ("SET", 0.1): [87.0, 88.1],
        ("static", 0.1): [87.5, 88.6],
        ("sparse momentum", 0.05): [85.0, 89.0],
        ("SET", 0.05): [86.0, 87.0],
    }
)


class TestDensities:
    def test_table(self) -> None:
        (table,) = densities.tables(DENSITIES)
        assert table.header == ("network", "method", "5% of the weights", "10% of the weights", "all weights")
        # of two values 1 apart: 12.7062 / sqrt(2) * sqrt(1/2)
        assert table.rows == (
            ("lenet-300-100", "dense", "-", "-", "89.50 ± 6.35 (2)"),
            ("lenet-300-100", "sparse momentum", "87.00 ± 25.41 (2)", "88.50 ± 6.35 (2)", "-"),
            ("lenet-300-100", "SET", "86.50 ± 6.35 (2)", "87.55 ± 6.99 (2)", "-"),
            ("lenet-300-100", "static", "-", "88.05 ± 6.99 (2)", "-"),
        )

    def test_words(self) -> None:
        said = densities.words(DENSITIES)
        where = "lenet-300-100, 10% of the weights"
        assert f"{where}: best first, sparse momentum 88.50, static 88.05, SET 87.55" in said
        found = {line.split(": ")[1]: line for line in said if line.startswith(where)}
        assert "no difference was found" not in found["sparse momentum over SET (Dettmers & Zettlemoyer 2019)"]
        assert found["sparse momentum over SET (Dettmers & Zettlemoyer 2019)"].endswith(
            "as stated: +0.95 points, 95% interval +0.31 to +1.59, 2 seeds"
        )
        assert found["SET over static (Evci et al. 2020)"].endswith(
            "the other way round: -0.50 points, 95% interval -0.50 to -0.50, 2 seeds"
        )
        (line,) = [one for one in said if one.startswith("lenet-300-100, 5%") and "over SET" in one]
        assert "no difference was found: +0.50 points" in line
        assert "lenet-300-100, static with 10%: -1.45 ± 0.64 points from dense" in said

    def test_one_seed_says_nothing_of_the_order(self) -> None:
        said = densities.words([one for one in DENSITIES if one.run.seed == 0])
        (line,) = [one for one in said if "10%" in one and "over SET" in one]
        assert line.endswith("+1.00 points with one seed, which says nothing of the order")

    def test_runs_without_a_seed_in_common(self) -> None:
        records = [one for one in DENSITIES if one.run.seed == (one.run.method == "SET")]
        (line,) = [one for one in densities.words(records) if "10%" in one and "over SET" in one]
        assert line.endswith("no seed has both")

    def test_plot(self) -> None:
        figure = Figure()
        densities.draw(DENSITIES, figure)
        (axes,) = figure.axes
        drawn = {}
        for container in axes.containers:
            assert isinstance(container, ErrorbarContainer)
            line, _, bars = container.lines
            segments = bars[0].get_segments()
            drawn[container.get_label()] = (
                [round(x, 6) for x in line.get_xdata()],
                list(line.get_ydata()),
                [round((high - low) / 2, 2) for (_, low), (_, high) in segments],
            )
        assert drawn == {
            "sparse momentum": ([5.0, 10.0], [87.0, 88.5], [25.41, 6.35]),
            "SET": ([5.0, 10.0], [86.5, 87.55], [6.35, 6.99]),
            "static": ([10.0], [88.05], [6.99]),
        }
        (level,) = [line for line in axes.lines if line.get_label() == "dense"]
        assert list(level.get_ydata()) == [89.5, 89.5]
        assert [text.get_text() for text in figure.legends[0].get_texts()] == [
            "dense", "sparse momentum", "SET", "static",
        ]  # fmt: skip

    def test_nothing_to_draw(self) -> None:
        with pytest.raises(NothingToDraw, match="expected runs with a density, got none"):
            densities.draw(over_densities({("dense", None): [89.0]}), Figure())


def timed(method: str, density: float | None, seed: int, accuracies: list[float], seconds: float) -> Record:
    return record_of(run_of(method=method, density=density, seed=seed), accuracies, seconds)


TIMED = [
    timed("dense", None, 0, [80.0, 86.0, 88.0], 10.0),
    timed("dense", None, 1, [80.0, 88.0, 90.0], 10.0),
    timed("sparse", 0.05, 0, [87.0, 88.2, 89.5], 2.0),
    timed("sparse", 0.05, 1, [80.0, 88.6, 89.1], 3.0),
    timed("block-sparse", 0.05, 0, [70.0, 71.0, 72.0], 1.0),
]


class TestOverTime:
    def test_table(self) -> None:
        (table,) = over_time.tables(TIMED)
        assert table.header[3:] == ("ms a step", "s to 89.00%", "s to 88.50%", "s to 88.00%")
        found = {row[1]: row[3:] for row in table.rows}
        # steps are 10 an evaluation; dense needs 30 s in seed 1, and in seed 0 never has 89
        assert found["dense"] == ("1000.0 (1.00x)", "-", "-", "25 (1.00x)")
        assert found["sparse 5%"] == ("250.0 (4.00x)", "8", "6", "5 (5.00x)")
        assert found["block-sparse 5%"] == ("100.0 (10.00x)", "-", "-", "-")

    def test_words(self) -> None:
        said = over_time.words(TIMED)
        assert said == [
            "lenet-300-100: 89.00% was reached by sparse 5% after 8 s; not in every seed: dense, block-sparse 5%",
            "lenet-300-100: 88.50% was reached by sparse 5% after 6 s; not in every seed: dense, block-sparse 5%",
            "lenet-300-100: 88.00% was reached by sparse 5% after 5 s, dense after 25 s; not in every seed:"
            " block-sparse 5%",
        ]

    def test_without_dense_there_are_no_levels(self) -> None:
        records = [one for one in TIMED if one.run.method != "dense"]
        assert over_time.words(records) == []
        (table,) = over_time.tables(records)
        assert table.header[-1] == "ms a step"
        assert table.rows[0][3] == "250.0"

    def test_plot(self) -> None:
        figure = Figure()
        over_time.draw(TIMED, figure)
        (axes,) = figure.axes
        lines = [(line.get_label(), list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]
        assert lines == [
            ("dense", [10.0, 20.0, 30.0], [80.0, 86.0, 88.0]),
            ("dense", [10.0, 20.0, 30.0], [80.0, 88.0, 90.0]),
            ("sparse 5%", [2.0, 4.0, 6.0], [87.0, 88.2, 89.5]),
            ("sparse 5%", [3.0, 6.0, 9.0], [80.0, 88.6, 89.1]),
            ("block-sparse 5%", [1.0, 2.0, 3.0], [70.0, 71.0, 72.0]),
        ]
        colors = [line.get_color() for line in axes.lines]
        assert colors[0] == colors[1] != colors[2] == colors[3] != colors[4]
        assert [one.get_text() for one in figure.legends[0].get_texts()] == ["dense", "sparse 5%", "block-sparse 5%"]

    def test_nothing_to_draw(self) -> None:
        with pytest.raises(NothingToDraw, match="expected runs with points, got none"):
            over_time.draw([record_of(run_of(), [], status="diverged")], Figure())


class TestFiles:
    def test_markdown(self) -> None:
        text = reports.markdown("name", "About", TIMED, reports.REPORTS["time"], "plot.png", ["a note"])
        assert text.startswith("# name\n\nAbout.\n\n- 5 runs: a, 2 cores")
        for part in ("commit c0ffee", "CRC-32 0", "- a note", "![About](plot.png)", "## In words", "| dense | "):
            assert part in text

    def test_runs_of_different_versions(self) -> None:
        one, other, *_ = TIMED
        assert not any("Caution" in line for line in reports.provenance([one, other]))
        for change in ({"versions": {"torch": "0"}}, {"commit": "0ddba11"}):
            lines = reports.provenance([one, Record(**{**vars(other), **change})])
            assert lines[-1].startswith("Caution: these runs are of different versions or commits.")

    def test_a_picture_that_fails_leaves_the_one_before(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(self: Figure, path: Path, **options: object) -> None:
            path.write_bytes(b"half")
            raise OSError("the disk is full")

        path = tmp_path / "plot.png"
        path.write_bytes(b"whole")
        monkeypatch.setattr(Figure, "savefig", fail)
        with pytest.raises(OSError, match="the disk is full"):
            reports.plot(TIMED, reports.REPORTS["time"], path)
        assert [one.read_bytes() for one in tmp_path.iterdir()] == [b"whole"]

    @pytest.mark.parametrize("name", reports.REPORTS)
    def test_a_picture_is_written(self, name: str, tmp_path: Path) -> None:
        path = tmp_path / "new" / "plot.png"
        records = {"time": TIMED, "densities": DENSITIES, "lottery": LOTTERY, "criteria": CRITERIA}[name]
        reports.plot(records, reports.REPORTS[name], path)
        assert path.read_bytes().startswith(b"\x89PNG")


def lottery_of(seed: int, *trainings: tuple[str, int, float, float, int]) -> Record:
    """Of each: kind, round, share, accuracy and the step of the least loss."""
    some = [
        {"kind": kind, "round": round, "left": left, "accuracy": accuracy, "best_step": step}
        for kind, round, left, accuracy, step in trainings
    ]
    return record_of(run_of(task="lottery", method="tickets", seed=seed), [80.0], results={"trainings": some})


LOTTERY = [
    lottery_of(0, ("ticket", 0, 1.0, 88.0, 30), ("ticket", 3, 0.5, 89.0, 20), ("reinit", 3, 0.5, 87.0, 40),
               ("reinit", 3, 0.5, 86.0, 50), ("one-shot", 3, 0.5, 89.0, 20)),
    lottery_of(1, ("ticket", 0, 1.0, 89.0, 30), ("ticket", 3, 0.5, 89.5, 30), ("reinit", 3, 0.5, 88.0, 40),
               ("one-shot", 3, 0.5, 90.0, 20)),
]  # fmt: skip


class TestLottery:
    def test_tables(self) -> None:
        accuracy, step = lottery_report.tables(LOTTERY)
        assert accuracy.header == ("network", "round", "weights left", "ticket", "one-shot", "reinit", "random mask")
        assert accuracy.rows == (
            ("lenet-300-100", "round 0", "100%", "88.50 ± 6.35 (2)", "-", "-", "-"),
            ("lenet-300-100", "round 3", "50%", "89.25 ± 3.18 (2)", "89.50 ± 6.35 (2)", "87.25 ± 9.53 (2)", "-"),
        )
        assert step.rows[1][3:6] == ("25.00 ± 63.53 (2)", "20.00 ± 0.00 (2)", "42.50 ± 31.77 (2)")

    def test_words(self) -> None:
        assert lottery_report.words(LOTTERY) == [
            "lenet-300-100, 50% left: ticket over one-shot: better in 0 of 2 seeds; no difference was found: -0.25"
            " points, 95% interval -3.43 to +2.93, 2 seeds",
            "lenet-300-100, 50% left: ticket over reinit: better in 2 of 2 seeds; no difference was found: +2.00"
            " points, 95% interval -4.35 to +8.35, 2 seeds",
        ]

    def test_plot(self) -> None:
        figure = Figure()
        lottery_report.draw(LOTTERY, figure)
        accuracy, step = figure.axes
        assert series(accuracy) == {
            "ticket": ([100.0, 50.0], [88.5, 89.25]), "one-shot": ([50.0], [89.5]), "reinit": ([50.0], [87.25]),
        }  # fmt: skip
        assert series(step)["reinit"] == ([50.0], [42.5])
        assert accuracy.get_xlim()[0] > accuracy.get_xlim()[1]

    def test_nothing_to_draw(self) -> None:
        with pytest.raises(NothingToDraw, match="expected more than one round, got none"):
            lottery_report.draw([lottery_of(0, ("ticket", 0, 1.0, 88.0, 30))], Figure())


def series(axes: Axes) -> dict[str, tuple[list[float], list[float]]]:
    """By label: what an axis' error bars are of."""
    return {
        str(one.get_label()): ([round(x, 6) for x in one.lines[0].get_xdata()], list(one.lines[0].get_ydata()))
        for one in axes.containers
        if isinstance(one, ErrorbarContainer)
    }


def criteria_of(seed: int) -> Record:
    masks = [
        {"kind": "one-shot", "criterion": criterion, "weights": "rewind", "left": left, "accuracy": accuracy + seed}
        for criterion, left, accuracy in (
            ("large_final", 0.1, 20.0), ("large_final", 0.3, 40.0),
            ("large_final_same_sign", 0.1, 50.0), ("large_final_same_sign", 0.3, 70.0 + seed),
        )
    ]  # fmt: skip
    masks.append({"kind": "learned", "weights": "rewind", "rescale": True, "left": 0.5, "accuracy": 80.0})
    trainings = [
        {"criterion": criterion, "kept": kept, "pruned": "zero", "left": 0.2, "accuracy": accuracy}
        for criterion, kept, accuracy in (
            ("large_final", "rewind", 85.0), ("random", "rewind", 80.0), ("large_final", "reinit", 82.0),
        )
    ]  # fmt: skip
    return record_of(
        run_of(task="criteria", method="criteria", seed=seed),
        [88.0],
        results={"supermasks": masks, "trainings": trainings},
    )


CRITERIA = [criteria_of(0), criteria_of(1)]


def masks_of(seed: int, same_sign: dict[float, float], plain: dict[float, float]) -> Record:
    """With nothing but masks over initial weights: by share, their accuracies."""
    masks = [
        {"kind": "one-shot", "criterion": criterion, "weights": "rewind", "left": left, "accuracy": accuracy}
        for criterion, values in (("large_final_same_sign", same_sign), ("large_final", plain))
        for left, accuracy in values.items()
    ]
    run = run_of(task="criteria", method="criteria", seed=seed)
    return record_of(run, [88.0], results={"supermasks": masks, "trainings": []})


class TestCriteria:
    def test_tables(self) -> None:
        masks, trained, learned = criteria_report.tables(CRITERIA)
        assert masks.header == ("network", "mask", "10% left", "30% left")
        assert masks.rows[1] == (
            "lenet-300-100", "large_final_same_sign, rewind", "50.50 ± 6.35 (2)", "71.00 ± 12.71 (2)",
        )  # fmt: skip
        assert [row[1:] for row in trained.rows] == [
            ("large_final, kept rewind, pruned zero", "85.00 ± 0.00 (2)"),
            ("random, kept rewind, pruned zero", "80.00 ± 0.00 (2)"),
            ("large_final, kept reinit, pruned zero", "82.00 ± 0.00 (2)"),
        ]
        assert learned.rows == (("lenet-300-100", "rewind, rescaled", "50.00 ± 0.00 (2)", "80.00 ± 0.00 (2)"),)

    def test_words(self) -> None:
        assert criteria_report.words(CRITERIA) == [
            "lenet-300-100, untrained, rewind: large_final_same_sign (71.00% at 30% left) over large_final (40.50% at"
            " 30% left), each at its best: as stated: +30.50 points, 95% interval +24.15 to +36.85, 2 seeds",
            "lenet-300-100, untrained: masks learned over rewind, rescaled over the best same-sign ones: no difference"
            " was found: +9.00 points, 95% interval -3.71 to +21.71, 2 seeds",
            "lenet-300-100, trained with 20% left, best first: large_final, kept rewind, pruned zero 85.00;"
            " large_final, kept reinit, pruned zero 82.00; random, kept rewind, pruned zero 80.00",
        ]

    def test_each_criterion_is_read_where_it_is_best(self) -> None:
        """Where same-sign is best, large_final may be bad, and yet better elsewhere."""
        some = [masks_of(seed, {0.1: 60.0 + seed, 0.3: 70.0}, {0.1: 75.0 + seed, 0.3: 20.0}) for seed in range(3)]
        assert criteria_report.words(some) == [
            "lenet-300-100, untrained, rewind: large_final_same_sign (70.00% at 30% left) over large_final (76.00% at"
            " 10% left), each at its best: the other way round: -6.00 points, 95% interval -8.48 to -3.52, 3 seeds"
        ]

    def test_shares_that_not_all_seeds_have_are_none_to_choose_from(self) -> None:
        plain = {0.1: 50.0, 0.3: 20.0}
        some = [masks_of(0, {0.1: 60.0, 0.3: 99.0}, plain), masks_of(1, {0.1: 61.0}, plain)]
        assert "large_final_same_sign (60.50% at 10% left)" in criteria_report.words(some)[0]
        assert criteria_report.words([masks_of(0, {0.3: 99.0}, plain), masks_of(1, {0.1: 61.0}, plain)]) == [
            "lenet-300-100, untrained, rewind: large_final_same_sign over large_final: no share at which both have"
            " masks of all seeds"
        ]

    def test_plot(self) -> None:
        figure = Figure()
        criteria_report.draw(CRITERIA, figure)
        masks, trained = figure.axes
        assert series(masks) == {
            "large_final": ([10.0, 30.0], [20.5, 40.5]), "large_final_same_sign": ([10.0, 30.0], [50.5, 71.0]),
        }  # fmt: skip
        assert series(trained) == {"large_final": ([20.0], [85.0]), "random": ([20.0], [80.0])}

    def test_nothing_to_draw(self) -> None:
        empty = record_of(run_of(task="criteria"), [88.0], results={"supermasks": [], "trainings": []})
        with pytest.raises(NothingToDraw, match="expected masks or trainings, got none"):
            criteria_report.draw([empty], Figure())
