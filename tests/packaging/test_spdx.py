# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The license headers: what is put where."""

from __future__ import annotations

import pytest
import spdx


@pytest.mark.parametrize(
    ("text", "start", "expected"),
    [
        ('"""A module."""\n', "# ", '{}"""A module."""\n'),
        ("// What this is.\n#pragma once\n", "// ", "{}\n// What this is.\n#pragma once\n"),
        ("#include <new>\n", "// ", "{}#include <new>\n"),
        ("#!/usr/bin/env bash\n# What this does.\n", "# ", "#!/usr/bin/env bash\n{}\n# What this does.\n"),
        ("", "# ", "{}"),
    ],
)
def test_where_the_header_goes(text: str, start: str, expected: str) -> None:
    made = spdx.with_header(text, start)
    assert made == expected.format(spdx.header(start))
    assert made.count("SPDX-License-Identifier: Apache-2.0\n") == 1


def test_which_files_have_one() -> None:
    assert spdx.comment("sparsekernels/nn/sparse.py") == spdx.comment("tests/sanitize.sh") == "# "
    assert spdx.comment("csrc/base/vec.h") == spdx.comment("csrc/rms_norm/cuda/forward.cu") == "// "
    assert spdx.comment("tests/cpp/CMakeLists.txt") == spdx.comment("Makefile") == spdx.comment(".ci/run") == "# "
    assert spdx.comment("csrc/third_party/xxhash.h") is None
    assert spdx.comment("README.md") is spdx.comment("sparsekernels/py.typed") is None
