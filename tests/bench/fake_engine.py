# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Where the peers are, and the program of an engine that does as its job says."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from sparsekernels.bench.external import process
from sparsekernels.bench.external.process import Launch

PEERS = Path(__file__).parents[2] / "benchmarks" / "peers"
ENGINES = PEERS / "engines"

linux = pytest.mark.skipif(sys.platform != "linux", reason="processes are stopped and pinned as Linux does it")

FAKE = """
import os, sys, time
sys.path.insert(0, {protocol!r})
import numpy as np
from pathlib import Path
from protocol import Engine, Unavailable, serve

def prepare(job):
    print("a banner")
    does, calls = job.get("does"), []
    if does == "refuse":
        raise Unavailable("not today")
    if does == "miss":
        import no_such_engine
    if does == "raise":
        raise ValueError("bad\\njob")
    if does == "die":
        print("last words", file=sys.stderr, flush=True)
        os._exit(3)
    if does == "sleep":
        time.sleep(60)
    if "folder" in job:  # the exporter's
        folder = Path(job["folder"])
        np.save(folder / "input.npy", np.arange(6.0, dtype=np.float32))
        np.savez(folder / "reference.npz", output=2 * np.arange(6.0, dtype=np.float32))
        error = "no" if job["pruning"] == "clustered" else None
        return Engine(lambda: None, dict, details={{"bfloat16_error": 0.1, "onnx_error": error}})

    def call():
        print("noise")
        calls.append(1)
        time.sleep(job.get("seconds", 0))
        if len(calls) > job.get("lives", 1000):
            os._exit(4)
        if "log" in job:
            with open(job["log"], "a") as file:
                file.write(job["mark"])

    return Engine(
        call,
        lambda: {{"output": 2 * np.load(job["input"]) * (1 + job.get("error", 0.0))}},
        versions={{"fake": "1.2"}},
        details={{"threads": job["threads"]}},
    )

serve(prepare)
"""


def launch_in(folder: Path) -> Launch:
    """How the program is started, which is written to `folder`."""
    program = folder / "fake.py"
    program.write_text(FAKE.format(protocol=str(process.PROTOCOL.parent)), encoding="utf-8")
    return Launch((sys.executable, str(program)), dict(os.environ))
