# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Images from idx files: what they become, where they are found, and what is said of files that are none."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_data import IMAGES, LABELS, idx, images_of, make, write

from sparsekernels.experiments import datasets
from sparsekernels.experiments.datasets import DataError, batches, load

TRAIN_IMAGES, TRAIN_LABELS = IMAGES.format(part="train"), LABELS.format(part="train")
TEST_LABELS = LABELS.format(part="t10k")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make(tmp_path / "tiny")


@pytest.fixture(autouse=True)
def away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable and no working directory leads to images."""
    monkeypatch.delenv(datasets.VARIABLE, raising=False)
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)


def mnist_like() -> bytes:
    """60,000 images with MNIST's mean and standard deviation, to the places that are stated."""
    images = torch.zeros(60_000, 784, dtype=torch.uint8)
    images[:, :119], images[:34_800, 119], images[:, :60] = 219, 219, 218
    return idx(images.view(-1, 28, 28))


@pytest.fixture(scope="module")
def mnist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as torchvision leaves it, with files of MNIST's sizes and statistics."""
    raw = tmp_path_factory.mktemp("data") / "MNIST" / "raw"
    write(raw / f"{TRAIN_IMAGES}.gz", mnist_like())
    write(raw / TRAIN_LABELS, idx(torch.arange(60_000).remainder(10).to(torch.uint8)))
    write(raw / f"{IMAGES.format(part='t10k')}.gz", idx(torch.zeros(10_000, 28, 28, dtype=torch.uint8)))
    write(raw / TEST_LABELS, idx(torch.arange(10_000).remainder(10).to(torch.uint8)))
    return raw.parents[1]


