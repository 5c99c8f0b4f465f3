# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""BatchNorm in training, with the sum, the limits and the dropout behind it, in one pass."""
