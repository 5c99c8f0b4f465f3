# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Matrix products of which a mask leaves elements out: of the result, of the operands, or of all three."""
