# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Experiments with sparse training on real images, one command each: `sparsekernels experiment NAME`."""
