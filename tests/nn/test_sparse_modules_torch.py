# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""SparseLinear and SparseConv2d under torch's tools: compilers, autocast, copies, files, transforms, inference."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sparse_conv2d_cases import runs
from sparse_nets import Dense, assert_all_close, gradients, images, masked, sparse

from sparsekernels.nn import SparseConv2d, SparseLinear
from sparsekernels.pruning import prune_


@pytest.mark.parametrize("dense_grad", [False, True])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile(backend: str, dense_grad: bool) -> None:
    dense, x = Dense(), images()
    net = sparse(dense, dense_grad)
    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True, backend=backend)
    torch.testing.assert_close(compiled(x), dense(x))
    assert_all_close(gradients(compiled, x), gradients(net, x))
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), dense(x))
        net.conv.set_pattern(net.conv.mask & (torch.rand_like(net.conv.weight) < 0.5))
        torch.testing.assert_close(compiled(x), net(x))
        net.conv.weight.mul_(2)
        torch.testing.assert_close(compiled(x), net(x))


@pytest.mark.parametrize("way", ["from_dense", "set_pattern", "load", "pickle", "moved"])
@pytest.mark.parametrize("dense_grad", [False, True])
def test_compiled_graphs_do_not_work_out_what_follows_from_the_pattern(way: str, dense_grad: bool) -> None:
    """Neither the transposed pattern, which takes a sort, nor the places, which take a repeat_interleave."""
    from torch._dynamo.backends.common import aot_autograd

    layer, x = sparse(Dense(), dense_grad).conv, images().requires_grad_()
    if way == "set_pattern":
        layer.set_pattern(torch.rand_like(layer.weight) < 0.4)
    elif way == "load":
        layer.load_state_dict(Dense().conv.state_dict())
    elif way == "pickle":
        layer = pickle.loads(pickle.dumps(layer))
    elif way == "moved":
        layer._adopt(pickle.loads(pickle.dumps(layer.pattern)))  # as after a move to another device
    targets: list[str] = []

    def record(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        targets.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    torch._dynamo.reset()
    torch.compile(layer, fullgraph=True, backend=aot_autograd(fw_compiler=record))(x).sum().backward()
    assert any("sparse_conv2d" in target for target in targets) or ("cpu", "cpu") not in runs()
    assert not any("sort" in target or "repeat_interleave" in target for target in targets)


@pytest.mark.parametrize("training", [False, True])
def test_export(training: bool) -> None:
    net, x = sparse(Dense()).eval(), images()
    with torch.set_grad_enabled(training):
        batch = torch.export.Dim("batch", min=2)
        program = torch.export.export(net, (x,), dynamic_shapes={"x": {0: batch}})
    targets = [str(node.target) for node in program.graph.nodes]
    assert f"sparsekernels.{'' if training else '_'}sparse_conv2d.default" in targets
    more = torch.randn(7, 4, 8, 8)
    torch.testing.assert_close(program.module()(more), net(more))
    torch.testing.assert_close(program.run_decompositions().module()(more), net(more))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    torch.testing.assert_close(torch.export.load(file).module()(more), net(more))


@pytest.mark.parametrize("dense_grad", [False, True])
def test_symbolic_trace(dense_grad: bool) -> None:
    net, x = sparse(Dense(), dense_grad), images()
    traced = torch.fx.symbolic_trace(net)
    torch.testing.assert_close(traced(x), net(x))
    assert_all_close(gradients(traced, x), gradients(net, x))


@pytest.mark.parametrize("dense_grad", [False, True])
def test_autocast(dense_grad: bool) -> None:
    dense, x = Dense(), images()
    net = sparse(dense, dense_grad)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = net(x), dense(x)
        torch.testing.assert_close(ours, theirs, rtol=5e-2, atol=5e-2)
        assert ours.dtype == theirs.dtype == torch.bfloat16
        a, b = gradients(net, x), gradients(dense, x)
    for mine, expected in zip(a, b if dense_grad else masked(dense, b), strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, expected, rtol=1e-1, atol=2e-1)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(net.eval()(x), theirs, rtol=5e-2, atol=5e-2)


@pytest.mark.parametrize("make", [lambda: torch.nn.Linear(8, 6), lambda: torch.nn.Conv2d(3, 4, 3)])
def test_a_module_that_was_saved_with_a_private_pattern_loads(make: Callable[[], Any]) -> None:
    dense = make()
    kind: Any = SparseLinear if isinstance(dense, torch.nn.Linear) else SparseConv2d
    layer = kind.from_dense(dense, torch.rand(dense.weight.shape) < 0.5)
    saved = copy.deepcopy(layer)
    vars(saved)["_pattern"] = vars(saved).pop("pattern")
    loaded = pickle.loads(pickle.dumps(saved))
    assert torch.equal(loaded.mask, layer.mask)
    assert "_pattern" not in vars(loaded)
    assert "_pattern" in vars(saved)
    x = torch.randn(2, *layer.weight.shape[1:])
    assert torch.equal(loaded(x), layer(x))


def test_copies_pickles_and_moves() -> None:
    net, x = sparse(Dense()), images()
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), torch.load(file, weights_only=False)):
        assert torch.equal(other(x), net(x))
        assert torch.equal(other.conv.mask, net.conv.mask)
        with torch.no_grad():
            other.conv.weight.zero_()
            other.conv.bias.zero_()
            assert not other.conv(x).any()
    half = copy.deepcopy(net).bfloat16()
    with torch.no_grad():
        assert half(x.bfloat16()).dtype == torch.bfloat16
        torch.testing.assert_close(half.double()(x.double()), net(x).double(), rtol=2e-2, atol=2e-2)
    assert half.to("meta")(x.to("meta").double()).shape == (3, 5)
    again = half.to_empty(device="cpu")  # what had no data has no pattern any more
    assert again.conv.mask.all()


