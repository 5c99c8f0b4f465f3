# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Everything that only a GPU can tell, in parts of less than nine minutes each, without a network.

    python benchmarks/gpu.py                     the parts that are not complete yet, the most telling first
    python benchmarks/gpu.py --seconds 560       as many of them as fit
    python benchmarks/gpu.py --part blocks       one of them; --again repeats what is complete
    python benchmarks/gpu.py --part tune         refills the table of launch configurations, in the folder
    python benchmarks/gpu.py --list              the parts, and how far they are
    python benchmarks/gpu.py --report            what there is, as one markdown page

`make gpu` runs it with the Python that is there: it needs a torch with CUDA, nvcc, pytest and what the benchmark needs.
It builds the kernels for this GPU, runs the tests that have CUDA cases, looks for illegal accesses where
compute-sanitizer is, and measures the suites, eager and in CUDA graphs.

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
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
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

BENCHMARKS: Mapping[str, tuple[int, tuple[str, ...]]] = {
    "rmsnorm": (200, ("--quick", "--seconds", "0.4")),
    "blocks": (420, ("--seconds", "1")),
    "decode": (240, ("--seconds", "0.8")),
    "masked": (240, ("--seconds", "1")),
    "layers": (360, ("--seconds", "0.8")),
    "networks": (360, ("--seconds", "2")),
    "openelm": (150, ("--case", "270M", "--seconds", "8")),
}
"""By the suite, in the order in which they are run: the seconds that it may take, and its options."""


