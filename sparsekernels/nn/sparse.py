# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Linear layers and convolutions with a sparse weight, fine-grained or in blocks.

More than 400 lines: a third of them are the docstrings of two public classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from .._torch import is_exported_to_onnx
from ..blocks import check_block
from ..dispatch import is_transformed
from ..formats import FORMATS, SparseFormat
from ..ops.convolution import shape_of_images
from ..ops.sparse_conv2d.by_format import prepare
from ..ops.sparse_conv2d.on_gpu import is_for_torch_here, kept_mask, with_dense_gradient, with_gradient_at
from ..ops.sparse_conv2d.op import conv2d, linear
from ..ops.sparse_conv2d.outside import Guard, Outside
from .replacement import Replacement, check_dense, copy_parameters, dense_or_none, options_of, share_parameters


class SparseLayer(Replacement):
    """A dense weight of which only the elements of a pattern are used. What the modules below have in common."""

    dense_grad: bool
    dense_product: bool = False
    pattern: Any  # a SparseFormat of those that the operations take

    _choice = ("pattern",)
    _remedy = (
        "set_pattern() makes them part of the pattern; where they are to stay zero, apply the masks after the"
        " optimizer's step"
    )

    def _start(self, dense_grad: bool, format: str, block: tuple[int, int] | None) -> None:
        self.dense_grad, self.dense_product = dense_grad, False
        self._guard = Guard()
        kind, options = _format_called(format, block, type(self).__name__)
        options = self._over_weight(options)
        self.pattern = kind.full(tuple(self.weight.shape), self.weight.dtype, self.weight.device, **options)

    @classmethod
    def _over_weight(cls, options: dict[str, Any]) -> dict[str, Any]:
        """Options of a format, of outputs and inputs, for the dimensions of `weight`."""
        return options

    def _full_pattern(self) -> SparseFormat:
        """Every weight, in the format that it is in."""
        weight, pattern = self.weight, self.pattern
        return type(pattern).full(tuple(weight.shape), weight.dtype, weight.device, **pattern.options)  # type: ignore[no-any-return]

    @property
    def format(self) -> str:
        """The name of the format that `pattern` is in."""
        return self.pattern.format

    @property
    def places(self) -> SparseFormat:
        """`pattern`."""
        return self.pattern  # type: ignore[no-any-return]

    @property
    def mask(self) -> Tensor:
        """bool, shape of `weight`: True where a weight is used."""
        return self.pattern.mask

    @property
    def sparse_weight(self) -> Any:
        """The weights at the pattern, differentiable to `weight`."""
        return self.pattern.with_values(self.pattern.values_of(self.weight))

    def set_pattern(self, mask: Tensor | None = None) -> None:
        """Use the weights where `mask` is True, and no others; without a mask those that are not zero.

        A format of blocks uses each block in which there is such a weight as a whole.

        The other weights become zero, so one that is taken up again starts from zero. An optimizer's momentum is not
        known here: until it is reset it moves a weight that was dropped, which the layer then computes with.

        Args:
            mask: bool, shape of `weight`, on its device. All True and all False are fine.

        Raises:
            TypeError: For a mask that is not a bool tensor.
            ValueError: For another shape or device.
        """
        weight = self.weight.detach()
        if mask is None:
            mask = weight != 0
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            given = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise TypeError(f"set_pattern: expected mask to be a tensor of dtype torch.bool or None, got {given}")
        if mask.shape != weight.shape or mask.device != weight.device:
            raise ValueError(
                f"set_pattern: expected mask of shape {list(weight.shape)} on {weight.device} like weight, got"
                f" {list(mask.shape)} on {mask.device}"
            )
        pattern = type(self.pattern).of_mask(mask, weight.dtype, **self.pattern.options)
        with torch.no_grad():
            self.weight.masked_fill_(~(mask if pattern.block_size is None else pattern.mask), 0)
        self._adopt(pattern)

    def _adopt(self, pattern: SparseFormat) -> None:
        placeholders = pattern.values.new_zeros(()).expand(pattern.nnz)  # the values that count are in `weight`
        self.pattern = pattern.with_values(placeholders)
        self._guard.forget()
        # torch.compile cannot keep what it works out while it traces, so that is done before.
        if pattern.device.type != "meta":
            weight = self._kept_weight()
            prepare(self.pattern, getattr(self, "groups", 1), weight is not None and weight.requires_grad)
            if self.dense_product:
                kept_mask(self.pattern)

    def _parameters_of(self, input: Tensor) -> tuple[Tensor, Tensor | None]:
        """`weight` and `bias`. Where they are parameters it looks there, which spares a microsecond of a call."""
        own = self._parameters
        if type(input) is Tensor and "weight" in own and "bias" in own:
            return own["weight"], own["bias"]  # type: ignore[return-value]
        return self.weight, self.bias  # type: ignore[return-value]

    def _with_dense_grad(self, weight: Tensor) -> tuple[Tensor, Guard | None]:
        """With `dense_grad`, what to compute with; a guard where the weight does not fit the pattern."""
        if weight is None:
            return weight, self._guard
        if not isinstance(weight, Tensor):  # torch.fx's Proxy
            return weight.reshape(shape_of_images(self.pattern.shape)), None
        if weight.shape != self.pattern.shape:
            return weight, self._guard
        if not torch.is_grad_enabled() or weight.requires_grad or is_transformed():
            return weight, None
        return self.pattern.values_of(weight), None

    def _is_for_torch(self, weight: Tensor) -> bool:
        """Whether torch multiplies by a dense weight, in which `pattern` is."""
        if not self.dense_product:
            return not self.dense_grad and is_for_torch_here(self.pattern, weight)
        return (
            isinstance(weight, Tensor) and weight.shape == self.pattern.shape and weight.device == self.pattern.device
        )

    def _weight_for_torch(self, weight: Tensor) -> Tensor:
        """What it then multiplies by, with the gradients that the layer promises."""
        return with_dense_gradient(self.pattern, weight) if self.dense_grad else with_gradient_at(self.pattern, weight)

    def outside(self) -> int:
        """How many elements of `weight` outside of the pattern are not zero: then the layer computes with all of it.

        Returns:
            The number; 0 with `dense_grad`, where nothing reads them until `set_pattern`; negative where the weight
            cannot be compared with the pattern: another shape or device, or not an ordinary tensor.
        """
        return self._outside_of(self.weight)

    def _outside_of(self, weight: Tensor) -> int:
        if self.dense_grad and weight.shape == self.pattern.shape:
            return 0
        return self._guard.outside(self.pattern, weight)

    def _used_weight(self) -> Tensor:
        """What the layer computes with, without autograd history."""
        return self._shown_weight().detach()

    def _shown_weight(self) -> Tensor:
        """What the layer computes with, dense."""
        weight = self.weight
        if not self.dense_grad or weight.shape != self.pattern.shape:
            return weight
        return torch.where(self.mask, weight, 0)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        weight = self._kept_weight()
        if weight is None:
            return self
        if self.pattern.device.type == "meta" and not weight.is_meta:
            self.pattern = self._full_pattern()  # nothing is known of a pattern that had no data
        elif (self.pattern.device, self.pattern.dtype) != (weight.device, weight.dtype):
            self._adopt(self.pattern.to(weight.device, weight.dtype))
        return self

    def hand_back(self) -> None:
        """Sets what `dense_grad` let an optimizer move outside of the pattern to zero, in place.

        Through `data`: autograd, which reads none of it either, has no reason to refuse a graph that was made before.
        """
        weight = self.weight
        if self._hides_nonzeros():
            with torch.inference_mode(weight.is_inference()):
                weight.data.masked_fill_(~self.mask & (weight.data != 0), 0)  # a zero keeps its sign

    def _hides_nonzeros(self) -> bool:
        """Whether there are some that the layer does not read, nor is to show."""
        weight, pattern = self.weight, self.pattern
        if not self.dense_grad or type(weight) is not torch.nn.Parameter or weight.is_meta:
            return False
        return self._guard.outside(pattern, weight) > 0

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if not keep_vars and self._hides_nonzeros():
            destination[prefix + "weight"] = self._used_weight()

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        errors = len(error_msgs)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if prefix + "weight" not in state_dict or self.weight.is_meta or len(error_msgs) > errors:
            return
        # by load_state_dict(assign=True), or where another weight was assigned before
        if self.pattern.device != self.weight.device or self.pattern.shape != self.weight.shape:
            self.pattern = self._full_pattern()
        stored = self.weight.detach() != 0
        full = self.pattern.nnz == self.weight.numel()
        if stored.any() and (full or (stored & ~self.mask).any()):
            self.set_pattern(stored)

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        if "_pattern" in state:  # a whole module of before `pattern` was public
            state["pattern"] = state.pop("_pattern")
        super().__setstate__(state)
        self._adopt(self.pattern)  # what follows from a pattern is not pickled

    @classmethod
    def sharing(cls, module: Any, format: str = "unstructured", block: tuple[int, int] | None = None) -> Any:
        """A sparse layer of the nonzeros of `module`, whose parameters it shares.

        Args:
            module: A layer of the dense class that this one derives from, torch.nn.Linear say.
            format: Name of the format of the pattern.
            block: Rows and columns of a block, for the format "block".

        Returns:
            The layer.

        Raises:
            TypeError: For a module of another class, and a block that is not two int.
            ValueError: For an unknown format, and a block that is missing, not accepted or for another format.
        """
        check_dense(f"{cls.__name__}.sharing", module, cls)
        kind, options = _format_called(format, block, f"{cls.__name__}.sharing")
        result = cls(**options_of(module), format=format, block=block)
        share_parameters(module, result)
        result._adopt(kind.from_dense(module.weight, **cls._over_weight(options)))
        return result

    def _fill_from(self, module: Any, pattern: SparseFormat) -> Any:
        """Takes copies of the parameters of `module`, what is outside of the pattern as zero."""
        copy_parameters(module, self, torch.where(pattern.mask, module.weight.detach(), 0))
        self._adopt(pattern)
        return self

    def extra_repr(self) -> str:
        blocks = "" if self.pattern.block_size is None else ", block={}x{}".format(*self.pattern.block_size)
        return f"{super().extra_repr()}, sparsity={self.pattern.sparsity:.4g}{blocks}"


