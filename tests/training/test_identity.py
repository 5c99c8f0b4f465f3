# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""A user's function is the same in another process, and another one whatever of it has changed."""

from __future__ import annotations

import functools
import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from small_networks import network, trainer
from torch import Tensor, nn

from sparsekernels.training import Lottery
from sparsekernels.training.criteria import at_random, criterion, diff_sign, same_sign
from sparsekernels.training.identity import identity

SOURCE = """
import math, torch
POWER, device, OPTIONS = 1, "cpu", {"b", "a", "c"}

def helper(x):
    return x.abs() ** POWER

class Rule:
    def __init__(self, scale): self.scale = scale
    def scores(self, x): return helper(x) * self.scale
    def keep(self, initial, final, count): return self.scores(final).topk(count).indices

def keep(initial, final, count, *, by=1.0):
    if count in {"x", "y", "zz"}: return math.floor(OPTIONS)
    return [helper(one).to(initial.device) for one in (final,)]
"""


def made(source: str = SOURCE, name: str = "keep") -> str:
    there: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(source, "a file", "exec"), there)
    return identity("test", there["Rule"](2).keep if name == "Rule" else there[name])


def power(exponent: Any) -> Any:
    def rule(initial: Tensor, final: Tensor, count: int) -> Tensor:
        scores = final.abs() * exponent
        return torch.zeros(final.shape, dtype=torch.bool).index_fill(0, scores.topk(count).indices, True)

    return rule


class Powers:
    def __init__(self, exponent: float) -> None:
        self.exponent = exponent

    def rule(self, initial: Tensor, final: Tensor, count: int) -> Tensor:
        result: Tensor = power(self.exponent)(initial, final, count)
        return result


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        (("POWER, device, OPTIONS = 1", "POWER, device, OPTIONS = 2"), True),  # a global variable of what is called
        (("x.abs()", "x.neg()"), True),  # an attribute
        (("by=1.0", "by=2.0"), True),
        (('"zz"', '"z"'), True),
        (('"a", "c"', '"a", "d"'), True),
        (("for one in", "for one in (1,) for two in"), True),  # in the comprehension's code
        (('"cpu"', '"cuda"'), False),  # an attribute has this name, no global variable that is read
        (("import math", "# comment\n\nimport math"), False),
        (('"b", "a"', '"a", "b"'), False),
        (("self.scale = scale", "self.scale = scale + 1"), False),
    ],
)
def test_code_and_global_variables_count(change: tuple[str, str], differs: bool) -> None:
    assert change[0] in SOURCE
    assert (made() != made(SOURCE.replace(*change))) is differs


def test_so_do_objects_of_methods() -> None:
    changes = (("self.scale = scale", "self.scale = scale + 1"), ("* self.scale", "+ self.scale"), ("abs", "neg"))
    found = {made(SOURCE.replace(*change), "Rule") for change in (*changes, ("", ""))}
    assert len(found) == 4


def test_closures_parameters_and_objects_count() -> None:
    values = [
        1,
        2,
        1.0,
        True,
        None,
        "1",
        b"1",
        (1,),
        [1],
        {"a": 1},
        {1},
        torch.ones(2),
        torch.ones(2, 1),
        torch.zeros(2),
    ]
    values += [
        torch.ones(2, dtype=torch.float64),
        numpy.ones(2),
        numpy.zeros(2),
        numpy.float32(1),
        Powers(1),
        Powers(2),
    ]
    values += [torch.topk, torch.add, Tensor.abs, Tensor.neg, functools.partial(power, 1), functools.partial(power, 2)]
    values += [
        nn.ReLU(),
        nn.Tanh(),
        Path("a"),
        Path("b"),
        nn.Linear,
        torch.float32,
        range(3),
        power,
        power(1),
        power(2),
    ]
    linear = nn.Linear(2, 2)
    values += [linear, nn.Linear(2, 2), torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)]
    made_of = [identity("test", power(value)) for value in values]
    assert made_of == [identity("test", power(value)) for value in values]
    for (one, first), (other, second) in itertools.combinations(zip(values, made_of, strict=True), 2):
        assert first != second, (one, other)
    rules = [criterion("random", seed=1), criterion("random", seed=2), at_random(3), criterion("large_final")]
    rules += [sign(rule, fill=fill) for sign in (same_sign, diff_sign) for rule in rules for fill in (False, True)]
    rules += [Powers(1).rule, Powers(2).rule, power(1), power(-1), same_sign(power(1)), same_sign(power(-1))]
    assert len({identity("test", rule) for rule in rules}) == len(rules)
    assert identity("test", at_random(3)) == identity("test", criterion("random", seed=3))


def test_another_process_finds_the_same() -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_identity as t;"
        "print(t.made(), t.made(name='Rule'), t.identity('', t.power({'a', 'b', 'c', 'd'})))"
    )
    found = set()
    for seed in "12":
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", program, str(Path(__file__).parent)]
        found.add(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)
    assert len(found) == 1


def test_what_cannot_be_told_apart_is_refused() -> None:
    with (
        Path(__file__).open() as file,
        pytest.raises(TypeError, match="Lottery: expected a function of plain values, .* in"),
    ):
        Lottery(network, trainer(), criterion=power(iter(file)))


def test_tickets_of_other_functions_are_not_taken(tmp_path: Path) -> None:
    for number, (one, other) in enumerate(
        [
            (power(1), power(-1)),
            (at_random(1), at_random(2)),
            (same_sign(power(1), fill=True), same_sign(power(-1), fill=True)),
            (same_sign(power(1), fill=True), same_sign(power(1), fill=False)),
            (Powers(1).rule, Powers(-1).rule),
        ]
    ):
        options: dict[str, Any] = {"rate": 0.5, "rounds": 1, "folder": tmp_path / str(number)}
        first = Lottery(network, trainer(2), criterion=one, **options)
        ticket = first.round(1)
        again = Lottery(network, trainer(2), criterion=one, **options).round(1)
        assert all(torch.equal(mask, again.masks[name]) for name, mask in ticket.masks.items())
        with pytest.raises(ValueError, match="expected criterion '.*', as in .*, got '.*'; another experiment needs"):
            Lottery(network, trainer(2), criterion=other, **options)
        if number != 3:
            found = [first.one_shot(1, criterion=rule).masks["0.weight"] for rule in (one, other, one)]
            assert torch.equal(found[0], found[2])
            assert not torch.equal(found[0], found[1])
