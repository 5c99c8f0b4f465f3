# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Draws the pictures of docs/sparse_kernels.md: python docs/images/draw_sparse.py [folder]."""

from __future__ import annotations

import pathlib
import sys

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path

# Of Okabe & Ito's palette, as the benchmark's plots.
BLUE, ORANGE, GREEN, GRAY, INK = "#0072B2", "#D55E00", "#009E73", "#BBBBBB", "#222222"
PALE = {BLUE: "#D6E8F5", ORANGE: "#FBE3D3", GREEN: "#D3EFE5", GRAY: "#F2F2F2"}

plt.rcParams.update({"font.family": "DejaVu Sans", "font.size": 10, "svg.hashsalt": "sparse"})


def canvas(width: float, height: float) -> tuple[plt.Figure, Axes]:
    """Axes in tenths of an inch, y downwards."""
    figure = plt.figure(figsize=(width / 10, height / 10))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.axis("off")
    return figure, axes


def box(
    axes: Axes, x: float, y: float, width: float, height: float, color: str = GRAY, *, fill: str | None = None,
    line: float = 1.0, dashed: bool = False,
) -> None:  # fmt: skip
    style = "--" if dashed else "-"
    face = PALE[color] if fill is None else fill
    axes.add_patch(Rectangle((x, y), width, height, facecolor=face, edgecolor=color, linewidth=line, linestyle=style))


def text(axes: Axes, x: float, y: float, words: str, **options: object) -> None:
    given = {"ha": "left", "va": "center", "color": INK, **options}
    axes.text(x, y, words, **given)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], color: str = INK) -> None:
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": color, "linewidth": 1.2})


def grid(
    axes: Axes, x: float, y: float, rows: int, columns: int, cell: float, color: str = GRAY, *, fill: str = "white"
) -> None:  # fmt: skip
    width, height = columns * cell, rows * cell
    box(axes, x, y, width, height, color, fill=fill, line=0.6)
    ends = [((x, y + i * cell), (x + width, y + i * cell)) for i in range(1, rows)]
    ends += [((x + i * cell, y), (x + i * cell, y + height)) for i in range(1, columns)]
    codes = [Path.MOVETO, Path.LINETO] * len(ends)
    lines = Path([point for pair in ends for point in pair], codes)
    axes.add_patch(PathPatch(lines, facecolor="none", edgecolor=color, linewidth=0.6))


def mark(axes: Axes, x: float, y: float, cell: float, row: int, column: int, color: str) -> None:
    box(axes, x + column * cell, y + row * cell, cell, cell, color, fill=color, line=0.6)


def line_of_lanes(axes: Axes, x: float, y: float, cell: float = 1.9) -> None:
    grid(axes, x, y, 1, 16, cell, BLUE, fill=PALE[BLUE])
    for lane in range(16):
        text(axes, x + (lane + 0.5) * cell, y + cell / 2, str(lane), ha="center", fontsize=7)


