# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Variants in processes of their own: `process.py` is this side, `protocol.py` the other, which has no package."""
