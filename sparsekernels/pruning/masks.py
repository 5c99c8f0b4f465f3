# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Masks of an exact number of nonzeros or blocks, the same every time, and pruning a model by them."""

from __future__ import annotations

import math
import numbers
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._transformers import is_conv1d
from ..blocks import check_block, spread, squared_norms

SPREAD = 0.75
"""Standard deviation of the logarithms of a clustered mask's odds, of rows and of input channels each."""


def mask(kind: str, shape: Sequence[int], sparsity: float, seed: int = 0) -> Tensor:
    """A random mask over a weight.

        kept = round(numel * (1 - sparsity))
        odds[o, i] = 1                               "random"
        odds[o, i] = exp(0.75 n[o]) exp(0.75 m[i])   "clustered": n and m standard normal

    The weights that are kept are those whose draws from exponential distributions with these odds, of the output and
    input channel, are the least, which is sampling without replacement. In a clustered mask most channels are about as
    dense as the whole weight, a few several times as dense, and a few nearly empty, as magnitude pruning leaves them.

    Args:
        kind: "random" or "clustered".
        shape: Of the weight: (out_channels, in_channels per group, ...).
        sparsity: The share of zeros, 0 to 1.
        seed: Of the draws.

    Returns:
        bool in `shape`, True where a weight is kept.

    Raises:
        TypeError: For a sparsity or a shape that is not made of numbers.
        ValueError: For another kind, a negative size, a "clustered" mask of less than two dimensions, or a sparsity
            outside of [0, 1].

    Source:
        Efraimidis & Spirakis 2006, "Weighted random sampling with a reservoir", Information Processing Letters 97(5).
    """
    _check("mask", sparsity, kind, tuple(MASKS))
    if not isinstance(shape, Sequence) or not all(isinstance(size, numbers.Integral) for size in shape):
        raise TypeError(f"mask: expected shape to be a sequence of int, got {shape!r}")
    if any(size < 0 for size in shape):
        raise ValueError(f"mask: expected shape of sizes from 0 on, got {list(shape)}")
    if kind == "clustered" and len(shape) < 2:
        raise ValueError(f"mask: expected shape (out_channels, in_channels, ...), got {list(shape)}")
    generator = torch.Generator().manual_seed(seed)
    draws = torch.empty(tuple(shape), dtype=torch.float64).exponential_(generator=generator)
    return _least(draws / MASKS[kind](shape, generator), _kept(math.prod(shape), sparsity))


def _kept(count: int, sparsity: float) -> int:
    return round(count * (1 - sparsity))


def _check(op: str, sparsity: float, kind: str, kinds: Sequence[str]) -> None:
    if kind not in kinds:
        raise ValueError(f"{op}: expected kind to be {', '.join(map(repr, kinds))}, got {kind!r}")
    _check_sparsity(op, sparsity)


def _check_sparsity(op: str, sparsity: float) -> None:
    if not isinstance(sparsity, numbers.Real):
        raise TypeError(f"{op}: expected sparsity to be a number, got {type(sparsity).__name__}")
    if not 0 <= sparsity <= 1:
        raise ValueError(f"{op}: expected sparsity from 0 to 1, got {sparsity:g}")


def _least(values: Tensor, count: int) -> Tensor:
    """The mask of the `count` least of `values`; of equals, the first."""
    if count == 0:
        return torch.zeros_like(values, dtype=torch.bool)
    limit = values.flatten().kthvalue(count).values
    result = values < limit
    equal = (values == limit).flatten().nonzero()[: count - int(result.sum()), 0]
    result.view(-1)[equal] = True
    return result


