# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The programs in the documentation run, and its tables are those of the records.

More than 400 lines: a test or two for each page.
"""

from __future__ import annotations

import ast
import enum
import importlib.util
import inspect
import json
import math
import os
import re
import subprocess
import sys
import textwrap
import typing
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import sparsekernels as sk
from sparsekernels import _environment, _library, timing, training
from sparsekernels.conversion import facts, report
from sparsekernels.ops.sparse_conv2d import expanded_routes as routes

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
CONVERTED = ("[1-9]" if _library.has_jit() else "") + r"\d* of \d+ layers are converted"
"""Other instruction sets may gain nothing from the small models of the documentation."""


NEEDS_KERNELS = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")


def blocks_of(path: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)


def run(blocks: list[str], name: str, namespace: dict[str, Any] | None = None) -> dict[str, Any]:
    namespace = {} if namespace is None else namespace
    exec(compile("\n".join(blocks), name, "exec"), namespace)
    return namespace


@NEEDS_KERNELS
def test_the_tutorial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = blocks_of(DOCS / "convert.md")
    assert len(blocks) == 7
    run(blocks, "convert.md")
    assert re.search(CONVERTED, capsys.readouterr().out)


@NEEDS_KERNELS
def test_the_readme(capsys: pytest.CaptureFixture[str]) -> None:
    convert, training = blocks_of(ROOT / "README.md")
    left = run([convert], "README.md")
    assert re.search(CONVERTED, capsys.readouterr().out)
    assert left["scores"].shape == (64, 10)
    assert not any(isinstance(one, sk.nn.SparseConv2d | sk.nn.SparseLinear) for one in left["model"].modules())
    left = run([training], "README.md", left)
    assert (left["sparsifier"].steps, left["sparsifier"].updates) == (60, 2)
    assert sum(left["sparsifier"].nonzeros.values()) == round(0.1 * (784 * 300 + 300 * 100 + 100 * 10))


def test_the_readme_installs_by_line_20() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert any(line.startswith("pip install .") for line in lines[:20])


def test_rms_norm_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    norm, norms = blocks_of(DOCS / "rms_norm.md")
    left = run([norm], "rms_norm.md")
    assert left["y"].shape == left["residual"].shape == (4, 512, 2048)
    left["model"] = nn.Sequential(nn.RMSNorm(8), nn.Linear(8, 8))
    run([norms], "rms_norm.md", left)
    assert type(left["model"][0]) is not nn.RMSNorm  # its subclass, which runs as rms_norm
    assert "1 of 1 norms run as sparsekernels.rms_norm" in capsys.readouterr().out


@NEEDS_KERNELS
def test_sparse_layers_in_use() -> None:
    blocks = blocks_of(DOCS / "sparse_layers.md")
    assert len(blocks) == 6
    left = run(blocks, "sparse_layers.md")
    assert (left["y"].shape, left["rows"].shape) == ((100, 1024), (8, 100))
    momentum = left["optimizer"].state[left["layer"].weight]["momentum_buffer"]
    assert not momentum[~left["layer"].mask].any()


@NEEDS_KERNELS
def test_masks_of_others_in_use() -> None:
    left = run(blocks_of(DOCS / "masks_of_others.md"), "masks_of_others.md")
    assert list(left["masks"]) == ["0.weight"]
    assert round(left["layer"].pattern.sparsity, 2) == 0.9
    assert left["report"].layers[0].sparsity == left["layer"].pattern.sparsity


def test_block_sparse_in_use() -> None:
    left = run(blocks_of(DOCS / "block_sparse.md"), "block_sparse.md")
    dense = left["model"][0](left["input"])
    assert (left["output"] - dense).abs().max() <= 2**-6 * dense.abs().max()


def test_packed_linear_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    left = run(blocks_of(DOCS / "packed_linear.md"), "packed_linear.md")
    share, *report = capsys.readouterr().out.splitlines()
    assert round(float(share), 2) == 0.26
    assert any("2 layers keep no dense weight" in line for line in report)
    with torch.inference_mode():
        dense = left["layer"](left["token"])
    assert (left["scores"] - dense).abs().max() <= 2**-6 * dense.abs().max()
    assert [type(one).__name__ for one in left["model"]] == ["PackedLinear", "SiLU", "PackedLinear"]


def test_the_page_about_gpus(capsys: pytest.CaptureFixture[str]) -> None:
    """Its program runs on a CPU as well, where blocks in bfloat16 need not be faster."""
    left = run(blocks_of(DOCS / "gpu.md"), "gpu.md")
    assert re.search(r"\d of 3 layers are converted", capsys.readouterr().out)
    dense = sk.revert(left["model"])(left["images"])
    assert (left["scores"] - dense).abs().max() <= 2**-5 * dense.abs().max()


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_triton_kernels_run_without_a_gpu() -> None:
    """As the page about GPUs has it, in the interpreter."""
    page = (DOCS / "gpu.md").read_text("utf-8")
    (program,) = re.findall(r"TRITON_INTERPRET=1 python -c '(.*?)'\n```", page, re.DOTALL)
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert float(re.findall(r"[\d.]+(?:e-\d+)?", found.stdout)[0]) < 1e-4


def test_the_tables_of_few_and_many_rows_are_the_models() -> None:
    """What sparse_layers.md and gpu.md say of rows is what the routes have."""
    elements, page = 4096 * 4096, (DOCS / "sparse_layers.md").read_text("utf-8")
    table = page.partition("### Slower than dense")[2].partition("So from some 60 rows on")[0]
    columns = ((9, 2, 0.5), (9, 2, 0.1), (8, 2, 0.1), (10, 2, 0.1), (9, 4, 0.1))
    found = re.findall(r"^\| (\d+) \| .*? \| (.*) \|$", table, re.MULTILINE)
    assert len(found) == 10
    for rows, said in found:
        for (major, itemsize, density), text in zip(columns, said.split(" | "), strict=True):
            device, place = routes.DEVICES[major], routes.DENSITIES.index(density)
            is_decoded = int(rows) <= routes.MOST_DECODED[major, itemsize][place]
            way = routes.decoded_seconds if is_decoded else routes.expanded_seconds
            seconds = way(device, int(rows), elements, density, itemsize)
            share = seconds / routes.dense_seconds(device, int(rows), elements, itemsize)
            assert abs(share - float(text.strip("*"))) <= 0.0051, (rows, major, itemsize, density)
    few = "1 row to 55% stored, 2 to 45%, 4 to 36%, 8 to 26%, 16 to 11%"
    assert few in (DOCS / "gpu.md").read_text("utf-8")
    assert list(routes.MOST_BY_NONZEROS.items()) == [(1, 0.55), (2, 0.45), (4, 0.36), (8, 0.26), (16, 0.11)]


INSTRUCTIONS = {1: 13.25, 2: 16, 4: 20, 8: 28, 16: 47}
"""Of the CUDA kernel, for a nonzero and row of lanes, by rows: as cuda_kernels.md and expanded_routes.py have them."""
COLUMNS_OF_LANE = {
    1: (128, 128, 128, 256, 256),
    2: (128, 128, 128, 256, 256),
    4: (64, 128, 128, 128, 128),
    8: (64,) * 5,
    16: (32,) * 5,
}
"""As `tiling_of` of bitmap_linear.cu cuts 8192 columns in bfloat16."""


def share_of_busy_lanes(columns: int, density: float) -> float:
    """The mean number of nonzeros of a lane over that of the lane of 32 that has the most."""
    most, below = 0.0, 0.0
    for count in range(columns):
        below += math.comb(columns, count) * density**count * (1 - density) ** (columns - count)
        most += 1 - min(1.0, below) ** 32
    return columns * density / most


def test_the_tables_of_the_cuda_kernel_are_the_models() -> None:
    page = (DOCS / "cuda_kernels.md").read_text("utf-8")
    busy, left = (
        [line.strip("| ").split(" | ") for line in page.partition(start)[2].partition("\n\n")[0].splitlines()[2:]]
        for start in (
            "fewer columns each has, and the input of more rows leaves room for fewer:\n\n",
            "not measured.**\n\n",
        )
    )
    assert (len(busy), len(left)) == (4, 5)
    densities = (0.5, 0.3, 0.2, 0.1, 0.05)
    for first, _, *said in busy:
        for columns, density, text in zip(COLUMNS_OF_LANE[int(first.split(",")[0])], densities, said, strict=True):
            assert abs(share_of_busy_lanes(columns, density) - float(text)) < 0.0051, (first, density)
    elements, device = 8192 * 8192, routes.DEVICES[9]
    for first, *said in left:
        rows = int(first)
        for columns, density, text in zip(COLUMNS_OF_LANE[rows], densities, said, strict=True):
            by_triton = density > routes.MOST_BY_NONZEROS[rows]
            issued = elements * density * INSTRUCTIONS[rows] / (132 * 4 * 32 * 1.75e9)
            seconds = max(
                elements * (1 / 8 + 2 * density) / device.bytes, issued / share_of_busy_lanes(columns, density)
            )
            if by_triton:
                seconds = routes.decoded_seconds(device, rows, elements, density, 2)
            assert text.startswith("*") == by_triton
            gain = routes.dense_seconds(device, rows, elements, 2) / seconds
            assert abs(gain - float(text.strip("*x"))) < 0.0501, (rows, density, gain)


def test_masked_products_in_use() -> None:
    left = run(blocks_of(DOCS / "masked_products.md"), "masked_products.md")
    assert left["values"].shape == (int(left["mask"].sum()),)
    assert not left["y"][~left["mask"]].any()


def test_sparse_training_in_use() -> None:
    left = run(blocks_of(DOCS / "sparse_training.md"), "sparse_training.md")
    assert (left["sparsifier"].steps, left["sparsifier"].updates) == (90, 2)


def test_lottery_tickets_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The ten lines, masks on sparse layers, controls, criteria, both kinds of supermasks."""
    monkeypatch.chdir(tmp_path)
    page = DOCS / "lottery_tickets.md"
    left = run(blocks_of(page), page.name)
    assert re.findall(r"round (\d): ([\d.]+)% left", capsys.readouterr().out)[3] == ("3", "51.28")
    model = left["lenet"]()
    model.load_state_dict(left["ticket"].final)
    found = model(left["images"]).argmax(1)
    assert found.unique().numel() == 10  # the example learns
    assert (found == left["labels"]).float().mean() > 0.95
    assert (left["model"].eval()(left["images"]).argmax(1) == left["labels"]).float().mean() > 0.6
    counts = left["ticket"].counts
    assert counts == left["anew"].counts == left["elsewhere"].counts == left["at_once"].counts
    assert left["mask"].sum() == 500
    assert {path.name for path in tmp_path.iterdir()} == {"lenet", "mask.pt", "learned.pt"}
    assert 33_275 < (tmp_path / "mask.pt").stat().st_size < 37_000
    sparse = training.Lottery(left["lenet"], left["train_sparse"], rounds=1).round(1)
    assert not sparse.final["0.weight"][~sparse.masks["0.weight"]].any()
    (weights, shares) = re.search(r"\| weights \| (.*) \|\n\| % \| (.*) \|", page.read_text("utf-8")).groups()  # type: ignore[union-attr]
    ladder = training.Lottery(left["lenet"], left["train"], rates={"4": 0.1}, rounds=18)
    rounds = 3, 7, 15, 18
    assert weights.split(" | ") == [f"{sum(ladder.counts(round).values()):,}" for round in rounds]
    assert shares.split(" | ") == [f"{100 * ladder.left(round):.2f}" for round in rounds]


