# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Images of 28x28 pixels in ten classes, from idx files: Fashion-MNIST, MNIST, and others of that form.

The whole set is in memory as float32 tensors: nothing is loaded while training.
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

VARIABLE = "SPARSEKERNELS_DATA"
"""Environment variable with the folder of the idx files, where no folder is given."""

CLASSES = 10
_ITEM_SHAPES: Mapping[str, tuple[int, ...]] = {"images": (28, 28), "labels": ()}
_FILES: Mapping[tuple[str, str], tuple[str, str]] = {
    ("train", "images"): ("train-images", "idx3-ubyte"),
    ("train", "labels"): ("train-labels", "idx1-ubyte"),
    ("test", "images"): ("t10k-images", "idx3-ubyte"),
    ("test", "labels"): ("t10k-labels", "idx1-ubyte"),
}
_LARGEST = 1 << 31
"""Bytes of a file beyond which its header is not believed."""


class DataError(Exception):
    """The images are not here, or are not what they should be; the message says what to do."""


@dataclass(frozen=True)
class Source:
    """A data set by name.

    counts      of training and of test images; None: any
    statistics  mean and standard deviation of the training images' pixels in [0, 1], by which they are normalized;
                None: those of the files
    folders     names of its folder, below the one that is given; torchvision's first
    system      where a package of the system puts it
    checksum    see `Dataset.checksum`; None: not known, or any
    """

    counts: tuple[int, int] | None
    statistics: tuple[float, float] | None
    folders: tuple[str, ...]
    system: Path | None
    hint: str
    checksum: str | None = None


DATASETS: Mapping[str, Source] = {
    "fashion-mnist": Source(
        (60_000, 10_000),
        (0.2860, 0.3530),
        ("FashionMNIST/raw", "fashion-mnist"),
        Path("/usr/share/datasets/fashion-mnist"),
        "on Debian and Ubuntu: apt install dataset-fashion-mnist; elsewhere the four files *-ubyte.gz of"
        " https://github.com/zalandoresearch/fashion-mnist in a folder",
        "c7a95b27",
    ),
    "mnist": Source(
        (60_000, 10_000),
        (0.1307, 0.3081),
        ("MNIST/raw", "mnist"),
        None,
        "the four files *-ubyte.gz of MNIST in a folder, as torchvision.datasets.MNIST(folder, download=True) has them",
    ),
    "idx": Source(
        None, None, (), None, "four idx files of images of 28x28 pixels and their labels, 0 to 9, in a folder"
    ),
}
"""What `load` knows. "idx" is any set of that form."""


@dataclass(frozen=True)
class Dataset:
    """Images and labels, all in memory.

    train_images, test_images   float32 [count, 1, 28, 28], (pixel / 255 - mean) / std
    train_labels, test_labels   int64 [count], 0 to 9
    mean, std                   by which they were normalized
    checksum                    CRC-32 of the pixels and labels of the four files, one after the other: training images
                                and labels, test images and labels; eight hexadecimal digits
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    mean: float
    std: float
    checksum: str

    @property
    def black(self) -> float:
        """What a pixel of 0 became."""
        return -self.mean / self.std

    def first(self, train: int | None, test: int | None = None) -> Dataset:
        """With the first `train` training and `test` test images; None is all. Raises `DataError` for too many."""
        for what, count, labels in (("training", train, self.train_labels), ("test", test, self.test_labels)):
            if count is not None and not 0 < count <= len(labels):
                raise DataError(f"{self.name}: expected 1 to {len(labels)} {what} images, got {count}")
        return replace(
            self,
            train_images=self.train_images[:train],
            train_labels=self.train_labels[:train],
            test_images=self.test_images[:test],
            test_labels=self.test_labels[:test],
        )

    def split(self, count: int, seed: int) -> tuple[Dataset, Tensor, Tensor]:
        """Without `count` training images drawn by the seed, and these and their labels, for validation."""
        total = len(self.train_labels)
        if not 0 < count < total:
            raise DataError(f"{self.name}: expected 1 to {total - 1} validation images, got {count}")
        order = torch.randperm(total, generator=generator_of(seed, "validation"))
        held, rest = order[:count], order[count:].sort().values
        images, labels = self.train_images, self.train_labels
        return replace(self, train_images=images[rest], train_labels=labels[rest]), images[held], labels[held]


def generator_of(seed: int, *what: object) -> torch.Generator:
    """A generator for one purpose of one run, which draws the same numbers whatever else is drawn."""
    return torch.Generator().manual_seed(seed_of(seed, *what))


def seed_of(seed: int, *what: object) -> int:
    """The seed of such a generator, 0 to 2^32 - 1."""
    return zlib.crc32("/".join(map(str, (seed, *what))).encode())


def batches(images: Tensor, labels: Tensor, batch: int, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The images in an order drawn from seed and epoch, `batch` at a time.

    What is left at the end of the order and fills no batch is left out: every step is of the same size.
    Raises `DataError` where there are fewer images than one batch.
    """
    check_batch(batch, len(labels))
    order = torch.randperm(len(labels), generator=generator_of(seed, "order", epoch))
    for start in range(0, len(labels) - batch + 1, batch):
        chosen = order[start : start + batch]
        yield images[chosen], labels[chosen]


