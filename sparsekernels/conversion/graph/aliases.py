# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Whether what a node of a graph gives may be memory of its arguments.

What is not known counts as memory of all of them. torch's schemas tell it of operators that have kernels of their own;
those that are made of others, and functions of Python, may give an argument whatever their schema says, so they are
listed. tests/conversion/test_aliases.py asks torch about all of them.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import nn

from ..._torch import functional_schemas, is_composite
from ..modules import is_plain
from .sizes import kind_of

Node = torch.fx.Node


class Gives(enum.Enum):
    """What a call gives."""

    OWN = "memory of its own, or no tensor"
    VIEW = "memory of its arguments, however they are laid out"
    EITHER = "one or the other, perhaps by how arguments lie in memory"


_OWN_BY_NAME = """
linear bilinear matmul conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d batch_norm layer_norm
group_norm instance_norm rms_norm softmax log_softmax scaled_dot_product_attention interpolate upsample
adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d avg_pool1d max_pool1d max_pool2d max_pool3d
adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d multiply subtract divide div true_divide negative square
where concat concatenate hstack vstack dstack std var clip greater greater_equal less less_equal not_equal selu relu6
prelu float_power softmin cosine_similarity normalize
"""
OWN_BY_NAME = frozenset(_OWN_BY_NAME.split())
"""Functions and methods that are made of others, or of which some overloads are, and always make their results."""

_VIEWS_BY_NAME = """
view view_as transpose permute t movedim moveaxis swapaxes swapdims squeeze unsqueeze expand expand_as broadcast_to
narrow select split split_with_sizes chunk tensor_split unsafe_split unsafe_chunk hsplit vsplit dsplit unbind diagonal
detach unfold unflatten view_as_real view_as_complex as_strided positive T H mT mH adjoint data float half double
bfloat16 type type_as cpu real imag conj dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout
feature_dropout atleast_1d atleast_2d atleast_3d broadcast_tensors meshgrid align_tensors getitem
"""
VIEWS_BY_NAME = frozenset(_VIEWS_BY_NAME.split())
"""Those that give their argument, a view of it, or a copy for another reason than its layout."""

_OF_ALL = frozenset(("atleast_1d", "atleast_2d", "atleast_3d", "broadcast_tensors", "meshgrid", "align_tensors"))
"""Those of them that give views of each argument."""

_NOT_AS_SCHEMAS_SAY = """
dequantize to_mkldnn to_padded_tensor pixel_shuffle pixel_unshuffle channel_shuffle sparse_mask resize resize_as
unsafe_split unsafe_split_with_sizes index
"""
NOT_AS_SCHEMAS_SAY = frozenset(_NOT_AS_SCHEMAS_SAY.split())
"""Operators whose results may be their arguments though no schema tells."""

_LAYERS = frozenset(
    kind
    for file in ("conv", "linear", "batchnorm", "instancenorm", "normalization", "activation", "pooling", "upsampling")
    for kind in vars(getattr(nn.modules, file)).values()
    if isinstance(kind, type) and issubclass(kind, nn.Module) and kind.__module__ == f"torch.nn.modules.{file}"
) - {nn.Identity, nn.MultiheadAttention}
"""Layers of torch that make their results, unless that is done in place."""

_POOLING: tuple[object, ...] = (F.max_pool1d, F.max_pool2d, F.max_pool3d)
_POOLING += (F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d)
"""Functions that have no name of their own."""

_JOINING = ("add", "mul", "concat")
"""Functions of Python that also join tuples."""


def name_of(node: Node) -> str:
    """Of what a node calls, as torch has it: a function, a method, an attribute that it looks up."""
    target: Any = node.target
    if isinstance(target, str):
        return target
    if target is getattr:
        return str(node.args[1])
    if target in _POOLING:
        return "max_pool2d"
    return str(getattr(target, "__name__", "")).partition(".")[0]  # behind the dot is the name of an overload


def owner_of(node: Node) -> str:
    """The package whose function a node calls; of a method torch."""
    if node.op == "call_method":
        return "torch"
    module = str(getattr(node.target, "__module__", None) or type(node.target).__module__)
    if module.startswith("torch._ops.") and module != "torch._ops.aten":
        return module  # somebody's operator
    return module.partition(".")[0]


def is_of_torch(module: nn.Module) -> bool:
    """Whether all that a call of `module` does is torch's or ours."""
    kinds = ("torch.nn.", "sparsekernels.")
    return all(type(part).__module__.startswith(kinds) and is_plain(part) for part in module.modules())


