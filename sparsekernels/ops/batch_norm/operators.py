# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
r"""BatchNorm over a batch, as in training, with a sum, limits and dropout behind it.

    z = (x - mean) / sqrt(var + eps) * weight + bias + r     mean and variance of each channel over images and pixels
    y = drop(min(max(z, low), high))                         drop: zero with probability p, else divided by 1 - p

`_batch_norm_act` gives y, the statistics [3, C] (mean, variance of the elements, 1 / sqrt(var + eps)), and which
gradients pass, in a form of the kernel's own. `_batch_norm_act_backward` gives the gradients to x, those to weight
and bias [2, C], and that to r; the first and the last only if needed, else a tensor of no use. input: [N, C, *] without
gaps, float32, with elements; residual (r): as input, or None: 0; weight, bias: [C], float32, or None; 0 <= p < 1.

Which elements are dropped follows from `seed`, and from the place of the element alone (philox.py). Results have the
same bits for any number of threads.

Sources: Ioffe & Szegedy, 2015 (arXiv:1502.03167), algorithm 1; Srivastava et al., 2014, "Dropout".

There is a kernel for the CPU only; op.py knows where it may be used, and what it is differentiated by.
"""

from __future__ import annotations

import torch

from ... import _library  # noqa: F401 (loads the kernels)
from ..._torch import has_kernel

library = torch.library.Library("sparsekernels", "FRAGMENT")
library.define(
    "_batch_norm_act(Tensor input, Tensor? residual, Tensor? weight, Tensor? bias, float eps, float? low, float? high,"
    " float p, int seed) -> (Tensor, Tensor, Tensor)"
)
library.define(
    "_batch_norm_act_backward(Tensor gradient, Tensor input, Tensor? weight, Tensor statistics, Tensor kept, float p,"
    " bool need_input, bool need_residual) -> (Tensor, Tensor, Tensor)"
)

IN_LIBRARY = has_kernel("sparsekernels::_batch_norm_act", "CPU")

forward = torch.ops.sparsekernels._batch_norm_act.default
backward = torch.ops.sparsekernels._batch_norm_act_backward.default
