"""Tables and number formats of a report, for the page and the Markdown alike.

An unknown value is a dash with its reason, never a zero.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from hf_effpt.core.clock import JOULES_A_KWH
from hf_effpt.hub.card import duration

from .arm_losses import LOSS

Report = Mapping[str, Any]
Arm = Mapping[str, Any]  # an arm of the report

DASH, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"
ESTIMATED = "estimated"
UNITS = {
    "steps": "optimizer steps",
    "tokens": "training tokens",
    "flops": "FLOPs",
    "seconds": "training time",
    "reference_seconds": "training time on the reference system",
    "joules": "energy",
}
FEW_ARMS = 6  # of more, tables have an arm in each row, and charts no single seeds
_PREFIXES = ("", "k", "M", "G", "T", "P", "E")


@dataclass(frozen=True)
class Cell:
    """A value and a note on it; for an unknown value, a dash and the reason."""

    text: str
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A table whose first column names its rows."""

    header: list[str]
    rows: list[list[Cell]]


def missing(why: str | None) -> Cell:
    return Cell(DASH, why or "not recorded")


def baseline_of(report: Report) -> Arm:
    return next(arm for arm in report["arms"] if arm["baseline"])


def is_estimated(report: Report) -> bool:
    """`True` if the energy of the runs was not measured."""
    return ESTIMATED in (report["energy"]["source"] or "")


def signed(value: float, digits: int = 3, plus: bool = False) -> str:
    """Formats `value` with a true minus sign, which is as wide as a plus; with `plus`, signs positive values too."""
    return f"{value:{'+' if plus else ''}.{digits}f}".replace("-", MINUS)


