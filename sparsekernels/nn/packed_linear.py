# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""A linear layer that is not trained any more: of its weight the nonzeros are all that is left."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from .._torch import is_any_autocast_enabled, tree_map_only, written_arguments
from ..dispatch import is_special
from ..ops.packed_linear import implementations
from ..ops.packed_linear.weight import PackedWeight, digest_of
from ..ops.precision import COMPUTED_IN_FLOAT32
from ..ops.sparse_conv2d.outside import Guard
from .packed_layer import PackedLayer, version_of
from .sparse import SparseLinear

_kernel = implementations.forward
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class PackedLinear(PackedLayer, torch.nn.Linear):
    r"""A pruned `torch.nn.Linear` for inference, of which a bit for each weight and the nonzeros are kept.

        y = x W^T + b

    For up to 32 rows, which is what decoding a language model has, the CPU reads these bytes alone: at 70% zeros in
    bfloat16 a third of those of the dense weight. For more rows some of the weight at a time is unpacked, and torch
    multiplies. Up to 32 rows, sums are in float32 in an order that depends on the number of rows, not on threads, and
    are rounded once. On the tiles of AMX, which 3 to 16 rows in bfloat16 are multiplied on, subnormal numbers are 0, as
    they are in torch's own products there.

    The weight is frozen. There is no parameter of it, so an optimizer moves nothing. `weight` stands for it: a tensor
    that is unpacked when something is computed from it, and refuses to be written to. `train()`, gradients, and a
    `state_dict` that has something for it to load are refused; what `train()` of a model has set by then, `eval()` sets
    back. `state_dict()` has copies: the dense weight, with equal values (-0 becomes 0), and the bias. `to_dense` gives
    a layer that can be trained. A pickled layer that was damaged is refused when it is read.

    Other layers make it: `PackedLinear.from_dense`, and `convert(..., frozen=True)`, of which `revert` gives the dense
    layers back. It is not traced by torch.fx and torch.jit.

    Attributes:
        packed: The weight as it is stored; not to be written to.
        bias: A parameter that requires no gradient, or None.

    Raises:
        RuntimeError: For `train()`, `load_state_dict`, a call that would need gradients, and one after something was
            written to.
        TypeError: For an input of another dtype than the weight's.
        ValueError: For an input of another number of columns or device.
    """

    def __init__(self, packed: PackedWeight, bias: Tensor | None = None) -> None:
        if not isinstance(packed, PackedWeight):
            raise TypeError(
                f"PackedLinear: expected a PackedWeight, got {type(packed).__name__}; from_dense() takes a layer"
            )
        packed.check()
        if bias is not None and (bias.shape != packed.shape[:1] or bias.dtype != packed.values.dtype):
            raise ValueError(
                f"PackedLinear: expected bias [{packed.shape[0]}] of {packed.values.dtype}, got {list(bias.shape)} of"
                f" {bias.dtype}"
            )
        torch.nn.Module.__init__(self)
        self.out_features, self.in_features = packed.shape
        with torch.inference_mode(False):
            own = None if bias is None else torch.nn.Parameter(bias.detach().clone(), False)
        self._guard = Guard()
        self._parameters["weight"] = None  # there is one again once it is handed back
        self.register_parameter("bias", own)
        super().train(False)
        self._take(packed)

    def _take(self, packed: PackedWeight) -> None:
        """Have this weight, and know what was written to until now."""
        self.packed = packed
        self._on_cpu = packed.values.is_cpu and (self.bias is None or self.bias.is_cpu)
        self._seen = self._versions()

    def _versions(self) -> tuple[Any, ...]:
        """Other ones where something was written to, or the bias exchanged."""
        words, crow_indices, values, _ = self.packed
        bias = self._parameters["bias"]
        version = None if bias is None else (id(bias), version_of(bias))
        is_free = self._parameters.get("weight") is None  # torch.func.functional_call gives it one
        return words._version, crow_indices._version, values._version, version, is_free

    @classmethod
    def from_dense(cls, module: torch.nn.Linear) -> PackedLinear:
        """The nonzeros of a layer.

        Args:
            module: A torch.nn.Linear or a `SparseLinear`, no subclass, in float32, bfloat16 or float16.

        Returns:
            The layer, in evaluation mode; `module` is left as it is.

        Raises:
            TypeError: For another module, and another dtype.
            ValueError: For a layer that does more than its class: with hooks, a parametrization, a mask of
                torch.nn.utils.prune, a forward of its own; for a weight without elements, and one of 2^31 nonzeros.
        """
        name = f"{cls.__name__}.from_dense"
        if type(module) is NonDynamicallyQuantizableLinear:
            raise TypeError(
                f"{name}: expected a layer that is called, got the out_proj of a torch.nn.MultiheadAttention, which"
                " multiplies by its weight itself"
            )
        if type(module) not in (torch.nn.Linear, SparseLinear):
            raise TypeError(f"{name}: expected a torch.nn.Linear or SparseLinear, got {type(module).__name__}")
        if any(getattr(module, hooks) for hooks in _HOOKS) or "forward" in vars(module):
            raise ValueError(
                f"{name}: expected a layer without hooks, masks and a forward of its own, got one with some"
            )
        if not isinstance(module._parameters.get("weight"), Tensor):
            raise ValueError(f"{name}: expected a layer whose weight is a parameter, got one that computes it")
        with torch.inference_mode(False):
            weight = (module._used_weight() if isinstance(module, SparseLinear) else module.weight).detach()
            if weight.dtype not in COMPUTED_IN_FLOAT32:
                raise TypeError(f"{name}: expected a weight of float32, bfloat16 or float16, got {weight.dtype}")
            if weight.dim() != 2 or weight.numel() == 0:
                raise ValueError(f"{name}: expected a weight [out, in] with elements, got {list(weight.shape)}")
            return cls(PackedWeight.of(weight), module.bias)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weight with its zeros. It is unpacked for what is computed from it, and cannot be written to."""
        handed_back = self._parameters.get("weight")
        return FrozenTensor(self.packed) if handed_back is None else handed_back

    def register_parameter(self, name: str, param: torch.nn.Parameter | None) -> None:
        """Refuses another weight, which the layer would not compute with."""
        if name.startswith("weight") and param is not None:
            raise RuntimeError(
                "PackedLinear: expected no other weight for a frozen layer; give it to what to_dense() gives"
            )
        super().register_parameter(name, param)

    @property
    def nbytes(self) -> int:
        """Of what is stored, without the bias."""
        return self.packed.nbytes

    def to_dense(self) -> torch.nn.Linear:
        """The dense layer.

        Returns:
            A torch.nn.Linear that can be trained, with copies of weight and bias, in evaluation mode.
        """
        dense = torch.nn.Linear(self.in_features, self.out_features, self.bias is not None, "meta")
        with torch.inference_mode(False):
            dense.weight = torch.nn.Parameter(self.packed.dense())
            if self.bias is not None:
                dense.bias = torch.nn.Parameter(self.bias.detach().clone())
        return dense.eval()

    def forward(self, input: Tensor) -> Tensor:
        # what decoding calls, without a detour
        if (
            self._on_cpu
            and type(input) is Tensor
            and not is_special()
            and input.is_cpu
            and input.layout is torch.strided
            and input.numel() <= implementations.MOST_ROWS * self.in_features
            and input.dtype is self.packed.values.dtype
            and input.dtype is not torch.float64
            and input.shape[-1:] == (self.in_features,)
            and not (torch.is_grad_enabled() and (input.requires_grad or self._bias_requires_grad()))
        ):
            words, crow_indices, values, _ = self.packed
            self._refuse_writes()
            output: Tensor = _kernel(input, words, crow_indices, values, self._parameters["bias"])
            return output
        return self._general(input)

    def _bias_requires_grad(self) -> bool:
        bias = self._parameters["bias"]
        return bias is not None and bias.requires_grad

    def _refuse_writes(self) -> None:
        if self._versions() != self._seen:
            raise RuntimeError(
                "PackedLinear: expected no writes to a frozen layer, got another weight, or some to its bias or to what"
                " it stores; pack the dense layer anew"
            )

    def _general(self, input: Tensor) -> Tensor:
        packed = self.packed
        bias: Tensor | None = self.bias
        if not isinstance(input, Tensor):
            raise TypeError(f"PackedLinear: expected input to be a tensor, got {type(input).__name__}")
        if input.dim() == 0 or input.shape[-1] != self.in_features:
            raise ValueError(f"PackedLinear: expected input [*, {self.in_features}], got {list(input.shape)}")
        if torch.is_grad_enabled() and (input.requires_grad or self._bias_requires_grad()):
            raise RuntimeError(
                "PackedLinear: expected a call without gradients, the weight is frozen; call it under torch.no_grad(),"
                " or train what to_dense() gives"
            )
        devices = {packed.values.device} if bias is None else {packed.values.device, bias.device}
        if devices != {input.device}:
            raise ValueError(
                f"PackedLinear: expected input on {packed.values.device} like the layer, got {input.device}"
            )
        if not torch.compiler.is_compiling():
            self._refuse_writes()
        kind = input.device.type
        if kind != "meta" and is_any_autocast_enabled() and torch.is_autocast_enabled(kind):
            if input.dtype is not torch.float64 and packed.values.dtype is not torch.float64:
                dtype = torch.get_autocast_dtype(kind)
                packed = packed._replace(values=packed.values.to(dtype))
                input, bias = input.to(dtype), None if bias is None else bias.to(dtype)
            with torch.autocast(kind, enabled=False):
                return self._product(packed, input, bias)
        return self._product(packed, input, bias)

    def _product(self, packed: PackedWeight, input: Tensor, bias: Tensor | None) -> Tensor:
        if input.dtype is not packed.values.dtype:
            raise TypeError(f"PackedLinear: expected input of {packed.values.dtype} like the weight, got {input.dtype}")
        if input.layout is not torch.strided:
            return F.linear(input, packed.dense(), bias)
        return packed.linear(input, bias)

    def train(self, mode: bool = True) -> PackedLinear:
        """Refused, but for `train(False)`."""
        if mode:
            raise RuntimeError(
                "PackedLinear: expected no training of a frozen layer; to_dense() gives one that can be trained, and"
                " eval() sets back what train() has set in other layers"
            )
        super().train(False)
        return self

    def reset_parameters(self) -> None:
        """Refused: there is nothing to initialize."""
        raise RuntimeError("PackedLinear: expected no new weights of a frozen layer")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedLinear:
        super()._apply(fn, recurse)
        self._reference = None  # to what it was before
        words, crow_indices, values, columns = self.packed
        with torch.inference_mode(False):
            target = fn(values[:0])  # where to, and as what; memory may become shared by it
            values = values.to(target.device, target.dtype)
            words, crow_indices = words.to(target.device), crow_indices.to(target.device)
            if values.is_cpu and values.is_shared():
                words, crow_indices = words.share_memory_(), crow_indices.share_memory_()
        self._take(PackedWeight(words, crow_indices, values, columns))
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}weight"] = self.packed.dense()
        if self.bias is not None:
            destination[f"{prefix}bias"] = self.bias.detach().clone()

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *arguments: Any) -> None:
        error_msgs: list[str] = arguments[-1]
        if any(key.startswith(prefix) for key in state_dict):
            error_msgs.append(
                f"PackedLinear {prefix.removesuffix('.')!r}: expected no state_dict for a frozen layer; load it into"
                " the dense one, and pack that"
            )

    def _digest(self) -> str | None:
        """Of all that the results follow from; None where there is no data."""
        if self.packed.values.is_meta or type(self.packed.values) is not Tensor:
            return None
        tensors = self.packed[:3] if self.bias is None else (*self.packed[:3], self.bias)
        return digest_of(f"{self.packed.columns} {self.in_features} {self.out_features}", *tensors)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_reference": None, "digest": self._digest()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        digest = state.pop("digest", "none")
        super().__setstate__(state)
        with torch.inference_mode(False):
            found = self._digest()
        if found is not None and found != digest:
            raise ValueError("PackedLinear: expected the layer that was stored, got one that was damaged since")
        self._take(self.packed)

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedLinear:
        result = type(self).__new__(type(self))
        memo[id(self)] = result
        # without what compile() has made, without the digest, and of another weight
        state = {**super().__getstate__(), "_reference": None}
        with torch.inference_mode(False):
            super(PackedLinear, result).__setstate__(copy.deepcopy(state, memo))
        result._take(result.packed)
        return result

    def extra_repr(self) -> str:
        stored = self.packed
        sparsity = 1 - stored.nonzeros / max(1, self.in_features * self.out_features)
        return f"{super().extra_repr()}, sparsity={sparsity:.4g}, dtype={str(stored.values.dtype)[6:]}"


class FrozenTensor(Tensor):
    """Stands for the weight of a `PackedLinear`: has its shape, dtype and device, and its elements, unpacked anew, for
    what is computed from it. It and views of it refuse to be written to, since whoever writes means the weight. What is
    computed from it is an ordinary tensor."""

    _of: PackedWeight | Tensor

    @staticmethod
    def __new__(cls, of: PackedWeight | Tensor) -> FrozenTensor:
        like = of.values if isinstance(of, PackedWeight) else of
        strides = (of.columns, 1) if isinstance(of, PackedWeight) else of.stride()
        result: FrozenTensor = Tensor._make_wrapper_subclass(
            cls, of.shape, strides=strides, dtype=like.dtype, device=like.device, requires_grad=False
        )
        result._of = of
        return result

    def dense(self) -> Tensor:
        """A copy that is an ordinary tensor."""
        return self._of.dense() if isinstance(self._of, PackedWeight) else self._of.clone()

    def __repr__(self, *, tensor_contents: object = None) -> str:  # type: ignore[override]
        return f"FrozenTensor({self.dense()!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        return self.dense()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.dense().__reduce_ex__(protocol)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Refuses what writes to one of them; views stay frozen."""
        kwargs = kwargs or {}
        if any(isinstance(one, cls) for one in written_arguments(func, args, kwargs)):
            raise RuntimeError("PackedLinear: expected no write to the weight of a frozen layer")

        def unpacked(value: Any) -> Tensor:
            found: Tensor = value._of.dense() if isinstance(value._of, PackedWeight) else value._of
            return found

        result = func(*tree_map_only(cls, unpacked, args), **tree_map_only(cls, unpacked, kwargs))
        is_view = any(one.alias_info is not None for one in func._schema.returns)
        return tree_map_only(Tensor, cls, result) if is_view else result
