# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What a step of sparse training takes beside a dense one, everything included, on a pattern that it found itself.

    python benchmarks/sparse_training.py vgg16-d --density 0.05 --dense-grad-every 10 [--algorithm RigL] [--compact]

The network is trained for `--warm` steps with an update every 10, on Fashion-MNIST (see docs/experiments.md), or on
random images where there is none. Then a step of the dense network, in the faster memory layout, and one of the sparse
one alternate. An epoch of 100 steps is so many usual ones, as many with gradients of missing weights as
`--dense-grad-every` asks for, and one update with what the step behind it takes longer. One JSON line:

    speedup        100 dense steps over such an epoch, of medians
    update_share   what the update takes, the compilation of the patterns included, over the epoch
    formula        what sparse momentum's own formula estimates, fine-grained and by channels
    forward        of the converted network in evaluation mode over the dense one
    state          elements of the optimizer's state over those of the dense network's
    emulated       with `--emulated`: by library, 100 of its usual steps over our epoch. They multiply dense weights by
                   masks: torch.nn.utils.prune, whose masks stay; and, where it is installed, sparsimony 0.1.0 (SET;
                   pip install --no-deps sparsimony)
"""

from __future__ import annotations

import argparse
import copy
import functools
import importlib.util
import json
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

import sparsekernels as sk
from sparsekernels.bench.defaults import MEMORY_FORMATS
from sparsekernels.bench.machine import commit, machine, versions
from sparsekernels.bench.models import MODELS
from sparsekernels.bench.network import Network
from sparsekernels.experiments.datasets import load
from sparsekernels.pruning import prunable
from sparsekernels.training import CosineDecay, Sparsifier

EPOCH = 100


def images_for(name: str, batch: int, count: int) -> tuple[list[tuple[Tensor, Tensor]], str]:
    """Batches of real images in the size of a network; of random ones where none are found."""
    like, batches = MODELS[name].images(1), []
    try:
        data = load("fashion-mnist")
    except (FileNotFoundError, ValueError):
        for index in range(count):
            draws = torch.Generator().manual_seed(index)
            labels = torch.randint(MODELS[name].classes, (batch,), generator=draws)
            batches.append((MODELS[name].images(batch, seed=index), labels))
        return batches, "random"
    for index in range(count):
        at = slice(index * batch % 59_000, index * batch % 59_000 + batch)
        pictures = F.interpolate(data.train_images[at], size=tuple(like.shape[2:]))
        batches.append((pictures.expand(-1, like.size(1), -1, -1).contiguous(), data.train_labels[at]))
    return batches, "fashion-mnist"


def milliseconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3


def elements_of(optimizer: torch.optim.Optimizer) -> int:
    states = optimizer.state_dict()["state"].values()
    return sum(value.numel() for state in states for value in state.values() if isinstance(value, Tensor))


def sparsifier_for(
    args: argparse.Namespace, model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, steps: int
) -> Sparsifier:
    """What the command line asks for, with an update every 10 steps whose rate falls over `steps`."""
    return Sparsifier(
        model,
        optimizer,
        args.density,
        algorithm=args.algorithm,
        prune_rate=CosineDecay(0.5, steps),
        update_every=10,
        dense_grad_every=args.dense_grad_every if args.algorithm not in ("SET", "static") else None,
        example_input=images,
        compact_state=args.compact,
    )


Step = Callable[[Tensor, Tensor], None]


def step_of(model: nn.Module, optimizer: torch.optim.Optimizer, behind: Callable[[], object] = lambda: None) -> Step:
    """Forward, backward, the optimizer, and what is done behind it."""

    def step(images: Tensor, labels: Tensor) -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        behind()

    return step


def emulated_by_prune(model: nn.Module, density: float) -> Step:
    """Masks of torch.nn.utils.prune, at random."""
    for _, module in prunable(model):
        prune.random_unstructured(module, "weight", amount=1 - density)
    return step_of(model, torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9))


def emulated_by_sparsimony(model: nn.Module, density: float) -> Step:
    """SET by sparsimony, with an update every 100 steps."""
    from sparsimony.distributions.base import UniformDistribution
    from sparsimony.dst.set import SET
    from sparsimony.schedulers.base import CosineDecayScheduler

    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    sparsifier = SET(CosineDecayScheduler(0.5, 10 * EPOCH, EPOCH), UniformDistribution(), optimizer, 1 - density)
    sparsifier.prepare(model, [{"tensor_fqn": f"{name}.weight"} for name, _ in prunable(model)])
    return step_of(model, optimizer, sparsifier.step)


EMULATIONS = {"torch.nn.utils.prune": emulated_by_prune, "sparsimony": emulated_by_sparsimony}
"""By library: what makes a dense model's training step that of a masked one."""