def amount(value: float, unit: str = "") -> str:
    """Formats `value` with three significant digits and a prefix: `1.23 M`, `45.0 GFLOP`."""
    value = _rounded(value)
    power = min(int(math.log10(abs(value)) // 3), len(_PREFIXES) - 1) if abs(value) >= 1000 else 0
    scaled = value / 1000**power
    digits = 0 if abs(scaled) >= 100 or (not power and value == int(value)) else 1 if abs(scaled) >= 10 else 2
    return f"{scaled:,.{digits}f} {_PREFIXES[power]}{unit}".strip()


def small(value: float, unit: str) -> str:
    """Formats an energy or a mass, which may be far below one, with three significant digits."""
    large = abs(_rounded(value)) >= 1000
    return f"{value:,.0f} {unit}" if large else f"{value:.3g} {unit}".replace("-", MINUS)


def _rounded(value: float) -> float:
    """Rounds to three significant digits before a prefix is chosen, so that 999,999 is 1.00 M."""
    return float(f"{value:.3g}")


def in_clock_unit(value: float, unit: str) -> str:
    """Formats a budget with the unit of its clock."""
    if unit in ("seconds", "reference_seconds"):
        return duration(value)
    if unit == "steps":
        return f"{value:,.0f} steps"
    return f"{amount(value)} tokens" if unit == "tokens" else amount(value, {"flops": "FLOP", "joules": "J"}[unit])


def held_equal(report: Report) -> str:
    """Returns the sentence that says what was the same for all arms."""
    clock, seeds, primary = report["clock"], report["seeds"], report["primary"]
    return (
        f"Held equal: a budget of {clock['text']}, counted as {UNITS[clock['unit']]}; "
        f"{'seeds' if len(seeds) > 1 else 'seed'} {', '.join(map(str, seeds))}; and a learning rate that decays fully "
        "within each run's own budget. What a method costs is charged to its arm"
        + (", but for those marked free." if any(arm.get("free") for arm in report["arms"]) else ".")
        + f" Verdicts are given on {'the held-out loss' if primary == LOSS else score_label(primary)}."
    )


def _interval(summary: Mapping[str, Any], digits: int = 3, plus: bool = False) -> str:
    low, high, n = summary["low"], summary["high"], summary["n"]
    if low is None:
        return f"no interval from {n} run{'s' if n != 1 else ''}"
    return f"{signed(low, digits, plus)} to {signed(high, digits, plus)}, n = {n}"


def _bounds(found: Mapping[str, Any]) -> str:
    """Formats the interval of a factor."""
    low, high = found["low"], found["high"]
    return "no interval" if low is None or high is None else f"{low:.2f}x to {high:.2f}x"


def _loss_digits(arm: Arm) -> int:
    """Returns the number of decimals of a loss: losses of a binary choice lie closer together than others."""
    return 4 if (arm["summary"]["final_loss"] or {"mean": 1.0})["mean"] < 1 else 3


def _final_loss(arm: Arm) -> Cell:
    found, digits = arm["summary"]["final_loss"], _loss_digits(arm)
    if found:
        return Cell(signed(found["mean"], digits), _interval(found, digits))
    states = Counter(run["state"] for run in arm["runs"] if run["fraction"] == 1.0)
    return missing(", ".join(f"{n} {state}" for state, n in states.items()) or "no run with the whole budget")


def _floor(arm: Arm) -> Cell:
    floor = arm["summary"]["floor"]
    return Cell(signed(floor["mean"], _loss_digits(arm)), arm["floor_name"]) if floor else missing("not measured")


def _margin(arm: Arm) -> Cell:
    margin = arm["summary"]["margin"]
    return Cell(signed(margin["mean"], 4), _interval(margin, 4)) if margin else missing("the floor was not measured")


def _generator(arm: Arm) -> Cell:
    loss, rate = arm["summary"]["generator_loss"], arm["summary"]["replaced_rate"]
    if loss is None or rate is None:
        return missing("it has none")
    return Cell(signed(loss["mean"]), f"replaces {rate['mean']:.2%} of the tokens judged")


def _difference(arm: Arm) -> Cell:
    if arm["baseline"] or not arm["comparable"]:
        return missing("the baseline" if arm["baseline"] else "another objective")
    return _gap(arm["difference"])


def _control_difference(arm: Arm) -> Cell:
    control = arm.get("control")
    if control is None:
        return missing("the baseline" if arm["baseline"] else "it needs no such control")
    if control["arm"] is None:
        return missing(control["reason"])
    return _gap(arm["control_difference"], more="; not corrected")


def _score_difference(name: str, arm: Arm, baseline: Arm) -> Cell:
    if arm["baseline"]:
        return missing("the baseline")
    if name not in arm["score_differences"]:
        return missing("none is given: see the verdict" if name in arm["summary"]["scores"] else "not measured of it")
    if name not in baseline["summary"]["scores"]:
        return missing("not measured of the baseline")
    return _gap(arm["score_differences"][name], "too few seeds with which both have it")


def _gap(
    difference: Mapping[str, Any] | None, why_none: str = "too few seeds with which both finished", more: str = ""
) -> Cell:
    if difference is None:
        return missing(why_none)
    if (p := difference.get("p_holm")) is not None:
        more = "; Holm p < 0.001" if p < 0.001 else f"; Holm p = {p:.3f}"
    return Cell(signed(difference["mean"], 4, True), _interval(difference, 4, True) + more)


def _not_reached(arm: Arm) -> Cell:
    why = "the baseline" if arm["baseline"] else "the baseline's loss was not reached"
    return missing(arm["summary"].get("speed_up_note") or why)


def _budget_to_baseline_loss(unit: str, arm: Arm) -> Cell:
    found = arm["summary"]["budget_to_baseline_loss"]
    return Cell(in_clock_unit(found["value"], unit)) if found else _not_reached(arm)


def _speed_up(arm: Arm) -> Cell:
    found, note = arm["summary"]["speed_up"], arm["summary"].get("speed_up_note")
    if not found:
        return _not_reached(arm)
    return Cell(f"{found['value']:.2f}x", "; ".join(filter(None, (_bounds(found), note))))


def _cost_law(law: Mapping[str, Any] | None) -> list[Cell]:
    """Returns the cells of the cost law: cost to score a row, gain needed, gain had."""
    if law is None:
        return [missing("it scores no rows")] * 3
    cost = _value(law["s"], "{:.3f}".format, note="by FLOPs" if law["by"] == "flops" else "by time")
    needed = _value(law["needed"], "{:.2f}x".format, law["needed_note"], law["needed_note"])
    if (gain := law["gain"]) is None:
        return [cost, needed, missing(law["gain_note"])]
    had = f"{gain['bound'] or ''} {gain['value']:.2f}x".strip()
    return [cost, needed, Cell(had, "" if gain["bound"] else _bounds(gain))]


def _score(name: str, arm: Arm) -> Cell:
    score = arm["summary"]["scores"].get(name)
    if score is None or score["mean"] is None:
        return missing((score or {}).get("note") or "not evaluated")
    return Cell(signed(score["mean"]), "; ".join(filter(None, (_interval(score), score.get("note")))))


def _overhead(arm: Arm) -> Cell:
    cost, seconds = arm["summary"]["method_seconds"], arm["summary"]["seconds"]
    if cost is None:
        return missing(None)
    return Cell(duration(cost), f"{cost / seconds:.1%} of the time" if cost and seconds else "")


def score_names(report: Report) -> list[str]:
    """Returns the names of all scores of the report, BLiMP first."""
    names = {name for arm in report["arms"] for name in arm["summary"]["scores"]}
    return sorted(names, key=lambda name: (not name.startswith("blimp"), name))


def score_label(name: str) -> str:
    return name.replace("blimp/", "BLiMP, ", 1)


def _value(value: float | None, write: Callable[[float], str], why: str | None = None, note: str = "") -> Cell:
    return missing(why) if value is None else Cell(write(value), note)


def results_table(report: Report) -> Table:
    """Returns the measures of the comparison, one row each, with an arm in each column; of many arms the reverse."""
    arms = report["arms"]
    table: list[list[Cell]] = []

    def add(label: str, cell: Callable[[Arm], Cell]) -> None:
        table.append([Cell(label), *map(cell, arms)])

    add("Objective", lambda arm: Cell(arm["loss_of"]))
    add("Held-out loss, nats", _final_loss)
    add("Floor of that loss, nats", _floor)
    add("Margin below the floor, nats", _margin)
    if any(arm["summary"]["generator_loss"] for arm in arms):
        add("Loss of its generator, nats a masked token", _generator)
    add("Paired difference to the baseline, nats", _difference)
    if any(arm.get("control") for arm in arms):
        add("Paired difference against random rows, nats", _control_difference)
    add("Budget to the baseline's loss", partial(_budget_to_baseline_loss, report["clock"]["unit"]))
    add("Speed-up", _speed_up)
    if any(arm["summary"].get("cost_law") for arm in arms):
        names = ("Cost to score a row, s, in rows learned from", "Gain in samples needed, 1 + s/k")
        labels = [Cell(name) for name in (*names, "Gain in samples it had")]
        table += map(list, zip(labels, *(_cost_law(arm["summary"].get("cost_law")) for arm in arms), strict=True))
    for name in score_names(report):
        add(score_label(name), partial(_score, name))
        if len(arms) > 1 and name != LOSS:
            cell = partial(_score_difference, name, baseline=baseline_of(report))
            add(f"{score_label(name)}: paired difference to the baseline", cell)
    source, intensity = report["energy"]["source"], report["energy"]["carbon_intensity"]
    carbon = [ESTIMATED] if is_estimated(report) else []
    carbon += [f"at {intensity:g} g/kWh"] if source and intensity is not None else []
    no_energy = None if source else "nothing measures energy here"
    for label, key, write, why in (
        (f"Energy a run ({source})" if source else "Energy a run", "kwh", partial(small, unit="kWh"), no_energy),
        (f"CO2e a run ({', '.join(carbon)})" if carbon else "CO2e a run", "co2e", partial(small, unit="g"), no_energy),
        ("Time a run", "seconds", duration, None),
        ("Tokens a run", "tokens", amount, None),
        ("FLOPs a run", "flops", amount, None),
    ):
        table.append([Cell(label), *(_value(arm["summary"].get(key), write, why) for arm in arms)])
    add("Method overhead a run", _overhead)
    names = [arm["name"] for arm in arms]
    if len(arms) <= FEW_ARMS:
        return Table(["Measure", *names], table)
    cells = zip(*(row[1:] for row in table), strict=True)
    rows = [[Cell(name), *row] for name, row in zip(names, cells, strict=True)]
    return Table(["Arm", *(row[0].text for row in table)], rows)


def runs_table(report: Report) -> Table:
    """Returns every run as it was recorded, one row each."""
    names = score_names(report)
    marked = f", {ESTIMATED}" if is_estimated(report) else ""
    no_energy = "no source" if not report["energy"]["source"] else None
    rows = []
    for arm in report["arms"]:
        for run in arm["runs"]:
            clock, gone = run["clock"], None if run["state"] == "finished" else run["state"]
            costs = ", ".join(f"{method} {seconds:.2f} s" for method, seconds in run["costs"].items())
            joules = clock.get("joules")
            rows.append(
                [
                    Cell(arm["name"]),
                    Cell(str(run["seed"])),
                    Cell(f"{run['fraction']:g}"),
                    Cell(run["state"], run["note"] or ""),
                    _value(run["held_out_loss"], partial(signed, digits=4), gone),
                    _value(run["final_learning_rate"], "{:.2e}".format, gone),
                    _value(clock.get("steps"), "{:,.0f}".format, gone),
                    *(_value(clock.get(key), amount, gone) for key in ("tokens", "flops")),
                    _value(clock.get("seconds"), duration, gone),
                    _value(clock.get("reference_seconds"), duration, "no reference"),
                    _value(joules and joules / JOULES_A_KWH, partial(small, unit="kWh"), no_energy),
                    _value(run["co2e"], partial(small, unit="g"), no_energy),
                    Cell(costs or "none"),
                    *(_value(run["scores"].get(name), signed, gone or "not evaluated") for name in names),
                ]
            )
    header = ["Arm", "Seed", "Share of budget", "State", "Held-out loss, nats", "Final learning rate", "Steps"]
    header += ["Tokens", "FLOPs", "Time", "Reference time", f"Energy{marked}", f"CO2e{marked}", "Method costs"]
    return Table([*header, *map(score_label, names)], rows)
