"""Fine-grained sparse weights: any pattern of zeros, stored as compressed rows."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..checks import check_tensor
from .transposed import Transposed, transpose

_SHAPES = "expected [out, in] of a linear layer and [out, in/groups, kh, kw] of a convolution"
_MOST = 2**31 - 1


class Plans(dict[Any, int]):
    """The numbers of an operation's plans of one pattern, by what they depend on beside it. They go when this goes."""


class _Shared:
    """What follows from a pattern, worked out once and shared by every weight that has this pattern."""

    def __init__(self) -> None:
        self.flat_indices: Tensor | None = None
        self.transposed: dict[int, Transposed] = {}
        self.plans = Plans()


@dataclass(frozen=True, eq=False, repr=False)
class Unstructured:
    """A weight of which only some elements are stored: the compressed rows of `weight.flatten(1)`.

        weight.flatten(1)[o, col_indices[k]] = values[k]   for k in crow_indices[o] .. crow_indices[o + 1] - 1

    and zero elsewhere. The weight is [out, in] of a linear layer or [out, in/groups, kh, kw] of a convolution, whose
    columns are (i * kh + ky) * kw + kx. A stored element may be zero.

    shape         of the dense weight
    crow_indices  int32 [out + 1], where each row starts in the other two
    col_indices   int32 [nnz], strictly ascending in each row
    values        [nnz]; float32, bfloat16, float16 or float64; may require a gradient

    Immutable: `with_values` makes another weight with the same pattern. Make one with `from_dense`; the constructor is
    for indices from elsewhere and validates them. Raises TypeError for a type or dtype that is not accepted, ValueError
    for shapes, devices and contents that are not, and for more than 2^31 - 1 elements, zeros included.
    """

    shape: tuple[int, ...]
    crow_indices: Tensor
    col_indices: Tensor
    values: Tensor
    _shared: _Shared = field(init=False)

    def __post_init__(self) -> None:
        self.__dict__.update(shape=_checked_shape(self.shape), _shared=_Shared())
        self.validate()

    @classmethod
    def _of(
        cls, shape: tuple[int, ...], crow_indices: Tensor, col_indices: Tensor, values: Tensor, shared: _Shared
    ) -> Unstructured:
        """Without validation, for parts that are known to fit."""
        weight = object.__new__(cls)
        weight.__dict__.update(
            shape=shape, crow_indices=crow_indices, col_indices=col_indices, values=values, _shared=shared
        )
        return weight

    @classmethod
    def from_dense(cls, weight: Tensor, mask: Tensor | None = None) -> Unstructured:
        """The elements of `weight` that are not zero, or, with a mask, those where it is True, zeros among them.

        mask: bool, shape and device of `weight`; may be all True or all False.

        The values are a copy without autograd history. To train a dense weight through its pattern, use
        `pattern.with_values(pattern.values_of(weight))`, or `sparsekernels.nn`.

        Raises ValueError for a weight with NaN or infinite elements among those that are stored, and, without a mask,
        for one without nonzeros and one without zeros.
        """
        if not isinstance(weight, Tensor):
            raise TypeError(f"from_dense: weight is of type {type(weight).__name__}, expected a torch.Tensor")
        check_tensor("from_dense", "weight", weight)
        shape = _checked_shape(tuple(weight.shape))
        if mask is None:
            dense = weight.detach()
            if not torch.isfinite(dense).all():
                raise ValueError("from_dense: weight has NaN or infinite elements, expected finite ones")
            stored = dense != 0
            pattern = cls.of_mask(stored, weight.dtype)
            if pattern.nnz == 0:
                raise ValueError("from_dense: weight has no nonzeros; pass a mask to say which elements are stored")
            if pattern.nnz == weight.numel():
                raise ValueError(
                    "from_dense: weight has no zeros, so there is nothing to gain; prune it first, or pass a mask"
                )
        else:
            if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
                given = f"of dtype {mask.dtype}" if isinstance(mask, Tensor) else f"of type {type(mask).__name__}"
                raise TypeError(f"from_dense: mask is {given}, expected a tensor of dtype torch.bool")
            if mask.shape != weight.shape:
                raise ValueError(
                    f"from_dense: mask has shape {list(mask.shape)}, expected that of weight, {list(weight.shape)}"
                )
            if mask.device != weight.device:
                raise ValueError(f"from_dense: mask is on {mask.device}, expected {weight.device} as weight")
            pattern = cls.of_mask(mask, weight.dtype)
        result = pattern.with_values(pattern.values_of(weight.detach()))
        if not torch.isfinite(result.values).all():
            raise ValueError("from_dense: weight has NaN or infinite elements under mask, expected finite ones")
        assert result.shape == shape
        return result

    @classmethod
    def of_mask(cls, mask: Tensor, dtype: torch.dtype = torch.float32) -> Unstructured:
        """The pattern of a mask. Its values are placeholders of `dtype`: one zero, expanded."""
        shape = _checked_shape(tuple(mask.shape))
        rows = mask.detach().reshape(shape[0], -1)
        flat = rows.flatten().nonzero()[:, 0]
        crow = torch.zeros(shape[0] + 1, dtype=torch.int32, device=mask.device)
        crow[1:] = rows.sum(1).cumsum(0)
        shared = _Shared()
        shared.flat_indices = flat
        values = torch.zeros((), dtype=dtype, device=mask.device).expand(flat.numel())
        return cls._of(shape, crow, (flat % rows.size(1)).int(), values, shared)

    @classmethod
    def full(cls, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Unstructured:
        """The pattern that stores every element, also on the meta device. Its values are those of `of_mask`."""
        shape = _checked_shape(shape)
        columns = math.prod(shape[1:])
        crow = torch.arange(0, math.prod(shape) + 1, columns, dtype=torch.int32, device=device)
        col = torch.arange(columns, dtype=torch.int32, device=device).repeat(shape[0])
        values = torch.zeros((), dtype=dtype, device=device).expand(col.numel())
        return cls._of(shape, crow, col, values, _Shared())

    # What it is

    @property
    def nnz(self) -> int:
        """How many elements are stored."""
        return self.col_indices.numel()

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
        """Whether this is a convolution's weight, of four dimensions, and not a linear layer's."""
        return len(self.shape) == 4

    @property
    def flat_indices(self) -> Tensor:
        """int64 [nnz]: where in `weight.flatten()` each value is. Ascending."""
        flat = self._shared.flat_indices
        if flat is None:
            flat = self.flat_positions()
            if not torch.compiler.is_compiling():  # a traced tensor must not outlive its graph
                self._shared.flat_indices = flat
        return flat

    def flat_positions(self) -> Tensor:
        """`flat_indices`, worked out anew."""
        rows = torch.arange(self.shape[0], device=self.device) * math.prod(self.shape[1:])
        starts = torch.repeat_interleave(rows, self.crow_indices.diff(), output_size=self.nnz)
        return starts + self.col_indices

    def transposed(self, groups: int = 1) -> Transposed:
        """The pattern by input channel, for the gradient to the input. Worked out once a pattern and `groups`.

        Raises ValueError where the output channels do not divide into `groups`.
        """
        found = self._shared.transposed.get(groups)
        if found is None:
            if groups < 1 or self.shape[0] % groups:
                raise ValueError(f"transposed: groups is {groups}, expected a divisor of the {self.shape[0]} outputs")
            taps = math.prod(self.shape[2:])
            found = transpose(self.crow_indices, self.col_indices, self.shape[1] * groups, taps, groups)
            self._shared.transposed[groups] = found
        return found

    def cached_transposed(self, groups: int) -> tuple[Tensor, ...]:
        """The three tensors of `transposed(groups)`, or none where they were not asked for before."""
        return tuple(self._shared.transposed.get(groups, ()))

    def __repr__(self) -> str:
        return (
            f"Unstructured(shape={self.shape}, nnz={self.nnz}, density={self.density:.4g}, dtype={self.dtype},"
            f" device='{self.device}')"
        )

    @property
    def plans(self) -> Plans:
        """Kept for the operations, which know what these are."""
        return self._shared.plans

    # Into and out of dense tensors

    def to_dense(self) -> Tensor:
        """The weight with its zeros. Differentiable to `values`."""
        dense = self.values.new_zeros(math.prod(self.shape))
        return dense.scatter(0, self.flat_indices, self.values).view(self.shape)

    @property
    def mask(self) -> Tensor:
        """bool, shape of the weight: True where an element is stored."""
        mask = torch.zeros(math.prod(self.shape), dtype=torch.bool, device=self.device)
        mask[self.flat_indices] = True
        return mask.view(self.shape)

    def values_of(self, weight: Tensor) -> Tensor:
        """The elements of a dense weight where this pattern has its own: [nnz], a copy. Differentiable to `weight`."""
        if tuple(weight.shape) != self.shape:
            raise ValueError(f"values_of: weight has shape {list(weight.shape)}, expected {list(self.shape)}")
        if self.nnz == weight.numel():
            return weight.reshape(-1).clone()
        return weight.flatten().gather(0, self.flat_indices)

    def with_values(self, values: Tensor) -> Unstructured:
        """The same pattern with other values, of any accepted dtype. What follows from the pattern is shared."""
        self._check_values("with_values", values)
        return self._of(self.shape, self.crow_indices, self.col_indices, values, self._shared)

    def to(
        self, device: torch.device | str | int | torch.dtype | None = None, dtype: torch.dtype | None = None
    ) -> Unstructured:
        """On another device, in another dtype, or both; itself where it is so already."""
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        values = self.values.to(device=device, dtype=dtype)
        if values.device == self.device:
            return self if values is self.values else self.with_values(values)
        crow, col = (indices.to(values.device) for indices in (self.crow_indices, self.col_indices))
        return self._of(self.shape, crow, col, values, _Shared())

    # Into and out of files

    def to_tensors(self) -> dict[str, Tensor]:
        """Plain tensors, for torch.save, safetensors and the like: shape (int64), crow_indices, col_indices, values."""
        return {
            "shape": torch.tensor(self.shape, dtype=torch.int64),
            "crow_indices": self.crow_indices,
            "col_indices": self.col_indices,
            "values": self.values.detach(),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Unstructured:
        """The weight that `to_tensors` took apart. Nothing is trusted.

        Raises ValueError for what is missing or corrupt, TypeError for what is not a tensor.
        """
        names = ("shape", "crow_indices", "col_indices", "values")
        missing = [name for name in names if name not in tensors]
        if missing:
            raise ValueError(f"from_tensors: {', '.join(missing)} missing, expected {', '.join(names)}")
        for name in names:
            if not isinstance(tensors[name], Tensor):
                raise TypeError(
                    f"from_tensors: {name} is of type {type(tensors[name]).__name__}, expected a torch.Tensor"
                )
        shape = tensors["shape"]
        if shape.dtype != torch.int64 or shape.dim() != 1:
            raise ValueError(
                f"from_tensors: shape has dtype {shape.dtype} and {shape.dim()} dimensions, expected torch.int64, 1"
            )
        try:
            return cls(tuple(shape.tolist()), *(tensors[name] for name in names[1:]))
        except TypeError as error:  # a file's fault, not the caller's
            raise ValueError(str(error)) from None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.shape, self.crow_indices, self.col_indices, self.values)

    def __deepcopy__(self, memo: dict[int, Any]) -> Unstructured:
        """Values of its own; the pattern, which nobody changes, is shared."""
        return self._of(self.shape, self.crow_indices, self.col_indices, copy.deepcopy(self.values, memo), self._shared)

    # What is accepted

    def validate(self) -> None:
        """Raise TypeError or ValueError, in words, unless this is what the class promises; reads every element."""
        check_tensor("Unstructured", "values", self.values)
        out, columns = self.shape[0], math.prod(self.shape[1:])
        for name, indices in (("crow_indices", self.crow_indices), ("col_indices", self.col_indices)):
            if not isinstance(indices, Tensor):
                raise TypeError(f"Unstructured: {name} is of type {type(indices).__name__}, expected a torch.Tensor")
            if indices.dtype != torch.int32 or indices.layout != torch.strided:
                raise TypeError(
                    f"Unstructured: {name} has dtype {indices.dtype} and layout {indices.layout}, expected"
                    " torch.int32 and torch.strided"
                )
            if indices.dim() != 1 or not indices.is_contiguous():
                raise ValueError(
                    f"Unstructured: {name} has shape {list(indices.shape)} and strides {list(indices.stride())},"
                    " expected one contiguous dimension"
                )
            if indices.device != self.values.device:
                raise ValueError(
                    f"Unstructured: {name} is on {indices.device}, expected {self.values.device} as values"
                )
        if self.crow_indices.numel() != out + 1:
            raise ValueError(
                f"Unstructured: crow_indices has {self.crow_indices.numel()} elements, expected one more than the"
                f" {out} rows"
            )
        self._check_values("Unstructured", self.values)
        if self.values.device.type != "meta":
            check_contents("Unstructured", self.crow_indices, self.col_indices, columns)
            if not torch.isfinite(self.values.detach()).all():
                raise ValueError("Unstructured: values has NaN or infinite elements, expected finite ones")

    def _check_values(self, where: str, values: Tensor) -> None:
        check_tensor(where, "values", values)
        if values.shape != self.col_indices.shape:
            raise ValueError(
                f"{where}: values has shape {list(values.shape)}, expected that of col_indices, [{self.nnz}]"
            )
        if values.device != self.col_indices.device:
            raise ValueError(
                f"{where}: values is on {values.device}, expected {self.col_indices.device} as col_indices"
            )


def _checked_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    shape = tuple(int(size) for size in shape)
    if len(shape) not in (2, 4):
        raise ValueError(f"Unstructured: the weight has shape {list(shape)}, {_SHAPES}")
    if min(shape) < 1:
        raise ValueError(f"Unstructured: the weight has shape {list(shape)}, expected sizes of at least 1")
    if math.prod(shape) > _MOST:
        raise ValueError(
            f"Unstructured: the weight has shape {list(shape)}, {math.prod(shape)} elements with its zeros; expected"
            f" at most {_MOST} (indices are of 32 bits)"
        )
    return shape


def check_contents(where: str, crow: Tensor, col: Tensor, columns: int) -> None:
    """Raise ValueError unless these are the compressed rows of a matrix of so many columns, each row ascending."""
    nnz = col.numel()
    first, last = int(crow[0]), int(crow[-1])
    if (first, last) != (0, nnz):
        raise ValueError(
            f"{where}: crow_indices goes from {first} to {last}, expected from 0 to the {nnz} of col_indices"
        )
    if (crow[1:] < crow[:-1]).any():
        raise ValueError(f"{where}: crow_indices descends, expected one that never does")
    if nnz == 0:
        return
    low, high = int(col.min()), int(col.max())
    if low < 0 or high >= columns:
        raise ValueError(f"{where}: col_indices goes from {low} to {high}, expected 0 to {columns - 1}")
    row_starts = torch.zeros(nnz + 1, dtype=torch.bool, device=col.device)
    row_starts[crow.long()] = True
    if ((col[1:] <= col[:-1]) & ~row_starts[1:nnz]).any():
        repeated = bool(((col[1:] == col[:-1]) & ~row_starts[1:nnz]).any())
        raise ValueError(
            f"{where}: col_indices {'has a column twice in a row' if repeated else 'is not sorted'}, expected"
            " strictly ascending in each row"
        )
