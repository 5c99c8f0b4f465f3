# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""revert of models that were taken apart and put together since they were converted: by the layers, not by their
places."""

from __future__ import annotations

import copy
import gc
import io
import weakref
from collections.abc import Callable

import pytest
import torch
from conversion_checks import FINE, GRAPH, LAYERS, Prefer, assert_agree, graphs_of, run
from torch import Tensor, nn

import sparsekernels as sk
from sparsekernels import _library
from sparsekernels.nn.replacement import Replacement
from sparsekernels.pruning import prune_

pytestmark = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16)) for _ in range(3)])
        self.head = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x) if hasattr(self, "head") else x


class Around(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + 1


def _made(prefer: Prefer, how: str = LAYERS) -> tuple[Net, Net, Tensor]:
    model = Net().eval()
    prune_(model, "random", 0.8)
    dense, x = copy.deepcopy(model), torch.randn(4, 16)
    prefer(FINE, how)
    assert len(sk.convert(model, x).converted) == 7
    return model, dense, x


def _sparse(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, Replacement)]


def _sliced(model: Net) -> None:
    model.layers = model.layers[:2]


def _deleted(model: Net) -> None:
    del model.layers[0][0]


def _inserted(model: Net) -> None:
    model.layers[1].insert(0, nn.Tanh())


def _exchanged(model: Net) -> None:
    model.layers[0], model.layers[2] = model.layers[2], model.layers[0]
    one, other = model.layers[1][0], model.layers[1][2]
    model.layers[1][0], model.layers[1][2] = other, one


def _into_another(model: Net) -> None:
    model.layers.append(nn.Sequential(model.head, nn.ReLU()))
    del model.head


def _renamed(model: Net) -> None:
    head = model.head
    del model.head
    model.add_module("last", head)
    model.layers.append(model.last)


def _wrapped(model: Net) -> None:
    model.layers[0][2] = Around(model.layers[0][2])
    model.head = Around(nn.Sequential(model.head))


def _repeated(model: Net) -> None:
    model.layers.append(model.layers[0][0])


def _new_layer(model: Net) -> None:
    model.head = nn.Linear(16, 16)
    with torch.no_grad():
        model.head.weight.fill_(0.25)
        model.head.bias.zero_()


CHANGES = [
    _sliced,
    _deleted,
    _inserted,
    _exchanged,
    _into_another,
    _renamed,
    _wrapped,
    _repeated,
    _new_layer,
]


@pytest.mark.parametrize("how", [GRAPH, LAYERS])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_model_that_was_changed_is_reverted(prefer: Prefer, change: Callable[[Net], None], how: str) -> None:
    model, dense, x = _made(prefer, how)
    run(model, x)
    for one in (model, dense):
        change(one)
    for _ in range(3):
        assert_agree(model, dense, x)
    sk.revert(model)
    assert not _sparse(model)
    assert not list(graphs_of(model))
    assert repr(model) == repr(dense)
    assert list(model.state_dict()) == list(dense.state_dict())
    assert all(torch.equal(one, other) for one, other in zip(run(model, x), run(dense, x), strict=True))
    assert sk.convert(model, x).converted
    assert_agree(model, dense, x)


def test_convert_takes_out_what_was_moved(prefer: Prefer) -> None:
    model, dense, x = _made(prefer, GRAPH)
    for one in (model, dense):
        _into_another(one)
        _exchanged(one)
    report = sk.convert(model, x)
    assert len(report.converted) == 7
    assert not any("already" in row.reason for row in report.layers)
    assert_agree(model, dense, x)


def test_a_part_by_itself(prefer: Prefer) -> None:
    """The others stay converted, and a later revert of the whole goes on from there."""
    model, dense, x = _made(prefer, GRAPH)
    run(model, x)
    assert sk.revert(model.layers[1]) is model.layers[1]
    assert len(_sparse(model)) == 5
    for _ in range(3):
        assert_agree(model, dense, x)
    with pytest.raises(RuntimeError, match=r"got the layer itself, .* to_dense\(\)"):
        sk.revert(model.head)
    sk.revert(model)
    assert not _sparse(model)
    assert repr(model) == repr(dense)


@pytest.mark.parametrize("copied", ["no", "deepcopy", "pickle"])
def test_a_part_in_another_model(prefer: Prefer, copied: str) -> None:
    model, dense, x = _made(prefer, GRAPH)
    part = nn.Sequential(model.layers[0], model.head)
    if copied == "deepcopy":
        part = copy.deepcopy(part)
    elif copied == "pickle":
        file = io.BytesIO()
        torch.save(part, file)
        file.seek(0)
        part = torch.load(file, weights_only=False)
    other = nn.Sequential(part, nn.ReLU())
    assert sk.revert(other) is other
    assert not _sparse(other)
    expected = nn.Sequential(nn.Sequential(dense.layers[0], dense.head), nn.ReLU())
    assert all(torch.equal(one, two) for one, two in zip(run(other, x), run(expected, x), strict=True))
    shared = other[0][1].weight is model.head.weight
    assert shared is (copied == "no")
    assert_agree(model, dense, x)
    sk.revert(model)
    assert (model.layers[0][0] is other[0][0][0]) is shared


def test_a_slice_is_reverted_after_the_model(prefer: Prefer) -> None:
    """It has the model's own layers again, unless these have other parameters by then."""
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16)).eval()
    prune_(model, "random", 0.8)
    x = torch.randn(4, 16)
    prefer(FINE, LAYERS)
    sk.convert(model, x)
    head, tail = model[:1], model[2:]
    sk.revert(model)
    assert sk.revert(head)[0] is model[0]
    before = run(tail, x)
    model.load_state_dict({key: value * 2 for key, value in model.state_dict().items()}, assign=True)
    now = run(model, x)
    sk.revert(tail)
    assert type(tail[0]) is nn.Linear
    torch.testing.assert_close(run(tail, x), before)
    assert all(torch.equal(one, other) for one, other in zip(run(model, x), now, strict=True))


