# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Nonzeros that a layer would leave out: it computes what the dense layer with its parameters does, or raises.

More than 400 lines: each way in which users write such nonzeros, and each way in which a layer then runs.
"""

from __future__ import annotations

import copy
import pickle
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conv1d_of_transformers import Conv1D
from sparse_nets import pruned
from torch import Tensor, nn

import sparsekernels as sk
from sparsekernels import _library
from sparsekernels.ops.sparse_conv2d.outside import Guard

pytestmark = pytest.mark.filterwarnings("ignore:.*computes with the whole weight")


def zero_rows(layer: Any) -> Any:
    layer.weight.data[2:] = 0
    layer.weight.data[:, ::2] = 0
    return layer


LAYERS: dict[str, Callable[[], tuple[Any, Any, Tensor]]] = {
    "SparseLinear": lambda: made(sk.nn.SparseLinear, pruned(nn.Linear(65, 33)), torch.randn(3, 65)),
    "SparseConv2d": lambda: made(
        sk.nn.SparseConv2d,
        pruned(nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular")),
        torch.randn(2, 4, 5, 5),
    ),
    "SparseConv1d": lambda: made(
        sk.nn.SparseConv1d, pruned(nn.Conv1d(4, 6, 3, padding=1, padding_mode="circular")), torch.randn(2, 4, 9)
    ),
    "SparseTransposedLinear": lambda: made(sk.nn.SparseTransposedLinear, pruned(Conv1D(33, 65)), torch.randn(3, 65)),
    "ChannelDroppedLinear": lambda: made(sk.nn.ChannelDroppedLinear, zero_rows(nn.Linear(8, 5)), torch.randn(2, 3, 8)),
    "ChannelDroppedConv2d": lambda: made(
        sk.nn.ChannelDroppedConv2d, zero_rows(nn.Conv2d(4, 6, 3, stride=2)), torch.randn(2, 4, 7, 7)
    ),
}
every_layer = pytest.mark.parametrize("name", LAYERS)


def made(cls: Any, dense: Any, x: Tensor) -> tuple[Any, Any, Tensor]:
    return cls.from_dense(dense), dense, x


def write_by_numpy(weight: Tensor, delta: Tensor) -> None:
    array = weight.detach().numpy()
    array += delta.numpy()


def write_by_data(weight: Tensor, delta: Tensor) -> None:
    weight.data += delta


def write_in_place(weight: Tensor, delta: Tensor) -> None:
    with torch.no_grad():
        weight.add_(delta)


def derivatives(layer: Any, x: Tensor) -> list[Tensor]:
    with torch.enable_grad():
        x = x.clone().requires_grad_()
        y = layer(x)
        return [y.detach(), *torch.autograd.grad(y.square().sum(), [x, layer.weight, layer.bias])]


def assert_dense(layer: Any, dense: Any, x: Tensor) -> None:
    """With the values of `dense`, to which the parameters are copied."""
    dense.load_state_dict({name: value.clone() for name, value in layer.state_dict().items()})
    with torch.no_grad():
        torch.testing.assert_close(layer(x), dense(x))
    for ours, theirs in zip(derivatives(layer, x), derivatives(dense, x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@every_layer
@pytest.mark.parametrize("write", [write_by_numpy, write_by_data, write_in_place])
@pytest.mark.parametrize("grad", [False, True])
def test_what_is_written_to_zeros_is_computed_with(name: str, write: Any, grad: bool) -> None:
    layer, dense, x = LAYERS[name]()
    with torch.set_grad_enabled(grad):
        before = layer(x).detach()
        assert layer.outside() == 0
        kept = layer.weight.detach().clone()
        write(layer.weight, torch.randn_like(kept))
        count = layer.outside()
        assert count > 0
        with pytest.warns(UserWarning, match=f"{name}: {count} elements of its weight.*set_"):
            after = layer(x).detach()
        assert not torch.allclose(before, after)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # it is said once
            assert_dense(layer, dense, x)
            weight = layer.weight.detach().clone()
            state = layer.state_dict()
            assert torch.equal(layer.weight, weight)
            assert torch.equal(state["weight"], weight)
            write(layer.weight, kept - layer.weight.detach())
            torch.testing.assert_close(layer(x).detach(), before)
            assert layer.outside() == 0


@every_layer
def test_the_gradient_is_zero_outside_again(name: str) -> None:
    layer, _, x = LAYERS[name]()
    for outside in (False, True, False):
        layer.weight.data.view(-1)[:] = layer.weight.data.view(-1)
        zero = (layer.weight == 0).flatten().nonzero()[-1]
        layer.weight.data.view(-1)[zero] = 1.0 if outside else 0.0
        assert bool(derivatives(layer, x)[2].view(-1)[zero]) is outside
        layer.weight.data.view(-1)[zero] = 0.0


@pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("size", [1, 63, 64, 65, 1000, 70000])
def test_counts(dtype: torch.dtype, size: int) -> None:
    mask = torch.rand(size, 1) < 0.3
    weight = torch.zeros(size, 1, dtype=dtype)
    pattern = sk.Unstructured.of_mask(mask, dtype)
    if pattern.nnz == size:
        return
    weight[mask] = 1
    guard = Guard()
    assert guard.outside(pattern, weight) == 0
    zeros = (~mask).flatten().nonzero()[:, 0]
    weight.view(-1)[zeros] = -0.0
    assert guard.outside(pattern, weight) == 0
    weight.view(-1)[zeros[-1]] = torch.nan
    assert guard.outside(pattern, weight) == 1
    weight.view(-1)[zeros] = torch.finfo(dtype).tiny
    assert guard.outside(pattern, weight) == len(zeros)
    assert guard.outside(pattern, weight.to("meta")) < 0


@pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")
def test_one_element_is_seen_within_as_many_calls_as_parts() -> None:
    """Of a large weight, in short calls, past autograd's count of versions; one that is counted is seen at once."""
    weight = torch.zeros(1024, 512)
    weight[::2] = 1
    guard, pattern = Guard(), sk.Unstructured.from_dense(weight)
    calls = weight.numel() * 4 // 2**14 + 2
    for row, column in ((1, 0), (1023, 511), (511, 77)):
        assert guard.outside(pattern, weight) == 0
        weight.data[row, column] = 1
        assert any(guard.outside(pattern, weight, 0.0) for _ in range(calls))
        weight.data[row, column] = 0
        assert guard.outside(pattern, weight, 0.0) == 0
        weight[row, column] = 1
        assert guard.outside(pattern, weight, 0.0) == 1
        weight[row, column] = 0


