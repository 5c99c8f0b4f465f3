# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""fingerprint: see op.py."""
