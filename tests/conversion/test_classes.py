# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""Code that asks for the class of a converted model: that equals the model's class, and where code goes by identity,
nothing is exchanged that it would see.

More than 400 lines: one case for each way to ask.
"""

from __future__ import annotations

import contextlib
import copy
import copyreg
import functools
import inspect
import io
import logging
import pickle
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from conversion_checks import FINE, GRAPH, LAYERS, Prefer, graphs_of
from torch import Tensor, nn

import sparsekernels as sk
from sparsekernels import _library
from sparsekernels.pruning import prune_

pytestmark = pytest.mark.skipif(_library.cpu is None, reason="the CPU kernels are not built")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.relu, self.last = nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.relu(self.first(x)))


def _is_named(module: nn.Module) -> bool:
    return type(module) is ByFunction


class ByFunction(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (2 if _is_named(self) else 1)


class ByMethod(Net):
    @property
    def factor(self) -> int:
        kind = type(self)
        return 1 if kind is not ByMethod else 2

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.factor


class InTraining(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y * 2 if self.training and type(self) is InTraining else y


def _is_exactly(module: nn.Module, kind: type) -> bool:
    return type(module) is kind


class ByHelper(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (2 if _is_exactly(self, ByHelper) else 1)


class ByNamedExpression(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (2 if (kind := type(self)) is ByNamedExpression or kind is Net else 1)


class ByCell(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (2 if type(self) is __class__ else 1)  # type: ignore[name-defined]


class Super(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super(type(self), self).forward(x)  # type: ignore[no-any-return]


class OfBase(Net):
    def forward(self, x: Tensor) -> Tensor:
        return type(self).__base__.forward(self, x)  # type: ignore[union-attr,no-any-return]


class Reversed(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (2 if issubclass(Reversed, type(self)) else 1)


def _doubles(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(forward)
    def doubling(self: nn.Module, *args: Any) -> Tensor:
        return forward(self, *args) * (2 if type(self) is ByDecorator else 1)

    return doubling


class ByDecorator(Net):
    @_doubles
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


def _passes(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def passing(*args: Any) -> Tensor:
        return forward(*args)

    return passing


class Plain(Net):
    @_passes
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class Decorated(Net):
    @_passes
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (2 if type(self) is Decorated else 1)


class WithPlain(nn.Module):
    """Not traced itself. The decorator's code is seen for another class before."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.decorated = Plain(), Decorated()

    def forward(self, x: Tensor) -> Tensor:
        return self.decorated(self.plain(x)) if bool(x.sum() < 1e6) else x


