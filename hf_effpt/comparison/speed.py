"""Speed-up of an arm to the baseline's loss, from separate runs that are each fully decayed on their own budget."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .statistics import crossing, interval

NO_SPEED: dict[str, Any] = {"budget_to_baseline_loss": None, "speed_up": None}
Losses = Mapping[float, Mapping[int, float]]  # final loss by budget and seed


def speed_up(arm: Losses, baseline: Losses, budget: float) -> dict[str, Any]:
    """Returns the budget at which an arm reaches the baseline's final loss, and its speed-up.

    The target is the baseline's final loss on the whole budget. Between runs, loss is linear in the logarithm of the
    budget. If an arm never reaches the target it is slower, and its slow-down is read from the baseline's shorter
    runs. Budgets are in units of the clock, `budget` is the whole.

    Returns:
        `budget_to_baseline_loss`, `speed_up` and `speed_up_note`. A `speed_up` has a 95 % interval if each seed has a
        speed-up of its own. If it is a bound, its `bound` is "at least" or "at most".
    """
    seeds = sorted(set(arm.get(budget, {})) & set(baseline.get(budget, {})))
    if arm == baseline:
        return _found(budget, None, "the baseline's own loss")
    if not seeds:
        return _found(None, None, "no finished pairs")
    ours, theirs = ({b: r for b, r in of.items() if set(seeds) <= set(r)} for of in (arm, baseline))
    means, baselines = _means(ours, seeds), _means(theirs, seeds)
    if len(means) == 1 and (len(theirs) == 1 or means[budget] <= baselines[budget]):
        return _found(None, None, "not measured: it takes runs on shorter budgets, such as --fractions 0.5,0.7,1")
    reached, word = crossing(means, baselines[budget])
    if reached is not None:
        value = budget / reached
        if word is not None:
            return _found(reached, _speed(value, bound="at least"), f"at least {value:.2f}x: {word}")
        logs = [-math.log(at / budget) for at in _reached(ours, theirs[budget], seeds)]
        return _found(reached, *_with_interval(value, logs, len(seeds)))
    same, word = crossing(baselines, means[budget])
    if same is None:
        return _found(None, None, "not reached within the budget")
    note = "not reached on the mean of the seeds: the baseline was sooner"
    if word is not None:
        return _found(None, _speed(same / budget, bound="at most"), f"{note}, by at least as much")
    logs = [math.log(at / budget) for at in _reached(theirs, ours[budget], seeds)]
    return _found(None, *_with_interval(same / budget, logs, len(seeds), note))


def _reached(curve: Losses, targets: Mapping[int, float], seeds: Sequence[int]) -> list[float]:
    """Returns the budget at which each seed reaches its target, without seeds that do not.

    Seeds that reach it outside the budgets of the curve are extrapolated along the same curve: if some used the curve
    of the other arm, two equal arms would seem to differ.
    """
    found = [crossing({b: losses[seed] for b, losses in curve.items()}, targets[seed], beyond=True) for seed in seeds]
    return [at for at, word in found if at is not None and word is None]


def _with_interval(
    value: float, logs: Sequence[float], seeds: int, note: str | None = None
) -> tuple[dict[str, Any], str | None]:
    """Returns a speed-up, with its interval if every seed has one (`logs` holds their logarithms), and a note."""
    if len(logs) < seeds or seeds < 2:
        why = "some seeds would reach it far outside the budgets that were run, or never"
        why = f"no interval: {why if seeds > 1 else 'it takes several seeds'}"
        return _speed(value), f"{note}; {why}" if note else why
    found = interval(logs)
    return _speed(value, math.exp(found.low), math.exp(found.high)), note


def _means(losses: Losses, seeds: list[int]) -> dict[float, float]:
    return {budget: float(np.mean([by_seed[seed] for seed in seeds])) for budget, by_seed in losses.items()}


def _speed(
    value: float, low: float | None = None, high: float | None = None, bound: str | None = None
) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "bound": bound}


def _found(reached: float | None, speed: dict[str, Any] | None, note: str | None) -> dict[str, Any]:
    budget = None if reached is None else {"value": reached}
    return {"budget_to_baseline_loss": budget, "speed_up": speed, "speed_up_note": note}
