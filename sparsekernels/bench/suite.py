# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What a benchmark suite is. `rmsnorm.py` beside this file is the example to copy; `docs` of a record in `record.py`.

A suite is a module of this package with a `SUITE`, and a file of cases, `suites/<name>.toml`, a list of tables:

    [[cases]]
    group = "decode"                            # a case is called group/name
    shape = [[1, 2048], [32, 64]]               # one case each, called by its shape; or `name = ["prompt-512", ...]`,
                                                # or a table, `name.prompt-512 = { ... }`, whose keys go before these
    pass = ["forward", "forward+backward"]      # default ["forward"]
    dtype = ["float32", "bfloat16"]             # default both
    device = ["cpu", "cuda"]                    # default both
    batch = 1                                   # what --batch selects by; default the first number of the shape
    free_batch = true                           # --batch does not select, it replaces the batch; default false
    quick = true                                # also part of the short benchmark, or the list of passes that are;
                                                # default false

with one case for each name x pass x dtype x device. Every other key goes to the suite unchanged, as a parameter. Keys
above the first table hold for every table that does not have them itself.

A suite may also lie outside this package, and is then run by the path of its file, which says two things more:

    suite = "peers-networks"                    # its name in records and tables
    module = "peers.py"                         # the Python file with its `SUITE`; a path is relative to this file
