# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Everything that only a GPU can tell, in parts of less than nine minutes each.

    python benchmarks/gpu.py                     the parts that are not complete yet, the most telling first
    python benchmarks/gpu.py --seconds 560       as many of them as fit
    python benchmarks/gpu.py --part blocks       one of them; --again repeats what is complete
    python benchmarks/gpu.py --part tune         refills the table of launch configurations, in the folder
    python benchmarks/gpu.py --triton-only       without the CUDA kernels, as where there is no nvcc
    python benchmarks/gpu.py --list              the parts, and how far they are; this and --report need no GPU
    python benchmarks/gpu.py --report            what there is, as one markdown page

`make gpu` runs it with the Python that is there, and needs a network for other packages alone. It needs a torch with
CUDA and its Triton; for the suites typer and rich (and tomli before Python 3.11), for the tests these, pytest,
hypothesis and numpy, and pytest-xdist to run several at a time; for the CUDA kernels nvcc, cmake and setuptools. A part
that lacks a package is left out, and the report says so. Where there is no nvcc, and no library that was built
elsewhere, the CUDA kernels are left out: what they would run the Triton ones do, and the names of the records say so
(gpu-h200-triton-only-blocks.jsonl).

It builds the kernels for this GPU, runs the tests that have CUDA cases, looks for illegal accesses where
compute-sanitizer is, and measures the suites, eager and in CUDA graphs; then other packages beside ours, each in an
environment that pip makes, where pip can have them.

A part is made of steps. A step that ran to its end, whatever came of it, or took all the time that its part may take,
is not run again until the sources that it depends on change. All goes to one folder: records (gpu-h200-blocks.jsonl, as
benchmarks/results has them) and tables of each suite, a log of each part, state.json; and beside it to one archive.

More than 400 lines: one script, run where nothing of this is installed, that imports the package for its reports alone.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("sparsekernels", "csrc", "cmake", "CMakeLists.txt", "setup.py")
PATIENCE = 40.0
"""Seconds that a step has to write what it has, once it is told to stop."""

LEAST = 45.0
"""A step is not begun where fewer seconds are left."""

WORKERS = 6
"""Processes of pytest, which share the GPU."""

TESTS: Mapping[str, str] = {
    "matrix": "tests/ops/test_on_every_device.py",
    **{name: f"tests/ops/{name}" for name in ("sparse_conv2d", "masked_matmul", "masked_attention", "rms_norm")},
}
"""Where tests are, in the order in which they are run; what else has CUDA cases comes after them."""


@dataclass(frozen=True)
class Benchmark:
    """What a part measures.

    seconds: it may take; suite: its name or its file; options: of the benchmark; engines: whose environments are made
    first, each in a step of its own, so that what was installed is not lost where the time is up; brief: options of
    that step
    """

    seconds: int
    suite: str
    options: tuple[str, ...] = ()
    engines: tuple[str, ...] = ()
    brief: tuple[str, ...] = ()


NORM_PEERS = "benchmarks/peers/norms.toml"

BENCHMARKS: Mapping[str, Benchmark] = {
    "rmsnorm": Benchmark(400, "rmsnorm", ("--quick", "--seconds", "0.4")),
    "blocks": Benchmark(420, "blocks", ("--seconds", "1")),
    "decode": Benchmark(480, "few-rows", ("--case", "8192x8192", "--case", "1-row", "--seconds", "0.8")),
    "rows": Benchmark(360, "few-rows", ("--case", "*-rows/4096x4096", "--seconds", "0.8")),
    "masked": Benchmark(240, "masked", ("--seconds", "1")),
    "layers": Benchmark(360, "layers", ("--seconds", "0.8")),
    "networks": Benchmark(360, "networks", ("--seconds", "2")),
    "openelm": Benchmark(150, "openelm", ("--case", "270M", "--seconds", "8")),
    "normpeers": Benchmark(
        530, NORM_PEERS, ("--pass", "forward", "--seconds", "1"), ("liger", "quack", "flashinfer"), ("--case", "1x4096")
    ),
    "gradpeers": Benchmark(420, NORM_PEERS, ("--pass", "backward", "--seconds", "1")),
    "blockpeers": Benchmark(
        480,
        "benchmarks/peers/blocks.toml",
        ("--block", "64x64", "--block", "32x32", "--sparsity", "90", "--seconds", "1"),
        ("blksprs",),
        ("--pass", "forward", "--sparsity", "90"),
    ),
}
"""By the part, in the order in which they are run. A part's name is one word: files have it (gpu_tables.py)."""

