# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What a model keeps and what its graph rests on: whether it has changed, and how it is put back."""
