# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The oracle: how every implementation of every operation is judged. Operations have no other tolerance.

Truth is the reference in float64, its gradients by autograd. An implementation passes if its largest error against that
truth is at most twice that of the reference run in the tested dtype, plus a few eps of the largest value: the eps of
the type that is computed in, float32 for the half types, whose own rounding is in the reference's error already. Where
the reference gives NaN or infinity, so must the implementation.

What is tested in float64 itself has no wider truth. There the reference's error is that of a float32 run, scaled by the
ratio of the two eps.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ._gradient_errors import gradient_error as gradient_error
from ._gradient_errors import gradient_errors as gradient_errors

ERROR_FACTOR = 2.0
EPS_FACTOR = 4.0

Outputs = Tensor | Sequence[Tensor]


@dataclass(frozen=True)
class Comparison:
    """One result compared with the truth.

    Attributes:
        name: Of the result.
        error: The largest error, absolute, in the units of the result.
        allowed: The largest error that passes.
    """

    name: str
    error: float
    allowed: float

    @property
    def passed(self) -> bool:
        return self.error <= self.allowed  # false for a NaN

    def __str__(self) -> str:
        return f"{self.name}: error {self.error:.3g}, allowed {self.allowed:.3g}"


def compare(name: str, actual: Tensor, truth: Tensor, baseline: Tensor, exact: bool = False) -> Comparison:
    """Judge a result by the truth and by what the reference gives in the tested dtype.

        allowed = 2 |baseline - truth| + 4 eps |truth|   in maximum norms

    An error that cannot be a number (another shape, NaN or infinity in other places) is infinite.

    Args:
        name: Of the result.
        actual: The result.
        truth: float64, the result of the reference, in the shape of `actual`.
        baseline: The result of the reference in the tested dtype. In a narrower dtype than `actual`, its error counts
            scaled by the ratio of their eps.
        exact: Whether `actual` was computed in float64, not in float32.

    Returns:
        The comparison.
    """
    if actual.shape != truth.shape:
        return Comparison(f"{name} (expected shape {list(truth.shape)}, got {list(actual.shape)})", float("inf"), 0.0)
    if actual.numel() == 0:
        return Comparison(name, 0.0, 0.0)
    wide, base = actual.double(), baseline.double()
    if not all(torch.isfinite(one).all() for one in (wide, base, truth)):
        finite = torch.isfinite(base) & torch.isfinite(truth)
        same_elsewhere = torch.equal(wide[~finite].nan_to_num(0.5), base[~finite].nan_to_num(0.5))
        if not same_elsewhere or not torch.isfinite(wide[finite]).all():
            return Comparison(f"{name} (NaN or infinity in other places)", float("inf"), 0.0)
        if not finite.any():
            return Comparison(name, 0.0, 0.0)
        wide, base, truth = wide[finite], base[finite], truth[finite]
    scale = min(1.0, torch.finfo(actual.dtype).eps / torch.finfo(baseline.dtype).eps)
    error = (base - truth).abs().max().item() * scale
    few = EPS_FACTOR * torch.finfo(torch.float64 if exact else torch.float32).eps * truth.abs().max().item()
    return Comparison(name, (wide - truth).abs().max().item(), ERROR_FACTOR * error + few)


