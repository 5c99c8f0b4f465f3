# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""What a weight format is: the one interface by which modules and conversion know any of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ..checks import check_mask, check_tensor

if TYPE_CHECKING:
    from typing_extensions import Self

_MOST = 2**31 - 1


class SparseFormat:
    """A weight of which only some elements are stored: a pattern, and the values at it.

        weight.flatten()[flat_indices] = values, and zero elsewhere

    Immutable; `with_values` makes another weight with the same pattern. A format implements what raises
    NotImplementedError here, and has a row in `sparsekernels.formats.FORMATS`. Its pattern may store more than a mask
    asks for (whole blocks, say), never less.

    Attributes:
        format: The name under which `FORMATS` has it.
        option_names: What `of_mask`, `full` and `from_dense` have to be told beside what they are given.
        block_size: Rows and columns of the blocks that are stored as a whole; None where single elements are.
        shape: Of the dense weight: [out, in] of a linear layer, [out, in/groups, k] or [out, in/groups, kh, kw] of a
            convolution.
        values: What is stored, in the format's own order.
    """

    format: ClassVar[str]
    option_names: ClassVar[tuple[str, ...]] = ()
    block_size: tuple[int, int] | None = None
    shape: tuple[int, ...]
    values: Tensor

    # Made of dense tensors

    @classmethod
    def of_mask(cls, mask: Tensor, dtype: torch.dtype = torch.float32, **options: Any) -> Self:
        """The pattern of a mask. Its values are placeholders: one zero, expanded.

        Args:
            mask: bool, shape of the weight: which elements are stored.
            dtype: Of the values.
            **options: What else the format has to be told, by the names of `option_names`.

        Returns:
            The weight, on the device of `mask`.
        """
        raise NotImplementedError

    @classmethod
    def full(cls, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, **options: Any) -> Self:
        """The pattern that stores every element, also on the meta device. Its values are those of `of_mask`.

        Args:
            shape: Of the weight.
            dtype: Of the values.
            device: Of all tensors.
            **options: As those of `of_mask`.

        Returns:
            The weight.
        """
        raise NotImplementedError

    @classmethod
    def from_dense(cls, weight: Tensor, mask: Tensor | None = None, **options: Any) -> Self:
        """The elements of a dense weight that are not zero, or, with a mask, those where it is True.

        The values are a copy without autograd history. To train a dense weight through its pattern, use
        `pattern.with_values(pattern.values_of(weight))`, or `sparsekernels.nn`.

        Args:
            weight: [out, in], [out, in/groups, k] or [out, in/groups, kh, kw]; float32, bfloat16, float16 or float64.
            mask: bool, shape and device of `weight`; may be all True or all False. Zeros under it are stored.
            **options: Of the format, as `of_mask` takes them.

        Returns:
            The weight in this format.

        Raises:
            TypeError: For a type or dtype that is not accepted.
            ValueError: For a shape or device that is not, for NaN or infinite elements among those that are stored,
                and, without a mask, for a weight without nonzeros and one without zeros.
        """
        if not isinstance(weight, Tensor):
            raise TypeError(f"from_dense: expected weight to be a torch.Tensor, got {type(weight).__name__}")
        check_tensor("from_dense", "weight", weight)
        cls._checked_shape(tuple(weight.shape))
        if mask is None:
            dense = weight.detach()
            if not torch.isfinite(dense).all():
                raise ValueError("from_dense: expected weight of finite elements, got NaN or infinite ones")
            pattern = cls.of_mask(dense != 0, weight.dtype, **options)
            if pattern.nnz == 0:
                raise ValueError(
                    "from_dense: expected weight with nonzeros, got none; pass a mask to say what is stored"
                )
            if pattern.nnz == weight.numel():
                raise ValueError(
                    f"from_dense: expected weight with {pattern._zeros}, got none; prune it first"
                    " (sparsekernels.pruning), take another format, or pass a mask"
                )
        else:
            check_mask("from_dense", mask)
            if mask.shape != weight.shape:
                raise ValueError(
                    f"from_dense: expected mask of shape {list(weight.shape)} like weight, got {list(mask.shape)}"
                )
            if mask.device != weight.device:
                raise ValueError(f"from_dense: expected mask on {weight.device} like weight, got {mask.device}")
            pattern = cls.of_mask(mask, weight.dtype, **options)
        result = pattern.with_values(pattern.values_of(weight.detach()))
        if not torch.isfinite(result.values).all():
            raise ValueError("from_dense: expected weight of finite elements under mask, got NaN or infinite ones")
        return result

    @property
    def _zeros(self) -> str:
        """What a weight without any is stored whole."""
        return "zeros" if self.block_size is None else "blocks of {}x{} without nonzeros".format(*self.block_size)

    @classmethod
    def _checked_shape(cls, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Raise ValueError unless this is the shape of a weight that 32 bits can index."""
        name, shape = cls.__name__, tuple(int(size) for size in shape)
        if len(shape) not in (2, 3, 4):
            raise ValueError(
                f"{name}: expected weight of shape [out, in] of a linear layer, [out, in/groups, k] or"
                f" [out, in/groups, kh, kw] of a convolution, got {list(shape)}"
            )
        if min(shape) < 1:
            raise ValueError(f"{name}: expected weight of a shape with sizes of at least 1, got {list(shape)}")
        if math.prod(shape) > _MOST:
            raise ValueError(
                f"{name}: expected weight of at most {_MOST} elements with its zeros (indices are of 32 bits), got"
                f" {math.prod(shape)} in shape {list(shape)}"
            )
        return shape

    # What it is

    @property
    def options(self) -> dict[str, Any]:
        """By the names of `option_names`, what `of_mask` and the like make a weight of this kind with."""
        return {}

    @property
    def nnz(self) -> int:
        """How many elements are stored."""
        return self.values.numel()

    @property
    def density(self) -> float:
        """The part of the elements that is stored, 0 to 1."""
        return self.nnz / math.prod(self.shape)

    @property
    def sparsity(self) -> float:
        """1 - density."""
        return 1.0 - self.density

    @property
    def device(self) -> torch.device:
        return self.values.device

    @property
    def dtype(self) -> torch.dtype:
        return self.values.dtype

    @property
    def is_conv(self) -> bool:
        """Whether this is a convolution's weight, of three or four dimensions, and not a linear layer's."""
        return len(self.shape) > 2

    @property
    def flat_indices(self) -> Tensor:
        """int64 [nnz]: where in `weight.flatten()` each value is."""
        raise NotImplementedError

    @property
    def mask(self) -> Tensor:
        """bool, shape of the weight: True where an element is stored."""
        mask = torch.zeros(math.prod(self.shape), dtype=torch.bool, device=self.device)
        mask[self.flat_indices] = True
        return mask.view(self.shape)

    def transposed(self, groups: int = 1) -> Any:
        """The pattern by input channel, as the kernel of the gradient to the input reads it. Computed once.

        Args:
            groups: Of the convolution.

        Returns:
            The tensors of the transposed pattern, as the format arranges them; none by default.

        Raises:
            ValueError: Where `groups` does not divide the output channels.
        """
        return ()

    def cached_transposed(self, groups: int) -> tuple[Tensor, ...]:
        """`transposed`, without computing it.

        Args:
            groups: Of the convolution.

        Returns:
            The tensors of `transposed(groups)`, or none where it was not called before.
        """
        return ()

    def by_elements(self) -> tuple[Any, Tensor | None] | None:
        """The same elements as an `Unstructured`, on whose kernels a format runs that has none of its own.

        Returns:
            The pattern, and int64 [nnz]: where in `values` each of its values is, None where they are in its order.
            None for a format that is not to be run in this way, which is the default.
        """
        return None

    # Into and out of dense tensors

    def to_dense(self) -> Tensor:
        """The weight with its zeros. Differentiable to `values`.

        Returns:
            A dense tensor of the shape of the weight.
        """
        dense = self.values.new_zeros(math.prod(self.shape))
        return dense.scatter(0, self.flat_indices, self.values).view(self.shape)

    def values_of(self, weight: Tensor) -> Tensor:
        """The elements of a dense weight at this pattern. Differentiable to `weight`.

        Args:
            weight: Dense, of the shape of this weight.

        Returns:
            [nnz], a copy.
        """
        return weight.flatten().index_select(0, self.flat_indices)

    def with_values(self, values: Tensor) -> Self:
        """The same pattern with other values. What was derived from the pattern is shared.

        Args:
            values: [nnz], of any accepted dtype.

        Returns:
            The new weight.
        """
        raise NotImplementedError

    def to(
        self, device: torch.device | str | int | torch.dtype | None = None, dtype: torch.dtype | None = None
    ) -> Self:
        """The weight on another device, in another dtype, or both.

        Args:
            device: The device, or a dtype as in torch.Tensor.to.
            dtype: Of the values.

        Returns:
            The new weight; itself where nothing changes.
        """
        raise NotImplementedError

    # Into and out of files

    def to_tensors(self) -> dict[str, Tensor]:
        """The weight as plain tensors, for torch.save, safetensors and the like.

        Returns:
            The tensors by name.
        """
        raise NotImplementedError

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """The weight that `to_tensors` took apart. Nothing is trusted.

        Args:
            tensors: What `to_tensors` returned.

        Returns:
            The weight.

        Raises:
            ValueError: For what is missing or corrupt.
            TypeError: For what is not a tensor.
        """
        raise NotImplementedError

    def validate(self) -> None:
        """Check that the parts are what the class promises; reads every element.

        Raises:
            TypeError: For a type or dtype that is not accepted.
            ValueError: For shapes, devices and contents that are not.
        """
        raise NotImplementedError
