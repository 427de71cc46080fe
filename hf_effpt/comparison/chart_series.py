"""The lines and points that a report draws, on the page and in the pictures alike."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_effpt.core.clock import JOULES_A_KWH

from .report_tables import CURVES_NOTE, ESTIMATED, Report, is_estimated
from .statistics import interval

BASELINE_COLOUR = "#7f7f7f"
# Okabe and Ito's colours, told apart with any colour vision; yellow comes last, being faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")


@dataclass(frozen=True)
class Axis:
    """What a loss can be drawn against: its key in a run, its name, its unit, and its picture's file name."""

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
    """The unit of `axis`, which says so where energy is an estimate."""
    return f"{axis.unit}, {ESTIMATED}" if axis.key == "kwh" and is_estimated(report) else axis.unit


def axis_title(axis: Axis, report: Report) -> str:
    unit = axis_unit(axis, report)
    return f"{axis.name} ({unit})" if unit else axis.name


@dataclass(frozen=True)
class Group:
    """Arms whose losses are of one kind, so that they may be drawn in one chart.

    Args:
        loss_of (`str`): what their loss is, in words.
        floor_name (`str`): what it has to get below.
        floors (`list[float]`): the values of that, which differ where generators do.
        arms (`list`): of the report.
        ending (`str`): of its pictures' file names; empty for the group of the baseline.
    """

    loss_of: str
    floor_name: str
    floors: list[float]
    arms: list[Mapping[str, Any]]
    ending: str


def groups(report: Report) -> list[Group]:
    """The arms by what their loss is; those of the baseline's kind first."""
    arms = sorted(report["arms"], key=lambda arm: not arm["baseline"])  # stable
    found = []
    for loss_of in dict.fromkeys(arm["loss_of"] for arm in arms):
        own = [arm for arm in arms if arm["loss_of"] == loss_of]
        floors = {round(floor["mean"], 4) for arm in own if (floor := arm["summary"]["floor"]) is not None}
        ending = "_" + re.sub(r"\W+", "_", loss_of) if found else ""
        found.append(Group(loss_of, own[0]["floor_name"], sorted(floors), own, ending))
    return found


def curves_note(report: Report) -> str:
    """What to know of the curves before reading them."""
    if len(groups(report)) == 1:
        return CURVES_NOTE
    return f"{CURVES_NOTE} Losses of different objectives are on scales of their own, and never in one chart."


def pictures(report: Report) -> dict[str, tuple[Axis, Group]]:
    """The pictures of losses by file name: one for each group of arms and axis that is known."""
    drawn = {}
    for group in groups(report):
        for axis in AXES:
            if why_missing(axis, {"arms": group.arms}) is None:
                stem, _, kind = axis.picture.rpartition(".")
                drawn[f"{stem}{group.ending}.{kind}"] = (axis, group)
    return drawn


def why_missing(axis: Axis, report: Report) -> str | None:
    """Why no curve can be drawn against `axis`; `None` where one can."""
    if any(_curve_x(run, axis.key) for arm in report["arms"] for run in arm["runs"]):
        return None
    return {
        "kwh": "The energy of these runs is not known.",
        "reference_seconds": "No reference system was named, so there is no reference time.",
    }.get(axis.key, "No curve was recorded.")


def colours(report: Report) -> dict[str, str]:
    """A colour for each arm by its name: grey for the baseline."""
    rest = iter(COLOURS * len(report["arms"]))
    return {arm["name"]: BASELINE_COLOUR if arm["baseline"] else next(rest) for arm in report["arms"]}