class OfParts(nn.Module):
    """Not traced itself: a part would be the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.part = Net()

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x) * (2 if bool(x.sum() < 1e6) and type(self.part) is Net else 1)


class ByValue(Net):
    def forward(self, x: Tensor) -> Tensor:
        kind = type(self)
        found = kind == ByValue and kind in (ByValue,) and kind in {ByValue} and not kind != ByValue  # noqa: SIM202
        return super().forward(x) * (2 if found else 1)


FACTORS: dict[type, int] = {}


class Found(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * FACTORS[type(self)]


FACTORS[Found] = 2


class Named(Net):
    def forward(self, x: Tensor) -> Tensor:
        if type(x) is list:
            x = x[0]
        same = self.__class__ is Named and type(self).__name__ == "Named"
        return super().forward(x) * (2 if same else 1)


@functools.singledispatch
def _scaled(module: object, x: Tensor) -> Tensor:
    return x


class Dispatched(Net):
    def forward(self, x: Tensor) -> Tensor:
        return _scaled(self, super().forward(x))


@_scaled.register
def _(module: Dispatched, x: Tensor) -> Tensor:
    return x * 2


def _pair(prefer: Prefer, kind: Callable[[], nn.Module]) -> tuple[Any, Any, Tensor, sk.Report]:
    model, x = kind().eval(), torch.randn(4, 16)
    prune_(model, "random", 0.8)
    dense = copy.deepcopy(model)
    prefer(FINE, GRAPH, LAYERS)
    return model, dense, x, sk.convert(model, x)


def _assert_same(model: nn.Module, dense: nn.Module, x: Tensor) -> None:
    """In both modes, with and without gradients: the graph serves one of the four."""
    for training in (False, True):
        for gradients in (False, True):
            with torch.set_grad_enabled(gradients):
                results = [one.train(training)(x) for one in (model, dense)]
            torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "where"),
    [
        (ByFunction, "_is_named"),
        (ByMethod, "ByMethod.factor"),
        (InTraining, "InTraining.forward"),
        (ByHelper, "_is_exactly"),
        (ByNamedExpression, "ByNamedExpression.forward"),
        (ByCell, "ByCell.forward"),
        (Super, "Super.forward"),
        (OfBase, "OfBase.forward"),
        (Reversed, "Reversed.forward"),
        (ByDecorator, "ByDecorator.forward"),
        (Decorated, "Decorated.forward"),
        (OfParts, "OfParts.forward"),
    ],
)
def test_no_graph_where_code_goes_by_identity(prefer: Prefer, kind: type[nn.Module], where: str) -> None:
    model, dense, x, report = _pair(prefer, kind)
    assert len(report.converted) == 2
    assert not list(graphs_of(model))
    assert any(f"{where} tells classes apart by identity" in note for note in report.notes), report.notes
    _assert_same(model, dense, x)


def by_annotated(net: Any) -> bool:
    kind: type = type(net)
    return kind is Stored


def by_tuple(net: Any) -> bool:
    mine, other = type(net), Stored
    return mine is other


def by_star(net: Any) -> bool:
    _, *kinds = 1, type(net)
    return kinds[0] is Stored


def by_loop(net: Any) -> bool:
    for kind in (type(net),):
        found = kind is Stored
    return found


def by_with(net: Any) -> bool:
    with contextlib.nullcontext(type(net)) as kind:
        return kind is Stored


def by_stored_attribute(net: Any) -> bool:
    net.kind = type(net)
    found = net.kind is Stored
    del net.kind
    return found


def by_item(net: Any) -> bool:
    kinds: dict[str, type] = {}
    kinds["net"] = type(net)
    return kinds["net"] is Stored


def by_list_of(net: Any) -> bool:
    kinds: list[type] = []
    kinds += [type(net)]
    return kinds.pop() is Stored


def by_comprehension(net: Any) -> bool:
    return any(kind is Stored for kind in [type(one) for one in (net,)])


def by_default(net: Any) -> bool:
    def ask(kind: type = type(net)) -> bool:  # noqa: B008
        return kind is Stored

    return ask()


def by_match(net: Any) -> bool:
    match type(net), net:
        case (kind, nn.Module()):
            return kind is Stored
    return False


def by_lambda(net: Any) -> bool:
    return (lambda kind: kind is Stored)(type(net))


def _is(kind: type, other: type) -> bool:
    return kind is other


def by_partial(net: Any) -> bool:
    return functools.partial(_is, type(net))(Stored)


def _kinds_of(net: object) -> tuple[type, int]:
    return type(net), 1


def by_result(net: Any) -> bool:
    return _kinds_of(net)[0] is Stored


def by_generator(net: Any) -> bool:
    def kinds() -> Iterator[type]:
        yield type(net)

    return next(kinds()) is Stored


def by_map(net: Any) -> bool:
    return next(map(type, [net])) is Stored


def by_other_name(net: Any) -> bool:
    kind_of = type
    return kind_of(net) is Stored


KINDS: dict[str, dict[str, list[type]]] = {"of": {"net": []}}


def by_containers(net: Any) -> bool:
    return _is(type(net), KINDS["of"]["net"][0])


def by_import(net: Any) -> bool:
    from stored_class import is_stored

    return is_stored(net)


def by_import_of_class(net: Any) -> bool:
    from stored_class import Stored

    return _is(type(net), Stored)


class Asking:
    def __call__(self, net: object) -> bool:
        return type(net) is Stored

    @staticmethod
    def of(net: object) -> bool:
        return type(net) is Stored


ASKING = Asking()
IN_DICT = {"ask": by_annotated}


def by_static_method(net: Any) -> bool:
    return Asking.of(net)


def by_callable(net: Any) -> bool:
    return ASKING(net)


def by_function_in_a_dict(net: Any) -> bool:
    return IN_DICT["ask"](net)


def by_function_as_an_attribute(net: Any) -> bool:
    return bool(net.ask(net))


def by_default_to_compare(net: Any, kind: type | None = None) -> bool:
    other: type = Stored if kind is None else kind
    return _is(type(net), other)


@pytest.mark.parametrize(
    "ask",
    [
        *(by_annotated, by_tuple, by_star, by_loop, by_with, by_stored_attribute, by_item, by_list_of),
        *(by_comprehension, by_default, by_match, by_lambda, by_partial, by_result, by_generator, by_map),
        *(by_other_name, by_default_to_compare, by_containers, by_import, by_import_of_class),
        *(by_static_method, by_callable, by_function_in_a_dict, by_function_as_an_attribute),
    ],
)
def test_no_graph_where_a_class_is_stored_or_passed_on(
    prefer: Prefer, monkeypatch: pytest.MonkeyPatch, ask: Callable[[Any], bool]
) -> None:
    def is_stored(net: object) -> bool:
        return type(net) is Stored

    module = types.ModuleType("stored_class")
    vars(module).update(is_stored=is_stored, Stored=Stored)
    monkeypatch.setitem(sys.modules, "stored_class", module)
    monkeypatch.setattr(Stored, "asked", property(ask))
    model, dense, x, report = _pair(prefer, Stored)
    assert dense.asked
    assert len(report.converted) == 2
    assert not list(graphs_of(model))
    assert any("tells classes apart by identity" in note for note in report.notes), report.notes
    _assert_same(model, dense, x)


class Stored(Net):
    asked: Any = False

    def __init__(self) -> None:
        super().__init__()
        self.ask = by_annotated

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (2 if self.asked else 1)


KINDS["of"]["net"].append(Stored)


class Ordinary(Net):
    """Asks for classes, but tells none from its subclasses."""

    factor = 2

    def forward(self, x: Tensor) -> Tensor:
        kind: type = type(self)
        name, cls = self.__class__.__name__, type(self)
        logging.getLogger(__name__).debug("%s of %s", name, type(self))
        if not isinstance(x, Tensor) or not issubclass(cls, Net):
            raise TypeError(f"{type(self).__name__} of {type(x)}", type(self), "%s" % type(self))  # noqa: UP031
        for layer in (self.first, self.last):
            assert isinstance(layer, nn.Module), "{} of {}".format(type(layer), cls.__qualname__)  # noqa: UP032
        return super().forward(x) * cls.factor * kind.factor  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", [ByValue, Found, Named, Dispatched, Ordinary])
def test_a_graph_where_code_goes_by_value(prefer: Prefer, kind: type[nn.Module]) -> None:
    model, dense, x, report = _pair(prefer, kind)
    assert len(list(graphs_of(model))) == 1, report.notes
    _assert_same(model, dense, x)


def test_one_of_two_behind_a_decorator_goes_by_identity(prefer: Prefer) -> None:
    model, dense, x, report = _pair(prefer, WithPlain)
    assert [type(graph.module).__name__ for graph in graphs_of(model)] == ["Plain"]
    assert any("Decorated.forward tells classes apart by identity" in note for note in report.notes), report.notes
    _assert_same(model, dense, x)


def test_layers_whose_class_is_compared_stay(prefer: Prefer) -> None:
    class Compares(Net):
        def forward(self, x: Tensor) -> Tensor:
            x = super().forward(x)
            return x * 2 if self.training and type(self.last) in (nn.Conv2d, nn.Linear) else x

    model, dense, x, report = _pair(prefer, Compares)
    assert not report.converted
    assert all("Compares.forward tells Linear from its subclasses" in row.reason for row in report.layers)
    _assert_same(model, dense, x)


BY_CLASS = {nn.Linear: 2.0}


def by_helper(net: Any) -> object:
    return _is_exactly(net.last, nn.Linear)


def by_attribute(net: Any) -> object:
    return net.last.__class__ is nn.Linear


def by_name(net: Any) -> object:
    return type(net.last).__name__ == "Linear"


def by_stored_class(net: Any) -> object:
    kind, _ = net.last.__class__, 1
    return kind is nn.Linear


def by_stored_name(net: Any) -> object:
    name: str = type(net.last).__name__
    return name == "Linear"


def by_dict(net: Any) -> object:
    return BY_CLASS.get(type(net.last))


def by_key(net: Any) -> object:
    kind = type(net.last)
    return kind in BY_CLASS and BY_CLASS[kind]


def by_list(net: Any) -> object:
    return [type(one) for one in (net.first, net.last)] == [nn.Linear] * 2


def by_attribute_of_its_own(net: Any) -> object:
    return net.factors.get(type(net.last))


@pytest.mark.parametrize(
    "ask",
    [
        *(by_helper, by_attribute, by_name, by_stored_class, by_stored_name, by_dict, by_key, by_list),
        by_attribute_of_its_own,
    ],
)
def test_layers_whose_class_is_looked_for_stay(prefer: Prefer, ask: Any) -> None:
    class Asks(Net):
        asked = property(ask)

        def __init__(self) -> None:
            super().__init__()
            self.factors = {nn.Linear: 2.0}

        def forward(self, x: Tensor) -> Tensor:
            x = super().forward(x)
            return x * 2 if self.training and self.asked else x

    model, dense, x, report = _pair(prefer, Asks)
    assert not report.converted
    _assert_same(model, dense, x)


class Meta(type):
    pass


def test_a_reason_that_is_true(prefer: Prefer) -> None:
    class OfMeta(Net, metaclass=Meta):
        pass

    class Static(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(16, 16)
            type(self).forward = functools.partial(Static._forward, self.layer)

        @staticmethod
        def _forward(layer: nn.Module, x: Tensor) -> Tensor:
            return layer(x).relu()

    for kind, words in ((OfMeta, "its class has the metaclass Meta"), (Static, "its forward is no ordinary method")):
        *_, report = _pair(prefer, kind)
        assert any(words in note for note in report.notes), report.notes


class Saved(Net):
    pass


def test_the_class_as_an_object(prefer: Prefer) -> None:
    """It can be compared, looked up, pickled by reference, and asked for its source."""
    model, _, x, _ = _pair(prefer, Saved)
    kind = type(model)
    assert kind is not Saved
    assert kind == Saved
    assert Saved == kind
    assert kind not in (Net, nn.Linear, None)
    assert {kind: 1} == {Saved: 1}
    assert (kind.__name__, kind.__qualname__, kind.__module__) == ("Saved", "Saved", __name__)
    assert inspect.getsource(kind) == inspect.getsource(Saved)
    assert pickle.loads(pickle.dumps(kind)) is Saved
    file = io.BytesIO()
    torch.save({"class": kind, "state": model.state_dict()}, file)
    file.seek(0)
    assert torch.load(file, weights_only=False)["class"] is Saved
    derived = type("Derived", (kind,), {})
    assert derived not in (kind, Saved)
    model.__class__ = derived
    with torch.no_grad():
        before = model(x)
        assert sk.convert(model, x).converted
        torch.testing.assert_close(model(x), before)
    sk.revert(model)
    assert type(model) is derived


def test_a_reducer_that_is_registered_for_the_class(prefer: Prefer, monkeypatch: pytest.MonkeyPatch) -> None:
    model, dense, x, _ = _pair(prefer, Saved)
    monkeypatch.setitem(copyreg.dispatch_table, Saved, lambda module: (_rebuilt, (module.state_dict(),)))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(other) is Saved
        assert type(other.first) is nn.Linear
        torch.testing.assert_close(other(x), dense(x))


def _rebuilt(state: dict[str, Tensor]) -> Saved:
    model = Saved().eval()
    model.load_state_dict(state)
    return model