def check_batch(batch: int, count: int) -> None:
    """Raise `DataError` for a batch that `count` images do not fill."""
    if not 0 < batch <= count:
        raise DataError(f"expected a batch of 1 to {count} images, got {batch}")


def load(name: str, folder: Path | None = None) -> Dataset:
    """Read a data set.

    Where `folder` is None, the environment variable SPARSEKERNELS_DATA has it; without that it is where the system's
    package puts it, or "data" in the working directory. The files lie in the folder itself, or below it as torchvision
    has them (FashionMNIST/raw, MNIST/raw) or by the name of the set; compressed by gzip or not.

    Args:
        name: "fashion-mnist", "mnist" or "idx".
        folder: With the four idx files.

    Returns:
        The images, normalized by the training images' mean and standard deviation: 0.2860 and 0.3530 for
        Fashion-MNIST, 0.1307 and 0.3081 for MNIST, and those of the files for "idx".

    Raises:
        DataError: For another name, files that are missing, truncated, too long or of another form, labels outside of
            0 to 9, counts that do not agree, and images or labels that are not those of the set. Of MNIST only counts
            and the statistics of the training images are compared.
    """
    if name not in DATASETS:
        raise DataError(f"expected a data set of {', '.join(map(repr, DATASETS))}, got {name!r}")
    source = DATASETS[name]
    paths = _find(name, source, folder)
    contents = {key: _read(path, _ITEM_SHAPES[key[1]]) for key, path in paths.items()}
    checksum = 0
    for key, path in paths.items():
        checksum = zlib.crc32(contents[key].numpy().tobytes(), checksum)
        part, kind = key
        if kind == "labels":
            labels, images = contents[key], contents[part, "images"]
            if len(labels) != len(images):
                raise DataError(f"{path}: expected {len(images)} labels, one for each image, got {len(labels)}")
            if labels.numel() and int(labels.max()) >= CLASSES:
                raise DataError(f"{path}: expected labels from 0 to {CLASSES - 1}, got {int(labels.max())}")
    counts = len(contents["train", "labels"]), len(contents["test", "labels"])
    if source.counts is not None and counts != source.counts:
        expected, got = (f"{train} training and {test} test images" for train, test in (source.counts, counts))
        raise DataError(f"{name} in {paths['train', 'images'].parent}: expected {expected}, got {got}")
    mean, std = _statistics(contents["train", "images"])
    where = paths["train", "images"]
    if source.statistics is not None:
        stated = source.statistics
        if max(abs(mean - stated[0]), abs(std - stated[1])) > 5e-4:
            raise DataError(
                f"{where}: expected the images of {name}, of mean {stated[0]:.4f} and standard deviation"
                f" {stated[1]:.4f}, got {mean:.4f} and {std:.4f}"
            )
        mean, std = stated
        if source.checksum not in (None, f"{checksum:08x}"):
            raise DataError(
                f"{where.parent}: expected the images and labels of {name}, of CRC-32 {source.checksum}, got"
                f" {checksum:08x}: files of another set, or changed; --dataset idx takes any"
            )
    elif std == 0:
        raise DataError(f"{where}: expected images that differ, got pixels of {255 * mean:.0f} alone")

    def normalized(part: str) -> Tensor:
        return contents[part, "images"].unsqueeze(1).float().div_(255).sub_(mean).div_(std)

    return Dataset(
        name,
        normalized("train"),
        contents["train", "labels"].long(),
        normalized("test"),
        contents["test", "labels"].long(),
        mean,
        std,
        f"{checksum:08x}",
    )