def draw_lanes() -> plt.Figure:
    figure, axes = canvas(72, 50)
    left, right = 3, 38.5

    text(axes, left, 2, "a lane is an image", weight="bold")
    cell = 1.5
    for i, at in enumerate((left, left + 8.5, left + 17, left + 27)):
        grid(axes, at, 4, 4, 4, cell)
        mark(axes, at, 4, cell, 1, 2, BLUE)
        text(axes, at + 3, 11.3, ("image 0", "image 1", "image 2", "image 15")[i], ha="center", fontsize=8)
    text(axes, left + 25, 7, "…", ha="center")
    text(axes, right, 6.2, "one vector: the same pixel of 16 images", fontsize=9)
    line_of_lanes(axes, right, 8)

    text(axes, left, 16, "a lane is a region of an image", weight="bold")
    cell = 1.15
    grid(axes, left, 18, 12, 12, cell)
    for row in range(4):
        for column in range(4):
            box(axes, left + column * 3 * cell, 18 + row * 3 * cell, 3 * cell, 3 * cell, INK, fill="none", line=1.3)
            mark(axes, left, 18, cell, row * 3 + 1, column * 3 + 2, BLUE)
    text(axes, left + 15.5, 21, "one image in 4 x 4 regions;", fontsize=8)
    text(axes, left + 15.5, 23, "a region's halo is", fontsize=8)
    text(axes, left + 15.5, 25, "its neighbors' pixels", fontsize=8)
    text(axes, right, 23.2, "one vector: the same place of 16 regions", fontsize=9)
    line_of_lanes(axes, right, 25)

    text(axes, left, 36, "a lane is every 16th pixel (1x1 kernel, NCHW)", weight="bold")
    cell = 0.7
    grid(axes, left, 38.5, 1, 44, cell)
    for column in range(16, 32):
        box(axes, left + column * cell, 38.5, cell, cell, "white", fill=BLUE, line=0.6)
    text(axes, left, 41.5, "pixels of one channel, as they lie in memory", fontsize=8)
    text(axes, right, 38.2, "one vector: 16 pixels side by side", fontsize=9)
    line_of_lanes(axes, right, 40)

    text(
        axes, 36, 47, "A kernel is given the same in all three cases: vectors of 16 floats, 64 bytes each.",
        ha="center", fontsize=9, color=BLUE,
    )  # fmt: skip
    return figure


def draw_packing() -> plt.Figure:
    figure, axes = canvas(72, 42)

    text(axes, 2, 2, "the same row of 16 lanes", weight="bold")
    cell = 0.9
    for depth in range(3, 0, -1):
        box(axes, 2 + depth * 1.4, 10 - depth * 1.4, 16 * cell, 7 * cell, GRAY, fill="white")
    grid(axes, 2, 10, 7, 16, cell)
    for column in range(16):
        box(axes, 2 + column * cell, 10 + 2 * cell, cell, cell, "white", fill=BLUE, line=0.6)
    text(axes, 2, 18.5, "NCHW: 16 columns", fontsize=8.5)
    text(axes, 2, 20.5, "are read at a time", fontsize=8.5)

    arrow(axes, (21.3, 12), (24.6, 12), BLUE)

    text(axes, 25.5, 2, "transposed", weight="bold")
    cell = 0.85
    x, y = 25.5, 6
    grid(axes, x, y, 16, 16, cell, BLUE, fill=PALE[BLUE])
    grid(axes, x + 5 * cell, y, 16, 1, cell, ORANGE, fill=PALE[ORANGE])
    text(axes, x + 8 * cell, y - 1.2, "columns of the row", ha="center", fontsize=8)
    text(axes, x + 16 * cell + 0.5, y + 8 * cell, "lanes", fontsize=8, rotation=270)
    text(axes, x, 21.6, "a column of the square", fontsize=8.5, color=ORANGE)
    text(axes, x, 23.6, "is a vector: 16 floats", fontsize=8.5, color=ORANGE)

    arrow(axes, (41.7, 12), (45, 12), BLUE)

    text(axes, 46, 2, "a plane of vectors, halo included", weight="bold")
    cell = 1.32
    x, y = 46, 6.3
    grid(axes, x, y, 9, 18, cell, fill=PALE[GRAY])
    grid(axes, x + cell, y + cell, 7, 16, cell, BLUE, fill=PALE[BLUE])
    grid(axes, x + cell, y + 3 * cell, 1, 16, cell, BLUE, fill="#8FC1E3")
    box(axes, x + 6 * cell, y + 3 * cell, cell, cell, ORANGE, fill=ORANGE, line=0.6)
    text(axes, x, 20, "a square is a vector", fontsize=8.5)
    text(axes, x, 22, "gray: zeros around the image", fontsize=8.5)

    box(axes, 2, 28, 68, 12.4, GRAY, fill="white")
    text(axes, 3.5, 30.2, "in memory: the panel's channels, one plane after another", weight="bold")
    at = 3.5
    for name, width in (("channel 0", 13), ("channel 1", 13), ("channel 2", 13), ("…", 6), ("channel C-1", 13)):
        box(axes, at, 32.3, width, 3, BLUE)
        text(axes, at + width / 2, 33.8, name, ha="center", fontsize=8.5)
        at += width + 0.9
    words = "A nonzero (channel, ky, kx) is one offset into this: channel · plane + ky · row + kx, in vectors."
    text(axes, 3.5, 38, words, fontsize=9)
    return figure