def emulations(args: argparse.Namespace, network: Network, layout: str) -> dict[str, Step]:
    """The steps of the libraries that are installed, in the layout in which dense is faster."""
    found = {}
    for name, emulate in EMULATIONS.items() if args.emulated else ():
        if name == "sparsimony" and importlib.util.find_spec(name) is None:
            continue
        model = copy.deepcopy(network.model).train()
        found[name] = emulate(model, args.density)
        # only now: torch.nn.utils.prune refuses weights in channels_last
        model.to(memory_format=MEMORY_FORMATS[layout])  # type: ignore[call-overload]
    return found


def measure(args: argparse.Namespace) -> dict[str, Any]:
    case = SimpleNamespace(batch=args.batch, device="cpu", name=f"x/{args.network}", pass_="step")
    network: Any = Network(case)  # type: ignore[arg-type]
    layout, dense_step = network.fastest(torch.float32)
    model = copy.deepcopy(network.model).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    data, source = images_for(args.network, args.batch, args.warm)
    sparsifier = sparsifier_for(args, model, optimizer, data[0][0], args.warm * 2)
    step = step_of(model, optimizer)
    others = emulations(args, network, layout)
    emulated: dict[str, list[float]] = {name: [] for name in others}
    for images, labels in data:
        step(images, labels)
    sparsifier._update_every = None  # from here on by hand
    times: dict[str, list[float]] = {"dense": [], "usual": [], "missing": [], "update": [], "after": []}
    dense_step()
    for index in range(args.rounds):
        images, labels = data[index % len(data)]
        times["dense"].append(milliseconds(dense_step))
        for name, other in others.items():
            laid_out = images.contiguous(memory_format=MEMORY_FORMATS[layout])
            emulated[name].append(milliseconds(functools.partial(other, laid_out, labels)))
        kind = "missing" if sparsifier._is_dense_step() else "usual"
        times[kind].append(milliseconds(functools.partial(step, images, labels)))
        may_update = kind == "missing" if sparsifier.algorithm.grows_by_gradient else index % 5 == 4
        if may_update and args.algorithm != "static" and not sparsifier._is_dense_step():
            times["update"].append(milliseconds(sparsifier.update))
            times["after"].append(milliseconds(functools.partial(step, images, labels)))
    medians = {kind: statistics.median(found) for kind, found in times.items() if found}
    with_missing = EPOCH // args.dense_grad_every if times["missing"] else 0
    usual = medians.get("usual", medians.get("missing", 0.0))
    steps = (EPOCH - with_missing) * usual + with_missing * medians.get("missing", 0.0)
    update = medians["update"] + max(0.0, medians["after"] - usual) if times["update"] else 0.0
    of_others = {name: statistics.median(found) for name, found in emulated.items()}
    found = copy.deepcopy(network.model)
    found.load_state_dict(model.state_dict())
    whole = torch.optim.SGD(network.model.parameters(), lr=1e-3, momentum=0.9)
    F.cross_entropy(network.model(network.images), network.labels).backward()
    whole.step()
    record = {
        **asked_for(args),
        "images": source,
        "layout": layout,
        "ms": {kind: round(value, 2) for kind, value in medians.items()},
        "speedup": round(EPOCH * medians["dense"] / (steps + update), 3),
        "update_share": round(update / (steps + update), 4),
        "formula": {kind: network.estimate(kind, found) for kind in ("fine-grained", "dropped")},
        "state": round(elements_of(optimizer) / elements_of(whole), 4),
        "densities": {name: round(float(mask.float().mean()), 4) for name, mask in sparsifier.masks.items()},
        "kernels": sparsifier.line,
    }
    if of_others:
        record["ms"] |= {name: round(value, 2) for name, value in of_others.items()}
        record["emulated"] = {name: round(EPOCH * value / (steps + update), 3) for name, value in of_others.items()}
    if args.forward:
        report = sk.convert(found.eval(), network.images)
        record["forward"] = report.speedup
    return record


def arguments(about: str | None) -> argparse.ArgumentParser:
    """What both commands about a step of sparse training take."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=MODELS)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--density", type=float, default=0.05)
    parser.add_argument("--algorithm", default="sparse momentum")
    parser.add_argument("--dense-grad-every", type=int, default=10)
    parser.add_argument("--compact", action="store_true")
    return parser


def asked_for(args: argparse.Namespace) -> dict[str, Any]:
    """The beginning of a record."""
    return {
        "network": args.network,
        "batch": args.batch,
        "density": args.density,
        "algorithm": args.algorithm,
        "dense_grad_every": args.dense_grad_every,
        "compact_state": args.compact,
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--warm", type=int, default=60, help="steps of training before the measurement")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--forward", action="store_true", help="convert for inference as well")
    parser.add_argument("--emulated", action="store_true", help="libraries that multiply by masks beside it")
    record = measure(parser.parse_args())
    print(json.dumps({**record, "commit": commit(), "machine": machine(), "versions": versions()}))


if __name__ == "__main__":
    main()
