"""Sparse weights as data: immutable, made of plain tensors, checked where they come from outside."""

from .unstructured import Unstructured

__all__ = ["Unstructured"]