def draw_tile() -> plt.Figure:
    figure, axes = canvas(72, 44)
    cell = 2.6

    text(axes, 2, 2, "the plane of the nonzero's channel, in L1", weight="bold")
    x, y = 2, 4
    grid(axes, x, y, 6, 8, cell, fill=PALE[GRAY])
    grid(axes, x + 2 * cell, y + cell, 3, 4, cell, BLUE, fill=PALE[BLUE])
    box(axes, x + cell, y + cell, 4 * cell, 3 * cell, INK, fill="none", line=1.6, dashed=True)
    box(axes, x + 2 * cell, y + cell, 4 * cell, 3 * cell, BLUE, fill="none", line=2.0)
    text(axes, x, y + 6 * cell + 1.6, "dashed: the tile under offset 0", fontsize=8.5)
    text(axes, x, y + 6 * cell + 3.6, "blue: the same, moved by the nonzero's offset", fontsize=8.5, color=BLUE)

    text(axes, 47, 2, "sums in registers, P = 3 x 4", weight="bold")
    x, y = 48, 4 + cell
    for row in range(3):
        for column in range(4):
            box(axes, x + column * 4, y + row * cell, 4, cell, GREEN, line=0.8)
            text(axes, x + (column + 0.5) * 4, y + (row + 0.5) * cell, f"{row}, {column}", ha="center", fontsize=8)
    text(axes, x, y + 3 * cell + 1.6, "16 floats each, of one output channel", fontsize=8.5, color=GREEN)

    arrow(axes, (24.5, 10.5), (47, 10.5), BLUE)
    text(axes, 36, 8.9, "sum += w · vector", ha="center", fontsize=10, color=BLUE)
    text(axes, 36, 12.4, "P loads, P multiply-adds", ha="center", fontsize=8.5)

    text(axes, 2, 27, "a run: the nonzeros of one row of the weight in this panel of channels", weight="bold")
    names = (("w", ("0.3", "-1.2", "0.8", "0.1", "-0.5")), ("offset", ("1", "9", "58", "97", "112")))
    for row, (name, values) in enumerate(names):
        text(axes, 2, 30.4 + row * cell, name, fontsize=9)
        for column, value in enumerate(values):
            color = ORANGE if column == 0 else GRAY
            box(axes, 8 + column * 6, 29.1 + row * cell, 6, cell, color, line=0.8)
            text(axes, 11 + column * 6, 30.4 + row * cell, value, ha="center", fontsize=9)
    text(axes, 40, 30.4, "one broadcast: 16 times the same weight", fontsize=8.5, color=ORANGE)
    text(axes, 40, 33, "one scalar load: how far to move, in vectors", fontsize=8.5, color=ORANGE)

    text(
        axes, 36, 38.6, "Per nonzero: P + 2 loads for P multiply-adds. When the run ends, the sums are added to",
        ha="center", fontsize=9,
    )  # fmt: skip
    text(
        axes, 36, 40.7, "those of the panels before, in L2; the next run is another output channel's.",
        ha="center", fontsize=9,
    )  # fmt: skip
    return figure


