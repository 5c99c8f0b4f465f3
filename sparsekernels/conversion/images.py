"""Whether the images of a batch go through a graph each by itself, so that they may go in parts."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import nn

from .channels import keeps_channels
from .fused import Fused

_OF_AN_IMAGE = (
    nn.AvgPool2d,
    nn.BatchNorm2d,
    nn.BatchNorm1d,
    nn.ReLU,
    nn.ReLU6,
    nn.Hardtanh,
    nn.Hardswish,
    nn.GELU,
    nn.SiLU,
    nn.Sigmoid,
    nn.LeakyReLU,
    nn.ZeroPad2d,
    nn.Conv2d,
)
_FUNCTIONS_OF_AN_IMAGE = (
    *(F.avg_pool2d, F.relu, F.relu6, F.hardtanh, F.hardswish, F.gelu, F.silu, F.leaky_relu),
    *(torch.relu, torch.sigmoid, torch.add, operator.add, operator.iadd, operator.mul),
    *("relu", "relu_", "sigmoid", "add", "add_", "mul"),
)


def goes_by_image(graph: torch.fx.Graph, fused: Mapping[str, Fused], modules: Mapping[str, nn.Module]) -> bool:
    """Whether a graph of one input and one output does to each image of a batch what it would do to it alone.

    The input is taken to be [N, C, H, W]. Only what is known to be so is believed: no constants that might have a batch
    of their own, no views.
    """
    inputs = 0
    for node in graph.nodes:
        if node.op == "placeholder":
            inputs += 1
        elif node.op == "output":
            if not isinstance(node.args[0], torch.fx.Node):
                return False
        elif node.op == "call_module":
            module: Any = modules.get(node.target)
            known = node.target in fused or type(module) in _OF_AN_IMAGE
            if getattr(module, "track_running_stats", True) is False:
                return False
            if not known and not keeps_channels(node, modules):
                return False
        elif node.op == "get_attr":
            return False
        elif node.target in (torch.cat, torch.concat):
            dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
            if dim != 1:
                return False
        elif node.target not in _FUNCTIONS_OF_AN_IMAGE and not keeps_channels(node, modules):
            return False
    return inputs == 1
