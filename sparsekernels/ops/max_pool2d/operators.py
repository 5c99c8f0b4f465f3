# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
r"""Max pooling of contiguous images: torch's own takes as long as half a sparse network.

    y[n, c, p, q] = max over (i, j) in the window of x[n, c, p * sh - ph + i, q * sw - pw + j], where that is inside

`_max_pool2d` gives y, with window = (kh, kw, sh, sw, ph, pw); input is [N, C, H, W], and NaN is larger than anything.
It gives what `torch.nn.functional.max_pool2d` gives, and is that function wherever there is no kernel: for float64,
other devices, images with gaps between them (torch is fast on channels_last), and installations without the library.

`_max_pool2d_places` also gives the place of each result in the plane of H * W elements that it comes from, int32: the
first of elements that are equal, the last NaN, as torch has it. `_max_pool2d_backward` brings gradients back to these
places, of input in `size` (H, W). Both are for float32 on the CPU; op.py knows where they are used.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import _library  # noqa: F401 (loads the kernels)
from ..._torch import has_kernel

library = torch.library.Library("sparsekernels", "FRAGMENT")
library.define("_max_pool2d(Tensor input, int[] window) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
library.define("_max_pool2d_places(Tensor input, int[] window) -> (Tensor, Tensor)")
library.define("_max_pool2d_backward(Tensor gradient, Tensor places, int[] size) -> Tensor")

IN_LIBRARY = has_kernel("sparsekernels::_max_pool2d", "CPU")


def by_torch(input: Tensor, window: list[int]) -> Tensor:
    """torch's own function."""
    return F.max_pool2d(input, tuple(window[:2]), tuple(window[2:4]), tuple(window[4:]))


library.impl("_max_pool2d", by_torch, "CompositeExplicitAutograd")
torch.library.register_fake("sparsekernels::_max_pool2d", by_torch, lib=library)

max_pool2d = torch.ops.sparsekernels._max_pool2d.default
places = torch.ops.sparsekernels._max_pool2d_places.default
backward = torch.ops.sparsekernels._max_pool2d_backward.default