NEEDS: Mapping[str, tuple[str, ...]] = {
    "build": ("setuptools",),
    "tune": ("typer", "rich"),
    **dict.fromkeys(("tests", "memory"), ("pytest", "hypothesis", "numpy", "typer", "rich")),
    **{
        part: ("typer", "rich", *(["numpy"] if one.suite.startswith("benchmarks/peers/") else []))
        for part, one in BENCHMARKS.items()
    },
}
"""Modules beside torch and triton, by the part that cannot be run without them."""

TOML = "tomllib" if sys.version_info >= (3, 11) else "tomli"
"""What all suites read their cases with."""

BRIEF_PIP = {"PIP_RETRIES": "0", "PIP_DEFAULT_TIMEOUT": "15", "PIP_NO_INPUT": "1"}
"""Where there is no network, pip is to say so at once."""

TUNED: Mapping[str, tuple[str, ...]] = {
    "blocks": ("--case", "4096x4096", "--case", "512x28", "--dtype", "bfloat16", "--variant", "block"),
    "masked": ("--dtype", "bfloat16", "--variant", "ours"),
    "rmsnorm": ("--case", "large", "--case", "backward", "--variant", "ours"),
    "few-rows": ("--case", "8192x8192", "--case", "64-rows", "--case", "128-rows", "--variant", "sparse-triton"),
}
"""By the suite, whose configurations are tuned, and the options of tune_triton.py."""


