import math

import pytest

from hf_effpt.core.clock import Clock
from hf_effpt.core.errors import EffptError


@pytest.mark.parametrize(
    ("text", "unit", "budget"),
    [
        ("40steps", "steps", 40),
        ("1e9tokens", "tokens", 1e9),
        ("3e15flops", "flops", 3e15),
        ("90s", "seconds", 90),
        ("10min", "seconds", 600),
        ("2h", "seconds", 7200),
        ("1.5 h", "seconds", 5400),
        ("1d", "seconds", 86400),
        ("50kJ", "joules", 50e3),
        ("0.1kWh", "joules", 3.6e5),
        ("1_000 steps", "steps", 1000),
        ("90s_rst", "reference_seconds", 90),
        ("10min_rst", "reference_seconds", 600),
        ("2h_rst", "reference_seconds", 7200),
    ],
)
def test_reads_budgets(text, unit, budget):
    clock = Clock.parse(text)
    assert (clock.unit, clock.budget) == (unit, budget)


@pytest.mark.parametrize("text", ["", "10", "min", "ten minutes", "10parsecs", "-5min", "nan s", "infs"])
def test_refuses_what_it_cannot_read(text):
    with pytest.raises(EffptError, match="Cannot read the budget"):
        Clock.parse(text)


@pytest.mark.parametrize("text", ["0steps", "0min", "1.5steps"])
def test_refuses_impossible_budgets(text):
    with pytest.raises(EffptError, match="budget"):
        Clock.parse(text)


@pytest.mark.parametrize("unit", ["steps", "tokens", "flops", "seconds"])
def test_fraction_follows_its_own_unit(unit):
    clock = Clock(unit, 4)
    assert clock.fraction == 0.0
    clock.tick(steps=1, tokens=1, flops=1, seconds=1)
    assert clock.fraction == 0.25
    assert not clock.finished
    clock.tick(steps=9, tokens=9, flops=9, seconds=9)
    assert clock.fraction == 1.0
    assert clock.finished


def test_restores_totals_and_keeps_the_new_budget():
    before = Clock("steps", 10)
    before.tick(tokens=5, flops=7.0, seconds=2.0)
    after = Clock("steps", 20)
    after.restore(before.as_dict())
    assert after == Clock("steps", 20, steps=1, tokens=5, flops=7.0, seconds=2.0)
    assert after.fraction == 1 / 20


def test_refuses_unknown_units_and_infinite_budgets():
    with pytest.raises(EffptError, match="parsecs"):
        Clock("parsecs", 1)
    with pytest.raises(EffptError, match="finite"):
        Clock("seconds", math.inf)


def test_reference_time_is_counted_only_where_it_is_known():
    clock = Clock("reference_seconds", 4)
    assert clock.reference_seconds is None
    clock.tick(reference_seconds=1.0)
    clock.tick(reference_seconds=1.0)
    assert clock.fraction == 0.5
    again = Clock("reference_seconds", 4)
    again.restore(clock.as_dict())
    assert again == clock
    other = Clock("steps", 4)
    other.tick()
    assert other.reference_seconds is None


@pytest.mark.parametrize("text", ["10steps", "1e9tokens", "90s", "10min_rst", "50kJ"])
def test_a_share_of_a_budget_can_be_read(text):
    whole = Clock.parse(text)
    half = Clock.parse(whole.share(0.5))
    assert (half.unit, half.budget) == (whole.unit, whole.budget / 2)
    assert Clock.parse(Clock("steps", 3).share(0.1)).budget == 1