def test_a_call_that_raised_has_looked_at_nothing() -> None:
    """Another parameter at the same address, in the same version: it is read as a whole in its first call."""
    dense = pruned(nn.Linear(256, 256, bias=False))
    layer, x = sk.nn.SparseLinear.from_dense(dense), torch.randn(1, 256)
    with torch.no_grad():
        for _ in range(3):
            layer(x)
        layer.weight = nn.Parameter(layer.weight.data)
        place = (layer.weight == 0).nonzero()[1000].tolist()
        layer.weight.data[tuple(place)] = 1
        with pytest.raises((TypeError, RuntimeError)):
            layer(x.bfloat16())
        torch.testing.assert_close(layer(x), F.linear(x, layer.weight))


def test_where_warnings_are_errors_each_call_raises() -> None:
    layer = sk.nn.SparseLinear.from_dense(pruned(nn.Linear(8, 8)))
    layer.weight.data += 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            with pytest.raises(UserWarning, match="computes with the whole weight"):
                layer(torch.randn(2, 8))


@every_layer
def test_what_a_layer_keeps_is_its_own(name: str) -> None:
    layer, _, x = LAYERS[name]()
    layer.weight.data.add_(1)
    layer(x)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other._guard is not layer._guard
        assert not other._guard.warned
        assert torch.equal(other(x), layer(x))
        assert list(other.state_dict()) == ["weight", "bias"]


def test_threads_with_weights_of_their_own() -> None:
    layer, dense, x = LAYERS["SparseLinear"]()
    weights = [dense.weight.detach().clone(), torch.randn_like(dense.weight)]
    wrong = []

    def run(weight: Tensor) -> None:
        expected = F.linear(x, weight, layer.bias)
        for _ in range(200):
            with torch.no_grad():
                y = torch.func.functional_call(copy.copy(layer), {"weight": weight}, (x,))
            if not torch.allclose(y, expected, atol=1e-5):
                wrong.append(y)

    threads = [threading.Thread(target=run, args=(weight,)) for weight in weights]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@every_layer
