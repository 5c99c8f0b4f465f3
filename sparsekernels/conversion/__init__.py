# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""From a pruned model to a faster one, and back."""

from .convert import convert, revert
from .norms import NormReport, NormsReport, replace_norms
from .report import LayerReport, Report

__all__ = ["LayerReport", "NormReport", "NormsReport", "Report", "convert", "replace_norms", "revert"]