def _random(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.ones((), dtype=torch.float64)


def _clustered(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """The odds of the output channel times those of the input channel."""

    def odds(*shape: int) -> Tensor:
        return torch.exp(SPREAD * torch.randn(*shape, generator=generator, dtype=torch.float64))

    after = (1,) * (len(shape) - 2)
    return odds(shape[0], 1, *after) * odds(1, shape[1], *after)


MASKS: dict[str, Callable[[Sequence[int], torch.Generator], Tensor]] = {"random": _random, "clustered": _clustered}
"""The kinds: of the weight's shape, the odds of each weight to be kept (broadcast to that shape)."""

PRUNINGS = (*MASKS, "magnitude")
"""How weights are chosen: at random in one of two ways, or by their magnitude."""


def kept_weights(kind: str, weight: Tensor, sparsity: float, seed: int = 0) -> Tensor:
    """The mask of a kind over a weight: that of `mask`, or of `largest`.

    Args:
        kind: "random", "clustered" or "magnitude".
        weight: Any dense weight.
        sparsity: The share of zeros, 0 to 1.
        seed: Of the draws, where the kind is random.

    Returns:
        bool, shape and device of `weight`, True at round(numel * (1 - sparsity)) weights, which are kept.

    Raises:
        TypeError: For a weight that is not a tensor, or a sparsity that is not a number.
        ValueError: For another kind, a sparsity outside of [0, 1], or a weight that the kind cannot take.
    """
    _check("kept_weights", sparsity, kind, PRUNINGS)
    _check_weight("kept_weights", weight)
    if kind == "magnitude":
        return largest(weight, sparsity)
    return mask(kind, weight.shape, sparsity, seed).to(weight.device)


def _check_weight(op: str, weight: Tensor) -> None:
    if not isinstance(weight, Tensor):
        raise TypeError(f"{op}: expected weight to be a torch.Tensor, got {type(weight).__name__}")


def largest(weight: Tensor, sparsity: float) -> Tensor:
    """The mask of the weights that are largest in magnitude; of equal ones, the first.

    Args:
        weight: Any dense weight.
        sparsity: The share of zeros, 0 to 1.

    Returns:
        bool, shape of `weight`, True at round(numel * (1 - sparsity)) weights.

    Raises:
        TypeError: For a weight that is not a tensor, or a sparsity that is not a number.
        ValueError: For a sparsity outside of [0, 1], or a weight with NaN.
    """
    _check_sparsity("largest", sparsity)
    _check_weight("largest", weight)
    if weight.isnan().any():
        raise ValueError("largest: expected weight of numbers, got NaN among them")
    return _least(-weight.detach().abs().contiguous(), _kept(weight.numel(), sparsity))


def largest_blocks(weight: Tensor, block: tuple[int, int], sparsity: float, *, least_in_row: int = 0) -> Tensor:
    """The mask of the blocks whose L2 norms are largest; of equal ones, the first.

        kept = max(1, round(blocks * (1 - sparsity)), least_in_row * rows)   or 0 where sparsity = 1

    Rows are rows of blocks, of which each keeps its `least_in_row` largest first. With one in each, all outputs of a
    network depend on its input, which few large blocks in a narrow layer may otherwise end.

    The blocks are those of `sparsekernels.BlockSparse`: of output and input channels, at each tap of a convolution's
    weight. One that the weight's end makes smaller counts as one, by the norm of what it has.

    Args:
        weight: [out, in] or [out, in/groups, ...].
        block: Rows and columns of a block, each from 1 to 128. They need not divide the weight's sizes.
        sparsity: The share of the blocks that is left out, 0 to 1.
        least_in_row: How many blocks each row of blocks keeps at least, if it has as many.

    Returns:
        bool, shape of `weight`, True in the blocks that are kept.

    Raises:
        TypeError: For a weight that is not a tensor, a block that is not two int, a sparsity that is not a number, or
            another number that is not an int.
        ValueError: For a sparsity outside of [0, 1], block sizes that are not accepted, a weight of less than two
            dimensions, or one with NaN, or a negative number of blocks.
    """
    _check_sparsity("largest_blocks", sparsity)
    _check_least_in_row("largest_blocks", least_in_row)
    _check_weight("largest_blocks", weight)
    block = check_block("largest_blocks", block)
    if weight.dim() < 2:
        raise ValueError(f"largest_blocks: expected weight of at least 2 dimensions, got shape {list(weight.shape)}")
    if weight.isnan().any():
        raise ValueError("largest_blocks: expected weight of numbers, got NaN among them")
    norms = squared_norms(weight, block)
    if sparsity == 1 or norms.numel() == 0:
        return torch.zeros_like(weight, dtype=torch.bool)
    rows, in_row = norms.shape[0], norms[0].numel()
    first = min(least_in_row, in_row)
    norms = norms.clamp(max=torch.finfo(norms.dtype).max)
    for row in norms if first > 0 else ():  # the first to be kept, whatever others have
        row[_least(-row, first)] = math.inf
    kept = max(_kept(norms.numel(), sparsity), 1, first * rows)
    return spread(_least(-norms, kept), weight.shape, block)


def _check_least_in_row(op: str, least_in_row: int) -> None:
    if isinstance(least_in_row, bool) or not isinstance(least_in_row, numbers.Integral):
        raise TypeError(f"{op}: expected least_in_row to be an int, got {type(least_in_row).__name__}")
    if least_in_row < 0:
        raise ValueError(f"{op}: expected least_in_row from 0 on, got {least_in_row}")


def prunable(model: nn.Module, *, ignore: Collection[str] = ()) -> Iterator[tuple[str, Any]]:
    """The layers of a model that are pruned: every Linear, Conv2d and Conv1d, except depthwise convolutions.

    transformers' `Conv1D`, a linear layer whose weight is [in, out], is one of them.

    Args:
        model: Any module.
        ignore: Names of layers that are left out, as "fc", or of modules all of whose layers are, as "layer4.0".

    Yields:
        Name and module. Depthwise are convolutions with groups == in_channels > 1.

    Raises:
        TypeError: For a model that is not a module, or names that are not a collection of str.
        ValueError: For a name to ignore that is none of the model's modules.
    """
    return _prunable(model, _ignored("prunable", model, ignore))


def _ignored(op: str, model: nn.Module, ignore: Collection[str]) -> set[nn.Module]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{op}: expected model to be a torch.nn.Module, got {type(model).__name__}")
    names = list(ignore) if isinstance(ignore, Iterable) and not isinstance(ignore, str) else [None]
    if not all(isinstance(name, str) for name in names):
        raise TypeError(f"{op}: expected ignore to be a collection of names, got {ignore!r}")
    modules = dict(model.named_modules(remove_duplicate=False))
    for name in names:
        if name not in modules:
            raise ValueError(f"{op}: expected ignore of names of modules, got {name!r}")
    return {one for name in names for one in modules[name].modules()}


def _prunable(model: nn.Module, ignored: set[nn.Module]) -> Iterator[tuple[str, Any]]:
    return ((name, one) for name, one in model.named_modules() if one not in ignored and _is_prunable(one))


def _is_prunable(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d | nn.Conv1d):
        return not 1 < module.groups == module.in_channels
    return isinstance(module, nn.Linear) or is_conv1d(module)


@torch.no_grad()
def prune_(
    model: nn.Module, kind: str, sparsity: float, seed: int = 0, *, ignore: Collection[str] = ()
) -> dict[str, Tensor]:
    """Set a share of each weight of the `prunable` modules to zero, in place.

        kept = round(numel * (1 - sparsity))   of each layer, exactly

    A random mask depends on the seed, the layer's name and the shape, and on no other layer. Weights that were zero
    before count as others do: trained networks have some. A weight that several modules share is pruned once, by the
    first name, and has the same mask under all.

    Args:
        model: Any module.
        kind: "random", "clustered" or "magnitude".
        sparsity: The share of zeros, 0 to 1.
        seed: Of random masks.
        ignore: Names of layers, or of modules with all of their layers, that stay as they are: see `prunable`. A weight
            that one of them shares with another layer stays as well.

    Returns:
        The masks by module name: bool, True where a weight is kept.

    Raises:
        TypeError: For a model that is not a module, a sparsity that is not a number, or names that are not a collection
            of str.
        ValueError: For another kind, a sparsity outside of [0, 1], NaN to choose from by magnitude, a name that is none
            of the model's modules, or a weight that is computed from others, as a pruning mask or a parametrization
            does. Then nothing has changed.
    """
    _check("prune_", sparsity, kind, PRUNINGS)
    return _prune_(
        "prune_",
        model,
        ignore,
        lambda name, _, weight: kept_weights(kind, weight, sparsity, seed=zlib.crc32(f"{seed}/{name}".encode())),
    )


@torch.no_grad()
def prune_blocks_(
    model: nn.Module, block: tuple[int, int], sparsity: float, *, ignore: Collection[str] = (), least_in_row: int = 0
) -> dict[str, Tensor]:
    """Set the blocks of the least L2 norms to zero in each weight of the `prunable` modules, in place.

        kept = max(1, round(blocks * (1 - sparsity)), least_in_row * rows)   of each layer, or 0 where sparsity = 1

    See `largest_blocks` for what a block is, and a row of them. A weight that several modules share is pruned once, and
    has the same mask under all names.

    Args:
        model: Any module.
        block: Rows and columns of a block, output and input channels, each from 1 to 128.
        sparsity: The share of each layer's blocks that becomes zero, 0 to 1.
        ignore: Names of layers, or of modules with all of their layers, that stay as they are: see `prunable`. A weight
            that one of them shares with another layer stays as well.
        least_in_row: How many blocks each row of blocks keeps at least, if it has as many.

    Returns:
        The masks by module name: bool, True where a weight is kept.

    Raises:
        TypeError: For a model that is not a module, a block that is not two int, a sparsity that is not a number, names
            that are not a collection of str, or another number that is not an int.
        ValueError: For block sizes that are not accepted, a sparsity outside of [0, 1], NaN in a weight, a negative
            number of blocks, a name that is none of the model's modules, or a weight that is computed from others, as a
            pruning mask or a parametrization does. Then nothing has changed.
    """
    _check_sparsity("prune_blocks_", sparsity)
    _check_least_in_row("prune_blocks_", least_in_row)
    block = check_block("prune_blocks_", block)

    def mask_of(name: str, module: nn.Module, weight: Tensor) -> Tensor:
        if is_conv1d(module):  # whose rows are inputs
            return largest_blocks(weight.t(), block, sparsity, least_in_row=least_in_row).t()
        return largest_blocks(weight, block, sparsity, least_in_row=least_in_row)

    return _prune_("prune_blocks_", model, ignore, mask_of)


def _prune_(
    op: str,
    model: nn.Module,
    ignore: Collection[str],
    mask_of: Callable[[str, nn.Module, Tensor], Tensor],
) -> dict[str, Tensor]:
    """Set to zero what the mask of each weight, of a layer by its first name, does not keep."""
    ignored = _ignored(op, model, ignore)
    modules = dict(_prunable(model, ignored))
    stay = {parameter for module in ignored for parameter in module.parameters()}
    masks: dict[str, Tensor] = {}
    first_names: dict[nn.Parameter, str] = {}
    for name, module in modules.items():
        weight = module._parameters.get("weight")
        if weight is None:
            raise ValueError(
                f"{op}: expected weights that are parameters, got one that is computed in {name!r}: make it permanent"
                " first, with sparsekernels.pruning.finalize or torch.nn.utils.parametrize.remove_parametrizations"
            )
        if weight in stay:
            continue
        first = first_names.setdefault(weight, name)
        if first == name:
            masks[name] = mask_of(name, module, weight)
        else:
            masks[name] = masks[first]
    for name, kept in masks.items():
        modules[name].weight.masked_fill_(~kept, 0)
    return masks
