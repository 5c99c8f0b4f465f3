"""The programs in the documentation run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sparsekernels import _library

DOCS = Path(__file__).parent.parent / "docs"


@pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")
def test_the_tutorial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "convert.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 7
    exec(compile("\n".join(blocks), "convert.md", "exec"), {})
    assert "layers are converted" in capsys.readouterr().out
