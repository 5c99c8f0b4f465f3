# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Sparse training of some weights: masks behind every step of the optimizer, and updates of the topology.

More than 400 lines: one class whose state all of it shares; what can be told without it is in the files beside.
"""

from __future__ import annotations

import contextlib
import numbers
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .algorithms import Algorithm
from .bits import check_agreement, unpacked
from .compact import CompactState
from .kernels import Kernels
from .layers import Layers
from .resuming import Resumable
from .schedules import CosineDecay, Schedule, cubic_density
from .signals import keeps_momentum, leaves_zeros, random_like, state_tensors
from .updates import NewUnits, Updater, not_finite
from .validation import check_count, check_seed, checked_dense_grad_every, checked_mask
from .weak_hook import WeakHook
from .weights import MaskedWeight, is_sharded, unwrapped


@dataclass(frozen=True)
class Update:
    """What one update of the topology did.

    Attributes:
        step: Steps of the optimizer before it.
        rate: The share that was pruned.
        pruned: By the name of the weight: elements, or blocks, that were pruned.
        grown: By the name of the weight: those that are new, some of which may just have been pruned.
        nonzeros: Elements that are used now, by the name of the weight.
    """

    step: int
    rate: float
    pruned: Mapping[str, int]
    grown: Mapping[str, int]
    nonzeros: Mapping[str, int]


_TRAINED: dict[int, Callable[[], SparseTraining | None]] = {}
"""By the id of a parameter, what trains it sparse."""


def _nobody() -> None:
    return None


class SparseTraining(Resumable):
    """What `Sparsifier` and `Masking` have in common: hooks on an optimizer, and the masks of some of its weights."""

    _updater_class: type[Updater] = Updater

    def __init__(
        self,
        where: str,
        optimizer: Optimizer,
        algorithm: Algorithm,
        schedule: Schedule,
        *,
        update_every: int | None,
        last_update: int | None,
        dense_grad_every: int | str | None,
        seed: int,
        process_group: Any,
        compact_state: bool = False,
        prune_rate: float = 0.5,
    ) -> None:
        check_seed(where, seed)
        if not isinstance(optimizer, Optimizer):
            given = type(optimizer).__name__
            raise TypeError(f"{where}: expected optimizer to be a torch.optim.Optimizer, got {given}")
        if not callable(getattr(schedule, "step", None)) or not callable(getattr(schedule, "get_dr", None)):
            raise TypeError(
                f"{where}: expected prune_rate to be a number or to have step() and get_dr(), as CosineDecay has, got"
                f" {type(schedule).__name__}"
            )
        for name, value in (("update_every", update_every), ("last_update", last_update)):
            check_count(where, name, value)
        if algorithm.gradual and last_update is None:
            raise ValueError(f"{where}: expected last_update, the step at which the density is reached, got None")
        self._where, self.optimizer, self.algorithm, self.schedule = where, optimizer, algorithm, schedule
        self._update_every, self._last_update = update_every, last_update
        self._dense_every = checked_dense_grad_every(where, algorithm, dense_grad_every, update_every)
        self._generator = torch.Generator().manual_seed(int(seed))
        self._prune_rate = schedule.get_dr(prune_rate) if isinstance(schedule, CosineDecay) else prune_rate
        self._group = process_group
        self._weights: dict[str, MaskedWeight] = {}
        self._updater = self._updater_class(where, algorithm, optimizer, self._weights, self._generator)
        self._models: list[nn.Module] = []
        self._kernels: list[Kernels] = []
        self._compact = None
        if compact_state:
            self._compact = self._updater.compact = _compact(where, optimizer, algorithm)
        self._layers = Layers(self._models, self._weights)
        self._hooks: dict[str, Any] = {}
        self._seen: set[str] = set()  # weights whose gradients were masked as they came
        self.steps = 0
        """Steps of the optimizer since the masks are there."""
        self.updates = 0
        """Updates of the topology since then."""
        self._handles = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

    # What there is

    @property
    def masks(self) -> dict[str, Tensor]:
        """bool, by the name of the weight: True where it is used. Not to be written to; see `set_masks`."""
        return {name: one.mask for name, one in self._weights.items()}

    @property
    def nonzeros(self) -> dict[str, int]:
        """By the name of the weight: how many elements are used."""
        return {name: int(one.mask.count_nonzero()) for name, one in self._weights.items()}

    @property
    def density(self) -> float:
        """Used elements of all masked weights, over all of their elements."""
        total = sum(one.mask.numel() for one in self._weights.values())
        return sum(self.nonzeros.values()) / total if total else 0.0

    @property
    def line(self) -> str:
        """Which layers run on sparse kernels, and what that gains, in words."""
        return "\n".join(one.line for one in self._kernels) or "sparse training: all layers are dense with a mask"

    @property
    def prune_rate(self) -> float:
        """The share of a layer's weights that an update would prune now."""
        return self._rate()

    def __repr__(self) -> str:
        used = sum(self.nonzeros.values())
        return (
            f"{type(self).__name__}(algorithm={self.algorithm.name!r}, weights={len(self._weights)}, nonzeros={used},"
            f" density={self.density:.4g}, steps={self.steps}, updates={self.updates})"
        )

    def __getstate__(self) -> Any:
        """A copy would have no hooks, and train dense without a word."""
        raise TypeError(
            f"{type(self).__name__}: expected no copy and no pickle; make another one, and give it state_dict()"
        )

    # Adding weights

    def _add(
        self, model: nn.Module, weights: Sequence[MaskedWeight], make_kernels: Callable[[], Kernels] | None
    ) -> None:
        """Take over weights whose masks and `wanted` are set. Raises before anything has changed."""
        where = self._where
        if not weights:
            raise ValueError(f"{where}: expected a model with layers to prune, Linear or convolutions, got none")
        own = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        strangers = [one.name for one in weights if id(one.parameter) not in own]
        if strangers:
            more = f" and {len(strangers) - 1} more" if len(strangers) > 1 else ""
            raise ValueError(
                f"{where}: expected an optimizer of this model's parameters, got one without {strangers[0]!r}{more};"
                " freeze what is not to be trained (requires_grad=False) or leave it out with ignore"
            )
        known = self._weights.keys() & {one.name for one in weights}
        if known:
            raise ValueError(f"{where}: expected weights of other names than before, got {min(known)!r} again")
        if self.algorithm.grows_by_momentum and not keeps_momentum(self.optimizer, {one.parameter for one in weights}):
            raise ValueError(
                f"{where}: expected an optimizer with momentum for growth by momentum, got"
                f" {type(self.optimizer).__name__} without; growth by 'gradient' or 'random' needs none"
            )
        if self._group is None:
            self._group = _group_of(model, weights)
        self._agree({one.name: one.mask for one in weights}, None, weights)
        for key in [key for key, of in _TRAINED.items() if of() is None]:
            del _TRAINED[key]
        for one in weights:
            other = _TRAINED.get(id(one.parameter), _nobody)()
            if other is not None and other is not self:
                raise ValueError(
                    f"{where}: expected weights that nothing else trains sparse, got {one.name!r} of {other!r}; its"
                    " remove() lets them go"
                )
        if self._compact is not None and any(is_sharded(one.parameter) for one in weights):
            raise ValueError(f"{where}: expected whole weights for compact_state, got sharded ones")
        for one in weights:
            self._weights[one.name] = one
            _TRAINED[id(one.parameter)] = weakref.ref(self)
            one.apply()
            if self._compact is not None:
                self._compact.adopt(one)
            if not is_sharded(one.parameter):
                hook = one.parameter.register_hook(WeakHook(self, "_masked_gradient", one.name))
                self._hooks[one.name] = hook
        self._models.append(model)
        self._handles.append(unwrapped(model).register_load_state_dict_post_hook(WeakHook(self, "_after_load")))
        if make_kernels is not None:
            self._kernels.append(make_kernels())
        self._take_layers()
        if make_kernels is not None:
            self._kernels[-1].after_step(self)

    # Steps

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """`optimizer.step()`, which may be called itself: masks and updates are hooks of it.

        Args:
            closure: As the optimizer takes it.

        Returns:
            What the optimizer returns.
        """
        return self.optimizer.step() if closure is None else self.optimizer.step(closure)

    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self._weights or self._is_skipped():
            return None
        if self._compact is not None:
            self._compact.after_step()  # where the last step raised
        closure = args[1] if len(args) > 1 else kwargs.get("closure")  # the first is the optimizer
        if closure is None:
            self._take_gradients()
            return None

        def with_masks() -> Any:
            loss = closure()
            self._take_gradients()
            return loss

        if len(args) > 1:
            return (args[0], with_masks, *args[2:]), kwargs
        return args, {**kwargs, "closure": with_masks}

    @torch.no_grad()
    def _take_gradients(self) -> None:
        """Refuse gradients that are not finite, and mask those of a step without dense gradients."""
        weights = [one for one in self._weights.values() if one.parameter.grad is not None]
        is_dense = self._is_dense_step()
        self._check_finite(only_used=self._compact is not None and not is_dense)
        stale, unmasked = self._layers.take_stale(), self._layers.unmasked
        for one in weights:
            masked = one.name not in stale if one.name in unmasked else one.name in self._seen
            if not is_dense and not masked:
                one.mask_(one.local(one.parameter.grad))
        is_due = self._update_every is None or (self.steps + 1) % self._update_every == 0
        if self.algorithm.grows_by_gradient and is_due and is_dense:
            # as they are now: some optimizers write into them
            copies = {one.name: one.parameter.grad.clone() for one in weights if one.parameter.grad is not None}
            self._updater.gradients = self.steps + 1, copies
        if self._compact is not None:
            self._compact.before_step(weights)
        else:
            self._check_states(weights)

    def _check_states(self, weights: Sequence[MaskedWeight]) -> None:
        """Raise for a state of used weights alone, which torch might broadcast."""
        for one in weights:
            for value in self.optimizer.state.get(one.parameter, {}).values():
                if isinstance(value, Tensor) and value.dim() == 1 < one.parameter.dim():
                    raise RuntimeError(
                        f"{self._where}: expected an optimizer's state of {one.name!r} with all of its elements, got"
                        f" {value.numel()}: it was saved with compact_state=True"
                    )

    def _is_skipped(self) -> bool:
        """Whether a GradScaler lets a fused optimizer find out itself that it is not to step."""
        found = getattr(self.optimizer, "found_inf", None)
        return isinstance(found, Tensor) and bool(found)

    def _masked_gradient(self, name: str, gradient: Tensor) -> Tensor | None:
        """At a step without gradients of missing weights there are none from the beginning: whoever clips gradients
        finds the same on sparse kernels and without."""
        one = self._weights.get(name)
        if one is None or name in self._layers.unmasked or self._is_dense_step() or gradient.layout != torch.strided:
            return None
        self._seen.add(name)
        if gradient.requires_grad:  # create_graph=True
            return gradient.masked_fill(~one.local_mask, 0)
        return one.masked(gradient)

    def _after_load(self, _: Any, module: nn.Module, keys: Any) -> None:
        """Somebody loaded weights into the model: layers whose weights lie within the masks have their patterns again.

        Others may be those of a checkpoint whose masks are read next; if not, the next step masks them.
        """
        within = {name for name, one in self._weights.items() if one.is_within()}
        self._layers.set_patterns(within)
        self._prepare_next()

    def _check_finite(self, only_used: bool) -> None:
        """Refuse gradients that are not finite, of all parameters that the optimizer has.

        Args:
            only_used: Of masked weights, whether the optimizer gets no others than those of used elements.
        """
        used = {}
        for name, one in self._weights.items():
            if one.parameter.grad is not None and one.parameter.grad.layout != torch.strided:
                raise RuntimeError(f"{self._where}: expected a dense gradient of {name!r}, got a sparse one")
            if only_used and one.parameter.grad is not None and self._compact is not None:
                used[id(one.parameter)] = self._compact.gradient_of(one)
        found = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        found = [p for p in found if p.grad.layout == torch.strided and p.grad.is_floating_point()]
        grads = [used.get(id(p), p.grad.to_local() if is_sharded(p.grad) else p.grad).detach() for p in found]
        if _is_capturing(grads):
            return
        places = not_finite(grads)
        names = {}
        if places:
            names = {id(p): name for model in self._models for name, p in unwrapped(model).named_parameters()}
        self._refuse([names.get(id(found[place]), "another parameter") for place in places])

    def _refuse(self, bad: Sequence[str]) -> None:
        """Raise, on all ranks, where there is something bad: of a shard other ranks know nothing."""
        any_bad = bool(bad)
        if self._group is not None and any(is_sharded(one.parameter) for one in self._weights.values()):
            from torch import distributed

            number = torch.tensor([int(any_bad)], device=self._device())
            distributed.all_reduce(number, op=distributed.ReduceOp.MAX, group=self._group)
            any_bad = bool(number)
        if any_bad:
            name = repr(bad[0]) if bad else "a weight on another rank"
            raise FloatingPointError(
                f"{self._where}: expected finite gradients, got NaN or infinite ones of {name}; the step was not taken,"
                " weights and masks are unchanged"
            )

    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._weights or self._is_skipped():
            return
        if self._compact is not None:
            self._compact.after_step()
        for one in self._weights.values():
            if self._compact is None or one.parameter.grad is None:  # else it has written all of it
                one.apply()
        self._seen.clear()
        self.steps += 1
        self.schedule.step()
        self._prune_rate = self.schedule.get_dr(self._prune_rate)
        try:
            if self._is_due():
                self.update()
        finally:
            for kernels in self._kernels:
                kernels.after_step(self)
            self._prepare_next()

    def _is_due(self) -> bool:
        if self._update_every is None or not self.algorithm.changes:
            return False
        if self.algorithm.gradual and self.steps == self._last_update:
            return True
        if self.steps % self._update_every:
            return False
        return self._last_update is None or self.steps <= self._last_update

    def _is_dense_step(self) -> bool:
        """Whether the gradients of the step that is next are those of the dense layers."""
        if self._dense_every is None or not self.algorithm.needs_missing:
            return False
        if self._last_update is not None and self.steps >= self._last_update:
            return False
        return (self.steps + 1) % self._dense_every == 0

    def _prepare_next(self) -> None:
        self._layers.prepare(self._is_dense_step())

    # Updates

    def update(self) -> Update:
        """Change the topology once: prune, and grow as many. All of it or, where anything raises, nothing.

        Returns:
            What it did.

        Raises:
            RuntimeError: Where growth looks at a momentum or gradient that is not there yet, or ranks disagree.
            FloatingPointError: For weights or signals that are not finite.
            ValueError: For a rate outside of [0, 1], or a function of a user's own that returns something else than a
                mask with the count that was asked for.
        """
        state, error, new, rate = self._generator.get_state(), None, {}, 0.0
        try:
            rate = self._rate()
            if self.algorithm.changes:
                new = self._updater.new_units(rate, self.steps, self._gradual)
            masks = {name: self._weights[name].mask_of_units(units) for name, (_, units) in new.items()}
        except Exception as raised:
            error, masks = raised, {}
        try:
            self._agree(masks, error)
        except BaseException:
            self._generator.set_state(state)
            raise
        report = self._report(rate, new, masks)
        for name, (kept, _) in new.items():  # of all weights, or of none
            self._change(self._weights[name], self._weights[name].mask_of_units(kept), masks[name])
        self._layers.set_patterns(masks)
        self._updater.gradients = -1, {}
        self.updates += 1
        for kernels in self._kernels:
            kernels.after_update(self)
        return report

    @contextlib.contextmanager
    @torch.no_grad()
    def _with_masks(self, masks: Mapping[str, Tensor]) -> Iterator[None]:
        """Inside, weights are random numbers below other masks.

        Args:
            masks: By the names of weights, as `packed` made them bits.
        """
        known = {name: bits for name, bits in masks.items() if name in self._weights}
        before = {name: self._weights[name].parameter.detach().clone() for name in known}
        generator = torch.Generator().manual_seed(0)
        try:
            for name, bits in known.items():
                one = self._weights[name]
                mask = unpacked(bits, one.mask.shape).to(one.parameter.device)
                scale = 1 / max(1, one.mask.numel() // one.shape[0]) ** 0.5
                one.parameter.copy_(torch.where(mask, random_like(mask, generator).add(0.5).mul(scale), 0))
            yield
        finally:
            for name, values in before.items():
                self._weights[name].parameter.copy_(values)

    def _take_layers(self) -> None:
        """Give the sparse layers that a model has by now their patterns."""
        self._layers.start_anew()
        self._prepare_next()

    def _load_kernels(self, states: list[Any]) -> None:
        for kernels, state in zip(self._kernels, states, strict=False):
            kernels.load_state_dict(state, self)

    def _report(self, rate: float, new: NewUnits, masks: Mapping[str, Tensor]) -> Update:
        pruned, grown = {}, {}
        for name, (kept, units) in new.items():
            stay = int(kept.count_nonzero())
            pruned[name] = int(self._weights[name].units_of_mask(self._weights[name].mask).count_nonzero()) - stay
            grown[name] = int(units.count_nonzero()) - stay
        nonzeros = {name: int(mask.count_nonzero()) for name, mask in masks.items()}
        return Update(self.steps, rate, pruned, grown, nonzeros)

    @torch.no_grad()
    def _change(self, one: MaskedWeight, kept: Tensor, mask: Tensor) -> None:
        """Exchange a mask. What was not kept is zero, and so is what the optimizer knows of it, unless growth by
        momentum is to look at that."""
        if self._compact is not None:
            self._compact.change(one, kept, mask)
        one.mask = kept
        one.apply()
        gone = ~one.local_mask
        if not self.algorithm.grows_by_momentum:
            for tensor in state_tensors(self.optimizer.state.get(one.parameter, {}), one.parameter.shape):
                one.local(tensor).masked_fill_(gone, 0)
        one.mask = mask

    def _rate(self) -> float:
        rate = self._prune_rate
        if not isinstance(rate, numbers.Real) or not 0 <= rate <= 1:
            raise ValueError(f"{self._where}: expected a prune rate from 0 to 1, got {rate!r}")
        return float(rate)

    def _gradual(self, one: MaskedWeight) -> int:
        """How many units gradual pruning leaves now."""
        assert self._last_update is not None
        if self.steps >= self._last_update:
            return one.wanted
        return round(cubic_density(self.steps, 0, self._last_update, one.count, one.wanted))

    # Masks from outside

    def set_masks(self, masks: Mapping[str, Tensor]) -> None:
        """Use the weights of these masks from now on. Their number is what later updates keep.

        Args:
            masks: bool, by the names of weights that are masked; of other weights the masks stay.

        Raises:
            TypeError: For a mask that is not a bool tensor.
            ValueError: For an unknown name, or another shape. Then nothing has changed.
        """
        checked = {name: checked_mask(self._where, self._known(name), mask) for name, mask in masks.items()}
        for name, mask in checked.items():
            one = self._weights[name]
            units = one.units_of_mask(mask)
            self._change(one, one.mask_of_units(units) & one.mask, one.mask_of_units(units))
            one.wanted = int(units.count_nonzero())
        self._layers.set_patterns(checked)
        for kernels in self._kernels:
            kernels.after_update(self)
        self._prepare_next()

    def _forget(self, names: Iterable[str]) -> None:
        """Leave these weights dense from now on."""
        for name in list(names):
            for layer in self._layers.found().get(name, ()):
                layer.dense_grad, layer.dense_product = False, True
                layer.set_pattern(torch.ones_like(self._weights[name].mask))
            _TRAINED.pop(id(self._weights.pop(name).parameter), None)
            hook = self._hooks.pop(name, None)
            if hook is not None:
                hook.remove()

    def _known(self, name: str) -> MaskedWeight:
        if name not in self._weights:
            known = ", ".join(map(repr, list(self._weights)[:3]))
            raise ValueError(f"{self._where}: expected names of masked weights, as {known}, got {name!r}")
        return self._weights[name]

    # Ranks

    def _device(self) -> torch.device:
        one = next(iter(self._weights.values()))
        return one.local(one.parameter).device

    def _agree(
        self, masks: Mapping[str, Tensor], error: BaseException | None, weights: Sequence[MaskedWeight] = ()
    ) -> None:
        if self._group is None:
            if error is not None:
                raise error
            return
        device = weights[0].local(weights[0].parameter).device if weights else self._device()
        check_agreement(masks, error, self._group, device)

    def remove(self) -> None:
        """End it: the hooks go, layers are the model's own again, and weights are masked as they are now.

        Nothing masks them from here on: in training, zeros move.
        """
        for handle in self._handles:
            handle.remove()
        for hook in self._hooks.values():
            hook.remove()
        for masked in self._weights.values():
            _TRAINED.pop(id(masked.parameter), None)
        if self._compact is not None:
            self._compact.after_step()
            for one_of in self._weights.values():
                state_of = self.optimizer.state.get(one_of.parameter)
                if state_of is not None:
                    self.optimizer.state[one_of.parameter] = self._compact.expanded(one_of, state_of)
        for one in self._kernels:
            one.remove()
        for layers in self._layers.found().values():
            for layer in layers:
                layer.dense_grad = False
        for weight in self._weights.values():
            weight.apply()


def _compact(where: str, optimizer: Optimizer, algorithm: Algorithm) -> CompactState:
    if not leaves_zeros(optimizer):
        raise ValueError(
            f"{where}: expected an optimizer of torch that treats each element by itself for compact_state, such as SGD"
            f" or Adam, got {type(optimizer).__name__}"
        )
    if algorithm.grows_by_momentum:
        raise ValueError(
            f"{where}: expected no compact_state with growth by momentum, which looks at that of missing weights"
        )
    return CompactState(optimizer)


def _is_capturing(tensors: Sequence[Tensor]) -> bool:
    return any(one.is_cuda for one in tensors) and torch.cuda.is_current_stream_capturing()


def _group_of(model: nn.Module, weights: Sequence[MaskedWeight]) -> Any:
    """The ranks that train the same model: of DistributedDataParallel, or those that a weight is sharded over."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return model.process_group
    if any(is_sharded(one.parameter) for one in weights):
        from torch import distributed

        return distributed.group.WORLD
    return None
