# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m sparsekernels`, the same as the `sparsekernels` command."""

from ._cli import main

main()