@NEEDS_KERNELS
@pytest.mark.skipif(not _library.has_jit(), reason="code is generated for AVX-512 only")
def test_a_generated_kernel_can_be_read(tmp_path: Path) -> None:
    program = tmp_path / "dump.py"
    program.write_text("\n".join(blocks_of(ROOT / "HACKING.md")), encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name != "SPARSEKERNELS_CPU_JIT"}
    environment["PYTHONPATH"] = str(ROOT)
    subprocess.run([sys.executable, program], check=True, cwd=tmp_path, env=environment)
    code = (tmp_path / "kernel.bin").read_bytes()
    assert bytes.fromhex("c5f877c3") in code  # vzeroupper, ret


def test_every_page_with_programs_is_run() -> None:
    run_here = {
        "README.md",
        "HACKING.md",
        "block_sparse.md",
        "convert.md",
        "gpu.md",
        "lottery_tickets.md",
        "masked_products.md",
        "masks_of_others.md",
        "packed_linear.md",
        "rms_norm.md",
        "sparse_layers.md",
        "sparse_training.md",
    }
    with_blocks = {path.name for path in (*ROOT.glob("*.md"), *DOCS.glob("*.md")) if blocks_of(path)}
    assert with_blocks - {"api.md"} == run_here


@pytest.fixture(scope="module")
def make_api() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_api", DOCS / "make_api.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_api"] = module  # where its dataclasses look for themselves
    spec.loader.exec_module(module)
    return module


