# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Max pooling between sparse layers, for inference and training."""
