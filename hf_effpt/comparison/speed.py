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
    means, target = _means(ours, seeds), float(np.mean([theirs[budget][seed] for seed in seeds]))
    if len(means) == 1 and (len(theirs) == 1 or means[budget] <= target):
        return _found(None, None, "not measured: it takes runs on shorter budgets, such as --fractions 0.5,0.7,1")
    reached, note = crossing(means, target)
    if reached is None:
        same, why = crossing(_means(theirs, seeds), means[budget])
        if same is None:
            return _found(None, None, "not reached within the budget")
        note = "not reached: the baseline was sooner" + ("" if why is None else ", by at least as much")
        return _found(None, _speed(same / budget, bound=why and "at most"), note)
    value = budget / reached
    if note is not None:
        return _found(reached, _speed(value, bound="at least"), f"at least {value:.2f}x: {note}")
    each = [crossing({b: losses[seed] for b, losses in ours.items()}, theirs[budget][seed]) for seed in seeds]
    if len(seeds) < 2 or any(budget_ is None or word is not None for budget_, word in each):
        note = "no interval: some seeds reach it outside the budgets that were run"
        return _found(reached, _speed(value), note)
    logs = interval([math.log(budget / found) for found, _ in each if found is not None])
    assert logs is not None
    assert logs.low is not None
    assert logs.high is not None
    return _found(reached, _speed(value, math.exp(logs.low), math.exp(logs.high)), None)


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
