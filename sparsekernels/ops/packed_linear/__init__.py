# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Linear layers by a weight that is stored as bits and nonzeros alone: as few bytes as decoding has to read."""