def test_shallow_copies_are_reverted_with_their_own_parameters(prefer: Prefer) -> None:
    model, dense, x = _made(prefer)
    clone = copy.copy(model)
    clone._modules = dict(model._modules)
    clone.head = copy.copy(model.head)
    clone.head._parameters = {name: nn.Parameter(one * 2) for name, one in model.head._parameters.items()}
    expected = run(clone, x)
    sk.revert(clone)
    torch.testing.assert_close(run(clone, x), expected)
    assert_agree(model, dense, x)
    sk.revert(model)
    assert_agree(model, dense, x)
    torch.testing.assert_close(run(clone, x), expected)


def test_a_layer_that_was_taken_out_is_free(prefer: Prefer) -> None:
    """The model does not keep what is no part of it, and what keeps revert of one model has no say in another's."""
    model, _, _ = _made(prefer)
    gone = weakref.ref(model.layers[2][0])
    model.layers = model.layers[:2]
    gc.collect()
    assert gone() is None
    head = model.head
    del model.head
    head.register_forward_hook(lambda *_: None)
    sk.revert(model)
    assert not _sparse(model)
    with pytest.raises(RuntimeError, match="revert: the converted layer '0' was given hooks"):
        sk.revert(nn.Sequential(head))


def test_nothing_changes_where_one_layer_raises(prefer: Prefer, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _, x = _made(prefer, GRAPH)
    modules, expected = dict(model.named_modules()), run(model, x)

    def interrupted(self: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(type(model.layers[2][0]), "hand_back", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sk.revert(model)
    assert dict(model.named_modules()) == modules
    assert len(list(graphs_of(model))) == 1
    torch.testing.assert_close(run(model, x), expected)
    monkeypatch.undo()
    sk.revert(model)
    assert not _sparse(model)
