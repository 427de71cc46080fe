"""What a report says in words and figures, for the page and the Markdown alike. What is not known is a dash with its
reason, never a zero."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hf_effpt.core.clock import JOULES_A_KWH
from hf_effpt.hub.card import duration

from .controls import AGAINST
from .primary import LOSS

Report = Mapping[str, Any]

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
CURVES_NOTE = (
    "Inside a run the learning rate has not decayed yet, so a curve shows how a run went and nothing more. "
    "Only end points are compared, where the learning rate has fully decayed."
)
_PREFIXES = ("", "k", "M", "G", "T", "P", "E")


@dataclass(frozen=True)
class Cell:
    """A figure and the small print under it; for a missing figure, a dash and the reason."""

    text: str
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A table whose first column names its rows."""

    header: list[str]
    rows: list[list[Cell]]


def finite(value: Any) -> Any:
    """`value` with `None` in the place of numbers that JSON has no name for."""
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def missing(why: str | None) -> Cell:
    return Cell(DASH, why or "not recorded")


def is_estimated(report: Report) -> bool:
    return ESTIMATED in (report["energy"]["source"] or "")


def signed(value: float, digits: int = 3, plus: bool = False) -> str:
    """`value` with a true minus sign, which lines up with a plus."""
    return f"{value:{'+' if plus else ''}.{digits}f}".replace("-", MINUS)