def test_the_api_reference_is_what_the_docstrings_say(make_api: ModuleType) -> None:
    assert (DOCS / "api.md").read_text(encoding="utf-8") == make_api.page(), "run python docs/make_api.py --write"


def test_docstrings_are_taken_apart(make_api: ModuleType) -> None:
    found = make_api.sections_of(
        """A product.

        y = x * w

        Args:
            x: shape [n]; any
                strides.
            w (float): the factor.

        Returns:
            y, of the shape of x.

        Raises:
            TypeError: x is no tensor.
        """
    )
    assert (found.summary, found.body) == ("A product.", "y = x * w")
    assert found.entries == {
        "Args": {"x": "shape [n]; any strides.", "w (float)": "the factor."},
        "Raises": {"TypeError": "x is no tensor."},
    }
    assert found.prose == {"Returns": "y, of the shape of x."}


BESIDE_THE_PAGE = (
    (timing, "sparsekernels.timing"),
    (report, "sparsekernels.conversion.report"),
    (facts, "sparsekernels.conversion.facts"),
)
"""Modules whose docstrings have sections as well."""


def test_docstrings_have_their_sections(make_api: ModuleType) -> None:
    """Args, Returns and Raises of all public functions, methods and constructors."""
    modules = (*make_api.MODULES, *BESIDE_THE_PAGE)
    entries = [one for _, entry in make_api.public_names(modules) for one in (entry, *entry.members)]
    assert len(entries) > 80
    missing = {entry.name: found for entry in entries if (found := list(missing_in(make_api, entry.value)))}
    assert not missing


