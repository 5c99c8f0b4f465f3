# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""`Conv1D` of transformers, whose weight is [in, out], with a sparse weight, fine-grained or in blocks."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from .._torch import is_exported_to_onnx, mark_size_as_dynamic, may_be_kept
from .._transformers import CONV1D
from ..formats import SparseFormat
from ..ops.sparse_conv2d.by_format import prepare
from ..ops.sparse_conv2d.outside import Outside
from ..ops.sparse_conv2d.transposed_linear import Flipped, dense_product, flipped_options, transposed_linear
from .replacement import copy_parameters, dense_or_none, options_of
from .sparse import SparseLayer, pattern_of_dense


class SparseTransposedLinear(SparseLayer):
    r"""In the place of transformers' `Conv1D` (of GPT-2 and its kin), of which only a pattern of weights is used.

        y = x W + b   with W [in, out] zero outside of the pattern

    `from_dense` takes a pruned layer over; the constructor uses every weight. `weight` and `state_dict` are those of
    transformers' layer; the kernels walk the transposed pattern. Pattern, nonzeros outside of it, `state_dict`,
    `dense_grad` and `dense_rows` are as in `SparseLinear`. See `sparsekernels.sparse_linear` for dtypes, errors and
    promises. It is no instance of transformers' class, which is never imported but by `to_dense`.

    Args:
        nf: Outputs, as transformers calls them.
        nx: Inputs.
        bias: Whether there is one, as in transformers' layers always.
        device, dtype: Of the parameters.
        dense_grad: Whether `weight.grad` is the gradient of the dense layer, or zero outside of the pattern.
        format: Name of the format of the pattern, "unstructured" or "block".
        block: Rows and columns of a block, outputs and inputs, for the format "block"; see `sparsekernels.BlockSparse`.

    Attributes:
        pattern: Which weights are used, of shape [in, out], with blocks of inputs and outputs. Its values are
            placeholders: those that count are in `weight`.
        dense_rows: For which numbers of rows calls without gradients multiply by all of `weight`, as `SparseLinear` has
            it.

    Raises:
        TypeError: For a block that is not two int.
        ValueError: For an unknown format, and a block that is missing, not accepted or for another format.
    """

    dense_rows: tuple[int, ...] = ()
    _flipped: tuple[SparseFormat, Flipped] | None = None
    """The pattern, and what follows from it."""

    def __init__(
        self,
        nf: int,
        nx: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        dense_grad: bool = False,
        format: str = "unstructured",
        block: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight = torch.nn.Parameter(torch.empty(nx, nf, device=device, dtype=dtype))
        self.register_parameter(
            "bias", torch.nn.Parameter(torch.zeros(nf, device=device, dtype=dtype)) if bias else None
        )
        torch.nn.init.normal_(self.weight, std=0.02)
        self._start(dense_grad, format, block)

    @classmethod
    def from_dense(
        cls,
        module: torch.nn.Module,
        mask: Tensor | None = None,
        format: str = "unstructured",
        *,
        dense_grad: bool = False,
        block: tuple[int, int] | None = None,
    ) -> SparseTransposedLinear:
        """A sparse layer with copies of the parameters of `module`.

        Args:
            module: The layer to take over, a transformers.pytorch_utils.Conv1D.
            mask: bool, shape of the weight: the weights that are used. None: those that are not zero.
            format: Name of the format of the pattern, "unstructured" or "block".
            dense_grad: As the constructor's.
            block: As the constructor's.

        Returns:
            The layer; `module` is left as it is.

        Raises:
            ValueError: For a weight with NaN or infinite elements, without nonzeros or, without a mask, without zeros
                (blocks of them); and for formats and blocks as the constructor.
            TypeError: For a module that is not a transformers.pytorch_utils.Conv1D, and a block that is not two int.
        """
        pattern = pattern_of_dense(cls, module, mask, format, block)
        result = cls(**options_of(module), dense_grad=dense_grad, format=format, block=block)
        return result._fill_from(module, pattern)  # type: ignore[no-any-return]

    def to_dense(self) -> torch.nn.Module:
        """The dense layer.

        Returns:
            A transformers.pytorch_utils.Conv1D with copies of the parameters; with `dense_grad`, zero outside of the
            pattern.

        Raises:
            ImportError: Where transformers is not installed.
        """
        module, name = CONV1D
        dense: torch.nn.Module = getattr(importlib.import_module(module), name)(self.nf, self.nx)
        copy_parameters(self, dense, self._used_weight())
        return dense

    @property
    def in_features(self) -> int:
        """`nx`, as torch.nn.Linear calls it."""
        return self.nx

    @classmethod
    def _over_weight(cls, options: dict[str, Any]) -> dict[str, Any]:
        return flipped_options(options)

    def _adopt(self, pattern: SparseFormat) -> None:
        super()._adopt(pattern)
        if pattern.device.type != "meta":
            flipped, weight = self.flipped(), self._kept_weight()
            prepare(flipped.pattern, 1, weight is not None and weight.requires_grad)
            mark_size_as_dynamic(flipped.flat_indices)

    def flipped(self) -> Flipped:
        """The pattern as the kernels take it.

        Returns:
            The same object until the pattern changes.
        """
        kept = self._flipped
        if kept is not None and kept[0] is self.pattern:
            return kept[1]
        flipped = Flipped(self.pattern)
        if may_be_kept(flipped.flat_indices):
            self._flipped = self.pattern, flipped
        return flipped

    def _dense_product(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return dense_product(input, weight, bias)

    def forward(self, input: Tensor) -> Tensor:
        if self.dense_rows and not self.dense_grad:
            product = dense_or_none(self, input)
            if product is not None:
                return product
        if is_exported_to_onnx(input):
            return dense_product(input, self._shown_weight(), self.bias)  # type: ignore[arg-type]
        weight, bias = self._parameters_of(input)
        if self._is_for_torch(weight):
            return dense_product(input, self._weight_for_torch(weight), bias)
        moves_all = self.dense_grad and (not isinstance(weight, Tensor) or weight.shape == self.pattern.shape)
        try:
            return transposed_linear(input, self.flipped(), weight, bias, None if moves_all else self._guard)
        except Outside:
            weight = self._dense_weight(input, weight)
        return dense_product(input, weight, bias)

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()  # a copy, without what torch compiled
        return {**state, "_flipped": None}

    def extra_repr(self) -> str:
        return f"nf={self.nf}, nx={self.nx}, bias={self.bias is not None}{super().extra_repr()}"
