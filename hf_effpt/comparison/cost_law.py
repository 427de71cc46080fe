"""The cost law of picking rows: the gain in samples that an arm needed, and the one that it had.

To learn from a row costs 1, to score one costs s. With a share k of the rows kept, a row learned from costs
1 + s / k; where only some steps pick rows it costs c = 1 + s * scored / trained on the average of the run, which is
the same if all do. Where a share p of the budget was spent before the first step, it is c / (1 - p). So at an equal
clock the arm trains 1 / c as many rows as the baseline. If it is `speed_up` times as soon at the baseline's loss, it
got there on 1 / (speed_up * c) as many rows: its gain in samples is A = speed_up * c, and it pays if A > c (derived).
A budget in tokens pays for each row looked at instead, so that c = seen / trained; for one in steps c = 1.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from .arm_losses import Entries, finals_of


def cost_law(
    entries: Entries, baseline: Entries, speed: Mapping[str, Any], unit: str, free: bool
) -> dict[str, Any] | None:
    """What an arm that picks rows needed to gain, and what it gained; `None` for an arm that has no such account.

    Args:
        entries, baseline (`Sequence`): the runs of the arm and of the baseline.
        speed (`Mapping`): with `speed_up` and `speed_up_note` of the arm.
        unit (`str`): of the clock.
        free (`bool`): whether the clock does not pay for scoring.

    Returns:
        `s`, in rows learned from, `by` the FLOPs for a budget in FLOPs and else by time; `while_picking`, 1 + s / k;
        `needed`, c above, or 1 where the clock does not pay, with a `needed_note`; `gain`, A, whose interval takes c
        as exact; and `gain_note`, why there is none.
    """
    accounts = [account for entry in finals_of(entries) if (account := account_of(entry)) is not None]
    if not accounts:
        return None
    by = "flops" if unit == "flops" else "seconds"
    costs = [account.get(f"s_{by}") for account in accounts]
    s = None if None in costs else float(np.mean(costs))
    each = [] if s is None else [1 + cost / _kept(account) for cost, account in zip(costs, accounts, strict=True)]
    found = {"s": s, "by": by, "while_picking": float(np.mean(each)) if each else None}
    found["needed"], found["needed_note"] = _needed(costs, accounts, found["while_picking"], unit, free)
    return found | _gain(found["needed"], entries, baseline, speed)


def account_of(entry: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The account of the method that picks rows in a run, if one does."""
    accounts = (entry.get("accounts") or {}).values()
    return next((each for each in accounts if each.get("keep") and {"s_flops", "s_seconds"} & each.keys()), None)


def _needed(
    costs: list, accounts: list, while_picking: float | None, unit: str, free: bool
) -> tuple[float | None, str]:
    """The gain in samples at which an arm breaks even, and what to know of it."""
    if free:
        alone = "" if while_picking is None else f", or it would be {while_picking:.2f}"
        return 1.0, f"its clock does not pay for scoring{alone}"
    if unit == "steps":
        return 1.0, "a budget in steps does not pay for scoring"
    if unit == "tokens":
        looked = [each["seen"] / each["trained"] if each.get("trained") else 1 / _kept(each) for each in accounts]
        return float(np.mean(looked)), "a budget in tokens pays for each row looked at, and for no scoring"
    if while_picking is None:
        return None, "what it costs to score a row was not recorded"
    before = float(
        np.mean([account.get(f"prepaid_{'flops' if unit == 'flops' else 'seconds'}") or 0.0 for account in accounts])
    )
    found = float(np.mean([_cost(s, account) for s, account in zip(costs, accounts, strict=True)]))
    partly = abs(found - while_picking) > 0.01 * while_picking
    notes = [f"{while_picking:.2f} in the steps that pick rows"] if partly else []
    notes += [f"{found:.2f}, and {before:.0%} of the budget was spent before the first step"] if before else []
    return found / (1.0 - before), "; ".join(notes)


def _cost(s: float, account: Mapping[str, Any]) -> float:
    """What a row learned from has cost on the average of a run; where none was scored, s is for each looked at."""
    judged, trained = account.get("scored") or account.get("seen"), account.get("trained")
    return 1 + s * judged / trained if judged and trained else 1 + s / _kept(account)


def _kept(account: Mapping[str, Any]) -> float:
    """The share of the rows that is kept: all, where `keep` is of something else."""
    seen = account.get("seen")
    return 1.0 if seen and seen == account.get("trained") else account["keep"]


def _gain(needed: float | None, entries: Entries, baseline: Entries, speed: Mapping[str, Any]) -> dict[str, Any]:
    """The gain in samples that an arm had, a bound where its speed-up is one, or why it is not known."""
    speed_up = speed["speed_up"]
    if speed_up is None:
        return {"gain": None, "gain_note": speed["speed_up_note"]}
    if needed is None:
        return {"gain": None, "gain_note": "what it costs to score a row was not recorded"}
    if any((account_of(entry) or {}).get("scored") for entry in baseline):
        return {"gain": None, "gain_note": "the baseline scores rows itself"}
    scaled = {key: speed_up[key] and speed_up[key] * needed for key in ("value", "low", "high")}
    return {"gain": scaled | {"bound": speed_up["bound"]}, "gain_note": None}