def _format_called(name: str, block: tuple[int, int] | None, where: str) -> tuple[type[SparseFormat], dict[str, Any]]:
    """The class of a format, and the options that it takes."""
    if not isinstance(name, str) or name not in FORMATS:
        raise ValueError(f"{where}: expected format to be {', '.join(map(repr, FORMATS))}, got {name!r}")
    if "block" not in FORMATS[name].option_names:
        if block is not None:
            raise ValueError(f"{where}: expected no block with format {name!r}, got {block!r}")
        return FORMATS[name], {}
    if block is None:
        raise ValueError(f"{where}: expected block, (rows, columns), with format {name!r}, got None")
    return FORMATS[name], {"block": check_block(where, block)}


def pattern_of_dense(
    cls: Any, module: Any, mask: Tensor | None, format: str, block: tuple[int, int] | None
) -> SparseFormat:
    """What `from_dense` of a class makes the pattern of a layer."""
    name = cls.__name__
    kind, options = _format_called(format, block, f"{name}.from_dense")
    check_dense(f"{name}.from_dense", module, cls)
    if isinstance(module, NonDynamicallyQuantizableLinear):
        raise TypeError(
            f"{name}.from_dense: expected module to be a layer that is called, got the out_proj of a"
            " torch.nn.MultiheadAttention, which multiplies by its weight itself"
        )
    return kind.from_dense(cast(Any, module).weight, mask, **cls._over_weight(options))