def test_an_ensemble_of_other_patterns(name: str) -> None:
    layer, _, x = LAYERS[name]()
    other = type(layer).from_dense(LAYERS[name]()[1])
    other.weight.data.copy_(layer.weight.data.flip(0, 1))
    layers = [layer, other]
    parameters, buffers = torch.func.stack_module_state(layers)

    def call(parameters: Any, buffers: Any, x: Tensor) -> Tensor:
        return torch.func.functional_call(layer, (parameters, buffers), (x,))

    expected = torch.stack(
        [torch.func.functional_call(nn_twin(layer), dict(one.named_parameters()), x) for one in layers]
    )
    together = torch.func.vmap(call, in_dims=(0, 0, None))(parameters, buffers, x)
    torch.testing.assert_close(together, expected, rtol=1e-4, atol=1e-5)

    def loss(parameters: Any, x: Tensor) -> Tensor:
        return call(parameters, {}, x).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(0, None))(parameters, x)
    for i, one in enumerate(layers):
        weight = one.weight.detach().clone().requires_grad_()
        y = torch.func.functional_call(one, {"weight": weight}, (x,))
        torch.testing.assert_close(y, expected[i], rtol=1e-4, atol=1e-5)
        (gradient,) = torch.autograd.grad(y.square().sum(), weight)
        used = (one.weight != 0) if i == 0 else torch.ones_like(gradient, dtype=torch.bool)
        torch.testing.assert_close(each["weight"][i] * used, gradient * used, rtol=1e-3, atol=1e-3)
    tangent = torch.randn_like(layer.weight)
    for one in layers:
        torch.testing.assert_close(
            torch.func.jvp(
                lambda weight: torch.func.functional_call(layer, {"weight": weight}, (x,)),
                (one.weight.detach(),),
                (tangent * (one.weight != 0),),
            )[1],
            torch.func.jvp(
                lambda weight: torch.func.functional_call(nn_twin(layer), {"weight": weight}, (x,)),
                (one.weight.detach(),),
                (tangent * (one.weight != 0),),
            )[1],
            rtol=1e-4,
            atol=1e-4,
        )


def nn_twin(layer: Any) -> Any:
    """The dense layer."""
    if isinstance(layer, nn.Linear):
        return nn.Linear(layer.in_features, layer.out_features)
    if isinstance(layer, sk.nn.SparseTransposedLinear):
        return Conv1D(layer.nf, layer.nx)
    return (nn.Conv2d if isinstance(layer, nn.Conv2d) else nn.Conv1d)(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        padding_mode=layer.padding_mode,
    )


@every_layer
@pytest.mark.parametrize("way", ["aot_eager", "export", "jit", "fx", "make_fx"])
def test_recorded_calls_are_right_or_raise(name: str, way: str) -> None:
    layer, dense, x = LAYERS[name]()
    layer.eval()
    with torch.no_grad():
        if way == "aot_eager":
            torch._dynamo.reset()
            recorded: Any = torch.compile(layer, fullgraph=True, backend=way)
            recorded(x)
        elif way == "export":
            recorded = torch.export.export(layer, (x,)).module()
        elif way == "jit":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                recorded = torch.jit.trace(layer, (x,), check_trace=False)
        elif way == "fx":
            recorded = torch.fx.symbolic_trace(layer)
        else:
            from torch.fx.experimental.proxy_tensor import make_fx

            by_weight = make_fx(lambda weight, x: torch.func.functional_call(layer, {"weight": weight}, (x,)))(
                layer.weight.detach(), x
            )

            def recorded(x: Tensor) -> Tensor:
                return by_weight(layer.weight.detach(), x)

        torch.testing.assert_close(recorded(x), dense(x))
        delta = torch.randn_like(layer.weight)
        for parameter in {id(one): one for one in (layer.weight, *getattr(recorded, "parameters", list)())}.values():
            if parameter.shape == delta.shape:
                parameter.data += delta
        dense.weight.data += delta
        try:
            y = recorded(x)
        except (RuntimeError, ValueError) as error:
            text = str(error)
        else:
            torch.testing.assert_close(y, dense(x))
            return
    assert "zero outside of its pattern" in text