def is_layer(module: nn.Module) -> bool:
    """Whether it is a layer of torch's or ours that makes its result, unless in place."""
    return type(module) in _LAYERS or type(module).__module__.startswith("sparsekernels.nn.")


def gives_of(module: nn.Module | None) -> Gives:
    """What a call of `module` gives; None is a fused layer."""
    if module is None:
        return Gives.OWN
    return (
        Gives.OWN if is_layer(module) and is_plain(module) and not getattr(module, "inplace", False) else Gives.EITHER
    )


class Aliases:
    """What the calls of a graph give, unless that is done in place."""

    def __init__(self, graph: torch.fx.Graph, modules: Mapping[str, nn.Module]) -> None:
        self._modules = modules
        self._several: set[Node] = set()
        """Nodes that may give a tuple or a list."""
        for node in graph.nodes:
            if may_be_several(node, modules, self._several):
                self._several.add(node)

    def gives(self, node: Node) -> Gives:
        if not node.op.startswith("call") or kind_of(node) is not None:
            return Gives.OWN
        if node.op == "call_module":
            return gives_of(self._modules.get(str(node.target)))
        name, owner = name_of(node), owner_of(node)
        if owner in ("sparsekernels", "math"):
            return Gives.OWN
        if owner == "_operator" and name not in ("pos", "getitem"):
            joins = name in _JOINING and not self._several.isdisjoint(node.all_input_nodes)
            return Gives.EITHER if joins else Gives.OWN
        if isinstance(node.target, type):  # an object with its arguments
            return Gives.VIEW
        if owner not in ("torch", "_operator", "builtins"):
            return Gives.EITHER
        if name in VIEWS_BY_NAME or name == "pos":
            return Gives.VIEW
        return Gives.OWN if owner == "torch" and makes_its_result(name) else Gives.EITHER

    def sources_of(self, node: Node) -> list[Node]:
        """The nodes whose memory may be what `node` gives."""
        kind = self.gives(node)
        if kind is Gives.OWN:
            return []
        if kind is Gives.VIEW and node.args and not isinstance(node.target, type) and name_of(node) not in _OF_ALL:
            return nodes_in(node.args[0])
        return node.all_input_nodes


def may_be_several(node: Node, modules: Mapping[str, nn.Module], several: AbstractSet[Node]) -> bool:
    """Whether what a node gives may be a tuple or a list. several: those of its inputs that may."""
    if node.op == "call_module":
        module = modules.get(str(node.target))
        return gives_of(module) is not Gives.OWN or bool(getattr(module, "return_indices", False))
    if not node.op.startswith("call"):
        return False
    kind = kind_of(node)
    if kind is not None:
        return kind not in (int, bool)
    name = name_of(node)
    if node.target is not getattr and owner_of(node) == "_operator":
        of_parts = isinstance(node.args[1], slice) if name == "getitem" else name in _JOINING
        return of_parts and not several.isdisjoint(node.all_input_nodes)
    return node.target is not getattr and not _gives_one(name)


def may_copy_arguments(graph: torch.fx.Graph, modules: Mapping[str, nn.Module]) -> bool:
    """Whether something may be a view of an argument or a copy, by how that lies in memory: also by its sizes then."""
    aliases = Aliases(graph, modules)
    of_arguments: set[Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder":
            of_arguments.add(node)
        elif not of_arguments.isdisjoint(aliases.sources_of(node)):
            if aliases.gives(node) is Gives.EITHER:
                return True
            of_arguments.add(node)
    return False


def nodes_in(value: Any) -> list[Node]:
    """The nodes among an argument's parts."""
    found: list[Node] = []
    torch.fx.node.map_arg(value, found.append)  # type: ignore[arg-type, return-value]
    return found


@functools.cache
def makes_its_result(name: str) -> bool:
    """Whether torch's function of that name never gives memory of its arguments."""
    if name in OWN_BY_NAME:
        return True
    if name in NOT_AS_SCHEMAS_SAY | VIEWS_BY_NAME:
        return False
    found = functional_schemas(name)
    return bool(found) and not any(
        is_composite(full) or any(result.alias_info is not None for result in schema.returns) for full, schema in found
    )


@functools.cache
def _gives_one(name: str) -> bool:
    """Whether torch's function of that name gives one tensor."""
    found = functional_schemas(name)
    if not found:
        return name in OWN_BY_NAME or (name.endswith("_") and hasattr(torch.Tensor, name))
    return all([str(one.type) for one in schema.returns] == ["Tensor"] for _, schema in found)