class SparseLinear(SparseLayer, torch.nn.Linear):
    r"""Drop-in for `torch.nn.Linear` of which only a pattern of weights is used: the others cost nothing.

        y = x W^T + b   with W zero outside of the pattern

    The constructor is torch's and uses every weight; `from_dense` takes a pruned layer over, `set_pattern` changes
    which weights are used. `weight` keeps its dense shape, zero outside of the pattern, so optimizers, checkpoints and
    DistributedDataParallel (with one pattern on all ranks) see an ordinary layer.

    It computes what the dense layer with the same parameters would. Where elements outside of the pattern are not zero
    (an adapter was merged, an optimizer moved them, the parameter is another model's as well) it computes with the
    whole weight, gradients included, and warns once; `set_pattern` takes them in. Each call looks for them, however
    they were written: docs/sparse_layers.md says how soon it finds a single one. In code of torch.compile,
    torch.export and torch.jit.trace they are an error (ValueError) when it runs.

    The pattern is not part of `state_dict`, whose keys are those of the dense layer. Saving changes no parameter.
    `load_state_dict` keeps the pattern if every loaded nonzero lies within it, or if the load fails; if not, or if
    every weight was used until then, the loaded nonzeros become the pattern. To keep stored zeros beyond that, save
    `mask` and pass it to `set_pattern`. A copy whose parameters are overwritten in place, as those of
    torch.optim.swa_utils.AveragedModel are, keeps the pattern that it had; `set_pattern()` on the copy makes it that of
    its present nonzeros.

    See `sparsekernels.sparse_linear` for shapes, dtypes, errors and promises.

    Args:
        in_features, out_features, bias, device, dtype: As torch.nn.Linear's.
        dense_grad: Whether `weight.grad` is the gradient of the dense layer, which training that lets weights grow
            needs, or zero outside of the pattern, which is faster. It can be set at any time. An optimizer then also
            moves weights outside of the pattern. As long as it is set nothing reads them: `set_pattern` makes them
            zero, and `state_dict` has a copy of the weight without them.
        format: Name of the format of the pattern, "unstructured" or "block".
        block: Rows and columns of a block, for the format "block"; see `sparsekernels.BlockSparse`.

    Attributes:
        pattern: Which weights are used. Its values are placeholders: those that count are in `weight`.
        dense_product: Whether torch multiplies by all of `weight`, zeros included, in every call: for patterns that
            hold so many weights that this is faster. Gradients are those of the layer all the same. False at first, and
            can be set at any time.
        dense_rows: For which numbers of rows calls without gradients multiply by all of `weight`, in ascending order:
            from the first number on, from the second one on by the nonzeros again, and so on. Empty but where `convert`
            measured that.

    Raises:
        TypeError: For a block that is not two int.
        ValueError: For an unknown format, and a block that is missing, not accepted or for another format.
    """

    dense_rows: tuple[int, ...] = ()

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        dense_grad: bool = False,
        format: str = "unstructured",
        block: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self._start(dense_grad, format, block)

    @classmethod
    def from_dense(
        cls,
        module: torch.nn.Linear,
        mask: Tensor | None = None,
        format: str = "unstructured",
        *,
        dense_grad: bool = False,
        block: tuple[int, int] | None = None,
    ) -> SparseLinear:
        """A sparse layer with copies of the parameters of `module`.

        Args:
            module: The layer to take over.
            mask: bool, shape of the weight: the weights that are used. None: those that are not zero. A block in which
                there is one is used as a whole.
            format: Name of the format of the pattern, "unstructured" or "block".
            dense_grad: As the constructor's.
            block: Rows and columns of a block, for the format "block".

        Returns:
            The layer; `module` is left as it is.

        Raises:
            ValueError: For a weight with NaN or infinite elements, without nonzeros or, without a mask, without zeros
                (blocks of them); and for formats and blocks as the constructor.
            TypeError: For a module that is not a torch.nn.Linear, or that is the out_proj of a
                torch.nn.MultiheadAttention, which would never call it; and for a block that is not two int.
        """
        pattern = pattern_of_dense(cls, module, mask, format, block)
        result = cls(**options_of(module), dense_grad=dense_grad, format=format, block=block)
        return result._fill_from(module, pattern)

    def to_dense(self) -> torch.nn.Linear:
        """The dense layer.

        Returns:
            A torch.nn.Linear with copies of the parameters; with `dense_grad`, zero outside of the pattern.
        """
        dense = torch.nn.Linear(self.in_features, self.out_features, self.bias is not None, "meta")
        copy_parameters(self, dense, self._used_weight())
        return dense

    def forward(self, input: Tensor) -> Tensor:
        if self.dense_rows and not self.dense_grad:
            product = dense_or_none(self, input)
            if product is not None:
                return product
        if is_exported_to_onnx(input):
            return F.linear(input, self._shown_weight(), self.bias)
        weight, bias = self._parameters_of(input)
        if self._is_for_torch(weight):
            return F.linear(input, self._weight_for_torch(weight), bias)
        used, guard = self._with_dense_grad(weight) if self.dense_grad else (weight, self._guard)
        try:
            return linear(input, self.pattern, used, bias, guard)
        except Outside:
            weight = self._dense_weight(input, weight)
        return F.linear(input, weight, bias)


