"""How much sooner an arm reaches the baseline's loss, by separate runs that are each decayed on their own budget."""

import math
from collections.abc import Mapping, Sequence
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
    """Where each seed reaches its target, of those that do.

    All seeds go by the same curve, also those that reach theirs beyond its budgets: if some went by the other's, two
    equal arms would seem to differ.
    """
    found = [crossing({b: losses[seed] for b, losses in curve.items()}, targets[seed], beyond=True) for seed in seeds]
    return [at for at, word in found if at is not None and word is None]


def _with_interval(
    value: float, logs: Sequence[float], seeds: int, note: str | None = None
) -> tuple[dict[str, Any], str | None]:
    """A speed-up with the interval that those of the seeds give, if all have one, and what to know of it."""
    if len(logs) < seeds or seeds < 2:
        why = "no interval: some seeds would reach it far outside the budgets that were run, or never"
        why = why if seeds > 1 else "no interval: it takes several seeds"
        return _speed(value), "; ".join([note, why] if note else [why])
    bounds = interval(logs)
    assert bounds is not None
    assert bounds.low is not None
    assert bounds.high is not None
    return _speed(value, math.exp(bounds.low), math.exp(bounds.high)), note


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