@contextlib.contextmanager
def prefer(*names: str) -> Iterator[None]:
    """Inside the `with` block, `sparsekernels.convert` takes the first of `names` that applies, without a clock.

    For tests of what a converted model computes: which implementation is the fastest differs from machine to machine.
    Each is run once, and checked, as when it is measured. A graph leaves out dead channels of dense layers as well,
    unless the argument `decisions` of `convert` excludes "channel-dropped". Where none of the names applies, a layer,
    or the model, stays as it was: so name a way to run the model, too, beside what its layers become, or nothing is
    converted. Process-wide, and nests.

        with prefer("fine-grained", "graph", "layers"):  # layers one by one where there is no graph
            report = sparsekernels.convert(model, x)

    Args:
        *names: For layers "fine-grained", "block", "channel-dropped", "packed" or "dense"; for norms "norms", to run as
            `rms_norm`; for ways to run the model "graph", "chains" (a graph in which consecutive sparse layers are one
            call) or "layers" (one by one).

    Returns:
        A context manager.

    Raises:
        ValueError: For an unknown name.
    """
    from .conversion.measure import is_preferable, preferable, preferred

    for name in names:
        if not is_preferable(name):
            raise ValueError(f"prefer: expected names of {', '.join(map(repr, preferable()))}, got {name!r}")
    with preferred(names):
        yield


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Inside the `with` block, torch's uninitialized memory is NaN: an output that is not written shows.

    The compiled kernels allocate below this switch; they do the same where SPARSEKERNELS_POISON=1 was set when they
    were loaded.

    Returns:
        A context manager.
    """
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def results(
    function: Callable[..., Outputs], inputs: Sequence[Tensor], gradients: bool, seed: int = 20190812
) -> list[Tensor]:
    """The outputs of function(*inputs) and the gradients to its inputs.

    The seeds of the gradients are random and the same for every dtype, so that runs in several dtypes are comparable.

    Args:
        function: Returns a tensor, or a tuple or list of tensors.
        inputs: What it is called with.
        gradients: Whether to compute the gradient to every input that requires one.
        seed: Of the seeds of the gradients.

    Returns:
        The outputs, then the gradients.

    Raises:
        TypeError: For a function that returns something else.
        ValueError: For one whose outputs do not depend on an input that requires a gradient.
    """
    outputs = _outputs_of(function(*inputs))
    if not gradients:
        return [output.detach() for output in outputs]
    generator = torch.Generator().manual_seed(seed)
    seeds = [
        # bfloat16 holds these exactly, so that every dtype is given the same
        torch.randn(output.shape, generator=generator).bfloat16().to(output.device, output.dtype)
        for output in outputs
    ]
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    if not wanted:
        return [output.detach() for output in outputs]
    attached = [i for i, output in enumerate(outputs) if output.requires_grad]
    found: Sequence[Tensor | None] = [None] * len(wanted)
    if attached:
        found = torch.autograd.grad(
            [outputs[i] for i in attached], wanted, [seeds[i] for i in attached], allow_unused=True
        )
    gradients_of = [gradient for gradient in found if gradient is not None]
    if len(gradients_of) < len(found):
        places = [i for i, tensor in enumerate(inputs) if tensor.requires_grad]
        unused = ", ".join(str(place) for place, one in zip(places, found, strict=True) if one is None)
        name = getattr(function, "__name__", type(function).__name__)
        raise ValueError(
            f"results: expected outputs that depend on every input that requires a gradient, got those of {name}, which"
            f" do not depend on input {unused}"
        )
    return [output.detach() for output in outputs] + gradients_of


def _outputs_of(returned: object) -> tuple[Tensor, ...]:
    outputs = (returned,) if isinstance(returned, Tensor) else returned
    if not isinstance(outputs, tuple | list) or not all(isinstance(one, Tensor) for one in outputs):
        got = type(returned).__name__
        if isinstance(outputs, tuple | list):
            got += f" of {', '.join(type(one).__name__ for one in outputs)}"
        raise TypeError(f"results: expected function to return a tensor, or a tuple or list of tensors, got {got}")
    return tuple(outputs)


def verify(
    function: Callable[..., Outputs],
    reference: Callable[..., Outputs],
    inputs: Sequence[Tensor],
    gradients: bool = True,
) -> list[Comparison]:
    """Judge function(*inputs) by reference(*inputs): every output, and every gradient of an input that requires one.

    Args:
        function: The implementation under test; returns a tensor, or a tuple or list of tensors.
        reference: The definition, in plain torch, for any dtype.
        inputs: What both are called with.
        gradients: Whether gradients are compared as well.

    Returns:
        A comparison for each output, then for each gradient.

    Raises:
        AssertionError: For a result of another dtype or device than the reference's, or another number of outputs.
        TypeError: For `inputs` that are a tensor, not a sequence of them; where something else than tensors is
            returned.
        ValueError: For an input that requires a gradient, and that `function` or `reference` does not use.
    """
    if isinstance(inputs, Tensor):
        raise TypeError("verify: expected inputs to be a sequence of tensors, got a tensor")

    def run(dtype: torch.dtype | None) -> list[Tensor]:
        converted = [
            tensor.detach().to(dtype or tensor.dtype).requires_grad_(tensor.requires_grad) for tensor in inputs
        ]
        return results(reference, converted, gradients)

    in_float64 = all(tensor.dtype == torch.float64 for tensor in inputs)
    truth = run(torch.float64)
    baseline = run(torch.float32 if in_float64 else None)
    with poisoned():
        actual = results(function, inputs, gradients)
    expected = baseline if not in_float64 else truth
    if len(actual) != len(expected):
        difference = len(expected) - len(actual)
        outputs = len(expected) - (sum(tensor.requires_grad for tensor in inputs) if gradients else 0)
        raise AssertionError(f"expected outputs as of the reference, {outputs}, got {outputs - difference}")
    for result, other in zip(actual, expected, strict=True):
        if (result.dtype, result.device) != (other.dtype, other.device):
            raise AssertionError(f"expected {other.dtype} on {other.device}, got {result.dtype} on {result.device}")
    wanted = sum(tensor.requires_grad for tensor in inputs) if gradients else 0
    outputs = len(actual) - wanted
    names = [f"output {i}" for i in range(outputs)] + [f"gradient {i}" for i in range(wanted)]
    exact = inputs[0].dtype == torch.float64
    return [compare(*row, exact) for row in zip(names, actual, truth, baseline, strict=True)]


def assert_verified(
    function: Callable[..., Outputs],
    reference: Callable[..., Outputs],
    inputs: Sequence[Tensor],
    gradients: bool = True,
) -> None:
    """Check that all comparisons of `verify` pass.

    Args:
        function: The implementation under test; returns a tensor or a tuple of tensors.
        reference: The definition, in plain torch, for any dtype.
        inputs: What both are called with.
        gradients: Whether gradients are compared as well.

    Raises:
        AssertionError: Where one does not pass; the message has them all.
    """
    comparisons = verify(function, reference, inputs, gradients)
    if not all(comparison.passed for comparison in comparisons):
        raise AssertionError("; ".join(map(str, comparisons)))