def _statistics(images: Tensor) -> tuple[float, float]:
    """Mean and standard deviation of pixels in [0, 1], exact: from how often each value of 0 to 255 occurs."""
    counts = torch.bincount(images.flatten(), minlength=256).double()
    values = torch.arange(256, dtype=torch.float64) / 255
    total = float(counts.sum())
    mean = float(counts @ values) / total
    return mean, math.sqrt(max(0.0, float(counts @ (values - mean).square()) / total))


def _find(name: str, source: Source, folder: Path | None) -> dict[tuple[str, str], Path]:
    """The four files. The first folder that has any of them has to have all."""
    said, given = "--data", folder
    if given is None and (variable := os.environ.get(VARIABLE)):
        said, given = VARIABLE, Path(variable)
    if given is not None and not given.is_dir():
        raise DataError(f"{said}: expected a folder, got {str(given)!r}")
    roots = [Path("data")] if given is None else [given]
    below = [root / one for root in roots for one in source.folders]
    candidates = [*below, *roots] if given is not None else [*([source.system] if source.system else []), *below]
    for candidate in candidates:
        found = {key: path for key, names in _FILES.items() if (path := _file(candidate, *names)) is not None}
        if found:
            missing = ["-".join(_FILES[key]) for key in _FILES if key not in found]
            if missing:
                raise DataError(f"{candidate}: expected {' and '.join(missing)} (or .gz) beside the others, got none")
            return found
    looked = ", ".join(map(str, candidates)) or "nowhere: no folder was given"
    raise DataError(
        f"expected the images of {name}, got none in {looked}. To get them: {source.hint}, which --data or"
        f" {VARIABLE} names"
    )


def _file(folder: Path, stem: str, ending: str) -> Path | None:
    """The file, with either separator that is in use, compressed or not."""
    for name in (f"{stem}-{ending}", f"{stem}.{ending}"):
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    return None


def _read(path: Path, item: tuple[int, ...]) -> Tensor:
    """The uint8 tensor of an idx file: two zero bytes, type 8, number of dimensions, sizes (big endian), elements."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(_LARGEST)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: expected a file that can be read, got {type(error).__name__}: {error}") from error
    dims = 1 + len(item)
    header = 4 + 4 * dims
    magic = bytes((0, 0, 8, dims))
    if content[:4] != magic:
        raise DataError(
            f"{path}: expected an idx file that begins with {magic.hex()}, got {content[:4].hex() or '0 bytes'}"
        )
    if len(content) < header:
        raise DataError(f"{path}: expected a header of {header} bytes, got {len(content)} bytes")
    sizes = struct.unpack(f">{dims}I", content[4:header])
    if sizes[1:] != item:
        raise DataError(f"{path}: expected images of {list(item)} pixels, got {list(sizes[1:])}")
    if sizes[0] == 0:
        raise DataError(f"{path}: expected at least one element, got none")
    expected = math.prod(sizes)
    if len(content) - header != expected:
        raise DataError(f"{path}: expected {expected} bytes after the header, got {len(content) - header}")
    return torch.frombuffer(bytearray(content[header:]), dtype=torch.uint8).view(sizes)
