# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Why a module is no graph, and where that was found."""

from __future__ import annotations

import traceback

import torch

from ..facts import Fact, GraphObstacle
from ..watch.reach import at_line, is_library


class Untraceable(Exception):
    """A module cannot be run as a graph; `fact` is why, and the message says it."""

    def __init__(self, obstacle: GraphObstacle, **operands: object) -> None:
        self.obstacle = obstacle
        if "{place}" in obstacle.value:
            operands = {"place": "", **operands}
        self.fact: Fact = obstacle.of(**operands)
        super().__init__(self.fact)

    @classmethod
    def within(cls, error: Exception) -> Untraceable:
        """The same of what code raised while it was traced, with the place."""
        if isinstance(error, Untraceable):
            places = {"place": _place_of(error)} if "place" in error.fact.operands else {}
            return cls(error.obstacle, **{**error.fact.operands, **places})
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        called = [frame.f_locals["cls"].__name__ for frame in frames if frame.f_code is _APPLY]
        if called:
            return cls(GraphObstacle.AUTOGRAD_FUNCTION, function=called[0], place=_place_of(error))
        return cls(GraphObstacle.TRACING_FAILED, error=first_line(error), place=_place_of(error))


# None where it is C++'s, since torch 2.14.1: no frame tells of it then
_APPLY = getattr(getattr(torch.autograd.Function.apply, "__func__", None), "__code__", None)


def _place_of(error: Exception) -> str:
    """Where the code of a module was, as a sentence goes on."""
    places = [(frame.f_globals.get("__name__"), line) for frame, line in traceback.walk_tb(error.__traceback__)]
    own = [place for place in places if not is_library(place[0])]
    return at_line(own[-1][1], own[-1][0]) if own else ""


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}".rstrip(": ")