def draw_loops() -> plt.Figure:
    figure, axes = canvas(72, 52)

    text(axes, 2, 2, "L1: a tile's part of one panel of channels", weight="bold", color=BLUE)
    cell = 1.5
    for depth in range(4, -1, -1):
        x, y = 3 + depth * 1.7, 12 - depth * 1.7
        grid(axes, x, y, 6, 6, cell, BLUE)
        grid(axes, x + cell, y + cell, 4, 4, cell, BLUE, fill=PALE[BLUE])
    text(axes, 20.5, 8, "channels", fontsize=8.5)
    text(axes, 20.5, 10, "of the panel", fontsize=8.5)
    text(axes, 3, 23, "white: the halo, for the shifts of a kernel", fontsize=8.5)

    text(axes, 40, 2, "L2: a work item's sums, of a slice", weight="bold", color=GREEN)
    cell = 2
    for depth in range(4, -1, -1):
        x, y = 41 + depth * 1.7, 11 - depth * 1.7
        grid(axes, x, y, 6, 6, cell, GREEN)
        grid(axes, x, y, 3, 3, cell, GREEN, fill=PALE[GREEN])
        box(axes, x, y, 3 * cell, 3 * cell, GREEN, fill="none", line=1.8)
    text(axes, 60.6, 8, "rows of the", fontsize=8.5)
    text(axes, 60.6, 10, "pattern (output", fontsize=8.5)
    text(axes, 60.6, 12, "channels)", fontsize=8.5)
    text(axes, 41, 25, "green: what one tile brings up and sends back", fontsize=8.5)

    arrow(axes, (26.5, 15.5), (39.5, 15.5), INK)
    text(axes, 33, 13.9, "one run", ha="center", fontsize=9)
    text(axes, 33, 17.3, "for each row", ha="center", fontsize=9)

    box(axes, 2, 28.4, 68, 22, GRAY, fill="white")
    steps = (
        (0, "for each work item, and slice of the pattern's rows", "a thread takes one", INK),
        (1, "for each panel of channels", "the work item's planes are packed", INK),
        (2, "for each tile of the work item", "its part of the planes is now in L1", BLUE),
        (3, "for each row of the slice, by length of its run", "sums come up from L2", GREEN),
        (4, "for each nonzero of the run", "P + 2 loads, P multiply-adds", ORANGE),
        (3, "sums go back to L2", "", GREEN),
        (1, "bias added, its sums written to the output", "once", INK),
    )
    for i, (depth, words, note, color) in enumerate(steps):
        text(axes, 4 + depth * 2.6, 31 + i * 2.85, words, fontsize=9.5, color=color)
        text(axes, 47, 31 + i * 2.85, note, fontsize=8.5, color="#666666")
    return figure


