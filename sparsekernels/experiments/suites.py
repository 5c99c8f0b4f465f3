# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""An experiment as data: which runs it has. `suites/<name>.toml` of this package, or a file elsewhere of that form:

    task = "training"                       # what a run does: one of `tasks.TASKS`
    report = "densities"                    # what is made of the records: one of `reports.REPORTS`
    about = "..."                           # one line
    seeds = 5                               # 0 to 4; what --seeds replaces
    densities = [5, 10, 20]                 # percent of the weights that are left; what --densities replaces
    jobs = 0                                # runs at a time, each on `threads` threads; 0: as many as there are cores
    timed = false                           # whether times are what counts: runs of other machines do not count as done
    epochs = 20                             # and every other setting of `runs.SETTINGS`

    [[networks]]                            # each with each method
    name = "lenet-300-100"
    epochs = 40                             # settings of its own
    densities = [5, 10]                     # its own

    [[methods]]
    name = "dense"                          # one that the task has
    densities = []                          # its own; none: one run, of all weights
    options = { prune_rate = 0.3 }          # the method's own; and settings of its own
    networks = ["lenet-300-100"]            # only with these

    [quick]                                 # replaces what is above with --quick
    seeds = 1
    networks = ["lenet-300-100"]
    methods = ["dense", "SET"]
    epochs = 1

Settings of a method come before those of its network, and those before the ones above; likewise densities.
"""

from __future__ import annotations

import importlib.resources
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..bench.machine import cores
from .networks import NETWORKS
from .reports import REPORTS
from .runs import SETTINGS, Run, check_settings
from .tasks import TASKS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SUITES = ("sparse-momentum", "time-to-accuracy", "lottery-tickets", "criteria")
"""Those of this package."""

_OWN_KEYS = ("task", "report", "about", "seeds", "densities", "jobs", "timed", "networks", "methods", "quick")
_COMMON = ("dataset",)
"""Settings that all runs of a suite have in common: they stand above the tables."""
_ROW_KEYS = {"networks": ("name", "densities"), "methods": ("name", "densities", "options", "networks")}
_QUICK_KEYS = ("seeds", "densities", "networks", "methods")


@dataclass(frozen=True)
class Selection:
    """What the command line narrows down or replaces; None, or nothing, leaves it as the suite has it."""

    quick: bool = False
    seeds: int | None = None
    densities: tuple[float, ...] = ()
    networks: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Suite:
    """An experiment: see the top of this file. Densities are percent here, and shares in runs."""

    name: str
    task: str
    report: str
    about: str
    seeds: int
    densities: Sequence[float]
    jobs: int
    timed: bool
    settings: Mapping[str, Any]
    networks: Sequence[Mapping[str, Any]]
    methods: Sequence[Mapping[str, Any]]
    quick: Mapping[str, Any]

    def dataset(self, selection: Selection) -> str:
        """The name of the data set: one for all runs."""
        default, _, _ = SETTINGS["dataset"]
        return selection.settings.get("dataset", self.settings.get("dataset", default))

    def runs(self, selection: Selection, checksum: str) -> list[Run]:
        """All runs that are selected, seed by seed, so that an experiment that is interrupted has some of everything.

        Raises ValueError for a network or a method that the suite does not have, and where nothing is left.
        """
        quick = self.quick if selection.quick else {}
        networks = self._chosen("network", self.networks, selection.networks, quick.get("networks"))
        methods = self._chosen("method", self.methods, selection.methods, quick.get("methods"))
        seeds = selection.seeds if selection.seeds is not None else quick.get("seeds", self.seeds)
        replaced = {key: value for key, value in quick.items() if key in SETTINGS} | dict(selection.settings)
        found = []
        for seed in range(seeds):
            for network in networks:
                for method in methods:
                    if network["name"] not in method.get("networks", [network["name"]]):
                        continue
                    settings = {
                        **{name: default for name, (default, _, _) in SETTINGS.items()},
                        **self.settings,
                        **{key: value for key, value in network.items() if key in SETTINGS},
                        **{key: value for key, value in method.items() if key in SETTINGS},
                        **replaced,
                    }
                    settings["threads"] = settings["threads"] or cores()
                    for density in self._densities(network, method, selection, quick):
                        found.append(
                            Run(
                                experiment=self.name,
                                task=self.task,
                                network=network["name"],
                                method=method["name"],
                                density=None if density is None else density / 100,
                                seed=seed,
                                settings=settings,
                                options=dict(method.get("options", {})),
                                checksum=checksum,
                            )
                        )
        if not found:
            raise ValueError(f"{self.name}: no run matches these options")
        if selection.densities and all(run.density is None for run in found):
            given = ", ".join(f"{one:g}" for one in selection.densities)
            raise ValueError(f"{self.name}: expected no densities, for no run of these has one, got {given}")
        return found

    def _densities(
        self, network: Mapping[str, Any], method: Mapping[str, Any], selection: Selection, quick: Mapping[str, Any]
    ) -> Sequence[float | None]:
        own = method.get("densities")
        if own is not None and not own:
            return [None]
        return selection.densities or quick.get("densities") or own or network.get("densities") or self.densities

    def _chosen(
        self, what: str, rows: Sequence[Mapping[str, Any]], selected: Sequence[str], quick: Sequence[str] | None
    ) -> list[Mapping[str, Any]]:
        names = [row["name"] for row in rows]
        for name in selected:
            if name not in names:
                raise ValueError(f"{self.name}: expected {what} to be {', '.join(map(repr, names))}, got {name!r}")
        wanted = selected or quick or names
        return [row for row in rows if row["name"] in wanted]


def load(name: str) -> Suite:
    """The suite called `name`, or of the file at the path `name`.

    Raises ValueError for an unknown name, and for a file that is none, or has keys and values that are not accepted.
    """
    if name.endswith(".toml"):
        path = Path(name)
        try:
            return parse(path.stem, path.read_text(encoding="utf-8"), name)
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{name}: {error}") from error
    if name not in SUITES:
        raise ValueError(f"expected experiment to be {', '.join(map(repr, SUITES))} or a .toml file, got {name!r}")
    file = importlib.resources.files(__package__).joinpath(f"suites/{name}.toml")
    return parse(name, file.read_text(encoding="utf-8"), str(file))


def parse(name: str, text: str, file: str) -> Suite:
    """The suite that the TOML `text` describes. Raises ValueError that names `file` and what is at fault."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{file}: {error}") from error
    if document.get("task") not in TASKS:
        raise ValueError(f"{file}: expected task to be {', '.join(map(repr, TASKS))}, got {document.get('task')!r}")
    if document.get("report") not in REPORTS:
        raise ValueError(
            f"{file}: expected report to be {', '.join(map(repr, REPORTS))}, got {document.get('report')!r}"
        )
    task = TASKS[document["task"]]
    settings = {key: value for key, value in document.items() if key not in _OWN_KEYS}
    check_settings(file, settings)
    for key, accepted, kind in (("about", "text", str), ("timed", "true or false", bool)):
        if not isinstance(document.get(key, kind()), kind):
            raise ValueError(f"{file}: expected {key} to be {accepted}, got {document[key]!r}")
    for key, least in (("seeds", 1), ("jobs", 0)):
        _check_count(file, key, document.get(key, least), least)
    check_densities(file, document.get("densities", []))
    tables = {what: _rows(file, what, document.get(what)) for what in ("networks", "methods")}
    for number, method in enumerate(tables["methods"], 1):
        where = f"{file}, methods {number}"
        if method["name"] not in task.methods:
            raise ValueError(
                f"{where}: expected name to be {', '.join(map(repr, task.methods))}, got {method['name']!r}"
            )
        check_densities(where, method.get("densities", []))
        task.check_options(where, method["name"], method.get("options", {}))
        if method.get("densities", document.get("densities")) is None:
            raise ValueError(f"{where}: expected densities there or above, got none")
    for number, network in enumerate(tables["networks"], 1):
        check_densities(f"{file}, networks {number}", network.get("densities", []))
    quick = document.get("quick", {})
    if not isinstance(quick, dict):
        raise ValueError(f"{file}: expected quick to be a table, got {quick!r}")
    _check_own_settings(f"{file}, quick", quick, _QUICK_KEYS)
    _check_count(f"{file}, quick", "seeds", quick.get("seeds", 1), 1)
    check_densities(f"{file}, quick", quick.get("densities", []))
    names = {what: [row["name"] for row in rows] for what, rows in tables.items()}
    for what in ("networks", "methods"):
        _check_names(f"{file}, quick", what, quick.get(what, []), names[what])
    for number, method in enumerate(tables["methods"], 1):
        _check_names(f"{file}, methods {number}", "networks", method.get("networks", []), names["networks"])
    return Suite(
        name=name,
        task=document["task"],
        report=document["report"],
        about=document.get("about", ""),
        seeds=document.get("seeds", 1),
        densities=document.get("densities", []),
        jobs=document.get("jobs", 1),
        timed=document.get("timed", False),
        settings=settings,
        networks=tables["networks"],
        methods=tables["methods"],
        quick=quick,
    )


