# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Attention whose scores exist only where a mask is."""