class TestLoad:
    def test_images_are_normalized(self, folder: Path) -> None:
        data = load("idx", folder)
        images, labels = images_of(200, 1)
        pixels = images.double() / 255
        mean, std = pixels.mean(), pixels.std(correction=0)
        assert data.train_images.dtype == torch.float32
        assert data.train_images.shape == (200, 1, 28, 28)
        expected = ((pixels - mean) / std).unsqueeze(1)
        assert (data.train_images - expected).abs().max() < 1e-5
        assert torch.equal(data.train_labels, labels.long())
        assert data.test_images.shape == (100, 1, 28, 28)
        assert abs(data.mean - float(mean)) < 1e-12
        assert abs(data.std - float(std)) < 1e-12
        assert abs(data.black + float(mean / std)) < 1e-12

    @pytest.mark.parametrize("ending", [".gz", ""])
    def test_compressed_or_not_is_the_same(self, folder: Path, tmp_path: Path, ending: str) -> None:
        one, other = load("idx", folder), load("idx", make(tmp_path / "other", ending=ending))
        assert torch.equal(one.train_images, other.train_images)
        assert one.checksum == other.checksum

    def test_the_checksum_is_that_of_the_contents(self, folder: Path, tmp_path: Path) -> None:
        _, labels = images_of(100, 2)
        labels[99] = (labels[99] + 1) % 10
        before = load("idx", folder).checksum
        write(folder / TEST_LABELS, idx(labels))
        assert load("idx", folder).checksum != before

    def test_dots_in_names(self, folder: Path) -> None:
        for path in list(folder.iterdir()):
            path.rename(path.with_name(path.name.replace("-idx", ".idx")))
        assert len(load("idx", folder).train_labels) == 200

    def test_stated_statistics(self, mnist: Path) -> None:
        data = load("mnist", mnist)
        assert (data.mean, data.std) == (0.1307, 0.3081)
        assert float(data.train_images[0, 0, 27, 27]) == pytest.approx(-0.1307 / 0.3081)
        assert load("mnist", mnist / "MNIST" / "raw").checksum == data.checksum

    def test_images_of_another_set_are_refused(self, mnist: Path) -> None:
        with pytest.raises(DataError, match="expected the images of fashion-mnist, of mean 0.2860 .* got 0.130"):
            load("fashion-mnist", mnist / "MNIST" / "raw")

    def test_files_that_were_changed_are_refused(self, mnist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Counts and statistics of the training images do not tell."""
        source = replace(datasets.DATASETS["mnist"], checksum=load("mnist", mnist).checksum)
        monkeypatch.setitem(datasets.DATASETS, "mnist", source)  # type: ignore[arg-type]
        raw = mnist / "MNIST" / "raw"
        assert len(load("mnist", raw).train_labels) == 60_000
        labels = (raw / TRAIN_LABELS).read_bytes()
        write(raw / TRAIN_LABELS, labels[:8] + labels[:7:-1])
        try:
            with pytest.raises(DataError, match="expected the images and labels of mnist, of CRC-32 [0-9a-f]{8}, got"):
                load("mnist", raw)
        finally:
            write(raw / TRAIN_LABELS, labels)

    @pytest.mark.skipif(not Path("/usr/share/datasets/fashion-mnist").is_dir(), reason="the package is not installed")
    def test_fashion_mnist_is_what_is_stated(self) -> None:
        assert load("fashion-mnist").checksum == datasets.DATASETS["fashion-mnist"].checksum

    def test_the_variable_and_the_folder_that_is_given(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(datasets.VARIABLE, str(folder))
        assert len(load("idx").train_labels) == 200
        assert len(load("idx", make(tmp_path / "given", train=50)).train_labels) == 50

    def test_the_systems_package(self, mnist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        source = datasets.DATASETS["mnist"]
        monkeypatch.setitem(
            datasets.DATASETS,  # type: ignore[arg-type]
            "mnist",
            datasets.Source(source.counts, source.statistics, source.folders, mnist / "MNIST" / "raw", source.hint),
        )
        assert len(load("mnist").train_labels) == 60_000

    def test_data_in_the_working_directory(self, mnist: Path) -> None:
        Path("data").symlink_to(mnist)
        assert len(load("mnist").train_labels) == 60_000


def cut(path: Path, count: int) -> None:
    path.write_bytes(path.read_bytes()[:count])


def compress_and_cut(path: Path) -> None:
    packed = gzip.compress(path.read_bytes())
    path.unlink()
    path.with_name(f"{path.name}.gz").write_bytes(packed[: len(packed) // 2])


def replaced(name: str, content: torch.Tensor) -> Callable[[Path], None]:
    return lambda folder: write(folder / name, idx(content)) and None


def zeros(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.uint8)


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing": (lambda folder: (folder / TEST_LABELS).unlink(), "expected t10k-labels-idx1-ubyte .* got none"),
    "empty": (lambda folder: cut(folder / TRAIN_IMAGES, 0), "begins with 00000803, got 0 bytes"),
    "other magic": (
        lambda folder: write(folder / TRAIN_LABELS, idx(zeros(200), bytes((0, 0, 9, 1)))) and None,
        "train-labels-idx1-ubyte: expected an idx file that begins with 00000801, got 00000901",
    ),
    "labels for images": (
        lambda folder: write(folder / TRAIN_IMAGES, (folder / TRAIN_LABELS).read_bytes()) and None,
        "expected an idx file that begins with 00000803, got 00000801",
    ),
    "no header": (lambda folder: cut(folder / TRAIN_IMAGES, 9), "expected a header of 16 bytes, got 9 bytes"),
    "truncated": (
        lambda folder: cut(folder / TRAIN_IMAGES, 16 + 156_799),
        "expected 156800 bytes after the header, got 156799",
    ),
    "too long": (
        lambda folder: write(folder / TRAIN_LABELS, idx(zeros(200)) + b"x") and None,
        "expected 200 bytes after the header, got 201",
    ),
    "truncated archive": (
        lambda folder: compress_and_cut(folder / TRAIN_IMAGES),
        "idx3-ubyte.gz: expected a file that can be read, got EOFError",
    ),
    "no archive": (
        lambda folder: (folder / TRAIN_LABELS).rename(folder / f"{TRAIN_LABELS}.gz") and None,
        "idx1-ubyte.gz: expected a file that can be read, got BadGzipFile",
    ),
    "other pixels": (
        replaced(TRAIN_IMAGES, zeros(200, 28, 27)),
        r"expected images of \[28, 28\] pixels, got \[28, 27\]",
    ),
    "none": (replaced(TRAIN_IMAGES, zeros(0, 28, 28)), "expected at least one element, got none"),
    "fewer labels": (replaced(TRAIN_LABELS, zeros(199)), "expected 200 labels, one for each image, got 199"),
    "other labels": (replaced(TRAIN_LABELS, zeros(200) + 10), "expected labels from 0 to 9, got 10"),
    "one color": (replaced(TRAIN_IMAGES, zeros(200, 28, 28) + 7), "expected images that differ, got pixels of 7 alone"),
}


class TestErrors:
    @pytest.mark.parametrize("fault", FAULTS)
    def test_files_that_are_none(self, folder: Path, fault: str) -> None:
        spoil, message = FAULTS[fault]
        spoil(folder)
        with pytest.raises(DataError, match=message):
            load("idx", folder)

    def test_other_counts(self, folder: Path) -> None:
        message = "expected 60000 training and 10000 test images, got 200 training and 100 test images"
        with pytest.raises(DataError, match=message):
            load("mnist", folder)

    def test_an_unknown_set(self) -> None:
        with pytest.raises(DataError, match="expected a data set of 'fashion-mnist', 'mnist', 'idx', got 'cifar'"):
            load("cifar")

    @pytest.mark.parametrize("name", datasets.DATASETS)
    def test_no_files(self, name: str, tmp_path: Path) -> None:
        empty = tmp_path / "none"
        empty.mkdir()
        with pytest.raises(DataError) as raised:
            load(name, empty)
        text = str(raised.value)
        assert f"expected the images of {name}, got none in" in text
        assert str(empty) in text
        assert "--data or SPARSEKERNELS_DATA names" in text
        assert ("apt install dataset-fashion-mnist" in text) == (name == "fashion-mnist")

    def test_nothing_is_given(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(DataError, match="got none in nowhere: no folder was given. To get them: four idx files"):
            load("idx")
        with pytest.raises(DataError, match="got none in data/MNIST/raw, data/mnist"):
            load("mnist")

    def test_a_folder_that_is_none(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(DataError, match="--data: expected a folder, got '.*absent'"):
            load("idx", tmp_path / "absent")
        monkeypatch.setenv(datasets.VARIABLE, str(tmp_path / "absent"))
        with pytest.raises(DataError, match="SPARSEKERNELS_DATA: expected a folder, got"):
            load("idx")


class TestOrder:
    def test_seed_and_epoch_decide(self) -> None:
        numbers = torch.arange(100)

        def order(seed: int, epoch: int) -> list[int]:
            return torch.cat([labels for _, labels in batches(numbers, numbers, 30, seed, epoch)]).tolist()

        assert order(0, 0) == order(0, 0)
        assert order(0, 0) != order(0, 1)
        assert order(0, 0) != order(1, 0)
        assert len(set(order(0, 0))) == 90  # the ten that fill no batch are left out
        assert set(order(0, 0)) != set(order(0, 1))

    def test_torchs_own_generator_is_left_alone(self) -> None:
        before = torch.get_rng_state()
        list(batches(torch.arange(10), torch.arange(10), 5, 0, 0))
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.parametrize("batch", [0, 11])
    def test_batches_that_there_are_not(self, batch: int) -> None:
        with pytest.raises(DataError, match=f"expected a batch of 1 to 10 images, got {batch}"):
            next(batches(torch.arange(10), torch.arange(10), batch, 0, 0))


class TestParts:
    def test_first(self, folder: Path) -> None:
        data = load("idx", folder)
        assert torch.equal(data.first(None).train_images, data.train_images)
        assert torch.equal(data.first(30).train_images, data.train_images[:30])
        assert len(data.first(30).test_labels) == 100
        some = data.first(None, 20)
        assert (len(some.train_labels), len(some.test_labels), len(some.test_images)) == (200, 20, 20)

    @pytest.mark.parametrize("count", [0, 201])
    def test_first_of_too_many(self, folder: Path, count: int) -> None:
        with pytest.raises(DataError, match=f"idx: expected 1 to 200 training images, got {count}"):
            load("idx", folder).first(count)
        with pytest.raises(DataError, match="idx: expected 1 to 100 test images, got 101"):
            load("idx", folder).first(None, 101)

    def test_validation_images_are_not_trained_on(self, folder: Path) -> None:
        data = load("idx", folder)
        rest, images, labels = data.split(60, seed=3)
        assert (len(rest.train_labels), len(labels)) == (140, 60)
        every = {one.numpy().tobytes() for one in data.train_images}
        held, kept = ({one.numpy().tobytes() for one in part} for part in (images, rest.train_images))
        assert held | kept == every
        assert not held & kept
        again = data.split(60, seed=3)
        assert torch.equal(again[1], images)
        assert not torch.equal(data.split(60, seed=4)[1], images)

    @pytest.mark.parametrize("count", [0, 200])
    def test_a_split_that_leaves_nothing(self, folder: Path, count: int) -> None:
        with pytest.raises(DataError, match=f"idx: expected 1 to 199 validation images, got {count}"):
            load("idx", folder).split(count, 0)