@pytest.mark.parametrize("name", ["SparseLinear", "ChannelDroppedConv2d"])
def test_compiled_gradients(name: str) -> None:
    layer, _, x = LAYERS[name]()
    expected = derivatives(layer, x)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = x.clone().requires_grad_()
    y = compiled(x)
    gradients = torch.autograd.grad(y.square().sum(), [x, layer.weight, layer.bias])
    for ours, theirs in zip([y.detach(), *gradients], expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    layer.weight.data += 1
    with pytest.raises(ValueError, match="zero outside of its pattern"):
        compiled(x)


@every_layer
@pytest.mark.parametrize("how", ["autocast", "reference", "inference", "double", "channels_last"])
def test_other_ways_to_call(name: str, how: str) -> None:
    layer, dense, x = LAYERS[name]()
    if how == "double":
        layer, dense, x = layer.double(), dense.double(), x.double()
    if how == "channels_last":
        layer, dense = layer.to(memory_format=torch.channels_last), dense.to(memory_format=torch.channels_last)
    context: Any = {
        "autocast": torch.autocast("cpu", torch.bfloat16),
        "reference": sk.use_backend("reference"),
        "inference": torch.inference_mode(),
    }.get(how, torch.no_grad())
    with context:
        for delta in (0.0, 1.0, 0.0):
            layer.weight.data.copy_(dense.weight.data + delta)
            parameters = {"weight": layer.weight, "bias": layer.bias}
            expected = torch.func.functional_call(nn_twin(layer), parameters, x)
            torch.testing.assert_close(layer(x), expected, rtol=3e-2, atol=3e-2)


@every_layer
def test_an_optimizer_that_moves_every_weight(name: str) -> None:
    """As Muon does: what orthogonalizes a gradient leaves no zeros in it."""
    layer, dense, x = LAYERS[name]()
    twin = copy.deepcopy(dense)
    for step in range(3):
        for one in (layer, twin):
            one.weight.grad = None
            one(x).square().sum().backward()
            if step == 0:  # the same first step
                one.weight.grad = torch.randn(one.weight.shape, generator=torch.Generator().manual_seed(0))
            with torch.no_grad():
                one.weight.sub_(0.1 * one.weight.grad.sign())
                one.bias.zero_()
    torch.testing.assert_close(layer(x), twin(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("use_buffers", [False, True])
@every_layer
def test_an_average_has_its_own_weights(name: str, use_buffers: bool) -> None:
    layer, dense, x = LAYERS[name]()
    average = torch.optim.swa_utils.AveragedModel(layer, use_buffers=use_buffers)
    average.update_parameters(layer)
    layer.weight.data += 1
    average.update_parameters(layer)
    assert_dense(average.module, dense, x)


@every_layer
def test_another_weight_in_its_place(name: str) -> None:
    """Another size, none, a subclass: what the dense layer does."""
    layer, dense, x = LAYERS[name]()
    outputs = 1 if isinstance(dense, Conv1D) else 0
    sizes = [2 * size if dim == outputs else size for dim, size in enumerate(layer.weight.shape)]
    bigger = torch.randn(sizes)
    for one in (layer, dense):
        one.weight, one.bias = nn.Parameter(bigger), nn.Parameter(torch.zeros(sizes[outputs]))
        if isinstance(dense, Conv1D):
            one.nf = sizes[outputs]
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(layer(x), dense(x))
    layer.weight = None
    with pytest.raises(TypeError):
        layer(x)


class Scaled(Tensor):
    """A tensor that stands for another one, as a quantized weight does."""

    scale: float

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        plain = [one.as_subclass(Tensor) * one.scale if isinstance(one, cls) else one for one in args]
        if function in (F.linear, torch.conv2d, F.conv2d, torch.conv1d, F.conv1d, torch.addmm):
            return function(*plain, **(kwargs or {}))
        return super().__torch_function__(function, types, args, kwargs or {})


@every_layer
def test_a_weight_that_stands_for_another(name: str) -> None:
    layer, dense, x = LAYERS[name]()
    scaled = (dense.weight.detach() + 1).as_subclass(Scaled)
    scaled.scale = 0.5
    del layer.weight
    layer.weight = scaled
    dense.weight.data = (dense.weight.data + 1) * 0.5
    with torch.no_grad():
        torch.testing.assert_close(layer(x), dense(x))
