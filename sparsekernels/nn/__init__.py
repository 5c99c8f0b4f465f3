"""Drop-in modules."""

from .norm import RMSNorm
from .sparse import SparseConv2d, SparseLinear

__all__ = ["RMSNorm", "SparseConv2d", "SparseLinear"]