class SparseConvolution(SparseLayer):
    """A convolution of any number of dimensions; `_product` is that of the class."""

    _product: ClassVar[Callable[..., Tensor]]

    def forward(self: Any, input: Tensor) -> Tensor:
        if is_exported_to_onnx(input):
            return self._conv_forward(input, self._shown_weight(), self.bias)  # type: ignore[no-any-return]
        padding: Any = self.padding
        given = input
        if self.padding_mode != "zeros":
            given = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        weight, bias = self._parameters_of(input)
        if self._is_for_torch(weight):
            return self._conv_forward(input, self._weight_for_torch(weight), bias)  # type: ignore[no-any-return]
        used, guard = self._with_dense_grad(weight) if self.dense_grad else (weight, self._guard)
        options = self.stride, padding, self.dilation, self.groups
        try:
            return self._product(given, self.pattern, used, bias, *options, guard)  # type: ignore[no-any-return]
        except Outside:
            weight = self._dense_weight(input, weight)
        return self._conv_forward(input, weight, bias)  # type: ignore[no-any-return]


class SparseConv2d(SparseConvolution, torch.nn.Conv2d):
    r"""Drop-in for `torch.nn.Conv2d` of which only a pattern of weights is used: the others cost nothing.

        y = conv2d(x, W) + b   with W zero outside of the pattern

    The constructor is torch's and uses every weight; `from_dense` takes a pruned convolution over. Pattern, nonzeros
    outside of it, `state_dict` and `dense_grad` are as in `SparseLinear`. See `sparsekernels.sparse_conv2d` for shapes,
    dtypes, errors and promises.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype: As
            torch.nn.Conv2d's.
        dense_grad: Whether `weight.grad` is the gradient of the dense layer, or zero outside of the pattern.
        format: Name of the format of the pattern, "unstructured" or "block".
        block: Rows and columns of a block, for the format "block"; see `sparsekernels.BlockSparse`.

    Attributes:
        pattern: Which weights are used. Its values are placeholders: those that count are in `weight`.

    Raises:
        TypeError: For a block that is not two int.
        ValueError: For an unknown format, and a block that is missing, not accepted or for another format.
    """

    _product = staticmethod(conv2d)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
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
        module: torch.nn.Conv2d,
        mask: Tensor | None = None,
        format: str = "unstructured",
        *,
        dense_grad: bool = False,
        block: tuple[int, int] | None = None,
    ) -> SparseConv2d:
        """A sparse convolution with copies of the parameters of `module`.

        Args:
            module: The layer to take over.
            mask: bool, shape of the weight: the weights that are used. None: those that are not zero. A block in which
                there is one is used as a whole.
            format: Name of the format of the pattern, "unstructured" or "block".
            dense_grad: As the constructor's.
            block: Rows and columns of a block, for the format "block".

        Returns:
            The layer; `module` is left as it is.

        Raises:
            ValueError: For a weight with NaN or infinite elements, without nonzeros or, without a mask, without zeros
                (blocks of them); and for formats and blocks as the constructor.
            TypeError: For a module that is not a torch.nn.Conv2d, and a block that is not two int.
        """
        pattern = pattern_of_dense(cls, module, mask, format, block)
        return cls(**options_of(module), dense_grad=dense_grad, format=format, block=block)._fill_from(module, pattern)

    def to_dense(self) -> torch.nn.Conv2d:
        """The dense layer.

        Returns:
            A torch.nn.Conv2d with copies of the parameters; with `dense_grad`, zero outside of the pattern.
        """
        dense = torch.nn.Conv2d(**options_of(self))
        copy_parameters(self, dense, self._used_weight())
        return dense