def check_densities(where: str, densities: object) -> None:
    """Raise ValueError for what is no list of percents above 0 up to 100."""
    if not isinstance(densities, list | tuple) or not all(_is_percent(value) for value in densities):
        raise ValueError(f"{where}: expected densities in percent, above 0 and up to 100, got {densities!r}")


def _is_percent(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 100


def _check_own_settings(where: str, row: Mapping[str, object], keys: Sequence[str]) -> None:
    """Raise ValueError for settings of a part of the runs that are none, or are those of all."""
    settings = {key: value for key, value in row.items() if key not in keys}
    check_settings(where, settings)
    for key in _COMMON:
        if key in settings:
            raise ValueError(f"{where}: expected {key} above the tables, for all runs, got it here")


def _check_count(where: str, key: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{where}: expected {key} to be a whole number of {least} and more, got {value!r}")


def _check_names(where: str, key: str, value: object, accepted: Sequence[str]) -> None:
    if not isinstance(value, list) or any(one not in accepted for one in value):
        raise ValueError(f"{where}: expected {key} to be a list of {', '.join(map(repr, accepted))}, got {value!r}")


def _rows(file: str, what: str, rows: object) -> list[dict[str, Any]]:
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{file}: expected tables [[{what}]], got {rows!r}")
    for number, row in enumerate(rows, 1):
        where = f"{file}, {what} {number}"
        _check_own_settings(where, row, _ROW_KEYS[what])
        if not isinstance(row.get("name"), str):
            raise ValueError(f"{where}: expected a name, got {row.get('name')!r}")
        if what == "networks" and row["name"] not in NETWORKS:
            raise ValueError(f"{where}: expected name to be {', '.join(map(repr, NETWORKS))}, got {row['name']!r}")
        if not isinstance(row.get("options", {}), dict):
            raise ValueError(f"{where}: expected options to be a table, got {row['options']!r}")
    names = [row["name"] for row in rows]
    if len(set(names)) < len(names):
        raise ValueError(f"{file}: expected {what} of different names, got {', '.join(names)}")
    return rows
