# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The compiled kernels, as torch's dispatcher finds them by the device of the input.

Signatures and semantics are those of `reference`.
"""

from __future__ import annotations

import torch

from . import operators  # noqa: F401 (defines the operators named below)

# Bound once: on the hot path nothing is looked up by string.
forward = torch.ops.sparsekernels._sparse_conv2d.default
input_gradient = torch.ops.sparsekernels._sparse_conv2d_input_gradient.default
weight_gradient = torch.ops.sparsekernels._sparse_conv2d_weight_gradient.default
