#!/usr/bin/env bash
# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0

# torch 2.13.0, CPU: the weight gradient of a convolution in float16 is added up over the images of a batch in float16.
# Of one image of 32x32 it is correct to its rounding; of 8 images it is off by 1.9 times that, of 64 by 7 times, about
# what bfloat16 is off by with three bits less. In bfloat16 the batch makes no difference. Seen on an AMD EPYC (Zen 4), one thread. Who trains in float16 on a CPU computes this gradient in
# float32 and rounds it once.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/python -m pip install --quiet torch==2.13.0 numpy==2.3.5
env/bin/python - <<'PY'
import torch
from torch.nn.grad import conv2d_weight

torch.set_num_threads(1)
print("torch", torch.__version__)


def times_rounding(dtype, images):
    """The error of the gradient over that of the exact one rounded once."""
    torch.manual_seed(0)
    x, grad = (torch.randn(images, 8, 32, 32).to(dtype) for _ in range(2))
    exact = conv2d_weight(x.double(), (8, 8, 3, 3), grad.double(), padding=1)
    found = conv2d_weight(x, (8, 8, 3, 3), grad, padding=1)
    return float((found.double() - exact).abs().max() / (exact.to(dtype).double() - exact).abs().max())


found = {}
for dtype in (torch.float16, torch.bfloat16):
    for images in (1, 8, 64):
        found[dtype, images] = times_rounding(dtype, images)
        print(f"{dtype}, {images} images: {found[dtype, images]:.1f} times the rounding of the exact gradient")
assert found[torch.float16, 1] < 1.5, "one image was correct to its rounding"
assert found[torch.float16, 64] > 4, "64 images were off by 7 times their rounding"
assert all(found[torch.bfloat16, images] < 1.5 for images in (1, 8, 64)), "bfloat16 was correct to its rounding"
PY