def amount(value: float, unit: str = "") -> str:
    """`value` in three significant digits and a prefix: `1.23 M`, `45.0 GFLOP`."""
    value = _rounded(value)
    power = min(int(math.log10(abs(value)) // 3), len(_PREFIXES) - 1) if abs(value) >= 1000 else 0
    scaled = value / 1000**power
    digits = 0 if abs(scaled) >= 100 or (not power and value == int(value)) else 1 if abs(scaled) >= 10 else 2
    return f"{scaled:,.{digits}f} {_PREFIXES[power]}{unit}".strip()


def small(value: float, unit: str) -> str:
    """An energy or a mass, which may be far below one, in three significant digits."""
    large = abs(_rounded(value)) >= 1000
    return f"{value:,.0f} {unit}" if large else f"{value:.3g} {unit}".replace("-", MINUS)


def _rounded(value: float) -> float:
    """`value` in three significant digits, so that what is shown decides on its prefix: 999,999 is 1.00 M."""
    return float(f"{value:.3g}")


def in_clock_unit(value: float, unit: str) -> str:
    """A budget in words."""
    if unit in ("seconds", "reference_seconds"):
        return duration(value)
    return {"tokens": amount(value) + " tokens", "flops": amount(value, "FLOP"), "joules": amount(value, "J")}.get(
        unit, f"{value:,.0f} steps"
    )


def held_equal(report: Report) -> str:
    """The sentence that says what was the same for all arms."""
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
    if low is None or high is None:
        return f"no interval from {n} run{'s' if n != 1 else ''}"
    return f"{signed(low, digits, plus)} to {signed(high, digits, plus)}, n = {n}"


def _no_runs(arm: Mapping[str, Any]) -> str:
    """What became of the full runs of an arm that has no final loss."""
    states = Counter(run["state"] for run in arm["runs"] if run["fraction"] == 1.0)
    return ", ".join(f"{count} {state}" for state, count in states.items()) or "no run with the whole budget"


def _objective(arm: Mapping[str, Any], report: Report) -> Cell:
    return Cell(arm["loss_of"])


def _final_loss(arm: Mapping[str, Any], report: Report) -> Cell:
    summary = arm["summary"]["final_loss"]
    return (
        Cell(signed(summary["mean"], loss_digits(arm)), _interval(summary, loss_digits(arm)))
        if summary
        else missing(_no_runs(arm))
    )


def loss_digits(arm: Mapping[str, Any]) -> int:
    """As many as differ between one loss and another: those of a choice between two lie close together."""
    return 4 if (arm["summary"]["final_loss"] or {"mean": 1.0})["mean"] < 1 else 3


def _floor(arm: Mapping[str, Any], report: Report) -> Cell:
    floor = arm["summary"]["floor"]
    return Cell(signed(floor["mean"], loss_digits(arm)), arm["floor_name"]) if floor else missing("not measured")


def _margin(arm: Mapping[str, Any], report: Report) -> Cell:
    margin = arm["summary"]["margin"]
    return Cell(signed(margin["mean"], 4), _interval(margin, 4)) if margin else missing("the floor was not measured")


def _generator(arm: Mapping[str, Any], report: Report) -> Cell:
    loss, rate = arm["summary"]["generator_loss"], arm["summary"]["replaced_rate"]
    if loss is None or rate is None:
        return missing("it has none")
    return Cell(signed(loss["mean"]), f"replaces {rate['mean']:.2%} of the tokens judged")


def _difference(arm: Mapping[str, Any], report: Report) -> Cell:
    if arm["baseline"]:
        return missing("the baseline")
    if not arm["comparable"]:
        return missing("another objective")
    return _gap(arm["difference"], "too few seeds with which both finished")


def _control_difference(arm: Mapping[str, Any], report: Report) -> Cell:
    control = arm.get("control")
    if control is None:
        return missing("the baseline" if arm["baseline"] else "it needs no such control")
    if control["arm"] is None:
        return missing(control["reason"])
    found = _gap(arm["control_difference"], "too few seeds with which both finished")
    return Cell(found.text, f"{found.note}; not corrected" if arm["control_difference"] else found.note)


def _score_difference(name: str, arm: Mapping[str, Any], report: Report) -> Cell:
    if arm["baseline"]:
        return missing("the baseline")
    if name not in arm["score_differences"]:
        return missing("none is given: see the verdict" if name in arm["summary"]["scores"] else "not measured of it")
    if name not in next(each for each in report["arms"] if each["baseline"])["summary"]["scores"]:
        return missing("not measured of the baseline")
    return _gap(arm["score_differences"][name], "too few seeds with which both have it")


def _gap(difference: Mapping[str, Any] | None, why_none: str) -> Cell:
    if difference is None:
        return missing(why_none)
    tested = difference.get("p_holm")
    chance = "" if tested is None else "; Holm p < 0.001" if tested < 0.001 else f"; Holm p = {tested:.3f}"
    return Cell(signed(difference["mean"], 4, True), _interval(difference, 4, True) + chance)


def _why_not_reached(arm: Mapping[str, Any]) -> str:
    note = arm["summary"].get("speed_up_note")
    return note or ("the baseline" if arm["baseline"] else "the baseline's loss was not reached")


def _budget_to_baseline_loss(arm: Mapping[str, Any], report: Report) -> Cell:
    found, unit = arm["summary"]["budget_to_baseline_loss"], report["clock"]["unit"]
    if found and found.get("value") is not None:
        return Cell(in_clock_unit(found["value"], unit))
    return missing(_why_not_reached(arm))


def _speed_up(arm: Mapping[str, Any], report: Report) -> Cell:
    found, note = arm["summary"]["speed_up"], arm["summary"].get("speed_up_note")
    if not found or found.get("value") is None:
        return missing(_why_not_reached(arm))
    low, high = found["low"], found["high"]
    bounds = f"{low:.2f}x to {high:.2f}x" if low is not None and high is not None else "no interval"
    return Cell(f"{found['value']:.2f}x", "; ".join(filter(None, (bounds, note))))


def _scoring_cost(arm: Mapping[str, Any], report: Report) -> Cell:
    law = arm["summary"].get("cost_law")
    if law is None:
        return missing("it scores no rows")
    if law["s"] is None:
        return missing(None)
    return Cell(f"{law['s']:.3f}", "by FLOPs" if law["by"] == "flops" else "by time")


def _needed_gain(arm: Mapping[str, Any], report: Report) -> Cell:
    law = arm["summary"].get("cost_law")
    if law is None:
        return missing("it scores no rows")
    return missing(law["needed_note"]) if law["needed"] is None else Cell(f"{law['needed']:.2f}x", law["needed_note"])


def _gain(arm: Mapping[str, Any], report: Report) -> Cell:
    law = arm["summary"].get("cost_law")
    if law is None:
        return missing("it scores no rows")
    gain = law["gain"]
    if gain is None:
        return missing(law["gain_note"])
    bounds = "no interval" if gain["low"] is None else f"{gain['low']:.2f}x to {gain['high']:.2f}x"
    return Cell(f"{gain['bound'] or ''} {gain['value']:.2f}x".strip(), "" if gain["bound"] else bounds)


def _score(name: str, arm: Mapping[str, Any]) -> Cell:
    score = arm["summary"]["scores"].get(name)
    if score is None or score["mean"] is None:
        return missing((score or {}).get("note") or "not evaluated")
    return Cell(signed(score["mean"]), "; ".join(filter(None, (_interval(score), score.get("note")))))


def _overhead(arm: Mapping[str, Any], report: Report) -> Cell:
    cost, seconds = arm["summary"]["method_seconds"], arm["summary"]["seconds"]
    if cost is None:
        return missing(None)
    return Cell(duration(cost), f"{cost / seconds:.1%} of the time" if cost and seconds else "")


def score_names(report: Report) -> list[str]:
    """All scores of the report, BLiMP first."""
    names = {name for arm in report["arms"] for name in arm["summary"]["scores"]}
    return sorted(names, key=lambda name: (not name.startswith("blimp"), name))


def score_label(name: str) -> str:
    return name.replace("blimp/", "BLiMP, ", 1)


def _energy_labels(report: Report) -> tuple[str, str]:
    source, intensity = report["energy"]["source"], report["energy"]["carbon_intensity"]
    energy = f"Energy a run ({source})" if source else "Energy a run"
    carbon = [ESTIMATED] if is_estimated(report) else []
    carbon += [f"at {intensity:g} g/kWh"] if source and intensity is not None else []
    return energy, f"CO2e a run ({', '.join(carbon)})" if carbon else "CO2e a run"


def results_table(report: Report) -> Table:
    """The measures of the comparison, one row each, with an arm in each column."""
    energy, carbon = _energy_labels(report)
    no_energy = None if report["energy"]["source"] else "nothing measures energy here"
    rows = [
        ("Objective", _objective),
        ("Held-out loss, nats", _final_loss),
        ("Floor of that loss, nats", _floor),
        ("Margin below the floor, nats", _margin),
        ("Paired difference to the baseline, nats", _difference),
        ("Budget to the baseline's loss", _budget_to_baseline_loss),
        ("Speed-up", _speed_up),
    ]
    if any(arm["summary"]["generator_loss"] for arm in report["arms"]):
        rows.insert(4, ("Loss of its generator, nats a masked token", _generator))
    if any(arm.get("control") for arm in report["arms"]):
        after = next(place for place, (_, figure) in enumerate(rows) if figure is _difference) + 1
        rows.insert(after, (f"Paired difference {AGAINST}, nats", _control_difference))
    if any(arm["summary"].get("cost_law") for arm in report["arms"]):
        rows += [
            ("Cost to score a row, s, in rows learned from", _scoring_cost),
            ("Gain in samples needed, 1 + s/k", _needed_gain),
            ("Gain in samples it had", _gain),
        ]
    table = [[Cell(label), *(figure(arm, report) for arm in report["arms"])] for label, figure in rows]
    for name in score_names(report):
        table.append([Cell(score_label(name)), *(_score(name, arm) for arm in report["arms"])])
        if len(report["arms"]) > 1 and name != LOSS:
            gaps = (_score_difference(name, arm, report) for arm in report["arms"])
            table.append([Cell(f"{score_label(name)}: paired difference to the baseline"), *gaps])
    plain = [
        (energy, "kwh", lambda value: small(value, "kWh")),
        (carbon, "co2e", lambda value: small(value, "g")),
        ("Time a run", "seconds", duration),
        ("Tokens a run", "tokens", amount),
        ("FLOPs a run", "flops", amount),
    ]
    for label, key, write in plain:
        values = [arm["summary"].get(key) for arm in report["arms"]]
        why = no_energy if key in ("kwh", "co2e") else None
        table.append([Cell(label), *(missing(why) if value is None else Cell(write(value)) for value in values)])
    table.append([Cell("Method overhead a run"), *(_overhead(arm, report) for arm in report["arms"])])
    return Table(["Measure", *(arm["name"] for arm in report["arms"])], table)


def runs_table(report: Report) -> Table:
    """Every run as it was recorded, one row each."""
    names = score_names(report)
    marked = f", {ESTIMATED}" if is_estimated(report) else ""
    no_energy = "no source" if not report["energy"]["source"] else None

    def figure(value: float | None, write: Any, why: str | None = None) -> Cell:
        return missing(why) if value is None else Cell(write(value))

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
                    figure(run["held_out_loss"], lambda value: signed(value, 4), gone),
                    figure(run["final_learning_rate"], "{:.2e}".format, gone),
                    figure(clock.get("steps"), "{:,.0f}".format, gone),
                    figure(clock.get("tokens"), amount, gone),
                    figure(clock.get("flops"), amount, gone),
                    figure(clock.get("seconds"), duration, gone),
                    figure(clock.get("reference_seconds"), duration, "no reference"),
                    figure(
                        None if joules is None else joules / JOULES_A_KWH, lambda value: small(value, "kWh"), no_energy
                    ),
                    figure(run["co2e"], lambda value: small(value, "g"), no_energy),
                    Cell(costs or "none"),
                    *(figure(run["scores"].get(name), signed, gone or "not evaluated") for name in names),
                ]
            )
    header = ["Arm", "Seed", "Share of budget", "State", "Held-out loss, nats", "Final learning rate", "Steps"]
    header += ["Tokens", "FLOPs", "Time", "Reference time", f"Energy{marked}", f"CO2e{marked}", "Method costs"]
    return Table([*header, *map(score_label, names)], rows)
