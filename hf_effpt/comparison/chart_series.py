"""Data of the charts in a report: axes, groups of arms, curves and points, for the page and the pictures alike."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np

from hf_effpt.core.clock import JOULES_A_KWH
from hf_effpt.core.files import finite

from .report_tables import ESTIMATED, FEW_ARMS, UNITS, Arm, Report, baseline_of, in_clock_unit, is_estimated
from .statistics import interval

BASELINE_COLOUR = "#7f7f7f"
# Colours of Okabe and Ito, distinct with any colour vision, without the yellow, which is faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("solid", "dash", "dot", "dashdot")  # of the arms that have the same colour


@dataclass(frozen=True)
class Axis:
    """Cost against which losses are drawn: its key in a run, its name, its unit, and the file name of its picture."""

    key: str
    name: str
    unit: str
    picture: str


AXES = (
    Axis("seconds", "Time", "s", "loss_by_time.png"),
    Axis("tokens", "Tokens", "", "loss_by_tokens.png"),
    Axis("flops", "FLOPs", "", "loss_by_flops.png"),
    Axis("kwh", "Energy", "kWh", "loss_by_kwh.png"),
    Axis("reference_seconds", "Reference time", "s", "loss_by_reference_time.png"),
)
DIFFERENCES = "differences.png"


def axis_unit(axis: Axis, report: Report) -> str:
    """Returns the unit of an axis, marked if energy is an estimate."""
    return f"{axis.unit}, {ESTIMATED}" if axis.key == "kwh" and is_estimated(report) else axis.unit


def axis_title(axis: Axis, report: Report) -> str:
    unit = axis_unit(axis, report)
    return f"{axis.name} ({unit})" if unit else axis.name


@dataclass(frozen=True)
class Group:
    """Arms with the same kind of loss, which share a chart.

    `loss_of` describes their loss, `floors` are values of its floor, one per generator, and `ending` is that of the
    file names of its pictures, empty for the group of the baseline.
    """

    loss_of: str
    floor_name: str
    floors: list[float]
    arms: list[Arm]
    ending: str


def groups(report: Report) -> list[Group]:
    """Groups the arms by the kind of their loss, the baseline's group first."""
    arms = sorted(report["arms"], key=lambda arm: not arm["baseline"])  # stable
    found = []
    for loss_of in dict.fromkeys(arm["loss_of"] for arm in arms):
        own = [arm for arm in arms if arm["loss_of"] == loss_of]
        floors = {round(floor["mean"], 4) for arm in own if (floor := arm["summary"]["floor"]) is not None}
        ending = "_" + re.sub(r"\W+", "_", loss_of) if found else ""
        found.append(Group(loss_of, own[0]["floor_name"], sorted(floors), own, ending))
    return found


def curves_note(report: Report) -> str:
    """Returns the note above the curves."""
    several = " Losses of different objectives are on scales of their own, and never in one chart."
    return (
        "Inside a run the learning rate has not decayed yet, so a curve shows how a run went and nothing more. "
        "Only end points are compared, where the learning rate has fully decayed."
    ) + (several if len(groups(report)) > 1 else "")


def pictures(report: Report) -> dict[str, tuple[Axis, Group]]:
    """Returns the pictures of losses by file name: one for each group and each known axis."""
    drawn = {}
    for group in groups(report):
        for axis in AXES:
            if why_missing(axis, group.arms) is None:
                drawn[axis.picture.replace(".png", f"{group.ending}.png")] = (axis, group)
    return drawn


def why_missing(axis: Axis, arms: Sequence[Arm]) -> str | None:
    """Returns the reason why no curve of these arms can be drawn against an axis; `None` if one can."""
    if any(lines(run)["x"][axis.key] for arm in arms for run in arm["runs"]):
        return None
    return {
        "kwh": "The energy of these runs is not known.",
        "reference_seconds": "No reference system was named, so there is no reference time.",
    }.get(axis.key, "No curve was recorded.")


def styles(report: Report) -> dict[str, tuple[str, str]]:
    """Returns the colour and the dash of each arm by name: solid grey for the baseline, of the others all different.

    They repeat after 24 arms.
    """
    rest = cycle((colour, dash) for dash in DASHES for colour in COLOURS)
    return {arm["name"]: (BASELINE_COLOUR, "solid") if arm["baseline"] else next(rest) for arm in report["arms"]}


def full_runs(arm: Arm) -> list[Mapping[str, Any]]:
    """Returns the runs of an arm on the whole budget."""
    return [run for run in arm["runs"] if run["fraction"] == 1.0]