@dataclass(frozen=True)
class Step:
    """One command. environment: on top of ours; whole_group: stop all of its processes, not only the first."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    whole_group: bool = False


@dataclass(frozen=True)
class Part:
    """Steps that belong together.

    seconds: they may take together; also: what they depend on beside `SOURCES`; asked_for: run only where it is named;
    makes: what has to be in sparsekernels/lib afterwards; kernels: what they are run with, which is a dependency, too
    """

    name: str
    seconds: int
    steps: tuple[Step, ...]
    also: tuple[str, ...] = ()
    asked_for: bool = False
    makes: str = ""
    kernels: str = ""

    @property
    def digest(self) -> str:
        """Of all that its steps depend on."""
        return digest((*SOURCES, *self.also)) + self.kernels


ALL, AS_BUILT, TRITON_ONLY = "", "-as-built", "-triton-only"
"""Which kernels are run: all, built here; all, built elsewhere; those of Triton."""

CUDA_LIBRARY = "libsparsekernels_cuda*"


def nvcc() -> str | None:
    """Where it is: as the environment says, on the PATH, or where it is installed by default."""
    named = os.environ.get("CUDACXX")
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    places = [*(f"{home}/bin/nvcc" for home in homes if home), "/usr/local/cuda/bin/nvcc"]
    for place in (named, "nvcc", *places):
        if place and (found := shutil.which(place)):
            return found
    return None


def kernels_here(triton_only: bool) -> str:
    """Those that can be run on this machine."""
    if triton_only:
        return TRITON_ONLY
    if nvcc() is not None:
        return ALL
    return AS_BUILT if list((ROOT / "sparsekernels" / "lib").glob(CUDA_LIBRARY)) else TRITON_ONLY


SAYS = {
    ALL: "",
    AS_BUILT: "There is no nvcc: the CUDA kernels are those that are in sparsekernels/lib already.",
    TRITON_ONLY: (
        "**Triton only**: the CUDA kernels (RMSNorm, fine-grained weights on 1 to 16 rows) were not built, and none of "
        "them ran. Where a figure is one of theirs elsewhere, it is the Triton kernel's here."
    ),
}


def build(python: str, kernels: str) -> Part:
    """The kernels, as far as they are built here, and what the package says of itself then."""
    own = os.environ.get("CMAKE_ARGS")
    options = ["-DSPARSEKERNELS_CUDA=on", "-DSPARSEKERNELS_CUDA_ARCHITECTURES=native"]
    required = "1"
    compiler = nvcc()
    if kernels == TRITON_ONLY:  # what runs on the CPU is of no use here: it is built where that can be
        options, required = ["-DSPARSEKERNELS_CUDA=off"], "0"
    elif compiler is not None and shutil.which("nvcc") is None and "CUDACXX" not in os.environ:
        options.append(f"-DCMAKE_CUDA_COMPILER={compiler}")
    environment = {
        "SPARSEKERNELS_REQUIRE_KERNELS": required,
        "CMAKE_ARGS": " ".join(filter(None, (*options, own))),
    }
    steps = [] if kernels == AS_BUILT else [Step("kernels", (python, *SETUP), environment)]
    steps.append(Step("info", (python, "-m", "sparsekernels", "info")))
    return Part("build", 420, tuple(steps), makes="" if kernels == TRITON_ONLY else CUDA_LIBRARY)


SETUP = ("setup.py", "--quiet", "build_ext", "--inplace")


def parts(python: str, folder: Path, device: str, kernels: str = ALL) -> list[Part]:
    """All of them, the most telling first."""
    pytest = (python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", "-m", "cuda")
    spread = ("-n", str(WORKERS)) if _has(python, "xdist") else ()
    elsewhere = tuple(f"--ignore={path}" for path in TESTS.values())
    matrix = [Step(name, (*pytest, *spread, path)) for name, path in TESTS.items()]
    matrix.append(Step("others", (*pytest, *spread, "tests", *elsewhere)))
    found = [build(python, kernels), Part("tests", 530, tuple(matrix), ("tests",))]
    memory: list[Part] = []
    if sanitizer := shutil.which("compute-sanitizer"):
        # one allocation for each tensor, so that what lies behind one is not another's
        check = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        run = (sanitizer, "--target-processes", "all", "--error-exitcode", "9")
        alone = ("-k", "not graph and not streams")  # which need the allocator that is switched off
        steps = [
            Step(name, (*run, "--tool", "memcheck", *pytest, "--every", "41", *alone, path), check, True)
            for name, path in TESTS.items()
        ]
        races = (*run, "--tool", "racecheck", *pytest)
        norms = (*races, "--every", "23", "-k", "cuda-cuda", "tests/ops/rms_norm")
        few_rows = (*races, "--every", "7", "-k", "decoded", "tests/ops/sparse_conv2d/test_fine_grained_triton.py")
        steps += [Step("races", norms, check, True), Step("races on few rows", few_rows, check, True)]
        memory.append(Part("memory", 420, tuple(steps), ("tests",)))
    found += [_measuring(python, folder, name_of(device, part, kernels), part) for part in BENCHMARKS]
    found += memory  # behind the figures: it takes long, and some virtual machines refuse it
    table = str(folder / "triton_table.json")
    tuner = (python, "benchmarks/tune_triton.py", "--file", table, "--seconds", "110")
    tuning = [Step(name, (*tuner, name, *of)) for name, of in TUNED.items()]
    tuning.append(Step("routes", (python, "benchmarks/decode_routes.py", str(folder), "--file", table)))
    found.append(Part("tune", 530, tuple(tuning), ("benchmarks",), True))
    return [replace(part, kernels=kernels) for part in found]


def _measuring(python: str, folder: Path, name: str, part: str) -> Part:
    """The part of a suite, whose files have that name."""
    one = BENCHMARKS[part]
    command = (python, "-m", "sparsekernels", "bench", one.suite, "--device", "cuda")
    brief = (*one.brief, "--quick", "--seconds", "0.1")
    of_peers = one.suite.startswith("benchmarks/peers/")
    steps = [Step(f"install {of}", (*command, *brief, "--variant", of), BRIEF_PIP) for of in one.engines]
    files = ("--json", f"{folder / name}.jsonl", "--markdown", f"{folder / name}.md")
    steps.append(Step(part, (*command, *one.options, *files), BRIEF_PIP if of_peers else {}))
    return Part(part, one.seconds, tuple(steps), ("benchmarks/peers",) if of_peers else ())


def name_of(device: str, part: str, kernels: str = ALL) -> str:
    """Of the files of a part: gpu-h200-blocks of "NVIDIA H200"."""
    words = [word for word in re.findall(r"[a-z0-9]+", device.lower()) if word not in ("nvidia", "geforce")]
    return "-".join(["gpu", *words]) + (TRITON_ONLY if kernels == TRITON_ONLY else "") + f"-{part}"


def _has(python: str, module: str) -> bool:
    return subprocess.run([python, "-c", f"import {module}"], capture_output=True, check=False).returncode == 0


def missing_of(python: str, wanted: Sequence[Part]) -> dict[str, list[str]]:
    """By part, the modules that it lacks."""
    needs = {part.name: (*NEEDS.get(part.name, ()), *([TOML] if part.name in BENCHMARKS else [])) for part in wanted}
    lacking = {module for module in dict.fromkeys(sum(needs.values(), ())) if not _has(python, module)}
    found = {name: [module for module in modules if module in lacking] for name, modules in needs.items()}
    if found.get("build") and [step.name for part in wanted if part.name == "build" for step in part.steps] == ["info"]:
        del found["build"]  # nothing is built
    return {name: modules for name, modules in found.items() if modules}


def device_of(python: str) -> str:
    """The name of the GPU. Exits where torch sees none."""
    program = (
        "import sys, torch; torch.version.hip and sys.exit('its torch is for ROCm, where all runs on the reference')\n"
        "print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')"
    )
    found = subprocess.run([python, "-c", program], capture_output=True, text=True, check=False)
    if not found.stdout.strip():
        said = found.stderr.strip().splitlines()[-1:] or ["its torch finds no CUDA device"]
        raise SystemExit(f"gpu: expected a Python whose torch sees a GPU, got {python}: {said[0]}")
    return found.stdout.strip()


READ = (".py", ".toml", ".json", ".cmake", ".txt", ".h", ".cpp", ".cu", ".cuh")


@functools.cache
def digest(names: tuple[str, ...], root: Path = ROOT) -> str:
    """Of the sources of these names: what a step that is complete was run on."""
    found = hashlib.sha256()
    for name in sorted(names):
        top = root / name
        for file in sorted(_files(top)) if top.is_dir() else [top]:
            if file.suffix in READ:
                found.update(f"{file.relative_to(root)}\0".encode())
                found.update(file.read_bytes())
    return found.hexdigest()[:16]


def _files(folder: Path) -> Iterator[Path]:
    """All but those of hidden folders, which have the environments of peers, and of caches."""
    for top, folders, names in os.walk(folder):
        folders[:] = [one for one in folders if not one.startswith(".") and one != "__pycache__"]
        yield from (Path(top, name) for name in names)


class State:
    """What is complete, in a file: by part and step, the digest of its sources, how it ended, and its last lines."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.entries: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.exists() else {}

    def is_complete(self, part: Part, step: Step) -> bool:
        entry = self.entries.get(f"{part.name}/{step.name}")
        ended = entry is not None and (not entry["cut"] or entry.get("at_its_limit"))
        if not ended or entry is None or (part.makes and entry["code"] != 0):
            return False
        return entry["digest"] == part.digest

    def put(self, part: Part, step: Step, **entry: Any) -> None:
        self.entries[f"{part.name}/{step.name}"] = {"digest": part.digest, **entry}
        self._file.write_text(json.dumps(self.entries, indent=1), encoding="utf-8")

    def word(self, part: Part, step: Step) -> str:
        entry = self.entries.get(f"{part.name}/{step.name}")
        if entry is None:
            return "not run"
        if entry["cut"]:
            return "cut short at its limit" if entry.get("at_its_limit") else "cut short"
        return outcome(part, entry["code"]) if self.is_complete(part, step) else "of other sources"


