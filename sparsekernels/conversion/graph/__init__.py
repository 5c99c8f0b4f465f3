# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""A module, or a part of a model, as a graph in which layers are fused."""