def _is_known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _curve(run: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Returns the points of a curve with a finite loss."""
    return [point for point in run["curve"] if _is_known(point["loss"])]


def lines(run: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the curve of a run as `{"x": {axis: values}, "loss": values}`; unknown values of an axis are `None`."""
    points = _curve(run)
    found = {axis.key: [point.get(axis.key) for point in points] for axis in AXES}
    known = {key: values if values and all(map(_is_known, values)) else None for key, values in found.items()}
    return {"x": known, "loss": [point["loss"] for point in points]}


def mean_line(arm: Arm) -> dict[str, Any] | None:
    """Returns the mean curve of the finished full runs of an arm with its 95 % t-interval.

    Losses are averaged at equal shares of the budget, so that they are the same on every axis, over the range that all
    runs cover. The positions on each axis are averaged too.

    Returns:
        `{"x": {axis: values or None}, "loss", "low", "high", "n"}`, with `low` and `high` `None` for one seed; `None`
        if no run has finished.
    """
    curves = [points for run in full_runs(arm) if run["state"] == "finished" and (points := _curve(run))]
    if not curves:
        return None
    shares = [np.array([point["clock"] for point in points]) for points in curves]
    grid = np.unique(np.concatenate(shares))
    grid = grid[(grid >= max(share[0] for share in shares)) & (grid <= min(share[-1] for share in shares))]
    if not grid.size:
        return None

    def at_grid(key: str) -> np.ndarray | None:
        values = [[point.get(key) for point in points] for points in curves]
        if not all(_is_known(value) for each in values for value in each):
            return None
        return np.stack([np.interp(grid, *pair) for pair in zip(shares, values, strict=True)])

    means = [interval(losses) for losses in at_grid("loss").T.tolist()]
    return {
        "x": {axis.key: None if (x := at_grid(axis.key)) is None else x.mean(axis=0).tolist() for axis in AXES},
        "loss": [mean.mean for mean in means],
        "low": [mean.low for mean in means] if len(curves) > 1 else None,
        "high": [mean.high for mean in means] if len(curves) > 1 else None,
        "n": len(curves),
    }


def ends(arm: Arm) -> list[dict[str, Any]]:
    """Returns the end points of the finished runs of an arm, shorter runs included. Only these can be compared."""
    found = []
    for run in arm["runs"]:
        if run["state"] == "finished" and _is_known(run["held_out_loss"]):
            joules = run["clock"].get("joules")
            spent = run["clock"] | {"kwh": joules / JOULES_A_KWH if _is_known(joules) else None}
            x = {axis.key: spent.get(axis.key) for axis in AXES}
            rest = {"x": x, "loss": run["held_out_loss"], "learning_rate": run["final_learning_rate"]}
            found.append({"seed": run["seed"], "fraction": run["fraction"], **rest})
    return found


def paired_differences(arm: Arm, report: Report) -> list[dict[str, Any]]:
    """Returns the final loss of an arm minus the baseline's by seed; empty if there is no such difference."""
    if arm["baseline"] or not arm["comparable"]:
        return []
    own, theirs = (
        {end["seed"]: end["loss"] for end in ends(each) if end["fraction"] == 1.0}
        for each in (arm, baseline_of(report))
    )
    return [{"seed": seed, "value": own[seed] - theirs[seed]} for seed in own if seed in theirs]


def why_no_difference(arm: Arm) -> str | None:
    """Returns the reason why an arm has no mean difference in loss; `None` if it has one."""
    if not arm["comparable"]:
        return "another objective: its loss is not that of the baseline"
    return None if arm["difference"] else "no difference is given: see the verdict"


def by_budget(arm: Arm, report: Report) -> dict[str, list[Any]]:
    """Returns the mean final loss and the number of the finished runs of an arm at each budget, in clock units."""
    found = [(end["fraction"] * report["clock"]["budget"], end["loss"]) for end in ends(arm)]
    budgets = sorted({budget for budget, _ in found})
    losses = [[loss for at, loss in found if at == budget] for budget in budgets]
    return {"x": budgets, "loss": [float(np.mean(each)) for each in losses], "n": list(map(len, losses))}


def chart_data(report: Report) -> dict[str, Any]:
    """Returns the data that the charts of the page are drawn from; `page.js` reads these keys."""
    unit, target = report["clock"]["unit"], (baseline_of(report)["summary"]["final_loss"] or {}).get("mean")
    drawn, style_of = groups(report), styles(report)

    def of_arm(arm: Arm) -> dict[str, Any]:
        reached, crossing = (arm["summary"]["budget_to_baseline_loss"] or {}).get("value"), None
        if not arm["baseline"] and reached is not None and target is not None:
            crossing = {"x": reached, "loss": target, "text": in_clock_unit(reached, unit)}
        return {
            "name": arm["name"],
            "baseline": arm["baseline"],
            "colour": style_of[arm["name"]][0],
            "dash": style_of[arm["name"]][1],
            "group": next(number for number, group in enumerate(drawn) if group.loss_of == arm["loss_of"]),
            "curves": [{"seed": run["seed"], "state": run["state"], **lines(run)} for run in full_runs(arm)],
            "mean": mean_line(arm),
            "ends": ends(arm),
            "pairs": paired_differences(arm, report),
            "difference": arm["difference"],
            "no_difference": why_no_difference(arm),
            "by_budget": by_budget(arm, report),
            "crossing": crossing,  # of the baseline's loss
        }

    def of_axis(axis: Axis) -> dict[str, Any]:
        unit, title = axis_unit(axis, report), axis_title(axis, report)
        missing = why_missing(axis, report["arms"])
        return {"key": axis.key, "name": axis.name, "unit": unit, "title": title, "missing": missing}

    symbol = {"seconds": ", s", "reference_seconds": ", s", "joules": ", J"}.get(unit, "")
    return finite(
        {
            "axes": [of_axis(axis) for axis in AXES],
            "first_axis": "kwh" if unit == "joules" else unit,
            # each group has its own charts of losses; the baseline's is the first
            "groups": [{"loss_of": g.loss_of, "floor_name": g.floor_name, "floors": g.floors} for g in drawn],
            "target": target,
            "budget_title": f"Budget of a run: {UNITS[unit]}{symbol}",
            "budget": report["clock"]["budget"],
            "few_arms": FEW_ARMS,
            "arms": [of_arm(arm) for arm in report["arms"]],
        }
    )