def draw_jit_kernel() -> plt.Figure:
    figure, axes = canvas(72, 58)
    cell, rows, columns, now = 2.0, 8, 13, 4
    x, y, last = 5, 5.5, 24.3  # of the pattern; where row 30 is
    nonzeros = ((0, 2), (0, 3), (2, 0), (2, 5), (3, 1), (3, 6), (4, 4), (4, 7), (5, 3), (6, 0), (6, 2), (8, 5), (8, 6))
    nonzeros += ((9, 1), (9, 4), (10, 7), (11, 0), (12, 2), (12, 6), (1, 8), (4, 8), (8, 8), (1, 4), (3, 7))
    tops = [y + row * cell for row in range(rows)] + [last]
    names = [str(row) for row in range(rows)] + ["30"]

    text(axes, 2, 2, "a slice of the pattern, in a panel of channels", weight="bold")
    grid(axes, x, y, rows, columns, cell)
    grid(axes, x, last, 1, columns, cell)
    for column, row in nonzeros:
        color = GRAY if column < now else ORANGE if column == now else BLUE
        fill = color if column <= now else PALE[BLUE]
        box(axes, x + column * cell, tops[row], cell, cell, color, fill=fill, line=0.8)
    for top, name in zip(tops, names, strict=True):
        text(axes, x - 0.7, top + cell / 2, name, ha="right", fontsize=8)
    text(axes, x + columns * cell / 2, last - 1.4, "…", ha="center")
    axes.add_patch(
        Rectangle(
            (x + now * cell, y - 0.5), cell, last + cell - y + 1, facecolor="none", edgecolor=ORANGE, linewidth=1.6
        )
    )
    arrow(axes, (x, y - 1.2), (x + columns * cell, y - 1.2), INK)

    text(axes, 48, 2, "sums in registers", weight="bold")
    values = {4: "0.3", 7: "-1.2", 8: "0.8"}
    lanes = 1.15
    for i, (top, name) in enumerate(zip(tops, names, strict=True)):
        takes = i in values
        color = GREEN if takes else GRAY
        grid(axes, 48, top + 0.2, 1, 16, lanes, color, fill=PALE[GREEN] if takes else "white")
        text(axes, 67, top + cell / 2, f"zmm{name}", fontsize=8, color=GREEN if takes else INK)
        if takes:
            arrow(axes, (x + columns * cell + 0.7, top + cell / 2), (47.3, top + cell / 2), ORANGE)
            text(axes, 39.5, top - 0.1, f"+= {values[i]} · vector", ha="center", fontsize=8.5, color=ORANGE)
    text(axes, 48 + 8 * lanes, last - 1.4, "…", ha="center")

    text(axes, 2, 30.2, "the plane of the column's channel, in L1", weight="bold")
    floats = 31
    grid(axes, 2, 32, 1, floats, lanes)
    grid(axes, 2 + 9 * lanes, 32, 1, 16, lanes, BLUE, fill=PALE[BLUE])
    arrow(axes, (2 + floats * lanes + 0.7, 32.6), (47.3, 32.6), BLUE)
    text(axes, 42.5, 31.2, "one load", ha="center", fontsize=8.5, color=BLUE)
    text(axes, 48, 30.2, "the vector", weight="bold")
    grid(axes, 48, 32, 1, 16, lanes, BLUE, fill=PALE[BLUE])
    text(axes, 67, 32.6, "zmm31", fontsize=8, color=BLUE)

    box(axes, 2, 36.2, 68, 13, GRAY, fill="white")
    code = (
        ("vmovups      zmm31, [rdi + 64]", "the column's vector, for all rows of the slice", BLUE),
        ("vfmadd231ps  zmm4,  zmm31, [rsi - 476]{1to16}", "row 4: the value is read from memory, 4 bytes", ORANGE),
        ("vfmadd231ps  zmm7,  zmm31, [rsi - 472]{1to16}", "row 7: the next value", ORANGE),
        ("vfmadd231ps  zmm30, zmm31, [rsi - 468]{1to16}", "row 30", ORANGE),
        ("vmovups      zmm31{k2}{z}, [rdi + 68]", "the next column, masked at the image's edge", BLUE),
    )
    for i, (words, note, color) in enumerate(code):
        text(axes, 3.5, 38 + i * 2.35, words, fontsize=8.5, color=color, family="DejaVu Sans Mono")
        text(axes, 41.5, 38 + i * 2.35, note, fontsize=8.5, color="#666666")

    text(
        axes, 36, 52.3, "31 rows of the pattern, one vector: each vector is loaded once for all rows that need it.",
        ha="center", fontsize=9,
    )  # fmt: skip
    text(
        axes, 36, 54.7, "Then the same kernel runs for the next vector, and its sums are other vectors of the result.",
        ha="center", fontsize=9,
    )  # fmt: skip
    return figure


def main() -> None:
    folder = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(__file__).parent
    for name, draw in (
        ("jit-kernel", draw_jit_kernel),
        ("lanes", draw_lanes),
        ("packing", draw_packing),
        ("tile", draw_tile),
        ("loops", draw_loops),
    ):
        figure = draw()
        figure.savefig(folder / f"sparse-{name}.svg", metadata={"Date": None, "Creator": None}, facecolor="white")
        plt.close(figure)


if __name__ == "__main__":
    main()
