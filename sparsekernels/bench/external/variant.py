# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""A variant that runs in a process, and in an environment, of its own."""

from __future__ import annotations

import contextlib
import functools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..suite import Prepared, Variant, Verdict
from .process import Child, Launch


@dataclass
class External:
    """What makes such a variant ready, and ends its process.

    job         what the program is told; raises `Unavailable` where the variant has nothing to do with the case
    launch      how the program is started, once its environment is there; raises `Unavailable` where it cannot be
    judge       the verdict on the results, which lie in an .npz file
    processors  the ones that the process may run on
    """

    job: Callable[[], Mapping[str, Any]]
    launch: Callable[[], Launch]
    judge: Callable[[Path], Verdict]
    processors: Sequence[int]
    _open: contextlib.ExitStack = field(default_factory=contextlib.ExitStack, init=False)

    def variant(self, name: str, sparsity: float | None = None) -> Variant:
        """It as the runner wants it."""
        return Variant(name, self.prepare, sparsity, self.close)

    def prepare(self) -> Prepared:
        """Start the process and give it its job. It lives until the variant is closed, or fails."""
        job = self.job()
        child = self._open.enter_context(Child(self.launch(), self.processors))
        with self._closed_on_failure():
            versions, details = child.start(job)
        return Prepared(
            functools.partial(child.run, 1),
            check=functools.partial(self._check, child),
            details=details,
            sampler=child.run,
            versions=versions,
            interruptions=lambda: child.interruptions,
        )

    def close(self) -> None:
        """End the process, if there is one."""
        self._open.close()

    def _check(self, child: Child) -> Verdict:
        with self._closed_on_failure(), tempfile.TemporaryDirectory() as folder:
            results = Path(folder) / "results.npz"
            child.output(results)
            verdict = self.judge(results)
        if not verdict.passed:
            self.close()
        return verdict

    @contextlib.contextmanager
    def _closed_on_failure(self) -> Iterator[None]:
        """What fails holds no memory while the others are measured."""
        try:
            yield
        except BaseException:
            self.close()
            raise
