# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Which peers there are, and how their environments are made. Nothing is installed for it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import environments
import peers
import pytest
from environments import OURS, Environments, Peer
from fake_engine import PEERS, linux

from sparsekernels.bench.external import process
from sparsekernels.bench.machine import ALLOCATOR
from sparsekernels.bench.suite import Unavailable

pytestmark = linux


class TestTable:
    def test_every_peer_has_an_engine_and_every_engine_a_peer(self) -> None:
        files = ("peers.toml", "masked_peers.toml", "norm_peers.toml", "block_peers.toml")
        tables = [environments.read_peers(PEERS / "engines" / file) for file in files]
        exporters = [table.pop(environments.EXPORT) for table in tables]  # a table need not have one
        known = {
            f"{file}/{name}": peer for file, table in zip(files, tables, strict=True) for name, peer in table.items()
        }
        known["exporter"] = exporters[0]
        helpers = {"networks.py", "gpu_calls.py"}
        assert {peer.engine.name for peer in known.values()} == {
            path.name for path in (PEERS / "engines").glob("*.py")
        } - helpers
        for peer in known.values():
            assert peer.about
            assert peer.license
            assert all("==" in requirement for requirement in peer.requirements)
        for table in tables:
            names = [one.name for peer in table.values() for one in peer.variants]
            assert len(set(names)) == len(names)
            assert {OURS, peers.BASELINE} <= set(names)
        assert known["peers.toml/deepsparse"].environment == {"NM_DISABLE_ANALYTICS": "1"}
        assert "evaluation" in known["peers.toml/deepsparse"].license

    @pytest.mark.parametrize(
        ("row", "text"),
        [
            ('engine = "e.py"', "p: 'variants'"),
            ('engine = "e.py"\nlicense = ""\nvariants = []', "about"),
            ('engine = "e.py"\nabout = ""\nlicense = ""\nvariants = []\ncolor = 3', "color"),
            ('engine = "e.py"\nabout = ""\nlicense = ""\nvariants = []\nrequirements = ["a==1"]', "need python"),
            (
                'engine = "e.py"\nvariants = [{name = "a", cases = ["song"]}]',
                "expected cases to be 'network', 'linear', 'masked', 'norm', 'block', got 'song'",
            ),
            (
                'engine = "e.py"\nvariants = [{name = "a", cases = [], dtype = "int3"}]',
                "expected dtype to be .*, got 'int3'",
            ),
        ],
    )
    def test_a_bad_table_is_named(self, tmp_path: Path, row: str, text: str) -> None:
        path = tmp_path / "peers.toml"
        path.write_text(f'[export]\nabout = ""\nlicense = ""\n[peers.p]\n{row}', encoding="utf-8")
        with pytest.raises(ValueError, match=text):
            environments.read_peers(path)


class TestEnvironments:
    OWN = Peer("engine", Path("e.py"), "", "free", (), ("a==1", "b==2"), (environments._OURS,), environment={"X": "y"})
    BESIDE = Peer("beside", Path("e.py"), "", "", (), ("a==1",), beside_ours=True)

    @pytest.fixture
    def commands(self, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
        """What would have been run to make environments."""
        found: list[list[str]] = []

        def execute(command: list[Any]) -> None:
            found.append([str(word) for word in command])
            if "venv" in command:
                (Path(command[-1]) / "lib" / "python3" / "site-packages").mkdir(parents=True)

        monkeypatch.setattr(environments, "_execute", execute)
        return found

    def test_ours_needs_none(self, tmp_path: Path, commands: list[list[str]]) -> None:
        launch = Environments(tmp_path, print).launch(Peer("ours", Path("e.py"), "", "", ()), 3)
        assert launch.command[0] == sys.executable
        assert launch.command[-1] == "e.py"
        paths = launch.environment["PYTHONPATH"].split(os.pathsep)
        assert paths == [*filter(None, sys.path), str(process.PROTOCOL.parent)]
        assert ALLOCATOR.items() <= launch.environment.items()
        assert launch.environment["OMP_NUM_THREADS"] == "3"
        assert not commands

    def test_made_once_and_found_again(
        self, tmp_path: Path, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PYTHONPATH", "/somewhere")
        said: list[str] = []
        for _ in range(2):
            launch = Environments(tmp_path, said.append).launch(self.OWN, 1)
        python = str(tmp_path / "engine" / "bin" / "python")
        assert [words[1:] for words in commands] == [
            ["-m", "venv", "--clear", str(tmp_path / "engine")],
            ["-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check", "a==1", "b==2"],
        ]
        assert commands[1][0] == launch.command[0] == python
        assert launch.environment["X"] == "y"
        assert launch.environment["PYTHONPATH"] == str(process.PROTOCOL.parent)
        assert said == [
            f"installing a==1, b==2 for Python {environments._OURS} in {tmp_path / 'engine'}",
            "  license: free",
        ]

    def test_made_again_for_other_pins(self, tmp_path: Path, commands: list[list[str]]) -> None:
        Environments(tmp_path, print).launch(self.BESIDE, 1)
        assert "--no-deps" in commands[1]
        stamp = tmp_path / "beside" / "installed.json"
        stamp.write_text(stamp.read_text().replace("a==1", "a==0"))
        (tmp_path / "beside" / "lib" / "python3" / "site-packages").rmdir()
        (tmp_path / "beside" / "lib" / "python3").rmdir()
        (tmp_path / "beside" / "lib").rmdir()
        launch = Environments(tmp_path, print).launch(self.BESIDE, 1)
        assert len(commands) == 4
        assert launch.command[0] == sys.executable
        assert launch.environment["PYTHONPATH"].split(os.pathsep)[-2] == str(
            tmp_path / "beside" / "lib" / "python3" / "site-packages"
        )

    def test_what_failed_is_not_tried_again(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(environments, "find_python", lambda versions: ("/no/such/python", "3.9"))
        made = Environments(tmp_path, lambda text: None)
        for _ in range(2):
            with pytest.raises(Unavailable, match="its environment cannot be made: .*No such file"):
                made.launch(self.OWN, 1)
            monkeypatch.setattr(environments, "find_python", lambda versions: pytest.fail("tried again"))

    def test_a_failing_installer_is_quoted(self) -> None:
        with pytest.raises(Unavailable, match="cannot be made: no such pin"):
            environments._execute([sys.executable, "-c", "raise SystemExit('no such pin')"])

    def test_find_python(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert environments.find_python(("3.1", environments._OURS)) == (sys.executable, environments._OURS)
        shim = tmp_path / "python3.1"
        shim.write_text("#!/bin/sh\nexit 127\n", encoding="utf-8")
        shim.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(Unavailable, match=r"it needs Python 3\.1 or 3\.2, and no such python is on the path"):
            environments.find_python(("3.1", "3.2"))

    def test_the_folder(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("SPARSEKERNELS_PEERS", raising=False)
        assert environments.default_folder() == PEERS / ".envs"
        monkeypatch.setenv("SPARSEKERNELS_PEERS", "/elsewhere")
        assert environments.default_folder() == Path("/elsewhere")