TUNED: Mapping[str, tuple[str, ...]] = {
    "blocks": ("--case", "4096x4096", "--case", "512x28", "--dtype", "bfloat16", "--variant", "block"),
    "masked": ("--dtype", "bfloat16", "--variant", "ours"),
    "rmsnorm": ("--case", "large", "--case", "backward", "--variant", "ours"),
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

    seconds: they may take together; also: what they depend on beside `SOURCES`; asked_for: run only where it is named
    """

    name: str
    seconds: int
    steps: tuple[Step, ...]
    also: tuple[str, ...] = ()
    asked_for: bool = False


def parts(python: str, folder: Path, device: str) -> list[Part]:
    """All of them, the most telling first."""
    pytest = (python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", "-m", "cuda")
    spread = ("-n", str(WORKERS)) if _has(python, "xdist") else ()
    elsewhere = tuple(f"--ignore={path}" for path in TESTS.values())
    matrix = [Step(name, (*pytest, *spread, path)) for name, path in TESTS.items()]
    matrix.append(Step("others", (*pytest, *spread, "tests", *elsewhere)))
    found = [
        Part(
            "build",
            420,
            (
                Step("kernels", (python, "setup.py", "--quiet", "build_ext", "--inplace")),
                Step("info", (python, "-m", "sparsekernels", "info")),
            ),
        ),
        Part("tests", 530, tuple(matrix), ("tests",)),
    ]
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
    for suite, (seconds, options) in BENCHMARKS.items():
        files = (f"{folder / name_of(device, suite)}{ending}" for ending in (".jsonl", ".md"))
        json_file, markdown_file = files
        command = (python, "-m", "sparsekernels", "bench", suite, "--device", "cuda", *options)
        step = Step(suite, (*command, "--json", json_file, "--markdown", markdown_file))
        found.append(Part(suite, seconds, (step,)))
    found += memory  # behind the figures: it takes long, and some virtual machines refuse it
    tuner = (python, "benchmarks/tune_triton.py", "--file", str(folder / "triton_table.json"), "--seconds", "110")
    found.append(Part("tune", 530, tuple(Step(name, (*tuner, name, *of)) for name, of in TUNED.items()), (), True))
    return found


def name_of(device: str, suite: str) -> str:
    """Of the files of a suite: gpu-h200-blocks of "NVIDIA H200"."""
    words = re.findall(r"[a-z0-9]+", device.lower())
    return "-".join(["gpu", *(word for word in words if word not in ("nvidia", "geforce")), suite])


def _has(python: str, module: str) -> bool:
    return subprocess.run([python, "-c", f"import {module}"], capture_output=True, check=False).returncode == 0


def device_of(python: str) -> str:
    """The name of the GPU. Exits where torch sees none."""
    program = "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')"
    found = subprocess.run([python, "-c", program], capture_output=True, text=True, check=False)
    if not found.stdout.strip():
        why = f"{python}\n{found.stderr[-2000:]}".rstrip()
        raise SystemExit(f"gpu: expected a Python whose torch sees a GPU, got {why}")
    return found.stdout.strip()


_READ = (".py", ".toml", ".json", ".cmake", ".txt", ".h", ".cpp", ".cu", ".cuh")


@functools.cache
def digest(names: tuple[str, ...], root: Path = ROOT) -> str:
    """Of the sources of these names: what a step that is complete was run on."""
    found = hashlib.sha256()
    for name in sorted(names):
        top = root / name
        files = sorted(top.rglob("*")) if top.is_dir() else [top]
        for file in files:
            if (
                file.suffix in (".py", ".toml", ".json", ".cmake", ".txt", ".h", ".cpp", ".cu", ".cuh")
                and "__pycache__" not in file.parts
            ):
                found.update(f"{file.relative_to(root)}\0".encode())
                found.update(file.read_bytes())
    return found.hexdigest()[:16]


class State:
    """What is complete, in a file: by part and step, the digest of its sources, how it ended, and its last lines."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.entries: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.exists() else {}

    def is_complete(self, part: Part, step: Step) -> bool:
        entry = self.entries.get(f"{part.name}/{step.name}")
        ended = entry is not None and (not entry["cut"] or entry.get("at_its_limit"))
        return ended and entry is not None and entry["digest"] == digest((*SOURCES, *part.also))

    def put(self, part: Part, step: Step, **entry: Any) -> None:
        self.entries[f"{part.name}/{step.name}"] = {"digest": digest((*SOURCES, *part.also)), **entry}
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
        "SPARSEKERNELS_REQUIRE_KERNELS": "1",
        "SPARSEKERNELS_COMMIT": os.environ.get("SPARSEKERNELS_COMMIT") or f"sources-{digest(SOURCES)}",
        "CMAKE_ARGS": " ".join(
            filter(
                None,
                ("-DSPARSEKERNELS_CUDA=on -DSPARSEKERNELS_CUDA_ARCHITECTURES=native", os.environ.get("CMAKE_ARGS")),
            )
        ),
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
    said = [
        line for line in lines if re.search(r": (wrong|unavailable)\b|\bdied\b|\b(\w*Error|OutOfResources)\b", line)
    ]
    return said[:15]


def work(wanted: Sequence[Part], folder: Path, seconds: float, again: Collection[str] = ()) -> int:
    """Run what is not complete, and the parts of `again`, as far as the seconds reach. Returns the exit status."""
    state, begin, failed = State(folder / "state.json"), time.monotonic(), False
    for part in wanted:
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
            if part.name == "build" and code != 0:
                return 1
        if steps and part.name in BENCHMARKS:
            print("\n".join(short_table(folder, part.name)), flush=True)
    return int(failed)


def _is_gone(part: Part) -> bool:
    """Whether what a part made is not on this machine."""
    return part.name == "build" and not list((ROOT / "sparsekernels" / "lib").glob("*sparsekernels_cuda*"))


def short_table(folder: Path, suite: str) -> list[str]:
    """What a suite found in few lines: speedups by the share of zeros, or what is reached, in a graph and eager."""
    sys.path.insert(0, str(ROOT))
    from sparsekernels.bench import record
    from sparsekernels.bench.suite import load

    files = sorted(folder.glob(f"gpu-*-{suite}.jsonl"))
    if not files:
        return [f"{suite}: no records"]
    layout = load(suite).layout
    rows: dict[tuple[str, ...], dict[str, dict[str, Any]]] = {}
    for one in record.read(files[-1]):
        mask, _, percent = one.pattern.rpartition("-")
        kinds = (layout.subject, "block", "dropped") if one.pattern else (layout.subject,)
        if one.kind in kinds:
            key = (one.case, one.pass_, one.dtype, one.kind, mask)
            rows.setdefault(key, {}).setdefault(percent, {})[one.mode or "eager"] = one
    lines = [f"{suite}: over {load(suite).baseline} in a CUDA graph, and eager after the slash"]
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


def report(folder: Path) -> str:
    """All that the folder has, as a markdown page: what became of the steps, then the tables of the suites."""
    sys.path.insert(0, str(ROOT))
    from sparsekernels.bench import record
    from sparsekernels.bench import report as tables
    from sparsekernels.bench.suite import SUITES, load

    lines = ["# On the GPU", "", "| step | seconds | |", "|---|---:|---|"]
    for name, entry in State(folder / "state.json").entries.items():
        said = " ".join(entry["lines"][-1:]) if name.startswith(("tests", "memory")) else ""
        ended = "cut short" if entry["cut"] else "ok" if entry["code"] == 0 else f"exit status {entry['code']}"
        lines.append(f"| {name} | {entry['seconds']} | {'; '.join(filter(None, (ended, said.strip('= '))))} |")
    files = [file for suite in SUITES for file in sorted(folder.glob(f"gpu-*-{suite}.jsonl"))]
    records = [one for file in files for one in record.read(file)]
    if records:
        layouts = {name: load(name).layout for name in dict.fromkeys(one.suite for one in records)}
        lines += ["", tables.markdown(records, layouts)]
    return "\n".join(lines).rstrip() + "\n"


def archive(folder: Path) -> Path:
    """One file with all that the folder has, beside it."""
    path = folder.with_name(f"{folder.name}.tar.gz")
    with tarfile.open(path, "w:gz") as file:
        file.add(folder, folder.name)
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", action="append", default=[], help="only these")
    parser.add_argument("--folder", type=Path, default=ROOT / "gpu-report", help="where all goes")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so many")
    parser.add_argument("--again", action="store_true", help="also what is complete")
    parser.add_argument("--list", action="store_true", help="print the parts and how far they are")
    parser.add_argument("--report", action="store_true", help="print what there is, and run nothing")
    given = parser.parse_args(arguments)
    folder: Path = given.folder.resolve()
    if given.report:
        print(report(folder), end="")
        return 0
    device = device_of(sys.executable)
    every = parts(sys.executable, folder, device)
    if unknown := set(given.part) - {part.name for part in every}:
        parser.error(f"expected part to be {', '.join(part.name for part in every)}, got {', '.join(sorted(unknown))}")
    folder.mkdir(parents=True, exist_ok=True)
    named = given.part or [part.name for part in every if not part.asked_for]
    wanted = [part for part in every if part.name in (*named, "build")]
    code = 0
    if not given.list:
        try:
            code = work(wanted, folder, given.seconds, named if given.again else ())
        except KeyboardInterrupt:
            code = 130
        (folder / "report.md").write_text(report(folder), encoding="utf-8")
        print(f"== all of it in {archive(folder)}")
    state = State(folder / "state.json")
    for part in every:
        print(f"{part.name:9}", "; ".join(f"{step.name} {state.word(part, step)}" for step in part.steps))
    return code


if __name__ == "__main__":
    sys.exit(main())
