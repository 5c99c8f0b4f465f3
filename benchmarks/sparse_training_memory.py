# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The peak of memory in a step of sparse training beside that of a dense one, each in a process of its own.

    python benchmarks/sparse_training_memory.py vgg16-d --density 0.05 [--algorithm SET] [--compact] [--batch 128]

Each process trains for a while on random images, gives back what its allocator holds, resets the system's peak of its
resident memory, and takes more steps. Linux only, and best without settings of the allocator. What the process had
before it made the network is subtracted, the code of libraries among it; the network, its gradients, the optimizer's
state, masks, patterns, compiled code and activations count. One JSON line:

    mib     the peak of usual steps, of those with gradients of missing weights, of one that changes the topology
    ratio   over the dense one's
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import subprocess
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from sparse_training import arguments, asked_for, sparsifier_for
from torch import nn

from sparsekernels.bench.machine import commit, machine, versions
from sparsekernels.bench.models import MODELS
from sparsekernels.training import Sparsifier

STEPS = 4


def resident(field: str) -> float:
    """VmRSS or VmHWM of this process, MiB."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"expected {field} in /proc/self/status")


def give_back() -> None:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def warm_up() -> None:
    """Load what a step of either kind loads once, torch.fx and oneDNN for two, by training a small network."""
    for kernels in (False, True):
        model = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        images = torch.randn(8, 16, 8, 8)
        Sparsifier(
            model,
            optimizer,
            0.05,
            algorithm="SET",
            kernels=kernels,
            example_input=images,
            progress=False,
            update_every=2,
        )
        for _ in range(3):
            optimizer.zero_grad()
            model(images).square().mean().backward()
            optimizer.step()


def child(args: argparse.Namespace) -> dict[str, float]:
    """The peaks of one kind of training, MiB."""
    images = [MODELS[args.network].images(args.batch, seed=index) for index in range(4)]
    labels = torch.randint(MODELS[args.network].classes, (args.batch,))
    warm_up()
    give_back()
    before = resident("VmRSS")
    torch.manual_seed(0)
    model = MODELS[args.network].build().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    sparsifier = None
    if args.child == "sparse":
        sparsifier = sparsifier_for(args, model, optimizer, images[0], 1000)

    def steps(count: int) -> float:
        """The peak of so many steps."""
        give_back()
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # VmHWM begins anew
        for index in range(count):
            optimizer.zero_grad()
            F.cross_entropy(model(images[index % len(images)]), labels).backward()
            optimizer.step()
        return resident("VmHWM") - before

    steps(21)
    peaks = {"usual": steps(STEPS)}  # to step 25
    if sparsifier is not None:
        steps(4)
        peaks["missing, and update"] = steps(1)  # the 30th
    return peaks


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--child", choices=("dense", "sparse"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(args)))
        return
    mib = {}
    for kind in ("dense", "sparse"):
        found = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--child", kind], capture_output=True, text=True, check=False
        )
        if found.returncode:
            sys.exit(found.stderr)
        for name, peak in json.loads(found.stdout.splitlines()[-1]).items():
            mib[f"{kind}, {name}"] = round(peak, 1)
    dense = mib["dense, usual"]
    record = {
        **asked_for(args),
        "mib": mib,
        "ratio": {name: round(peak / dense, 3) for name, peak in mib.items() if not name.startswith("dense")},
    }
    print(json.dumps({**record, "commit": commit(), "machine": machine(), "versions": versions()}))


if __name__ == "__main__":
    main()
