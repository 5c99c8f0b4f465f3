r"""Max pooling of contiguous images for inference: torch's own takes as long as half a sparse network.

    y[n, c, p, q] = max over (i, j) in the window of x[n, c, p * sh - ph + i, q * sw - pw + j], where that is inside

`sparsekernels::_max_pool2d(Tensor input, int[] window) -> Tensor`, with window = (kh, kw, sh, sw, ph, pw). input is
[N, C, H, W]; NaN is larger than anything. It gives what `torch.nn.functional.max_pool2d` gives, knows no
gradients, and is torch's function wherever there is no kernel: for float64, other devices, images with gaps between
them (torch is fast on channels_last), and installations without the compiled library.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import _library  # noqa: F401 (loads the kernels)

library = torch.library.Library("sparsekernels", "FRAGMENT")
library.define("_max_pool2d(Tensor input, int[] window) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))

_IN_LIBRARY = torch._C._dispatch_has_kernel_for_dispatch_key("sparsekernels::_max_pool2d", "CPU")


def _by_torch(input: Tensor, window: list[int]) -> Tensor:
    return F.max_pool2d(input, tuple(window[:2]), tuple(window[2:4]), tuple(window[4:]))


library.impl("_max_pool2d", _by_torch, "CompositeExplicitAutograd")
torch.library.register_fake("sparsekernels::_max_pool2d", _by_torch, lib=library)

_operator = torch.ops.sparsekernels._max_pool2d.default


def max_pool2d(input: Tensor, window: tuple[int, ...]) -> Tensor:
    """The operator where it has a kernel for `input`, else torch's function."""
    usable = _IN_LIBRARY and input.device.type == "cpu" and input.dim() == 4 and input.is_contiguous()
    if usable and input.numel() > 0 and input.dtype in (torch.float32, torch.bfloat16, torch.float16):
        result: Tensor = _operator(input, window)
        return result
    return _by_torch(input, list(window))
