# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Convolutions of sequences with a sparse weight, fine-grained or in blocks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..ops.sparse_conv2d.op import conv1d
from .replacement import copy_parameters, options_of
from .sparse import SparseConvolution, pattern_of_dense


class SparseConv1d(SparseConvolution, torch.nn.Conv1d):
    r"""Drop-in for `torch.nn.Conv1d` of which only a pattern of weights is used: the others cost nothing.

        y = conv1d(x, W) + b   with W zero outside of the pattern

    The constructor is torch's and uses every weight; `from_dense` takes a pruned convolution over. Pattern, nonzeros
    outside of it, `state_dict` and `dense_grad` are as in `SparseLinear`. See `sparsekernels.sparse_conv1d` for shapes,
    dtypes, errors and promises.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype: As
            torch.nn.Conv1d's.
        dense_grad: Whether `weight.grad` is the gradient of the dense layer, or zero outside of the pattern.
        format: Name of the format of the pattern, "unstructured" or "block".
        block: Rows and columns of a block, outputs and inputs, for the format "block"; see `sparsekernels.BlockSparse`.

    Attributes:
        pattern: Which weights are used. Its values are placeholders: those that count are in `weight`.

    Raises:
        TypeError: For a block that is not two int.
        ValueError: For an unknown format, and a block that is missing, not accepted or for another format.
    """

    _product = staticmethod(conv1d)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int],
        stride: int | tuple[int] = 1,
        padding: int | tuple[int] | str = 0,
        dilation: int | tuple[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Any = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        dense_grad: bool = False,
        format: str = "unstructured",
        block: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
        )
        self._start(dense_grad, format, block)

    @classmethod
    def from_dense(
        cls,
        module: torch.nn.Conv1d,
        mask: Tensor | None = None,
        format: str = "unstructured",
        *,
        dense_grad: bool = False,
        block: tuple[int, int] | None = None,
    ) -> SparseConv1d:
        """A sparse convolution with copies of the parameters of `module`.

        Args:
            module: The layer to take over.
            mask: bool, shape of the weight: the weights that are used. None: those that are not zero.
            format: Name of the format of the pattern, "unstructured" or "block".
            dense_grad: As the constructor's.
            block: As the constructor's.

        Returns:
            The layer; `module` is left as it is.

        Raises:
            ValueError: For a weight with NaN or infinite elements, without nonzeros or, without a mask, without zeros
                (blocks of them); and for formats and blocks as the constructor.
            TypeError: For a module that is not a torch.nn.Conv1d, and a block that is not two int.
        """
        pattern = pattern_of_dense(cls, module, mask, format, block)
        return cls(**options_of(module), dense_grad=dense_grad, format=format, block=block)._fill_from(module, pattern)

    def to_dense(self) -> torch.nn.Conv1d:
        """The dense layer.

        Returns:
            A torch.nn.Conv1d with copies of the parameters; with `dense_grad`, zero outside of the pattern.
        """
        dense = torch.nn.Conv1d(**options_of(self))
        copy_parameters(self, dense, self._used_weight())
        return dense
