"""From a pruned model to a faster one, and back."""

from .convert import convert, revert
from .report import LayerReport, Report

__all__ = ["LayerReport", "Report", "convert", "revert"]
