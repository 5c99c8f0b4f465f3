# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""A linear layer that is not trained any more: of its weight the nonzeros are all that is left."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._torch import is_any_autocast_enabled
from ..dispatch import is_special
from ..ops.packed_linear import implementations
from ..ops.packed_linear.weight import PackedWeight
from ..ops.precision import COMPUTED_IN_FLOAT32

_kernel = implementations.forward


class PackedLinear(torch.nn.Linear):
    r"""A pruned `torch.nn.Linear` for inference, of which a bit for each weight and the nonzeros are kept.

        y = x W^T + b

    For up to 32 rows, which is what decoding a language model has, the CPU reads these bytes alone: at 70% zeros in
    bfloat16 a third of those of the dense weight. For more rows some of the weight at a time is unpacked, and torch
    multiplies. With AMX 3 to 16 rows in bfloat16 are multiplied on its tiles; sums are in float32 in any case, in
    another order for another number of rows, and rounded once. Results do not depend on the number of threads.

    The weight is frozen. There is no parameter of it, so an optimizer moves nothing; `weight` makes a dense copy in
    each access, which cannot be written to; `train()`, `load_state_dict` and gradients are refused. `state_dict()` has
    the dense weight as the layer that was packed did, with equal values (-0 becomes 0). `to_dense` gives a layer that
    can be trained. Weights that were stored damaged are refused when a pickled layer is read.

    Other layers make it: `PackedLinear.from_dense`.

    Attributes:
        packed: The weight as it is stored.
        bias: A parameter that requires no gradient, or None.

    Raises:
        RuntimeError: For `train()`, `load_state_dict`, and a call that would need gradients.
        TypeError: For an input of another dtype than the weight's.
        ValueError: For an input of another number of columns.
    """

    words: Tensor
    crow_indices: Tensor
    values: Tensor

    def __init__(self, packed: PackedWeight, bias: Tensor | None = None) -> None:
        if not isinstance(packed, PackedWeight):
            raise TypeError(
                f"PackedLinear: expected a PackedWeight, got {type(packed).__name__}; from_dense() takes a layer"
            )
        torch.nn.Module.__init__(self)
        self.out_features, self.in_features = packed.shape
        for name in ("words", "crow_indices", "values"):
            self.register_buffer(name, getattr(packed, name), persistent=False)
        self.register_parameter("bias", None if bias is None else torch.nn.Parameter(bias.detach(), False))
        super().train(False)

    @classmethod
    def from_dense(cls, module: torch.nn.Linear) -> PackedLinear:
        """The nonzeros of a layer.

        Args:
            module: A torch.nn.Linear, or a `SparseLinear`, in float32, bfloat16 or float16.

        Returns:
            The layer, in evaluation mode; `module` is left as it is.

        Raises:
            TypeError: For another module, and another dtype.
            ValueError: For a weight without elements, and one of 2^31 nonzeros or more.
        """
        name = f"{cls.__name__}.from_dense"
        if not isinstance(module, torch.nn.Linear):
            raise TypeError(f"{name}: expected module to be a torch.nn.Linear, got {type(module).__name__}")
        weight = module.weight.detach()
        if weight.dtype not in COMPUTED_IN_FLOAT32:
            raise TypeError(f"{name}: expected a weight of float32, bfloat16 or float16, got {weight.dtype}")
        if weight.dim() != 2 or weight.numel() == 0:
            raise ValueError(f"{name}: expected a weight [out, in] with elements, got {list(weight.shape)}")
        bias = module.bias
        return cls(PackedWeight.of(weight), None if bias is None else bias.detach().clone())

    @property
    def packed(self) -> PackedWeight:
        """The weight as it is stored."""
        return PackedWeight(self.words, self.crow_indices, self.values, self.in_features)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weight with its zeros: a copy, made in each access, that cannot be written to."""
        return self.packed.dense().as_subclass(FrozenTensor)

    @property
    def nbytes(self) -> int:
        """Of what is stored, without the bias."""
        return self.packed.nbytes

    def to_dense(self) -> torch.nn.Linear:
        """The dense layer.

        Returns:
            A torch.nn.Linear with copies of the parameters, in evaluation mode.
        """
        dense = torch.nn.Linear(self.in_features, self.out_features, self.bias is not None, "meta")
        dense.weight = torch.nn.Parameter(self.packed.dense())
        if self.bias is not None:
            dense.bias = torch.nn.Parameter(self.bias.detach().clone())
        return dense.eval()

    def forward(self, input: Tensor) -> Tensor:
        # what decoding calls, without a detour
        if (
            type(input) is Tensor
            and input.numel() <= implementations.MOST_ROWS * self.in_features
            and input.dtype is self.values.dtype
            and input.shape[-1:] == (self.in_features,)
            and input.is_cpu
            and input.dtype is not torch.float64
            and not is_special()
            and not (torch.is_grad_enabled() and (input.requires_grad or _requires_grad(self.bias)))
        ):
            output: Tensor = _kernel(input, self.words, self.crow_indices, self.values, self.bias)
            return output
        return self._general(input)

    def _general(self, input: Tensor) -> Tensor:
        if input.dim() == 0 or input.shape[-1] != self.in_features:
            raise ValueError(f"PackedLinear: expected input [*, {self.in_features}], got {list(input.shape)}")
        if torch.is_grad_enabled() and (input.requires_grad or _requires_grad(self.bias)):
            raise RuntimeError(
                "PackedLinear: expected a call without gradients, the weight is frozen; call it under torch.no_grad(),"
                " or train what to_dense() gives"
            )
        packed = self.packed
        bias: Tensor | None = self.bias
        kind = input.device.type
        if is_any_autocast_enabled() and torch.is_autocast_enabled(kind) and input.dtype is not torch.float64:
            dtype = torch.get_autocast_dtype(kind)
            packed = packed._replace(values=packed.values.to(dtype))
            input, bias = input.to(dtype), None if bias is None else bias.to(dtype)
            with torch.autocast(kind, enabled=False):
                return packed.linear(input, bias)
        if input.dtype is not packed.values.dtype:
            raise TypeError(f"PackedLinear: expected input of {packed.values.dtype} like the weight, got {input.dtype}")
        return packed.linear(input, bias)

    def train(self, mode: bool = True) -> PackedLinear:
        """Refused, but for `train(False)`."""
        if mode:
            raise RuntimeError(
                "PackedLinear: expected no training of a frozen layer; to_dense() gives one that can be trained"
            )
        super().train(False)
        return self

    def reset_parameters(self) -> None:
        """Refused: there is nothing to initialize."""
        raise RuntimeError("PackedLinear: expected no new weights of a frozen layer")

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}weight"] = self.packed.dense()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *arguments: Any) -> None:
        error_msgs: list[str] = arguments[-1]
        error_msgs.append(
            f"PackedLinear {prefix.removesuffix('.')!r}: expected no state_dict for a frozen layer; load it into the"
            " dense one, and pack that"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_digest": self.packed.digest()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        digest = state.pop("_digest", None)
        super().__setstate__(state)
        if self.packed.digest() != digest:
            raise ValueError("PackedLinear: expected the weight that was stored, got one that was damaged since")

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedLinear:
        result = type(self).__new__(type(self))
        memo[id(self)] = result
        torch.nn.Module.__setstate__(result, copy.deepcopy(vars(self), memo))  # without the digest of the weight
        return result

    def extra_repr(self) -> str:
        stored = self.packed
        sparsity = 1 - stored.nonzeros / max(1, self.in_features * self.out_features)
        return f"{super().extra_repr()}, sparsity={sparsity:.4g}, dtype={str(self.values.dtype)[6:]}"


class FrozenTensor(Tensor):
    """A copy of a weight that refuses to be written to, since whoever writes means the weight. What is computed from it
    is an ordinary tensor."""

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Refuses what writes to its first argument, or to `out`."""
        name = getattr(func, "__name__", "")
        writes = (name.endswith("_") and not name.endswith("__")) or name in ("__setitem__", "__set__")
        writes = writes or (name.startswith("__i") and name.endswith("__") and name not in ("__index__", "__invert__"))
        if name in ("requires_grad_", "retain_grad"):
            writes = not (len(args) > 1 and args[1] is False)
        if (writes and args and isinstance(args[0], cls)) or isinstance((kwargs or {}).get("out"), cls):
            raise RuntimeError("PackedLinear: expected no write to the weight of a frozen layer, which is a copy")
        result = super().__torch_function__(func, types, args, kwargs or {})
        keeps = name in ("detach", "__get__") and isinstance(result, Tensor)
        if isinstance(result, cls) and not keeps:
            return result.as_subclass(Tensor)
        return result


def _requires_grad(bias: Tensor | None) -> bool:
    return bias is not None and bias.requires_grad