def outcome(part: Part, code: int) -> str:
    """In words, of a step that ran to its end."""
    if code == 5 and part.name in ("tests", "memory"):
        return "no tests"
    return "ok" if code == 0 else f"FAILED ({code})"


def run(step: Step, limit: float, log: Path) -> tuple[int, bool, str]:
    """Its exit status, whether it was cut short at the limit, and its output, which goes to `log` as well."""
    environment = {
        **os.environ,
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        "SPARSEKERNELS_COMMIT": os.environ.get("SPARSEKERNELS_COMMIT") or f"sources-{digest(SOURCES)}",
        **step.environment,
    }
    cut = False
    with log.open("ab") as file:
        file.write(f"== {step.name}: {' '.join(step.command)}\n".encode())
        file.flush()
        start = file.tell()
        child = subprocess.Popen(
            step.command,
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=environment,
            start_new_session=True,
            preexec_fn=_listen,
        )
        try:
            child.wait(limit)
        except (subprocess.TimeoutExpired, KeyboardInterrupt) as reason:
            cut = True
            _stop(child, step.whole_group)
            if isinstance(reason, KeyboardInterrupt):
                raise
    return child.returncode, cut, log.read_bytes()[start:].decode(errors="replace")


def _listen() -> None:
    """Take SIGINT, which jobs in the background of a shell ignore, and what they start with them."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _stop(child: subprocess.Popen[bytes], whole_group: bool) -> None:
    """As Ctrl-C does, so that what was found until then is written; then at all costs."""
    os.killpg(child.pid, signal.SIGINT) if whole_group else child.send_signal(signal.SIGINT)
    try:
        child.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def last_lines(part: Part, output: str) -> list[str]:
    """What tells most of a step: failed tests, and how many passed; of a benchmark, what is wrong or failed."""
    lines = [line.rstrip() for line in output.splitlines() if line.strip()]
    if part.name in ("tests", "memory"):
        failed = [line for line in lines if line.startswith(("FAILED", "ERROR ")) or "ERROR SUMMARY" in line]
        return [*failed[:20], *lines[-1:]]
    if part.name == "build":
        return lines[-25:]
    telling = r": (wrong|unavailable)\b|\bdied\b|\berror: |\b(\w*Error|OutOfResources)\b"
    said = [line for line in lines if re.search(telling, line)]
    return said[:15]


GO_ON = "== to go on without the CUDA kernels: --triton-only, or make gpu TRITON_ONLY=1"


def work(
    wanted: Sequence[Part],
    folder: Path,
    seconds: float,
    again: Collection[str] = (),
    missing: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> int:
    """Run what is not complete, and the parts of `again`, as far as the seconds reach. Returns the exit status.

    missing: by part, modules without which it is left out
    """
    state, begin, failed = State(folder / "state.json"), time.monotonic(), False
    for part in wanted:
        if part.name in missing:
            print(f"== {part.name}: left out, {without(missing[part.name])}", flush=True)
            failed = True
            if _is_gone(part):
                print(GO_ON, flush=True)
                return 1
            continue
        log, left = folder / f"log-{part.name}.txt", float(part.seconds)
        redo = part.name in again or _is_gone(part)
        steps = [step for step in part.steps if redo or not state.is_complete(part, step)]
        if steps == list(part.steps):
            log.unlink(missing_ok=True)
        for step in steps:
            own = left - PATIENCE
            limit = min(own, seconds - (time.monotonic() - begin) - PATIENCE)
            if limit < LEAST:
                print(f"== {part.name}, {step.name}: no time left", flush=True)
                break
            print(f"== {part.name}, {step.name}", flush=True)
            start = time.monotonic()
            code, cut, output = run(step, limit, log)
            spent = time.monotonic() - start
            left -= spent
            told = last_lines(part, output)
            most = cut and limit == own and limit >= part.seconds / 2  # to run it again would only repeat this
            state.put(part, step, code=code, cut=cut, at_its_limit=most, seconds=round(spent), lines=told)
            end = f"== {part.name}, {step.name}: {state.word(part, step)}, {spent:.0f} s"
            print("\n".join([*told, end]), flush=True)
            failed |= code not in (0, 5)
            if part.makes and code != 0:
                print(GO_ON, flush=True)
                return 1
        if steps and part.name in BENCHMARKS:
            print("\n".join(short_table(folder, part.name)), flush=True)
    return int(failed)


def _is_gone(part: Part) -> bool:
    """Whether what a part made is not on this machine."""
    return bool(part.makes) and not list((ROOT / "sparsekernels" / "lib").glob(part.makes))


def without(modules: Sequence[str]) -> str:
    """What to do of them."""
    packages = [{"xdist": "pytest-xdist"}.get(one, one) for one in modules]
    return f"it needs {', '.join(modules)}: pip install {' '.join(packages)}"


def short_table(folder: Path, part: str) -> list[str]:
    """What a part measured in few lines: speedups by the share of zeros, or what is reached, in a graph and eager."""
    sys.path.insert(0, str(ROOT))
    from sparsekernels.bench import record
    from sparsekernels.bench.suite import load

    files = sorted(folder.glob(f"gpu-*-{part}.jsonl"), key=lambda file: file.stat().st_mtime)
    if not files:
        return [f"{part}: no records"]
    suite = load(BENCHMARKS[part].suite)
    layout = suite.layout
    rows: dict[tuple[str, ...], dict[str, dict[str, Any]]] = {}
    for one in record.read(files[-1]):
        mask, _, percent = one.pattern.rpartition("-")
        kinds = (layout.subject, "block", "dropped") if one.pattern else (layout.subject,)
        if one.kind in kinds:
            key = (one.case, one.pass_, one.dtype, one.kind, mask)
            rows.setdefault(key, {}).setdefault(percent, {})[one.mode or "eager"] = one
    lines = [f"{part}: over {suite.baseline} in a CUDA graph, and eager after the slash"]
    for (case, pass_, dtype, kind, mask), cells in rows.items():
        texts = [f"{percent + '%: ' if percent else ''}{_cell(modes)}" for percent, modes in cells.items()]
        lines.append(f"{case} {pass_} {dtype} {' '.join(filter(None, (kind, mask)))}  {'  '.join(texts)}")
    return lines


def _cell(modes: Mapping[str, Any]) -> str:
    texts = []
    for mode in ("graph", "eager"):
        one = modes.get(mode)
        if one is not None:
            share = one.details.get("reachable_fraction", None if one.sparsity is not None else one.ideal_fraction)
            text = one.status if one.speedup is None else f"{one.speedup:.2f}x"
            texts.append(text if share is None or one.speedup is None else f"{text} ({share:.0%})")
    return " / ".join(texts)


ABOUT = "about.json"
"""In the folder, what the last run was told and found: the GPU, which kernels, parts that were left out."""


def report(folder: Path) -> str:
    """All that the folder has, as a markdown page.

    What became of the steps, the tables of the documentation, then those of the suites.
    """
    about = json.loads((folder / ABOUT).read_text(encoding="utf-8")) if (folder / ABOUT).exists() else {}
    lines = ["# On the GPU", "", *filter(None, (about.get("gpu"), SAYS[about.get("kernels", ALL)]))]
    lines += [f"Left out: {part}; {without(modules)}." for part, modules in about.get("missing", {}).items()]
    lines += ["", "| step | seconds | |", "|---|---:|---|"]
    for name, entry in State(folder / "state.json").entries.items():
        said = " ".join(entry["lines"][-1:]) if name.startswith(("tests", "memory")) or "/install" in name else ""
        ended = "cut short" if entry["cut"] else "ok" if entry["code"] == 0 else f"exit status {entry['code']}"
        lines.append(f"| {name} | {entry['seconds']} | {'; '.join(filter(None, (ended, said.strip('= '))))} |")
    files = {part: sorted(folder.glob(f"gpu-*-{part}.jsonl")) for part in BENCHMARKS}
    if any(files.values()):
        lines += ["", *measured(folder, files)]
    return "\n".join(lines).rstrip() + "\n"


def measured(folder: Path, files: Mapping[str, Sequence[Path]]) -> list[str]:
    """The tables of the documentation from the records of a folder, then those of the suites."""
    sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
    import gpu_tables

    from sparsekernels.bench import record
    from sparsekernels.bench import report as tables
    from sparsekernels.bench.suite import load

    lines: list[str] = []
    for name, table in gpu_tables.TABLES.items():
        lines += [f"## {name[0].upper()}{name[1:]}", "", table(folder), ""]
    records, layouts = [], {}
    for part, some in files.items():
        for one in (one for file in some for one in record.read(file)):
            if one.suite not in layouts:
                layouts[one.suite] = load(BENCHMARKS[part].suite).layout
            records.append(one)
    return [*lines, tables.markdown(records, layouts)]


def archive(folder: Path) -> Path:
    """One file with all that the folder has, beside it."""
    path = folder.with_name(f"{folder.name}.tar.gz")
    with tarfile.open(path, "w:gz") as file:
        file.add(folder, folder.name)
    return path


def minutes(some: Sequence[Part]) -> int:
    """That they take together at most."""
    return -(-sum(part.seconds for part in some) // 60)


def listing(every: Sequence[Part], state: State) -> str:
    """The parts, the most seconds that each takes, and how far they are."""
    lines = []
    for part in every:
        words = "; ".join(f"{step.name} {state.word(part, step)}" for step in part.steps)
        lines.append(f"{part.name:10} {part.seconds:4} s  {words}")
    own = [part for part in every if not part.asked_for]
    rest = ", ".join(part.name for part in every if part.asked_for)
    return "\n".join([*lines, f"at most {minutes(own)} minutes in all, beside what is only run if asked for: {rest}"])


def needs_in_words() -> str:
    """What the parts take at most, and the modules that they need."""
    every = parts(sys.executable, ROOT, "GPU", kernels_here(False))
    lines = [f"  {part.name:10} {part.seconds:4} s  {', '.join(NEEDS.get(part.name, ()))}".rstrip() for part in every]
    total = minutes([part for part in every if not part.asked_for])
    return "\n".join(
        [
            "parts, the most that each takes, and what it needs beside torch and triton:",
            *lines,
            f"at most {total} minutes in all, beside tune",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    asked = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=needs_in_words() if {"-h", "--help"} & set(asked) else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--part", action="append", default=[], help="only these")
    parser.add_argument("--folder", type=Path, default=ROOT / "gpu-report", help="where all goes")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so many")
    parser.add_argument("--again", action="store_true", help="also what is complete")
    parser.add_argument(
        "--triton-only",
        action="store_true",
        help="without the CUDA kernels; their library, where there is one, is deleted",
    )
    parser.add_argument("--list", action="store_true", help="print the parts, how long they take and how far they are")
    parser.add_argument("--report", action="store_true", help="print what there is, and run nothing")
    given = parser.parse_args(arguments)
    folder: Path = given.folder.resolve()
    kernels = kernels_here(given.triton_only)
    names = [part.name for part in parts(sys.executable, folder, "GPU", kernels)]
    if unknown := set(given.part) - set(names):
        parser.error(f"expected part to be {', '.join(names)}, got {', '.join(sorted(unknown))}")
    if given.report:
        if not list(folder.glob("gpu-*.jsonl")) and not (folder / "state.json").exists():
            print(f"gpu: expected a folder that a run has left, got {folder}", file=sys.stderr)
            return 1
        print(report(folder), end="")
        return 0
    if given.list:
        print(listing(parts(sys.executable, folder, "GPU", kernels), State(folder / "state.json")))
        return 0
    device = device_of(sys.executable)
    every = parts(sys.executable, folder, device, kernels)
    folder.mkdir(parents=True, exist_ok=True)
    named = given.part or [part.name for part in every if not part.asked_for]
    wanted = [part for part in every if part.name in (*named, "build")]
    missing = missing_of(sys.executable, wanted)
    about = {"gpu": device, "kernels": kernels, "missing": missing}
    (folder / ABOUT).write_text(json.dumps(about, indent=1), encoding="utf-8")
    if SAYS[kernels]:
        print(f"== {SAYS[kernels]}", flush=True)
    try:
        code = work(wanted, folder, given.seconds, named if given.again else (), missing)
    except KeyboardInterrupt:
        code = 130
    (folder / "report.md").write_text(report(folder), encoding="utf-8")
    print(f"== all of it in {archive(folder)}")
    print(listing(every, State(folder / "state.json")))
    return code


if __name__ == "__main__":
    sys.exit(main())