def test_safetensors(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    net, x = sparse(Dense()), images()
    safetensors.save_model(net, str(tmp_path / "model.safetensors"))
    other = sparse(Dense())
    safetensors.load_model(other, str(tmp_path / "model.safetensors"))
    assert torch.equal(other(x), net(x))
    dense = Dense()
    safetensors.load_model(dense, str(tmp_path / "model.safetensors"))
    torch.testing.assert_close(dense(x), net(x))


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # operators are looped over under vmap
def test_functional_call() -> None:
    net, x = sparse(Dense()).eval(), images()
    with torch.no_grad():
        net(x)
        doubled = {name: 2 * parameter for name, parameter in net.named_parameters()}
        expected = copy.deepcopy(net)
        for parameter in expected.parameters():
            parameter.mul_(2)
        torch.testing.assert_close(torch.func.functional_call(net, doubled, (x,)), expected(x))

    def loss(parameters: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(net, parameters, (x,)).pow(2).sum()

    parameters = {name: parameter.detach() for name, parameter in net.named_parameters()}
    assert_all_close(list(torch.func.grad(loss)(parameters, x).values()), gradients(net, x))
    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x[:, None])
    assert_all_close([gradient.sum(0) for gradient in each.values()], gradients(net, x))


KEPT: list[torch.nn.Module] = []
"""The last reference to a process group joins its threads with the GIL held, which they may still be waiting for."""


def test_distributed_data_parallel(tmp_path: Path) -> None:
    if not torch.distributed.is_available():
        pytest.skip("torch was built without torch.distributed")
    net, x = sparse(Dense()), images()
    expected = gradients(net, x)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        parallel = torch.nn.parallel.DistributedDataParallel(net)
        KEPT.append(parallel)
        parallel(x).pow(2).sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    assert_all_close([parameter.grad for parameter in net.parameters()], expected)


# Inference


@pytest.mark.parametrize("change", ["data.mul_", "data =", "parameter", "in place", "set_pattern", "load"])
def test_every_change_of_the_weight_is_seen(change: str) -> None:
    """In eval mode too, and by whatever way the weight was changed: nothing gathered before is kept."""
    layer, x = sparse(Dense()).linear.eval(), torch.randn(2, 6)
    with torch.no_grad():
        layer(x)
        if change == "data.mul_":
            layer.weight.data.mul_(2)
        elif change == "data =":
            doubled = layer.weight.data * 2
            layer.weight.data = torch.empty(0)  # so that what comes next may lie where the old one lay
            layer.weight.data = doubled
        elif change == "parameter":
            layer.weight = torch.nn.Parameter(layer.weight * 2)
        elif change == "in place":
            layer.weight.mul_(2)
        elif change == "set_pattern":
            layer.set_pattern(layer.mask & (torch.rand(5, 6) < 0.5))
        else:
            layer.load_state_dict({"weight": layer.weight * 2, "bias": layer.bias})
        torch.testing.assert_close(layer(x), F.linear(x, layer.weight * layer.mask, layer.bias))


def test_inference_mode() -> None:
    with torch.inference_mode():
        net, x = sparse(Dense()).eval(), images()
        first = net(x)
        net.linear.weight.mul_(2)
        net.linear.bias.mul_(2)
        torch.testing.assert_close(net(x), 2 * first)
    net = sparse(Dense()).eval()
    with torch.inference_mode():
        inside = net(images())
    assert inside.is_inference()
    with torch.no_grad():
        net(images())
    net(images()).sum().backward()
    assert net.conv.weight.grad is not None


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("make", [lambda: torch.nn.Linear(6, 5), lambda: torch.nn.Conv2d(3, 4, 3, padding=1)])
def test_traced_by_torchscript(make: Any, grad: bool) -> None:
    """Its own check of the trace included, which records without gradients."""
    dense = make()
    prune_(dense, "random", 0.5)
    kind: Any = SparseLinear if isinstance(dense, torch.nn.Linear) else SparseConv2d
    layer: Any = kind.sharing(dense)
    first, second = (torch.randn((3, 6) if dense.weight.dim() == 2 else (2, 3, 5, 5)) for _ in range(2))
    with torch.set_grad_enabled(grad), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(layer, first)
        result = traced(second)
    torch.testing.assert_close(result, dense(second))
    if grad:
        result.sum().backward()
        gradient, layer.weight.grad = layer.weight.grad, None
        layer(second).sum().backward()
        torch.testing.assert_close(gradient, layer.weight.grad)
