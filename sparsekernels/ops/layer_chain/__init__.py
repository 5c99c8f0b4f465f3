# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""A network's sparse layers as one call, for inference."""