def full_runs(arm: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The runs of `arm` that had the whole budget."""
    return [run for run in arm["runs"] if run["fraction"] == 1.0]


def is_known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def spent(run: Mapping[str, Any]) -> dict[str, float | None]:
    """What `run` has spent, by the key of an axis."""
    clock = run["clock"]
    joules = clock.get("joules")
    return {
        axis.key: (joules / JOULES_A_KWH if is_known(joules) else None) if axis.key == "kwh" else clock.get(axis.key)
        for axis in AXES
    }


def curve(run: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The points of a run's curve that have a loss: a run that diverges loses its own."""
    return [point for point in run["curve"] if is_known(point["loss"])]


def _curve_x(run: Mapping[str, Any], key: str) -> list[float] | None:
    """The curve's values on one axis; `None` unless all of them are known."""
    values = [point.get(key) for point in curve(run)]
    return values if values and all(map(is_known, values)) else None


def lines(run: Mapping[str, Any]) -> dict[str, Any]:
    """A run's curve as `{"x": {axis: values or None}, "loss": values}`."""
    return {
        "x": {axis.key: _curve_x(run, axis.key) for axis in AXES},
        "loss": [point["loss"] for point in curve(run)],
    }


def mean_line(arm: Mapping[str, Any]) -> dict[str, Any] | None:
    """The mean curve over the seeds of `arm` with its 95 % t-interval, at equal shares of the budget.

    Averaging at equal shares of the budget gives the same losses on every axis; on an axis other than the clock's, the
    positions are averaged too. Only finished runs count, over the range that all of them cover.

    Returns:
        `{"x": {axis: values or None}, "loss", "low", "high", "n"}`, with `low` and `high` `None` for one seed, or
        `None` where no run has finished.
    """
    curves = [curve(run) for run in full_runs(arm) if run["state"] == "finished"]
    curves = [points for points in curves if points]
    if not curves:
        return None
    shares = [np.array([point["clock"] for point in points]) for points in curves]
    grid = np.unique(np.concatenate(shares))
    grid = grid[(grid >= max(share[0] for share in shares)) & (grid <= min(share[-1] for share in shares))]
    if not grid.size:
        return None

    def at_grid(key: str) -> np.ndarray:
        values = [[point[key] for point in points] for points in curves]
        return np.stack([np.interp(grid, *pair) for pair in zip(shares, values, strict=True)])

    def is_complete(key: str) -> bool:
        return all(is_known(point.get(key)) for points in curves for point in points)

    means = [interval(losses) for losses in at_grid("loss").T.tolist()]
    return {
        "x": {axis.key: at_grid(axis.key).mean(axis=0).tolist() if is_complete(axis.key) else None for axis in AXES},
        "loss": [mean.mean for mean in means],
        "low": [mean.low for mean in means] if len(curves) > 1 else None,
        "high": [mean.high for mean in means] if len(curves) > 1 else None,
        "n": len(curves),
    }


def ends(arm: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Where the finished runs of `arm` ended, shorter ones included: the points that may be compared."""
    return [
        {
            "seed": run["seed"],
            "fraction": run["fraction"],
            "x": spent(run),
            "loss": run["held_out_loss"],
            "learning_rate": run["final_learning_rate"],
        }
        for run in arm["runs"]
        if run["state"] == "finished" and is_known(run["held_out_loss"])
    ]


def paired_differences(arm: Mapping[str, Any], report: Report) -> list[dict[str, Any]]:
    """Final loss of `arm` minus the baseline's by seed; none if it is the baseline, or the losses are of two kinds."""
    if arm["baseline"] or not arm["comparable"]:
        return []
    baseline = next(other for other in report["arms"] if other["baseline"])
    theirs = {end["seed"]: end["loss"] for end in ends(baseline) if end["fraction"] == 1.0}
    return [
        {"seed": end["seed"], "value": end["loss"] - theirs[end["seed"]]}
        for end in ends(arm)
        if end["fraction"] == 1.0 and end["seed"] in theirs
    ]


def why_no_difference(arm: Mapping[str, Any]) -> str | None:
    """Why no mean difference in loss is drawn for `arm`; `None` where one is."""
    if not arm["comparable"]:
        return "another objective: its loss is not that of the baseline"
    return None if arm["difference"] else "no difference is given: see the verdict"


def by_budget(arm: Mapping[str, Any], report: Report) -> dict[str, list[Any]]:
    """The mean final loss of `arm` at each budget for which it has a finished run, in the clock's unit."""
    losses: dict[float, list[float]] = {}
    for end in ends(arm):
        losses.setdefault(end["fraction"] * report["clock"]["budget"], []).append(end["loss"])
    budgets = sorted(losses)
    return {
        "x": budgets,
        "loss": [float(np.mean(losses[budget])) for budget in budgets],
        "n": [len(losses[budget]) for budget in budgets],
    }
