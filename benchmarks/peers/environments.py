# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Which peers there are, and the environment of each: made by pip when it is first needed, kept, and found again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparsekernels.bench.external.process import PROTOCOL, Launch
from sparsekernels.bench.machine import ALLOCATOR
from sparsekernels.bench.suite import Unavailable

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HERE = Path(__file__).parent
ENGINES = HERE / "engines"
TABLE = ENGINES / "peers.toml"

FOLDER_VARIABLE = "SPARSEKERNELS_PEERS"
"""The environment variable that names the folder of the environments."""

OURS = "ours"
"""The peer, and its variant, that all others are compared with."""

EXPORT = "export"
"""The environment that the exporter needs, and the name of its table."""

CASES = ("network", "linear", "masked", "norm", "block")
DTYPES = ("float32", "bfloat16")

_FOREIGN = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
"""Variables that would bring our packages into the environment of another."""


_OURS = f"{sys.version_info.major}.{sys.version_info.minor}"


@dataclass(frozen=True)
class Variant:
    """What one process of a peer measures. The fields are those of `peers.toml`; options are for the engine."""

    name: str
    cases: tuple[str, ...]
    dtype: str = "float32"
    blocks: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Peer:
    """An engine to measure. The fields are those of `peers.toml`."""

    name: str
    engine: Path
    about: str
    license: str
    variants: tuple[Variant, ...]
    requirements: tuple[str, ...] = ()
    python: tuple[str, ...] = ()
    beside_ours: bool = False
    onnx: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)


NOTHING: Mapping[str, Any] = {"about": "", "license": ""}
"""What the exporter is in a table that has none."""


def read_peers(path: Path = TABLE) -> dict[str, Peer]:
    """The peers of the file, by name, and under `EXPORT` what the exporter needs. Raises ValueError for a bad table."""
    document = tomllib.loads(path.read_text(encoding="utf-8"))
    tables = document["peers"]
    exporter = {"engine": "exporter.py", "variants": [], "beside_ours": True, **document.get(EXPORT, NOTHING)}
    return {name: _peer(name, table) for name, table in {**tables, EXPORT: exporter}.items()}


def _peer(name: str, table: Mapping[str, Any]) -> Peer:
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
    try:
        values["variants"] = tuple(_variant(name, row) for row in table["variants"])
        values["engine"] = ENGINES / table["engine"]
        peer = Peer(name=name, **values)
    except (KeyError, TypeError) as error:
        raise ValueError(f"peers.toml, {name}: {error}") from error
    if peer.requirements and not peer.python and not peer.beside_ours:
        raise ValueError(f"peers.toml, {name}: requirements need python or beside_ours")
    return peer


def _variant(peer: str, row: Mapping[str, Any]) -> Variant:
    known = {key: row[key] for key in ("name", "dtype", "blocks") if key in row}
    options = {key: value for key, value in row.items() if key not in ("cases", *known)}
    variant = Variant(cases=tuple(row["cases"]), options=options, **known)
    for key, given, accepted in (("cases", variant.cases, CASES), ("dtype", (variant.dtype,), DTYPES)):
        for value in given:
            if value not in accepted:
                raise ValueError(
                    f"peers.toml, {peer}: expected {key} to be {', '.join(map(repr, accepted))}, got {value!r}"
                )
    return variant


def default_folder() -> Path:
    """Where environments are kept unless told otherwise: as the variable says, or .envs beside this file."""
    return Path(os.environ.get(FOLDER_VARIABLE) or HERE / ".envs")


class Environments:
    """The environments in a folder.

    folder  each peer has a folder of its own name in it, which belongs to this class: what is incomplete there, or was
            made of other requirements, is cleared and made again
    say     told of what takes long
    """

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self._folder, self._say = folder.resolve(), say
        self._made: dict[str, Path | Unavailable] = {}

    def launch(self, peer: Peer, threads: int) -> Launch:
        """How to start the peer's program, after its environment was made. Raises `Unavailable` where it cannot be.

        All programs alike have the allocator settings of `ALLOCATOR` and as many threads in what OpenMP and BLAS read.
        """
        own = self._interpreter(peer) if peer.requirements and not peer.beside_ours else None
        inherited = {name: value for name, value in os.environ.items() if name not in _FOREIGN}
        beside = [str(self.packages(peer))] if own is None and peer.requirements else []
        ours = [] if own is not None else filter(None, sys.path)
        inherited["PYTHONPATH"] = os.pathsep.join([*ours, *beside, str(PROTOCOL.parent)])
        counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
        command = (str(own or sys.executable), "-X", "faulthandler", str(peer.engine))
        return Launch(command, {**inherited, **ALLOCATOR, **counts, **peer.environment})

    def packages(self, peer: Peer) -> Path:
        """The folder of a peer's packages, after they were installed."""
        (found,) = self._interpreter(peer).parents[1].glob("lib/python*/site-packages")
        return found

    def _interpreter(self, peer: Peer) -> Path:
        """The Python of the peer's environment. What failed once is not tried again."""
        if peer.name not in self._made:
            try:
                self._made[peer.name] = self._make(peer)
            except Unavailable as reason:
                self._made[peer.name] = reason
        made = self._made[peer.name]
        if isinstance(made, Unavailable):
            raise made
        return made

    def _make(self, peer: Peer) -> Path:
        base, version = (sys.executable, _OURS) if peer.beside_ours else find_python(peer.python)
        folder = self._folder / peer.name
        python, stamp = folder / "bin" / "python", folder / "installed.json"
        content = json.dumps({"python": version, "requirements": peer.requirements}, indent=1) + "\n"
        if stamp.is_file() and stamp.read_text(encoding="utf-8") == content:
            return python
        self._say(f"installing {', '.join(peer.requirements)} for Python {version} in {folder}")
        self._say(f"  license: {peer.license}")
        options = ["--quiet", "--no-input", "--disable-pip-version-check", *(["--no-deps"] if peer.beside_ours else [])]
        _execute([base, "-m", "venv", "--clear", folder])
        _execute([python, "-m", "pip", "install", *options, *peer.requirements])
        stamp.write_text(content, encoding="utf-8")
        return python


def find_python(versions: Sequence[str]) -> tuple[str, str]:
    """An interpreter of the first of `versions` that is here, and which: our own, or pythonX.Y on the path."""
    for version in versions:
        for candidate in (sys.executable, shutil.which(f"python{version}")):
            if candidate is not None and _version_of(candidate) == version:
                return candidate, version
    raise Unavailable(f"it needs Python {' or '.join(versions)}, and no such python is on the path")


def _version_of(python: str) -> str | None:
    """Its version as "3.11"; None where it does not run: a wrapper may stand for a version that is not installed."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True, env=_plain())
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _execute(command: Sequence[str | Path]) -> None:
    """Run it. Raises `Unavailable` with the end of what it said where it fails."""
    try:
        subprocess.run([*map(str, command)], capture_output=True, text=True, check=True, env=_plain())
    except OSError as error:
        raise Unavailable(f"its environment cannot be made: {error}") from error
    except subprocess.CalledProcessError as error:
        said = " ".join((error.stderr or error.stdout).strip().splitlines()[-2:])
        raise Unavailable(f"its environment cannot be made: {said}") from error


def _plain() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in _FOREIGN}
