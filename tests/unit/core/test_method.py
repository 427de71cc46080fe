from dataclasses import dataclass
from typing import ClassVar

import pytest

from hf_effpt.core.errors import EffptError
from hf_effpt.core.method import Method, Paper
from hf_effpt.core.registry import METHODS, build_methods, register

PAPER = Paper(title="T", authors="A", year=2026, bibtex="@misc{t}")


@dataclass
class Left(Method):
    name: ClassVar[str] = "left"
    summary: ClassVar[str] = "Left."
    paper: ClassVar[Paper] = PAPER
    conflicts: ClassVar[frozenset[str]] = frozenset({"right"})
    amount: float = 1.0


@dataclass
class Right(Method):
    name: ClassVar[str] = "right"
    summary: ClassVar[str] = "Right."
    paper: ClassVar[Paper] = PAPER


@pytest.fixture(autouse=True)
def _registered():
    register(Left)
    register(Right)
    yield
    METHODS.pop("left")
    METHODS.pop("right")


@pytest.mark.parametrize("ledger", [{"left": {}, "right": {}}, {"right": {}, "left": {}}])
def test_conflicts_are_refused_from_either_side(ledger):
    with pytest.raises(EffptError, match="cannot run together; remove one"):
        build_methods(ledger)


def test_unknown_method_names_the_nearest():
    with pytest.raises(EffptError, match="There is no method `lef`: did you mean `left`"):
        build_methods({"lef": {}})


def test_unknown_setting_names_the_nearest():
    with pytest.raises(EffptError, match="`left` has no setting `amuont`: did you mean `amount`"):
        build_methods({"left": {"amuont": 2.0}})


def test_order_is_that_of_the_registry():
    assert [m.name for m in build_methods({"right": {}, "stacking": {}, "layerdrop": None})] == [
        name for name in METHODS if name in ("right", "stacking", "layerdrop")
    ]


def test_only_changed_settings_are_kept():
    (method,) = build_methods({"left": {"amount": 1.0}})
    assert method.settings() == {}
    assert Left(amount=2.0).settings() == {"amount": 2.0}


def test_a_name_belongs_to_one_method():
    with pytest.raises(EffptError, match="Two methods are called `left`"):
        register(dataclass(type("Other", (Method,), {"name": "left"})))
    assert METHODS["left"] is Left
