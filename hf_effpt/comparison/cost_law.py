"""Cost law of row selection: the gain in sample efficiency that an arm needs to break even, and the gain it had.

Training on a row costs 1, scoring one costs s. With a share k of the rows kept, a trained row costs 1 + s / k. Over a
run in which only some steps select rows it costs c = 1 + s * scored / trained, which is the same if all steps do. If a
share p of the budget is spent before the first step, it is c / (1 - p). So at an equal clock the arm trains on 1 / c
as many rows as the baseline. If it reaches the baseline's loss `speed_up` times as soon, it did so on
1 / (speed_up * c) as many rows. Its gain is A = speed_up * c, and it pays if A > c (derived here).
A budget in tokens pays for each row seen, so c = seen / trained. For a budget in steps c = 1.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from .arm_losses import Entries, finals_of

UNKNOWN = "what it costs to score a row was not recorded"


def cost_law(
    entries: Entries, baseline: Entries, speed: Mapping[str, Any], unit: str, free: bool
) -> dict[str, Any] | None:
    """Returns the gain that an arm with row selection needed and had; `None` for an arm without a cost report of it.

    `entries` and `baseline` are runs of the arm and of the baseline; `speed` has the arm's `speed_up` and
    `speed_up_note`; `unit` is that of the clock, which is not charged for scoring if the arm is `free`.

    Returns:
        `s`, in trained rows, `by` FLOPs for a budget in FLOPs and by time otherwise; `while_picking`, 1 + s / k;
        `needed`, c above, or 1 if the clock does not pay, and `needed_note`; `gain`, A, with an interval in which c
        is taken as exact; and `gain_note`, the reason if there is none.
    """
    reports = [report for entry in finals_of(entries) if (report := _cost_report(entry)) is not None]
    if not reports:
        return None
    by = "flops" if unit == "flops" else "seconds"
    costs = [report.get(f"s_{by}") for report in reports]
    found: dict[str, Any] = {"s": None, "by": by, "while_picking": None}
    if None not in costs:
        selecting = [1 + s / _kept(report) for s, report in zip(costs, reports, strict=True)]
        found |= {"s": float(np.mean(costs)), "while_picking": float(np.mean(selecting))}
    found["needed"], found["needed_note"] = _needed(costs, reports, found["while_picking"], unit, by, free)
    return found | _gain(found["needed"], baseline, speed)


def _cost_report(entry: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Returns the cost report of the row selection of a run, if it has one."""
    reports = (entry.get("accounts") or {}).values()
    return next((each for each in reports if each.get("keep") and {"s_flops", "s_seconds"} & each.keys()), None)


def _needed(
    costs: list, reports: list, while_picking: float | None, unit: str, by: str, free: bool
) -> tuple[float | None, str]:
    """Returns the gain at which an arm breaks even, or `None` if it is unknown, and a note on it."""
    if free:
        alone = "" if while_picking is None else f", or it would be {while_picking:.2f}"
        return 1.0, f"its clock does not pay for scoring{alone}"
    if unit == "steps":
        return 1.0, "a budget in steps does not pay for scoring"
    if unit == "tokens":
        seen = [each["seen"] / each["trained"] if each.get("trained") else 1 / _kept(each) for each in reports]
        return float(np.mean(seen)), "a budget in tokens pays for each row looked at, and for no scoring"
    if while_picking is None:
        return None, UNKNOWN
    before = float(np.mean([report.get(f"prepaid_{by}") or 0.0 for report in reports]))
    found = float(np.mean([_row_cost(s, report) for s, report in zip(costs, reports, strict=True)]))
    partly = abs(found - while_picking) > 0.01 * while_picking
    notes = [f"{while_picking:.2f} in the steps that pick rows"] if partly else []
    notes += [f"{found:.2f}, and {before:.0%} of the budget was spent before the first step"] if before else []
    return found / (1.0 - before), "; ".join(notes)


def _row_cost(s: float, report: Mapping[str, Any]) -> float:
    """Returns the mean cost of a trained row. If no row was scored, s is charged for each row seen."""
    scored, trained = report.get("scored") or report.get("seen"), report.get("trained")
    return 1 + s * scored / trained if scored and trained else 1 + s / _kept(report)


def _kept(report: Mapping[str, Any]) -> float:
    """Returns the share of the rows that is kept: 1 if `keep` is a share of something else, such as tokens."""
    seen = report.get("seen")
    return 1.0 if seen and seen == report.get("trained") else report["keep"]


def _gain(needed: float | None, baseline: Entries, speed: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the gain of an arm, a bound if its speed-up is one, or the reason why it is unknown."""
    speed_up = speed["speed_up"]
    if speed_up is None:
        return {"gain": None, "gain_note": speed["speed_up_note"]}
    if needed is None:
        return {"gain": None, "gain_note": UNKNOWN}
    if any((_cost_report(entry) or {}).get("scored") for entry in baseline):
        return {"gain": None, "gain_note": "the baseline scores rows itself"}
    scaled = {key: speed_up[key] and speed_up[key] * needed for key in ("value", "low", "high")}
    return {"gain": scaled | {"bound": speed_up["bound"]}, "gain_note": None}
