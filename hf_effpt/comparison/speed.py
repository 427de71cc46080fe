"""How much sooner an arm reaches the baseline's loss, by separate runs that are each decayed on their own budget."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from .statistics import crossing, interval

NO_SPEED: dict[str, Any] = {"budget_to_baseline_loss": None, "speed_up": None}
Losses = Mapping[float, Mapping[int, float]]  # final loss by budget and seed


def speed_up(arm: Losses, baseline: Losses, budget: float) -> dict[str, Any]:
    """The budget at which an arm reaches the baseline's final loss, and the speed-up that is.

    The target is the baseline's final loss on the whole budget; between runs, loss is linear in the logarithm of the
    budget. An arm that never reaches it is slower: then the baseline's own shorter runs say by how much.

    Args:
        arm, baseline (`Mapping`): final losses by budget, in units of the clock, and seed.
        budget (`float`): the whole budget.

    Returns:
        `budget_to_baseline_loss`, `speed_up` (with a 95 % interval where every seed has its own, and its `bound`, "at
        least" or "at most", where it is only one) and `speed_up_note`.
    """
    seeds = sorted(set(arm.get(budget, {})) & set(baseline.get(budget, {})))
    if arm is baseline or arm == baseline:
        return _found(budget, None, "the baseline's own loss")
    if not seeds:
        return _found(None, None, "no finished pairs")
    ours, theirs = ({b: r for b, r in of.items() if set(seeds) <= set(r)} for of in (arm, baseline))
    means, baselines = _means(ours, seeds), _means(theirs, seeds)
    if len(means) == 1 and (len(theirs) == 1 or means[budget] <= baselines[budget]):
        return _found(None, None, "not measured: it takes runs on shorter budgets, such as --fractions 0.5,0.7,1")
    value, bound, note = _once(means, baselines, budget)
    if value is None:
        return _found(None, None, note)
    reached = budget / value if value >= 1 else None
    if bound is not None:
        return _found(reached, _speed(value, bound=bound), note)
    each = [_once(*({b: losses[seed] for b, losses in of.items()} for of in (ours, theirs)), budget) for seed in seeds]
    found = [math.log(one) for one, bound, _ in each if one is not None and bound is None]
    if len(seeds) < 2 or len(found) < len(seeds):
        outside = "no interval: some seeds reach it outside the budgets that were run"
        return _found(reached, _speed(value), note or outside)
    logs = interval(found)
    assert logs is not None
    assert logs.low is not None
    assert logs.high is not None
    return _found(reached, _speed(value, math.exp(logs.low), math.exp(logs.high)), note)


def _once(
    arm: Mapping[float, float], baseline: Mapping[float, float], budget: float
) -> tuple[float | None, str | None, str | None]:
    """A speed-up by losses by budget, whether it is only a bound, and what to know of it."""
    reached, word = crossing(arm, baseline[budget])
    if reached is not None:
        value = budget / reached
        return value, word and "at least", word and f"at least {value:.2f}x: {word}"
    same, word = crossing(baseline, arm[budget])
    if same is None:
        return None, None, "not reached within the budget"
    note = "not reached: the baseline was sooner" + ("" if word is None else ", by at least as much")
    return same / budget, word and "at most", note


def _means(losses: Losses, seeds: list[int]) -> dict[float, float]:
    return {budget: float(np.mean([by_seed[seed] for seed in seeds])) for budget, by_seed in losses.items()}


def _speed(
    value: float, low: float | None = None, high: float | None = None, bound: str | None = None
) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "bound": bound}


def _found(reached: float | None, speed: dict[str, Any] | None, note: str | None) -> dict[str, Any]:
    return {
        "budget_to_baseline_loss": None if reached is None else {"value": reached},
        "speed_up": speed,
        "speed_up_note": note,
    }
