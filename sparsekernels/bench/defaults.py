# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What suites of pruned weights measure unless told otherwise, and the memory formats of their images."""

from __future__ import annotations

import torch

SPARSITIES = (50.0, 70.0, 80.0, 90.0, 95.0, 98.0)
"""In percent."""

QUICK_SPARSITIES, QUICK_MASKS = (80.0, 90.0, 95.0), ("random",)
"""Those of the short benchmark; the full one takes every mask."""

MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
