"""Pruned PyTorch models that really run faster, on the CPU and on the GPU, and train faster too."""

from . import nn
from ._version import __version__
from .dispatch import BackendError, use_backend
from .ops.rms_norm.op import add_rms_norm, rms_norm

__all__ = ["BackendError", "__version__", "add_rms_norm", "nn", "rms_norm", "use_backend"]
