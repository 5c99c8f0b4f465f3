# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Convolution and linear layers whose weight is fine-grained sparse; a linear layer is the 1x1 case."""
