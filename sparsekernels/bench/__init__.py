# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: suites as data, one runner, one timer, many reports, and the command line.

A suite (`suite.py`) is a table of cases and a few variants. `runner.py` starts a child process (`worker.py`) that
measures them with the one timer (`sparsekernels.timing`) and sends back records (`record.py`). `report.py`,
`plot.py` and `compare.py` are functions of records. This package needs the extra
"bench" for what it prints and draws; `info` works without.
"""
