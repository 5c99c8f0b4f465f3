# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Small sets of images as idx files, and runs on them."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsekernels.experiments.records import Record
from sparsekernels.experiments.runs import SETTINGS, Run

IMAGES, LABELS = "{part}-images-idx3-ubyte", "{part}-labels-idx1-ubyte"
PARTS = ("train", "t10k")


def idx(content: Tensor, magic: bytes | None = None) -> bytes:
    """An idx file of uint8."""
    head = bytes((0, 0, 8, content.dim())) if magic is None else magic
    return head + struct.pack(f">{content.dim()}I", *content.shape) + content.contiguous().numpy().tobytes()


def write(path: Path, content: bytes) -> Path:
    """A file, compressed where its name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)
    return path


def images_of(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images that a network learns in some steps: the label is where the bright row is, on noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (count,), generator=generator)
    images = torch.randint(0, 128, (count, 28, 28), generator=generator)
    images[torch.arange(count), 2 * labels + 4] += 100
    return images.to(torch.uint8), labels.to(torch.uint8)


def make(folder: Path, train: int = 200, test: int = 100, ending: str = "") -> Path:
    """A folder with the four files."""
    for part, count, seed in zip(PARTS, (train, test), (1, 2), strict=True):
        images, labels = images_of(count, seed)
        write(folder / (IMAGES.format(part=part) + ending), idx(images))
        write(folder / (LABELS.format(part=part) + ending), idx(labels))
    return folder


def run_of(**changes: Any) -> Run:
    """A short run of LeNet-300-100; keys of `changes` are a run's, or settings."""
    settings = {name: default for name, (default, _, _) in SETTINGS.items()}
    settings |= {"dataset": "idx", "epochs": 2, "batch": 20, "learning_rate": 0.05}
    settings |= {key: value for key, value in changes.items() if key in SETTINGS}
    given = {key: value for key, value in changes.items() if key not in SETTINGS}
    values: dict[str, Any] = {
        "experiment": "test",
        "task": "training",
        "network": "lenet-300-100",
        "method": "dense",
        "density": None,
        "seed": 0,
        "settings": settings,
    }
    return Run(**{**values, **given})


def record_of(run: Run, accuracies: list[float], seconds: float = 1.0, **changes: Any) -> Record:
    """What a run might have left."""
    points = [
        {"step": 10.0 * n, "epoch": float(n), "accuracy": accuracy, "loss": 1.0, "seconds": seconds}
        for n, accuracy in enumerate(accuracies, 1)
    ]
    values: dict[str, Any] = {
        "key": run.key,
        "run": run,
        "points": points,
        "results": {},
        "nonzeros": {"fc1.weight": 10},
        "weights": {"fc1.weight": 100},
        "status": "ok",
        "data": {"name": "idx", "checksum": "0", "mean": 0.5, "std": 0.25, "train_images": 200, "test_images": 100},
        "machine": {"cpu": "a", "cores": 2, "memory_gib": 1, "isa": None, "gpu": None, "allocator": {}},
        "versions": {"torch": "2"},
        "commit": "c0ffee",
    }
    return Record(**{**values, **changes})
