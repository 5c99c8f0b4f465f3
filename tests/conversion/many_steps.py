# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""A model on which many steps are taken, some of them conversions, beside a dense twin on which the others are, too.

Before each step the twin takes the state of the model, so that differences do not add up. After it, both have the same
state, bit for bit, and the model computes what the twin does, by the oracle's rule: outputs, gradients where weights
are not zero, and what a pass leaves in the buffers. The steps are in many_steps_table.py.
"""

from __future__ import annotations

import contextlib
import copy
import random
import warnings
from collections.abc import Callable, Iterator

import torch
from many_steps_nets import Net, inputs, network
from torch import Tensor, nn
from twins import Call, Pass, Wrong, agree, copy_of


class Session:
    """The model, its twin, and what a user of both has kept.

    model, twin     the twin is of dense layers, with the same names
    optimizers      of the parameters of both, and what makes such optimizers
    saved           state dicts of the past
    flat            the memory that the model's parameters were made views of
    """

    def __init__(self, number: int, dtype: torch.dtype = torch.float32) -> None:
        self.model, self.twin = network(number).to(dtype), network(number).to(dtype)
        self.optimizers: tuple[torch.optim.Optimizer, torch.optim.Optimizer] | None = None
        self.saved: list[dict[str, Tensor]] = []
        self.flat: Tensor | None = None
        self.finished = False
        self._wide: nn.Module | None = None
        self.program: list[str] = [f"Session({number}, {dtype})"]

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    def both(self, step: Callable[[Net, random.Random], nn.Module | None], seed: int) -> None:
        """Takes the same step on both. What it returns is the model from then on."""
        self.model = step(self.model, random.Random(seed)) or self.model
        self.twin = step(self.twin, random.Random(seed)) or self.twin

    def others(self) -> None:
        """The parameters are others than before, so an optimizer and hooks are of no use."""
        self.optimizers = None

    def changed(self) -> None:
        """The twin is another than before."""
        self._wide = None

    def do(self, name: str, seed: int) -> None:
        """Takes the step of that name, if it applies, and looks whether the model is right."""
        if self.finished:
            return
        self.program.append(f"do({name!r}, {seed})")
        torch.manual_seed(seed)
        draw = random.Random(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.adopt()
            self.changed()
            STEPS[name](self, draw)
            self.changed()
            self.expect_the_same_state(name)
            for one in passes(draw, self.dtype):
                self.check(one, draw)
                if self.finished:
                    break

    def adopt(self) -> None:
        """The twin takes the state of the model: values, modes, gradients."""
        mine, theirs = list(self.model.named_modules()), list(self.twin.named_modules())
        if [name for name, _ in mine] != [name for name, _ in theirs]:
            raise Wrong("the model has modules of other names")
        for (_, one), (_, other) in zip(mine, theirs, strict=True):
            other.training = one.training
        mine, theirs = dict(self.model.named_parameters()), dict(self.twin.named_parameters())
        if list(mine) != list(theirs):
            raise Wrong(f"the model has the parameters {list(mine)}, the twin {list(theirs)}")
        with torch.no_grad():
            for name, other in theirs.items():
                one = mine[name]
                if not torch.equal(one, other) or one.stride() != other.stride():
                    other.data = copy_of(one)
                other.requires_grad_(one.requires_grad)
                other.grad = copy_of(one.grad)
        for name, module in self.twin.named_modules():
            for key in module._buffers:
                module._buffers[key] = copy_of(self.model.get_submodule(name)._buffers[key])

    def expect_the_same_state(self, what: str) -> None:
        """Bit for bit, but for the sign of a zero."""
        for kind in ("named_parameters", "named_buffers"):
            mine, theirs = dict(getattr(self.model, kind)()), dict(getattr(self.twin, kind)())
            if list(mine) != list(theirs):
                raise Wrong(f"after {what} the model has {list(mine)}, the twin {list(theirs)}")
            for name, one in mine.items():
                other = theirs[name]
                if (one.dtype, one.shape, one.requires_grad) != (other.dtype, other.shape, other.requires_grad):
                    raise Wrong(f"after {what}, {name}: {one.dtype} {list(one.shape)}, not {other.dtype} {other.shape}")
                if not torch.equal(one.detach().nan_to_num(), other.detach().nan_to_num()):
                    off = (one.detach().double() - other.detach().double()).abs().max().item()
                    raise Wrong(f"after {what}, {name} is off by {off:.3g}")

    def check(self, one: Pass, draw: random.Random) -> None:
        """Compares model and twin in one pass."""
        self.compare(self.model, one, inputs(self.twin, draw, self.dtype))

    def compare(
        self,
        model: nn.Module,
        one: Pass,
        x: Tensor,
        what: str = "the model",
        *,
        only_outputs: bool = False,
        of_twin: bool = False,
    ) -> None:
        """The results of `model` in one pass with those of the twin.

        of_twin: the twin has a state of its own.
        """
        if not of_twin:
            self.adopt()
        try:
            said = agree(model, self.twin, one, Call((x,)), wide=self._in_float64(), only_outputs=only_outputs)
        except Wrong as error:
            raise Wrong(f"{what} {error}") from None
        self.finished |= not said

    def _in_float64(self) -> nn.Module:
        """The twin, as it is."""
        if self._wide is None:
            self._wide = copy.deepcopy(self.twin).double()
        for module, wide in zip(self.twin.modules(), self._wide.modules(), strict=True):
            wide.training = module.training
            for name, one in module._buffers.items():
                wide._buffers[name] = one.double() if one is not None and one.is_floating_point() else copy_of(one)
        return self._wide

    @contextlib.contextmanager
    def other_twin(self) -> Iterator[nn.Module]:
        """Inside, the twin is a copy, which may be changed."""
        self.adopt()
        before = self.twin, self._wide
        self.twin, self._wide = copy.deepcopy(self.twin), None
        try:
            yield self.twin
        finally:
            self.twin, self._wide = before


class Answer(nn.Module):
    """A model whose output is known."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, _: Tensor) -> Tensor:
        return self.output


def passes(draw: random.Random, dtype: torch.dtype) -> Iterator[Pass]:
    """As the model is, then in both modes."""
    autocast = dtype is torch.float32 and draw.random() < 0.05
    first = [Pass(None, False, inference=draw.random() < 0.5, autocast=autocast), Pass(None, True, autocast=autocast)]
    draw.shuffle(first)
    yield from first
    second = [Pass(False, False), Pass(True, True), Pass(False, True)]
    draw.shuffle(second)
    yield second[0]


Step = Callable[[Session, random.Random], None]
STEPS: dict[str, Step] = {}


def step(function: Step) -> Step:
    STEPS[function.__name__.strip("_").replace("_", " ")] = function
    return function


def on_both(function: Callable[[Net, random.Random], nn.Module | None]) -> Callable[[Net, random.Random], None]:
    """A step that is the same for the model and its twin."""

    @step
    def both(session: Session, draw: random.Random) -> None:
        session.both(function, draw.randint(0, 1 << 30))

    STEPS[function.__name__.replace("_", " ")] = STEPS.pop("both")
    return function