"""

from __future__ import annotations

import contextlib
import fnmatch
import importlib
import importlib.resources
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..pruning import PRUNINGS
from ..timing import Effort, Sampler
from .defaults import QUICK_MASKS, QUICK_SPARSITIES
from .modules import import_file
from .record import parts
from .report import Layout
from .suite_keys import DEFAULTS, FILE_KEYS, block_of, check_sparsities, check_types

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SUITE_NAMES = ("networks", "layers", "blocks", "masked", "rmsnorm", "openelm", "few-rows", "decode")

SUITES = {name: f"{__package__}.{name.replace('-', '_')}" for name in SUITE_NAMES}
"""Name and module of every suite, in the order in which the main benchmark runs them."""

PASSES = ("forward", "forward+backward", "backward", "input-gradient", "weight-gradient", "all", "step")
DTYPES = ("float32", "bfloat16", "float16", "float64")
DEVICES = ("cpu", "cuda")


class Unavailable(Exception):
    """This variant, or this suite, cannot run here; the message says why. It is reported, and is no failure."""


@dataclass(frozen=True)
class Selection:
    """Which cases and variants of a suite to run, and how. An empty tuple selects everything.

    cases       glob patterns: of the whole name (decode/1x2048), or of either half (decode, 1x2048)
    batches     a case whose batch is free is measured once with each of these
    variants    names without their mode: "ours" selects "ours" and "ours/graph", "sparse" also "sparse:random-90";
                or glob patterns of them
    sparsities  in percent; suites that measure nothing sparse have no cases then
    masks       of `pruning.PRUNINGS`; likewise
    blocks      sizes of blocks in which zeros lie, "32x32"; likewise
    weights     a file of pruned weights, for the suites that can measure its layers
    quick       the short benchmark: fewer cases, less time for each
    threads     threads of torch on CPU; None is the suite's default
    seconds     for the samples of each case; None is the suite's own

    Raises ValueError for a device, dtype, pass, mask, block or sparsity that no suite has, and seconds of 0 or less.
    """

    device: str = "cpu"
    dtypes: tuple[str, ...] = ()
    passes: tuple[str, ...] = ()
    cases: tuple[str, ...] = ()
    batches: tuple[int, ...] = ()
    variants: tuple[str, ...] = ()
    sparsities: tuple[float, ...] = ()
    masks: tuple[str, ...] = ()
    blocks: tuple[str, ...] = ()
    weights: str | None = None
    quick: bool = False
    threads: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        for name, given, accepted in (
            ("device", (self.device,), DEVICES),
            ("dtype", self.dtypes, DTYPES),
            ("pass", self.passes, PASSES),
            ("mask", self.masks, PRUNINGS),
        ):
            for value in given:
                if value not in accepted:
                    raise ValueError(f"expected {name} to be {', '.join(map(repr, accepted))}, got {value!r}")
        check_sparsities(self.sparsities)
        for block in self.blocks:
            block_of(block)
        if self.seconds is not None and not 0 < self.seconds < math.inf:
            raise ValueError(f"expected seconds above 0 and finite, got {self.seconds:g}")

    def takes_case(self, case: Case) -> bool:
        """Whether `case` is to run."""
        names = (case.name, *case.name.split("/", 1))
        return (
            case.device == self.device
            and (not self.dtypes or case.dtype in self.dtypes)
            and (not self.passes or case.pass_ in self.passes)
            and (not self.batches or case.free_batch or case.batch in self.batches)
            and (not self.cases or any(fnmatch.fnmatchcase(name, glob) for name in names for glob in self.cases))
            and (case.quick or not self.quick)
        )

    def takes_variant(self, name: str) -> bool:
        """Whether the variant of this name is to run."""
        return not self.variants or any(named(name, one) for one in self.variants)


def named(name: str, pattern: str) -> bool:
    """Whether the variant called `name` is one that `pattern` of a selection means."""
    return any(fnmatch.fnmatchcase(one, pattern) for one in (parts(name)[0], name.partition("/")[0]))


@dataclass(frozen=True)
class Case:
    """One row of a suite's table: what is measured, whoever computes it.

    name        group/name, as records call it
    pass_       one of PASSES
    batch       what --batch selects by; None where the case has no such thing
    free_batch  whether the case can be measured with any batch
    parameters  the other keys of its table, and "shape" where the table gave shapes
    pattern     of the zeros, as variants' names have it, where the case has one for all: see `Suite.by_pattern`;
                its "mask" and "sparsity", in percent, are parameters then
    """

    suite: str
    name: str
    pass_: str
    dtype: str
    device: str
    batch: int | None
    quick: bool
    parameters: Mapping[str, Any] = field(default_factory=dict)
    free_batch: bool = False
    pattern: str = ""

    def __str__(self) -> str:
        return " ".join(filter(None, (self.name, self.dtype, self.pass_, self.pattern)))

    def with_batch(self, batch: int) -> Case:
        """This case with another batch, which its name then tells: group/name@batch."""
        return self if batch == self.batch else replace(self, name=f"{self.name}@{batch}", batch=batch)

    def patterns(self, selection: Selection) -> list[Case]:
        """This case once for each pattern: of the selection (a block is a mask as well), or of its own keys."""
        masks = (*selection.blocks, *selection.masks) or self.parameters.get("masks", QUICK_MASKS)
        sparsities = selection.sparsities or self.parameters.get("sparsities", QUICK_SPARSITIES)
        found = ((mask, percent) for mask in dict.fromkeys(masks) for percent in dict.fromkeys(sparsities))
        return [self._pruned(mask, percent) for mask, percent in found]

    def _pruned(self, mask: str, percent: float) -> Case:
        parameters = {**self.parameters, "mask": mask, "sparsity": percent}
        return replace(self, pattern=f"{mask}-{percent:g}", parameters=parameters)


@dataclass(frozen=True)
class Verdict:
    """What the oracle said of one variant: its largest error, and whether that is within the tolerance.

    words  what to add where a wrong error is told
    """

    max_error: float
    passed: bool
    words: str = ""


@dataclass(frozen=True)
class Prepared:
    """A variant ready to be timed.

    call     runs it once, or `calls` times, and may return anything
    calls    how many runs one `call` stands for (a CUDA graph of 20 runs: 20)
    warm     whether it was called before
    context  entered around every timed sample, outside the measured time (torch.inference_mode, use_backend)
    check    compares it with the truth; None for a yardstick that computes something else
    details  what the record says beside times and errors
    sampler  how it is sampled in a process of its own, in the place of `call`, `calls` and `context`
    versions  of what computes there
    interruptions  how often other programs preempted it there, until now
    """

    call: Callable[[], object]
    calls: int = 1
    warm: bool = False
    context: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext
    check: Callable[[], Verdict] | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    sampler: Sampler | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    interruptions: Callable[[], int] = lambda: 0


@dataclass(frozen=True)
class Variant:
    """One way to compute a case: a name, and what makes it ready.

    A name may end in a mode, "ours/graph": its speedup and ideal fraction are then taken against the baseline and the
    ideal of that same mode. Before that it may have a pattern, "sparse:random-90": the reports give each pattern a row,
    in which what has none stands as well; where the baseline has one, it is that of the same pattern. `sparsity` is the
    share of zeros, where there are any to skip. `prepare` does all that should not be timed (weights, compilation). It
    raises `Unavailable` with the reason where the variant cannot run; any other exception is recorded as an error.
    `close` ends what it holds outside this process; it is called after the case, whatever became of the variant.
    """

    name: str
    prepare: Callable[[], Prepared]
    sparsity: float | None = None
    close: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class Suite:
    """One benchmark.

    variants  the variants of a case; everything that they share (inputs, the truth) is made here, once
    baseline  the variant that `speedup` is taken over
    ideal     the variant that nothing can beat, such as a plain copy: `ideal_fraction` is its time over a variant's
    full      how much time a case gets; `quick` in the short benchmark
    layout    how the reports lay the records out
    sparse    whether options that name sparsities and masks mean this suite
    in_blocks  whether the option that names blocks means it
    floor     the variant that no number of zeros can beat, such as a plain copy: with it the details of a sparse
              variant have "traffic_cap", the baseline's time over the floor's, and "reachable_fraction", the share
              reached of min(1 / density, that cap); see `roofline.py`
    rival     the variant to whose time each other's is compared in its details: rival "ours" gives "over_ours"
    threads   where the options say nothing of them; None is torch's own default
    by_pattern  whether each pattern of zeros is a case of its own: its variants alone are held in memory together
    file      of its cases, where that is not suites/<name>.toml of this package
    """

    name: str
    about: str
    variants: Callable[[Case, Selection], Sequence[Variant]]
    baseline: str
    ideal: str | None
    full: Effort
    quick: Effort
    layout: Layout
    sparse: bool = False
    in_blocks: bool = False
    floor: str | None = None
    rival: str | None = None
    threads: int | None = None
    by_pattern: bool = False
    file: Path | None = None

    @property
    def address(self) -> str:
        """What `load` finds it by."""
        return self.name if self.file is None else str(self.file)

    def effort(self, selection: Selection) -> Effort:
        """How much time a case gets."""
        effort = self.quick if selection.quick else self.full
        return effort if selection.seconds is None else replace(effort, seconds=selection.seconds)

    def cases(self, selection: Selection) -> list[Case]:
        """The selected cases of this suite, in the order of its file.

        If none of the cases selected by name is in the short benchmark, it runs all of them, with less time each.
        """
        if ((selection.sparsities or selection.masks) and not self.sparse) or (selection.blocks and not self.in_blocks):
            return []
        every = read_cases(self.name, self.file)
        chosen = list(filter(selection.takes_case, every))
        if not chosen and selection.cases:
            chosen = list(filter(replace(selection, quick=False).takes_case, every))
        cases: list[Case] = []
        for case in chosen:
            batches = selection.batches if case.free_batch else ()
            cases += [case.with_batch(batch) for batch in dict.fromkeys(batches)] or [case]
        return [one for case in cases for one in case.patterns(selection)] if self.by_pattern else cases


def load(name: str) -> Suite:
    """The suite called `name`, or of the file at the path `name`.

    Raises `ValueError` for an unknown name and a bad file, `Unavailable` where the suite cannot run here.
    """
    if name.endswith(".toml"):
        return _load_file(Path(name).resolve())
    if name not in SUITES:
        raise ValueError(f"expected suite to be {', '.join(map(repr, SUITES))} or a .toml file, got {name!r}")
    suite = importlib.import_module(SUITES[name]).SUITE
    assert isinstance(suite, Suite)
    return suite


def _load_file(path: Path) -> Suite:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"suite {path}: {error}") from error
    for key in FILE_KEYS:
        if not isinstance(document.get(key), str):
            raise ValueError(f"suite {path}: expected {key} to be a string, got {document.get(key)!r}")
    if document["suite"] in SUITES:
        raise ValueError(f"suite {path}: expected suite to be none of {', '.join(SUITES)}, got {document['suite']!r}")
    try:
        suite = getattr(import_file(path.parent / document["module"]), "SUITE", None)
    except (ImportError, Unavailable) as error:
        raise Unavailable(str(error)) from error
    except Exception as error:
        raise ValueError(f"suite {path}: {document['module']} raised {type(error).__name__}: {error}") from error
    if not isinstance(suite, Suite):
        raise ValueError(f"suite {path}: expected {document['module']} to define a SUITE, got {suite!r}")
    return replace(suite, name=document["suite"], file=path)


def read_cases(suite: str, file: Path | None = None) -> list[Case]:
    """Every case of `file`, or of `suites/<suite>.toml`."""
    found = file or importlib.resources.files(__package__).joinpath(f"suites/{suite}.toml")
    return parse_cases(suite, found.read_text(encoding="utf-8"), str(found))


def parse_cases(suite: str, text: str, file: str) -> list[Case]:
    """The cases that the TOML `text` describes. Raises `ValueError` that names `file` and the table at fault."""
    cases = []
    document = {key: value for key, value in tomllib.loads(text).items() if key not in FILE_KEYS}
    check_types(file, document)
    tables = document.pop("cases", [])
    for number, table in enumerate(tables, 1):
        where = f"{file}, table {number}"
        check_types(where, table)
        if "group" not in table or ("shape" in table) == ("name" in table):
            raise ValueError(f"{where}: expected group, and either shape or name, got {', '.join(table) or 'neither'}")
        group, shapes, names = table.pop("group"), table.pop("shape", []), table.pop("name", [])
        rows = [("x".join(map(str, shape)), {"batch": shape[0], **table, "shape": tuple(shape)}) for shape in shapes]
        rows += [(name, {**table, **own}) for name, own in _named(names)]
        for name, values in rows:
            check_types(where, {key: value for key, value in values.items() if key != "shape"})
            cases += _product(suite, where, f"{group}/{name}", {**DEFAULTS, **document, **values})
    return cases


def _named(names: list[str] | dict[str, dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """The names of a table, with the keys that each has for itself."""
    return list(names.items()) if isinstance(names, dict) else [(name, {}) for name in names]


def _product(suite: str, where: str, name: str, values: Mapping[str, Any]) -> list[Case]:
    """The cases of one name, pass by pass."""
    quick = values["quick"] if isinstance(values["quick"], list) else values["pass"] if values["quick"] else []
    for key, given, accepted in (
        ("pass", values["pass"], PASSES),
        ("dtype", values["dtype"], DTYPES),
        ("device", values["device"], DEVICES),
        ("quick", quick, values["pass"]),
        ("masks", values.get("masks", []), PRUNINGS),
    ):
        for value in given:
            if value not in accepted:
                raise ValueError(f"{where}: expected {key} to be {', '.join(map(repr, accepted))}, got {value!r}")
    check_sparsities(values.get("sparsities", ()), f"{where}: ")
    return [
        Case(
            suite=suite,
            name=name,
            pass_=pass_,
            dtype=dtype,
            device=device,
            batch=values["batch"],
            quick=pass_ in quick,
            parameters={key: value for key, value in values.items() if key not in DEFAULTS},
            free_batch=values["free_batch"],
        )
        for pass_ in values["pass"]
        for dtype in values["dtype"]
        for device in values["device"]
    ]
