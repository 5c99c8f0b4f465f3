# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Writes docs/zoo.md: what convert makes of each architecture of the zoo. `tests/legs.sh zoo-table` runs it."""

from __future__ import annotations

import collections
import importlib.metadata
import re
import warnings
from pathlib import Path

import torch
from conversion_checks import graphs_of
from zoo_checks import PREFERENCE, converted
from zoo_models import ZOO, let_torchvision_be_imported, pruned

from sparsekernels.conversion.report import Report

ROOT = Path(__file__).resolve().parents[2]

TEXT = """# The zoo

What `convert` makes of architectures that others wrote:
{libraries};
with torch {torch}.
Each is small, has random weights of which 90% are zero, and is converted in evaluation mode
with `sparsekernels.testing.prefer({preference})`:
everything that can become sparse does, whether or not that is faster,
and whatever torch.fx can trace runs as a graph.
On all of them outputs (three batches; two sizes, where the architecture takes several), gradients, copies,
pickles, the `state_dict` and the way back were compared with the dense model, and a training step as well,
by the rule of `sparsekernels.testing`.

*Layers* are convolutions of one and two dimensions and linear layers; *sparse* is how many of them convert.
Depthwise convolutions were not pruned and stay dense.
Where a model does not run as one graph, the reason is that of the whole model.

{table}

`tests/legs.sh zoo` repeats the comparisons, `tests/legs.sh zoo-table` writes this page.
"""


def graph_of(report: Report, model: torch.nn.Module) -> str:
    """How the model runs."""
    found = list(graphs_of(model))
    if any(graph.module is model for graph in found):
        return "one graph"
    reasons = [note.partition(": ")[2] for note in report.notes if note.startswith("The model as a whole")]
    reason = f": {reasons[0].rstrip('.')}" if reasons else ""
    if not found:
        return f"layer by layer{reason}" if report.converted else "unchanged"
    return f"{len(found)} graphs of parts{reason}"


def dense_of(report: Report) -> str:
    """Why layers stay dense: each reason once."""
    found = [row.reason for row in report.layers if row.decision == "dense"]
    several = re.compile(r"it is \S+ .*as well")
    reasons = collections.Counter(several.sub("it occurs in several places", reason) for reason in found)
    return "; ".join(f"{count}: {reason}" for reason, count in reasons.most_common())


def row_of(name: str) -> str:
    model, calls = pruned(name)
    report = converted(model, calls[0])
    sparse = sum(row.decision != "dense" for row in report.layers)
    cells = [name, str(len(report.layers)), str(sparse), dense_of(report), graph_of(report, model)]
    return "| " + " | ".join(re.sub(r"\s+", " ", cell).replace("|", "\\|") for cell in cells) + " |"


def page() -> str:
    let_torchvision_be_imported()
    libraries = list(dict.fromkeys(row.library for row in ZOO.values()))
    table = []
    for library in libraries:
        table += [f"## {library}", "", "| architecture | layers | sparse | dense, and why | runs as |"]
        table.append("|---|---|---|---|---|")
        table += [row_of(name) for name, row in ZOO.items() if row.library == library]
        table.append("")
    versions = ", ".join(f"{library} {importlib.metadata.version(library)}" for library in libraries)
    preference = ", ".join(f'"{name}"' for name in PREFERENCE)
    torch_version = torch.__version__.partition("+")[0]
    return TEXT.format(libraries=versions, torch=torch_version, preference=preference, table="\n".join(table).rstrip())


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    (ROOT / "docs" / "zoo.md").write_text(page(), encoding="utf-8")