def missing_in(make_api: ModuleType, value: Any) -> Iterator[str]:
    """What the docstring of a public name lacks."""
    text = inspect.getdoc(value) or ""
    found = make_api.sections_of(text)
    if not found.summary:
        yield "summary"
    is_class, is_property = inspect.isclass(value), isinstance(value, property)
    if is_class and issubclass(value, enum.Enum | Exception | typing.Protocol):  # type: ignore[arg-type]
        return
    function = value.fget if is_property else getattr(value, "__func__", value)
    signature = inspect.signature(function)
    names = {one.name for one in signature.parameters.values()} - {"self", "cls"}
    items = [*found.entries.get("Args", ()), *(found.entries.get("Attributes", ()) if is_class else ())]
    described = {name.strip(" *") for item in items for name in re.sub(r"\(.*?\)", "", item).split(",")}
    yield from sorted(names - described if is_class else names ^ described)
    returns = signature.return_annotation not in (None, "None", inspect.Signature.empty)
    if returns and not is_class and not is_property and not (found.has("Returns") or found.has("Yields")):
        yield "Returns"
    told = re.search(r"\b(?!BackendError|NotImplementedError)[A-Z]\w+Error\b", text)
    if (told or (not is_class and raises(inspect.unwrap(function)))) and not found.has("Raises"):
        yield "Raises"


def raises(function: Any) -> bool:
    """Whether its own body raises; what a format has to implement does not count."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    raised = [node for node in ast.walk(tree) if isinstance(node, ast.Raise) and node.exc is not None]
    return any("NotImplementedError" not in ast.unparse(node) for node in raised)


def test_missing_sections_are_found(make_api: ModuleType) -> None:
    def nothing_said(x: int, *rest: int) -> int:
        """Twice that."""
        if x < 0:
            raise ValueError("x")
        return 2 * x

    def told_in_prose(x: int) -> None:
        """Raises ValueError for a negative x.

        Args:
            x: A number.
        """

    def complete(x: int, *rest: int) -> int:
        """Twice that.

        Args:
            x, *rest: Numbers.

        Returns:
            2 x.
        """
        return 2 * x

    assert list(missing_in(make_api, nothing_said)) == ["rest", "x", "Returns", "Raises"]
    assert list(missing_in(make_api, told_in_prose)) == ["Raises"]
    assert list(missing_in(make_api, complete)) == []


PROSE = sorted((*ROOT.glob("*.md"), *DOCS.glob("*.md")))
WRAPPED = [path for path in (*PROSE, *ROOT.glob("benchmarks/*/*.md")) if path.name != "api.md"]


@pytest.mark.parametrize("path", WRAPPED, ids=lambda one: one.name)
def test_prose_is_wrapped(path: Path) -> None:
    """Programs, tables and pictures may be wider."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    wide = [line for line in text.splitlines() if len(line) > 120 and not line.startswith(("|", "!"))]
    assert not wide


@pytest.mark.parametrize("path", PROSE, ids=lambda one: one.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        name, _, anchor = target.partition("#")
        if name.startswith("http"):
            continue
        file = path.parent / name if name else path
        assert file.exists(), target
        if anchor and file.suffix == ".md":
            assert anchor in anchors_of(file), target


def anchors_of(path: Path) -> set[str]:
    """As GitHub makes them of headings, and those that are written."""
    text = path.read_text(encoding="utf-8")
    headings = [re.sub(r"<.*?>|[^\w\- ]", "", one.lower()) for one in re.findall(r"^#+ (.*)$", text, re.MULTILINE)]
    return {one.strip().replace(" ", "-") for one in headings} | set(re.findall(r'<a id="(.*?)">', text))


CODE = {".py", ".h", ".cpp", ".cu", ".cuh"}


def section_of(title: str) -> str:
    """Of HACKING.md."""
    found = re.search(
        rf"^## {title}\n(.*?)(?=^## |\Z)", (ROOT / "HACKING.md").read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    assert found, title
    return found[1]


def read_tree() -> dict[str, str]:
    """What HACKING.md has in its tree: by path, with what is said of it."""
    tree = re.search(r"```\n(.*?)```", section_of("The tree"), re.DOTALL)
    assert tree
    said: dict[str, str] = {}
    path: list[str] = []
    for line in tree[1].splitlines():
        indent = len(line) - len(line.lstrip())
        if indent < 20:  # else a line goes on
            name, _, rest = line.strip().partition(" ")
            path = [*path[: indent // 2], name.rstrip("/")]
            said["/".join(path)] = rest
        else:
            said["/".join(path)] += line
    return said


def test_the_tree_is_what_is_there() -> None:
    """Every line names something that is there, files and folders."""
    tree = read_tree()
    assert not {name for name in tree if not (ROOT / name).exists()}
    for folder, text in tree.items():
        if not (ROOT / folder).is_dir():
            continue
        for file in re.findall(r"\b\w+\.(?:py|h|cpp|cuh?)\b", text):
            above = [ROOT / folder, *(ROOT / folder).glob("*/"), *(ROOT / folder).glob("*/*/")]
            assert any((one / file).exists() for one in above), f"{folder}: {file}"


def tracked_files() -> list[Path]:
    """All files that git knows and that are there, as paths from the root."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("not a checkout")
    return [Path(name) for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def test_the_tree_is_complete() -> None:
    """Folders everywhere; and the files of the package and of csrc, beside their folder or one above."""
    tree = read_tree()
    for path in tracked_files():
        assert str(path.parent) in {".", *tree}, path
        if path.parts[0] in ("sparsekernels", "csrc"):
            listed = str(path) in tree or path.is_relative_to("csrc/sparse_conv2d") or path.name == "__init__.py"
            said = " ".join(tree[str(one)] for one in path.parents if str(one) in tree)
            assert listed or re.search(rf"(?<![\w.]){re.escape(path.name)}\b", said), path


def test_the_files_of_the_sparse_kernels_are_in_their_table() -> None:
    text = (DOCS / "sparse_kernels.md").read_text(encoding="utf-8")
    table = text.partition("The files of `csrc/sparse_conv2d`:")[2].partition("Below them")[0]
    named: set[str] = set()
    folder, stem = "", ""
    for row in re.findall(r"^\| (.*?) \|", table, re.MULTILINE):
        if heading := re.fullmatch(r"\*\*`(\w+/)`\*\*", row):
            folder = heading[1]
            continue
        for name in re.findall(r"`([\w.]+)`", row):
            stem = stem if name.startswith(".") else name.partition(".")[0]
            named.add(folder + (stem + name if name.startswith(".") else name))
    there = {str(one.relative_to(ROOT / "csrc/sparse_conv2d")) for one in (ROOT / "csrc/sparse_conv2d").rglob("*.*")}
    assert named == there


@pytest.mark.parametrize(
    "title",
    ["How to add an operation", "How to add a kernel", "How to add a format", "How to add an instruction set"],
)
def test_the_steps_name_what_is_there(title: str) -> None:
    """Every file, and every word of the code."""
    places = [one for top in ("sparsekernels", "csrc", "tests", "docs") for one in (ROOT / top).rglob("*.*")]
    files = [str(one.relative_to(ROOT)) for one in places if one.is_file()] + ["CMakeLists.txt"]
    sources = [ROOT / one for one in files if Path(one).suffix in CODE | {".txt"}]
    words = set(re.findall(r"\w+", " ".join(one.read_text(encoding="utf-8") for one in sources)))
    for token in re.findall(r"`([^`]+)`", section_of(title)):
        if "<" in token or token.startswith(("op:", "python ", ".")):
            continue
        if re.search(r"/|\.(py|h|cpp|cu|md|sh|txt|toml)$", token):
            assert any(f"/{token}" in f"/{one}" for one in files), token
        else:
            assert set(re.findall(r"[A-Za-z_]\w+", token.partition("(")[0])) <= words, token


def test_every_switch_is_in_the_table() -> None:
    here = re.findall(r"`(SPARSEKERNELS_\w+)`", (ROOT / "HACKING.md").read_text(encoding="utf-8"))
    tops = {"csrc", "sparsekernels", "tests", "benchmarks", "cmake", ".ci", "CMakeLists.txt", "setup.py", "Makefile"}
    found: set[str] = set()
    for path in tracked_files():
        if path.parts[0] in tops and path.suffix in CODE | {".sh", ".txt", ".toml", ".cmake", ""}:
            found |= set(re.findall(r"\bSPARSEKERNELS_[A-Z0-9_]*[A-Z0-9]", (ROOT / path).read_text(encoding="utf-8")))
    assert found <= set(here), found - set(here)


def test_the_table_of_variables_is_the_list() -> None:
    """Those of the environment: the first table of their section."""
    table = section_of("Switches").partition("CMake options")[0]
    assert re.findall(r"^\| `(SPARSEKERNELS_\w+)` \|", table, re.MULTILINE) == list(_environment.VARIABLES)


def test_decisions_have_an_anchor_a_date_and_a_status() -> None:
    text = (DOCS / "decisions.md").read_text(encoding="utf-8")
    entries = re.split(r"^### ", text, flags=re.MULTILINE)[1:]
    anchors = [re.match(r'<a id="([a-z0-9-]+)"></a>', entry) for entry in entries]
    for entry, anchor in zip(entries, anchors, strict=True):
        assert anchor, entry
        status = r"\*\d{4}-\d\d-\d\d, (kept|rejected|superseded by \[)"
        assert re.match(status, entry.split("\n")[2]), entry
    assert len({anchor[1] for anchor in anchors if anchor}) == len(entries)


def test_tables_are_those_of_the_records() -> None:
    found = subprocess.run([sys.executable, ROOT / "benchmarks" / "tables.py"], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


RECORDS = sorted((ROOT / "benchmarks" / "results").glob("*.jsonl"))
OF_SEVERAL_COMMITS = {"cpu-xeon-amx-2-cores-networks.jsonl"}
"""As the page that shows them says."""


@pytest.mark.parametrize(
    "path", [one for one in RECORDS if one.name not in OF_SEVERAL_COMMITS], ids=lambda one: one.stem
)
def test_records_are_of_one_commit_and_machine(path: Path) -> None:
    """That somebody can check out: rows that were taken again, one by one, would be chosen rows."""
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    commits = {record["commit"] for record in records}
    assert len(commits) == 1, commits
    assert len({json.dumps(record["machine"], sort_keys=True) for record in records}) == 1
    assert not any("dirty" in commit for commit in commits), commits
